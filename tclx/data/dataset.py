"""Which pairs form which batch, and how do they get there? Training batches and evaluation sets of every source.

Everything about a training pair depends on (seed, pass, row) alone, a pass being one way through all rows of a source: the
caption chosen, both views, the hidden tokens; so does the order on (seed, epoch). The stream therefore does not depend on the
number of workers, and a resumed run continues it exactly by naming the micro-step that it wants next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from tclx.data.augment import apply_view, draw_view, resize_for_evaluation
from tclx.data.batch import Batch, RowBatch
from tclx.data.captions import clean_caption
from tclx.data.images import BadImage, Pixels
from tclx.data.loading import stream
from tclx.data.masking import MaskedTokens, mask_tokens
from tclx.data.order import Draw, KeyedOrder, LookedAhead, MicroBatch, keyed_generator
from tclx.data.shared_memory import check_shared_memory
from tclx.data.sources.opening import open_source
from tclx.errors import InputError, Problem, RunFailed, TclxError
from tclx.tasks.needs import Needs

if TYPE_CHECKING:
    from tclx.data.sources.source import Rows
    from tclx.data.tokenizer import CaptionTokenizer, EncodedCaptions
    from tclx.spec.data import DataSpec
    from tclx.spec.experiment import ExperimentSpec
    from tclx.tasks.task import Split

T = TypeVar("T")

MAX_BAD_IN_A_ROW = 100
"""Consecutive unreadable rows after which a run stops under `bad_images.policy: skip`: the folder is gone, not an image."""


def training_captions(data: DataSpec) -> Iterator[str]:
    """Every caption of the training data, cleaned; what a tokenizer is trained on."""
    for caption in open_source(data.train, key="data.train").captions():
        yield clean_caption(caption, max_words=data.max_caption_words)


# Training


class Pair(NamedTuple):
    """One image with one caption, before they are put into a batch."""

    row: int
    caption: str
    first_view: Pixels
    second_view: Pixels | None
    replaced: bool
    """Whether another row stands in for one without a readable image."""


class RowDataset(Dataset[RowBatch | TclxError]):
    """Micro-batches of row numbers in, batches out.

    A mistake that a user can fix is returned instead of raised, because a worker's exceptions arrive as text.

    Args:
        spec: the experiment.
        num_rows: of the training data.
    """

    def __init__(self, spec: ExperimentSpec, *, num_rows: int) -> None:
        self._spec = spec
        self._num_rows = num_rows
        self._official = spec.compat == "official"

    def __getitem__(self, micro_batch: MicroBatch) -> RowBatch | TclxError:
        try:
            return self.batch(micro_batch)
        except TclxError as error:
            return error

    def batch(self, micro_batch: MicroBatch) -> RowBatch:
        """The batch of some rows.

        Raises:
            RunFailed: an image cannot be read and nothing may take its place.
        """
        raise NotImplementedError

    def readable(self, row: int, read: Callable[[int], T]) -> tuple[int, T]:
        """What is read of the row, or under `skip` of the first readable row after it, and of which.

        Args:
            row: its number.
            read: raises BadImage where an image of a row cannot be used.

        Raises:
            RunFailed: as `batch`.
        """
        skips = self._spec.data.bad_images.policy == "skip"
        for used in range(row, row + (MAX_BAD_IN_A_ROW if skips else 1)):
            try:
                return used % self._num_rows, read(used % self._num_rows)
            except BadImage as error:
                reason = error
        if skips:
            raise RunFailed(
                f"{MAX_BAD_IN_A_ROW} successive rows have no readable image, the last: {reason}. Is the folder there?"
            )
        raise RunFailed(f"an image turned bad during training: {reason}. Mend it, or set data.bad_images.policy to skip")

    def view(self, image: Pixels, rng: np.random.Generator) -> Pixels:
        """The image augmented, [S, S, 3]."""
        data, size = self._spec.data, self._spec.model.image_encoder.image_size
        drawn = draw_view(rng, data.augmentation, height=image.shape[0], width=image.shape[1])
        return apply_view(image, drawn, image_size=size, decoder=data.decoder, official=self._official)

    def generator(self, draw: Draw, row: int, one_pass: int) -> np.random.Generator:
        """The stream of one row's draws of a kind."""
        return keyed_generator(draw, seed=self._spec.seed, epoch=one_pass, row=row)


