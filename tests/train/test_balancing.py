"""Balanced terms: against loops that do it as the papers write it, over processes, and across a kill."""

from __future__ import annotations

import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tclx.errors import InputError
from tclx.metrics import find_metric
from tclx.model.balance import Balance, surgery
from tclx.model.tcl import TCL
from tclx.plan import DataFacts, make_plan
from tclx.tasks.pretrain.balance import GradNormBalance, PCGradBalance, UncertaintyBalance
from tclx.tasks.pretrain.step import TrainingStep
from tclx.track.jsonl import read
from tclx.train.balancing import Balancing
from tests.train.step_worker import VOCAB_SIZE, WITHOUT_DROPOUT, global_batch
from tests.train.toy import STOPPED, outcome, prepare, run, start, toy_spec, wait, wait_until

WAYS: dict[str, dict[str, Any]] = {
    "uncertainty": {"name": "uncertainty"},
    "gradnorm": {"name": "gradnorm", "every_steps": 2, "rate": 0.1},
    "pcgrad": {"name": "pcgrad"},
}


def projected(gradients: Tensor, order: torch.Generator) -> Tensor:
    """Yu et al.'s algorithm 1 on whole vectors: what is added up."""
    changed = gradients.clone()
    for place in range(len(gradients)):
        for other in torch.randperm(len(gradients), generator=order).tolist():
            if other == place:
                continue
            along = changed[place] @ gradients[other]
            if along < 0:
                changed[place] -= along / gradients[other].square().sum() * gradients[other]
    return changed.sum(dim=0)


@pytest.mark.parametrize("num_terms", [2, 3, 5])
def test_surgery_by_products_is_surgery_on_vectors(num_terms: int) -> None:
    generator = torch.Generator().manual_seed(num_terms)
    for seed in range(20):
        gradients = torch.randn(num_terms, 7, generator=generator, dtype=torch.float64) - 0.3
        shares = surgery(gradients @ gradients.T, torch.Generator().manual_seed(seed))
        torch.testing.assert_close(shares @ gradients, projected(gradients, torch.Generator().manual_seed(seed)))


def test_two_opposed_gradients_leave_nothing_and_two_that_agree_their_sum() -> None:
    order = torch.Generator().manual_seed(0)
    opposed, agreeing = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]), torch.tensor([[1.0, 0.5], [0.5, 1.0]])
    assert surgery(opposed, order).tolist() == [2.0, 2.0]  # of g and -g
    assert surgery(agreeing, order).tolist() == [1.0, 1.0]


def test_the_variances_settle_where_each_term_counts_a_half() -> None:
    weighted = torch.tensor([0.2, 3.0, 40.0])
    balance = Balance(UncertaintyBalance(name="uncertainty"), ["cma", "itm", "mlm"])
    assert balance.total(weighted).item() == pytest.approx(weighted.sum().item())
    optimizer = torch.optim.Adam(balance.parameters(), lr=0.05)
    for _ in range(1500):
        optimizer.zero_grad()
        balance.total(weighted).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    shares = torch.tensor(list(balance.multipliers().values())) * weighted
    torch.testing.assert_close(shares, torch.full((3,), 0.5), rtol=1e-3, atol=0)
    lowest = sum(0.5 + math.log(2 * each) / 2 for each in weighted.tolist())
    assert balance.total(weighted).item() == pytest.approx(lowest, rel=1e-4)


def test_multipliers_move_as_the_gradient_of_gradnorms_loss_says() -> None:
    spec = GradNormBalance(name="gradnorm", alpha=1.5, rate=0.1, every_steps=1)
    balance = Balance(spec, ["cma", "itm", "mlm"])
    norms = torch.tensor([[1.0, 4.0, 0.5], [1.5, 3.0, 0.5], [2.0, 2.0, 2.0]])
    losses = torch.tensor([[4.0, 0.7, 6.0], [3.0, 0.7, 5.0], [1.0, 0.6, 5.5]])
    expected = torch.ones(3)
    for step in range(3):
        multipliers = expected.clone().requires_grad_(True)
        lengths = multipliers * norms[step]
        slowness = losses[step] / losses[0]
        wanted = (lengths.mean() * (slowness / slowness.mean()) ** 1.5).detach()
        (downhill,) = torch.autograd.grad((lengths - wanted).abs().sum(), multipliers)
        moved = expected - 0.1 * downhill / lengths.mean().detach()
        expected = moved * 3 / moved.sum()
        balance.equalise_(norms[step], losses[step])
        torch.testing.assert_close(balance.multiplied, expected)
    assert balance.multiplied.sum().item() == pytest.approx(3)
    assert expected[1] < 1 < expected[2]  # the longest gradient is made shorter, the shortest longer


def test_a_step_that_overflows_moves_no_multiplier() -> None:
    balance = Balance(GradNormBalance(name="gradnorm", every_steps=1), ["cma", "itm"])
    for norms, losses in (([1.0, torch.inf], [1.0, 1.0]), ([1.0, 1.0], [torch.nan, 1.0])):
        balance.equalise_(torch.tensor(norms), torch.tensor(losses))
    assert balance.multipliers() == {"cma": 1.0, "itm": 1.0}
    assert balance.first_losses.isnan().all()


def test_equal_gradients_come_of_equal_progress() -> None:
    balance = Balance(GradNormBalance(name="gradnorm", rate=0.01, every_steps=1), ["cma", "itm"])
    norms = torch.tensor([9.0, 1.0])
    for _ in range(2000):
        balance.equalise_(norms, torch.tensor([1.0, 1.0]))
    lengths = balance.multiplied * norms
    assert lengths[0].item() == pytest.approx(lengths[1].item(), rel=0.2)


