"""docs/architecture.md names every room, its examples work as they stand, and imports form no circle, in functions neither."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import grimp
import pytest

PROJECT = Path(__file__).resolve().parents[1]
PAGE = (PROJECT / "docs" / "architecture.md").read_text(encoding="utf-8")


def test_imports_form_no_circle() -> None:
    graph = grimp.build_graph("tclx", exclude_type_checking_imports=True, cache_dir=None)
    imported = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    assert len(imported) > 150
    TopologicalSorter(imported).prepare()  # raises CycleError with the circle


def test_every_room_is_on_the_map() -> None:
    rooms = [path.name for path in (PROJECT / "tclx").iterdir() if (path / "__init__.py").exists()]
    assert [room for room in rooms if f"`{room}/`" not in PAGE] == []


def blocks(heading: str, kind: str) -> Iterator[tuple[str, list[str]]]:
    """The files of one section's code blocks: the name that a comment gives, and the lines that follow it."""
    section = PAGE.partition(f"## How to add a {heading}\n")[2].partition("\n## ")[0]
    for block in re.findall(rf"^```{kind}\n(.*?)^```$", section, re.DOTALL | re.MULTILINE):
        for part in re.split(r"^# (?=tclx/)", block, flags=re.MULTILINE)[1:]:
            name, *lines = part.splitlines()
            yield name, lines


def patched(text: str, lines: list[str]) -> str:
    """A text with added lines after the line before them, in place of the removed ones."""
    place = 0
    for mark, line in ((line[:1], line[1:] + "\n") for line in lines):
        if mark == "+":
            text = text[:place] + line + text[place:]
            place += len(line)
            continue
        found = text.index(line, place)
        if mark == "-":
            text, place = text[:found] + text[found + len(line) :], found
        else:
            place = found + len(line)
    return text


USES = {
    "term of the loss": """
        from tests.train.toy import prepare, run, toy_spec
        from tclx.track.jsonl import read
        terms = {"objectives.cma": None, "objectives.margin": {"margin": 0.3}}
        rows = read(run(prepare(Path("run"), toy_spec(**terms))).metrics)
        assert all(0 < row["loss/margin"] < 3 for row in rows if "loss/total" in row), rows
        """,
    "task of the evaluation": """
        from tests.train.toy import prepare, run, toy_spec
        task = {"evaluation.closeness": {}, "evaluation.best_metric": "closeness/accuracy"}
        folder = run(prepare(Path("run"), toy_spec(**task)))
        found = folder.read_evaluations()["test"].metrics
        assert 0 <= found["closeness/test/accuracy"] <= 100, found
        from tclx.report.estimates import read_estimates
        from tclx.metrics import without_split
        metrics = {without_split(name): value for name, value in found.items()}
        assert "closeness/accuracy" in read_estimates(folder.path, "test", metrics, ["closeness/accuracy"]).found
        """,
    "source of data": """
        from tests.train.toy import prepare, run, toy_spec
        folder = run(prepare(Path("run"), toy_spec(**{"data.train": {"source": "noise", "num_images": 64}})))
        assert folder.read_state().status == "finished"
        """,
    "backend": """
        from tclx.launch.backend import BACKENDS
        from tclx.launch.clusters import CLUSTERS
        assert BACKENDS["pbs"].waits is False
        assert CLUSTERS["pbs"].ask([]).states == {}
        assert "qstat" in CLUSTERS["pbs"].ask(["7"]).silent  # there is none here
        from tests.train.toy import toy_spec
        assert toy_spec(launch={"backend": "pbs", "queue": "gpu"}).launch.queue == "gpu"
        """,
    "sink": """
        from tests.train.toy import prepare, run, toy_spec
        folder = run(prepare(Path("run"), toy_spec(**{"tracking.csv": True, "tracking.log_every_steps": 1})))
        assert len((folder.path / "losses.csv").read_text().splitlines()) == 13
        """,
    "metric": """
        from tclx.metrics import find_metric
        assert find_metric("parameter_norm").title
        """,
}


@pytest.mark.parametrize("heading", USES)
def test_an_example_of_the_page_works_as_it_stands(heading: str, tmp_path: Path) -> None:
    without = shutil.ignore_patterns("__pycache__")
    for package in ("tclx", "tests"):
        shutil.copytree(PROJECT / package, tmp_path / package, ignore=without)
    for name, lines in blocks(heading, "py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    changed = list(blocks(heading, "diff"))
    assert changed
    for name, lines in changed:
        path = tmp_path / name
        path.write_text(patched(path.read_text(encoding="utf-8"), lines), encoding="utf-8")
    program = "from pathlib import Path\n" + re.sub(r"^        ", "", USES[heading], flags=re.MULTILINE)
    script = tmp_path / "use.py"
    script.write_text(f"if __name__ == '__main__':\n{re.sub('^', '    ', program, flags=re.MULTILINE)}\n", encoding="utf-8")
    environment = {"PYTHONPATH": str(tmp_path), "PATH": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script)]
    used = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert used.returncode == 0, used.stderr[-3000:]
