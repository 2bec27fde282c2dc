"""What TCL consists of: the trained encoders, their momentum copies, the feature queue, the ITM head, the temperatures.

Only what the objectives need is built; a part that no active term uses is None.
"""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from tclx.errors import InputError, Problem
from tclx.model.balance import Balance
from tclx.model.fusion import Blocks, FusionEncoder
from tclx.model.momentum import Pairs
from tclx.model.queue import FeatureQueue
from tclx.model.text import TextEncoder, build_text
from tclx.model.vision import ImageEncoder
from tclx.tasks.needs import Needs
from tclx.tasks.pretrain.terms.term import ContrastiveTerm, TemperatureSpec

if TYPE_CHECKING:
    from tclx.model.adapted import AdaptedTextEncoder
    from tclx.model.decoder import AnswerDecoder, PairedFusion
    from tclx.model.fusion import MaskedLanguageModelHead
    from tclx.spec.experiment import ExperimentSpec
    from tclx.spec.objectives import ObjectivesSpec


class Encoded(NamedTuple):
    """A batch of images or captions."""

    tokens: Tensor
    """[B, 1 + N, width]; the first one is [CLS]."""
    embedding: Tensor | None
    """[B, D] fp32, L2-normalised projection of [CLS]; None in a model without a contrastive term."""


class Encoders(nn.Module):
    """Everything that a momentum copy may copy. A part that is not built is None."""

    def __init__(
        self,
        image_encoder: ImageEncoder,
        text_encoder: TextEncoder | AdaptedTextEncoder,
        *,
        image_projection: nn.Linear | None = None,
        text_projection: nn.Linear | None = None,
        fusion_encoder: FusionEncoder | PairedFusion | None = None,
        mlm_head: MaskedLanguageModelHead | None = None,
        head: nn.Module | None = None,
        decoder: AnswerDecoder | None = None,
    ) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.text_encoder = text_encoder
        self.image_projection = image_projection
        self.text_projection = text_projection
        self.fusion_encoder: FusionEncoder | PairedFusion | None = fusion_encoder
        self.mlm_head = mlm_head
        self.head = head
        """What a task trains on top of the fused [CLS]."""
        self.decoder = decoder

    def encode_image(self, images: Tensor) -> Encoded:
        """Images [B, 3, S, S], normalised."""
        return self.project_image(self.image_encoder(images))

    def project_image(self, tokens: Tensor) -> Encoded:
        """The image encoder's tokens [B, 1 + N, width], whoever has computed them, with their embedding."""
        return Encoded(tokens, _embed(tokens[:, 0], self.image_projection))

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> Encoded:
        """Token ids [B, L] and mask [B, L] bool, False at padding."""
        tokens: Tensor = self.text_encoder(input_ids, attention_mask)
        return Encoded(tokens, _embed(tokens[:, 0], self.text_projection))

    def project_image_locals(self, tokens: Tensor) -> Tensor:
        """Tokens [B, 1 + N, width] -> L2-normalised patch embeddings [B, N, D] fp32, [CLS] left out."""
        return _locals(tokens, self.image_projection)

    def project_text_locals(self, tokens: Tensor) -> Tensor:
        """Tokens [B, L, width] -> L2-normalised token embeddings [B, L - 1, D] fp32, [CLS] left out, padding not."""
        return _locals(tokens, self.text_projection)

    def fuse(
        self, text: Tensor, attention_mask: Tensor, images: Tensor, *, image_rows: Tensor | Blocks | None = None
    ) -> Tensor:
        """Captions that look at images.

        Args:
            text: [P, L, width] tokens of the text encoder.
            attention_mask: [P, L] bool, False at padding.
            images: [R, 1 + N, width] tokens of the image encoder.
            image_rows: [P] int64, which of them each caption looks at, also block by block; None: its own, P = R.

        Returns:
            [P, L, width]; the first token is [CLS] of the pair.
        """
        if not isinstance(self.fusion_encoder, FusionEncoder):
            raise TypeError("this model has no fusion encoder for one image a text")
        fused: Tensor = self.fusion_encoder(text, attention_mask, self.fusion_encoder.keys_values(images), image_rows)
        return fused

    def name_words(self, fused: Tensor, positions: Tensor) -> Tensor:
        """Logits [M, V] of the words at M positions of the flattened tokens [B, L, width]."""
        if self.mlm_head is None:
            raise TypeError("no term of this model needs masked words")
        logits: Tensor = self.mlm_head(fused.flatten(0, 1)[positions])
        return logits

    def last_parameters(self) -> list[nn.Parameter]:
        """The last trained parameters of the image and of the text encoder, up to a tenth of each: of a ViT-B the last block.

        Every term goes through them, and a gradient for them goes through little else of the encoders.
        """
        found: list[nn.Parameter] = []
        for encoder in (self.image_encoder, self.text_encoder):
            trained = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
            left = sum(parameter.numel() for parameter in trained) / 10
            for number, parameter in enumerate(reversed(trained)):
                left -= parameter.numel()
                if left < 0 and number:
                    break
                found.append(parameter)
        return found

    def momentum_copy(self, *, with_fusion: bool) -> Encoders:
        """A frozen copy in the same state; tensors tied in here are tied in there.

        Args:
            with_fusion: whether the fusion encoder and the MLM head are copied.
        """
        left_out = set() if with_fusion else {"fusion_encoder", "mlm_head"}
        parts = deepcopy({name: part for name, part in self.named_children() if name not in left_out})
        return Encoders(**parts).requires_grad_(False)  # type: ignore[arg-type]


