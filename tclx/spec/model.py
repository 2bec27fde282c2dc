"""What is trained: the encoders, their momentum copies and the feature queues."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tclx.section import Conflict, HubName, LocalPath, NumHeads, NumLayers, Section, Sensible, Width

Weights = Literal["hub"] | LocalPath | None
"""Where an encoder's first weights come from: `hub` (downloaded, or the hub's cache), null (random) or a local path."""


class LoraSpec(Section):
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685): linear layers learn a difference of a low rank, everything else of
    the encoder stays as it is."""

    rank: Annotated[int, Field(ge=1), Sensible(at_most=4096)] = 8
    """Rank of what is added to a weight."""
    alpha: Annotated[float, Field(gt=0), Sensible(at_least=1e-3, at_most=1e4)] = 16.0
    """What is added is multiplied by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout before the adapters."""
    layers: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)] | None = None
    """Names of the linear layers that are adapted, such as `[qkv, proj]` of a ViT or `[query, value]` of a BERT; null: all
    linear layers of the encoder's layers."""


class ImageEncoderSpec(Section):
    """A timm model that gives one grid of patches: a ViT, or a network whose feature map's cells serve as patches."""

    name: Annotated[str, Field(min_length=1)]
    """The timm model, for instance `vit_base_patch16_224`."""
    image_size: Annotated[int, Field(ge=8, le=2048)]
    """Side of the square input in pixels."""
    weights: Weights = None
    """`hub`, null (random) or a path to a `.safetensors`, `.pth` or `.pt` state dict with timm's names."""
    patch_size: Annotated[int, Field(ge=1), Sensible(at_most=2048)] | None = None
    """Overrides the ViT's patch size, in pixels."""
    width: Width | None = None
    """Overrides the ViT's embedding width."""
    depth: NumLayers | None = None
    """Overrides the ViT's number of blocks."""
    num_heads: NumHeads | None = None
    """Overrides the ViT's number of attention heads."""
    stem: Literal["patch", "conv"] = "patch"
    """Patch embedding of a ViT: one strided convolution (the paper), or a stack of 3 x 3 convolutions, which learns better from
    little data."""
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Stochastic depth rate of the last block."""
    frozen: bool = False
    """Whether its weights and batch-norm statistics stay fixed. That saves its backward pass and, where no term needs a second
    view, its momentum forward pass."""
    lora: LoraSpec | None = None
    """Train adapters beside the linear layers in place of the weights; needs `tclx[lora]`."""


class TextSizes(Section):
    """The sizes of a BERT, when no model is named."""

    width: Width
    """Hidden width; a multiple of `num_heads`."""
    num_heads: NumHeads
    """Attention heads."""
    intermediate_size: Annotated[int, Field(ge=1), Sensible(at_most=262_144)]
    """Width inside the feed-forward layers."""
    max_positions: Annotated[int, Field(ge=1), Sensible(at_most=1_000_000)] = 512
    """Longest sequence the position embeddings cover, in tokens."""
    initializer_range: Annotated[float, Field(gt=0, le=1), Sensible(at_least=1e-6)] = 0.02
    """Standard deviation of the random weights. BERT's 0.02 suits a width of 768; narrow models
    learn sooner from 1 / sqrt(width)."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.width % self.num_heads:
            message = f"width {self.width} is not a multiple of num_heads {self.num_heads}; change one of them"
            raise Conflict(message, "width", "num_heads")
        return self


class TextEncoderSpec(Section):
    """The lower layers of a transformers model that reads in both directions."""

    name: HubName | None = None
    """A hub name such as `bert-base-uncased`, or a local folder with a `config.json` (written `./folder` or `/folder`). Give
    this or `sizes`."""
    sizes: TextSizes | None = None
    """The architecture's sizes, for a model trained from scratch. Give this or `name`."""
    num_layers: NumLayers
    """Layers that see text alone; the next layers of a BERT or RoBERTa start the fusion encoder."""
    weights: Weights = None
    """`hub`, null (random) or a local folder in transformers' format."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Hidden and attention dropout of the text and fusion layers; IMC's two text views differ by it alone."""
    lora: LoraSpec | None = None
    """Train adapters beside the linear layers of these layers in place of all weights, embeddings included; the fusion encoder
    is trained whole. Needs `tclx[lora]`."""

    @model_validator(mode="after")
    def _one_architecture(self) -> Self:
        if (self.name is None) == (self.sizes is None):
            raise Conflict("give exactly one of `name` and `sizes`", "name", "sizes", one_too_many=True)
        if self.sizes is not None and self.weights is not None:
            message = "`weights` need a `name`: sizes written out start from random weights"
            raise Conflict(message, "weights", "sizes", hint="`weights: null`")
        return self


class FusionEncoderSpec(Section):
    """Transformer layers with self-attention over the text and cross-attention to the image patches."""

    num_layers: NumLayers
    """Number of fusion layers. They are initialized from the upper layers of a BERT or RoBERTa when it has them;
    cross-attention, and the fusion layers above other text encoders, are initialized randomly."""


class ModelSpec(Section):
    """Two encoders, a fusion encoder, momentum copies and queues."""

    image_encoder: ImageEncoderSpec
    """Image encoder."""
    text_encoder: TextEncoderSpec
    """Text encoder."""
    fusion_encoder: FusionEncoderSpec | None = None
    """Needed by ITM and MLM; not built when both are off."""
    embed_dim: Width = 256
    """Dimension of the shared embedding space of images and texts."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.995
    """EMA coefficient of the momentum encoders: momentum * old + (1 - momentum) * online at every step."""
    queue_size: Annotated[int, Field(ge=0), Sensible(at_most=100_000_000)] = 65536
    """Number of past momentum features per modality that serve as negatives; 0 for no queue."""
