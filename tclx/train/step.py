"""One training step: where the paper meets the code.

A batch goes through the online encoders (view 1) and the momentum encoders (view 2). CMA, IMC and LMI compare their features;
ITM and MLM look at the fused pair. Sizes: B pairs in this process, G pairs over all processes, K keys (the batch, then queue),
D embedding width, N patches, L tokens, M masked tokens.

The forward pass changes no parameter and no buffer: its caller enqueues the returned keys and moves the momentum encoders.

Source: Yang et al. 2022, arXiv:2202.10401, and the order of operations of the published code.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from tclx import distributed
from tclx.data.batch import Batch, normalise
from tclx.losses.contrastive import (
    alignment,
    modality_gap,
    mutual_information_bound,
    similarity_logits,
    soft_cross_entropy,
    soft_targets,
    target_distribution,
    uniformity,
)
from tclx.losses.local_mi import local_mutual_information_loss, pool_patches
from tclx.losses.masked_lm import masked_language_modeling_loss
from tclx.losses.matching import draw_hard_negatives, image_text_matching_loss
from tclx.model.tcl import TCL, ContrastiveTerm, Encoded
from tclx.spec.experiment import ExperimentSpec
from tclx.spec.objectives import LmiSpec


class QueueKeys(NamedTuple):
    """Momentum features of all processes, ready for the queue."""

    image: Tensor
    """[G, D]"""
    text: Tensor
    """[G, D]"""
    image_index: Tensor
    """[G] int64, which picture each belongs to"""


class HardNegatives(NamedTuple):
    """For every pair of this process, a row of the batch that negatives are drawn from."""

    image: Tensor
    """[B] int64: a picture that the caption might belong to"""
    text: Tensor
    """[B] int64: a caption that the picture might have"""


class StepOutput(NamedTuple):
    """The loss and everything worth writing down about it."""

    loss: Tensor
    """Scalar: the weighted sum of the terms."""
    terms: dict[str, Tensor]
    """The unweighted terms that are on, with their graphs."""
    measures: dict[str, Tensor]
    """Detached scalars by metric name."""
    keys: QueueKeys | None
    """For the queue; None without one."""


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
    """[B, K], rows sum to 1: the keys of the row's own picture"""
    valid: Tensor | None
    """[K] bool, False at queue slots never filled; None when all count"""


class Neighbours(NamedTuple):
    """How this process's rows stand in the batch that negatives are drawn from: the global one, or its own."""

    own: Tensor
    """[B] int64, this process's rows among them"""
    same_image: Tensor
    """[B, G] bool, True where the picture is the row's own"""


