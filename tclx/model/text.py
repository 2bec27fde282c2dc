"""What a caption says: one transformers model as text encoder, with fusion layers and an MLM head.

A BERT-like model is split: its lower `text_encoder.num_layers` layers see text alone, the next `fusion_encoder.num_layers`
become fusion layers, and its MLM head stays. Fusion layers that the model does not have, and every cross-attention, start
random. Other families of encoders are in `adapted`: they only read, and what fuses starts random.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, BertConfig, PretrainedConfig, PreTrainedModel
from transformers import logging as transformers_logging
from transformers.activations import ACT2FN

from tclx import hub
from tclx.errors import InputError, Problem
from tclx.foreign import reading
from tclx.model import adapted
from tclx.model.adapted import AdaptedTextEncoder
from tclx.model.fusion import FusionEncoder, FusionLayer, MaskedLanguageModelHead, padding_mask, run_layer
from tclx.model.lora import adapt
from tclx.model.weights import on_meta
from tclx.packaged import model_folder

if TYPE_CHECKING:
    from tclx.spec.model import FusionEncoderSpec, TextEncoderSpec, TextSizes

KEY = "model.text_encoder"

BERT_LIKE = ("bert", "roberta", "xlm-roberta", "camembert", "electra")
"""Model types whose base model is `.embeddings` and `.encoder.layer` and whose layers need nothing but states and a mask."""

# (width, layers, heads, feed-forward width); with these no hub is needed for an architecture.
KNOWN_SIZES: dict[str, tuple[int, int, int, int]] = {
    "bert-base-uncased": (768, 12, 12, 3072),
    "bert-base-cased": (768, 12, 12, 3072),
    "bert-large-uncased": (1024, 24, 16, 4096),
    "bert-large-cased": (1024, 24, 16, 4096),
    "google/bert_uncased_L-2_H-128_A-2": (128, 2, 2, 512),
    "google/bert_uncased_L-4_H-256_A-4": (256, 4, 4, 1024),
    "google/bert_uncased_L-4_H-512_A-8": (512, 4, 8, 2048),
    "google/bert_uncased_L-8_H-512_A-8": (512, 8, 8, 2048),
}

# Where each family keeps the parts of its MLM head: dense, LayerNorm, bias of the decoder.
HEAD_PARTS: tuple[tuple[str, str, str], ...] = (
    ("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.bias"),
    ("lm_head.dense", "lm_head.layer_norm", "lm_head.bias"),
    ("generator_predictions.dense", "generator_predictions.LayerNorm", "generator_lm_head.bias"),
)


_COUNTED_FROM_PADDING = ("roberta", "xlm-roberta", "camembert")


class TextEncoder(nn.Module):
    """Embeddings and the layers that see text alone.

    Args:
        embeddings: a transformers embedding module, called with `input_ids`.
        projection: widens the embeddings where they are narrower than the layers (ELECTRA); None elsewhere.
        layers: transformers layers, called with states and a mask.
        width: of their states.
    """

    def __init__(
        self,
        embeddings: nn.Module,
        layers: Sequence[nn.Module],
        *,
        width: int,
        projection: nn.Module | None = None,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.width = width
        self.embeddings = embeddings
        self.projection = projection
        self.layers = nn.ModuleList(layers)
        self.activation_checkpointing = activation_checkpointing

    @property
    def word_embeddings(self) -> nn.Embedding:
        """The table [V, E]."""
        table: nn.Embedding = self.embeddings.get_submodule("word_embeddings")  # type: ignore[assignment]
        return table

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Token ids [B, L] and mask [B, L] bool, False at padding -> [B, L, width]; the first token is [CLS]."""
        states: Tensor = self.embeddings(input_ids=input_ids)
        if self.projection is not None:
            states = self.projection(states)
        mask = padding_mask(attention_mask)
        for layer in self.layers:
            states = run_layer(layer, states, mask, recompute=self.activation_checkpointing)
        return states


class TextParts(NamedTuple):
    """One text model, taken apart."""

    text_encoder: TextEncoder | AdaptedTextEncoder
    fusion_encoder: FusionEncoder | None
    mlm_head: MaskedLanguageModelHead | None


