"""Trained toys and a few pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tclx
from tclx.use.loaded import VisionLanguageModel
from tests.tasks.downstream import downstream_spec
from tests.train import toy


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three trained toys: all of TCL, without a matching head, and one that answers questions."""
    folder = tmp_path_factory.mktemp("runs")
    short = {"training.steps": 4, "evaluation.every_steps": 4, "training.checkpoints": {"every_steps": 4}}
    toy.run(toy.prepare(folder / "whole-s0-00000001", toy.toy_spec(name="whole", **short)))
    plain = {"objectives": {"cma": {}}, "name": "plain", "training.precision": "bf16"}
    toy.run(toy.prepare(folder / "plain-s0-00000002", toy.toy_spec(**short, **plain)))
    toy.run(toy.prepare(folder / "asked-s0-00000003", downstream_spec("vqa", name="asked", **short)))
    return folder


@pytest.fixture(scope="session")
def whole(runs: Path) -> VisionLanguageModel:
    return tclx.load(runs / "whole-s0-00000001")


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photos")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 40, 50, 3), dtype=np.uint8)
    paths = [folder / f"{number}.png" for number in range(3)]
    for path, one in zip(paths, pixels, strict=True):
        Image.fromarray(one).save(path)
    return paths
