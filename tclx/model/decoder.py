"""How an answer is written: word after word, each seeing the ones before it and the question that has looked at the image."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from tclx.errors import InputError, Problem
from tclx.model.fusion import FusionLayer, Groups, MaskedLanguageModelHead, initialise_linear, padding_mask, run_layer
from tclx.model.text import BERT_LIKE, TextEncoder

if TYPE_CHECKING:
    from tclx.model.fusion import FusionEncoder
    from tclx.model.tcl import Encoders


class AnswerDecoder(nn.Module):
    """Fusion layers with a causal mask, between embeddings of their own and a head tied to them.

    Args:
        embeddings: as `TextEncoder`'s.
        projection: as there.
        layers: their cross-attention reads the states of a question.
        head: tied to `embeddings`.

    Source: Li et al. 2021, arXiv:2107.07651, section 4, as in the published code.
    """

    def __init__(
        self,
        embeddings: nn.Module,
        layers: Iterable[FusionLayer],
        head: MaskedLanguageModelHead,
        *,
        projection: nn.Module | None = None,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.embeddings = embeddings
        self.projection = projection
        self.layers = nn.ModuleList(layers)
        self.head = head
        self.activation_checkpointing = activation_checkpointing

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        questions: Tensor,
        question_mask: Tensor,
        rows: Tensor | Groups | None = None,
        first_place: int = 0,
    ) -> Tensor:
        """Logits of the next word at every place from one on.

        Args:
            input_ids: [R, L] int64, an answer each, [CLS] first.
            attention_mask: [R, L] bool, False at padding.
            questions: [B, N, width] fused states of the questions.
            question_mask: [B, N] bool, False at padding.
            rows: [R] int64, which question each answer belongs to, in eval mode also as `grouped` gives them; None where R = B
                and they pair up in order.
            first_place: the logits before it are not computed.

        Returns:
            [R, L - first_place, V]
        """
        states: Tensor = self.embeddings(input_ids=input_ids)
        if self.projection is not None:
            states = self.projection(states)
        length = input_ids.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=input_ids.device).tril()
        mask = padding_mask(attention_mask) & causal
        asking = rows.images if isinstance(rows, Groups) else rows
        seen = padding_mask(question_mask if asking is None else question_mask[asking])
        for layer in cast("Iterable[FusionLayer]", self.layers):
            asked = layer.cross_attention.keys_values(questions)
            states = run_layer(layer, states, mask, asked, rows, seen, recompute=self.activation_checkpointing)
        kept = states[:, first_place:]
        logits: Tensor = self.head(kept.flatten(0, 1))
        return logits.view(*kept.shape[:2], -1)


def build_decoder(encoders: Encoders, *, num_layers: int | None, key: str) -> AnswerDecoder:
    """A decoder that starts as the fusion encoder, the embeddings and the head that names hidden words, in copies.

    Cross-attention that read images of another width than the text's starts random. Layers beyond the fusion encoder's start
    as its layers from the first on.

    Args:
        encoders: with a fusion encoder and an MLM head.
        num_layers: how many; None for as many as the fusion encoder has.
        key: the spec key that an error names.

    Raises:
        InputError: the text encoder's embeddings stand for nothing on their own.
    """
    text, fusion, head = encoders.text_encoder, encoders.fusion_encoder, encoders.mlm_head
    if not isinstance(text, TextEncoder):
        message = "the answer decoder repeats the text encoder's embeddings, which this family keeps to itself"
        raise InputError(Problem(key, message, f"a model of these families: {', '.join(BERT_LIKE)}"))
    if fusion is None or head is None:
        raise TypeError("a decoder starts from a fusion encoder and an MLM head")
    # In one go: the copied head stays tied to the copied embeddings.
    parts: dict[str, Any] = deepcopy({"embeddings": text.embeddings, "projection": text.projection, "head": head})
    layers = [
        deepcopy(layer)
        for layer in islice(cycle(cast("Iterable[FusionLayer]", fusion.layers)), num_layers or len(fusion.layers))
    ]
    decoder = AnswerDecoder(**parts, layers=layers, activation_checkpointing=fusion.activation_checkpointing)
    for layer in cast("Iterable[FusionLayer]", decoder.layers):
        attention = layer.cross_attention
        if attention.key.in_features != text.width:
            for name in ("key", "value"):
                linear = nn.Linear(text.width, text.width)
                initialise_linear(linear, std=attention.initializer_range)
                setattr(attention, name, linear)
    return decoder


class PairedFusion(nn.Module):
    """Fusion layers, each twice: the first of a pair looks at the left image, the second at the right one.

    Both of a pair look through the same keys and values. Starts as a fusion encoder whose every layer is repeated.

    Args:
        fusion: the encoder to start from.

    Source: Li et al. 2021, arXiv:2107.07651, section 4, as in the published code.
    """

    def __init__(self, fusion: FusionEncoder) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for layer in cast("Iterable[FusionLayer]", fusion.layers):
            second = deepcopy(layer)
            del second.cross_attention.key, second.cross_attention.value
            layers += [layer, second]
        self.layers = nn.ModuleList(layers)
        self.activation_checkpointing = fusion.activation_checkpointing

    def forward(self, text_states: Tensor, attention_mask: Tensor, images: Tensor) -> Tensor:
        """Texts that look at two images each.

        Args:
            text_states: [B, L, D] from the text encoder.
            attention_mask: [B, L] bool, False at padding.
            images: [B, 2, N, image width], the left one first.

        Returns:
            [B, L, D]
        """
        mask, states = padding_mask(attention_mask), text_states
        layers = list(cast("Iterable[FusionLayer]", self.layers))
        for number, layer in enumerate(layers):
            seen = layers[number // 2 * 2].cross_attention.keys_values(images[:, number % 2])
            states = run_layer(layer, states, mask, seen, None, recompute=self.activation_checkpointing)
        return states