def _embed(states: Tensor, projection: nn.Linear | None) -> Tensor | None:
    return None if projection is None else functional.normalize(projection(states).float(), dim=-1)


def _locals(tokens: Tensor, projection: nn.Linear | None) -> Tensor:
    embedded = _embed(tokens[:, 1:], projection)
    if embedded is None:
        raise TypeError("no term of this model needs projections")
    return embedded


class Temperatures(nn.Module):
    """The softmax temperatures in use: `shared`, and one under a term's name where the term sets its own.

    A learned one is a 0-D parameter, a fixed one a buffer. `shared` exists when a term without its own is on, or when hard
    negatives are drawn with it; for the latter alone nothing can train it, and it is fixed.
    """

    def __init__(self, objectives: ObjectivesSpec) -> None:
        super().__init__()
        self.bounds: dict[str, tuple[float, float]] = {}
        on = {name: term for name, term in objectives.terms.items() if isinstance(term, ContrastiveTerm)}
        self._terms = {name: "shared" if term.temperature is None else name for name, term in on.items()}
        for name, term in on.items():
            if term.temperature is not None:
                self._add(name, term.temperature, trained=True)
        draws_negatives = objectives.need(Needs.HARD_NEGATIVES) and bool(on) and "cma" not in on
        if "shared" in self._terms.values() or draws_negatives:
            self._add("shared", objectives.temperature, trained="shared" in self._terms.values())

    def _add(self, name: str, spec: TemperatureSpec, *, trained: bool) -> None:
        self.bounds[name] = (spec.minimum, spec.maximum)
        value = torch.tensor(spec.initial)
        if spec.learned and trained:
            self.register_parameter(name, nn.Parameter(value))
        else:
            self.register_buffer(name, value)

    def of(self, term: str) -> Tensor:
        """0-D temperature of a term; of CMA, where it is off, the shared one, with which hard negatives are drawn."""
        temperature: Tensor = getattr(self, self._terms.get(term, "shared"))
        return temperature

    @torch.no_grad()
    def clamp_(self) -> None:
        """Move every temperature into its bounds, in place."""
        for name, (minimum, maximum) in self.bounds.items():
            getattr(self, name).clamp_(minimum, maximum)


class MomentumModel(nn.Module):
    """Encoders that are trained, and their frozen copy that follows them where something compares with it."""

    online: Encoders
    momentum: Encoders | None
    _pairs: Pairs | None = None

    def follow(self, momentum: float) -> None:
        """Move the momentum encoders towards the online ones; they keep `momentum` of themselves."""
        if self.momentum is not None:
            if self._pairs is None:
                self._pairs = Pairs.of(self.online, self.momentum)
            self._pairs.update(momentum)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        self._pairs = None  # moved elsewhere, a module has other buffers
        moved: Self = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return moved