def build_text(
    spec: TextEncoderSpec,
    fusion: FusionEncoderSpec | None,
    *,
    vocab_size: int,
    pad_token_id: int,
    image_width: int,
    mlm: bool,
    max_tokens: int = 1,
    activation_checkpointing: bool = False,
) -> TextParts:
    """Build, load and split the text model.

    Args:
        spec: which model, how many text layers, which weights. On the meta device weights are never loaded.
        fusion: None builds neither fusion layers nor an MLM head.
        vocab_size, pad_token_id: of the tokenizer.
        image_width: width of the image tokens that the cross-attention reads.
        mlm: whether to build the MLM head.
        max_tokens: the longest caption in tokens, [CLS] included; refused where the position embeddings end earlier.

    Raises:
        InputError: the model is unknown, not BERT-like, too short, or does not fit the tokenizer.
        MachineError: its files are not here and the hub cannot be reached.
    """
    num_fusion = fusion.num_layers if fusion else 0
    config = text_config(spec, num_layers=spec.num_layers + num_fusion, vocab_size=vocab_size, pad_token_id=pad_token_id)
    _check_length(config, max_tokens)
    encoder: TextEncoder | AdaptedTextEncoder
    if config.model_type in BERT_LIKE:
        model = _model(spec, config, AutoModelForMaskedLM)
        base = model.base_model
        layers = list(base.encoder.layer)
        encoder = TextEncoder(
            base.embeddings,
            layers[: spec.num_layers],
            width=config.hidden_size,
            projection=getattr(base, "embeddings_project", None),
            activation_checkpointing=activation_checkpointing,
        )
        layers = layers[spec.num_layers :]
    else:
        model = _model(spec, config, AutoModel)
        encoder = AdaptedTextEncoder(model, activation_checkpointing=activation_checkpointing)
        config = adapted.fusion_config(config, num_layers=num_fusion, dropout=spec.dropout)
        layers = adapted.fusion_layers(config) if num_fusion else []
    if spec.lora is not None:
        adapt(encoder, encoder.layers, spec.lora, key=f"{KEY}.lora")
    fusion_layers = [FusionLayer(layer, config, image_width=image_width) for layer in layers]
    return TextParts(
        encoder,
        FusionEncoder(fusion_layers, activation_checkpointing=activation_checkpointing) if fusion_layers else None,
        _mlm_head(model, encoder, config) if mlm and fusion_layers else None,
    )


def text_config(spec: TextEncoderSpec, *, num_layers: int, vocab_size: int, pad_token_id: int) -> PretrainedConfig:
    """The transformers configuration of the text and fusion layers together; of the text layers, where fusion has its own.

    Raises:
        InputError, MachineError: as `build_text`.
    """
    config = _sized(spec.sizes) if spec.sizes else _named(spec.name or "", weights=spec.weights)
    adapted.check_family(config, works=BERT_LIKE, name=spec.name, key=f"{KEY}.name")
    _check_sizes(config, spec.name)
    if spec.weights is not None:
        _check_weights_fit(spec, config, vocab_size=vocab_size)
    config.update(
        {
            **adapted.layers_cut(config, num_layers if config.model_type in BERT_LIKE else spec.num_layers),
            "vocab_size": vocab_size,
            "is_decoder": False,
            "add_cross_attention": False,
        }
    )
    adapted.set_dropout(config, spec.dropout)
    if spec.weights is None:  # a loaded model keeps its own, which its position numbers may count from
        config.pad_token_id = pad_token_id
    return config


def _sized(sizes: TextSizes) -> PretrainedConfig:
    return BertConfig(
        hidden_size=sizes.width,
        num_attention_heads=sizes.num_heads,
        intermediate_size=sizes.intermediate_size,
        max_position_embeddings=sizes.max_positions,
        initializer_range=sizes.initializer_range,
        layer_norm_eps=1e-12,
    )


def _named(name: str, *, weights: str | None) -> PretrainedConfig:
    known = KNOWN_SIZES.get(name.removeprefix("google-bert/"))
    if known and weights != "hub":
        width, layers, heads, feed_forward = known
        vocab_size = 28996 if name.endswith("-cased") else 30522
        return BertConfig(
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=feed_forward,
            vocab_size=vocab_size,
        )
    key = f"{KEY}.name"
    folder = model_folder(name, key=key)
    if not Path(folder).is_dir():
        hub.require(hub.text_files(name, key=key, weights=False))
    with reading(folder, key=key):
        config: PretrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    return config


def _check_sizes(config: PretrainedConfig, name: str | None) -> None:
    """Refuse a configuration with which no model can be built; what it is wrong about is in its file, not in the spec."""
    sizes = ("hidden_size", "num_attention_heads", "num_hidden_layers", "vocab_size")
    values: dict[str, Any] = {size: getattr(config, size, None) for size in sizes}
    wrong = [f"{size} {value!r}" for size, value in values.items() if type(value) is not int or value < 1]
    activation = getattr(config, "hidden_act", None)
    if isinstance(activation, str) and activation not in ACT2FN:
        wrong.append(f"hidden_act {activation!r}")
    if not wrong and values["hidden_size"] % values["num_attention_heads"]:
        wrong.append(f"hidden_size {values['hidden_size']}, no multiple of num_attention_heads {values['num_attention_heads']}")
    if wrong:
        hint = (
            "sizes are whole numbers from 1, the width a multiple of the heads, hidden_act one of gelu, relu, silu and the like"
        )
        raise InputError(Problem(f"{KEY}.name", f"{name}: its config.json has {', '.join(wrong)}", hint))


