"""Promises of retrieval evaluation: chunks, padding, modes and processes change nothing, and every pair is matched once."""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tclx.errors import InputError, RunFailed
from tclx.model.tcl import TCL
from tclx.spec.experiment import ExperimentSpec
from tclx.tasks.retrieval.evaluation import UNSCORED, Captions, Retrieval, figures_of, ranks_of, reranked_scores, retrieve
from tclx.tasks.retrieval.ranks import retrieval_metrics

NUM_IMAGES, SIZE, VOCABULARY = 7, 16, 40


def tiny_spec(**objectives: Any) -> ExperimentSpec:
    sections = {
        "name": "tiny",
        "seed": 3,
        "model": {
            "image_encoder": {
                "name": "vit_tiny_patch16_224",
                "image_size": SIZE,
                "patch_size": 8,
                "width": 16,
                "depth": 1,
                "num_heads": 2,
            },
            "text_encoder": {
                "sizes": {"width": 16, "num_heads": 2, "intermediate_size": 32, "max_positions": 30},
                "num_layers": 1,
            },
            "fusion_encoder": {"num_layers": 1},
            "embed_dim": 8,
            "queue_size": 8,
        },
        "objectives": objectives or {"cma": {}, "itm": {}},
        "data": {"train": {"source": "scenes", "num_images": 8, "split": "train", "picture_size": SIZE}},
        "optim": {"learning_rate": 1e-3},
        "training": {"steps": 1, "batch_size_per_gpu": 4},
    }
    return ExperimentSpec.model_validate_json(json.dumps(sections))


