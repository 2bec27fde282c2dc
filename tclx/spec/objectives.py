"""What the model learns from: terms, each on when its key is present and off when it is null."""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import Literal

from tclx.section import Section, members
from tclx.tasks.needs import Needs
from tclx.tasks.pretrain.balance import BalanceSpec
from tclx.tasks.pretrain.terms.cma import CmaSpec
from tclx.tasks.pretrain.terms.imc import ImcSpec
from tclx.tasks.pretrain.terms.itm import ItmSpec
from tclx.tasks.pretrain.terms.lmi import LmiSpec
from tclx.tasks.pretrain.terms.mlm import MlmSpec
from tclx.tasks.pretrain.terms.sigmoid import SigmoidSpec
from tclx.tasks.pretrain.terms.term import TemperatureSpec, Term
from tclx.tasks.task import SoftLabelSpec


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
    balance: BalanceSpec | None = None
    """Multipliers of the weighted terms that follow the training; null leaves the weights as they are."""
    centred_queue: bool = False
    """Shift the logits against each of the queue's keys so that their mean over the batch's queries is that of the batch's own
    negatives. Then no key can be told for an old one, which lowers the losses of CMA and IMC and teaches nothing
    (docs/objectives.md)."""
    in_batch_negatives: Literal["global", "local"] = "global"
    """Whether several processes compare across the whole global batch, or each within its own (the official code)."""

    @property
    def terms(self) -> dict[str, Term]:
        """The terms that are on, by name, in the order of the table."""
        return {name: term for name in TERMS if (term := getattr(self, name)) is not None}

    def needing(self, needs: Needs) -> list[str]:
        """The terms that are on and need all of this."""
        return [name for name, term in self.terms.items() if needs in self._needs_of(term)]

    @property
    def all_needs(self) -> Needs:
        """What the terms that are on need together."""
        return reduce(or_, map(self._needs_of, self.terms.values()), Needs(0))

    def need(self, needs: Needs) -> bool:
        """Whether some term that is on needs all of this."""
        return bool(self.needing(needs))

    def _needs_of(self, term: Term) -> Needs:
        if Needs.SOFT_LABELS not in term.needs:
            return term.needs
        return term.needs & ~Needs.SOFT_LABELS if self.soft_labels is None else term.needs | Needs.MOMENTUM


TERMS: dict[str, type[Term]] = members(ObjectivesSpec, Term)
"""Every term, by its key above."""
