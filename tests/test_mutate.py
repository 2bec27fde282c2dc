"""The mutation runner breaks what it says, and tells a line that a test needs from one that none does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import mutate
from benchmarks.mutate import ELSEWHERE, mutants_of, nearest_tests, sample

PROJECT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("line", "broken"),
    [
        ("x = a < b", {"x = a <= b"}),
        ("x = (a) is (b)", {"x = (a) is not (b)"}),
        ("x = a in b", {"x = a not in b"}),
        ("x = a + b", {"x = a - b"}),
        ("x = a // b", {"x = a * b"}),
        ("x = a and b and c", {"x = a or b and c", "x = a and b or c"}),
        ("x = not a", {"x = (a)"}),
        ("x = -a", {"x = (a)"}),
        ("x = a if b else c", {"x = a if (not (b)) else c"}),
        ("x = 3", {"x = 4"}),
        ("x = 0.5", {"x = 1.0"}),
        ("x = 0.0", {"x = 1.0"}),
        ("x = True", {"x = False"}),
        ("x = f(a, b)", {"x = f(b, a)"}),
        ("x = f(a, a)", set()),
        ("x = max(a, b)", set()),
        ("x = f(a, key=b)", {"x = f(a, )"}),
        ("f()", {"pass"}),
        ("a.b = c", {"pass"}),
        ("a += b", {"pass"}),
        ("raise f", {"pass"}),
        ('x = "ü", a < b', {'x = "ü", a <= b'}),
        # left alone: texts, annotations, docstrings, zip's strict, what only a type checker reads
        ('"""text"""', set()),
        ('x = "text"', set()),
        ("x: Literal[1] = y", set()),
        ("x = zip(a, strict=True)", set()),
        ("x = f'{a < b}'", set()),
    ],
)
def test_a_line_is_broken_in_every_way_that_is_listed(line: str, broken: set[str]) -> None:
    assert {mutant.apply(f"{line}\n").rstrip("\n") for mutant in mutants_of(f"{line}\n")} == broken


def test_every_mutant_of_this_project_differs_in_one_line_and_is_python() -> None:
    for path in sorted((PROJECT / "tclx").rglob("*.py"))[::12]:
        source = path.read_text(encoding="utf-8")
        for mutant in mutants_of(source)[::10]:
            before, after = source.splitlines(), mutant.apply(source).splitlines()
            assert [number for number, pair in enumerate(zip(before, after, strict=True), start=1) if pair[0] != pair[1]] == [
                mutant.line
            ]


def test_a_sample_is_the_same_for_the_same_seed_and_has_no_line_twice() -> None:
    files = sorted((PROJECT / "tclx" / "losses").glob("*.py"))
    drawn = sample(files, number=20, seed=3)
    assert drawn == sample(files, number=20, seed=3) != sample(files, number=20, seed=4)
    assert len({(path, mutant.line) for path, mutant in drawn}) == 20


def test_the_nearest_tests_mirror_the_module() -> None:
    near = {
        name: [str(path) for path in nearest_tests(PROJECT / "tclx" / name, PROJECT)]
        for name in ("losses/matching.py", "runs.py", "spec/rules.py", "tasks/retrieval/examples.py", "launch/prepare.py")
    }
    assert near["losses/matching.py"] == ["tests/losses/test_matching.py"]
    assert near["runs.py"] == ["tests/test_runs.py"]
    assert near["spec/rules.py"] == ["tests/test_plan.py", "tests/spec/test_validation.py"]
    assert near["launch/prepare.py"]
    assert all(path.startswith("tests/launch/test_") for path in near["launch/prepare.py"])


def test_what_is_tested_elsewhere_is_there_and_has_no_file_of_its_own() -> None:
    for module, tests in ELSEWHERE.items():
        path = PROJECT / "tclx" / module
        assert path.is_dir() if module.endswith("/") else path.is_file(), module
        assert not (PROJECT / "tests" / path.parent.relative_to(PROJECT / "tclx") / f"test_{path.name}").exists(), module
        assert all((PROJECT / "tests" / name).is_file() for name in tests), module


def test_a_needed_line_is_killed_and_another_survives(tmp_path: Path) -> None:
    """A project of two functions, one of them tested."""
    project = tmp_path / "project"
    (project / "tclx").mkdir(parents=True)
    (project / "tests").mkdir()
    (project / "benchmarks").mkdir()
    module = "def doubled(n):\n    return n * 2\n\n\ndef added(a):\n    return a + 2\n"
    (project / "tclx" / "__init__.py").write_text("")
    (project / "tclx" / "sums.py").write_text(module)
    (project / "tests" / "test_sums.py").write_text(
        "from tclx.sums import doubled\n\n\ndef test_it():\n    assert doubled(3) == 6\n"
    )
    script = Path(mutate.__file__).read_text(encoding="utf-8")
    start, end = script.index("HEAVY = ("), script.index('"""Imported once')
    light = script[:start] + 'HEAVY = ("pytest",)\n' + script[end:]
    (project / "benchmarks" / "mutate.py").write_text(light)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], cwd=project, check=True)
    done = subprocess.run(
        [sys.executable, "benchmarks/mutate.py", "tclx/sums.py"], cwd=project, capture_output=True, text=True, check=False
    )
    words = {
        (line.split("sums.py:")[1].split("  ->  ")[1], "SURVIVED" in line)
        for line in done.stdout.splitlines()
        if "sums.py:" in line
    }
    assert done.returncode == 1, done.stderr
    assert {text for text, survived in words if survived} == {"return a - 2", "return a + 3"}
    assert {text for text, survived in words if not survived} == {"return n / 2", "return n * 3"}
    assert "survivors: operator 1, constant 1" in done.stdout or "survivors: constant 1, operator 1" in done.stdout
    assert (project / "tclx" / "sums.py").read_text() == module
