"""What every term of the loss declares, and what it computes from a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, NamedTuple, Self

from pydantic import Field, model_validator

from tclx.section import Conflict, Section, Sensible, Weight
from tclx.tasks.metric import Metric
from tclx.tasks.needs import Needs

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tclx.tasks.pretrain.features import Features


class Pair(NamedTuple):
    """B pairs for the fusion encoder, B as in the batch."""

    text: Tensor
    """[B, L, width] tokens of the text encoder."""
    attention_mask: Tensor
    """[B, L] bool, False at padding."""
    image_rows: Tensor | None = None
    """[B] int64, rows of `images`; None: as they come."""
    images: Tensor | None = None
    """[R, 1 + N, width] tokens of the image encoder; None: those of the batch."""


class Term(Section):
    """A term of the loss: its settings are the fields, the rest is the same whatever they are."""

    title: ClassVar[str]
    """For a plot of it: the name in capitals, a colon, what it asks."""
    parts: ClassVar[tuple[str, ...]] = ()
    """Its directions or modalities, of which it is the mean; empty when it is a single number."""
    needs: ClassVar[Needs]
    aligns: ClassVar[bool] = False
    """Whether it brings an image and its caption together, without which there is nothing to retrieve."""
    has_bound: ClassVar[bool] = False
    """Whether each part bounds the mutual information of its two sides: InfoNCE does."""
    judges: ClassVar[Mapping[str, str]] = {}
    """Of what it decides right or wrong, the accuracy on training batches: names as in `judged`, in words."""

    weight: Weight = 1.0
    """Weight of the term."""

    @classmethod
    def metrics(cls, name: str) -> list[Metric]:
        """What its runs write down: the loss and that of its parts, their bounds, its gradient, its own temperature.

        Args:
            name: its key in the spec.
        """
        parts = [f"{name}_{part}" for part in cls.parts]
        words = [f"{name.upper()} {part.replace('_', ' ')}" for part in cls.parts]
        asked = (cls.__doc__ or "").partition("\n\n")[0]
        found = [Metric(f"loss/{name}", cls.title, "nats", "lower", about=asked)]
        found += [Metric(f"loss/{part}", word, "nats") for part, word in zip(parts, words, strict=True)]
        if cls.has_bound:
            found += [
                Metric(
                    f"mi_bound/{name}_{part}",
                    f"MI bound of {name.upper()}, {part.replace('_', ' ')}, nats",
                    "nats",
                    about="So much at least one side tells of the other, log of the keys less the loss; 0 is nothing.",
                )
                for part in cls.parts
            ]
        found += [
            Metric(metric, f"Accuracy of {name.upper()}{words and ', '}{words}", "%")
            for metric, words in zip(cls.accuracies(name).values(), cls.judges.values(), strict=True)
        ]
        found += [
            Metric(f"gradient_norm/{name}", f"Gradient norm of {name.upper()}", about="Of the term alone, before its weight."),
            Metric(
                f"gradient_share/{name}",
                f"Share of {name.upper()} in the update of what all terms share",
                about="Near 0 its weight might as well be 0; below 0 it is overruled.",
            ),
            Metric(
                f"gradient_ratio/{name}",
                f"Gradient norm of {name.upper()} there, to that of all terms",
                about="Large beside a small share: most of what the term asks for, others take back.",
            ),
        ]
        about = "What `objectives.balance` multiplies its weight with; of PCGrad, how often its gradient is in the update."
        found.append(Metric(f"balance/{name}", f"Multiplier of {name.upper()}", about=about))
        if "temperature" in cls.model_fields:
            found.append(Metric(f"temperature/{name}", f"Temperature of {name.upper()}"))
        return found

    @classmethod
    def accuracies(cls, name: str) -> dict[str, str]:
        """The metric of each kind in `judges`.

        Args:
            name: its key in the spec.
        """
        return {kind: "/".join(filter(None, ("accuracy", name, kind))) for kind in cls.judges}

    def build_head(self, *, text_width: int) -> nn.Module | None:
        """What the term alone trains, `<term>_head` in the model; None when that is nothing."""
        return None

    def pairs(self, features: Features) -> list[Pair]:
        """The pairs that a term with FUSION looks at; `features.fused` has what became of them."""
        return []

    def loss(self, features: Features) -> dict[str, Tensor]:
        """The unweighted scalar of each part in nats, by its name in `parts`; of a term without parts, by ''."""
        raise NotImplementedError

    def bounded(self, features: Features, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """For `has_bound`: of each part the InfoNCE of the true labels.

        Args:
            losses: what `loss` returned.
        """
        return losses

    def judged(self, features: Features) -> dict[str, Tensor]:
        """Of each kind in `judges`, [N] bool: what was decided right in this batch. Asked at steps that are written down."""
        return {}


Temperature = Annotated[float, Field(gt=0), Sensible(at_least=1e-5, at_most=100)]


class TemperatureSpec(Section):
    """The softmax temperature of a contrastive term."""

    initial: Temperature = 0.07
    """Value at step 0."""
    learned: bool = True
    """Whether it is trained."""
    minimum: Temperature = 0.001
    """Lower bound, to which it is clamped."""
    maximum: Temperature = 0.5
    """Upper bound, to which it is clamped."""

    @model_validator(mode="after")
    def _initial_between_bounds(self) -> Self:
        if not self.minimum <= self.initial <= self.maximum:
            message = f"initial {self.initial} is outside minimum..maximum = {self.minimum}..{self.maximum}"
            raise Conflict(message, "initial", "minimum", "maximum")
        return self


class ContrastiveTerm(Term):
    """A term that compares embeddings in the common space by a softmax or sigmoid with a temperature."""

    temperature: TemperatureSpec | None = None
    """A temperature of its own; null shares the common one."""

    def num_negatives(self, *, others: int, queue_size: int, grid: int | None) -> int | None:
        """Negatives of one anchor once the queue is full, if no image comes twice; None where nobody can tell.

        Args:
            others: pairs of the batch that it is compared with.
            queue_size: of the model.
            grid: rows and columns of patches; None where only timm knows.
        """
        return others + (queue_size if Needs.QUEUE in self.needs else 0)