def tiny_model(**objectives: Any) -> TCL:
    model = TCL(tiny_spec(**objectives), vocab_size=VOCABULARY, pad_token_id=0)
    with torch.no_grad():  # spread the scores, so that rounding cannot reorder them
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(NUM_IMAGES, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def captions() -> Captions:
    """Two captions an image, shuffled, of lengths 2 to 9 in 12 columns."""
    generator = torch.Generator().manual_seed(1)
    owner = torch.arange(NUM_IMAGES).repeat(2)[torch.randperm(2 * NUM_IMAGES, generator=generator)]
    lengths = torch.randint(2, 10, (len(owner), 1), generator=generator)
    mask = torch.arange(12) < lengths
    ids = torch.randint(5, VOCABULARY, mask.shape, generator=generator) * mask
    return Captions(ids, mask, owner)


def evaluate(
    model: TCL, images: Tensor, captions: Captions, *, top_k: int = 3, batch_size: int = 4, **options: Any
) -> Retrieval:
    def image_batches(numbers: Sequence[int]) -> Iterator[Tensor]:
        for rows in torch.tensor(numbers).split(batch_size):
            yield images[rows]

    return retrieve(
        model,
        image_batches=image_batches,
        num_images=len(images),
        captions=captions,
        top_k=top_k,
        batch_size=batch_size,
        **options,
    )


@torch.no_grad()
def slow_scores(model: TCL, images: Tensor, captions: Captions) -> tuple[Tensor, Tensor]:
    """[I, T] cosine similarity and ITM logits, one pair at a time, without padding."""
    model.eval()
    similarity, matching = (torch.zeros(len(images), len(captions.input_ids)) for _ in range(2))
    for column, (ids, mask) in enumerate(zip(captions.input_ids, captions.attention_mask, strict=True)):
        text = model.online.encode_text(ids[mask][None], mask[mask][None])
        for row, one in enumerate(images):
            image = model.online.encode_image(one[None])
            assert image.embedding is not None
            assert text.embedding is not None
            similarity[row, column] = (image.embedding * text.embedding).sum()
            assert model.online.fusion_encoder is not None
            head = model.head("itm")
            assert head is not None
            keys_values = model.online.fusion_encoder.keys_values(image.tokens)
            states = model.online.fusion_encoder(text.tokens, mask[mask][None], keys_values)
            matching[row, column] = head(states[:, 0])[0, 1]
    return similarity, matching


def test_scores_and_figures_equal_one_pair_at_a_time(images: Tensor, captions: Captions) -> None:
    model = tiny_model()
    similarity, matching = slow_scores(model, images, captions)
    found = evaluate(model, images, captions, top_k=3)
    expected = {
        "image_to_text": torch.full_like(matching, UNSCORED),
        "text_to_image": torch.full_like(matching.T, UNSCORED),
    }
    for rows, scores, full in (
        (similarity, expected["image_to_text"], matching),
        (similarity.T, expected["text_to_image"], matching.T),
    ):
        best = rows.topk(3, dim=1).indices
        scores.scatter_(1, best, full.gather(1, best))
    for direction, scores in expected.items():
        ours = reranked_scores(found, direction=direction, queries=slice(None), num_keys=scores.shape[1])
        torch.testing.assert_close(ours, scores, atol=1e-4, rtol=1e-4)
    figures = figures_of(ranks_of(found, num_images=NUM_IMAGES))
    reranked = retrieval_metrics(**expected, image_of_caption=captions.image_of_caption)
    dual = retrieval_metrics(similarity, similarity.T, image_of_caption=captions.image_of_caption)
    assert figures == pytest.approx({**reranked, **{f"dual/{name}": value for name, value in dual.items()}})


@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_batch_size_changes_no_score(
    images: Tensor, captions: Captions, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model()
    expected = evaluate(model, images, captions)
    monkeypatch.setattr("tclx.tasks.retrieval.evaluation.DEFAULT_CHUNK", 2)
    found = evaluate(model, images, captions, batch_size=batch_size)
    torch.testing.assert_close(found.pair_ids, expected.pair_ids)
    torch.testing.assert_close(found.pair_scores, expected.pair_scores, atol=1e-5, rtol=1e-5)
    assert figures_of(ranks_of(found, num_images=NUM_IMAGES)) == figures_of(ranks_of(expected, num_images=NUM_IMAGES))


@pytest.mark.parametrize("least", [0.0, 0.5])
def test_pairs_grouped_by_image_score_as_pairs_with_copies_of_it(
    images: Tensor, captions: Captions, least: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All in grids, however empty, or some, against none."""
    model = TCL(tiny_spec(), vocab_size=VOCABULARY, pad_token_id=0)
    monkeypatch.setattr("tclx.model.fusion.LEAST_SHARE_USED", 2.0)
    expected = evaluate(model, images, captions)
    monkeypatch.setattr("tclx.model.fusion.LEAST_SHARE_USED", least)
    torch.testing.assert_close(evaluate(model, images, captions).pair_scores, expected.pair_scores, atol=1e-6, rtol=1e-6)


def test_padding_changes_no_score(images: Tensor, captions: Captions) -> None:
    model = tiny_model()
    expected = evaluate(model, images, captions)
    padded = captions._replace(
        input_ids=nn.functional.pad(captions.input_ids, (0, 4)),
        attention_mask=nn.functional.pad(captions.attention_mask, (0, 4)),
    )
    torch.testing.assert_close(evaluate(model, images, padded).pair_scores, expected.pair_scores, atol=1e-6, rtol=1e-6)


def test_every_candidate_pair_is_matched_once(images: Tensor, captions: Captions) -> None:
    found = evaluate(tiny_model(), images, captions, top_k=1000)
    assert found.pair_ids is not None
    assert found.pair_ids.tolist() == list(range(NUM_IMAGES * 2 * NUM_IMAGES))


def test_without_itm_the_plain_figures_are_the_dual_encoders(images: Tensor, captions: Captions) -> None:
    found = evaluate(tiny_model(cma={}), images, captions)
    assert found.pair_scores is None
    figures = figures_of(ranks_of(found, num_images=NUM_IMAGES))
    assert all(figures[f"dual/{name}"] == value for name, value in figures.items() if not name.startswith("dual/"))


def test_evaluating_leaves_modes_and_random_state_as_they_were(images: Tensor, captions: Captions) -> None:
    model = tiny_model()
    model.train()
    model.online.text_encoder.eval()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    evaluate(model, images, captions)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)


def test_a_diverged_model_is_refused_not_scored(images: Tensor, captions: Captions) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.online.text_encoder.get_parameter(next(iter(dict(model.online.text_encoder.named_parameters())))).fill_(torch.nan)
    with pytest.raises(RunFailed, match="not finite"):
        evaluate(model, images, captions)


def test_a_model_without_a_common_space_is_refused(images: Tensor, captions: Captions) -> None:
    with pytest.raises(InputError, match=r"objectives\.cma"):
        evaluate(tiny_model(itm={}), images, captions)


def test_bf16_stays_close_and_keeps_its_tokens_small(images: Tensor, captions: Captions) -> None:
    model = tiny_model()
    full = evaluate(model, images, captions, top_k=100)
    half = evaluate(model, images, captions, top_k=100, precision="bf16")
    assert full.pair_scores is not None
    assert half.pair_scores is not None
    assert (full.pair_scores - half.pair_scores).abs().max() < 0.1 * full.pair_scores.abs().max()


@pytest.mark.parametrize("world_size", [2, 20])
def test_processes_share_the_work_and_agree(
    images: Tensor, captions: Captions, world_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads play the processes; with 20 of them some have no image to encode."""
    model = tiny_model()
    expected = evaluate(model, images, captions)
    me = threading.local()
    meeting = threading.Barrier(world_size, timeout=30)
    sent: dict[int, Any] = {}

    def gather(value: object) -> list[object]:
        sent[me.rank] = value
        meeting.wait()
        values = [sent[rank] for rank in range(world_size)]
        meeting.wait()
        return values

    def play(rank: int) -> Retrieval:
        me.rank = rank
        return evaluate(copy.deepcopy(model), images, captions)

    monkeypatch.setattr("tclx.distributed.world_size", lambda: world_size)
    monkeypatch.setattr("tclx.distributed.rank", lambda: me.rank)
    monkeypatch.setattr("tclx.distributed.all_gather_object", gather)
    with ThreadPoolExecutor(world_size) as processes:
        found = list(processes.map(play, range(world_size)))
    for one in found:
        assert figures_of(ranks_of(one, num_images=NUM_IMAGES)) == figures_of(ranks_of(expected, num_images=NUM_IMAGES))
        torch.testing.assert_close(one.pair_scores, expected.pair_scores, atol=1e-5, rtol=1e-5)