def _check_weights_fit(spec: TextEncoderSpec, config: PretrainedConfig, *, vocab_size: int) -> None:
    problems = []
    if config.vocab_size != vocab_size:
        problems.append(
            Problem(
                "data.tokenizer",
                f"its vocabulary has {vocab_size:,} entries, the weights of {spec.name} have {config.vocab_size:,}",
                f"use the model's own tokenizer, {{source: pretrained, name: {spec.name}}}, or set {KEY}.weights to null",
            )
        )
    if config.num_hidden_layers < spec.num_layers:
        problems.append(
            Problem(f"{KEY}.num_layers", f"{spec.num_layers}, but {spec.name} has {config.num_hidden_layers} layers")
        )
    if problems:
        raise InputError(*problems)


def _check_length(config: PretrainedConfig, max_tokens: int) -> None:
    # RoBERTa and its kin number positions from pad_token_id + 1, so as many rows of the table are out of reach.
    counts = config.model_type in (*_COUNTED_FROM_PADDING, *adapted.COUNTED_FROM_PADDING)
    counted_from = config.pad_token_id + 1 if counts else 0
    longest = config.max_position_embeddings - counted_from
    if max_tokens > longest:
        message = f"{max_tokens}, but the text model has positions for {longest} tokens"
        raise InputError(Problem("data.max_caption_tokens", message, "lower it"))


def _model(spec: TextEncoderSpec, config: PretrainedConfig, kind: Any) -> PreTrainedModel:
    """The model, `kind` being one of transformers' Auto classes: random, or with its weights.

    Of the latter only layers beyond the model's own, and an MLM head it does not carry, may stay random.
    """
    # Of the families with an adapter some have no sdpa; those get what transformers chooses.
    chosen = {"attn_implementation": "sdpa"} if config.model_type in BERT_LIKE else {}
    if spec.weights is None or on_meta():
        with reading(str(spec.name), key=f"{KEY}.name"):
            model: PreTrainedModel = kind.from_config(config, trust_remote_code=False, **chosen)
        return model
    key = f"{KEY}.weights"
    source = model_folder(str(spec.name if spec.weights == "hub" else spec.weights), key=key)
    if not Path(source).is_dir():
        hub.require(hub.text_files(source, key=key, weights=True))
    with reading(source, key=key), _quiet_transformers():
        model, info = kind.from_pretrained(
            source, config=config, dtype=torch.float32, output_loading_info=True, trust_remote_code=False, **chosen
        )
    _check_loaded(spec, model, info)
    return model


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Without its progress bar and its report of what was not loaded; `_check_loaded` refuses what matters."""
    verbosity, had_bar = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if had_bar:
            transformers_logging.enable_progress_bar()


def _check_loaded(spec: TextEncoderSpec, model: PreTrainedModel, info: Mapping[str, Any]) -> None:
    if model.config.model_type in BERT_LIKE:
        prefix = f"{model.base_model_prefix}."
        text_layers = tuple(f"{prefix}encoder.layer.{index}." for index in range(spec.num_layers))
        needed = sorted(key for key in info["missing_keys"] if key.startswith((f"{prefix}embeddings", *text_layers)))
    else:
        needed = sorted(key for key in info["missing_keys"] if not key.startswith("pooler."))
    if needed:
        raise InputError(
            Problem(
                f"{KEY}.weights",
                f"{len(needed)} tensors of the text encoder are not among these weights, for instance {', '.join(needed[:3])}",
                f"does {KEY}.name describe the model in that folder?",
            )
        )


def _mlm_head(
    model: PreTrainedModel, encoder: TextEncoder | AdaptedTextEncoder, config: PretrainedConfig
) -> MaskedLanguageModelHead:
    """Our head, with the model's own head weights where it is BERT-like, whatever its family calls them."""
    head = MaskedLanguageModelHead(encoder.word_embeddings, config)
    if isinstance(encoder, AdaptedTextEncoder):
        return head
    tensors = model.state_dict()
    dense, norm, bias = next(parts for parts in HEAD_PARTS if f"{parts[0]}.weight" in tensors)
    sources = {
        "dense.weight": f"{dense}.weight",
        "dense.bias": f"{dense}.bias",
        "norm.weight": f"{norm}.weight",
        "norm.bias": f"{norm}.bias",
        "bias": bias,
    }
    if not on_meta():
        head.load_state_dict({name: tensors[source] for name, source in sources.items()})
    return head
