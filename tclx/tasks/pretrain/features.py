"""One batch as the terms of the loss see it: each feature is computed when a term first asks for it, and once.

Sizes: B pairs in this process, G pairs over all processes, K keys (the batch, then queue), D embedding width, N patches,
L tokens, M masked tokens.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from tclx import distributed
from tclx.data.batch import Batch, normalise
from tclx.losses.contrastive import centring_shift, queue_age_gap, similarity_logits, target_distribution
from tclx.losses.matching import draw_hard_negatives
from tclx.model.fusion import Blocks
from tclx.model.queue import FeatureQueue
from tclx.model.tcl import TCL, Encoded, Encoders
from tclx.tasks.needs import Needs

if TYPE_CHECKING:
    from tclx.spec.experiment import ExperimentSpec


class Views(NamedTuple):
    """The features of this process's batch."""

    image: Encoded
    text: Encoded


class Keys(NamedTuple):
    """What queries are compared with: the batch first, then the queue."""

    image: Tensor
    """[K, D]"""
    text: Tensor
    """[K, D]"""
    targets: Tensor
    """[B, K], rows sum to 1: the keys of the row's own image"""
    valid: Tensor | None
    """[K] bool, False at queue slots never filled; None when all count"""


class QueueKeys(NamedTuple):
    """Momentum features of all processes, ready for the queue."""

    image: Tensor
    """[G, D]"""
    text: Tensor
    """[G, D]"""
    image_index: Tensor
    """[G] int64, which image each belongs to"""


class HardNegatives(NamedTuple):
    """For every pair of this process, a row of the batch that negatives are drawn from."""

    image: Tensor
    """[B] int64: an image that the caption might belong to"""
    text: Tensor
    """[B] int64: a caption that the image might have"""


class Neighbours(NamedTuple):
    """How this process's rows stand in the batch that negatives are drawn from: the global one, or its own."""

    own: Tensor
    """[B] int64, this process's rows among them"""
    same_image: Tensor
    """[B, G] bool, True where the image is the row's own"""


_OLDEST = 1 / 8
"""Of the queue."""


