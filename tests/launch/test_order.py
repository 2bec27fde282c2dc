"""Promises of `plan_runs`: prerequisites first, each run once, identities that follow the weights a run starts from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tclx.errors import InputError
from tclx.launch.order import PlannedRun, plan_runs
from tests.launch.toy import write_spec


def plan(*paths: Path, runs_dir: Path = Path("runs"), overrides: tuple[str, ...] = ()) -> list[PlannedRun]:
    return plan_runs(paths, overrides, runs_dir=runs_dir)


def names(runs: list[PlannedRun]) -> list[str]:
    return [run.plan.run_id.rsplit("-", 1)[0] for run in runs]


def test_variants_and_seeds_become_runs_in_order(tmp_path: Path) -> None:
    spec = write_spec(tmp_path, variants={"cma": {"objectives": {"imc": None}}, "tcl": {}}, seeds=[0, 1])
    assert names(plan(spec)) == ["toy-cma-s0", "toy-cma-s1", "toy-tcl-s0", "toy-tcl-s1"]


def test_what_a_run_starts_from_comes_before_it_and_once(tmp_path: Path) -> None:
    write_spec(tmp_path, "pre", seeds=[0, 1])
    fine = write_spec(tmp_path, "fine", seeds=[0, 1], init={"experiment": "pre.yaml"})
    other = write_spec(tmp_path, "other", init={"experiment": "pre.yaml"})
    runs = plan(fine, other, runs_dir=tmp_path / "runs")
    assert names(runs) == ["pre-s0", "fine-s0", "pre-s1", "fine-s1", "other-s0"]
    assert [run.asked_for for run in runs] == [False, True, False, True, True]
    first, second = runs[:2]
    assert second.needs == first.plan.run_id
    assert second.spec.init is not None
    assert second.spec.init.checkpoint == str(tmp_path / "runs" / first.plan.run_id)


def test_a_run_that_is_asked_for_too_counts_as_asked_for(tmp_path: Path) -> None:
    pre = write_spec(tmp_path, "pre")
    fine = write_spec(tmp_path, "fine", init={"experiment": "pre.yaml"})
    for order in ((pre, fine), (fine, pre)):
        runs = plan(*order)
        assert names(runs) == ["pre-s0", "fine-s0"]
        assert all(run.asked_for for run in runs)


def test_identity_follows_the_prerequisite_not_its_place(tmp_path: Path) -> None:
    write_spec(tmp_path, "pre")
    fine = write_spec(tmp_path, "fine", init={"experiment": "pre.yaml"})
    here, there = plan(fine, runs_dir=tmp_path / "a"), plan(fine, runs_dir=tmp_path / "b")
    assert here[1].plan.run_id == there[1].plan.run_id
    write_spec(tmp_path, "pre", optim={"learning_rate": 0.5})
    assert plan(fine)[1].plan.run_id != here[1].plan.run_id


def test_overrides_change_what_was_asked_for_alone(tmp_path: Path) -> None:
    write_spec(tmp_path, "pre")
    fine = write_spec(tmp_path, "fine", init={"experiment": "pre.yaml"})
    pre, changed = plan(fine, overrides=("optim.learning_rate=0.25",))
    assert (pre.spec.optim.learning_rate, changed.spec.optim.learning_rate) == (1e-3, 0.25)


def test_a_variant_may_start_from_another_variant_of_its_file(tmp_path: Path) -> None:
    variants = {"first": {}, "second": {"init": {"experiment": "two.yaml", "variant": "first"}}}
    assert names(plan(write_spec(tmp_path, "two", variants=variants))) == ["two-first-s0", "two-second-s0"]


def test_of_several_variants_the_named_one_is_what_a_run_starts_from(tmp_path: Path) -> None:
    write_spec(tmp_path, "pre", variants={"first": {}, "second": {"optim": {"learning_rate": 0.5}}})
    fine = write_spec(tmp_path, "fine", init={"experiment": "pre.yaml", "variant": "second"})
    assert names(plan(fine)) == ["pre-second-s0", "fine-s0"]


def test_a_circle_of_experiments_is_refused_at_its_line(tmp_path: Path) -> None:
    one = write_spec(tmp_path, "one", init={"experiment": "two.yaml"})
    write_spec(tmp_path, "two", init={"experiment": "one.yaml"})
    with pytest.raises(InputError, match=r"two\.yaml:\d+:\d+: init\.experiment: .*circle: one\.yaml -> two\.yaml -> one"):
        plan(one)


def test_a_circle_through_a_variant_names_it(tmp_path: Path) -> None:
    one = write_spec(tmp_path, "one", variants={"long": {"init": {"experiment": "two.yaml"}}})
    write_spec(tmp_path, "two", init={"experiment": "one.yaml", "variant": "long"})
    with pytest.raises(InputError, match=r"circle: one\.yaml \(long\) -> two\.yaml -> one\.yaml$"):
        plan(one)


@pytest.mark.parametrize(
    ("pre", "init", "message"),
    [
        ({"variants": {"a": {}, "b": {}}}, {}, "several variants: name one of a, b"),
        ({"variants": {"a": {}}}, {"variant": "c"}, "no variant 'c' .it has a"),
        ({"seeds": [1, 2]}, {}, "the seeds 1, 2 but not this run's seed 0"),
    ],
)
def test_an_unclear_prerequisite_is_refused(tmp_path: Path, pre: dict[str, object], init: dict[str, str], message: str) -> None:
    write_spec(tmp_path, "pre", **pre)
    with pytest.raises(InputError, match=message):
        plan(write_spec(tmp_path, "fine", init={"experiment": "pre.yaml", **init}))


def test_problems_of_all_files_come_at_once(tmp_path: Path) -> None:
    one = write_spec(tmp_path, "one", trainnig={})
    two = write_spec(tmp_path, "two", training={"steps": 2, "batch_size_per_gpu": 1000})
    with pytest.raises(InputError) as caught:
        plan(one, two)
    assert {problem.key for problem in caught.value.problems} >= {"trainnig", "training.batch_size_per_gpu"}


def test_a_queue_larger_than_an_epoch_is_warned_of(tmp_path: Path) -> None:
    (small,) = plan(write_spec(tmp_path))
    num_rows = small.plan.num_train_rows
    assert small.warnings == ()
    batch = small.plan.global_micro_batch_size
    (large,) = plan(write_spec(tmp_path), overrides=(f"model.queue_size={num_rows + batch}",))
    assert len(large.warnings) == 1
    assert large.warnings[0].startswith(
        f"model.queue_size: the queue of {num_rows + batch} holds more than an epoch ({num_rows} rows)"
    )


@pytest.mark.parametrize(
    ("changes", "is_warned_of"),
    [
        ({}, False),  # with IMC
        ({"objectives": {"imc": None, "lmi": None}}, True),
        ({"objectives": {"imc": None}}, True),
        ({"objectives": {"imc": None, "lmi": None}, "model": {"queue_size": 0}}, False),
        ({"objectives": {"imc": None, "lmi": None}, "model": {"queue_size": 64}}, False),  # no key is older than a step
        ({"objectives": {"cma": None, "imc": None}}, False),
        ({"objectives": {"imc": None, "centred_queue": True}}, False),
    ],
)
def test_cma_alone_with_a_queue_from_random_weights_is_warned_of(
    changes: dict[str, Any], is_warned_of: bool, tmp_path: Path
) -> None:
    (tmp_path / "spec.json").write_text(json.dumps({"name": "cma", "extends": "tclx:quickstart", **changes}))
    (run,) = plan_runs([tmp_path / "spec.json"], runs_dir=tmp_path / "runs")
    said = [one for one in run.warnings if "told by their age" in one]
    assert bool(said) == is_warned_of
