"""Which pairs form which batch, and how do they get there? Training batches and evaluation sets of every source.

Everything about a training pair depends on (seed, epoch, row) alone: the place in the order, the caption chosen, both views,
the hidden tokens. So the stream does not depend on the number of workers, and a resumed run continues it exactly by naming the
micro-step that it wants next.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from itertools import count
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch._utils import ExceptionWrapper
from torch.utils.data import DataLoader, Dataset, Sampler
from torch.utils.data._utils import signal_handling

from tclx.data.augment import apply_view, draw_view, resize_for_evaluation
from tclx.data.batch import Batch
from tclx.data.captions import clean_caption
from tclx.data.images import BadImage, Picture
from tclx.data.masking import MaskedTokens, mask_tokens
from tclx.data.shared_memory import PREFETCHED_BATCHES, check_shared_memory, shared_memory_error
from tclx.data.sources.opening import open_source
from tclx.errors import InputError, MachineError, Problem, RunFailed, StandStill, TclxError
from tclx.processes import look_at
from tclx.system import START_METHOD
from tclx.tasks.pretrain.terms.term import Needs

if TYPE_CHECKING:
    from tclx.data.sources.source import Rows
    from tclx.data.tokenizer import CaptionTokenizer, EncodedCaptions
    from tclx.spec.data import DataSpec
    from tclx.spec.experiment import ExperimentSpec
    from tclx.tasks.task import Split

Item = TypeVar("Item")

MAX_BAD_IN_A_ROW = 100
"""Consecutive unreadable rows after which a run stops under `bad_images.policy: skip`: the folder is gone, not a picture."""
IGNORED_BY_WORKERS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
"""A terminal or SLURM signals whole process groups; the training process decides, saves and stops its loaders itself."""

POLL_SECONDS = 5.0
"""While a batch is waited for, the loader processes are looked at so often."""

IDLE_SECONDS = 300.0
"""No batch, and the loader processes have done nothing for so long: they will send none."""

STOPPED_SECONDS = 60.0
"""The same where one of them was stopped by a signal: nothing is to be expected of it."""

IDLE_CPU_SECONDS = 0.02
"""What a process may use of a processor in that time and still count as idle: it looks for work every 5 s. Five pictures take
more, so that a slow file system is told from one that does not answer."""


def training_captions(data: DataSpec) -> Iterator[str]:
    """Every caption of the training data, cleaned; what a tokenizer is trained on."""
    for caption in open_source(data.train, key="data.train").captions():
        yield clean_caption(caption, max_words=data.max_caption_words)


# Training


class Draw(IntEnum):
    """What a random stream is for; one stream each, so that switching a term off does not change what the others draw."""

    ORDER = 0
    CAPTION = 1
    FIRST_VIEW = 2
    SECOND_VIEW = 3
    MASK = 4


def keyed_generator(draw: Draw, *, seed: int, epoch: int, row: int = 0) -> np.random.Generator:
    """A stream that depends on its arguments alone."""
    return np.random.Generator(np.random.Philox(key=[seed, draw], counter=[0, 0, row, epoch]))


@dataclass(frozen=True)
class MicroBatch:
    """Which rows one process learns from in one forward pass."""

    epoch: int
    rows: NDArray[np.int64]
    """[B]"""


@dataclass(frozen=True)
class KeyedOrder(Sampler[MicroBatch]):
    """An endless order over epochs, each a permutation whose incomplete last optimizer step is dropped.

    Global micro-batch m of an epoch is a run of W * B rows of its permutation, of which process r takes the r-th B.
    """

    num_rows: int
    batch_size: int
    accumulation_steps: int
    seed: int
    rank: int
    world_size: int
    start_micro_step: int

    @property
    def micro_steps_per_epoch(self) -> int:
        return self.num_rows // (self.world_size * self.batch_size * self.accumulation_steps) * self.accumulation_steps

    def __iter__(self) -> Iterator[MicroBatch]:
        current, order = -1, np.empty(0, np.int64)
        for micro_step in count(self.start_micro_step):
            epoch, number = divmod(micro_step, self.micro_steps_per_epoch)
            if epoch != current:
                current, order = epoch, keyed_generator(Draw.ORDER, seed=self.seed, epoch=epoch).permutation(self.num_rows)
            start = (number * self.world_size + self.rank) * self.batch_size
            yield MicroBatch(epoch, order[start : start + self.batch_size])


class Pair(NamedTuple):
    """One picture with one caption, before they are put into a batch."""

    row: int
    caption: str
    first_view: Picture
    second_view: Picture | None
    replaced: bool
    """Whether another row stands in for one without a readable picture."""


class TrainDataset(Dataset[Batch | TclxError]):
    """Micro-batches of row numbers in, batches out.

    A mistake that a user can fix is returned instead of raised, because a worker's exceptions arrive as text.

    Args:
        source: the rows.
        spec: the experiment.
        tokenizer: the run's.
        fixed_length: pad every caption to `data.max_caption_tokens`, not to the longest of its batch.
    """

    def __init__(self, source: Rows, spec: ExperimentSpec, tokenizer: CaptionTokenizer, *, fixed_length: bool = False) -> None:
        self._fixed_length = fixed_length
        self._source = source
        self._spec = spec
        self._tokenizer = tokenizer
        self._official = spec.compat == "official"
        self._two_views = spec.objectives.need(Needs.SECOND_VIEW)
        allowed = np.arange(tokenizer.vocab_size)
        # The published pre-training tells pairs apart by row: a picture that is listed twice is its own negative there.
        by_row = self._official and getattr(spec.data.train, "form", None) == "pretrain"
        self._image_index = np.arange(source.num_rows) if by_row else source.image_index
        self._random_ids = allowed if self._official else np.setdiff1d(allowed, tokenizer.special_ids)

    def __getitem__(self, micro_batch: MicroBatch) -> Batch | TclxError:
        try:
            return self._collate(micro_batch, [self._pair(micro_batch.epoch, int(row)) for row in micro_batch.rows])
        except TclxError as error:
            return error

    def _pair(self, epoch: int, row: int) -> Pair:
        data = self._spec.data
        used, picture = self._readable_picture(row)
        captions = self._source.captions(used)
        caption = captions[int(self._generator(Draw.CAPTION, epoch, row).integers(len(captions)))]
        return Pair(
            row=used,
            caption=clean_caption(caption, max_words=data.max_caption_words),
            first_view=self._view(picture, self._generator(Draw.FIRST_VIEW, epoch, row)),
            second_view=self._view(picture, self._generator(Draw.SECOND_VIEW, epoch, row)) if self._two_views else None,
            replaced=used != row,
        )

    def _readable_picture(self, row: int) -> tuple[int, Picture]:
        """The row's picture, or under `skip` that of the first readable row after it."""
        skips = self._spec.data.bad_images.policy == "skip"
        for used in range(row, row + (MAX_BAD_IN_A_ROW if skips else 1)):
            try:
                return used % self._source.num_rows, self._source.picture(used % self._source.num_rows)
            except BadImage as error:
                reason = error
        if skips:
            raise RunFailed(
                f"{MAX_BAD_IN_A_ROW} successive rows have no readable picture, the last: {reason}. Is the folder there?"
            )
        raise RunFailed(f"a picture turned bad during training: {reason}. Mend it, or set data.bad_images.policy to skip")

    def _view(self, picture: Picture, rng: np.random.Generator) -> Picture:
        data, size = self._spec.data, self._spec.model.image_encoder.image_size
        view = draw_view(rng, data.augmentation, height=picture.shape[0], width=picture.shape[1])
        return apply_view(picture, view, image_size=size, decoder=data.decoder, official=self._official)

    def _generator(self, draw: Draw, epoch: int, row: int) -> np.random.Generator:
        return keyed_generator(draw, seed=self._spec.seed, epoch=epoch, row=row)

    def _collate(self, micro_batch: MicroBatch, pairs: list[Pair]) -> Batch:
        captions = [pair.caption for pair in pairs]
        max_tokens = self._spec.data.max_caption_tokens
        encoded = self._tokenizer.encode(captions, max_tokens=max_tokens, fixed_length=self._fixed_length)
        second_views = [pair.second_view for pair in pairs if pair.second_view is not None]
        rows = np.array([pair.row for pair in pairs])
        masked = self._mask(micro_batch, encoded)
        return Batch(
            images=stack_pictures([pair.first_view for pair in pairs]),
            images_second=stack_pictures(second_views) if self._two_views else None,
            input_ids=torch.from_numpy(encoded.input_ids),
            attention_mask=torch.from_numpy(encoded.attention_mask),
            masked_input_ids=torch.from_numpy(masked.input_ids) if masked else None,
            mlm_positions=torch.from_numpy(masked.positions) if masked else None,
            mlm_labels=torch.from_numpy(masked.labels) if masked else None,
            image_index=torch.from_numpy(self._image_index[rows]),
            row=torch.from_numpy(rows),
            num_bad_images=sum(pair.replaced for pair in pairs),
        )

    def _mask(self, micro_batch: MicroBatch, encoded: EncodedCaptions) -> MaskedTokens | None:
        """Every caption masked from its own stream; positions count through the flattened batch."""
        objective = self._spec.objectives.mlm
        if objective is None:
            return None
        length = encoded.input_ids.shape[1]
        captions = [
            mask_tokens(
                input_ids,
                probability=objective.mask_probability,
                mask_id=self._tokenizer.mask_id,
                never_hidden_ids=(self._tokenizer.cls_id, self._tokenizer.pad_id),
                random_ids=self._random_ids,
                rng=self._generator(Draw.MASK, micro_batch.epoch, int(row)),
            )
            for row, input_ids in zip(micro_batch.rows, encoded.input_ids, strict=True)
        ]
        return MaskedTokens(
            np.stack([caption.input_ids for caption in captions]),
            np.concatenate([caption.positions + number * length for number, caption in enumerate(captions)]),
            np.concatenate([caption.labels for caption in captions]),
        )


