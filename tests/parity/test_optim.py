"""The published schedules to 1e-12, and which parameters its optimizer decays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from tclx.spec.optim import CosineSchedule, OptimSpec
from tclx.train.optim import learning_rate, parameter_groups

# Recorded table -> (peak, minimum, "warmup_epochs", epochs) of its official config; the start of the warm-up is always 1e-5.
TABLES = {
    "pretrain (7900 it/epoch, 30 ep)": (1e-4, 1e-5, 20, 30),
    "pretrain with only 500 it/epoch": (1e-4, 1e-5, 20, 30),
    "retrieval_coco": (1e-5, 1e-6, 1, 5),
    "retrieval_flickr": (1e-5, 1e-6, 1, 10),
    "vqa": (2e-5, 1e-6, 4, 8),
    "nlvr": (2e-5, 1e-6, 1, 10),
    "ve": (2e-5, 1e-6, 1, 5),
}


@pytest.fixture(scope="module")
def expected(shared: Path) -> dict[str, Any]:
    return json.loads((shared / "parity" / "expected.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("table", TABLES)
def test_learning_rate_is_the_one_really_stepped(expected: dict[str, Any], table: str) -> None:
    peak, minimum, warmup_epochs, num_epochs = TABLES[table]
    schedule = CosineSchedule(warmup_steps=100 * warmup_epochs, warmup_learning_rate=1e-5, minimum_learning_rate=minimum)
    optim = OptimSpec(learning_rate=peak, schedule=schedule)
    rows = expected["lr"][table]
    steps_per_epoch = max(iteration for _, iteration, _ in rows) + 1  # the tables name every epoch's last iteration
    assert {epoch for epoch, _, _ in rows} == set(range(num_epochs))
    for epoch, iteration, value in rows:
        got = learning_rate(
            epoch * steps_per_epoch + iteration,
            optim=optim,
            total_steps=num_epochs * steps_per_epoch,
            steps_per_epoch=steps_per_epoch,
            official=True,
        )
        assert got == pytest.approx(value, abs=1e-12), (epoch, iteration)


class Named(nn.Module):
    """Parameters under given dotted names and shapes: an official state dict as a module."""

    def __init__(self, shapes: dict[str, list[int]]) -> None:
        super().__init__()
        import torch

        for name, shape in shapes.items():
            *path, last = name.split(".")
            place: nn.Module = self
            for part in path:
                if part not in place._modules:
                    place.add_module(part, nn.Module())
                place = place._modules[part]
            place.register_parameter(last, nn.Parameter(torch.empty(shape)))


def test_official_groups_have_the_recorded_members(expected: dict[str, Any], shared: Path) -> None:
    from safetensors import safe_open

    groups = expected["optimizer_groups"]
    trained = [*groups["weight_decay=0.0"], *groups["weight_decay=0.02"]]
    with safe_open(shared / "parity" / "pretrain_init.safetensors", framework="pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys() if name in trained}  # noqa: SIM118
    assert set(trained) == set(shapes)
    for group in parameter_groups(Named(shapes), weight_decay=0.02, official=True):
        assert set(group["param_names"]) == set(groups[f"weight_decay={group['weight_decay']}"])
