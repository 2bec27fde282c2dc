"""Visual grounding of a model on one split: a Grad-CAM map for each expression, and what it says of the boxes.

The map is spread over the whole image (bicubic). It chooses the box with the largest sum of the map divided by the square root
of the area, which is right where it overlaps the true one by half (intersection over union). The pointing game, which needs no
boxes to choose from, asks whether the map is largest within the true one.

With several processes, batches of images are divided among them, so that each is computed as one process computes it.

Source: Li et al. 2021, arXiv:2107.07651, section 6.5, and the evaluation of the published script; the pointing game is of Zhang
et al. 2016, arXiv:1608.00507.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from tclx.data.batch import normalise
from tclx.data.dataset import EvaluationSet
from tclx.errors import InputError, Problem
from tclx.examples import Judged, JudgedItems
from tclx.model.fusion import FusionEncoder
from tclx.model.precision import autocast
from tclx.tasks.evaluating import evaluating, gather_parts, my_part, require_finite
from tclx.tasks.grad_cam import matching_maps, similarity_maps
from tclx.tasks.grounding.boxes import ENOUGH_OVERLAP, PARTS, Box, iou, read_map
from tclx.tasks.grounding.expressions import Expression, Expressions
from tclx.tasks.grounding.refcoco import FileExpressions
from tclx.tasks.grounding.scenes import SceneExpressions
from tclx.tasks.outcomes import Outcome, Queries, fingerprint
from tclx.tasks.task import Evaluation
from tclx.tasks.thumbnails import LARGEST_SIDE, NUM_SHOWN, jpeg, spaced, warmed

if TYPE_CHECKING:
    from tclx.data.images import Pixels
    from tclx.data.tokenizer import CaptionTokenizer
    from tclx.model.tcl import TCL
    from tclx.spec.experiment import ExperimentSpec
    from tclx.tasks.grounding.task import GroundingSpec
    from tclx.tasks.task import Split

NUM_ANSWERS = 3
TRUE_COLOUR, CHOSEN_COLOUR = (60, 220, 60), (70, 160, 255)
"""Green and blue of the boxes drawn."""


class Grounding(NamedTuple):
    """What a model says of T expressions."""

    expressions: Expressions
    images: EvaluationSet
    maps: Tensor
    """[T, rows, columns] fp32, not negative, of the image encoder's grid of patches."""
    overlaps: Tensor
    """[T] fp64, intersection over union of the true box and the one that the map chooses; 0 where it chooses none."""
    points: Tensor
    """[T] fp64, 1 where the map is largest within the true box, else 0."""
    chances: Tensor
    """[T] fp64, the share of the boxes to choose from that would be right; 0 where there are none."""
    official: bool
    """Whether overlaps are computed as the published code does."""

    @property
    def chooses(self) -> bool:
        """Whether there are boxes to choose from."""
        return self.expressions.items[0].candidates is not None


def evaluate_grounding(
    model: TCL,
    spec: ExperimentSpec,
    split: Split,
    *,
    settings: GroundingSpec,
    tokenizer: CaptionTokenizer,
    device: torch.device,
) -> Evaluation:
    """As `EvaluationTask.evaluate`, with the settings of the task."""
    found = ground(model, spec, split, settings=settings, tokenizer=tokenizer, device=device)
    return Evaluation(grounding_figures(found), partial(_examples, found), _outcomes(found))


def _outcomes(found: Grounding) -> dict[str, Outcome]:
    """Of each expression whether the map points into the true box, and where there are boxes whether it chooses rightly."""
    items = found.expressions.items
    clusters = [item.image for item in items]
    queries = Queries(fingerprint([item.text for item in items], [item.box for item in items], clusters), clusters)
    outcomes = {"pointing": Outcome(queries, found.points.tolist())}
    if found.chooses:
        outcomes["accuracy"] = Outcome(queries, (found.overlaps >= ENOUGH_OVERLAP).double().tolist())
    return outcomes


