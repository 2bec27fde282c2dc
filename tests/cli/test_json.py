"""docs/json.md says what `--json` prints, of every command that has it, and this says that it is so."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from PIL import Image

from tclx.cli.app import app
from tests.cli.test_cli import Ended, run_process
from tests.conftest import PROJECT
from tests.launch.toy import SPEC, write_spec
from tests.sweep.toy import run as run_sweep
from tests.sweep.toy import write_sweep

PAGE = (PROJECT / "docs" / "json.md").read_text(encoding="utf-8")
LISTED = {
    title.removeprefix("tclx "): (kind == "A list", re.findall(r"`([^`]+)`", keys))
    for title, kind, keys in re.findall(r"^## `([^`]+)`\n\n(A list|An object)([^.]*)\.", PAGE, re.MULTILINE)
}
ELSEWHERE = {
    "sync": "needs W&B: tests/cli/test_sync.py",
    "data pack": "writes shards: tests/data/test_packing.py",
    "sweep table": "needs a search for each variant: tests/sweep/test_ablation.py",
}
"""Commands with `--json` that the page does not list, and where they are kept."""


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two variants and a sweep, trained; three photos."""
    folder = tmp_path_factory.mktemp("json")
    spec = write_spec(folder, variants={"a": {}, "b": {"optim": {**SPEC["optim"], "learning_rate": 2e-3}}})
    assert run_process("run", spec, "--runs-dir", folder / "runs").returncode == 0
    (folder / "swept").mkdir()
    code, _, stderr = run_sweep(write_sweep(folder / "swept", num_trials=2))
    assert code == 0, stderr
    (folder / "table.yaml").write_text("title: T\nrows: [{experiment: toy.yaml}]\ncolumns: [r_mean]\n")
    (folder / "photos").mkdir()
    for number in range(3):
        Image.new("RGB", (24, 20), (80 * number, 40, 160)).save(folder / "photos" / f"{number}.png")
    (folder / "photos.csv").write_text("image,caption\n0.png,a\n1.png,b\n2.png,c\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("TCLX_RUNS", raising=False)
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield folder


def asked(listed: str, folder: Path) -> list[str]:
    """A command of the page, with what there is for its words."""
    (run,) = (path.name for path in folder.glob("runs/toy-a-*"))
    words = {
        "SPEC...": "toy.yaml", "A": "toy-a", "B": "toy-b", "RUN": run, "FOLDER": "photos", "TEXT": "a circle",
        "FILE...": "photos.csv", "KEY": "optim.learning_rate", "SWEEP": "swept/sweep.yaml",
        "TABLE": "table.yaml",
    }  # fmt: skip
    more = ["-o", "imported"] if "import" in listed else ["--runs-dir", "swept/runs"] if "SWEEP" in listed else []
    return [*(words.get(word, word) for word in listed.split()), *more, "--json"]


@pytest.mark.parametrize("listed", LISTED)
def test_a_command_prints_what_the_page_lists(listed: str, here: Path) -> None:
    ended = Ended(*asked(listed, here))
    found = json.loads(ended.out)
    is_list, keys = LISTED[listed]
    assert isinstance(found, list) == is_list
    assert list(found[0] if is_list else found) == keys


def _commands(command: Any, path: str = "") -> Iterator[str]:
    if any("--json" in parameter.opts for parameter in command.params):
        yield path.strip()
    for name, inner in getattr(command, "commands", {}).items():
        yield from _commands(inner, f"{path} {name}")


def test_every_command_that_prints_json_is_on_the_page_or_kept_elsewhere() -> None:
    listed = {" ".join(word for word in title.split() if word.isalpha() and word.islower()) for title in LISTED}
    assert set(_commands(typer.main.get_command(app))) - set(ELSEWHERE) == listed
