"""Whatever happens to a file of a run folder, every command that reads it ends in words: never in a traceback, never waiting.

The whole campaign is marked `faults`; a few of its trials stand in every check.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from typer.testing import CliRunner

from tclx.cli.app import app
from tclx.runs import Attempt, Job, RunFolder, RunState
from tclx.track.wandb.process import Sent
from tests.train.toy import prepare, run, toy_spec

FILES = (
    "spec.json", "plan.json", "environment.json", "state.json", "metrics.jsonl", "events.jsonl", "best.json", "job.json",
    "attempt.json", "heartbeat", "cancel.json", "wandb.json", "evaluation/retrieval-test.json",
    "evaluation/examples/retrieval-test.json", "evaluation/outcomes/retrieval-test.json", "errors/rank0.json", "logs/rank0.log",
)  # fmt: skip
COMMANDS = ("status", "status RUN", "status --json", "results", "results --json", "logs", "report")
ODD: tuple[Any, ...] = (
    None,
    "x",
    "",
    [],
    {},
    [1],
    -1,
    0,
    1e308,
    10**30,
    float("nan"),
    float("inf"),
    True,
    "\ud800",
    "\x1b[31m",
)


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def as_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def as_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def with_odd_value(path: Path, draw: random.Random) -> None:
    """One key, at any depth, of a type or size that nobody writes; in JSON lines, of one of them."""
    lines = path.read_text().splitlines() if path.suffix in (".jsonl", ".log") else [path.read_text()]
    number = draw.randrange(len(lines)) if lines else 0
    try:
        tree = json.loads(lines[number])
    except (ValueError, IndexError):
        tree = {}
    places = list(branches(tree))
    if places:
        branch, key = draw.choice(places)
        branch[key] = draw.choice(ODD)
        lines[number] = json.dumps(tree)
    path.write_text("\n".join(lines) + "\n")


def branches(tree: Any) -> Iterator[tuple[Any, Any]]:
    inside = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in inside:
        yield tree, key
        yield from branches(value)


def without_key(path: Path, draw: random.Random) -> None:
    try:
        tree = json.loads(path.read_text().splitlines()[0] if path.suffix == ".jsonl" else path.read_text())
        del tree[draw.choice(list(tree))]
    except (ValueError, IndexError, TypeError):
        tree = {}
    path.write_text(json.dumps(tree) + "\n")


DAMAGES: dict[str, Callable[[Path, random.Random], None]] = {
    "empty": lambda path, draw: os.truncate(path, 0),
    "half": lambda path, draw: os.truncate(path, path.stat().st_size // 2),
    "one brace": lambda path, draw: path.write_text("{\n") and None,
    "nested": lambda path, draw: path.write_text("[" * 5000 + "\n") and None,
    "null": lambda path, draw: path.write_text("null\n") and None,
    "a list": lambda path, draw: path.write_text("[]\n") and None,
    "no key": lambda path, draw: path.write_text("{}\n") and None,
    "a string": lambda path, draw: path.write_text('"x"\n') and None,
    "not UTF-8": lambda path, draw: path.write_bytes(b'{"step": "\xff"}\n') and None,
    "zeros": lambda path, draw: path.write_bytes(bytes(200)) and None,
    "digits": lambda path, draw: path.write_text('{"step": ' + "1" * 5000 + "}\n") and None,
    "a key less": without_key,
    "a newer key": lambda path, draw: path.write_text('{"colour": "red", ' + path.read_text().strip()[1:] + "\n") and None,
    "an odd value": with_odd_value,
    "another odd value": with_odd_value,
    "a third odd value": with_odd_value,
    "missing": lambda path, draw: path.unlink(),
    "a folder": lambda path, draw: as_folder(path),
    "a pipe": lambda path, draw: as_pipe(path),
    "a link to nowhere": lambda path, draw: as_link(path),
}


class Trial(NamedTuple):
    """One damage to one file."""

    file: str
    damage: str
    going_on: bool = False
    """Or finished."""
    seed: int = 0

    def __str__(self) -> str:
        return f"{self.file}: {self.damage}{' while it runs' if self.going_on else ''} ({self.seed})"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A finished run with every file that a run folder can have."""
    folder = run(prepare(tmp_path_factory.mktemp("whole") / "toy-s3-01234567", toy_spec()))
    submission = folder.path.parent / ".submissions" / "abcd"
    submission.mkdir(parents=True)
    (submission / "queue.log").write_text("started\n")
    job = Job("abcd", "local", 1.0, os.uname().nodename, str(submission), "1")
    note = {"attempt": "a", "host": "h", "time": 1.0, "reason": "it fell", "lost_peer": False}
    values = ((folder.job, asdict(job)), (folder.cancel, {"time": 1.0}), (folder.error(0), note))
    for path, value in (*values, (folder.attempt, asdict(Attempt("a"))), (folder.wandb, asdict(Sent("x", "p")))):
        folder.write_json(path, value)
    folder.log(0).parent.mkdir()
    folder.log(0).write_text("step 1\n")
    return folder


