"""Visual grounding as a task of the evaluation: its settings, and what they need of the rest of a spec."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from tclx.errors import Problem
from tclx.section import BatchSize, Conflict, Count, LocalPath, NamedPath, Section
from tclx.tasks.grounding.boxes import PARTS
from tclx.tasks.metric import Metric
from tclx.tasks.needs import Needs
from tclx.tasks.task import Evaluation, OwnDataTask, Split

if TYPE_CHECKING:
    import torch

    from tclx.data.tokenizer import CaptionTokenizer
    from tclx.model.tcl import TCL
    from tclx.spec.experiment import ExperimentSpec


class ReferringExpressions(Section):
    """Expressions for regions of your own images, as RefCOCO, RefCOCO+ and RefCOCOg have them."""

    source: Literal["refcoco"]
    """Annotations in the published form: docs/evaluation.md has the few lines that make them from REFER's files."""
    file: LocalPath
    """A JSON list of objects with `image`, `text` and `ref_id`; `split` (`testA`, `testB`) and `image_id` may be there."""
    image_root: LocalPath
    """Where the images' paths start."""
    boxes: LocalPath
    """JSON, the true boxes: an object from `ref_id` to [left, top, width, height] in pixels, or a list of objects with `ref_id`
    and `bbox`."""
    detections: LocalPath | None = None
    """JSON, the boxes to choose from: an object from an image's id to a list of [left, top, width, height]. null measures
    `pointing` alone."""

    def paths(self) -> Iterator[NamedPath]:
        yield NamedPath("file", self.file, "file")
        yield NamedPath("image_root", self.image_root, "folder")
        yield NamedPath("boxes", self.boxes, "file")
        if self.detections is not None:
            yield NamedPath("detections", self.detections, "file")


class DescribedScenes(Section):
    """Generated scenes of two objects, one of which an expression names by shape, colour, size or relation to the other."""

    source: Literal["scenes"]
    """Generated, so nothing is downloaded."""
    num_expressions: Count = 256
    """Number of expressions, each of a scene of its own."""
    picture_size: Annotated[int, Field(ge=16, le=256)] = 32
    """Side of a generated image in pixels."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the generator. With that of `data` they come from splits that training has not seen."""

    def paths(self) -> Iterator[NamedPath]:
        return iter(())


Regions = Annotated[ReferringExpressions | DescribedScenes, Field(discriminator="source")]


_BOXED = "Expressions whose region the proposed box meets (IoU of a half or more) that the attention map fills best."
_POINTED = "Expressions at whose region the attention map has its peak."


class GroundingSpec(OwnDataTask):
    """Visual grounding by Grad-CAM: which region does an expression name?"""

    key: ClassVar = "grounding"
    metrics: ClassVar = (
        Metric("accuracy", "box accuracy", "%", "higher", lambda found: found["accuracy_chance"], about=_BOXED),
        *(Metric(f"accuracy/{part}", f"{part} box accuracy", "%") for part in PARTS),
        Metric("accuracy_chance", "box accuracy by chance", "%"),
        Metric("pointing", "pointing accuracy", "%", "higher", lambda found: found["pointing_chance"], about=_POINTED),
        *(Metric(f"pointing/{part}", f"{part} pointing accuracy", "%") for part in PARTS),
        Metric("pointing_chance", "pointing accuracy by chance", "%"),
        Metric("num_expressions", "expressions"),
    )
    main: ClassVar = ("accuracy", "pointing")
    columns: ClassVar = ("accuracy", "pointing")

    val: Regions | None = None
    """Evaluated where `during_training` or `at_end` is val."""
    test: Regions | None = None
    """Evaluated where `during_training` or `at_end` is test."""
    explains: Literal["itm", "itc"] = "itm"
    """What the map explains. itm: the ITM logit of "matched", through the fusion encoder's cross-attention. itc: the cosine
    similarity of image and text, through the image encoder's attention, which a plain ViT has."""
    layer: Annotated[int, Field(ge=0)] | None = None
    """Of the fusion encoder (itm) or of the image encoder (itc), from 0. null: the middle fusion layer, the third of six, or
    the image encoder's block two thirds up, the ninth of twelve."""
    batch_size: BatchSize = 32
    """Images or expressions per forward pass."""

    @model_validator(mode="after")
    def _has_data(self) -> Self:
        if self.val is None and self.test is None:
            raise Conflict("no expressions are named", "val", "test", hint="test: {source: scenes}")
        return self

    def problems(self, spec: ExperimentSpec) -> Iterator[Problem]:
        yield from super().problems(spec)
        evaluation = spec.evaluation
        watched = getattr(self, evaluation.during_training) if evaluation.during_training else None
        if (
            evaluation.best_metric == "grounding/accuracy"
            and isinstance(watched, ReferringExpressions)
            and not watched.detections
        ):
            message = f"there is no accuracy without boxes to choose from, and {evaluation.during_training} has no detections"
            yield Problem("evaluation.best_metric", message, "`grounding/pointing` needs none")
        yield from self._problems_of_matching(spec) if self.explains == "itm" else self._problems_of_similarity(spec)

    def _problems_of_matching(self, spec: ExperimentSpec) -> Iterator[Problem]:
        fusion = spec.model.fusion_encoder
        if spec.objectives.itm is None:
            message = "the map explains the matching head's logit, and objectives.itm is off"
            yield Problem("evaluation.grounding", message, "switch it on, or set `explains: itc`", others=("objectives.itm",))
        elif fusion is not None and self.layer is not None and self.layer >= fusion.num_layers:
            message = f"{self.layer}, but the fusion encoder has {fusion.num_layers} layers, from 0"
            others = ("model.fusion_encoder.num_layers",)
            yield Problem("evaluation.grounding.layer", message, "null takes the middle one", others=others)

    def _problems_of_similarity(self, spec: ExperimentSpec) -> Iterator[Problem]:
        name, depth = spec.model.image_encoder.name, spec.model.image_encoder.depth
        if not any(term.aligns and Needs.PROJECTIONS in term.needs for term in spec.objectives.terms.values()):
            message = "the map explains a similarity, and no term that is on brings images and texts together"
            yield Problem("evaluation.grounding", message, "switch on objectives.cma, or set null", others=("objectives",))
        if not name.startswith(("vit_", "deit", "beit", "eva")):  # of those some have no [CLS], which evaluating them tells
            message = f"itc shows where a ViT's [CLS] looks, and {name} is none"
            yield Problem("evaluation.grounding.explains", message, "itm", others=("model.image_encoder.name",))
        elif depth is not None and self.layer is not None and self.layer >= depth:
            message = f"{self.layer}, but the image encoder has {depth} blocks, from 0"
            others = ("model.image_encoder.depth",)
            yield Problem("evaluation.grounding.layer", message, "null takes the one two thirds up", others=others)

    def images(self, split: Split) -> list[Path]:
        from tclx.tasks.grounding.refcoco import read_expressions

        regions = getattr(self, split)
        if not isinstance(regions, ReferringExpressions):
            return []
        return list(read_expressions(regions, key=f"evaluation.grounding.{split}").paths)

    def evaluate(
        self, model: TCL, spec: ExperimentSpec, split: Split, *, tokenizer: CaptionTokenizer, device: torch.device
    ) -> Evaluation:
        from tclx.tasks.grounding.evaluation import evaluate_grounding

        return evaluate_grounding(model, spec, split, settings=self, tokenizer=tokenizer, device=device)
