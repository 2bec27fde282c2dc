"""Whole sweeps with real workers and real training: nothing is lost, nothing is done twice, whatever happens to the workers."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image
from ruamel.yaml import YAML

from tclx.launch.local.queue import launch
from tclx.launch.order import plan_runs
from tclx.runs import RunFolder
from tclx.sweep.study import StudyFolder
from tests.launch.toy import SPEC
from tests.sweep.toy import EVALUATION, TRAINING, finish, run, start, status, wait_until, write_sweep
from tests.train.toy import outcome

pytestmark = pytest.mark.slow
LONG = {"training": {**TRAINING, "steps": 60}, "evaluation": {**EVALUATION, "every_steps": 20}}


def _runs(tree: dict[str, Any], folder: Path) -> list[RunFolder]:
    return [RunFolder(folder / "runs" / run_id) for trial in tree["trials"] for run_id in trial["runs"]]


def _workers(folder: Path) -> list[psutil.Process]:
    """The workers of the study in this folder."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "tclx.sweep.worker" in words and words[-1].startswith(str(folder)):
            found.append(process)
    return found


def _steps(folder: RunFolder) -> list[int]:
    """The steps of the training rows."""
    rows = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    return [row["step"] for row in rows if "loss/total" in row]


def _trains(folder: Path, past: int) -> bool:
    """Whether some run has gone past a step."""
    states = [RunFolder(path.parent).read_state() for path in (folder / "runs").glob("*/state.json")]
    return any(state is not None and state.status == "running" and state.step >= past for state in states)


def test_a_sweep_runs_to_its_end_and_trial_0_is_the_ordinary_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as the sweep's; the last bits depend on it
    path = write_sweep(tmp_path, num_trials=4, num_workers=2, constraints=[{"metric": "loss/total", "at_most": 1000.0}])
    code, stdout, stderr = run(path)
    assert code == 0, stderr
    tree = status(path)
    assert [trial["state"] for trial in tree["trials"]] == ["finished"] * 4
    assert all(len(trial["evaluations"]) == 4 for trial in tree["trials"])
    for trial in tree["trials"]:
        assert trial["values"][0] == max(trial["evaluations"].values())
        assert trial["constraints"]["loss/total"] < 0
    best = tree["trials"][tree["best"][0]]
    assert best["values"][0] == max(trial["values"][0] for trial in tree["trials"])
    assert "0 (the experiment)" in stdout
    assert stderr.count("trial ") >= 4

    (ordinary,) = plan_runs([tmp_path / "toy.yaml"], runs_dir=tmp_path / "alone")
    launch([ordinary], runs_dir=tmp_path / "alone", into_logs=True)
    first = RunFolder(tmp_path / "runs" / tree["trials"][0]["runs"][0])
    assert first.run_id == ordinary.plan.run_id
    assert outcome(first) == outcome(RunFolder(tmp_path / "alone" / ordinary.plan.run_id))

    # Again: nothing is left to do, and nothing is done.
    before = {found: found.stat().st_mtime_ns for found in (tmp_path / "runs").glob("*/metrics.jsonl")}
    code, _, stderr = run(path)
    assert code == 0, stderr
    assert status(path)["trials"] == tree["trials"]
    assert {found: found.stat().st_mtime_ns for found in (tmp_path / "runs").glob("*/metrics.jsonl")} == before

    # The best trial as an experiment is the same training.
    exported = _best(path)
    (again,) = plan_runs([exported], runs_dir=tmp_path / "alone")
    assert again.spec.optim.learning_rate == pytest.approx(best["changes"]["optim.learning_rate"], rel=1e-15)
    launch([again], runs_dir=tmp_path / "alone", into_logs=True)
    assert (
        outcome(RunFolder(tmp_path / "alone" / again.plan.run_id)).rows == outcome(_runs({"trials": [best]}, tmp_path)[0]).rows
    )


def _best(path: Path) -> Path:
    from tclx.sweep.export import experiment_of
    from tclx.sweep.parts import open_parts
    from tclx.sweep.study import find_study

    (part,) = open_parts(find_study(str(path), path.parent / "runs"))
    exported = path.parent / "best.yaml"
    exported.write_text(experiment_of(part))
    return exported


def test_a_killed_workers_trial_goes_on_where_it_was_saved(tmp_path: Path) -> None:
    path = write_sweep(tmp_path, num_trials=2, experiment=LONG)
    process = start(path)
    wait_until(lambda: _trains(tmp_path, past=10))
    (worker,) = _workers(tmp_path)
    worker.kill()
    code, _, stderr = finish(process)
    assert code == 0, stderr
    assert "was killed by SIGKILL and is started again" in stderr
    tree = status(path)
    assert [trial["state"] for trial in tree["trials"]] == ["finished"] * 2
    first = _runs(tree, tmp_path)[0]
    assert _steps(first) == list(range(1, 61))
    events = [json.loads(line)["event"] for line in first.events.read_text().splitlines()]
    assert events.count("resumed") == 1
    assert events.count("finished") == 1
    claim = json.loads(StudyFolder.of("toy-sweep", tmp_path / "runs").claim(0).read_text())
    assert (claim["starts"], claim["deaths"]) == (2, 0)

    undisturbed = (
        write_sweep(tmp_path / "undisturbed", num_trials=1, experiment=LONG)
        if (tmp_path / "undisturbed").mkdir() is None
        else path
    )
    assert run(undisturbed)[0] == 0
    assert outcome(first) == outcome(_runs(status(undisturbed), tmp_path / "undisturbed")[0])


