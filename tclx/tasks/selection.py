"""Image-text selection: is the right caption preferred to a hard wrong one, the right image to a wrong one?

Sources: Hsieh et al. 2023, arXiv:2306.14610 (SugarCrepe); Yuksekgonul et al. 2023, arXiv:2210.01936 (ARO); Thrush et al. 2022,
arXiv:2204.03162 (Winoground).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from tclx.errors import Problem
from tclx.section import BatchSize, Conflict, Count, LocalPath, NamedPath, Section
from tclx.tasks.metric import Metric
from tclx.tasks.needs import Needs
from tclx.tasks.task import Evaluation, OwnDataTask, Split

if TYPE_CHECKING:
    import torch

    from tclx.data.tokenizer import CaptionTokenizer
    from tclx.model.tcl import TCL
    from tclx.spec.experiment import ExperimentSpec


class SelectionFile(Section):
    """A published set of images with right and wrong captions."""

    source: Literal["sugarcrepe", "aro", "winoground"]
    """`sugarcrepe`: an object of {filename, caption, negative_caption}. `aro`: a list of {image_path, true_caption,
    false_caption}, with `bbox_x` and its like the part of the image that is meant. `winoground`: JSON lines of {caption_0,
    caption_1, image_0, image_1}."""
    file: LocalPath
    """The JSON file."""
    image_root: LocalPath
    """The folder that its image names start from."""

    def paths(self) -> Iterator[NamedPath]:
        yield NamedPath("file", self.file, "file")
        yield NamedPath("image_root", self.image_root, "folder")


class SelectionScenes(Section):
    """Generated scenes of two objects with a right caption and one that is wrong in a single point."""

    source: Literal["scenes"]
    """Generated, so nothing is downloaded."""
    num_items: Count = 256
    """Number of captions to choose, the kinds in turn: swapped, replaced and added attributes, objects and relations."""
    picture_size: Annotated[int, Field(ge=16, le=256)] = 32
    """Side of a generated image in pixels."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the generator."""

    def paths(self) -> Iterator[NamedPath]:
        return iter(())


Selected = Annotated[SelectionFile | SelectionScenes, Field(discriminator="source")]

_PAIRED = (("text_score", "text score", 25.0), ("image_score", "image score", 25.0), ("group_score", "group score", 100.0 / 6))
"""Winoground's, with what guessing reaches."""


def _always(level: float, _: Mapping[str, float]) -> float:
    return level


_CHOSEN = "Images whose true caption scores higher than every one that was made wrong."


def _scores(pathway: str, words: str) -> tuple[Metric, ...]:
    found = (
        Metric("accuracy", f"{words}selection accuracy", "%", "higher", lambda metrics: metrics["chance"], about=_CHOSEN),
        *(Metric(name, f"{words}{title}", "%", chance=partial(_always, level)) for name, title, level in _PAIRED),
    )
    return tuple(metric.under(pathway) if pathway else metric for metric in found)


class SelectionSpec(OwnDataTask):
    """Image-text selection: the caption that scores highest, by the ITM logit where there is one, else by cosine similarity."""

    key: ClassVar = "selection"
    metrics: ClassVar = (
        *_scores("", ""),
        *_scores("dual", "dual "),
        Metric("chance", "selection by chance", "%"),
        Metric("num_items", "captions to choose"),
    )
    main: ClassVar = ("accuracy", "dual/accuracy")
    columns: ClassVar = ("accuracy", "dual/accuracy")

    val: Selected | None = None
    """Data of `during_training: val`."""
    test: Selected | None = None
    """Data of `at_end: test`."""
    batch_size: BatchSize = 64
    """Images per forward pass, with all their captions."""

    @model_validator(mode="after")
    def _something_to_select(self) -> Self:
        if self.val is None and self.test is None:
            raise Conflict("no data are named", "val", "test", hint="test: {source: scenes}")
        return self

    def problems(self, spec: ExperimentSpec) -> Iterator[Problem]:
        yield from super().problems(spec)
        objectives = spec.objectives
        aligned = any(term.aligns and Needs.PROJECTIONS in term.needs for term in objectives.terms.values())
        if not aligned and objectives.itm is None:
            message = "no term that is on tells whether an image and a caption belong together"
            yield Problem(
                "evaluation.selection", message, "switch on objectives.cma or itm, or set null", others=("objectives",)
            )

    def images(self, split: Split) -> list[Path]:
        data = getattr(self, split)
        if not isinstance(data, SelectionFile):
            return []
        from tclx.data.selection import read_items

        items = read_items(data, key=f"evaluation.selection.{split}")
        return list(dict.fromkeys(image.path for item in items for image in item.images if image.path is not None))

    def evaluate(
        self, model: TCL, spec: ExperimentSpec, split: Split, *, tokenizer: CaptionTokenizer, device: torch.device
    ) -> Evaluation:
        from tclx.tasks.selecting import evaluate_selection

        return evaluate_selection(model, spec, split, settings=self, tokenizer=tokenizer, device=device)
