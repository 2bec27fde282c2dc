"""Promises of attention maps: they are Grad-CAM of the matching score, of the caption's own image, and disturb nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tclx.data.batch import normalise
from tclx.data.dataset import EvaluationSet, open_evaluation_set, training_captions
from tclx.data.tokenizer import CaptionTokenizer, build_tokenizer
from tclx.model.fusion import CrossAttention
from tclx.model.tcl import TCL
from tclx.spec.experiment import ExperimentSpec
from tclx.tasks.retrieval import attention
from tclx.tasks.retrieval.attention import attention_maps
from tests.train.toy import toy_spec

Parts = tuple[TCL, ExperimentSpec, EvaluationSet, CaptionTokenizer]


@pytest.fixture
def parts() -> Parts:
    return made()


def made(**changes: object) -> Parts:
    spec = toy_spec(**changes)
    tokenizer = build_tokenizer(spec.data.tokenizer, training_captions(spec.data))
    torch.manual_seed(0)
    model = TCL(spec, vocab_size=tokenizer.vocab_size, pad_token_id=tokenizer.pad_id)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model, spec, open_evaluation_set(spec, "test"), tokenizer


def test_maps_have_the_grid_and_the_words_of_each_caption(parts: Parts) -> None:
    model, spec, source, tokenizer = parts
    found = attention_maps(model, spec, source, [0, 5], tokenizer=tokenizer)
    assert [each.caption for each in found] == [0, 5]
    for each in found:
        words = [word.text for word in each.words]
        assert words, "a caption has words"
        assert words == source.captions[each.caption].split()[: len(words)]  # the rest is cut off
        for word in each.words:
            assert word.map.shape == model.online.image_encoder.grid
            assert (word.map >= 0).all()


def test_a_caption_has_the_same_maps_alone_and_beside_others(parts: Parts) -> None:
    model, spec, source, tokenizer = parts
    together = attention_maps(model, spec, source, [5, 0], tokenizer=tokenizer)
    (alone,) = attention_maps(model, spec, source, [5], tokenizer=tokenizer)
    assert together[0].score == pytest.approx(alone.score, rel=1e-4)
    for one, other in zip(together[0].words, alone.words, strict=True):
        torch.testing.assert_close(one.map, other.map, rtol=1e-3, atol=1e-7)


def test_a_map_says_how_much_the_score_rises_with_a_weight(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    model, spec, source, tokenizer = parts
    model.double()
    monkeypatch.setattr(attention, "normalise", lambda *inputs: normalise(*inputs).double())
    heads, plain = 2, CrossAttention.weights
    (found,) = attention_maps(model, spec, source, [3], tokenizer=tokenizer)
    words = tokenizer.words(source.captions[3], max_tokens=spec.data.max_caption_tokens)
    word, token = next((number, word.places[0]) for number, word in enumerate(words) if len(word.places) == 1)
    place = int(found.words[word].map.flatten().argmax())
    raised = 0.0
    for head in range(heads):
        seen: dict[str, float] = {}

        def nudged(
            self: CrossAttention, *inputs: torch.Tensor, head: int = head, seen: dict[str, float] = seen
        ) -> torch.Tensor:
            weights = plain(self, *inputs)
            seen["weight"] = float(weights[0, head, token, place + 1].detach())
            weights[0, head, token, place + 1] += 1e-4
            return weights

        monkeypatch.setattr(CrossAttention, "weights", nudged)
        (there,) = attention_maps(model, spec, source, [3], tokenizer=tokenizer)
        slope = (there.score - found.score) / 1e-4
        raised += max(slope, 0.0) * seen["weight"] / heads
    assert float(found.words[word].map.flatten()[place]) == pytest.approx(raised, rel=0.05, abs=1e-6)


def test_without_a_matching_head_the_weights_are_shown() -> None:
    model, spec, source, tokenizer = made(**{"objectives.itm": None})
    (found,) = attention_maps(model, spec, source, [2], tokenizer=tokenizer)
    assert found.score is None
    for word in found.words:
        assert 0 < float(word.map.sum()) < 1  # all of it but what went to [CLS]


def test_nothing_of_the_model_is_changed(parts: Parts) -> None:
    model, spec, source, tokenizer = parts
    model.train()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = torch.get_rng_state()
    attention_maps(model, spec, source, [0, 1], tokenizer=tokenizer)
    assert model.training
    assert all((parameter.grad == 1).all() for parameter in model.parameters())
    assert np.array_equal(before, torch.get_rng_state())
