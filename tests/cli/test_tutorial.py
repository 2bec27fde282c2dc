"""docs/tutorial.md, as somebody would go through it: every command in its order, in an empty folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.conftest import PROJECT

_FENCED = re.compile(r"^```(bash|python)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def test_every_command_of_the_tutorial_works_in_its_order(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TCLX_RUNS"}
    environment |= {"XDG_CACHE_HOME": str(tmp_path / "cache"), "CUDA_VISIBLE_DEVICES": ""}
    page = (PROJECT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    for language, block in _FENCED.findall(page):
        steps = (
            [[sys.executable, "-c", block]] if language == "python" else [["bash", "-ec", line] for line in block.splitlines()]
        )
        for step in steps:
            done = subprocess.run(step, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{step[-1]}\n{done.stdout}\n{done.stderr}"
    assert done.stdout == "(1, 2)\n"
    for made in (
        "mine/mine.yaml",
        "mine/mine-sweep.yaml",
        "data.html",
        "mine.html",
        "stars.html",
        "mine-model/model.safetensors",
    ):
        assert (tmp_path / made).is_file(), made
    assert len(list((tmp_path / "runs").glob("mine-s0-*"))) == 1  # the smoke test has left nothing
