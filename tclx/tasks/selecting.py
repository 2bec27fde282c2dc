"""The evaluation of image-text selection: every image with its captions, by cosine similarity and by the matching head."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from tclx.data.batch import normalise
from tclx.data.dataset import EvaluationSet
from tclx.data.images import image_reader
from tclx.data.scenes import draw_image
from tclx.data.selection import SelectionImage, SelectionItem, items_of
from tclx.model.fusion import FusionEncoder
from tclx.model.precision import autocast
from tclx.tasks.evaluating import evaluating, gather_parts, my_part, require_finite
from tclx.tasks.outcomes import Outcome, Queries, fingerprint
from tclx.tasks.task import Evaluation, Split
from tclx.tasks.thumbnails import NUM_SHOWN, jpeg, small, spaced

if TYPE_CHECKING:
    from tclx.data.images import Pixels
    from tclx.data.tokenizer import CaptionTokenizer
    from tclx.model.tcl import TCL
    from tclx.spec.experiment import ExperimentSpec
    from tclx.tasks.selection import SelectionSpec


class _Rows:
    """Every image of every item with the captions that it is compared with, as `EvaluationSet` reads rows."""

    def __init__(self, items: Sequence[SelectionItem], spec: ExperimentSpec) -> None:
        self._rows = [(image, item.captions) for item in items for image in item.images]
        self._read = image_reader(spec)

    @property
    def num_rows(self) -> int:
        return len(self._rows)

    @property
    def image_index(self) -> Any:
        return np.arange(self.num_rows)

    def captions(self, row: int) -> Sequence[str]:
        return self._rows[row][1]

    def image(self, row: int) -> Pixels:
        image: SelectionImage = self._rows[row][0]
        if image.scene is not None or image.path is None:
            if image.scene is None:
                raise TypeError("an image without a path and a scene")
            return draw_image(image.scene)
        pixels = self._read(image.path)
        if image.box is None:
            return pixels
        x, y, width, height = image.box
        cut = pixels[max(y, 0) : y + height, max(x, 0) : x + width]
        return cut if cut.size else pixels  # a box beside the image means nothing


def evaluate_selection(
    model: TCL,
    spec: ExperimentSpec,
    split: Split,
    *,
    settings: SelectionSpec,
    tokenizer: CaptionTokenizer,
    device: torch.device,
) -> Evaluation:
    """As `EvaluationTask.evaluate`, with the settings of the task."""
    items = items_of(settings.data_of(split), split, key=f"evaluation.selection.{split}")
    images = EvaluationSet(_Rows(items, spec), spec.data, image_size=spec.model.image_encoder.image_size)
    mine = my_part(torch.arange(images.num_images)).tolist()
    parts: list[Tensor] = []
    done = 0
    with torch.no_grad(), evaluating(model), autocast(device, spec.training.precision):
        for batch in images.image_batches(mine, batch_size=settings.batch_size) if mine else ():
            numbers = mine[done : done + len(batch)]
            done += len(batch)
            parts.append(_scores(model, spec, images, batch.to(device), numbers, tokenizer=tokenizer).cpu())
        scores = gather_parts(torch.cat(parts) if parts else None, torch.device("cpu"))
    cosine, matching = scores.unbind(dim=1)
    # What a model has no head, or no embeddings, for is scored by the other.
    kinds = {"": cosine if matching.isnan().all() else matching, "dual/": matching if cosine.isnan().all() else cosine}
    require_finite(torch.stack(list(kinds.values())), "score of a caption")
    found = {prefix: _verdicts(items, own) for prefix, own in kinds.items()}
    metrics = {
        f"{prefix}{name}": 100.0 * float(np.mean(values)) for prefix, own in found.items() for name, values in own.items()
    }
    chance = [1.0 / len(item.captions) if len(item.images) == 1 else 1 / 6 for item in items]
    queries = Queries(fingerprint([(item.captions, item.category) for item in items]), list(range(len(items))))
    outcomes = {f"{prefix}accuracy": Outcome(queries, own["accuracy"]) for prefix, own in found.items()}
    metrics |= {"chance": 100.0 * float(np.mean(chance)), "num_items": float(len(items))}
    return Evaluation(metrics, partial(_examples, items, images, scores, found[""]["accuracy"]), outcomes)


def _scores(
    model: TCL,
    spec: ExperimentSpec,
    images: EvaluationSet,
    batch: Tensor,
    numbers: Sequence[int],
    *,
    tokenizer: CaptionTokenizer,
) -> Tensor:
    """[C, 2] cosine similarity and matching logit of every caption with its image, NaN for what the model lacks."""
    first, last = np.searchsorted(images.image_of_caption, [numbers[0], numbers[-1] + 1]).tolist()
    ids, mask = (one.to(batch.device) for one in images.encode_captions(tokenizer, range(first, last)))
    rows = torch.from_numpy(images.image_of_caption[first:last] - numbers[0]).to(batch.device)
    online = model.online
    seen, said = online.encode_image(normalise(batch, spec.data.normalization)), online.encode_text(ids, mask)
    missing = torch.full((last - first,), torch.nan, device=batch.device)
    cosine = missing if seen.embedding is None or said.embedding is None else (said.embedding * seen.embedding[rows]).sum(dim=1)
    matching = missing
    if (head := model.head("itm")) is not None and isinstance(online.fusion_encoder, FusionEncoder):
        matching = head(online.fuse(said.tokens, mask, seen.tokens, image_rows=rows)[:, 0])[:, 1]
    return torch.stack([cosine.float(), matching.float()], dim=1)


def _verdicts(items: Sequence[SelectionItem], scores: Tensor) -> dict[str, list[float]]:
    """Of each item whether the choice is right, ties being wrong; of pairs of images Winoground's scores, too."""
    values, place = scores.tolist(), 0
    found: dict[str, list[float]] = {"accuracy": []}
    for item in items:
        num = len(item.captions)
        table = [values[place + num * row : place + num * (row + 1)] for row in range(len(item.images))]
        place += num * len(item.images)
        if len(table) == 1:
            found["accuracy"].append(float(table[0][0] > max(table[0][1:])))
            continue
        (a, b), (c, d) = table  # rows are images, columns captions
        text, image = a > b and d > c, a > c and d > b
        for name, right in (("text_score", text), ("image_score", image), ("group_score", text and image)):
            found.setdefault(name, []).append(float(right))
        found["accuracy"].append(float(text and image))
    return found