def test_a_step_of_pcgrad_is_that_of_the_loop_over_terms_and_passes() -> None:
    spec = toy_spec(**WITHOUT_DROPOUT, **{"objectives.balance": WAYS["pcgrad"], "objectives.cma": {"weight": 2.0}})
    model = TCL(spec, vocab_size=VOCAB_SIZE, pad_token_id=0)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    names = list(spec.objectives.terms)
    slow = torch.zeros(len(names), sum(parameter.numel() for parameter in parameters))
    step = TrainingStep(model, spec)
    for draw in range(2):
        for place, name in enumerate(names):
            model.zero_grad()
            output = step(global_batch(), soft_label_weight=0.0, draw=draw)
            (output.terms[name] * spec.objectives.terms[name].weight / 2).backward()
            slow[place] += torch.cat([_gradient(parameter).flatten() for parameter in parameters])
    expected = projected(slow.double(), torch.Generator().manual_seed(11)).float()
    model.zero_grad()
    balancing = Balancing(model.balance, parameters, (), done=1)
    for draw in range(2):
        balancing.add(step(global_batch(), soft_label_weight=0.0, draw=draw), scale=0.5)
    balancing.put(seed=11)
    found = torch.cat([_gradient(parameter).flatten() for parameter in parameters])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(found, slow.sum(dim=0), rtol=1e-3)  # some were opposed
    assert model.balance is not None
    assert max(model.balance.multipliers().values()) > 1


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def test_gradnorm_sees_the_lengths_of_the_weighted_terms_without_their_multipliers() -> None:
    spec = toy_spec(**WITHOUT_DROPOUT, **{"objectives.balance": WAYS["gradnorm"], "objectives.cma": {"weight": 2.0}})
    model = TCL(spec, vocab_size=VOCAB_SIZE, pad_token_id=0)
    assert model.balance is not None
    shared, names = model.online.last_parameters(), list(spec.objectives.terms)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with torch.no_grad():
        model.balance.multiplied.copy_(torch.linspace(0.5, 1.5, len(names)))
    before = model.balance.multiplied.clone()
    output = TrainingStep(model, spec)(global_batch(), soft_label_weight=0.0, draw=0)
    slow, losses = [], []
    for name in names:
        weighted = output.terms[name] * spec.objectives.terms[name].weight
        parts = torch.autograd.grad(weighted, shared, retain_graph=True, allow_unused=True, materialize_grads=True)
        slow.append(torch.cat([part.flatten() for part in parts]).norm())
        losses.append(weighted.detach())
    other = Balance(model.balance.spec, names)
    other.multiplied.copy_(before)
    other.equalise_(torch.stack(slow), torch.stack(losses))
    for done, moves in ((1, False), (2, True)):
        balancing = Balancing(model.balance, parameters, shared, done=done)
        balancing.look(output, scale=lambda: 1.0)
        balancing.finish()
        assert torch.equal(model.balance.multiplied, before) != moves
    torch.testing.assert_close(model.balance.multiplied, other.multiplied)


@pytest.mark.parametrize("way", WAYS)
def test_a_run_goes_on_exactly_and_says_its_multipliers(tmp_path: Path, way: str) -> None:
    spec = toy_spec(**{"training.steps": 6, "training.accumulation_steps": 2, "objectives.balance": WAYS[way]})
    undisturbed, stopped = (prepare(tmp_path / name, spec) for name in ("whole", "stopped"))
    processes = start(stopped)
    wait_until(lambda: stopped.metrics.exists() and '{"step": 4,' in stopped.metrics.read_text(), processes)
    os.kill(processes[0].pid or 0, signal.SIGTERM)
    assert wait(processes) == [STOPPED]
    assert outcome(run(stopped)) == outcome(run(undisturbed))
    rows = [row for row in read(undisturbed.metrics) if "loss/total" in row]
    names = [f"balance/{name}" for name in spec.objectives.terms]
    assert all(find_metric(name) is not None for name in names)
    assert all(row[name] > 0 for row in rows for name in names)
    assert len({row[name] for row in rows for name in names}) > 1


@pytest.mark.parametrize("way", WAYS)
def test_several_processes_balance_as_one(tmp_path: Path, way: str) -> None:
    """Terms of the whole batch: ITM draws and MLM averages within each process."""
    off = {"objectives.itm": None, "objectives.mlm": None, "model.fusion_encoder": None, "evaluation.retrieval": {}}
    changes = {**WITHOUT_DROPOUT, **off, "training.steps": 4, "tracking.log_every_steps": 1, "objectives.balance": WAYS[way]}
    one = run(prepare(tmp_path / "one", toy_spec(**changes)))
    halves = {"launch.num_processes": 2, "training.batch_size_per_gpu": 4}
    two = run(prepare(tmp_path / "two", toy_spec(**changes, **halves)))
    wanted = ("loss/total", "gradient_norm", *(f"balance/{name}" for name in ("cma", "imc", "lmi")))
    rows = [
        [{name: row[name] for name in wanted} for row in read(folder.metrics) if "loss/cma" in row] for folder in (one, two)
    ]
    assert len(rows[0]) == len(rows[1]) == 4
    for mine, others in zip(*rows, strict=True):
        assert others == pytest.approx(mine, rel=2e-3)


def test_one_term_alone_has_nothing_to_balance() -> None:
    off = {f"objectives.{name}": None for name in ("imc", "lmi", "itm", "mlm")}
    spec = toy_spec(**off, **{"objectives.balance": WAYS["pcgrad"]})
    with pytest.raises(InputError, match=r"objectives\.balance: there is nothing to balance: cma alone is on"):
        make_plan(spec, DataFacts(64, 64, 6, 30, 6, 30))
    assert isinstance(spec.objectives.balance, PCGradBalance)
