"""How text and image meet: layers that read the text through self-attention and the image through cross-attention.

The image's keys and values depend on neither the text nor its masking, so they are computed once for B images; positive,
hard-negative and masked texts then run as one pass that looks its image up by row.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import PretrainedConfig
from transformers.activations import ACT2FN


class KeysValues(NamedTuple):
    """What one fusion layer attends to: keys and values of B images, each [B, heads, N, head width]."""

    keys: Tensor
    values: Tensor

    def of_rows(self, rows: Tensor | None) -> KeysValues:
        """The images in the order of `rows`, [R] int64; None keeps them as they are."""
        # Indexing, not index_select: its backward sorts instead of adding atomically, so a GPU repeats itself bit for bit.
        return self if rows is None else KeysValues(self.keys[rows], self.values[rows])


LEAST_SHARE_USED = 0.5
"""Of the places in a grid: a grid of less has more empty texts that attend than copies that it saves."""


class Groups(NamedTuple):
    """Which image each of R texts is read with, in a grid of G images by C texts: all texts of an image then attend to its keys
    and values as one long text, and nothing is copied for each text.
    """

    images: Tensor
    """[G] int64, those that any text is read with."""
    places: Tensor
    """[R] int64, where each text stands in the grid, row after row."""
    num_columns: int
    """C: texts of the image that has most; other rows have places that nothing stands in."""

    @classmethod
    def of(cls, rows: Tensor) -> Groups:
        """[R] int64 numbers of images, in any order."""
        images, row, counts = torch.unique(rows, return_inverse=True, return_counts=True)
        order = row.argsort(stable=True)
        column = torch.empty_like(row)
        column[order] = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[row[order]]
        num_columns = int(counts.max())
        return cls(images, row * num_columns + column, num_columns)

    @property
    def share_used(self) -> float:
        """Of the places in the grid."""
        return len(self.places) / (len(self.images) * self.num_columns)


class Blocks(NamedTuple):
    """Which image each of k * B texts is read with, block after block of B: in training most are the B images in order, and all
    texts of an image then attend to its keys and values as one long text.
    """

    rows: tuple[Tensor | None, ...]
    """Of each block [B] int64; None: the first B images in order."""

    def flat(self, images: KeysValues) -> Tensor:
        """[k * B] int64, the same text by text."""
        size = next((len(rows) for rows in self.rows if rows is not None), len(images.keys))
        in_order = torch.arange(size, device=images.keys.device)
        return torch.cat([in_order if rows is None else rows for rows in self.rows])


def grouped(rows: Tensor) -> Tensor | Groups:
    """The same as a grid, where half of that or more is used."""
    groups = Groups.of(rows)
    return groups if groups.share_used >= LEAST_SHARE_USED else rows


def run_layer(layer: nn.Module, *inputs: object, recompute: bool) -> Tensor:
    """Call a layer; with `recompute` its activations are dropped and computed again, dropout alike, in the backward pass."""
    if recompute and torch.is_grad_enabled():
        output: Tensor = checkpoint(layer, *inputs, use_reentrant=False)
    else:
        output = layer(*inputs)
    return output


def padding_mask(attention_mask: Tensor) -> Tensor:
    """[R, L] bool, False at padding -> the [R, 1, 1, L] that scaled_dot_product_attention broadcasts over heads and queries."""
    return attention_mask[:, None, None, :]


class CrossAttention(nn.Module):
    """Text tokens ask, image tokens answer; residual and LayerNorm as in BERT. Starts from N(0, the model's initializer_range).

    Args:
        config: the text model's: width, heads, dropout, LayerNorm epsilon.
        image_width: width of the image tokens.
    """

    def __init__(self, config: PretrainedConfig, *, image_width: int) -> None:
        super().__init__()
        width = config.hidden_size
        self.acts_as_on_cpu = False  # on the meta device, what a CPU would keep for the backward pass
        self.num_heads: int = config.num_attention_heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(image_width, width)
        self.value = nn.Linear(image_width, width)
        self.dense = nn.Linear(width, width)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.attention_dropout: float = config.attention_probs_dropout_prob
        self.initializer_range: float = config.initializer_range
        for linear in (self.query, self.key, self.value, self.dense):
            initialise_linear(linear, std=config.initializer_range)

    def keys_values(self, image_tokens: Tensor) -> KeysValues:
        """[B, N, image width] -> what `forward` attends to."""
        return KeysValues(self._split(self.key(image_tokens)), self._split(self.value(image_tokens)))

    def weights(self, states: Tensor, images: KeysValues) -> Tensor:
        """What a text token looks at: states [R, L, D], the keys of R images -> [R, heads, L, N], each row sums to 1."""
        queries = self._split(self.query(states))
        scores: Tensor = queries @ images.keys.transpose(2, 3) / queries.shape[-1] ** 0.5
        return scores.softmax(dim=-1)

    def forward(self, states: Tensor, images: KeysValues, weights: Tensor | None = None, seen: Tensor | None = None) -> Tensor:
        """States [R, L, D] and the keys and values of R images -> [R, L, D].

        Args:
            weights: stand in for what it would look at.
            seen: [R, 1, 1, N] bool, False at what may not be looked at.
        """
        if weights is None:
            dropout = self.attention_dropout if self.training else 0.0
            queries = self._split(self.query(states))
            heads = functional.scaled_dot_product_attention(queries, *images, attn_mask=seen, dropout_p=dropout)
        else:
            heads = weights @ images.values
        mixed = self.dropout(self.dense(heads.transpose(1, 2).flatten(2)))
        normalised: Tensor = self.norm(mixed + states)
        return normalised

    def of_groups(self, states: Tensor, images: KeysValues, groups: Groups, seen: Tensor | None = None) -> Tensor:
        """As `forward` in eval mode with `images.of_rows`, without copies: states [R, L, D] -> [R, L, D].

        Args:
            seen: [G, 1, 1, N] bool, False at what may not be looked at.
        """
        asked, (length, width), num_images = self.query(states), states.shape[1:], len(groups.images)
        queries = asked.new_zeros(num_images * groups.num_columns, length, width)
        queries[groups.places] = asked
        long = self._split(queries.view(num_images, groups.num_columns * length, width))
        heads = functional.scaled_dot_product_attention(long, *images.of_rows(groups.images), attn_mask=seen)
        read = heads.transpose(1, 2).reshape(-1, length, width)[groups.places]
        normalised: Tensor = self.norm(self.dense(read) + states)
        return normalised

    def of_blocks(self, states: Tensor, images: KeysValues, blocks: Blocks) -> Tensor:
        """As `forward` with the images in the order of the blocks, most of them without copies: [R, L, D] -> [R, L, D]."""
        dropout = self.attention_dropout if self.training else 0.0
        if dropout and (states.device.type == "cpu" or self.acts_as_on_cpu):
            # How many numbers dropout draws, and in which order, is part of what a run resumes to there.
            copied: Tensor = self(states, images.of_rows(blocks.flat(images)))
            return copied
        asked = self.query(states).chunk(len(blocks.rows))
        in_order = [number for number, rows in enumerate(blocks.rows) if rows is None]
        read: list[Tensor] = list(asked)
        if in_order:
            size, (length, width) = len(asked[0]), asked[0].shape[1:]
            long = torch.stack([asked[number] for number in in_order], dim=1).flatten(1, 2)
            first = KeysValues(images.keys[:size], images.values[:size])
            heads = functional.scaled_dot_product_attention(self._split(long), *first, dropout_p=dropout)
            found = heads.transpose(1, 2).reshape(size, len(in_order), length, width).unbind(dim=1)
            for number, one in zip(in_order, found, strict=True):
                read[number] = one
        for number, rows in enumerate(blocks.rows):
            if rows is not None:
                queries = self._split(asked[number])
                heads = functional.scaled_dot_product_attention(queries, *images.of_rows(rows), dropout_p=dropout)
                read[number] = heads.transpose(1, 2).flatten(2)
        normalised: Tensor = self.norm(self.dropout(self.dense(torch.cat(read))) + states)
        return normalised

    def _split(self, states: Tensor) -> Tensor:
        return states.view(*states.shape[:-1], self.num_heads, -1).transpose(1, 2)


class FusionLayer(nn.Module):
    """One layer of a BERT-like model with cross-attention between its self-attention and its feed-forward part.

    Args:
        layer: the transformers layer whose `attention`, `intermediate` and `output` are taken over, weights included.
        config: that model's configuration.
        image_width: width of the image tokens.
    """

    called_from_outside = ("cross_attention.key", "cross_attention.value")
    """Parts that are called beside `forward`, once for all texts of an image."""

    def __init__(self, layer: nn.Module, config: PretrainedConfig, *, image_width: int) -> None:
        super().__init__()
        self.attention = layer.get_submodule("attention")
        self.cross_attention = CrossAttention(config, image_width=image_width)
        self.intermediate = layer.get_submodule("intermediate")
        self.output = layer.get_submodule("output")

    def forward(
        self,
        states: Tensor,
        mask: Tensor,
        images: KeysValues,
        rows: Tensor | Groups | Blocks | None,
        seen: Tensor | None = None,
    ) -> Tensor:
        """States [R, L, D], mask [R, 1, 1 or L, L], the image of each by row, in blocks or in groups (eval mode) -> [R, L, D].

        Args:
            seen: [R, 1, 1, N] bool, with groups [G, 1, 1, N], False at what may not be looked at; not with blocks.
        """
        read = self.attention(states, mask)[0]
        if isinstance(rows, Groups):
            return self._feed_forward(self.cross_attention.of_groups(read, images, rows, seen))
        if isinstance(rows, Blocks):
            return self._feed_forward(self.cross_attention.of_blocks(read, images, rows))
        # Looked up in here, so that a recomputed layer does not keep R rows of keys and values.
        return self._feed_forward(self.cross_attention(read, images.of_rows(rows), seen=seen))

    def explained(self, states: Tensor, mask: Tensor, images: KeysValues) -> tuple[Tensor, Tensor]:
        """As `forward`, and the cross-attention weights [R, heads, L, N] as a leaf that gradients can be asked of."""
        read = self.attention(states, mask)[0]
        weights = self.cross_attention.weights(read, images).detach().requires_grad_()
        return self._feed_forward(self.cross_attention(read, images, weights)), weights

    def _feed_forward(self, seen: Tensor) -> Tensor:
        fused: Tensor = self.output(self.intermediate(seen), seen)
        return fused


class FusionEncoder(nn.Module):
    """The fusion layers in order."""

    def __init__(self, layers: Sequence[FusionLayer], *, activation_checkpointing: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.activation_checkpointing = activation_checkpointing

    def keys_values(self, image_tokens: Tensor) -> tuple[KeysValues, ...]:
        """Image tokens [B, N, image width], [CLS] included -> keys and values of every layer, for `forward`."""
        layers = cast("Iterable[FusionLayer]", self.layers)
        return tuple(layer.cross_attention.keys_values(image_tokens) for layer in layers)

    def forward(
        self,
        text_states: Tensor,
        attention_mask: Tensor,
        keys_values: Sequence[KeysValues],
        image_rows: Tensor | Groups | Blocks | None = None,
    ) -> Tensor:
        """Fuse R texts with an image each.

        Args:
            text_states: [R, L, D] from the text encoder.
            attention_mask: [R, L] bool, False at padding.
            keys_values: of B images, from `keys_values`.
            image_rows: [R] int64, which of the B images each text is read with, also block by block, in eval mode also as
                `grouped` gives them; None where R = B and they pair up in order.

        Returns:
            [R, L, D]; the first token tells whether text and image match, every token what stands there.
        """
        mask, states = padding_mask(attention_mask), text_states
        for layer, images in zip(self.layers, keys_values, strict=True):
            states = run_layer(layer, states, mask, images, image_rows, recompute=self.activation_checkpointing)
        return states

    def explained(
        self, text_states: Tensor, attention_mask: Tensor, keys_values: Sequence[KeysValues], *, layer: int
    ) -> tuple[Tensor, Tensor]:
        """As `forward` where R = B, and what one layer's text tokens look at.

        Args:
            layer: the number of that layer, from 0.

        Returns:
            The fused states [R, L, D], and the layer's cross-attention weights [R, heads, L, N]: a leaf of the graph, so that
            the gradient of anything made of the states says how much each of them mattered.
        """
        mask, states = padding_mask(attention_mask), text_states
        weights: Tensor | None = None
        layers = cast("Iterable[FusionLayer]", self.layers)
        for number, (one, images) in enumerate(zip(layers, keys_values, strict=True)):
            if number == layer:
                states, weights = one.explained(states, mask, images)
            else:
                states = one(states, mask, images, None)
        if weights is None:
            raise ValueError(f"the fusion encoder has {len(self.layers)} layers, none of them number {layer}")
        return states, weights


class MaskedLanguageModelHead(nn.Module):
    """Which word stands here: BERT's prediction head, its decoder tied to the word embeddings.

    Args:
        word_embeddings: the text encoder's table [V, E], used as the decoder.
        config: the text model's: width, activation, LayerNorm epsilon.
    """

    def __init__(self, word_embeddings: nn.Embedding, config: PretrainedConfig) -> None:
        super().__init__()
        num_words, width = word_embeddings.weight.shape
        self.dense = nn.Linear(config.hidden_size, width)
        self.activation = ACT2FN[config.hidden_act]
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(num_words))
        initialise_linear(self.dense, std=config.initializer_range)
        # In a tuple the table is not registered a second time, so the state dict holds it once, under the text encoder; copying
        # both modules in one go keeps them tied.
        self._tied = (word_embeddings,)

    def forward(self, states: Tensor) -> Tensor:
        """States [M, D] -> logits [M, V]."""
        transformed = self.norm(self.activation(self.dense(states)))
        return functional.linear(transformed, self._tied[0].weight, self.bias)


def initialise_linear(linear: nn.Linear, *, std: float) -> None:
    """BERT's start: weights from N(0, std), no bias."""
    nn.init.normal_(linear.weight, std=std)
    nn.init.zeros_(linear.bias)