def _examples(items: Sequence[SelectionItem], images: EvaluationSet, scores: Tensor, right: Sequence[float]) -> dict[str, Any]:
    """Each category's accuracy in percent, and `JudgedItems`: a few images with their captions, the best first."""
    by_category: dict[str, list[float]] = {}
    for item, one in zip(items, right, strict=True):
        by_category.setdefault(item.category, []).append(one)
    by_matching = not scores[:, 1].isnan().all()
    own = scores[:, 1] if by_matching else scores[:, 0]
    starts = np.searchsorted(images.image_of_caption, np.arange(images.num_images))
    row_of_item = np.cumsum([0, *(len(item.images) for item in items)])
    shown, pictures = [], {}
    for number in spaced(len(items), NUM_SHOWN):
        item, row = items[number], int(row_of_item[number])
        told = [(text, float(own[int(starts[row]) + place])) for place, text in enumerate(item.captions)]
        answers = [{"text": text, "score": score} for text, score in sorted(told, key=lambda one: -one[1])]
        shown.append(
            {"images": [row], "text": item.category.replace("_", " "), "right": [item.captions[0]], "answers": answers}
        )
        pictures[str(row)] = jpeg(small(images.image(row)))
    categories = {name: {"num_items": len(one), "accuracy": 100.0 * float(np.mean(one))} for name, one in by_category.items()}
    return {"categories": categories, "score": "ITM" if by_matching else "cos", "items": shown, "pictures": pictures}