def ground(
    model: TCL,
    spec: ExperimentSpec,
    split: Split,
    *,
    settings: GroundingSpec,
    tokenizer: CaptionTokenizer,
    device: torch.device,
) -> Grounding:
    """The maps of a split's expressions and what they say; raises as `EvaluationTask.evaluate`."""
    regions, key = settings.data_of(split), f"evaluation.grounding.{split}"
    expressions: Expressions = (
        FileExpressions(regions, spec, key=key) if regions.source == "refcoco" else SceneExpressions(regions, split)
    )
    images = EvaluationSet(expressions, spec.data, image_size=spec.model.image_encoder.image_size)
    starts: list[int] = my_part(torch.arange(0, images.num_images, settings.batch_size)).tolist()
    numbers = range(starts[0], min(starts[-1] + settings.batch_size, images.num_images)) if starts else range(0)
    official = spec.compat == "official"
    parts: list[Tensor] = []
    with evaluating(model), autocast(device, spec.training.precision):
        batches = images.image_batches(numbers, batch_size=settings.batch_size) if starts else iter(())
        for start, batch in zip(starts, batches, strict=True):
            inputs = normalise(batch.to(device), spec.data.normalization)
            parts += _maps(model, images, inputs, start=start, settings=settings, tokenizer=tokenizer)
    part = torch.cat(parts) if parts else None
    if part is not None:
        require_finite(part, "attention to an expression")
        part = part.view(-1, *model.online.image_encoder.grid)
    mine = [row for row, item in enumerate(expressions.items) if item.image in numbers]
    verdicts = [
        _verdict(expressions.items[row], attention, expressions.sizes, official=official)
        for row, attention in zip(mine, () if part is None else part, strict=True)
    ]
    cpu = torch.device("cpu")
    gathered = gather_parts(torch.tensor(verdicts, dtype=torch.float64) if verdicts else None, cpu)
    overlaps, points, chances = gathered.unbind(dim=1)
    return Grounding(expressions, images, gather_parts(part, cpu), overlaps, points, chances, official)


def _maps(
    model: TCL,
    images: EvaluationSet,
    inputs: Tensor,
    *,
    start: int,
    settings: GroundingSpec,
    tokenizer: CaptionTokenizer,
) -> Iterator[Tensor]:
    """[r, N] of the expressions of a few images, in their order.

    Args:
        inputs: [b, 3, S, S], normalised, the images from number `start` on.
    """
    first, last = np.searchsorted(images.image_of_caption, [start, start + len(inputs)]).tolist()
    online, device = model.online, inputs.device
    fusion = online.fusion_encoder if isinstance(online.fusion_encoder, FusionEncoder) else None
    explains_matching = settings.explains == "itm"
    if explains_matching and (fusion is None or model.head("itm") is None):
        raise InputError(Problem("evaluation.grounding", "this model has no matching head", "set `explains: itc`"))
    if not explains_matching and online.text_projection is None:
        raise InputError(Problem("evaluation.grounding", "this model has no common space", "set `explains: itm`"))
    with torch.no_grad():
        tokens = online.encode_image(inputs).tokens if explains_matching else None
    for begin in range(first, last, settings.batch_size):
        rows = range(begin, min(begin + settings.batch_size, last))
        input_ids, mask = (tensor.to(device) for tensor in images.encode_captions(tokenizer, rows))
        image_rows = torch.from_numpy(images.image_of_caption[rows.start : rows.stop] - start).to(device)
        with torch.no_grad():
            text = online.encode_text(input_ids, mask)
        if fusion is not None and tokens is not None:
            of_tokens, _ = matching_maps(model, fusion, text.tokens, mask, tokens[image_rows], layer=settings.layer)
            real = mask[..., None].cpu()
            yield (of_tokens * real).sum(dim=1) / real.sum(dim=1)
        elif text.embedding is not None:
            yield similarity_maps(model, inputs[image_rows], text.embedding, block=settings.layer)[0]


def _verdict(
    item: Expression, attention: Tensor, sizes: Sequence[tuple[int, int]], *, official: bool
) -> tuple[float, float, float]:
    """Overlap, whether the map points into the true box, and the share of right candidates."""
    read = read_map(attention, sizes[item.image], item.candidates or ())
    overlaps = [iou(item.box, box, official=official) for box in item.candidates or ()]
    chosen = 0.0 if read.chosen is None else overlaps[read.chosen]
    share = sum(overlap >= ENOUGH_OVERLAP for overlap in overlaps) / max(len(overlaps), 1)
    return chosen, float(read.place is not None and read.place.is_in(item.box)), share


