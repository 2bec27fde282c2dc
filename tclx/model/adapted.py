"""Text encoders that are not built like BERT: transformers' own module reads the captions, BERT layers on top of it fuse.

Nothing of such a model is taken apart but its number of layers: its lower `text_encoder.num_layers` layers are the text
encoder. The fusion layers are BERT's, as wide as the model and random, and so is the MLM head, whose decoder is tied to the
model's word embeddings.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle, islice
from typing import Any, cast

from torch import Tensor, nn
from transformers import BertConfig, BertModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tclx.errors import InputError, Problem

ADAPTED = (
    "albert", "bert-generation", "big_bird", "data2vec-text", "deberta", "deberta-v2", "distilbert", "ernie", "eurobert",
    "gte", "jina_embeddings_v3", "megatron-bert", "modernbert", "mpnet", "nomic_bert", "rembert",
    "roberta-prelayernorm", "roformer", "splinter", "ultrabert", "xlm-roberta-xl",
)  # fmt: skip
"""Model types of transformers that were found to read in both directions and to give a caption the same features whatever
padding stands beside it. `tests/model/test_text_families.py` finds them again."""

PADDING_LEAKS = ("convbert", "mobilebert", "mra", "nystromformer", "yoso")
"""Bidirectional, but a caption's features depend on the padding beside it, hence on the other captions of its batch."""

COUNTED_FROM_PADDING = ("data2vec-text", "mpnet", "roberta-prelayernorm", "xlm-roberta-xl")
"""Position numbers begin at pad_token_id + 1, as RoBERTa's, so as many rows of the table are out of reach."""

_OWN_MASK = ("deberta", "deberta-v2")
"""Make a mask for each pair of tokens of one for each token, and take no other."""

_DROPOUTS = (
    "hidden_dropout_prob", "attention_probs_dropout_prob",  # BERT and most others
    "dropout", "attention_dropout",  # DistilBERT
    "embedding_dropout", "mlp_dropout",  # ModernBERT
)  # fmt: skip


class AdaptedTextEncoder(nn.Module):
    """A transformers model as text encoder.

    Args:
        body: it, without a head.
        activation_checkpointing: recompute its layers in the backward pass.

    Attributes:
        width: of the states.

    Raises:
        InputError: it cannot recompute its layers.
    """

    def __init__(self, body: PreTrainedModel, *, activation_checkpointing: bool = False) -> None:
        super().__init__()
        if getattr(body, "pooler", None) is not None:  # a layer on [CLS] that nothing here reads
            body.pooler = None
        if body.config.model_type == "mpnet":  # counts from 1, wherever the tokenizer has its padding
            body.embeddings.padding_idx = body.config.pad_token_id
        if body.config.model_type == "roformer":  # a table of sines, which gets no gradient: DDP would wait for one
            body.encoder.embed_positions.requires_grad_(False)
        if activation_checkpointing:
            if not body.supports_gradient_checkpointing:
                message = f"transformers' {body.config.model_type} cannot recompute its activations"
                raise InputError(Problem("training.activation_checkpointing", message, "set it to false"))
            enable = (
                getattr(body, "activation_checkpointing_enable", None) or body.gradient_checkpointing_enable
            )  # its older name
            enable({"use_reentrant": False})
        self.body = body
        self.width = int(body.config.hidden_size)

    @property
    def word_embeddings(self) -> nn.Embedding:
        """The table [V, E]."""
        return cast("nn.Embedding", self.body.get_input_embeddings())

    @property
    def layers(self) -> Iterator[nn.Module]:
        """What activation checkpointing recomputes."""
        return (module for module in self.body.modules() if isinstance(module, GradientCheckpointingLayer))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Token ids [B, L] and mask [B, L] bool, False at padding -> [B, L, width]; the first token is [CLS]."""
        mask = attention_mask.long()
        if mask.is_meta and self.body.config.model_type not in _OWN_MASK:
            # Of two dimensions, transformers would look whether it hides anything, which a tensor without memory cannot tell.
            mask = attention_mask[:, None, None, :].expand(-1, 1, mask.shape[1], -1)
        states: Tensor = self.body(input_ids=input_ids, attention_mask=mask).last_hidden_state
        return states


def check_family(config: PretrainedConfig, *, works: tuple[str, ...], name: str | None, key: str) -> None:
    """Refuse a model that cannot be a text encoder, in a line that says why.

    Args:
        works: model types that need no adapter.

    Raises:
        InputError: it is neither of those nor of `ADAPTED`.
    """
    family = config.model_type
    if family in works or family in ADAPTED:
        return
    if getattr(config, "is_encoder_decoder", False):
        reason = ", an encoder with a decoder"
    elif family in PADDING_LEAKS:
        reason = ", whose features of a caption depend on the padding beside it"
    elif family in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        reason = ", which reads from left to right alone"
    else:
        reason = ", which is not among those found to read captions in both directions"
    raise InputError(Problem(key, f"{name} is a {family} model{reason}", f"these work: {', '.join((*works, *ADAPTED))}"))


def set_dropout(config: PretrainedConfig, dropout: float) -> None:
    """Every dropout of the layers, whatever the family calls it."""
    for name in _DROPOUTS:
        if hasattr(config, name):
            setattr(config, name, dropout)


def layers_cut(config: PretrainedConfig, num_layers: int) -> dict[str, Any]:
    """The settings that make a model as many layers high, from below; kinds of layers beyond its own begin anew."""
    kinds = getattr(config, "layer_types", None)
    if not kinds:
        return {"num_hidden_layers": num_layers}
    return {"num_hidden_layers": num_layers, "layer_types": list(islice(cycle(kinds), num_layers))}


def fusion_config(config: PretrainedConfig, *, num_layers: int, dropout: float) -> PretrainedConfig:
    """BERT layers as wide as the model's."""
    width = config.hidden_size
    return BertConfig(
        vocab_size=1,
        hidden_size=width,
        num_hidden_layers=num_layers,
        num_attention_heads=config.num_attention_heads,
        intermediate_size=4 * width,
        max_position_embeddings=1,
        pad_token_id=0,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        initializer_range=getattr(config, "initializer_range", 0.02) or 0.02,
        layer_norm_eps=1e-12,
        attn_implementation="sdpa",
    )


def fusion_layers(config: PretrainedConfig) -> list[nn.Module]:
    """The layers of a random BERT of this configuration."""
    bert: Any = BertModel(config, add_pooling_layer=False)
    return list(bert.encoder.layer)