class TrainDataset(RowDataset):
    """Images with captions.

    Args:
        source: the rows.
        spec: the experiment.
        tokenizer: the run's.
        fixed_length: pad every caption to `data.max_caption_tokens`, not to the longest of its batch.
    """

    def __init__(self, source: Rows, spec: ExperimentSpec, tokenizer: CaptionTokenizer, *, fixed_length: bool = False) -> None:
        super().__init__(spec, num_rows=source.num_rows)
        self._fixed_length = fixed_length
        self._source = source
        self._tokenizer = tokenizer
        self._two_views = spec.objectives.need(Needs.SECOND_VIEW)
        allowed = np.arange(tokenizer.vocab_size)
        self._random_ids = allowed if self._official else np.setdiff1d(allowed, tokenizer.special_ids)

    def batch(self, micro_batch: MicroBatch) -> Batch:
        return self._collate(micro_batch, [self._pair(row, one_pass) for row, one_pass in micro_batch])

    def _pair(self, row: int, one_pass: int) -> Pair:
        data = self._spec.data
        used, image = self.readable(row, self._source.image)
        captions = self._source.captions(used)
        caption = captions[int(self.generator(Draw.CAPTION, row, one_pass).integers(len(captions)))]
        return Pair(
            row=used,
            caption=clean_caption(caption, max_words=data.max_caption_words),
            first_view=self.view(image, self.generator(Draw.FIRST_VIEW, row, one_pass)),
            second_view=self.view(image, self.generator(Draw.SECOND_VIEW, row, one_pass)) if self._two_views else None,
            replaced=used != row,
        )

    def _collate(self, micro_batch: MicroBatch, pairs: list[Pair]) -> Batch:
        captions = [pair.caption for pair in pairs]
        max_tokens = self._spec.data.max_caption_tokens
        encoded = self._tokenizer.encode(captions, max_tokens=max_tokens, fixed_length=self._fixed_length)
        second_views = [pair.second_view for pair in pairs if pair.second_view is not None]
        rows = np.array([pair.row for pair in pairs])
        masked = self._mask(micro_batch, encoded)
        return Batch(
            images=stack_images([pair.first_view for pair in pairs]),
            images_second=stack_images(second_views) if self._two_views else None,
            input_ids=torch.from_numpy(encoded.input_ids),
            attention_mask=torch.from_numpy(encoded.attention_mask),
            masked_input_ids=torch.from_numpy(masked.input_ids) if masked else None,
            mlm_positions=torch.from_numpy(masked.positions) if masked else None,
            mlm_labels=torch.from_numpy(masked.labels) if masked else None,
            image_index=torch.from_numpy(self._source.image_index[rows]),
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
                rng=self.generator(Draw.MASK, row, one_pass),
            )
            for (row, one_pass), input_ids in zip(micro_batch, encoded.input_ids, strict=True)
        ]
        return MaskedTokens(
            np.stack([caption.input_ids for caption in captions]),
            np.concatenate([caption.positions + number * length for number, caption in enumerate(captions)]),
            np.concatenate([caption.labels for caption in captions]),
        )


def stack_images(images: Sequence[Pixels]) -> Tensor:
    """[B, 3, H, W] uint8 from B images [H, W, 3]."""
    return torch.from_numpy(np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2)))


def train_batches(
    spec: ExperimentSpec, *, tokenizer: CaptionTokenizer, rank: int = 0, world_size: int = 1, start_micro_step: int = 0
) -> Iterator[Batch]:
    """One process's endless stream of images with captions; as `batches_of`."""

    def dataset(source: Rows) -> TrainDataset:
        # Token features are gathered over processes, which takes equal shapes.
        return TrainDataset(source, spec, tokenizer, fixed_length=world_size > 1)

    return batches_of(dataset, spec, rank=rank, world_size=world_size, start_micro_step=start_micro_step)  # type: ignore[return-value]


def batches_of(
    dataset: Callable[[Any], RowDataset], spec: ExperimentSpec, *, rank: int, world_size: int, start_micro_step: int
) -> Iterator[RowBatch]:
    """One process's endless stream of training batches; close it to end its workers.

    Args:
        dataset: of the rows of `data.train`.
        spec: the experiment.
        rank, world_size: which part of every global batch this process takes.
        start_micro_step: forward passes already done, over all epochs; the stream starts with the next.

    Returns:
        A generator of batches on the CPU, in page-locked memory when there is a GPU to train on.

    Raises:
        InputError: the data are wrong or smaller than one optimizer step.
        RunFailed: (while iterating) an image cannot be read and nothing may take its place.
        MachineError: shared memory is too small; (while iterating) a worker process died, or there is no room for its batch.
        StandStill: (while iterating) the worker processes live and do nothing.
    """
    source = open_source(spec.data.train, key="data.train").rows(spec)
    order = KeyedOrder(
        blocks=source.blocks,
        batch_size=spec.training.batch_size_per_gpu,
        accumulation_steps=spec.training.accumulation_steps,
        seed=spec.seed,
        rank=rank,
        world_size=world_size,
        start_micro_step=start_micro_step,
    )
    if order.micro_steps_per_epoch == 0:
        needed = world_size * order.batch_size * order.accumulation_steps
        drawn = sum(block.rows_per_epoch for block in order.blocks)
        problem = f"one optimizer step takes {needed} rows, data.train has {drawn}"
        raise InputError(Problem("training.batch_size_per_gpu", problem, "make it smaller"))
    check_shared_memory(spec)
    pin_memory = spec.training.device in ("auto", "cuda") and torch.cuda.is_available()
    followed = LookedAhead(order) if any(block.fetch for block in order.blocks) else order
    return stream(dataset(source), followed, num_workers=spec.data.num_workers, pin_memory=pin_memory)