def stack_pictures(pictures: Sequence[Picture]) -> Tensor:
    """[B, 3, H, W] uint8 from B pictures [H, W, 3]."""
    return torch.from_numpy(np.ascontiguousarray(np.stack(pictures).transpose(0, 3, 1, 2)))


def train_batches(
    spec: ExperimentSpec, *, tokenizer: CaptionTokenizer, rank: int = 0, world_size: int = 1, start_micro_step: int = 0
) -> Iterator[Batch]:
    """One process's endless stream of training batches; close it to end its workers.

    Args:
        spec: the experiment.
        tokenizer: the run's.
        rank, world_size: which part of every global batch this process takes.
        start_micro_step: forward passes already done, over all epochs; the stream starts with the next.

    Returns:
        A generator of batches on the CPU, in page-locked memory when there is a GPU to train on.

    Raises:
        InputError: the data are wrong or smaller than one optimizer step.
        RunFailed: (while iterating) a picture cannot be read and nothing may take its place.
        MachineError: shared memory is too small; (while iterating) a worker process died, or there is no room for its batch.
        StandStill: (while iterating) the worker processes live and do nothing.
    """
    source = open_source(spec.data.train, key="data.train").rows(spec)
    order = KeyedOrder(
        num_rows=source.num_rows,
        batch_size=spec.training.batch_size_per_gpu,
        accumulation_steps=spec.training.accumulation_steps,
        seed=spec.seed,
        rank=rank,
        world_size=world_size,
        start_micro_step=start_micro_step,
    )
    if order.micro_steps_per_epoch == 0:
        needed = world_size * order.batch_size * order.accumulation_steps
        problem = f"one optimizer step takes {needed} rows, data.train has {source.num_rows}"
        raise InputError(Problem("training.batch_size_per_gpu", problem, "make it smaller"))
    check_shared_memory(spec)
    pin_memory = spec.training.device in ("auto", "cuda") and torch.cuda.is_available()
    # Token features are gathered over processes, which takes equal shapes.
    dataset = TrainDataset(source, spec, tokenizer, fixed_length=world_size > 1)
    return _stream(_loader(dataset, order, num_workers=spec.data.num_workers, pin_memory=pin_memory))


