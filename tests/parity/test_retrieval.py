"""The official retrieval evaluation, number by number: score matrices and recalls recorded with the published script."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tclx.tasks.retrieval.evaluation import UNSCORED, Captions, Retrieval, figures_of, ranks_of, reranked_scores, retrieve
from tclx.tasks.retrieval.ranks import retrieval_metrics
from tests.parity.official import tiny_model, tiny_spec

BATCH_SIZE = 2

OFFICIAL_NAMES = {
    "txt_r1": "image_to_text/r1",
    "txt_r5": "image_to_text/r5",
    "txt_r10": "image_to_text/r10",
    "img_r1": "text_to_image/r1",
    "img_r5": "text_to_image/r5",
    "img_r10": "text_to_image/r10",
    "r_mean": "r_mean",
}


class Recorded:
    """The recorded evaluation set, scores and figures."""

    def __init__(self, shared: Path) -> None:
        tensors = load_file(shared / "parity" / "extras.safetensors")
        extras = json.loads((shared / "parity" / "extras.json").read_text())
        self.images = tensors["reteval/images"]
        owners = {caption: int(image) for image, captions in extras["retrieval_eval_img2txt"].items() for caption in captions}
        self.captions = Captions(
            tensors["reteval/text_ids"],
            tensors["reteval/text_att"].bool(),
            torch.tensor([owners[caption] for caption in range(len(owners))]),
        )
        self.scores = {"image_to_text": tensors["reteval/score_i2t"], "text_to_image": tensors["reteval/score_t2i"]}
        self.figures = extras["retrieval_eval_metrics"]
        self.top_k = int((self.scores["image_to_text"][0] > UNSCORED).sum())

    def image_batches(self, numbers: Sequence[int]) -> Iterator[Tensor]:
        """The recorded images, normalised already."""
        for rows in torch.tensor(numbers).split(BATCH_SIZE):
            yield self.images[rows]


@pytest.fixture(scope="module")
def recorded(shared: Path) -> Recorded:
    return Recorded(shared)


@pytest.fixture(scope="module")
def found(shared: Path, recorded: Recorded) -> Retrieval:
    model = tiny_model(shared, tiny_spec(form="retrieval"), initial="retrieval_init")
    return retrieve(
        model,
        image_batches=recorded.image_batches,
        num_images=len(recorded.images),
        captions=recorded.captions,
        top_k=recorded.top_k,
        batch_size=BATCH_SIZE,
    )


@pytest.mark.parametrize("direction", ["image_to_text", "text_to_image"])
def test_scores_equal_the_official_ones(recorded: Recorded, found: Retrieval, direction: str) -> None:
    expected = recorded.scores[direction]
    scores = reranked_scores(found, direction=direction, queries=slice(None), num_keys=expected.shape[1])
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=0)


def test_figures_equal_the_official_ones(recorded: Recorded, found: Retrieval) -> None:
    figures = figures_of(ranks_of(found, num_images=len(recorded.images)))
    assert {name: figures[ours] for name, ours in OFFICIAL_NAMES.items()} == pytest.approx(
        {name: recorded.figures[name] for name in OFFICIAL_NAMES}
    )


def test_figures_of_the_official_scores_equal_the_official_ones(recorded: Recorded) -> None:
    figures = retrieval_metrics(
        recorded.scores["image_to_text"], recorded.scores["text_to_image"], image_of_caption=recorded.captions.image_of_caption
    )
    assert {name: figures[ours] for name, ours in OFFICIAL_NAMES.items()} == pytest.approx(
        {name: recorded.figures[name] for name in OFFICIAL_NAMES}
    )
