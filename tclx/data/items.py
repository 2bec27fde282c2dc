"""Rows of downstream tasks on their way: training batches with one image a row or two, and evaluation sets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from tclx.data.augment import resize_for_evaluation
from tclx.data.batch import RowBatch
from tclx.data.captions import clean_caption, clean_question
from tclx.data.dataset import RowDataset, loaded, rows_of_split, stack_images, without_holes
from tclx.data.forms.form import Item
from tclx.data.order import Draw, MicroBatch
from tclx.tasks.outcomes import Queries, fingerprint

if TYPE_CHECKING:
    from tclx.data.sources.source import ItemRows
    from tclx.data.tokenizer import CaptionTokenizer
    from tclx.spec.experiment import ExperimentSpec
    from tclx.tasks.task import Split

VIEWS = (Draw.FIRST_VIEW, Draw.SECOND_VIEW)
"""Of the left image and of the right one."""


@dataclass(frozen=True, kw_only=True)
class ItemBatch(RowBatch):
    """B texts with n images each: images as bytes, texts as token ids padded to the longest, L tokens."""

    images: Tensor
    """[B, n, 3, S, S] uint8, augmented."""
    input_ids: Tensor
    """[B, L] int64: `[CLS]`, then the text's tokens, then padding."""
    attention_mask: Tensor
    """[B, L] bool: False at padding."""


class ItemDataset(RowDataset):
    """Micro-batches of row numbers in, batches out; a task adds its targets.

    Args:
        rows: of the task's form.
        spec: the experiment.
        tokenizer: the run's.
    """

    def __init__(self, rows: ItemRows, spec: ExperimentSpec, tokenizer: CaptionTokenizer) -> None:
        super().__init__(spec, num_rows=rows.num_rows)
        self._rows = rows
        self.tokenizer = tokenizer

    def with_targets(self, common: dict[str, Any], items: Sequence[Item]) -> RowBatch:
        """The batch.

        Args:
            common: the fields of an `ItemBatch`.
            items: the rows that it is made of, in their order.
        """
        raise NotImplementedError

    def batch(self, micro_batch: MicroBatch) -> RowBatch:
        used, views = [], []
        for row, one_pass in micro_batch:
            there, images = self.readable(row, self._rows.images)
            drawn = [self.generator(draw, row, one_pass) for draw in VIEWS[: len(images)]]
            views.append([self.view(image, rng) for image, rng in zip(images, drawn, strict=True)])
            used.append(there)
        items = [self._rows.item(row) for row in used]
        data = self._spec.data
        texts = [clean_text(item.text, self._spec) for item in items]
        encoded = self.tokenizer.encode(texts, max_tokens=data.max_caption_tokens)
        common = {
            "row": torch.tensor(used),
            "num_bad_images": sum(there != row for there, row in zip(used, micro_batch.rows.tolist(), strict=True)),
            "images": torch.stack([stack_images(of_row) for of_row in views]),
            "input_ids": torch.from_numpy(encoded.input_ids),
            "attention_mask": torch.from_numpy(encoded.attention_mask),
        }
        return self.with_targets(common, items)


def clean_text(text: str, spec: ExperimentSpec) -> str:
    """As captions are cleaned; `compat: official` keeps of a question what the published code keeps."""
    if spec.compat == "official" and spec.task.name == "vqa":
        return clean_question(text, max_words=spec.data.max_caption_words)
    return clean_caption(text, max_words=spec.data.max_caption_words)


class ItemSet:
    """Every row of a source once, its images resized, nothing augmented.

    Args:
        rows: of the task's form.
        spec: the experiment.
    """

    def __init__(self, rows: ItemRows, spec: ExperimentSpec) -> None:
        self.rows = rows
        self._spec = spec

    @property
    def num_items(self) -> int:
        return self.rows.num_rows

    def images(self, number: int) -> list[Any]:
        """[S, S, 3] uint8 RGB each.

        Raises:
            RunFailed: one cannot be read. A test set with holes compares with nothing, so no policy skips here.
        """
        size, decoder = self._spec.model.image_encoder.image_size, self._spec.data.decoder
        with without_holes():
            images = self.rows.images(number)
        return [resize_for_evaluation(image, image_size=size, decoder=decoder) for image in images]

    def image_batches(self, numbers: Sequence[int], *, batch_size: int) -> Iterator[Tensor]:
        """Images [b, n, 3, S, S] uint8 of items by number, `batch_size` at a time.

        Raises:
            RunFailed: (while iterating) an image cannot be read.
            MachineError: (while iterating) a worker process died.
        """
        return loaded(self._load, numbers, batch_size=batch_size, num_workers=self._spec.data.num_workers)

    def _load(self, numbers: Sequence[int]) -> Tensor:
        return torch.stack([stack_images(self.images(number)) for number in numbers])

    def encode(self, tokenizer: CaptionTokenizer, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Ids [b, L] int64 and mask [b, L] bool of the texts of items by number, padded to the longest."""
        texts = [clean_text(self.items[number].text, self._spec) for number in numbers]
        encoded = tokenizer.encode(texts, max_tokens=self._spec.data.max_caption_tokens)
        return torch.from_numpy(encoded.input_ids), torch.from_numpy(encoded.attention_mask)

    @cached_property
    def items(self) -> list[Item]:
        """All of them, in the order of their numbers."""
        return [self.rows.item(number) for number in range(self.num_items)]

    def queries(self, numbers: Sequence[int] | None = None) -> Queries:
        """What items by number ask (all of them by default); those about one (left) image are a cluster."""
        wanted = list(range(self.num_items) if numbers is None else numbers)
        asked = [(item.images, item.text, item.target) for item in (self.items[number] for number in wanted)]
        return Queries(fingerprint(asked), self.rows.image_index[wanted].tolist())


def open_items(spec: ExperimentSpec, split: Split) -> ItemSet:
    """The rows of `data.val` or `data.test`; raises as `rows_of_split`."""
    return ItemSet(cast("ItemRows", rows_of_split(spec, split)), spec)
