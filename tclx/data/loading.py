"""Loader processes: what starts them, waits for what they send, and ends them.

torch's `DataLoader` makes and hands over the items. Here stands what it leaves open: a worker that stands still, a batch that
finds no room, signals that reach the whole process group, an end that nobody waits for in vain.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from typing import Any, TypeVar

import cv2
import torch
from torch._utils import ExceptionWrapper
from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils import signal_handling

from tclx.data.shared_memory import PREFETCHED_BATCHES, shared_memory_error
from tclx.errors import MachineError, StandStill, TclxError
from tclx.processes import look_at
from tclx.system import START_METHOD

Item = TypeVar("Item")

IGNORED_BY_WORKERS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
"""A terminal or SLURM signals whole process groups; the training process decides, saves and stops its loaders itself."""

POLL_SECONDS = 5.0
"""While a batch is waited for, the loader processes are looked at so often."""

IDLE_SECONDS = 300.0
"""No batch, and the loader processes have done nothing for so long: they will send none."""

STOPPED_SECONDS = 60.0
"""The same where one of them was stopped by a signal: nothing is to be expected of it."""

IDLE_CPU_SECONDS = 0.02
"""What a process may use of a processor in that time and still count as idle: it looks for work every 5 s. Five images take
more, so that a slow file system is told from one that does not answer."""


def stream(
    dataset: Dataset[Item | TclxError], order: Iterable[Any], *, num_workers: int, pin_memory: bool = False
) -> Iterator[Item]:
    """Start the workers now and yield what they send; they end with the stream, or at the latest with this process.

    Args:
        dataset: makes items, each a whole batch; one that is a `TclxError` is raised here.
        order: what the dataset is asked for, one after the other.
        num_workers: 0 makes the items in this process.
        pin_memory: hand over tensors in page-locked memory.

    Raises:
        MachineError: there is no shared memory left; (while iterating) a worker died, or there is no room for its batch.
        StandStill: (while iterating) the workers live and do nothing.
    """
    # Forked workers share the annotation arrays; a started one gets its own copy of them.
    kind = type(multiprocessing.get_context(START_METHOD))
    context: BaseContext = type("Context", (_TellingQueues, kind), {})()
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=order,
        collate_fn=_as_it_is,
        num_workers=num_workers,
        prefetch_factor=PREFETCHED_BATCHES if num_workers else None,
        timeout=POLL_SECONDS if num_workers else 0,
        worker_init_fn=_start_worker,
        pin_memory=pin_memory,
        multiprocessing_context=context if num_workers else None,
        # Without its own generator the loader would take a number from the global one, which dropout shares.
        generator=torch.Generator(),
    )
    try:
        items = iter(loader)
    except OSError as error:  # locks lie in shared memory, too
        raise shared_memory_error(error) or error from None
    # A traceback or a forgotten variable keeps a stream alive until exit, where Python terminates and awaits its workers. Since
    # they ignore SIGTERM, it would wait for ever.
    close = partial(_end_workers, weakref.ref(items))
    atexit.register(close)
    return _received(items, close)


class _TellingQueue(Queue):  # type: ignore[type-arg]  # it takes none before Python 3.12
    """A queue that says what could not be sent.

    Items are sent by a thread, which only prints what goes wrong there, full shared memory for instance: the batch is lost, and
    is waited for for ever.
    """

    def _on_queue_feeder_error(self, error: Exception, item: Any) -> None:  # concurrent.futures uses the same hook
        number, _ = item
        trace = (type(error), error, error.__traceback__)
        self.put((number, shared_memory_error(error) or ExceptionWrapper(trace)))  # type: ignore[no-untyped-call]


class _TellingQueues:
    """The context's queues, replaced."""

    def Queue(self: Any, maxsize: int = 0) -> _TellingQueue:
        return _TellingQueue(maxsize, ctx=self.get_context())


def _as_it_is(item: Item) -> Item:
    return item


def _start_worker(_: int) -> None:
    for number in IGNORED_BY_WORKERS:
        signal.signal(number, signal.SIG_IGN)
    cv2.setNumThreads(0)  # the workers are the parallelism; torch's loader limits torch's own threads


def _received(items: Iterator[Item | TclxError], close: Callable[[], None]) -> Iterator[Item]:
    """What the workers send, with their failures raised here."""
    try:
        while True:
            try:
                item = _wait_for_next(items)
            except StopIteration:
                return
            if isinstance(item, TclxError):
                raise item
            yield item
    except (RuntimeError, EOFError, ConnectionError) as error:
        raise shared_memory_error(error) or worker_death(error) or error from None
    finally:
        close()
        atexit.unregister(close)


def _wait_for_next(items: Iterator[Item | TclxError]) -> Item | TclxError:
    """The next item, however long it takes, as long as somebody works on it.

    Raises:
        StopIteration: there is none.
        StandStill: the loader processes live and do nothing.
    """
    idle, used_before = 0.0, -1.0
    while True:
        try:
            return next(items)
        except RuntimeError as error:
            if _TIMED_OUT not in str(error):
                raise
        # Nothing is lost: the next call goes on waiting for the same item.
        seen = look_at(process.pid for process in _workers_of(items) if process.pid)
        if used_before < 0 or seen.cpu_seconds - used_before > IDLE_CPU_SECONDS * len(_workers_of(items)):
            idle, used_before = 0.0, seen.cpu_seconds
            continue
        idle += POLL_SECONDS
        if idle >= (STOPPED_SECONDS if seen.stopped else IDLE_SECONDS):
            _kill(items)
            raise StandStill(
                f"no batch has come for {idle + POLL_SECONDS:.0f} s and no data loader process does anything: {seen.words}. "
                "If nobody stopped them, the file system with the images does not answer"
            )


_TIMED_OUT = "DataLoader timed out"


def _workers_of(items: Any) -> Sequence[BaseProcess]:
    """torch has no public name for them."""
    return getattr(items, "_workers", ())


def _kill(items: Any) -> None:
    """End workers that would not end by themselves; torch must not take it for a death that concerns it."""
    signal_handling._remove_worker_pids(id(items))  # type: ignore[attr-defined]
    items._worker_pids_set = False
    for process in _workers_of(items):
        process.kill()
    for process in _workers_of(items):
        process.join(POLL_SECONDS)


def _end_workers(reference: weakref.ref[Iterator[Any]]) -> None:
    """torch does this when its iterator is collected, which is too late here; it has no public name."""
    items = reference()
    if not _workers_of(items):
        return
    for process in _workers_of(items):
        with suppress(ProcessLookupError):
            os.kill(process.pid or 0, signal.SIGCONT)  # one that was stopped would be waited for
    getattr(items, "_shutdown_workers")()  # noqa: B009
    for process in _workers_of(items):
        process.kill()  # they ignore the SIGTERM by which Python ends what is left, and would be waited for at exit
        process.join(POLL_SECONDS)


def worker_death(error: Exception) -> MachineError | None:
    """The user's words for a loader process that died, None for any other error.

    torch raises it from a signal handler, so it can surface anywhere in the training process; or the connection over which a
    dead worker would have handed over its batch breaks first.
    """
    if not isinstance(error, EOFError | ConnectionError) and "DataLoader worker" not in str(error):
        return None
    return MachineError(
        f"a data loader process died: {error or type(error).__name__}. "
        "Most often the machine ran out of memory or of shared memory (/dev/shm): "
        "make data.num_workers smaller, or give the job more memory"
    )
