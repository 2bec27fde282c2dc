"""The moving average against a loop over the parameters."""

from __future__ import annotations

import torch
from torch import nn

from tclx.model.momentum import Pairs
from tclx.model.tcl import MomentumModel


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))


def test_every_parameter_moves_as_in_a_loop() -> None:
    online, momentum = network(0), network(1)
    expected = {
        name: 0.9 * before + 0.1 * after
        for (name, before), after in zip(momentum.named_parameters(), online.parameters(), strict=True)
    }
    Pairs.of(online, momentum).update(0.9)
    for name, parameter in momentum.named_parameters():
        torch.testing.assert_close(parameter, expected[name])


def test_nothing_is_allocated_anew() -> None:
    online, momentum = network(0), network(1)
    addresses = [tensor.data_ptr() for tensor in momentum.state_dict().values()]
    Pairs.of(online, momentum).update(0.9)
    assert [tensor.data_ptr() for tensor in momentum.state_dict().values()] == addresses


def test_batch_norm_statistics_are_copied() -> None:
    online, momentum = network(0), network(1)
    online(torch.randn(8, 3))
    Pairs.of(online, momentum).update(0.9)
    assert torch.equal(momentum[1].running_mean, online[1].running_mean)
    assert torch.equal(momentum[1].num_batches_tracked, online[1].num_batches_tracked)


def test_what_only_the_trained_module_has_is_left_out() -> None:
    online, momentum = (
        nn.ModuleDict({"kept": nn.Linear(2, 2), "extra": nn.Linear(2, 2)}),
        nn.ModuleDict({"kept": nn.Linear(2, 2)}),
    )
    Pairs.of(online, momentum).update(0.0)
    torch.testing.assert_close(momentum["kept"].state_dict(), online["kept"].state_dict(), rtol=0, atol=0)


def test_keeping_all_changes_nothing() -> None:
    online, momentum = network(0), network(1)
    before = [parameter.clone() for parameter in momentum.parameters()]
    Pairs.of(online, momentum).update(1.0)
    assert all(map(torch.equal, momentum.parameters(), before))


class Following(MomentumModel):
    """Two small networks in the place of encoders."""

    def __init__(self) -> None:
        super().__init__()
        self.online, self.momentum = network(0), network(1)  # type: ignore[assignment]


def test_pairs_that_were_found_once_stay_right_when_the_model_moves() -> None:
    model = Following()
    for step in range(4):
        if step == 2:
            model.double()  # as a move to another device: other buffers, other storage
        with torch.no_grad():
            for tensor in model.online.parameters():
                tensor.add_(1)
        model.online[1].running_mean.add_(1)  # type: ignore[index, union-attr]
        expected = {
            name: 0.9 * before + 0.1 * after
            for (name, before), after in zip(model.momentum.named_parameters(), model.online.parameters(), strict=True)  # type: ignore[union-attr]
        }
        model.follow(0.9)
        for name, parameter in model.momentum.named_parameters():  # type: ignore[union-attr]
            torch.testing.assert_close(parameter, expected[name])
        assert torch.equal(model.momentum[1].running_mean, model.online[1].running_mean)  # type: ignore[index, union-attr]
