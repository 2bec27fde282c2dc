"""Promises of `training.compile`: equal layers are compiled once, and what is trained is the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx

from tclx.model.compiled import compile_encoders
from tclx.model.tcl import TCL
from tclx.track.jsonl import read
from tests.train import toy

VIT = {"name": "vit_tiny_patch16_224", "image_size": 32, "patch_size": 8, "width": 16, "num_heads": 2}
BERT = {"width": 16, "num_heads": 2, "intermediate_size": 32}

pytestmark = pytest.mark.filterwarnings("default")  # torch.compile raises warnings that it hides, where they are no errors


@pytest.fixture(autouse=True)
def _nothing_compiled_before() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def tcl(depth: int, **image_encoder: Any) -> TCL:
    return TCL(
        toy.toy_spec(
            **{
                "model.image_encoder": image_encoder or {**VIT, "depth": depth},
                "model.text_encoder": {"sizes": BERT, "num_layers": depth, "dropout": 0.0},
                "model.fusion_encoder": {"num_layers": depth},
            }
        ),
        vocab_size=64,
        pad_token_id=0,
    )


def outputs(model: TCL) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, 32, 32, generator=random)
    ids = torch.randint(5, 64, (2, 7), generator=random)
    mask = torch.ones_like(ids, dtype=torch.bool)
    found = []
    for encoders in (model.online, model.momentum):
        assert encoders is not None
        image, text = encoders.encode_image(images).tokens, encoders.encode_text(ids, mask).tokens
        found += [image, text, encoders.fuse(text, mask, image)]
    return found


class Counting:
    """A backend that runs the graphs it is given, and counts them."""

    def __init__(self) -> None:
        self.num_graphs = 0

    def __call__(self, graph: fx.GraphModule, _inputs: list[torch.Tensor]) -> Callable[..., Any]:
        self.num_graphs += 1
        return graph.forward


def test_a_stack_of_equal_layers_is_compiled_once_and_gives_the_same() -> None:
    graphs = []
    for depth in (2, 5):
        torch.compiler.reset()
        model, counting = tcl(depth).eval(), Counting()
        plain, names = outputs(model), list(model.state_dict())
        compile_encoders(model, backend=counting)
        for one, two in zip(plain, outputs(model), strict=True):
            torch.testing.assert_close(one, two)
        assert list(model.state_dict()) == names
        graphs.append(counting.num_graphs)
    assert graphs[0] == graphs[1] > 0


@pytest.mark.parametrize("name", ["resnet10t", "convnext_atto"])  # no two alike; two alike in each of four stages
def test_an_encoder_of_different_layers_is_compiled_whole(name: str) -> None:
    model, counting = tcl(1, name=name, image_size=32).eval(), Counting()
    plain = outputs(model)
    compile_encoders(model, backend=counting)
    for one, two in zip(plain, outputs(model), strict=True):
        torch.testing.assert_close(one, two)
    compiled = [part for part in model.online.image_encoder.modules() if part._compiled_call_impl is not None]
    assert counting.num_graphs > 0
    assert compiled == [model.online.image_encoder]


def without_a_c_compiler(device: str) -> None:
    """In the process of a run: graphs and their derivatives as torch.compile makes them, run as they are."""
    from tclx.train import session

    session.compile_encoders = partial(compile_encoders, backend="aot_eager")  # type: ignore[attr-defined]


def test_a_compiled_run_trains_evaluates_and_shows_what_it_looks_at(tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "model.image_encoder": {**VIT, "depth": 2},
        "model.text_encoder": {"sizes": BERT, "num_layers": 2, "dropout": 0.0},  # compiled dropout draws in an order of its own
        "model.fusion_encoder": {"num_layers": 2},
    }
    measured = {"log_every_steps": 1, "term_gradients_every_steps": 2, "term_gradient_norms_every_steps": 3}
    losses, files = [], []
    for name, compiled in (("plain", False), ("compiled", True)):
        run = toy.prepare(tmp_path / name, toy.toy_spec(**changes, **{"training.compile": compiled, "tracking": measured}))
        assert toy.wait([toy.start_with(without_a_c_compiler, run)]) == [0], (run.path / "stderr0.txt").read_text()
        losses.append([row["loss/total"] for row in read(run.metrics) if "loss/total" in row])
        files.append({path.name for path in (run.path / "evaluation").rglob("*") if path.is_file()})
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert files[0] == files[1]