def test_ctrl_c_saves_and_the_same_command_goes_on(tmp_path: Path) -> None:
    path = write_sweep(tmp_path, num_trials=2, num_workers=2, experiment=LONG)
    process = start(path)
    wait_until(lambda: _trains(tmp_path, past=5))
    process.send_signal(signal.SIGINT)
    code, _, stderr = finish(process)
    assert code == 130, stderr
    assert "everything is saved; the same command goes on" in stderr
    assert not _workers(tmp_path)
    assert "interrupted" in [trial["state"] for trial in status(path)["trials"]]
    code, _, stderr = run(path)
    assert code == 0, stderr
    tree = status(path)
    assert [trial["state"] for trial in tree["trials"]] == ["finished"] * 2
    assert all(_steps(folder) == list(range(1, 61)) for folder in _runs(tree, tmp_path))
    claims = [json.loads(found.read_text()) for found in (tmp_path / "runs/sweeps/toy-sweep/trials").glob("*.json")]
    assert all(claim["deaths"] == 0 for claim in claims)


def test_a_second_ctrl_c_ends_at_once_what_cannot_stop_and_the_same_command_goes_on(tmp_path: Path) -> None:
    path = write_sweep(tmp_path, num_trials=1, experiment=LONG)
    process = start(path)
    wait_until(lambda: _trains(tmp_path, past=5))
    (worker,) = _workers(tmp_path)
    for one in (worker, *worker.children(recursive=True)):
        one.suspend()  # as good as stuck: no request is heard
    process.send_signal(signal.SIGINT)
    time.sleep(1)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    asked_at = time.monotonic()
    code, _, stderr = finish(process)
    assert time.monotonic() - asked_at < 10
    assert code == 130, stderr
    assert "stopping: what runs saves after its step and ends; once more: ends at once" in stderr
    assert "ended at once, not everything is saved; the same command goes on from the newest checkpoints" in stderr
    assert not _workers(tmp_path)
    code, _, stderr = run(path)
    assert code == 0, stderr
    tree = status(path)
    assert [trial["state"] for trial in tree["trials"]] == ["finished"]
    assert _steps(_runs(tree, tmp_path)[0]) == list(range(1, 61))


def test_the_pool_itself_may_be_killed(tmp_path: Path) -> None:
    path = write_sweep(tmp_path, num_trials=2, experiment=LONG)
    process = start(path)
    wait_until(lambda: _trains(tmp_path, past=5))
    process.kill()
    process.communicate()
    # The worker goes on by itself; a second command only watches it, and starts no other.
    code, _, stderr = run(path)
    assert code == 0, stderr
    assert "at work already" in stderr
    tree = status(path)
    assert [trial["state"] for trial in tree["trials"]] == ["finished"] * 2
    assert all(_steps(folder) == list(range(1, 61)) for folder in _runs(tree, tmp_path))


def test_of_two_commands_at_once_one_works_and_the_other_watches(tmp_path: Path) -> None:
    path = write_sweep(tmp_path, num_trials=2, num_workers=1)
    ended = [finish(process) for process in [start(path), start(path)]]
    assert [code for code, _, _ in ended] == [0, 0], ended
    assert sorted("at work already" in stderr for _, _, stderr in ended) == [False, True]
    tree = status(path)
    assert [trial["state"] for trial in tree["trials"]] == ["finished"] * 2
    log = (tmp_path / "runs/sweeps/toy-sweep/logs/worker0.log").read_text()
    assert [log.count(f"trial {number}: begins") for number in range(2)] == [1, 1]


def test_a_trial_that_fails_by_itself_is_recorded_and_stops_nobody(tmp_path: Path) -> None:
    # One trial allows fewer pixels than one of the images has, which only reading the image shows.
    too_few = {"data.bad_images.max_pixels": 10_000}
    path = write_sweep(
        tmp_path,
        space={"data.bad_images.max_pixels": {"choices": [50_000_000, 10_000]}},
        num_trials=3,
        sampler={"name": "grid"},
        points=[too_few],
        experiment={"data": {**SPEC["data"], "train": _photos(tmp_path, [16] * 15 + [120])}},
    )
    code, _, stderr = run(path)
    assert code == 0, stderr
    tree = status(path)
    failed = tree["trials"][1]
    assert failed["state"] == "failed"
    assert "1 of 16 images cannot be used" in failed["reason"]
    assert "15.png: has 120 x 120 pixels" in failed["reason"]
    assert tree["trials"][0]["state"] == "finished"
    assert tree["running"] == 0