# Evaluation


class EvaluationSet:
    """Every image of a source once, with all its captions.

    Attributes:
        captions: T cleaned captions, those of image 0 first.
        image_of_caption: [T] int64, the number of the image that each describes, 0 to num_images - 1.
        first_rows: [I] the first row of each image.
        rows_by_image: [R] all rows, those of image 0 first; the captions are in this order.
    """

    def __init__(self, source: Rows, data: DataSpec, *, image_size: int) -> None:
        self._source = source
        self._data = data
        self._image_size = image_size
        _, first_rows = np.unique(source.image_index, return_index=True)
        self.first_rows: list[int] = first_rows.tolist()
        self.rows_by_image: list[int] = np.argsort(source.image_index, kind="stable").tolist()
        texts = [(int(source.image_index[row]), caption) for row in self.rows_by_image for caption in source.captions(row)]
        self.captions = [clean_caption(caption, max_words=data.max_caption_words) for _, caption in texts]
        self.image_of_caption: NDArray[np.int64] = np.array([image for image, _ in texts])

    @property
    def num_images(self) -> int:
        return len(self.first_rows)

    @property
    def num_captions(self) -> int:
        return len(self.captions)

    def image(self, number: int) -> Pixels:
        """[S, S, 3] uint8 RGB: the whole image, squeezed to the encoder's square.

        Raises:
            RunFailed: it cannot be read. A test set with holes compares with nothing, so no policy skips here.
        """
        with without_holes():
            image = self._source.image(self.first_rows[number])
        return resize_for_evaluation(image, image_size=self._image_size, decoder=self._data.decoder)

    def image_batches(self, numbers: Sequence[int] | None = None, *, batch_size: int) -> Iterator[Tensor]:
        """Images [b, 3, S, S] uint8 by number, in the order given (all of them by default), `batch_size` at a time.

        Raises:
            RunFailed: (while iterating) an image cannot be read.
            MachineError: (while iterating) a worker process died.
        """
        wanted = range(self.num_images) if numbers is None else numbers
        return loaded(self._load, wanted, batch_size=batch_size, num_workers=self._data.num_workers)

    def _load(self, numbers: Sequence[int]) -> Tensor:
        return stack_images([self.image(number) for number in numbers])

    def encode_captions(self, tokenizer: CaptionTokenizer, numbers: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """Ids [T, L] int64 and mask [T, L] bool of captions by number (all of them by default), padded to the longest."""
        captions = self.captions if numbers is None else [self.captions[number] for number in numbers]
        encoded = tokenizer.encode(captions, max_tokens=self._data.max_caption_tokens)
        return torch.from_numpy(encoded.input_ids), torch.from_numpy(encoded.attention_mask)


def open_evaluation_set(spec: ExperimentSpec, split: Split) -> EvaluationSet:
    """The images and captions of `data.val` or `data.test`; raises as `rows_of_split`."""
    return EvaluationSet(rows_of_split(spec, split), spec.data, image_size=spec.model.image_encoder.image_size)


def rows_of_split(spec: ExperimentSpec, split: Split) -> Rows:
    """The rows of `data.val` or `data.test`.

    Raises:
        InputError: the spec has no such split, or its files are wrong.
    """
    source = spec.data.val if split == "val" else spec.data.test
    if source is None:
        raise InputError(Problem(f"data.{split}", "is not set, and the evaluation asks for it"))
    return open_source(source, key=f"data.{split}").rows(spec)


@contextmanager
def without_holes() -> Iterator[None]:
    """A test set with holes compares with nothing, so no policy skips an image that cannot be used here.

    Raises:
        RunFailed: the block met one.
    """
    try:
        yield
    except BadImage as error:
        raise RunFailed(f"an image to evaluate on cannot be read: {error}") from error


def loaded(
    load: Callable[[Sequence[int]], Tensor], numbers: Sequence[int], *, batch_size: int, num_workers: int
) -> Iterator[Tensor]:
    """What `load` gives for so many numbers at a time, by worker processes where there is much to load.

    Args:
        load: raises TclxError where something cannot be loaded.

    Raises:
        TclxError: (while iterating) as `load`.
        MachineError: (while iterating) a worker process died.
    """
    parts = [list(numbers[start : start + batch_size]) for start in range(0, len(numbers), batch_size)]
    # Starting a worker costs more than decoding a handful of batches.
    return stream(_Loaded(load), parts, num_workers=min(num_workers, len(parts) // 4))


class _Loaded(Dataset[Tensor | TclxError]):
    def __init__(self, load: Callable[[Sequence[int]], Tensor]) -> None:
        self._load = load

    def __getitem__(self, numbers: Sequence[int]) -> Tensor | TclxError:
        try:
            return self._load(numbers)
        except TclxError as error:
            return error
