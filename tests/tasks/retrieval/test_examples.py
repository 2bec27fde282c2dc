"""Promises of kept examples: the order and ranks that the figures count, and images that are the set's own."""

from __future__ import annotations

import base64
from typing import Any, NamedTuple

import numpy as np
import pytest
import simplejpeg
import torch

from tclx.data.batch import normalise
from tclx.data.dataset import training_captions
from tclx.data.tokenizer import CaptionTokenizer, build_tokenizer
from tclx.model.tcl import TCL
from tclx.spec.experiment import ExperimentSpec
from tclx.tasks.retrieval import examples
from tclx.tasks.retrieval.evaluation import RetrievalEvaluation, evaluate_retrieval, reranked_scores
from tclx.tasks.retrieval.examples import NUM_EXPLAINED, NUM_RESULTS, choose_examples, examples_of
from tclx.tasks.thumbnails import spaced, warmed
from tests.train.toy import toy_spec


class Evaluated(NamedTuple):
    model: TCL
    spec: ExperimentSpec
    tokenizer: CaptionTokenizer
    evaluation: RetrievalEvaluation

    def examples(self) -> dict[str, Any]:
        return examples_of(self.evaluation, self.model, self.spec, tokenizer=self.tokenizer)


KEYS = {"text_to_image": "image", "image_to_text": "caption"}


def evaluated(**changes: Any) -> Evaluated:
    spec = toy_spec(**{"evaluation.retrieval": {"top_k": 6, "batch_size": 4}, **changes})
    tokenizer = build_tokenizer(spec.data.tokenizer, training_captions(spec.data))
    torch.manual_seed(0)
    model = TCL(spec, vocab_size=tokenizer.vocab_size, pad_token_id=tokenizer.pad_id)
    with torch.no_grad():  # spread the scores
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    settings = spec.evaluation.retrieval
    assert settings is not None
    found = evaluate_retrieval(model, spec, "test", settings=settings, tokenizer=tokenizer, device=torch.device("cpu"))
    return Evaluated(model, spec, tokenizer, found)


@pytest.fixture(scope="module")
def whole() -> Evaluated:
    return evaluated()


@pytest.fixture(scope="module")
def reranked(whole: Evaluated) -> RetrievalEvaluation:
    return whole.evaluation


def expected(found: RetrievalEvaluation, direction: str, row: int, right: list[int]) -> tuple[int, list[int]]:
    """The rank of the best right key and the best keys, from one row of the whole matrix, slowly."""
    num_keys = found.source.num_images if direction == "text_to_image" else found.source.num_captions
    scores = reranked_scores(found.found, direction=direction, queries=slice(row, row + 1), num_keys=num_keys)[0].tolist()
    order = sorted(range(num_keys), key=lambda key: (scores[key], key), reverse=True)
    return min(order.index(key) for key in right) + 1, order[:NUM_RESULTS]


@pytest.mark.parametrize("direction", list(KEYS))
def test_order_and_rank_are_those_that_the_figures_count(
    reranked: RetrievalEvaluation, direction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examples, "NUM_CAPTION_QUERIES", 30)
    monkeypatch.setattr(examples, "NUM_IMAGE_QUERIES", 6)
    queries = choose_examples(reranked)[direction]
    image_of_caption = reranked.source.image_of_caption.tolist()
    for row, query in enumerate(queries):
        if direction == "image_to_text":
            right = [caption for caption, image in enumerate(image_of_caption) if image == query["image"]]
        else:
            right = [query["right_image"]]
            assert query["text"] == reranked.source.captions[row]
        rank, best = expected(reranked, direction, row, right)
        assert query["rank"] == rank
        assert [result[KEYS[direction]] for result in query["results"]] == best
        assert [result["right"] for result in query["results"]] == [key in right for key in best]
    within_five = 100 * sum(query["rank"] <= 5 for query in queries) / len(queries)
    assert within_five == pytest.approx(reranked.metrics[f"{direction}/r5"])


