"""What the model learns from: terms, each on when its key is present and off when it is null."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tclx.section import Conflict, Fraction, Section, Sensible, members
from tclx.tasks.pretrain.terms.cma import CmaSpec
from tclx.tasks.pretrain.terms.imc import ImcSpec
from tclx.tasks.pretrain.terms.itm import ItmSpec
from tclx.tasks.pretrain.terms.lmi import LmiSpec
from tclx.tasks.pretrain.terms.mlm import MlmSpec
from tclx.tasks.pretrain.terms.sigmoid import SigmoidSpec
from tclx.tasks.pretrain.terms.term import Needs, TemperatureSpec, Term


class SoftLabelSpec(Section):
    """Momentum distillation: the weight of the momentum model's prediction in the targets of CMA and MLM."""

    weight: Fraction = 0.4
    """Weight after the ramp; the ground truth has 1 - weight."""
    ramp_epochs: Annotated[float, Field(ge=0), Sensible(at_most=1_000_000)] = 1.0
    """Epochs over which the weight rises linearly from 0."""


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
    sigmoid: SigmoidSpec | None = None
    """SigLIP's pairwise sigmoid loss."""
    in_batch_negatives: Literal["global", "local"] = "global"
    """Whether several processes compare across the whole global batch, or each within its own (the official code)."""

    @model_validator(mode="after")
    def _something_to_learn(self) -> Self:
        if not self.terms:
            raise Conflict(f"every term is off: switch on at least one of {', '.join(TERMS)}", *TERMS)
        return self

    @property
    def terms(self) -> dict[str, Term]:
        """The terms that are on, by name, in the order of the table."""
        return {name: term for name in TERMS if (term := getattr(self, name)) is not None}

    def needing(self, needs: Needs) -> list[str]:
        """The terms that are on and need all of this."""
        return [name for name, term in self.terms.items() if needs in self._needs_of(term)]

    def need(self, needs: Needs) -> bool:
        """Whether some term that is on needs all of this."""
        return bool(self.needing(needs))

    def _needs_of(self, term: Term) -> Needs:
        if Needs.SOFT_LABELS not in term.needs:
            return term.needs
        return term.needs & ~Needs.SOFT_LABELS if self.soft_labels is None else term.needs | Needs.MOMENTUM


TERMS: dict[str, type[Term]] = members(ObjectivesSpec, Term)
"""Every term, by its key above."""