class TCL(MomentumModel):
    """The whole model, built on the CPU from the spec's seed; the global random state stays as it was.

    Under `torch.device("meta")` nothing is allocated and no weights are loaded.

    Args:
        spec: the experiment.
        vocab_size, pad_token_id: of its tokenizer.

    Attributes:
        online: the trained encoders.
        momentum: their frozen copy, equal at the start; None when no term compares with one. It has a fusion encoder and an MLM
            head only when MLM has soft labels.
        queue: None when no term takes negatives from it, or with queue_size 0.
        temperatures: see `Temperatures`.
        balance: None where the weights of the terms are all there is.

    Raises:
        InputError, MachineError: as `ImageEncoder` and `build_text`.
    """

    def __init__(self, spec: ExperimentSpec, *, vocab_size: int, pad_token_id: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(spec.seed)
            self._build(spec, vocab_size=vocab_size, pad_token_id=pad_token_id)

    def _build(self, spec: ExperimentSpec, *, vocab_size: int, pad_token_id: int) -> None:
        objectives = spec.objectives
        if objectives.need(Needs.FUSION) and spec.model.fusion_encoder is None:
            needing = " and ".join(objectives.needing(Needs.FUSION))
            raise InputError(Problem("model.fusion_encoder", f"needed by {needing}", "for instance {num_layers: 6}"))
        self.online = build_encoders(
            spec,
            vocab_size=vocab_size,
            pad_token_id=pad_token_id,
            projections=objectives.need(Needs.PROJECTIONS),
            fusion=objectives.need(Needs.FUSION),
            mlm=objectives.need(Needs.MASKED_WORDS),
        )
        distils_words = objectives.need(Needs.MASKED_WORDS | Needs.SOFT_LABELS)
        has_momentum = objectives.need(Needs.MOMENTUM)
        self.momentum = self.online.momentum_copy(with_fusion=distils_words) if has_momentum else None
        for name, term in objectives.terms.items():
            if (head := term.build_head(text_width=self.online.text_encoder.width)) is not None:
                self.add_module(f"{name}_head", head)
        has_keys = objectives.need(Needs.QUEUE) and spec.model.queue_size > 0
        self.queue = FeatureQueue(spec.model.queue_size, spec.model.embed_dim) if has_keys else None
        self.temperatures = Temperatures(objectives)
        self.balance = Balance(objectives.balance, list(objectives.terms)) if objectives.balance is not None else None

    def head(self, term: str) -> nn.Module | None:
        """What a term alone trains; None when it is off, or trains nothing of its own."""
        return self._modules.get(f"{term}_head")

    def temperature(self, term: str) -> Tensor:
        """0-D temperature of a term, its own or the shared one; after `clamp_temperatures` inside its bounds."""
        return self.temperatures.of(term)

    def follow(self, momentum: float) -> None:
        """Temperatures back into their bounds, then the momentum encoders towards the online ones."""
        self.clamp_temperatures()
        super().follow(momentum)

    def clamp_temperatures(self) -> None:
        """Move the temperatures into their bounds, in place, as the official code does before every forward pass."""
        self.temperatures.clamp_()


def build_encoders(
    spec: ExperimentSpec, *, vocab_size: int, pad_token_id: int, projections: bool, fusion: bool, mlm: bool
) -> Encoders:
    """The encoders of a spec, on the CPU and from the global random state.

    Args:
        spec: the experiment.
        vocab_size, pad_token_id: of its tokenizer.
        projections, fusion, mlm: whether to build the projections, the fusion encoder, the head that names hidden words.

    Raises:
        InputError, MachineError: as `ImageEncoder` and `build_text`.
    """
    model, recompute = spec.model, spec.training.activation_checkpointing
    image_encoder = ImageEncoder(model.image_encoder, activation_checkpointing=recompute)
    text = build_text(
        model.text_encoder,
        model.fusion_encoder if fusion else None,
        vocab_size=vocab_size,
        pad_token_id=pad_token_id,
        image_width=image_encoder.width,
        mlm=mlm,
        max_tokens=spec.data.max_caption_tokens,
        activation_checkpointing=recompute,
    )
    return Encoders(
        image_encoder,
        text.text_encoder,
        image_projection=nn.Linear(image_encoder.width, model.embed_dim) if projections else None,
        text_projection=nn.Linear(text.text_encoder.width, model.embed_dim) if projections else None,
        fusion_encoder=text.fusion_encoder,
        mlm_head=text.mlm_head,
    )