class Features:
    """What the encoders make of a batch, computed lazily.

    The forward pass changes no parameter and no buffer.

    Args:
        batch: B pairs on the model's device.
        model: encoders, momentum encoders, heads, temperatures and queue.
        spec: which terms are on, and `compat`.
        soft_label_weight: share of the momentum model in the targets of the terms with soft labels, 0 to 1.
        draw: number of this draw of hard negatives, the same on all processes and different at every forward pass.
        negatives: use these instead of drawing.
    """

    def __init__(
        self,
        batch: Batch,
        *,
        model: TCL,
        spec: ExperimentSpec,
        soft_label_weight: float,
        draw: int,
        negatives: HardNegatives | None = None,
    ) -> None:
        self.batch = batch
        self.model = model
        self.soft_label_weight = soft_label_weight
        self.official = spec.compat == "official"
        self._spec, self._objectives = spec, spec.objectives
        self._draw, self._given_negatives = draw, negatives
        # The published pre-training does not know that two rows show one image; its retrieval fine-tuning does.
        train = spec.data.train
        self._knows_identity = not self.official or (train.source != "scenes" and train.form == "retrieval")

    # -- encoders ------------------------------------------------------------------------------------------------------------

    @property
    def online(self) -> Views:
        """View 1 through the online encoders."""
        return self._encoded[0]

    @property
    def masked_tokens(self) -> Tensor:
        """[B, L, width]: the captions with words hidden, through the online text encoder."""
        tokens = self._encoded[1]
        if tokens is None:
            raise TypeError("no term of this model needs masked captions")
        return tokens

    @property
    def masked_words(self) -> tuple[Tensor, Tensor]:
        """[M] int64 positions of the hidden words in the flattened [B * L] captions, and [M] int64 true ids."""
        positions, labels = self.batch.mlm_positions, self.batch.mlm_labels
        if positions is None or labels is None:
            raise TypeError("no term of this model needs masked captions")
        return positions, labels

    @property
    def embeddings(self) -> tuple[Tensor, Tensor]:
        """[B, D] of the images and of the captions, online, L2-normalised."""
        return _embeddings(self.online)

    @cached_property
    def momentum(self) -> Views:
        """View 2 through the momentum encoders; a caption's second view is another draw of dropout."""
        encoders, batch, online_image = self.momentum_encoders, self.batch, self.online.image
        with torch.no_grad():
            if batch.images_second is not None:
                image = encoders.encode_image(normalise(batch.images_second, self._spec.data.normalization))
            elif encoders.image_encoder.frozen:  # it and its copy see the same in the same images
                image = encoders.project_image(online_image.tokens)
            else:
                image = encoders.encode_image(self._images)
            return Views(image, encoders.encode_text(batch.input_ids, batch.attention_mask))

    @property
    def momentum_encoders(self) -> Encoders:
        if self.model.momentum is None:
            raise TypeError("no term of this model needs momentum encoders")
        return self.model.momentum

    def head(self, term: str) -> nn.Module:
        """What a term alone trains."""
        if (head := self.model.head(term)) is None:
            raise TypeError(f"this model has no {term}_head")
        return head

    @cached_property
    def _images(self) -> Tensor:
        return normalise(self.batch.images, self._spec.data.normalization)

    @cached_property
    def _encoded(self) -> tuple[Views, Tensor | None]:
        """The plain and the masked caption share one pass of the text encoder."""
        online, batch, size = self.model.online, self.batch, len(self.batch.row)
        image = online.encode_image(self._images)
        if batch.masked_input_ids is None:
            return Views(image, online.encode_text(batch.input_ids, batch.attention_mask)), None
        both = online.encode_text(
            torch.cat([batch.input_ids, batch.masked_input_ids]), torch.cat([batch.attention_mask, batch.attention_mask])
        )
        plain = Encoded(both.tokens[:size], None if both.embedding is None else both.embedding[:size])
        return Views(image, plain), both.tokens[size:]

    # -- the pairs beside each other -----------------------------------------------------------------------------------------

    @cached_property
    def own_rows(self) -> Tensor:
        """[B] int64, 0 to B - 1."""
        return torch.arange(len(self.batch.row), device=self.batch.row.device)

    @property
    def num_candidates(self) -> int:
        """Pairs that one of them is compared with, itself included: G, or B where negatives stay within a process."""
        return len(self.batch.row) * (distributed.world_size() if self._across_processes else 1)

    @property
    def _across_processes(self) -> bool:
        return self._objectives.in_batch_negatives == "global" and not self.official

    def gathered(self, features: Tensor) -> Tensor:
        """[B, ...] -> [G, ...] without gradient, or the features themselves where negatives stay within a process."""
        return distributed.gather(features) if self._across_processes else features

    def across(self, features: Tensor) -> Tensor:
        """[B, ...] -> [G, ...] with gradients to the process that each row comes from; as `gathered` where they stay."""
        return distributed.gather_with_gradient(features) if self._across_processes else features

    def fetched(self, *features: Tensor, rows: Tensor, for_products: bool = False) -> list[Tensor]:
        """[B, ...] -> [R, ...]: rows of all processes, without moving the others; gradients go to where each row comes from.

        Args:
            rows: [R] int64 among the G.
            for_products: matrix products alone read them, which round them to half precision under autocast; then the way there
                may do so as well.
        """
        if not self._across_processes:
            return [each[rows] for each in features]
        exchange, device = distributed.Exchange(rows, num_rows=len(self.batch.row)), rows.device.type
        casts = for_products and device != "meta" and torch.is_autocast_enabled(device)
        half = torch.get_autocast_dtype(device) if casts else None
        return [exchange.fetch(each, dtype=half) for each in features]

    @cached_property
    def _everyones(self) -> QueueKeys:
        """The momentum features of all processes."""
        image, text = distributed.gather_together(*_embeddings(self.momentum))
        return QueueKeys(image, text, self._everyones_index)

    @cached_property
    def _everyones_index(self) -> Tensor:
        return distributed.gather(self.batch.image_index)

    @cached_property
    def neighbours(self) -> Neighbours:
        own, index = self.own_rows, self.batch.image_index
        if self._across_processes:
            own = own + distributed.rank() * len(own)
            index = self._everyones_index
        same_row = own[:, None] == torch.arange(len(index), device=own.device)
        return Neighbours(own, (self.batch.image_index[:, None] == index) | same_row if self._knows_identity else same_row)

    @cached_property
    def keys(self) -> Keys:
        """The momentum features of the batch, then the queue."""
        queue = self.model.queue
        own = QueueKeys(*_embeddings(self.momentum), self.batch.image_index)
        image, text, index = self._everyones if self._across_processes else own
        rows, valid = self.batch.image_index, None
        if not self._knows_identity:  # every pair its own image, and none of them in the queue
            rows = index = torch.arange(len(image), device=image.device)
        if queue is not None:
            queued = queue.image_index if self._knows_identity else torch.full_like(queue.image_index, -1)
            if not self.official:  # the published code starts with random vectors as negatives
                valid = torch.cat([torch.ones_like(index, dtype=torch.bool), queue.valid])
            image, text, index = torch.cat([image, queue.image]), torch.cat([text, queue.text]), torch.cat([index, queued])
        return Keys(image, text, target_distribution(rows, index), valid)

    @torch.no_grad()
    def queue_age_gap(self, queue: FeatureQueue) -> Tensor:
        """Scalar, see `losses.contrastive.queue_age_gap`: images among texts and texts among images, their mean."""
        keys, others = self.keys, self.keys.targets == 0
        num_fresh = len(keys.image) - queue.size
        fresh, oldest = others.clone(), others.clone()
        fresh[:, num_fresh:] = False
        oldest[:, :num_fresh] = False
        oldest[:, num_fresh:] &= queue.oldest(_OLDEST)
        image, text = self.embeddings
        temperature = self.model.temperature(next(iter(self._objectives.needing(Needs.QUEUE))))
        parts = [
            queue_age_gap(query, of_others, fresh=fresh, oldest=oldest, temperature=temperature)
            for query, of_others in ((image, keys.text), (text, keys.image))
        ]
        return torch.stack(parts).mean()

    @property
    def queue_keys(self) -> QueueKeys:
        """What the queue takes up after the step, of all processes."""
        return self._everyones

    # -- similarities --------------------------------------------------------------------------------------------------------

    @cached_property
    def cross_modal_logits(self) -> tuple[Tensor, Tensor]:
        """Image-to-text and text-to-image logits of the online embeddings against the keys, [B, K] each."""
        return self._similarities(self.online)

    @property
    def momentum_cross_modal_logits(self) -> tuple[Tensor, Tensor]:
        """The same of the momentum embeddings, without gradient: what soft labels are made of."""
        with torch.no_grad():
            return self._similarities(self.momentum)

    def _similarities(self, queries: Views) -> tuple[Tensor, Tensor]:
        (image, text), keys, temperature = _embeddings(queries), self.keys, self.model.temperature("cma")
        return self.logits(image, keys.text, temperature=temperature), self.logits(text, keys.image, temperature=temperature)

    def logits(self, queries: Tensor, keys: Tensor, *, temperature: Tensor) -> Tensor:
        """Of queries [B, D] against the image or the text keys [K, D], those of the queue centred where that is asked for."""
        valid = self.keys.valid
        logits = similarity_logits(queries, keys, temperature=temperature, valid=valid)
        if not self._objectives.centred_queue or self.model.queue is None:
            return logits
        others = self.keys.targets == 0
        counted = others if valid is None else others & valid
        own = torch.stack([logits.masked_fill(~counted, 0).sum(dim=0), counted.sum(dim=0).to(logits.dtype)])
        sums, counts = self.across(own[None]).sum(dim=0)  # over the queries of all processes
        return logits + centring_shift(sums, counts, num_fresh=len(keys) - self.model.queue.size, valid=valid)

    @cached_property
    def negatives(self) -> HardNegatives:
        """One wrong image and one wrong caption a row; the noise is that of the global row, whichever process holds it."""
        if self._given_negatives is not None:
            return self._given_negatives
        neighbours = self.neighbours
        num_rows, num_candidates = neighbours.same_image.shape
        device = neighbours.own.device
        generator = torch.Generator(device).manual_seed(self._spec.seed * 1_000_003 + self._draw)
        noise = torch.rand(2, num_candidates, num_candidates, generator=generator, device=device)[:, neighbours.own]
        if not self._objectives.need(Needs.PROJECTIONS):  # nothing tells which pairs are alike
            logits = (noise.new_zeros(num_rows, num_candidates), noise.new_zeros(num_rows, num_candidates))
        elif self.model.momentum is None:
            image, text = (embedding.detach() for embedding in self.embeddings)
            temperature = self.model.temperature("cma")
            logits = (
                similarity_logits(image, self.gathered(text), temperature=temperature),
                similarity_logits(text, self.gathered(image), temperature=temperature),
            )
        else:
            logits = self.cross_modal_logits
        text_column, image_column = (
            draw_hard_negatives(
                each[:, :num_candidates], same_image=neighbours.same_image, noise=each_noise, own_column=neighbours.own
            )
            for each, each_noise in zip(logits, noise, strict=True)
        )
        return HardNegatives(image=image_column, text=text_column)

    # -- fused pairs ---------------------------------------------------------------------------------------------------------

    def fused(self, term: str) -> list[Tensor]:
        """What the fusion encoder makes of a term's `pairs`, [B, L, width] each."""
        return self._fused[term]

    @cached_property
    def _fused(self) -> dict[str, list[Tensor]]:
        """The pairs of all terms in one pass."""
        if self.model.momentum is not None:
            _ = self.momentum  # first, as it always was: the order in which dropout draws is part of what a run resumes to
        pairs = {name: term.pairs(self) for name, term in self._objectives.terms.items()}
        flat = [pair for of_term in pairs.values() for pair in of_term]
        images, rows, size = [self.online.image.tokens], list[Tensor | None](), len(self.batch.row)
        for pair in flat:
            if pair.images is None:
                rows.append(pair.image_rows)
            else:
                within = pair.image_rows if pair.image_rows is not None else torch.arange(size, device=pair.images.device)
                rows.append(within + sum(map(len, images)))
                images.append(pair.images)
        states = self.model.online.fuse(
            torch.cat([pair.text for pair in flat]),
            torch.cat([pair.attention_mask for pair in flat]),
            torch.cat(images) if len(images) > 1 else images[0],
            image_rows=Blocks(tuple(rows)),
        )
        fused = iter(torch.split(states, size))
        return {name: [next(fused) for _ in of_term] for name, of_term in pairs.items()}


def _embeddings(views: Views) -> tuple[Tensor, Tensor]:
    if views.image.embedding is None or views.text.embedding is None:
        raise TypeError("no term of this model needs projections")
    return views.image.embedding, views.text.embedding