def said(*arguments: str) -> str:
    """What a command printed; a traceback of its own fails here."""
    result = CliRunner().invoke(app, list(arguments), prog_name="tclx")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code in (0, 1, 2, 3)
    assert result.exit_code == 0 or result.stderr.strip()
    return result.output


def endure(trial: Trial, whole: RunFolder, place: Path) -> None:
    folder = RunFolder(place / whole.run_id)
    shutil.copytree(whole.path, folder.path, ignore=shutil.ignore_patterns("checkpoints"))
    shutil.copytree(whole.path.parent / ".submissions", place / ".submissions")
    if trial.going_on:
        folder.write_state(RunState("running", step=6, total_steps=12))
        folder.cancel.unlink()
        folder.heartbeat.touch()
        folder.cancel.touch() if trial.file == "cancel.json" else None
    DAMAGES[trial.damage](folder.path / trial.file, random.Random(f"{trial}"))
    if not folder.spec.is_file():
        shutil.rmtree(place)  # no run folder any more
        return
    for command in COMMANDS:
        name, _, rest = command.partition(" ")
        run_id = folder.run_id if rest == "RUN" or name in ("logs", "report") else ""
        options = (*([run_id] if run_id else []), *([rest] if rest.startswith("--") else []))
        output = ["--output", str(place / "report.html")] if name == "report" else []
        printed = said(name, *options, *output, "--runs-dir", str(place))
        if rest == "--json" and printed.lstrip().startswith(("[", "{")):
            json.loads(printed.partition("\nerror")[0])
    shutil.rmtree(place)


@pytest.mark.parametrize(
    "trial",
    [
        Trial("job.json", "a newer key"),
        Trial("job.json", "empty"),
        Trial("state.json", "nested", going_on=True),
        Trial("attempt.json", "a string", going_on=True),
        Trial("metrics.jsonl", "a pipe", going_on=True),
        Trial("evaluation/retrieval-test.json", "an odd value"),
        Trial("events.jsonl", "nested"),
        Trial("environment.json", "a list"),
        Trial("evaluation/examples/retrieval-test.json", "no key"),
        Trial("evaluation/outcomes/retrieval-test.json", "an odd value"),
    ],
    ids=str,
)
def test_a_damaged_file_is_no_traceback(trial: Trial, whole: RunFolder, tmp_path: Path) -> None:
    endure(trial, whole, tmp_path / "runs")


@pytest.mark.faults
def test_every_damage_to_every_file_is_no_traceback(whole: RunFolder, tmp_path: Path) -> None:
    """TCLX_REPEATS=5 draws other odd values."""
    repeats = range(int(os.environ.get("TCLX_REPEATS", "1")))
    bad = []
    for seed in repeats:
        for going_on in (False, True):
            for trial in [Trial(file, damage, going_on, seed) for file in FILES for damage in DAMAGES]:
                try:
                    endure(trial, whole, tmp_path / "runs")
                except Exception as error:
                    bad.append(f"{trial}: {error!r}")
                    shutil.rmtree(tmp_path / "runs")
    assert bad == []
