"""What does a model find, and where does it look? A few queries with their best answers and small images, for people.

The queries stand at equal distances through the split, so nobody picked them, and runs on the same data show the same ones.
Images are kept as small JPEG files inside the JSON: a report, or an upload, then needs neither the data nor torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tclx.tasks.retrieval.attention import AttentionMaps, attention_maps
from tclx.tasks.retrieval.evaluation import Retrieval, RetrievalEvaluation, Shortlist, reranked_scores
from tclx.tasks.retrieval.ranks import rank_of_best_relevant
from tclx.tasks.thumbnails import jpeg, small, spaced, warmed

if TYPE_CHECKING:
    from tclx.data.dataset import EvaluationSet
    from tclx.data.tokenizer import CaptionTokenizer
    from tclx.model.tcl import TCL
    from tclx.spec.experiment import ExperimentSpec

NUM_CAPTION_QUERIES, NUM_IMAGE_QUERIES = 8, 4
NUM_RESULTS = 5
NUM_EXPLAINED = 3
"""Captions whose words are followed into the image: the first of those that ask."""
MOST_WORDS = 12


def examples_of(
    evaluation: RetrievalEvaluation, model: TCL, spec: ExperimentSpec, *, tokenizer: CaptionTokenizer
) -> dict[str, Any]:
    """What people look at of an evaluation: queries and what they find, how similar pairs are, what words look at.

    Args:
        evaluation: of this model on one split of this spec.

    Returns:
        JSON. What `choose_examples` returns, and

        - `similarity`: `edges`, [bins + 1] cosine similarities, and how many pairs of captions and images lie between two of
          them, `matched` and `unmatched`, [bins] each.
        - `attention`: for a few captions their number `caption`, `text`, `image`, ITM `score` (null without a matching head)
          and `words`: each a `word` and its `image`, base64 of a JPEG, warmest where the word looks most
          (`tclx.tasks.retrieval.attention`). Empty without a fusion encoder.

    Raises:
        RunFailed: an image cannot be read.
    """
    counts = evaluation.found.similarity_counts.tolist()
    edges = torch.linspace(-1, 1, len(counts[0]) + 1).tolist()
    examples = choose_examples(evaluation)
    captions = [query["caption"] for query in examples["text_to_image"][:NUM_EXPLAINED]]
    maps = attention_maps(model, spec, evaluation.source, captions, tokenizer=tokenizer)
    return {
        **examples,
        "similarity": {"edges": [round(edge, 4) for edge in edges], "matched": counts[0], "unmatched": counts[1]},
        "attention": [_explained(evaluation.source, found) for found in maps],
    }


def choose_examples(evaluation: RetrievalEvaluation) -> dict[str, Any]:
    """Some queries of both directions and what they find.

    Returns:
        JSON: `text_to_image` and `image_to_text`, each a list of queries: `caption` (and its `text`) or `image`; `rank` from 1
        of the best right answer; `results`, best first, each an `image` or a `caption` (and its `text`) with its cosine
        `similarity`, its ITM `score` (the logit of "matched", null without an ITM head) and whether it is `right`.
        `images`: number -> base64 of a JPEG, of every image named.

    Raises:
        RunFailed: an image cannot be read.
    """
    found, source = evaluation.found, evaluation.source
    captions = [_caption_query(found, source, query) for query in spaced(source.num_captions, NUM_CAPTION_QUERIES)]
    images = [_image_query(found, source, row) for row in spaced(len(found.image_queries), NUM_IMAGE_QUERIES)]
    shown = {result["image"] for query in captions for result in query["results"]}
    shown |= {query["right_image"] for query in captions} | {query["image"] for query in images}
    return {
        "text_to_image": captions,
        "image_to_text": images,
        "pictures": {str(number): jpeg(small(source.image(number))) for number in sorted(shown)},
    }


def _caption_query(found: Retrieval, source: EvaluationSet, caption: int) -> dict[str, Any]:
    image = int(found.image_of_caption[caption])
    right = torch.arange(source.num_images, device=found.image_of_caption.device) == image
    rank, results = _answers(found, "text_to_image", caption, right)
    answers = [{"image": number, **facts} for number, facts in results]
    return {"caption": caption, "text": source.captions[caption], "right_image": image, "rank": rank, "results": answers}


def _image_query(found: Retrieval, source: EvaluationSet, row: int) -> dict[str, Any]:
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
        # The best first, equal scores by falling number, as the metrics rank them.
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


def _explained(source: EvaluationSet, found: AttentionMaps) -> dict[str, Any]:
    image = int(source.image_of_caption[found.caption])
    pixels = small(source.image(image))
    said = [word for word in found.words if any(letter.isalnum() for letter in word.text)]
    words = [{"word": word.text, "picture": jpeg(warmed(pixels, word.map))} for word in said[:MOST_WORDS]]
    text = source.captions[found.caption]
    return {"caption": found.caption, "text": text, "image": image, "score": found.score, "words": words}
