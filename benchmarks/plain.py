"""TCL's training step as the paper reads: what speed is measured against.

Pass after pass, loop after loop, in fp32 and without a thought for speed: a caption and its masked copy each on their own
through the text encoder, images copied for each pair that looks at them, logits of the whole vocabulary at every word, LMI with
a softmax for each patch over all negatives, momentum encoders and AdamW parameter by parameter. The towers are tclx's own, so
that the difference is the step's. One process, every pair its own image, the queue full of random vectors at first, as in the
published pre-training; tests/parity/test_plain.py holds it against the numbers recorded from the published code.

Source: Yang et al. 2022, arXiv:2202.10401; hard negatives and soft labels: Li et al. 2021, arXiv:2107.07651.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from tclx.data.batch import Batch, normalise
from tclx.model.queue import FeatureQueue
from tclx.model.tcl import TCL, Encoded, Encoders
from tclx.spec.experiment import ExperimentSpec
from tclx.tasks.pretrain.features import HardNegatives


class PlainOutput(NamedTuple):
    """What a forward pass gives."""

    loss: Tensor
    parts: dict[str, Tensor]
    """The eight losses, by the names of metrics.jsonl without `loss/`."""
    keys: tuple[Tensor, Tensor]
    """Momentum embeddings [B, D] of images and captions, for the queue."""


class PlainStep:
    """The step of a model with every term on.

    Args:
        model: with queue, momentum encoders and all heads.
        spec: weights of the terms, normalisation, learning rate, momentum.
    """

    def __init__(self, model: TCL, spec: ExperimentSpec) -> None:
        self._model, self._spec = model, spec
        self._online, self._momentum, self._queue = _parts(model)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._optimizer = torch.optim.AdamW(
            trained, lr=spec.optim.learning_rate, weight_decay=spec.optim.weight_decay, foreach=False, fused=False
        )

    def train(self, batch: Batch, *, soft_label_weight: float) -> float:
        """One whole step of training; returns the loss."""
        self._optimizer.zero_grad()
        output = self.forward(batch, soft_label_weight=soft_label_weight)
        output.loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self._model.clamp_temperatures()
        with torch.no_grad():
            online = dict(self._online.named_parameters())
            for name, parameter in self._momentum.named_parameters():
                share = self._spec.model.momentum
                parameter.data = parameter.data * share + online[name].data * (1 - share)
        self._queue.enqueue(*output.keys, batch.image_index)
        return output.loss.item()

    def forward(self, batch: Batch, *, soft_label_weight: float, negatives: HardNegatives | None = None) -> PlainOutput:
        """The loss of B pairs.

        Args:
            batch: with second views and masked captions.
            soft_label_weight: share of the momentum model in the targets of CMA and MLM.
            negatives: use these instead of drawing.
        """
        terms = self._spec.objectives.terms
        normalization = self._spec.data.normalization
        assert batch.images_second is not None
        image = self._online.encode_image(normalise(batch.images, normalization))
        text = self._online.encode_text(batch.input_ids, batch.attention_mask)
        with torch.no_grad():
            image_m = self._momentum.encode_image(normalise(batch.images_second, normalization))
            text_m = self._momentum.encode_text(batch.input_ids, batch.attention_mask)
        query_image, query_text, key_image, key_text = map(_embedding, (image, text, image_m, text_m))
        all_images = torch.cat([key_image.T, self._queue.image.T.clone()], dim=1)  # [D, K]
        all_texts = torch.cat([key_text.T, self._queue.text.T.clone()], dim=1)
        temperature = self._model.temperature("cma")
        truth = torch.zeros(len(query_image), all_images.shape[1], device=query_image.device)
        truth.fill_diagonal_(1)
        with torch.no_grad():
            prediction = [key_image @ all_texts / temperature, key_text @ all_images / temperature]
            soft = [soft_label_weight * each.softmax(dim=1) + (1 - soft_label_weight) * truth for each in prediction]
        to_text, to_image = query_image @ all_texts / temperature, query_text @ all_images / temperature
        parts = {
            "cma_image_to_text": _cross_entropy(to_text, soft[0]),
            "cma_text_to_image": _cross_entropy(to_image, soft[1]),
            "imc_image": _cross_entropy(query_image @ all_images / self._model.temperature("imc"), truth),
            "imc_text": _cross_entropy(query_text @ all_texts / self._model.temperature("imc"), truth),
            **self._local(query_image, query_text, image_m, text_m, batch),
        }
        size = len(query_image)
        drawn = negatives or HardNegatives(image=_draw(to_image[:, :size]), text=_draw(to_text[:, :size]))
        parts["itm"] = self._matching(image, text, batch, drawn)
        parts["mlm"] = self._words(image, image_m, batch, soft_label_weight)
        groups = {"cma": 2, "imc": 2, "lmi": 2, "itm": 1, "mlm": 1}
        means = {
            name: sum(value for part, value in parts.items() if part.startswith(name)) / number
            for name, number in groups.items()
        }
        loss = sum(term.weight * means[name] for name, term in terms.items())
        assert isinstance(loss, Tensor)
        return PlainOutput(loss, parts, (key_image, key_text))

    def _local(self, image: Tensor, text: Tensor, image_m: Encoded, text_m: Encoded, batch: Batch) -> dict[str, Tensor]:
        lmi = self._spec.objectives.lmi
        assert lmi is not None
        temperature = self._model.temperature("lmi")
        with torch.no_grad():
            patches = self._momentum.project_image_locals(image_m.tokens)  # [B, N, D]
            if lmi.pooled_grid is not None:
                rows, columns = self._momentum.image_encoder.grid
                grid = patches.transpose(1, 2).reshape(len(patches), -1, rows, columns)
                grid = functional.adaptive_avg_pool2d(grid, (min(lmi.pooled_grid, rows), min(lmi.pooled_grid, columns)))
                patches = grid.flatten(2).transpose(1, 2)
            words = self._momentum.project_text_locals(text_m.tokens)
        everywhere = torch.ones(patches.shape[:2], dtype=torch.bool, device=patches.device)
        return {
            "lmi_image": _each_against_all(image, patches, everywhere, temperature),
            "lmi_text": _each_against_all(text, words, batch.attention_mask[:, 1:], temperature),
        }

    def _matching(self, image: Encoded, text: Encoded, batch: Batch, drawn: HardNegatives) -> Tensor:
        mask, size = batch.attention_mask, len(batch.row)
        wrong_images = torch.stack([image.tokens[row] for row in drawn.image.tolist()])
        wrong_texts = torch.stack([text.tokens[row] for row in drawn.text.tolist()])
        wrong_masks = torch.stack([mask[row] for row in drawn.text.tolist()])
        true = self._online.fuse(text.tokens, mask, image.tokens)[:, 0]
        wrong = self._online.fuse(
            torch.cat([text.tokens, wrong_texts]), torch.cat([mask, wrong_masks]), torch.cat([wrong_images, image.tokens])
        )[:, 0]
        head = self._model.head("itm")
        assert head is not None
        labels = torch.cat([torch.ones(size, dtype=torch.long), torch.zeros(2 * size, dtype=torch.long)]).to(mask.device)
        return functional.cross_entropy(head(torch.cat([true, wrong])), labels)

    def _words(self, image: Encoded, image_m: Encoded, batch: Batch, soft_label_weight: float) -> Tensor:
        assert batch.masked_input_ids is not None
        assert batch.mlm_positions is not None
        assert batch.mlm_labels is not None
        logits = self._named(self._online, batch, image)
        with torch.no_grad():
            prediction = self._named(self._momentum, batch, image_m).softmax(dim=-1)
        labels = torch.full((logits.shape[0] * logits.shape[1],), -100, device=logits.device)
        labels[batch.mlm_positions] = batch.mlm_labels
        hard = functional.cross_entropy(logits.flatten(0, 1), labels, ignore_index=-100)
        soft = -(logits.log_softmax(dim=-1) * prediction).sum(dim=-1).flatten()[labels != -100].mean()
        return (1 - soft_label_weight) * hard + soft_label_weight * soft

    @staticmethod
    def _named(encoders: Encoders, batch: Batch, image: Encoded) -> Tensor:
        """[B, L, V] logits of the word at every place."""
        assert batch.masked_input_ids is not None
        assert encoders.mlm_head is not None
        tokens = encoders.text_encoder(batch.masked_input_ids, batch.attention_mask)
        logits: Tensor = encoders.mlm_head(encoders.fuse(tokens, batch.attention_mask, image.tokens))
        return logits


def _parts(model: TCL) -> tuple[Encoders, Encoders, FeatureQueue]:
    if model.momentum is None or model.queue is None:
        raise TypeError("the plain step takes a model with momentum encoders and a queue")
    return model.online, model.momentum, model.queue


def _embedding(encoded: Encoded) -> Tensor:
    if encoded.embedding is None:
        raise TypeError("the plain step takes a model with projections")
    return encoded.embedding


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return -(logits.log_softmax(dim=1) * targets).sum(dim=1).mean()


def _draw(logits: Tensor) -> Tensor:
    """One wrong partner a row, the more similar the likelier."""
    weights = logits.detach().softmax(dim=1) + 1e-9
    weights.fill_diagonal_(0)
    return torch.tensor([int(torch.multinomial(row, 1).item()) for row in weights], device=logits.device)


def _each_against_all(anchors: Tensor, local: Tensor, valid: Tensor, temperature: Tensor) -> Tensor:
    """[B, D] against [B, N, D]: for every valid local of a sample a softmax over it and the locals of all other samples."""
    losses = []
    for row, anchor in enumerate(anchors):
        others = torch.cat([local[other][valid[other]] for other in range(len(local)) if other != row])
        own = local[row][valid[row]]
        if not len(own) or not len(others):
            losses.append(anchor.sum() * 0)
            continue
        negative = (others @ anchor / temperature).expand(len(own), -1)
        logits = torch.cat([(own @ anchor / temperature)[:, None], negative], dim=1)
        losses.append(functional.cross_entropy(logits, logits.new_zeros(len(own), dtype=torch.long)))
    return torch.stack(losses).mean()