def grounding_figures(found: Grounding) -> dict[str, float]:
    """The metrics of the task; accuracies only where there are boxes to choose from, those of parts where rows name them."""
    items = found.expressions.items
    figures = {"num_expressions": float(len(items)), "pointing": _percent(found.points)}
    covered = [item.box[2] * item.box[3] / math.prod(found.expressions.sizes[item.image]) for item in items]
    figures["pointing_chance"] = _percent(torch.tensor(covered, dtype=torch.float64))
    right = (found.overlaps >= ENOUGH_OVERLAP).double()
    if found.chooses:
        figures |= {"accuracy": _percent(right), "accuracy_chance": _percent(found.chances)}
    for part in PARTS:
        rows = [row for row, item in enumerate(items) if item.part == part]
        if rows:
            figures[f"pointing/{part}"] = _percent(found.points[rows])
        if rows and found.chooses:
            figures[f"accuracy/{part}"] = _percent(right[rows])
    return figures


def _percent(shares: Tensor) -> float:
    return 100.0 * float(shares.mean())


# ------------------------------------------------------------------------------------------------------------ for people to see


def _examples(found: Grounding) -> dict[str, Any]:
    """`JudgedItems`: a few expressions, what the map chooses, and the image under the map with both boxes.

    The true box is green, the chosen one blue; without boxes to choose from, the blue square is where the map points.
    """
    shown = spaced(len(found.expressions.items), NUM_SHOWN)
    judged = {row: _judged(found, row) for row in shown}
    kept: JudgedItems = {
        "score": "share",
        "items": [item for item, _ in judged.values()],
        "pictures": {str(row): jpeg(picture) for row, (_, picture) in judged.items()},
    }
    return dict(kept)


def _judged(found: Grounding, row: int) -> tuple[Judged, Pixels]:
    """An answer's score is the share that a box has of all boxes' scores, or that the largest patch has of the map."""
    item, attention = found.expressions.items[row], found.maps[row]
    size = found.expressions.sizes[item.image]
    read = read_map(attention, size, item.candidates or ())
    chosen: Box | None = None
    if item.candidates is not None:
        total = sum(max(score, 0.0) for score in read.scores) or 1.0
        best = sorted(range(len(read.scores)), key=lambda number: -read.scores[number])[:NUM_ANSWERS]
        answers = [(_words(item.candidates[number]), max(read.scores[number], 0.0) / total) for number in best]
        right = [_words(box) for box in item.candidates if iou(item.box, box, official=found.official) >= ENOUGH_OVERLAP]
        chosen = None if read.chosen is None else item.candidates[read.chosen]
    elif read.place is None:
        answers, right = [], []
    else:
        answers = [(f"at {read.place.x}, {read.place.y}", float(attention.max() / attention.sum()))]
        right = [answers[0][0]] if read.place.is_in(item.box) else []
        chosen = (read.place.x - size[0] / 56, read.place.y - size[1] / 56, size[0] / 28, size[1] / 28)
    judged: Judged = {
        "images": [row],
        "text": found.images.captions[row],
        "right": list(dict.fromkeys(right)) or [_words(item.box)],
        "answers": [{"text": text, "score": score} for text, score in answers],
    }
    return judged, _drawn(found.images.image(item.image), attention, size, item.box, chosen)


def _words(box: Box) -> str:
    left, top, width, height = (round(each) for each in box)
    return f"{width} x {height} pixels at {left}, {top}"


def _drawn(pixels: Pixels, attention: Tensor, size: tuple[int, int], true: Box, chosen: Box | None) -> Pixels:
    """An image under its map, with the true box and, within it where they are the same, the chosen one."""
    interpolation = cv2.INTER_AREA if pixels.shape[0] > LARGEST_SIDE else cv2.INTER_NEAREST
    drawn = np.ascontiguousarray(
        warmed(cv2.resize(pixels, (LARGEST_SIDE, LARGEST_SIDE), interpolation=interpolation), attention)
    )
    scales = [LARGEST_SIDE / side for side in size]
    for box, colour, inset in ((true, TRUE_COLOUR, 0), (chosen, CHOSEN_COLOUR, 2)):
        if box is not None:
            left, top = (round(box[side] * scales[side]) + inset for side in (0, 1))
            right, bottom = (round((box[side] + box[side + 2]) * scales[side]) - 1 - inset for side in (0, 1))
            cv2.rectangle(drawn, (left, top), (right, bottom), colour)
    return drawn
