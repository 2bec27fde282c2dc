"""What does a model find? A few queries with their best answers and small pictures, for people to look at.

The queries stand at equal distances through the split, so nobody picked them, and runs on the same data show the same ones.
Pictures are kept as small JPEG files inside the JSON: a report then needs neither the data nor torch.
"""

from __future__ import annotations

import base64
from typing import Any

import cv2
import simplejpeg
import torch
from torch import Tensor

from tclx.data.dataset import EvaluationSet
from tclx.data.images import Picture
from tclx.eval.metrics import rank_of_best_relevant
from tclx.eval.retrieval import Evaluation, Retrieval, Shortlist, reranked_scores

NUM_CAPTION_QUERIES, NUM_PICTURE_QUERIES = 8, 4
NUM_RESULTS = 5
LARGEST_SIDE = 112
"""Pixels of a kept picture: legible on a phone, about 4 kB each."""
JPEG_QUALITY = 85


def choose_examples(evaluation: Evaluation) -> dict[str, Any]:
    """Some queries of both directions and what they find.

    Returns:
        JSON: `text_to_image` and `image_to_text`, each a list of queries: `caption` (and its `text`) or `image`; `rank` from 1
        of the best right answer; `results`, best first, each an `image` or a `caption` (and its `text`) with its cosine
        `similarity`, its ITM `score` (the logit of "matched", null without an ITM head) and whether it is `right`.
        `pictures`: number -> base64 of a JPEG, of every image named.

    Raises:
        RunFailed: a picture cannot be read.
    """
    found, source = evaluation.found, evaluation.source
    captions = [_caption_query(found, source, query) for query in _spaced(source.num_captions, NUM_CAPTION_QUERIES)]
    pictures = [_picture_query(found, source, row) for row in _spaced(len(found.image_queries), NUM_PICTURE_QUERIES)]
    shown = {result["image"] for query in captions for result in query["results"]}
    shown |= {query["right_image"] for query in captions} | {query["image"] for query in pictures}
    return {
        "text_to_image": captions,
        "image_to_text": pictures,
        "pictures": {str(number): _jpeg(source.image(number)) for number in sorted(shown)},
    }


def _spaced(length: int, count: int) -> list[int]:
    """At most `count` different numbers below `length`, at equal distances."""
    return sorted({(2 * index + 1) * length // (2 * count) for index in range(count)}) if length else []


def _caption_query(found: Retrieval, source: EvaluationSet, caption: int) -> dict[str, Any]:
    image = int(found.image_of_caption[caption])
    right = torch.arange(source.num_images, device=found.image_of_caption.device) == image
    rank, results = _answers(found, "text_to_image", caption, right)
    answers = [{"image": number, **facts} for number, facts in results]
    return {"caption": caption, "text": source.captions[caption], "right_image": image, "rank": rank, "results": answers}


def _picture_query(found: Retrieval, source: EvaluationSet, row: int) -> dict[str, Any]:
    image = int(found.image_queries[row])
    rank, results = _answers(found, "image_to_text", row, found.image_of_caption == image)
    answers = [{"caption": number, "text": source.captions[number], **facts} for number, facts in results]
    return {"image": image, "rank": rank, "results": answers}


def _answers(found: Retrieval, direction: str, row: int, right: Tensor) -> tuple[int, list[tuple[int, dict[str, Any]]]]:
    """The rank from 1 of the best right key, and the best keys with what is known of each."""
    shortlist: Shortlist = getattr(found, direction)
    candidates = shortlist.candidates[row]
    similarities = dict(zip(candidates.tolist(), shortlist.similarities[row].tolist(), strict=True))
    if found.pair_scores is None:
        order, scores, rank = candidates.tolist(), None, int(shortlist.ranks[row])
    else:
        scores = reranked_scores(found, direction=direction, queries=slice(row, row + 1), num_keys=len(right))
        rank = int(rank_of_best_relevant(scores, right[None]))
        scores = scores[0]
        # The best first, equal scores by falling number, as the figures rank them.
        order = sorted(similarities, key=lambda key: (float(scores[key]), key), reverse=True)
    return rank + 1, [
        (
            key,
            {
                "similarity": similarities[key],
                "score": None if scores is None else float(scores[key]),
                "right": bool(right[key]),
            },
        )
        for key in order[:NUM_RESULTS]
    ]


def _jpeg(picture: Picture) -> str:
    """Base64 of a JPEG of [S, S, 3] uint8 RGB; larger pictures are made smaller."""
    side = min(LARGEST_SIDE, picture.shape[0])
    small = cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA)
    return base64.b64encode(simplejpeg.encode_jpeg(small, quality=JPEG_QUALITY, colorsubsampling="444")).decode()
