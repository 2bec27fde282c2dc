"""Promises of the commands that launch and watch: light, in words, as JSON, and the same for every kind of run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tclx.launch.prepare import Outcome
from tclx.runs import Attempt, RunFolder, RunState
from tests.cli.test_cli import Ended
from tests.launch.handed import Commands, handed_over, prepared_run
from tests.launch.toy import write_spec

PROJECT = Path(__file__).resolve().parents[2]
SLURM = {"backend": "slurm", "gpus_per_node": 0}


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    """SLURM's commands, which refuse until a test says what they answer."""
    return Commands(tmp_path / "commands", monkeypatch)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A local run that was interrupted at step 1 of 2."""
    folder = prepared_run(tmp_path)
    folder.begin(Attempt("here-1"))
    folder.write_state(RunState("interrupted", step=1, total_steps=2, reason="SIGINT: saved at step 1"))
    folder.metrics.write_text('{"step": 1, "loss/total": 3.25}\n')
    folder.log(0).parent.mkdir()
    folder.log(0).write_text("".join(f"line {n}\n" for n in range(100)))
    return folder


# --------------------------------------------------------------------------------------------------------------------- light


def light(command: list[str | Path], tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command where torch cannot be imported, and fails loudly if it is."""
    stub = tmp_path / "stub"
    stub.mkdir(exist_ok=True)
    (stub / "torch.py").write_text("raise SystemExit('torch was imported')\n")
    return subprocess.run(
        [sys.executable, "-m", "tclx.cli", *map(str, command), "--runs-dir", str(tmp_path / "runs")],
        env={**os.environ, "PYTHONPATH": f"{stub}{os.pathsep}{PROJECT}", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_nothing_that_submits_or_watches_imports_torch(tmp_path: Path, commands: Commands) -> None:
    commands.put("sbatch", "cat > /dev/null; echo 41")
    commands.put("squeue", 'echo "41|PENDING||toy|Priority"')
    commands.put("scancel", "exit 0")
    spec = write_spec(tmp_path)
    for command, code in (
        (["plan", spec, "--script", "--backend", "slurm"], 0),
        (["run", spec, "--backend", "slurm", "--set", "launch.gpus_per_node=0"], 0),
        (["status"], 0),
        (["status", "toy", "--json"], 0),
        (["cancel", "toy"], 0),
        (["logs", "toy"], 2),
    ):
        ended = light(command, tmp_path)
        assert ended.returncode == code, (command, ended.stderr)
        assert "torch was imported" not in ended.stderr
    assert "scancel 41" in commands.calls


def test_a_command_that_trains_does_import_it(tmp_path: Path) -> None:
    """The stub of the test above is able to fail."""
    assert "torch was imported" in light(["run", write_spec(tmp_path)], tmp_path).stderr


# --------------------------------------------------------------------------------------------------------------- run and plan


def test_plan_prints_the_script_and_nothing_else(tmp_path: Path) -> None:
    spec = write_spec(tmp_path, launch={**SLURM, "partition": "gpu", "setup": ["module load cuda"]}, seeds=[0, 1])
    ended = Ended("plan", spec, "--script", "--runs-dir", tmp_path / "runs")
    assert (ended.code, ended.err) == (0, "")
    lines = ended.out.splitlines()
    assert lines[0] == "#!/bin/bash"
    assert {"#SBATCH --partition=gpu", "#SBATCH --array=0-1%2", "module load cuda"} <= set(lines)
    assert not (tmp_path / "runs").exists()


def test_a_chain_is_two_scripts(tmp_path: Path) -> None:
    write_spec(tmp_path, "pre", launch=SLURM)
    ended = Ended("plan", write_spec(tmp_path, "fine", launch=SLURM, init={"experiment": "pre.yaml"}), "--script")
    assert ended.code == 0
    assert ended.out.count("#!/bin/bash") == 2
    assert "--dependency=afterok:JOB-OF-pre-s0-" in ended.out


def test_a_local_run_has_no_script(tmp_path: Path) -> None:
    ended = Ended("plan", write_spec(tmp_path), "--script")
    assert ended.code == 2
    assert "launch.backend" in ended.err
    assert "--backend slurm" in ended.err


def test_without_slurm_the_way_out_is_named(tmp_path: Path, commands: Commands) -> None:
    commands.remove("sbatch")
    ended = Ended("run", write_spec(tmp_path), "--backend", "slurm", "--runs-dir", tmp_path / "runs")
    assert ended.code == 3
    assert ended.err == (
        "error: sbatch is not on this machine: submit where SLURM's commands are, or set launch.backend: local\n"
    )
    assert not list((tmp_path / "runs").glob("toy-*"))


def test_what_slurm_refuses_names_the_key_and_leaves_nothing(tmp_path: Path, commands: Commands) -> None:
    commands.refuse("sbatch", "invalid partition specified: nowhere")
    ended = Ended("run", write_spec(tmp_path, launch={**SLURM, "partition": "nowhere"}), "--runs-dir", tmp_path / "runs")
    assert ended.code == 2
    assert "launch.partition: SLURM says: invalid partition specified: nowhere" in ended.err
    assert not list((tmp_path / "runs").glob("toy-*"))


def test_a_submission_is_recorded_and_not_repeated(tmp_path: Path, commands: Commands) -> None:
    commands.put("sbatch", "cat > /dev/null; echo 41")
    commands.say("squeue", "41|PENDING||toy|Priority\n")
    spec, runs = write_spec(tmp_path, launch=SLURM), tmp_path / "runs"
    assert "submitted: job 41" in Ended("run", spec, "--runs-dir", runs).err
    assert "nothing to do: job 41 is queued" in Ended("run", spec, "--runs-dir", runs).err
    assert [call for call in commands.calls if call.startswith("sbatch")] == ["sbatch --test-only", "sbatch --parsable"]
    assert "nothing to resume" in Ended("resume", "toy", "--runs-dir", runs).err


def test_a_silent_slurm_submits_nothing_twice(tmp_path: Path, commands: Commands) -> None:
    commands.put("sbatch", "cat > /dev/null; echo 41")
    spec, runs = write_spec(tmp_path, launch=SLURM), tmp_path / "runs"
    Ended("run", spec, "--runs-dir", runs)
    commands.refuse("squeue", "Unable to contact slurm controller (connect failure)")
    ended = Ended("run", spec, "--runs-dir", runs)
    assert ended.code == 3
    assert "nothing was submitted, since it may be on its way already" in ended.err
    assert commands.calls.count("sbatch --parsable") == 1


# --------------------------------------------------------------------------------------------------------------------- status


def test_status_of_all_and_of_one(run: RunFolder) -> None:
    runs = run.path.parent
    table = Ended("status", "--runs-dir", runs)
    assert table.code == 0
    assert table.out.splitlines()[0].split() == ["run", "state", "step", "ETA", "loss", "job", "node", "restarts"]
    assert table.out.splitlines()[1].split() == [run.run_id, "interrupted", "1/2", "-", "3.250", "-", "-", "-"]
    assert table.err == f"{run.run_id}: SIGINT: saved at step 1\n"
    one = Ended("status", run.run_id, "--runs-dir", runs).out
    assert "SIGINT: saved at step 1" in one
    assert "3.25" in one


def test_status_as_json_is_one_list_of_plain_values(run: RunFolder) -> None:
    (status,) = json.loads(Ended("status", "--json", "--runs-dir", run.path.parent).out)
    assert status["run_id"] == run.run_id
    assert (status["state"], status["step"], status["total_steps"]) == ("interrupted", 1, 2)
    assert status["metrics"] == {"loss/total": 3.25}
    assert json.loads(Ended("status", "--json", "--runs-dir", run.path.parent / "none").out) == []


def test_a_loss_that_is_no_number_is_still_json(run: RunFolder) -> None:
    run.metrics.write_text('{"step": 1, "loss/total": NaN}\n')
    (status,) = json.loads(Ended("status", "--json", "--runs-dir", run.path.parent).out, parse_constant=pytest.fail)
    assert status["metrics"]["loss/total"] is None


def test_status_without_runs_says_where_it_looked(tmp_path: Path) -> None:
    ended = Ended("status", "--runs-dir", tmp_path / "runs")
    assert (ended.code, ended.out) == (0, "")
    assert str(tmp_path / "runs") in ended.err
    assert Ended("status", "nothing-like-it", "--runs-dir", tmp_path).code == 2


def test_following_ends_with_the_runs(run: RunFolder) -> None:
    assert Ended("status", "-f", "--runs-dir", run.path.parent).code == 1
    run.write_state(RunState("finished", step=2, total_steps=2))
    assert Ended("status", "-f", "--runs-dir", run.path.parent).code == 0


# ----------------------------------------------------------------------------------------------------- logs, cancel and resume


def test_logs_are_the_last_lines_of_a_process(run: RunFolder) -> None:
    runs = run.path.parent
    assert Ended("logs", run.run_id, "-n", "2", "--runs-dir", runs).out == "line 98\nline 99\n"
    assert len(Ended("logs", "toy", "--runs-dir", runs).out.splitlines()) == 50
    missing = Ended("logs", run.run_id, "--rank", "3", "--runs-dir", runs)
    assert missing.code == 2
    assert "ranks with a log: 0" in missing.err


def test_logs_before_training_are_slurms(tmp_path: Path) -> None:
    folder = prepared_run(tmp_path, launch=SLURM)
    (handed_over(folder) / "7_0_log.out").write_text("module: command not found\n")
    assert Ended("logs", "toy", "--runs-dir", tmp_path / "runs").out == "module: command not found\n"


def test_logs_of_several_runs_at_once_are_refused(tmp_path: Path) -> None:
    prepared_run(tmp_path, "toy")
    prepared_run(tmp_path, "toy", seeds=[1])
    ended = Ended("logs", "toy", "--runs-dir", tmp_path / "runs")
    assert ended.code == 2
    assert "2 runs" in ended.err


def test_following_a_log_prints_what_is_added(run: RunFolder) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "tclx.cli", "logs", "toy", "-f", "-n", "1", "--runs-dir", str(run.path.parent)],
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    watchdog = threading.Timer(30, process.kill)
    watchdog.start()
    try:
        assert process.stdout.readline() == "line 99\n"
        with run.log(0).open("a") as file:
            file.write("one more: é\n")
        assert process.stdout.readline() == "one more: é\n"
    finally:
        watchdog.cancel()
        process.kill()
        process.communicate()


def test_cancel_of_what_does_not_go_on_asks_nobody(run: RunFolder) -> None:
    ended = Ended("cancel", "toy", "--runs-dir", run.path.parent)
    assert ended.code == 0
    assert ended.err == "none of these runs is going on\n"
    assert not run.cancel.exists()


def test_cancel_signals_the_process_of_this_machine(run: RunFolder) -> None:
    sleeper = subprocess.Popen(["sleep", "60"])
    try:
        run.heartbeat.touch()
        state = {"status": "running", "step": 1, "total_steps": 2, "updated_at": time.time()}
        run.write_json(run.state, {**state, "host": os.uname().nodename, "pid": sleeper.pid})
        ended = Ended("cancel", "toy", "--runs-dir", run.path.parent)
        assert "was running at step 1, asked to save and stop" in ended.err
        assert sleeper.wait(timeout=30) == -15
        assert run.cancel.exists()
    finally:
        sleeper.kill()
        sleeper.wait()


def test_cancel_of_a_run_elsewhere_leaves_a_file_and_signals_nobody_here(run: RunFolder) -> None:
    sleeper = subprocess.Popen(["sleep", "60"])
    try:
        run.heartbeat.touch()
        state = {"status": "running", "step": 1, "total_steps": 2, "updated_at": time.time()}
        run.write_json(run.state, {**state, "host": "another", "pid": sleeper.pid})
        Ended("cancel", "toy", "--runs-dir", run.path.parent)
        assert run.cancel.exists()
        assert sleeper.poll() is None
    finally:
        sleeper.kill()
        sleeper.wait()


def test_resume_says_what_needs_none(run: RunFolder) -> None:
    run.write_state(RunState("finished", step=2, total_steps=2))
    ended = Ended("resume", "toy", "--runs-dir", run.path.parent)
    assert ended.code == 0
    assert ended.err == f"{run.run_id}: finished, nothing to resume\n"


# --------------------------------------------------------------------------------------------------------------------- start


@pytest.mark.parametrize(
    ("codes", "code"),
    [([0, 0], 0), ([0, 3, 0], 3), ([1, 0], 1), ([1, 130], 130), ([130, 1, 0], 1)],
)
def test_the_exit_code_of_several_runs_is_that_of_the_last_that_did_not_finish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codes: list[int], code: int
) -> None:
    def launch(runs: object, **options: object) -> list[Outcome]:
        return [
            Outcome(RunFolder(tmp_path / str(number)), "failed" if one else "finished", None, one)
            for number, one in enumerate(codes)
        ]

    monkeypatch.setattr("tclx.launch.local.queue.launch", launch)
    assert Ended("run", write_spec(tmp_path), "--runs-dir", tmp_path / "runs").code == code


def test_a_longer_run_is_told_from_the_shorter_one_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tclx.launch.local.queue.launch", lambda runs, **options: [])
    shorter = prepared_run(tmp_path)
    shorter.write_state(RunState("finished", step=2, total_steps=2))
    spec = tmp_path / "toy.yaml"

    def told(*overrides: str) -> str:
        words = [word for override in overrides for word in ("--set", override)]
        return Ended("run", spec, *words, "--runs-dir", tmp_path / "runs").err

    longer = told("training.steps=6")
    assert f"{shorter.run_id} is this experiment with training.steps 2 instead of 6, finished at step 2" in longer
    assert "begins at step 0" in longer
    assert f"--set 'init={{checkpoint: {shorter.path}, resume: true}}' would have it go on from there" in longer
    assert "begins at step 0" in told("training.steps=6", "launch.max_parallel_runs=2")  # changes no result, is no difference
    for nothing_to_say in ((), ("training.steps=6", "optim.learning_rate=2e-3"), ("seed=1", "training.steps=6")):
        assert told(*nothing_to_say) == ""
