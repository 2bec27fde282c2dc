"""Promises of the sbatch script: every option from its key, nothing left to the shell, valid bash, nothing secret."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tclx.errors import InputError
from tclx.launch.slurm.script import batch_script, job_name
from tclx.spec.launch import SlurmLaunch

FOLDER = Path("/shared/runs/.submissions/0a1b2c3d")


def script(folder: Path = FOLDER, code: Path | None = None, num_runs: int = 1, after: str | None = None, **launch: Any) -> str:
    text = batch_script(
        SlurmLaunch.model_validate_json(json.dumps({"backend": "slurm", **launch})),
        name=job_name("toy", "0a1b2c3d"),
        folder=folder,
        code=code,
        num_runs=num_runs,
        after=after,
    )
    checked = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")
    return text


def options(text: str) -> dict[str, str | None]:
    """The options as sbatch reads them: words of a shell."""
    found: dict[str, str | None] = {}
    for line in text.splitlines():
        if line.startswith("#SBATCH "):
            (word,) = shlex.split(line.removeprefix("#SBATCH "))
            name, equals, value = word.removeprefix("--").partition("=")
            assert name not in found
            found[name] = value if equals else None
    return found


ALWAYS = {
    "job-name": "toy.0a1b2c3d",
    "comment": "tclx:0a1b2c3d",
    "nodes": "1",
    "ntasks-per-node": "1",
    "cpus-per-task": "4",
    "gpus-per-node": "1",
    "signal": "USR2@120",
    "output": f"{FOLDER}/%j_0_log.out",
    "open-mode": "append",
    "requeue": None,
}


def test_the_options_of_the_smallest_section() -> None:
    """What the spec leaves to the cluster is not mentioned."""
    assert options(script()) == ALWAYS


@pytest.mark.parametrize(
    ("key", "value", "option", "text"),
    [
        ("partition", "gpu,long", "partition", "gpu,long"),
        ("account", "lab@site", "account", "lab@site"),
        ("qos", "high", "qos", "high"),
        ("constraint", "[rack1|rack2]&a100*2", "constraint", "[rack1|rack2]&a100*2"),
        ("num_nodes", 3, "nodes", "3"),
        ("gpus_per_node", 8, "gpus-per-node", "8"),
        ("cpus_per_task", 7, "cpus-per-task", "7"),
        ("memory_gb", 64, "mem", "64G"),
        ("time_limit_minutes", 90, "time", "90"),
        ("signal_seconds", 300, "signal", "USR2@300"),
    ],
)
def test_each_key_is_its_option(key: str, value: Any, option: str, text: str) -> None:
    assert options(script(**{key: value}))[option] == text


def test_one_task_a_gpu_and_no_gpus_where_there_are_none() -> None:
    assert options(script(gpus_per_node=4))["ntasks-per-node"] == "4"
    found = options(script(gpus_per_node=0, tasks_per_node=3))
    assert found["ntasks-per-node"] == "3"
    assert "gpus-per-node" not in found


def test_further_options_are_taken_over() -> None:
    found = options(script(sbatch_options={"exclude": "n[1-3]", "exclusive": True, "nice": 5, "begin": "now+1 hour; $(x) #"}))
    assert found.items() >= {"exclude": "n[1-3]", "exclusive": None, "nice": "5", "begin": "now+1 hour; $(x) #"}.items()


def test_runs_are_an_array_with_a_throttle() -> None:
    assert "array" not in options(script(num_runs=1, max_parallel_runs=1))
    assert options(script(num_runs=5))["array"] == "0-4%5"
    found = options(script(num_runs=5, max_parallel_runs=2))
    assert found["array"] == "0-4%2"
    assert found["output"] == f"{FOLDER}/%A_%a_0_log.out"
    assert options(script(num_runs=2, max_parallel_runs=9))["array"] == "0-1%2"


def test_a_run_that_waits_for_another_dies_with_it() -> None:
    found = options(script(after="123_4"))
    assert (found["dependency"], found["kill-on-invalid-dep"]) == ("afterok:123_4", "yes")


def body(text: str) -> list[str]:
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def test_the_commands_in_their_order() -> None:
    python = shlex.quote(sys.executable)
    lines = body(script(setup=["module load cuda", "export A=1"]))
    assert lines[0].startswith("trap : TERM USR2")
    assert lines[1:] == [
        "code=0",
        "export PYTHONSAFEPATH=1",
        "export SRUN_CPUS_PER_TASK=4",
        "module load cuda",
        "export A=1",
        "export SUBMITIT_EXECUTOR=slurm",
        f"srun --unbuffered --output {FOLDER}/%j_%t_log.out --kill-on-bad-exit=1 {python} -m tclx.launch.task rank {FOLDER} "
        "|| code=$?",
        f"{python} -m tclx.launch.task after {FOLDER} $code",
    ]


def test_the_network_interface_reaches_both_libraries() -> None:
    assert "export GLOO_SOCKET_IFNAME=ib0 NCCL_SOCKET_IFNAME=ib0" in body(script(network_interface="ib0"))


ODD = Path("/shared/my runs; $(touch x) `y` 'z' \"q\" & é")


def test_an_odd_folder_is_one_word_everywhere() -> None:
    """A user chooses it freely; a run of its script with `echo` for Python shows what arrives."""
    lines = body(script(folder=ODD / "s", code=ODD / "code"))
    last = shlex.split(lines[-1])
    assert last[-2:] == [str(ODD / "s"), "$code"]
    assert str(ODD / "s") in shlex.split(lines[-2])
    assert options(script(folder=ODD / "s"))["output"] == f"{ODD}/s/%j_0_log.out"


@pytest.mark.parametrize("name", ["a\nb", "a\rb", "a:b", "a%b", "a\x85b", "a\u2028b", "a\udcffb"])
@pytest.mark.parametrize("which", ["folder", "code"])
def test_a_path_that_would_break_the_script_never_reaches_it(name: str, which: str) -> None:
    with pytest.raises(InputError, match=r"^--runs-dir: .* in it: a job's script cannot name it \(take a folder without it\)$"):
        script(**{which: Path("/shared") / name / "x"})


def test_an_interpreter_with_a_line_break_in_its_path_never_reaches_the_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/opt/a\n#SBATCH --uid=0/python")
    with pytest.raises(InputError, match=r"^launch\.python: "):
        script()
    monkeypatch.setattr(sys, "executable", "/opt/a:b/py%thon")
    assert "/opt/a:b/py%thon" in script()


def test_the_code_comes_before_what_is_on_the_path_already() -> None:
    (line,) = [line for line in body(script(code=ODD)) if "PYTHONPATH" in line]
    for before, expected in (({}, str(ODD)), ({"PYTHONPATH": "/a b:/c"}, f"{ODD}:/a b:/c")):
        shown = subprocess.run(
            ["/bin/bash", "-c", f'{line}\nprintf %s "$PYTHONPATH"'], env=before, capture_output=True, text=True, check=True
        )
        assert shown.stdout == expected


def test_a_python_in_the_home_folder_is_found(tmp_path: Path) -> None:
    """`~` must reach the shell of the compute node unquoted, and an installed one with blanks in its path quoted."""
    (tmp_path / "python").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "python").chmod(0o755)
    after = body(script(python="~/python"))[-1]
    shown = subprocess.run(["/bin/bash", "-c", after], env={"HOME": str(tmp_path)}, capture_output=True, text=True, check=True)
    assert shown.stdout.startswith(f"-m tclx.launch.task after {FOLDER}")


def test_an_installed_python_with_a_blank_in_its_path_is_one_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/my env/bin/python")
    assert shlex.split(body(script())[-1])[0] == "/my env/bin/python"


def test_the_script_outlives_its_tasks_and_asks_what_became_of_the_run(tmp_path: Path) -> None:
    """Run for real with a stand-in srun whose tasks are killed: the second command learns the exit code."""
    for name, text in (("srun", "kill -TERM $PPID; exit 137"), ("python", 'echo "$@"')):
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    text = script(python=str(tmp_path / "python"))
    ended = subprocess.run(
        ["/bin/bash"], input=text, env={"PATH": f"{tmp_path}:/bin"}, capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout) == (0, f"-m tclx.launch.task after {FOLDER} 137\n")


def test_the_submitters_environment_is_in_no_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "very-secret")
    assert "very-secret" not in script()


def test_the_signal_is_the_one_that_workers_know(monkeypatch: pytest.MonkeyPatch) -> None:
    """submitit reads it from SUBMITIT_PREEMPT_SIGNAL when it is imported."""
    monkeypatch.setattr("submitit.slurm.slurm.SlurmJobEnvironment.USR_SIG", "USR1")
    assert options(script())["signal"] == "USR2@120"


# ------------------------------------------------------------------------------------------------------- GPUs and containers


@pytest.mark.parametrize(
    ("launch", "option"),
    [
        ({"gpus_per_node": 8, "gpu_type": "a100"}, ("gpus-per-node", "a100:8")),
        ({"gpus_per_node": 8, "gpu_option": "gres"}, ("gres", "gpu:8")),
        ({"gpus_per_node": 2, "gpu_type": "a100_3g.20gb", "gpu_option": "gres"}, ("gres", "gpu:a100_3g.20gb:2")),
    ],
)
def test_gpus_are_asked_for_as_the_cluster_wants(launch: dict[str, Any], option: tuple[str, str]) -> None:
    found = options(script(**launch))
    assert {name: value for name, value in found.items() if name in ("gpus-per-node", "gres")} == dict([option])


IMAGE = "/images/torch.sif"


def in_container(*, reads: list[str], folder: Path = FOLDER, code: Path | None = None, **container: Any) -> list[str]:
    """The words of the line that starts the training processes, from what srun starts on."""
    launch = {"backend": "slurm", "container": {"image": IMAGE, **container}}
    text = batch_script(
        SlurmLaunch.model_validate_json(json.dumps(launch)),
        name=job_name("toy", "0a1b2c3d"), folder=folder, code=code, num_runs=1, reads=[Path(each) for each in reads],
    )  # fmt: skip
    before, after = body(text)[-2:]
    assert shlex.split(after)[0] == sys.executable  # scontrol is not in the container
    return shlex.split(before)


def test_the_training_processes_run_in_the_container_and_see_what_they_need() -> None:
    words = in_container(reads=["/data/coco", "/data/coco/train2017", "/home/me/weights"], mounts=["/scratch", "/a:/b:ro"])
    assert words[words.index("apptainer") :] == [
        "apptainer", "exec", "--nv", "--bind",
        "/shared/runs:/shared/runs,/data/coco:/data/coco,/home/me/weights:/home/me/weights,/scratch:/scratch,/a:/b:ro",
        IMAGE, "python3", "-m", "tclx.launch.task", "rank", str(FOLDER), "||", "code=$?",
    ]  # fmt: skip


def test_code_that_lies_outside_the_runs_is_seen_too() -> None:
    words = in_container(reads=[], code=Path("/shared/runs/.code/0a1b"), runtime="singularity")
    assert "/shared/runs:/shared/runs" in words
    words = in_container(reads=[], code=Path("/home/me/code"))
    assert "/shared/runs:/shared/runs,/home/me/code:/home/me/code" in words


def test_pyxis_takes_it_from_sruns_options() -> None:
    words = in_container(reads=["/data"], runtime="pyxis", image="nvcr.io#nvidia/pytorch:25.09-py3", python="/usr/bin/python3")
    assert words[words.index("--kill-on-bad-exit=1") + 1 :] == [
        "--container-image=nvcr.io#nvidia/pytorch:25.09-py3", "--container-mounts=/shared/runs:/shared/runs,/data:/data",
        "--container-mount-home", "/usr/bin/python3", "-m", "tclx.launch.task", "rank", str(FOLDER), "||", "code=$?",
    ]  # fmt: skip


def test_no_gpu_no_driver() -> None:
    text = script(gpus_per_node=0, container={"image": IMAGE})
    assert "--nv" not in text


@pytest.mark.parametrize("name", ["/data/a,b", "/data/a:b", "/data/a\nb"])
def test_a_folder_that_no_mount_can_name_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"^launch\.container\.mounts: .* in it: a job's script cannot name it"):
        in_container(reads=[name])


@pytest.mark.parametrize("image", ["a b.sif", "$(touch x)", "x;y", "'x'", "a\nb", "-x"])
def test_an_image_that_is_more_than_a_word_is_refused(image: str) -> None:
    with pytest.raises(ValueError, match="image"):
        SlurmLaunch.model_validate_json(json.dumps({"backend": "slurm", "container": {"image": image}}))