class TrainingStep(nn.Module):
    """The whole objective as one module, so that DDP sees a single forward call.

    Args:
        model: encoders, momentum encoders, heads, temperatures and queue.
        spec: which terms are on, their weights, and `compat`.
    """

    def __init__(self, model: TCL, spec: ExperimentSpec) -> None:
        super().__init__()
        self.model = model
        self.spec = spec
        self.objectives = spec.objectives
        self.official = spec.compat == "official"
        # The published pre-training does not know that two rows show one picture; its retrieval fine-tuning does.
        train = spec.data.train
        self.knows_identity = not self.official or (train.source == "files" and train.form == "retrieval")

    def forward(
        self,
        batch: Batch,
        *,
        soft_label_weight: float,
        draw: int,
        measure: bool = False,
        negatives: HardNegatives | None = None,
    ) -> StepOutput:
        """The loss of one batch.

        Args:
            batch: B pairs on the model's device.
            soft_label_weight: share of the momentum model in the targets of CMA and MLM, 0 to 1.
            draw: number of this draw of hard negatives, the same on all processes and different at every forward pass.
            measure: also compute what tells whether training is healthy.
            negatives: use these instead of drawing.
        """
        objectives, model = self.objectives, self.model
        first = normalise(batch.images, self.spec.data.normalization)
        second = first if batch.images_second is None else normalise(batch.images_second, self.spec.data.normalization)

        online, masked_tokens = self._encode(batch, first)
        with torch.no_grad():
            momentum = self._encode_momentum(batch, second, seen=online.image.tokens if second is first else None)
        neighbours = self._neighbours(batch)

        parts: dict[str, Tensor] = {}
        measures: dict[str, Tensor] = {}
        hardness = None
        if objectives.cma or objectives.imc or objectives.lmi:
            keys = self._keys(batch, momentum)
            if objectives.cma or objectives.itm:
                hardness = self._similarities(online, keys, "cma")
            if objectives.cma and hardness is not None:
                parts |= self._cross_modal_alignment(hardness, momentum, keys, soft_label_weight)
            if objectives.imc:
                parts |= self._intra_modal_contrast(online, keys)
            if objectives.lmi:
                parts |= self._local_mutual_information(objectives.lmi, batch, online, momentum, neighbours)
            if measure:
                measures |= self._health(online, keys, parts, hardness)
        if objectives.itm and negatives is None:
            negatives = self._draw_negatives(hardness, neighbours, draw)
        if objectives.itm or objectives.mlm:
            fused = self._fuse(batch, online, masked_tokens, negatives)
            if objectives.itm:
                parts["itm"] = self._image_text_matching(fused)
            if objectives.mlm:
                parts["mlm"] = self._masked_language_modeling(batch, fused, momentum, soft_label_weight)

        terms = {term: _mean_of(parts, term) for term in ("cma", "imc", "lmi", "itm", "mlm") if getattr(objectives, term)}
        loss = torch.stack([getattr(objectives, term).weight * value for term, value in terms.items()]).sum()
        measures |= {f"loss/{name}": value.detach() for name, value in (*parts.items(), *terms.items(), ("total", loss))}
        return StepOutput(loss, terms, measures, self._queue_keys(batch, momentum) if model.queue is not None else None)

    # -- features ------------------------------------------------------------------------------------------------------------

    def _encode(self, batch: Batch, images: Tensor) -> tuple[Views, Tensor | None]:
        """View 1 through the online encoders; the plain and the masked caption share one pass of the text encoder."""
        online, size = self.model.online, len(batch.row)
        image = online.encode_image(images)
        if batch.masked_input_ids is None:
            return Views(image, online.encode_text(batch.input_ids, batch.attention_mask)), None
        both = online.encode_text(
            torch.cat([batch.input_ids, batch.masked_input_ids]), torch.cat([batch.attention_mask, batch.attention_mask])
        )
        plain = Encoded(both.tokens[:size], None if both.embedding is None else both.embedding[:size])
        return Views(image, plain), both.tokens[size:]

    def _encode_momentum(self, batch: Batch, images: Tensor, *, seen: Tensor | None) -> Views | None:
        """View 2 through the momentum encoders; the text's second view is another draw of dropout.

        `seen` are the online encoder's tokens of the same pictures: a frozen encoder and its copy see the same in them.
        """
        momentum = self.model.momentum
        if momentum is None:
            return None
        if seen is not None and momentum.image_encoder.frozen:
            image = momentum.project_image(seen)
        else:
            image = momentum.encode_image(images)
        return Views(image, momentum.encode_text(batch.input_ids, batch.attention_mask))

    def _neighbours(self, batch: Batch) -> Neighbours:
        own = torch.arange(len(batch.row), device=batch.row.device)
        index = batch.image_index
        if self._across_processes:
            own = own + distributed.rank() * len(own)
            index = distributed.gather(index)
        same_row = own[:, None] == torch.arange(len(index), device=own.device)
        return Neighbours(own, (batch.image_index[:, None] == index) | same_row if self.knows_identity else same_row)

    @property
    def _across_processes(self) -> bool:
        return self.objectives.in_batch_negatives == "global" and not self.official

    def _gathered(self, features: Tensor) -> Tensor:
        """[B, ...] -> [G, ...] without gradient, or the features themselves where negatives stay within a process."""
        return distributed.gather(features) if self._across_processes else features

    def _keys(self, batch: Batch, momentum: Views | None) -> Keys:
        image, text = _embeddings(momentum)
        image, text, index, queue = (
            self._gathered(image),
            self._gathered(text),
            self._gathered(batch.image_index),
            self.model.queue,
        )
        rows, valid = batch.image_index, None
        if not self.knows_identity:  # every pair its own picture, and none of them in the queue
            rows = index = torch.arange(len(image), device=image.device)
        if queue is not None:
            queued = queue.image_index if self.knows_identity else torch.full_like(queue.image_index, -1)
            if not self.official:  # the published code starts with random vectors as negatives
                valid = torch.cat([torch.ones_like(index, dtype=torch.bool), queue.valid])
            image, text, index = torch.cat([image, queue.image]), torch.cat([text, queue.text]), torch.cat([index, queued])
        return Keys(image, text, target_distribution(rows, index), valid)

    def _queue_keys(self, batch: Batch, momentum: Views | None) -> QueueKeys:
        image, text = _embeddings(momentum)
        return QueueKeys(distributed.gather(image), distributed.gather(text), distributed.gather(batch.image_index))

    # -- contrastive terms ---------------------------------------------------------------------------------------------------

    def _similarities(self, queries: Views, keys: Keys, term: ContrastiveTerm) -> tuple[Tensor, Tensor]:
        """Image-to-text and text-to-image logits, [B, K] each."""
        image, text = _embeddings(queries)
        temperature = self.model.temperature(term)
        return (
            similarity_logits(image, keys.text, temperature=temperature, valid=keys.valid),
            similarity_logits(text, keys.image, temperature=temperature, valid=keys.valid),
        )

    def _cross_modal_alignment(
        self, logits: tuple[Tensor, Tensor], momentum: Views | None, keys: Keys, soft_label_weight: float
    ) -> dict[str, Tensor]:
        """CMA: image and text [CLS] against the other modality, with soft labels from the momentum encoders."""
        targets = [keys.targets, keys.targets]
        if soft_label_weight > 0 and momentum is not None:
            with torch.no_grad():
                momentum_logits = self._similarities(momentum, keys, "cma")
            targets = [soft_targets(keys.targets, each, weight=soft_label_weight) for each in momentum_logits]
        image_to_text, text_to_image = map(soft_cross_entropy, logits, targets)
        return {"cma_image_to_text": image_to_text, "cma_text_to_image": text_to_image}

    def _intra_modal_contrast(self, online: Views, keys: Keys) -> dict[str, Tensor]:
        """IMC: each [CLS] against the other view of its own modality; no soft labels."""
        image, text = _embeddings(online)
        temperature = self.model.temperature("imc")
        to_images = similarity_logits(image, keys.image, temperature=temperature, valid=keys.valid)
        to_texts = similarity_logits(text, keys.text, temperature=temperature, valid=keys.valid)
        return {
            "imc_image": soft_cross_entropy(to_images, keys.targets),
            "imc_text": soft_cross_entropy(to_texts, keys.targets),
        }

    def _local_mutual_information(
        self, lmi: LmiSpec, batch: Batch, online: Views, momentum: Views | None, neighbours: Neighbours
    ) -> dict[str, Tensor]:
        """LMI: each [CLS] against the momentum patches or tokens of its own modality's other view."""
        image, text = _embeddings(online)
        patches, tokens = self._momentum_locals(lmi, momentum)
        temperature = self.model.temperature("lmi")
        excluded = None if self.official else neighbours.same_image
        return {
            "lmi_image": local_mutual_information_loss(
                image, self._gathered(patches), temperature=temperature, own_row=neighbours.own, excluded=excluded
            ),
            "lmi_text": local_mutual_information_loss(
                text,
                self._gathered(tokens),
                temperature=temperature,
                own_row=neighbours.own,
                excluded=excluded,
                valid=self._gathered(batch.attention_mask[:, 1:]),
            ),
        }

    @torch.no_grad()
    def _momentum_locals(self, lmi: LmiSpec, momentum: Views | None) -> tuple[Tensor, Tensor]:
        """Projected patches, pooled [B, pooled N, D], and tokens [B, L - 1, D]: only the online [CLS] learns from LMI."""
        encoders = self.model.momentum
        if encoders is None or momentum is None:
            raise TypeError("LMI needs momentum encoders")
        patches = encoders.project_image_locals(momentum.image.tokens)
        if lmi.pooled_grid is not None:
            patches = pool_patches(patches, grid=encoders.image_encoder.grid, pooled_grid=lmi.pooled_grid)
        return patches, encoders.project_text_locals(momentum.text.tokens)

    # -- terms on the fused pair ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _draw_negatives(self, logits: tuple[Tensor, Tensor] | None, neighbours: Neighbours, draw: int) -> HardNegatives:
        """One wrong picture and one wrong caption a row; the noise is that of the global row, whichever process holds it."""
        num_rows, num_candidates = neighbours.same_image.shape
        device = neighbours.own.device
        generator = torch.Generator(device).manual_seed(self.spec.seed * 1_000_003 + draw)
        noise = torch.rand(2, num_candidates, num_candidates, generator=generator, device=device)[:, neighbours.own]
        if logits is None:  # nothing says which pairs are alike
            logits = (noise.new_zeros(num_rows, num_candidates), noise.new_zeros(num_rows, num_candidates))
        text, image = (
            draw_hard_negatives(
                each[:, :num_candidates], same_image=neighbours.same_image, noise=each_noise, own_column=neighbours.own
            )
            for each, each_noise in zip(logits, noise, strict=True)
        )
        return HardNegatives(image=image, text=text)

    def _fuse(self, batch: Batch, online: Views, masked_tokens: Tensor | None, negatives: HardNegatives | None) -> list[Tensor]:
        """All pairs that ITM and MLM look at, in one pass: true pairs, wrong pictures, wrong captions, masked captions.

        Returns:
            [B, L, D] for each kind that was asked for, the masked captions last.
        """
        fusion = self.model.online.fusion_encoder
        if fusion is None:
            raise TypeError("ITM and MLM need a fusion encoder")
        size = len(batch.row)
        own = torch.arange(size, device=batch.row.device)
        texts, masks, rows, pictures = [], [], [], online.image.tokens
        if self.objectives.itm:
            texts, masks, rows = [online.text.tokens], [batch.attention_mask], [own]
            if negatives is not None and self._num_candidates(size) > 1:
                wrong_texts, wrong_masks = (
                    self._across(online.text.tokens)[negatives.text],
                    self._gathered(batch.attention_mask),
                )
                wrong_pictures = negatives.image
                if self._num_candidates(size) > size:  # only the pictures asked for get keys and values, not all G
                    pictures = torch.cat([pictures, self._across(pictures)[negatives.image]])
                    wrong_pictures = own + size
                texts += [online.text.tokens, wrong_texts]
                masks += [batch.attention_mask, wrong_masks[negatives.text]]
                rows += [wrong_pictures, own]
        if masked_tokens is not None:
            texts, masks, rows = [*texts, masked_tokens], [*masks, batch.attention_mask], [*rows, own]
        fused = fusion(torch.cat(texts), torch.cat(masks), fusion.keys_values(pictures), torch.cat(rows))
        return list(fused.split(size))

    def _num_candidates(self, size: int) -> int:
        return size * (distributed.world_size() if self._across_processes else 1)

    def _across(self, features: Tensor) -> Tensor:
        """[B, ...] -> [G, ...] with gradients to the process that each row comes from."""
        return distributed.gather_with_gradient(features) if self._across_processes else features

    def _image_text_matching(self, fused: list[Tensor]) -> Tensor:
        """ITM: true pairs against hard negatives; with a single pair there are none."""
        head = self.model.itm_head
        if head is None:
            raise TypeError("ITM needs its head")
        pairs = fused[: len(fused) - bool(self.objectives.mlm)]
        summary = torch.cat([tokens[:, 0] for tokens in pairs])
        labels = (torch.arange(len(summary), device=summary.device) < len(pairs[0])).long()
        return image_text_matching_loss(head(summary), labels)

    def _masked_language_modeling(
        self, batch: Batch, fused: list[Tensor], momentum: Views | None, soft_label_weight: float
    ) -> Tensor:
        """MLM: the hidden words, from the caption's rest and view 1; the momentum model reads view 2."""
        head, positions, labels = self.model.online.mlm_head, batch.mlm_positions, batch.mlm_labels
        if head is None or positions is None or labels is None:
            raise TypeError("MLM needs its head and a masked batch")
        logits = head(fused[-1].flatten(0, 1)[positions])
        momentum_logits = None
        if soft_label_weight > 0 and momentum is not None:
            momentum_logits = self._momentum_words(batch, momentum, positions)
        return masked_language_modeling_loss(
            logits, labels, momentum_logits=momentum_logits, soft_label_weight=soft_label_weight
        )

    @torch.no_grad()
    def _momentum_words(self, batch: Batch, momentum: Views, positions: Tensor) -> Tensor | None:
        """[M, V] logits of the momentum model at the masked positions; None where it was not built to answer."""
        encoders = self.model.momentum
        if encoders is None or encoders.fusion_encoder is None or encoders.mlm_head is None:
            return None
        tokens = encoders.text_encoder(batch.masked_input_ids, batch.attention_mask)
        pictures = encoders.fusion_encoder.keys_values(momentum.image.tokens)
        fused = encoders.fusion_encoder(tokens, batch.attention_mask, pictures)
        logits: Tensor = encoders.mlm_head(fused.flatten(0, 1)[positions])
        return logits

    # -- health --------------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _health(
        self, online: Views, keys: Keys, parts: dict[str, Tensor], cross_modal: tuple[Tensor, Tensor] | None
    ) -> dict[str, Tensor]:
        """What each contrastive part has learned, and how the embeddings lie."""
        image, text = _embeddings(online)
        num_keys = keys.valid.sum() if keys.valid is not None else torch.tensor(len(keys.image), device=image.device)
        bounds = {name: value for name, value in parts.items() if name.startswith("imc")}
        if self.objectives.cma and cross_modal is not None:  # the bound holds for the true labels, not for softened ones
            bounds["cma_image_to_text"] = soft_cross_entropy(cross_modal[0], keys.targets)
            bounds["cma_text_to_image"] = soft_cross_entropy(cross_modal[1], keys.targets)
        measures = {f"mi_bound/{name}": mutual_information_bound(value, num_keys.float()) for name, value in bounds.items()}
        measures["health/alignment"] = alignment(image, text)
        measures["health/uniformity_image"] = uniformity(image)
        measures["health/uniformity_text"] = uniformity(text)
        measures["health/modality_gap"] = modality_gap(image, text)
        if self.model.queue is not None:
            measures["health/queue_fill"] = self.model.queue.filled / self.model.queue.size
        return measures


def _embeddings(views: Views | None) -> tuple[Tensor, Tensor]:
    if views is None or views.image.embedding is None or views.text.embedding is None:
        raise TypeError("contrastive terms need projections and momentum encoders")
    return views.image.embedding, views.text.embedding


def _mean_of(parts: dict[str, Tensor], term: str) -> Tensor:
    """A term's mean over its two directions or modalities; ITM and MLM are a single part."""
    own = [value for name, value in parts.items() if name == term or name.startswith(f"{term}_")]
    return torch.stack(own).mean()
