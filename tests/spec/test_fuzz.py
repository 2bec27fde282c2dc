"""Whatever a spec file holds, loading it ends in experiments or in an InputError with words. TCLX_FUZZ=10000 tries harder."""

from __future__ import annotations

import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from tclx.errors import InputError
from tclx.launch.order import plan_runs
from tclx.spec.load import load_experiments
from tclx.sweep.load import load_sweep
from tests.spec.documents import GOOD, write

NUM_TRIALS = int(os.environ.get("TCLX_FUZZ", "300"))
RICH = (
    GOOD.replace("seed: 3", "extends: base.yaml\nseeds: [0, 1]")
    + "init: {checkpoint: '~/x'}\nvariants:\n  a: {objectives: {imc: {}}}\n  b: {optim: {schedule: {name: constant}}}\n"
)
FRAGMENTS = [
    *("null", ".nan", "1e999", "-1", "0", "012", "[]", "{}", "''", '"\\ud800"', '"\\0"', '"\\UFFFFFFFF"', "2026-01-01", "yes"),
    *(
        "*a",
        "&a",
        "!!set",
        "!x",
        "<<",
        "?",
        "|",
        ">",
        "%",
        "@",
        "`",
        "-",
        ":",
        ",",
        "[",
        "]",
        "{",
        "}",
        "#",
        "---",
        "...",
        "%YAML",
    ),
    *("extends:", "seeds:", "variants:", "name:", "source:", "${HOME}", "${X}", "~", "~x/y", "99999999999999999999"),
    *("\t", "\r", "\x00", "\x85", "\u2028", "\ufeff", "é", "🙂"),
]


def mutated(text: str, rng: random.Random) -> str:
    """One or two small accidents."""
    for _ in range(rng.randint(1, 2)):
        at, lines = rng.randrange(len(text) + 1), text.split("\n")
        row, other = rng.randrange(len(lines)), rng.randrange(len(lines))
        accident = rng.randrange(8)
        if accident == 0:
            text = text[:at] + rng.choice(FRAGMENTS) + text[at:]
        elif accident == 1:
            text = text[:at] + text[at + rng.randint(1, 8) :]
        elif accident == 2:
            lines.insert(other, lines[row])
        elif accident == 3:
            lines[row], lines[other] = lines[other], lines[row]
        elif accident == 4:
            lines[row] = " " * rng.randrange(5) + lines[row].lstrip()
        elif accident == 5:
            key, colon, _ = lines[row].partition(":")
            lines[row] = f"{key}{colon} {rng.choice(FRAGMENTS)}"
        elif accident == 6:
            text = (
                text[:at]
                + chr(rng.choice([rng.randrange(128), rng.randrange(0xD800), rng.randrange(0xE000, 0x11000)]))
                + text[at:]
            )
        else:
            words = text.split(" ")
            words[rng.randrange(len(words))] = rng.choice([*FRAGMENTS, *words])
            text = " ".join(words)
        text = "\n".join(lines) if accident in (2, 3, 4, 5) else text
    return text


def outcome(path: Path, overrides: Sequence[str] = ()) -> str:
    """What became of it; anything but experiments or an InputError with words fails the test."""
    try:
        return "loaded" if load_experiments(path, overrides) else "nothing"
    except InputError as error:
        return "refused" if all(problem.message for problem in error.problems) and error.problems else "no words"


def mutations(number: int, folder: Path, seed: int) -> Counter[str]:
    """Accidents in the files that ship with tclx: each is planned without its data, or checked as a sweep."""
    rng = random.Random(seed)
    project = Path(__file__).resolve().parents[2]
    for kind in ("experiments", "sweeps"):
        shutil.copytree(project / kind, folder / kind)
    files = sorted(folder.rglob("*.yaml"))
    outcomes: Counter[str] = Counter()
    for _ in range(number):
        path = rng.choice(files)
        text = path.read_text(encoding="utf-8")
        spoilt = path.with_name("spoilt.yaml")
        spoilt.write_bytes(mutated(text, rng).encode("utf-8", errors="surrogatepass"))
        started = time.process_time()
        try:
            if "sweeps" in path.parts:
                load_sweep(spoilt, runs_dir=folder / "runs")
            else:
                plan_runs([spoilt], runs_dir=folder / "runs", without_data=True)
            words = "accepted"
        except InputError as error:
            words = str(error)
        outcomes["accepted" if words == "accepted" else "refused"] += 1
        assert words.strip()
        assert len(words.splitlines()) < 200
        assert time.process_time() - started < 10, spoilt.read_text(encoding="utf-8", errors="replace")
    print(f"{number} mutations: {dict(outcomes)}")
    return outcomes


def test_accidents_in_the_shipped_files_are_planned_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TCLX_DATA", "/data")
    assert set(mutations(80, tmp_path, seed=3)) <= {"accepted", "refused"}


@pytest.mark.faults
def test_thousands_of_accidents_in_the_shipped_files_are_planned_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TCLX_DATA", "/data")
    outcomes = mutations(12_000, tmp_path, seed=4)
    assert outcomes["accepted"] + outcomes["refused"] == 12_000
    assert min(outcomes.values()) > 500  # the accidents are neither all fatal nor all harmless


def test_no_mutation_of_a_file_raises_anything_but_an_input_error(tmp_path: Path) -> None:
    write(tmp_path, GOOD, "base.yaml")
    path, rng = tmp_path / "fuzz.yaml", random.Random(0)
    outcomes: Counter[str] = Counter()
    for _ in range(NUM_TRIALS):
        path.write_bytes(mutated(RICH, rng).encode("utf-8", errors="surrogatepass"))
        outcomes[outcome(path)] += 1
    assert set(outcomes) == {"loaded", "refused"}
    assert min(outcomes.values()) > NUM_TRIALS // 20  # the accidents are neither all fatal nor all harmless


def test_no_bytes_raise_anything_but_an_input_error(tmp_path: Path) -> None:
    path, rng = tmp_path / "fuzz.yaml", random.Random(1)
    for _ in range(NUM_TRIALS // 3):
        content = bytearray(RICH.encode())
        for _ in range(rng.randint(1, 20)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        path.write_bytes(content)
        assert outcome(path) in ("loaded", "refused")


def test_no_override_raises_anything_but_an_input_error(tmp_path: Path) -> None:
    path, rng = write(tmp_path, GOOD), random.Random(2)
    keys = [
        "seed",
        "seeds",
        "name",
        "variants",
        "objectives.imc.weight",
        "data.train.source",
        "optim.schedule.name",
        "optim.betas",
    ]
    for _ in range(NUM_TRIALS // 3):
        text = mutated(f"{rng.choice(keys)}={rng.choice([*FRAGMENTS, '[1, 2]', '{a: b}'])}", rng)
        assert outcome(path, [text]) in ("loaded", "refused")
