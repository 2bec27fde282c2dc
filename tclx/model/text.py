"""What a caption says: one BERT-like transformers model, split into text encoder, fusion layers and MLM head.

The lower `text_encoder.num_layers` layers see text alone, the next `fusion_encoder.num_layers` become fusion layers. Fusion
layers that the model does not have, and every cross-attention, start random.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForMaskedLM, BertConfig, PretrainedConfig, PreTrainedModel
from transformers import logging as transformers_logging

from tclx.errors import InputError, MachineError, Problem
from tclx.model.fusion import FusionEncoder, FusionLayer, MaskedLanguageModelHead, padding_mask, run_layer
from tclx.model.weights import on_meta
from tclx.packaged import model_folder
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
    """One BERT-like model, taken apart."""

    text_encoder: TextEncoder
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
    model = _loaded(spec, config) if spec.weights is not None and not on_meta() else _random(config)
    base = model.base_model
    layers = list(base.encoder.layer)
    encoder = TextEncoder(
        base.embeddings,
        layers[: spec.num_layers],
        width=config.hidden_size,
        projection=getattr(base, "embeddings_project", None),
        activation_checkpointing=activation_checkpointing,
    )
    fusion_layers = [FusionLayer(layer, config, image_width=image_width) for layer in layers[spec.num_layers :]]
    return TextParts(
        encoder,
        FusionEncoder(fusion_layers, activation_checkpointing=activation_checkpointing) if fusion_layers else None,
        _mlm_head(model, encoder, config) if mlm and fusion_layers else None,
    )


def text_config(spec: TextEncoderSpec, *, num_layers: int, vocab_size: int, pad_token_id: int) -> PretrainedConfig:
    """The transformers configuration of the text and fusion layers together.

    Raises:
        InputError, MachineError: as `build_text`.
    """
    config = _sized(spec.sizes) if spec.sizes else _named(spec.name or "", weights=spec.weights)
    if config.model_type not in BERT_LIKE:
        raise InputError(
            Problem(f"{KEY}.name", f"{spec.name} is a {config.model_type} model", f"these work: {', '.join(BERT_LIKE)}")
        )
    if spec.weights is not None:
        _check_weights_fit(spec, config, vocab_size=vocab_size)
    config.update(
        {
            "num_hidden_layers": num_layers,
            "vocab_size": vocab_size,
            "hidden_dropout_prob": spec.dropout,
            "attention_probs_dropout_prob": spec.dropout,
            "is_decoder": False,
            "add_cross_attention": False,
        }
    )
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
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(model_folder(name, key=f"{KEY}.name"))
    except (OSError, ValueError) as error:
        raise _unreadable(f"{KEY}.name", name, error) from error
    return config


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
    counted_from = 0 if config.model_type in ("bert", "electra") else config.pad_token_id + 1
    longest = config.max_position_embeddings - counted_from
    if max_tokens > longest:
        message = f"{max_tokens}, but the text model has positions for {longest} tokens"
        raise InputError(Problem("data.max_caption_tokens", message, "lower it"))


def _random(config: PretrainedConfig) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForMaskedLM.from_config(config, attn_implementation="sdpa")
    return model


def _loaded(spec: TextEncoderSpec, config: PretrainedConfig) -> PreTrainedModel:
    """The model with its weights; only layers beyond its own, and an MLM head it does not carry, may stay random."""
    source = model_folder(str(spec.name if spec.weights == "hub" else spec.weights), key=f"{KEY}.weights")
    try:
        with _quiet_transformers():
            model, info = AutoModelForMaskedLM.from_pretrained(
                source, config=config, attn_implementation="sdpa", dtype=torch.float32, output_loading_info=True
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise _unreadable(f"{KEY}.weights", str(source), error) from error
    _check_loaded(spec, model, info)
    loaded: PreTrainedModel = model
    return loaded


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
    prefix = f"{model.base_model_prefix}."
    text_layers = tuple(f"{prefix}encoder.layer.{index}." for index in range(spec.num_layers))
    needed = sorted(key for key in info["missing_keys"] if key.startswith((f"{prefix}embeddings", *text_layers)))
    if needed:
        raise InputError(
            Problem(
                f"{KEY}.weights",
                f"{len(needed)} tensors of the text encoder are not among these weights, for instance {', '.join(needed[:3])}",
                f"does {KEY}.name describe the model in that folder?",
            )
        )


def _unreadable(key: str, source: str, error: Exception) -> InputError | MachineError:
    if Path(source).is_dir():
        return InputError(Problem(key, f"the folder {source} could not be read as a transformers model: {_first_line(error)}"))
    return MachineError(
        f"{key}: {source} is not a folder here, and it could not be fetched from the hub ({_first_line(error)}); "
        f"check the name and the network, or put the model in a local folder and name that"
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


def _mlm_head(model: PreTrainedModel, encoder: TextEncoder, config: PretrainedConfig) -> MaskedLanguageModelHead:
    """Our head with the model's own head weights, whatever its family calls them."""
    head = MaskedLanguageModelHead(encoder.word_embeddings, config)
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
