"""How is a checkpoint written while training goes on? Its tensors are copied first; then a thread has all the time it needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from tclx.train.checkpoint import Content


class Snapshot:
    """The host's copy of a checkpoint's tensors; every copy goes into the memory of the one before."""

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    def take(self, content: Content) -> tuple[Content, Callable[[], None]]:
        """Copy, without waiting for a GPU.

        Returns:
            The copy, and what waits until it is there; the originals may be changed at once, by the same stream.
        """
        copied = Content(self._copied("weights", content.weights), content.aliases, self._copied("moments", content.moments))
        if any(tensor.is_cuda for tensor in content.weights.values()):
            there = torch.cuda.Event()  # type: ignore[no-untyped-call]
            there.record()
            return copied, there.synchronize
        return copied, lambda: None

    def _copied(self, kind: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: self._copy(f"{kind}/{name}", tensor.detach()) for name, tensor in tensors.items()}

    def _copy(self, name: str, tensor: Tensor) -> Tensor:
        held = self._held.get(name)
        if held is None or (held.shape, held.dtype) != (tensor.shape, tensor.dtype):
            held = self._held[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        return held.copy_(tensor, non_blocking=tensor.is_cuda)


class Background:
    """Work beside the training, one piece at a time. What it raises is raised by whoever asks for it next.

    Leaving the block waits for the piece that is at work; where an error leaves it, that error counts.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._work: Future[None] | None = None

    def begin(self, work: Callable[[], None]) -> None:
        """Start a piece; the one before has been waited for."""
        self._work = self._thread.submit(work)

    def wait(self) -> None:
        """Until the piece at work is done.

        Raises:
            Exception: what it has raised, once.
        """
        work, self._work = self._work, None
        if work is not None:
            work.result()

    def check(self) -> None:
        """As `wait`, where it is done; returns at once where it is not."""
        if self._work is not None and self._work.done():
            self.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._thread.shutdown(wait=True)
        if kind is None:
            self.wait()