def test_without_a_matching_head_the_similarity_decides() -> None:
    found = evaluated(**{"objectives.itm": None}).evaluation
    for direction in KEYS:
        for query in choose_examples(found)[direction]:
            similarities = [result["similarity"] for result in query["results"]]
            assert similarities == sorted(similarities, reverse=True)
            assert all(result["score"] is None for result in query["results"])
            ranks = [number for number, result in enumerate(query["results"], 1) if result["right"]]
            assert query["rank"] == min(ranks, default=query["rank"])


def test_images_are_the_sets_own_and_small(reranked: RetrievalEvaluation) -> None:
    kept = choose_examples(reranked)
    named = {result["image"] for query in kept["text_to_image"] for result in query["results"]}
    named |= {query["right_image"] for query in kept["text_to_image"]} | {query["image"] for query in kept["image_to_text"]}
    assert {int(number) for number in kept["pictures"]} == named
    for number, encoded in kept["pictures"].items():
        image = simplejpeg.decode_jpeg(base64.b64decode(encoded), colorspace="RGB")
        original = reranked.source.image(int(number))
        assert image.shape == original.shape
        assert np.abs(image.astype(int) - original.astype(int)).mean() < 8


def test_queries_stand_at_equal_distances_and_never_twice() -> None:
    assert spaced(100, 4) == [12, 37, 62, 87]
    assert spaced(3, 8) == [0, 1, 2]
    assert spaced(0, 8) == []


def test_every_pair_is_counted_once_by_its_similarity(whole: Evaluated) -> None:
    kept = whole.examples()["similarity"]
    source, model = whole.evaluation.source, whole.model.eval()
    with torch.no_grad():
        (images,) = source.image_batches(batch_size=source.num_images)
        embedded = model.online.encode_image(normalise(images, whole.spec.data.normalization)).embedding
        captions = model.online.encode_text(*source.encode_captions(whole.tokenizer)).embedding
    belongs = torch.from_numpy(source.image_of_caption)[:, None] == torch.arange(source.num_images)
    similarity = captions @ embedded.T
    for kind, chosen in (("matched", similarity[belongs]), ("unmatched", similarity[~belongs])):
        counts, _ = np.histogram(chosen.numpy(), bins=kept["edges"])
        assert np.abs(np.subtract(counts, kept[kind])).sum() <= 4  # a value on an edge may fall on either side
        assert sum(kept[kind]) == chosen.numel()
    assert (kept["edges"][0], kept["edges"][-1], len(kept["edges"])) == (-1, 1, 101)


def test_every_word_of_a_few_captions_has_its_image(whole: Evaluated) -> None:
    kept = whole.examples()
    assert [explained["caption"] for explained in kept["attention"]] == [
        query["caption"] for query in kept["text_to_image"][:NUM_EXPLAINED]
    ]
    for explained in kept["attention"]:
        assert explained["image"] == whole.evaluation.source.image_of_caption[explained["caption"]]
        words = [word["word"] for word in explained["words"]]
        assert words, "a caption has words"
        assert words == explained["text"].split()[: len(words)]  # the rest is cut off
        original = whole.evaluation.source.image(explained["image"])
        for word in explained["words"]:
            assert simplejpeg.decode_jpeg(base64.b64decode(word["picture"])).shape == original.shape


def test_without_a_fusion_encoder_there_is_nothing_to_look_through() -> None:
    found = evaluated(**{"objectives.itm": None, "objectives.mlm": None})
    assert found.examples()["attention"] == []


def test_a_warm_place_is_where_the_map_says() -> None:
    bare = np.full((32, 32, 3), 100, np.uint8)
    attention = torch.zeros(4, 4)
    attention[1, 2] = 0.003
    changed = np.abs(warmed(bare, attention).astype(int) - bare).sum(axis=2)
    assert changed[8:16, 16:24].mean() > 100
    assert changed[24:, :8].max() < 10
    assert (warmed(bare, torch.zeros(4, 4)) == bare).all()