def test_a_pruned_trial_ends_early_and_says_why(tmp_path: Path) -> None:
    # Trial 0 learns; a rate of almost nothing stays behind it from the first evaluation on.
    ranges = {"optim.learning_rate": {"log_uniform": [1e-12, 1e-1]}}
    hopeless = [{"optim.learning_rate": rate} for rate in (1e-12, 2e-12, 3e-12)]
    experiment = {
        "training": {**TRAINING, "steps": 120},
        "evaluation": {**EVALUATION, "every_steps": 10},
        "optim": {"learning_rate": 3e-3},
        "data": _more_data(),
    }
    path = write_sweep(
        tmp_path,
        space=ranges,
        points=hopeless,
        num_trials=4,
        pruner={"name": "median", "startup_trials": 1, "first_evaluations": 2},
        experiment=experiment,
    )
    code, _, stderr = run(path)
    assert code == 0, stderr
    tree = status(path)
    assert tree["trials"][0]["state"] == "finished"
    pruned = [trial for trial in tree["trials"] if trial["state"] == "pruned"]
    assert pruned
    for trial in pruned:
        assert "after evaluation" in trial["reason"]
        state = RunFolder(tmp_path / "runs" / trial["runs"][0]).read_state()
        assert state is not None
        assert state.step < 120
        assert state.reason is not None
        assert state.reason.startswith("pruned after evaluation")


def _photos(folder: Path, sizes: list[int]) -> dict[str, Any]:
    """A source of square images with these sides."""
    rows = [{"image": f"{number}.png", "caption": f"image number {number}"} for number in range(len(sizes))]
    for row, size in zip(rows, sizes, strict=True):
        Image.new("RGB", (size, size), (size, 0, 0)).save(folder / row["image"])
    annotations = folder / "photos.json"
    annotations.write_text(json.dumps(rows))
    return {"source": "files", "form": "pretrain", "files": [str(annotations)], "image_root": str(folder)}


def _more_data() -> dict[str, Any]:
    return {**SPEC["data"], "train": {**SPEC["data"]["train"], "num_images": 64}}


def test_seeds_are_averaged_and_shared_with_ordinary_runs(tmp_path: Path) -> None:
    path = write_sweep(tmp_path, seeds=[3, 4], num_trials=2, pruner={"name": "wilcoxon"})
    code, _, stderr = run(path)
    assert code == 0, stderr
    for trial in status(path)["trials"]:
        assert trial["state"] == "finished"
        assert len(trial["runs"]) == 2
        curves = [json.loads(line) for found in _runs({"trials": [trial]}, tmp_path) for line in [json.dumps(_curve(found))]]
        assert trial["values"][0] == pytest.approx(sum(max(curve) for curve in curves) / 2)
        assert list(trial["evaluations"].values()) == [max(curve) for curve in curves]


def _curve(folder: RunFolder) -> list[float]:
    rows = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    return [row["retrieval/val/r_mean"] for row in rows if "retrieval/val/r_mean" in row]


def test_a_detached_sweep_outlives_its_terminal(tmp_path: Path) -> None:
    path = write_sweep(tmp_path, num_trials=2)
    process = start(path, "--detach")
    group = os.getpgid(process.pid)
    code, _, stderr = finish(process)
    assert code == 0, stderr
    with pytest.raises(ProcessLookupError):
        os.killpg(group, signal.SIGHUP)  # nothing of it is left in the terminal's group
    wait_until(lambda: status(path)["finished"] == 2)


def test_several_objectives_are_all_told(tmp_path: Path) -> None:
    objective = [
        {"metric": "retrieval/val/r_mean", "direction": "maximize"},
        {"metric": "cost/gpu_hours", "direction": "minimize"},
    ]
    path = write_sweep(tmp_path, objective=objective, num_trials=2)
    code, stdout, stderr = run(path)
    assert code == 0, stderr
    for trial in status(path)["trials"]:
        (found,) = _runs({"trials": [trial]}, tmp_path)
        rows = [json.loads(line) for line in found.metrics.read_text().splitlines()]
        hours = sum(8 / row["speed/images_per_second"] for row in rows if "speed/images_per_second" in row) / 3600
        assert trial["values"] == [pytest.approx(max(_curve(found))), pytest.approx(hours)]
    assert "cost/gpu_hours" in stdout


def test_an_experiment_with_variants_is_swept_by_name(tmp_path: Path) -> None:
    path = write_sweep(
        tmp_path,
        variant="small",
        num_trials=1,
        experiment={"variants": {"small": {"model": {"queue_size": 16}}, "large": {}}},
    )
    code, _, stderr = run(path)
    assert code == 0, stderr
    (folder,) = _runs(status(path), tmp_path)
    assert YAML(typ="safe").load(folder.spec.read_text())["model"]["queue_size"] == 16
