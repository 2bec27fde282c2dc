"""Samplers of OptunaHub: fetched at a commit through git, or read from a copy; what is wrong is said before trial 1."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from typer.testing import CliRunner

from tclx.cli.app import app
from tclx.errors import InputError, MachineError
from tclx.sweep import hub
from tclx.sweep.study import build_sampler
from tests.sweep.toy import load, run, write_sweep

optunahub = pytest.importorskip("optunahub")

CODE = """
import optuna
from optuna.samplers import RandomSampler

class Middle(RandomSampler):
    def __init__(self, offset: float = 0.0, seed: int | None = None) -> None:
        super().__init__(seed=seed)
        self.offset, self.seed = offset, seed

    def sample_independent(self, study, trial, name, distribution):
        return (distribution.low * distribution.high) ** 0.5 * (1 + self.offset)

class NoSampler:
    pass
"""


@pytest.fixture
def registry(tmp_path: Path) -> Path:
    """A registry of its own: a git repository with one package."""
    root = tmp_path / "hub" / "optuna" / "optunahub-registry"
    package = root / "package" / "samplers" / "middle"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(CODE)
    (package / "README.md").write_text("---\ntitle: Middle\n---\n")
    git(root, "init", "-q")
    git(root, "add", "-A")
    git(root, "-c", "user.name=x", "-c", "user.email=x@x", "commit", "-qm", "one")
    git(root, "config", "uploadpack.allowAnySHA1InWant", "true")
    return root


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing fetched before, and nothing loaded stays."""
    monkeypatch.setenv("OPTUNAHUB_CACHE_HOME", str(tmp_path / "cache"))
    yield
    for name in [name for name in sys.modules if name.startswith("optunahub_registry.package")]:
        del sys.modules[name]


def git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout.strip()


def instead_of_the_hub(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    """git's own way to fetch from elsewhere: the hub's address stands for a folder."""
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", f"url.file://{place}/.insteadOf")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "https://github.com/")


def asked(**changes: Any) -> dict[str, Any]:
    whole = {"name": "optunahub", "package": "samplers/middle", "sampler": "Middle", **changes}
    return {"sampler": {key: value for key, value in whole.items() if value is not None}}


def first_rate(sampler: optuna.samplers.BaseSampler) -> float:
    return optuna.create_study(sampler=sampler).ask().suggest_float("x", 1e-4, 1e-2, log=True)


def test_a_sampler_is_fetched_at_its_commit_and_kept(registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = git(registry, "rev-parse", "HEAD")
    (registry / "package/samplers/middle/__init__.py").write_text("raise RuntimeError('newer')")
    git(registry, "-c", "user.name=x", "-c", "user.email=x@x", "commit", "-qam", "two")
    instead_of_the_hub(monkeypatch, registry.parents[1])
    sweep = load(tmp_path, **asked(ref=commit, arguments={"offset": 0.5}))
    sampler: Any = build_sampler(sweep, seed=3)
    assert (sampler.offset, sampler.seed) == (0.5, 3)
    assert first_rate(sampler) == pytest.approx(1.5e-3)
    instead_of_the_hub(monkeypatch, tmp_path / "nowhere")  # on a node without a network
    assert first_rate(build_sampler(sweep, seed=4)) == pytest.approx(1.5e-3)


def test_a_copy_of_the_registry_needs_no_network(registry: Path, tmp_path: Path) -> None:
    sweep = load(tmp_path, **asked(registry=str(registry)))
    assert first_rate(build_sampler(sweep, seed=0)) == pytest.approx(1e-3)


@pytest.mark.slow
def test_a_sweep_draws_its_trials_with_it(registry: Path, tmp_path: Path) -> None:
    code, out, err = run(write_sweep(tmp_path, num_trials=2, **asked(registry=str(registry))))
    assert code == 0, err
    assert "0.001" in out  # the middle of [1e-5, 1e-1] in logarithms
    (registry / "package/samplers/middle/__init__.py").write_text("raise SystemExit('ran')")
    named = CliRunner().invoke(app, ["sweep", "status", "toy-sweep", "--runs-dir", str(tmp_path / "runs")])
    assert named.exit_code == 0, named.output  # who reads runs nothing of it
    assert "2/2 trials" in named.output


def test_a_hub_that_cannot_be_reached_is_the_machines_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    instead_of_the_hub(monkeypatch, tmp_path / "nowhere")
    sweep = load(tmp_path, **asked(ref="0" * 40))
    with pytest.raises(MachineError, match=r"samplers/middle could not be fetched .*name a copy of the registry"):
        build_sampler(sweep, seed=0)


@pytest.mark.parametrize(
    ("changes", "key", "words"),
    [
        ({}, "sampler", "exactly one of `ref` and `registry`"),
        ({"ref": "main"}, "sampler.ref", "a commit of 40 hexadecimal digits"),
        ({"ref": "0" * 40, "package": "pruners/x"}, "sampler.package", "a package of samplers"),
        ({"ref": "0" * 40, "sampler": "a b"}, "sampler.sampler", "the name of a class"),
        ({"ref": "0" * 40, "seed": 1}, "sampler.seed", "unknown key"),
    ],
)
def test_a_mistake_is_said_at_its_line(tmp_path: Path, changes: dict[str, Any], key: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        load(tmp_path, **asked(**changes))
    (problem,) = caught.value.problems
    assert (problem.key, words in str(problem)) == (key, True)


def test_planning_runs_no_code_of_the_package_and_names_one_that_is_not_there(registry: Path, tmp_path: Path) -> None:
    (registry / "package/samplers/middle/__init__.py").write_text("raise SystemExit('ran')")
    load(tmp_path, **asked(registry=str(registry)))
    with pytest.raises(InputError, match=r"has no package/samplers/other/__init__\.py"):
        load(tmp_path, **asked(registry=str(registry), package="samplers/other"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sampler": "NoSampler"}, "has no sampler `NoSampler` .it has Middle, RandomSampler"),
        ({"arguments": {"ofset": 1.0}}, "cannot be made with these: .*unexpected keyword"),
    ],
)
def test_what_the_package_cannot_give_is_said(registry: Path, tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    sweep = load(tmp_path, **asked(registry=str(registry), **changes))
    with pytest.raises(InputError, match=words):
        build_sampler(sweep, seed=0)


def test_without_the_extra_it_is_named(registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "find_spec", lambda _name: None)
    with pytest.raises(InputError, match=r"optunahub is not installed .pip install 'tclx.optunahub.'"):
        load(tmp_path, **asked(registry=str(registry)))
