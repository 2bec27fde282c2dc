"""How the gradients of the terms lie to each other, where it can be computed by hand, and over processes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tclx.model.tcl import TCL
from tclx.tasks.task import StepOutput
from tclx.track.jsonl import read
from tclx.train.measure import term_relations
from tests.train.step_worker import VOCAB_SIZE
from tests.train.test_loop import CONSTANT, NO_EVALUATION, trained
from tests.train.toy import toy_spec

RELATIONS = ("gradient_cosine/", "gradient_share/", "gradient_ratio/")


def output_of(parameter: nn.Parameter, **terms: tuple[float, list[float]]) -> StepOutput:
    """Terms with a weight each, whose gradients are what they are given."""
    losses = {name: (parameter * torch.tensor(gradient)).sum() for name, (_, gradient) in terms.items()}
    whole = torch.stack([weight * losses[name] for name, (weight, _) in terms.items()]).sum()
    return StepOutput(whole, losses, {})


def test_two_opposed_losses_have_a_cosine_of_minus_one() -> None:
    parameter = nn.Parameter(torch.ones(3))
    found = term_relations(
        output_of(parameter, cma=(1.0, [1.0, 2.0, 3.0]), itm=(0.5, [-1.0, -2.0, -3.0])), [parameter], scale=1.0
    )
    assert found["gradient_cosine/cma_itm"] == pytest.approx(-1.0)
    assert (found["gradient_share/cma"], found["gradient_share/itm"]) == (pytest.approx(2.0), pytest.approx(-1.0))
    assert (found["gradient_ratio/cma"], found["gradient_ratio/itm"]) == (pytest.approx(2.0), pytest.approx(1.0))


@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_shares_are_of_the_weighted_terms_and_sum_to_one(scale: float) -> None:
    parameter = nn.Parameter(torch.ones(2))
    terms = {"cma": (2.0, [1.0, 0.0]), "imc": (1.0, [0.0, 3.0]), "mlm": (4.0, [1.0, 1.0])}
    found = term_relations(output_of(parameter, **terms), [parameter], scale=scale)
    whole = torch.tensor([6.0, 7.0])
    expected = {
        name: float(weight * torch.tensor(gradient) @ whole / (whole @ whole)) for name, (weight, gradient) in terms.items()
    }
    assert {name: found[f"gradient_share/{name}"] for name in terms} == pytest.approx(expected)
    assert sum(expected.values()) == pytest.approx(1.0)
    assert found["gradient_cosine/cma_imc"] == pytest.approx(0.0)
    assert found["gradient_cosine/imc_mlm"] == pytest.approx(math.sqrt(0.5))
    assert found["gradient_ratio/imc"] == pytest.approx(3.0 / float(whole.norm()))


def test_a_term_without_a_gradient_there_has_no_cosine_and_one_term_nothing_to_compare() -> None:
    parameter, other = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    output = output_of(parameter, cma=(1.0, [1.0, 0.0]))
    assert term_relations(output, [parameter], scale=1.0) == {}
    apart = (other * 2).sum()
    both = StepOutput(output.loss + apart, {**output.terms, "itm": apart}, {})
    found = term_relations(both, [parameter], scale=1.0)
    assert "gradient_cosine/cma_itm" not in found
    assert (found["gradient_share/cma"], found["gradient_share/itm"]) == (1.0, 0.0)


def test_the_step_that_follows_is_the_same(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"training.steps": 4, **CONSTANT, **NO_EVALUATION}
    plain = trained(tmp_path / "plain", **changes, **{"tracking.term_gradients_every_steps": None})
    compared = trained(tmp_path / "compared", **changes, **{"tracking.term_gradients_every_steps": 2})
    first, second = ([*read(folder.metrics)] for folder in (plain, compared))
    losses = {row["step"]: row["loss/total"] for row in second}
    assert {row["step"]: row["loss/total"] for row in first}.items() <= losses.items()
    measured = [row["step"] for row in second if any(name.startswith(RELATIONS) for name in row)]
    assert measured == [2, 4]
    assert not any(name.startswith(RELATIONS) for row in first for name in row)
    for row in second:
        shares = [value for name, value in row.items() if name.startswith("gradient_share/")]
        assert not shares or sum(shares) == pytest.approx(1.0, abs=1e-4)


def test_what_all_terms_share_is_the_end_of_each_encoder_that_is_trained() -> None:
    model = TCL(toy_spec(), vocab_size=VOCAB_SIZE, pad_token_id=0)
    names = {id(parameter): name for name, parameter in model.online.named_parameters()}
    found = [names[id(parameter)] for parameter in model.online.last_parameters()]
    assert {name.partition(".")[0] for name in found} == {"image_encoder", "text_encoder"}
    for encoder in (model.online.image_encoder, model.online.text_encoder):
        size = sum(parameter.numel() for parameter in encoder.parameters())
        own = sum(
            parameter.numel()
            for parameter in model.online.last_parameters()
            if any(parameter is one for one in encoder.parameters())
        )
        assert 0 < own <= max(size / 10, list(encoder.parameters())[-1].numel())
    model.online.image_encoder.requires_grad_(False)
    assert all(names[id(parameter)].startswith("text_encoder.") for parameter in model.online.last_parameters())