# Evaluation


class EvaluationSet:
    """Every picture of a source once, with all its captions.

    Attributes:
        captions: T cleaned captions, those of picture 0 first.
        image_of_caption: [T] int64, the number of the picture that each describes, 0 to num_images - 1.
    """

    def __init__(self, source: Rows, data: DataSpec, *, image_size: int) -> None:
        self._source = source
        self._data = data
        self._image_size = image_size
        _, self._first_rows = np.unique(source.image_index, return_index=True)
        order: list[int] = np.argsort(source.image_index, kind="stable").tolist()
        texts = [(int(source.image_index[row]), caption) for row in order for caption in source.captions(row)]
        self.captions = [clean_caption(caption, max_words=data.max_caption_words) for _, caption in texts]
        self.image_of_caption: NDArray[np.int64] = np.array([picture for picture, _ in texts])

    @property
    def num_images(self) -> int:
        return len(self._first_rows)

    @property
    def num_captions(self) -> int:
        return len(self.captions)

    def image(self, number: int) -> Picture:
        """[S, S, 3] uint8 RGB: the whole picture, squeezed to the encoder's square.

        Raises:
            RunFailed: it cannot be read. A test set with holes compares with nothing, so no policy skips here.
        """
        try:
            picture = self._source.picture(int(self._first_rows[number]))
        except BadImage as error:
            raise RunFailed(f"a picture to evaluate on cannot be read: {error}") from error
        return resize_for_evaluation(picture, image_size=self._image_size, decoder=self._data.decoder)

    def image_batches(self, numbers: Sequence[int] | None = None, *, batch_size: int) -> Iterator[Tensor]:
        """Pictures [b, 3, S, S] uint8 by number, in the order given (all of them by default), `batch_size` at a time.

        Raises:
            RunFailed: (while iterating) a picture cannot be read.
            MachineError: (while iterating) a worker process died.
        """
        wanted = range(self.num_images) if numbers is None else numbers
        parts = [list(wanted[start : start + batch_size]) for start in range(0, len(wanted), batch_size)]
        # Starting a worker costs more than decoding a handful of batches.
        num_workers = min(self._data.num_workers, len(parts) // 4)
        return _stream(_loader(_PictureDataset(self), parts, num_workers=num_workers, pin_memory=False))

    def encode_captions(self, tokenizer: CaptionTokenizer, numbers: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """Ids [T, L] int64 and mask [T, L] bool of captions by number (all of them by default), padded to the longest."""
        captions = self.captions if numbers is None else [self.captions[number] for number in numbers]
        encoded = tokenizer.encode(captions, max_tokens=self._data.max_caption_tokens)
        return torch.from_numpy(encoded.input_ids), torch.from_numpy(encoded.attention_mask)


def open_evaluation_set(spec: ExperimentSpec, split: Split) -> EvaluationSet:
    """The pictures and captions of `data.val` or `data.test`.

    Raises:
        InputError: the spec has no such split, or its files are wrong.
    """
    source = spec.data.val if split == "val" else spec.data.test
    if source is None:
        raise InputError(Problem(f"data.{split}", "is not set, and the evaluation asks for it"))
    rows = open_source(source, key=f"data.{split}").rows(spec)
    return EvaluationSet(rows, spec.data, image_size=spec.model.image_encoder.image_size)


class _PictureDataset(Dataset[Tensor | TclxError]):
    def __init__(self, pictures: EvaluationSet) -> None:
        self._pictures = pictures

    def __getitem__(self, numbers: Sequence[int]) -> Tensor | TclxError:
        try:
            return stack_pictures([self._pictures.image(number) for number in numbers])
        except TclxError as error:
            return error


# Worker processes


def _loader(dataset: Dataset[Item], order: Iterable[Any], *, num_workers: int, pin_memory: bool) -> DataLoader[Item]:
    """A loader whose items are whole batches already."""
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=order,
        collate_fn=_as_it_is,
        num_workers=num_workers,
        prefetch_factor=PREFETCHED_BATCHES if num_workers else None,
        timeout=POLL_SECONDS if num_workers else 0,
        worker_init_fn=_start_worker,
        pin_memory=pin_memory,
        multiprocessing_context=_context() if num_workers else None,
        # Without its own generator the loader would take a number from the global one, which dropout shares.
        generator=torch.Generator(),
    )


def _context() -> BaseContext:
    """How loader processes are started. Forked ones share the annotation arrays; a started one gets its own copy of them."""
    kind = type(multiprocessing.get_context(START_METHOD))
    context: BaseContext = type("Context", (_TellingQueues, kind), {})()
    return context


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


def _stream(loader: DataLoader[Item | TclxError]) -> Iterator[Item]:
    """Start the workers now and yield what they send; they end with the stream, or at the latest with this process.

    Raises:
        MachineError: there is no shared memory left.
    """
    try:
        items = iter(loader)
    except OSError as error:  # locks lie in shared memory, too
        raise shared_memory_error(error) or error from None
    # A traceback or a forgotten variable keeps a stream alive until exit, where Python terminates and awaits its workers. Since
    # they ignore SIGTERM, it would wait for ever.
    close = partial(_end_workers, weakref.ref(items))
    atexit.register(close)
    return _received(items, close)


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
                "If nobody stopped them, the file system with the pictures does not answer"
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
