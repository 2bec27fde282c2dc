"""Many images looked at, by several processes: the same looks in the same order for any number of them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np

from tclx.data.checking.kept import Kept, Known, Stamps, stamps_of
from tclx.data.checking.look import LOOK, Looks, look
from tclx.data.images import BadImage
from tclx.errors import MachineError
from tclx.processes import end_with
from tclx.system import START_METHOD, num_cpus

if TYPE_CHECKING:
    from tclx.data.images import Decoder
    from tclx.data.sources.source import StoredImage

IMAGES_PER_TASK = 64
"""About half a second of decoding: long against handing a task over, short against the whole."""


class Images(NamedTuple):
    """Some images, and where their looks are kept."""

    images: Sequence[StoredImage]
    kept: Kept | None = None


class Looked(NamedTuple):
    """A few images that follow one another."""

    looks: Looks
    bad: list[tuple[int, BadImage]]
    """Those that cannot be used, by their place among all."""
    num_known: int
    """Of an earlier check."""


def look_at(
    parts: Sequence[Images], *, decoder: Decoder, max_pixels: int, num_processes: int | None = None
) -> Iterator[Looked]:
    """Read and decode every image that is not known from an earlier check; what is new is kept.

    Args:
        parts: of the data, one after the other.
        decoder, max_pixels: as `decode_image`.
        num_processes: defaults to the CPUs that this process may use.

    Raises:
        MachineError: a checking process died.
    """
    known = [None if part.kept is None else part.kept.read() for part in parts]
    tasks = [
        _Task(number, start, list(part.images[start : start + IMAGES_PER_TASK]))
        for number, part in enumerate(parts)
        for start in range(0, len(part.images), IMAGES_PER_TASK)
    ]
    first = np.cumsum([0, *(len(part.images) for part in parts)]).tolist()
    check = partial(_look_at, decoder=decoder, max_pixels=max_pixels)
    for task, found in zip(tasks, _run(check, tasks, known, min(num_processes or num_cpus(), len(tasks))), strict=True):
        kept = parts[task.part].kept
        if kept is not None and found.is_new.any():
            kept.add(found.stamps[found.is_new], found.looks[found.is_new])
        bad = [(first[task.part] + task.start + place, error) for place, error in found.bad]
        yield Looked(found.looks, bad, int((~found.is_new).sum()))


class _Task(NamedTuple):
    part: int
    start: int
    images: list[StoredImage]


class _Found(NamedTuple):
    stamps: Stamps
    looks: Looks
    is_new: np.ndarray[tuple[int], np.dtype[np.bool_]]
    bad: list[tuple[int, BadImage]]


def _run(check: partial[_Found], tasks: list[_Task], known: list[Known | None], num_processes: int) -> Iterator[_Found]:
    """What each task found, in order."""
    if num_processes < 2:
        yield from (check(task, known) for task in tasks)
        return
    context = get_context(START_METHOD)
    try:
        with ProcessPoolExecutor(num_processes, context, initializer=_begin_worker, initargs=(known, os.getpid())) as pool:
            try:
                yield from pool.map(partial(_in_worker, check), tasks)
            except BaseException:  # also when nobody wants the rest
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    except BrokenProcessPool as error:
        raise MachineError("a process that checks images died; most often the machine ran out of memory") from error


_known: list[Known | None] = []
"""Of a checking process."""


def _begin_worker(known: list[Known | None], parent: int) -> None:
    global _known
    _known = known
    cv2.setNumThreads(0)  # 1 would wait for threads that a fork does not copy
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the parent alone decides
    end_with(parent)


def _in_worker(check: partial[_Found], task: _Task) -> _Found:
    return check(task, _known)


def _look_at(task: _Task, known: list[Known | None], *, decoder: Decoder, max_pixels: int) -> _Found:
    earlier = known[task.part]
    # Before reading: what is changed meanwhile has another stamp the next time.
    stamps = stamps_of([None if earlier is None else image.stamp() for image in task.images])
    if earlier is None:
        is_known, looks = np.zeros(len(task.images), bool), np.zeros(len(task.images), LOOK)
    else:
        is_known, looks = earlier.find(stamps)
    bad = []
    for place in np.flatnonzero(~is_known).tolist():
        image = task.images[place]
        try:
            content = image.read_bytes(max_pixels=max_pixels)
            digest, *rest = look(content, str(image), decoder=decoder, max_pixels=max_pixels)
            looks[place] = (np.frombuffer(digest, "<u8"), *rest)
        except BadImage as error:
            bad.append((place, error))
    return _Found(stamps, looks, ~is_known, bad)
