"""Runs whose steps may not read anything back from their device: torch itself refuses on a GPU, two modes stand in on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

READS = ("item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__", "nonzero", "unique")
"""Of a tensor: on a GPU each waits until its value is there."""

KERNELS = ("_local_scalar_dense", "nonzero", "_unique2", "unique_dim", "unique_consecutive", "masked_select", "equal")

NUM_STEPS = 6
"""Of such a run, whose first and last step write rows."""


class WaitError(AssertionError):
    """A step has read a value from its device."""


class _Functions(TorchFunctionMode):
    def __torch_function__(self, called: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(called, "__name__", "") in READS and args and isinstance(args[0], Tensor):
            raise WaitError(called.__name__)
        return called(*args, **(kwargs or {}))


class _Kernels(TorchDispatchMode):
    def __torch_dispatch__(self, called: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if called.overloadpacket.__name__ in KERNELS:
            raise WaitError(str(called))
        if called.overloadpacket.__name__ == "index" and any(each is not None and each.dtype == torch.bool for each in args[1]):
            raise WaitError("a choice by true and false, whose size nobody knows beforehand")
        return called(*args, **(kwargs or {}))


@contextmanager
def silent(device: str) -> Iterator[None]:
    """In the block nothing can be read back."""
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")
    else:
        with _Functions(), _Kernels():
            yield


def steps_are_silent(device: str) -> None:
    """In the process that trains: its steps but the first and the last, which write rows, may not wait.

    Batches are made on the host, and the answer to the step before is a copy there; of this one it is not there yet.
    """
    from tclx.train import loop
    from tclx.train.agreement import Agreement
    from tclx.train.watchdog import BATCH, Stage, Watchdog

    step, during, read = Watchdog.step, Watchdog.during, Agreement.read
    loop.reads_late = lambda *_: True
    inside: list[ExitStack] = []
    present: list[int] = [0]

    @contextmanager
    def aloud() -> Iterator[None]:
        if inside:
            inside[0].close()
        yield
        if inside:
            inside[0].enter_context(silent(device))

    @contextmanager
    def silent_step(self: Watchdog, number: int, *, compiles: bool = False) -> Iterator[None]:
        present[0] = number
        with step(self, number, compiles=compiles), ExitStack() as stack:
            if 0 < number < NUM_STEPS - 1:
                inside.append(stack)
                stack.enter_context(silent(device))
            yield
            inside.clear()

    @contextmanager
    def aloud_during(self: Watchdog, stage: Stage) -> Iterator[None]:
        with during(self, stage), aloud() if stage is BATCH else nullcontext():
            yield

    def aloud_read(self: Agreement) -> bool:
        with aloud() if self._step < present[0] else nullcontext():
            return read(self)

    Watchdog.step, Watchdog.during = silent_step, aloud_during  # type: ignore[method-assign]
    Agreement.read = aloud_read  # type: ignore[method-assign]
