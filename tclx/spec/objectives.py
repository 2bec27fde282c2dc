"""What the model learns from: five terms, each on when its key is present and off when it is null."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tclx.spec.base import Conflict, Fraction, Section, Sensible, Weight

Temperature = Annotated[float, Field(gt=0), Sensible(at_least=1e-5, at_most=100)]


class TemperatureSpec(Section):
    """The softmax temperature of a contrastive term."""

    initial: Temperature = 0.07
    """Value at step 0."""
    learned: bool = True
    """Whether it is trained."""
    minimum: Temperature = 0.001
    """Lower clamp."""
    maximum: Temperature = 0.5
    """Upper clamp."""

    @model_validator(mode="after")
    def _initial_between_bounds(self) -> Self:
        if not self.minimum <= self.initial <= self.maximum:
            message = f"initial {self.initial} is outside minimum..maximum = {self.minimum}..{self.maximum}"
            raise Conflict(message, "initial", "minimum", "maximum")
        return self


class SoftLabelSpec(Section):
    """Momentum distillation: the share of the target that the momentum model's own prediction takes, in CMA and MLM."""

    weight: Fraction = 0.4
    """Share once ramped up; 1 - weight stays on the ground truth."""
    ramp_epochs: Annotated[float, Field(ge=0), Sensible(at_most=1_000_000)] = 1.0
    """Epochs over which the share rises linearly from 0."""


class CmaSpec(Section):
    """CMA, cross-modal alignment: image and text [CLS] against the other modality's momentum features and queue."""

    weight: Weight = 1 / 3
    """Weight of the mean of image-to-text and text-to-image."""
    temperature: TemperatureSpec | None = None
    """A temperature of its own; null shares the common one."""


class ImcSpec(Section):
    """IMC, intra-modal contrast: two augmented views of an image, two dropout views of a text."""

    weight: Weight = 1 / 3
    """Weight of the mean of image-to-image and text-to-text."""
    temperature: TemperatureSpec | None = None
    """A temperature of its own; null shares the common one."""


class LmiSpec(Section):
    """LMI, local mutual information: the [CLS] of one view against the patches or tokens of the other."""

    weight: Weight = 1 / 3
    """Weight of the mean of the image and the text part."""
    temperature: TemperatureSpec | None = None
    """A temperature of its own; null shares the common one."""
    pooled_grid: Annotated[int, Field(ge=1), Sensible(at_most=2048)] | None = 4
    """Patches are average-pooled to this many rows and columns (4: 16 locals, as the paper); null keeps every patch."""


class ItmSpec(Section):
    """ITM, image-text matching: is this pair real, against one hard negative image and one hard negative text each."""

    weight: Weight = 1.0
    """Weight of the term."""


class MlmSpec(Section):
    """MLM, masked language modelling: name the hidden words from the rest of the caption and the picture."""

    weight: Weight = 1.0
    """Weight of the term."""
    mask_probability: Annotated[float, Field(gt=0, lt=1), Sensible(at_least=0.001)] = 0.15
    """Share of the tokens that are hidden: 80 % masked, 10 % replaced, 10 % kept."""


class ObjectivesSpec(Section):
    """The terms of the loss. null switches a term off: it builds and computes nothing."""

    temperature: TemperatureSpec = TemperatureSpec()
    """Shared by the contrastive terms that set none of their own."""
    soft_labels: SoftLabelSpec | None = SoftLabelSpec()
    """Momentum soft labels for CMA and MLM; null trains on the ground truth alone."""
    cma: CmaSpec | None = None
    """Cross-modal alignment."""
    imc: ImcSpec | None = None
    """Intra-modal contrast."""
    lmi: LmiSpec | None = None
    """Local mutual information."""
    itm: ItmSpec | None = None
    """Image-text matching."""
    mlm: MlmSpec | None = None
    """Masked language modelling."""
    in_batch_negatives: Literal["global", "local"] = "global"
    """Whether several processes compare across the whole global batch, or each within its own (the official code)."""

    @model_validator(mode="after")
    def _something_to_learn(self) -> Self:
        if not any((self.cma, self.imc, self.lmi, self.itm, self.mlm)):
            terms = ("cma", "imc", "lmi", "itm", "mlm")
            raise Conflict(f"every term is off: switch on at least one of {', '.join(terms)}", *terms)
        return self
