"""Promises of `tclx doctor`: what is found is read right, nothing is left behind, no secret is shown, torch is not imported.

The SLURM texts were recorded from SLURM 22.05.8 unless it says otherwise.
"""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tclx.cli.app import app
from tclx.doctor import machine as doctor
from tclx.doctor import slurm as doctor_slurm
from tclx.spec.load import load_experiments
from tclx.system import Mount, mount_of
from tests.launch.toy import write_spec

PROJECT = Path(__file__).resolve().parents[2]

CONFIG = """\
Configuration data as of 2026-11-24T21:35:18
AccountingStorageType   = accounting_storage/slurmdbd
AuthInfo                = socket=/run/munge.socket,cred_expire=10
ClusterName             = tclx
JobRequeue              = 1
KillWait                = 5 sec
MaxArraySize            = 1001
MinJobAge               = 300 sec
PowerPlugin             = 
PreemptMode             = REQUEUE
SlurmctldParameters     = (null)
SLURM_VERSION           = 22.05.8
TaskPluginParam         = (null type)

Slurmctld(primary) at vm is UP
"""

SINFO = """\
gpu*|up|1:00:00|1|mixed|gpu:2
gpu*|up|1:00:00|3|idle|gpu:2
short|up|2:00|1|mixed|gpu:2
short|up|2:00|3|idle|gpu:2
"""

MOUNTS = [
    Mount("/proc", "proc", ("rw",)),
    Mount("/", "ext4", ("rw", "discard")),
    Mount("/home", "nfs4", ("rw", "vers=4.2", "local_lock=none")),
    Mount("/home/old", "nfs", ("rw", "nolock", "local_lock=all")),
    Mount("/mnt/big scratch", "lustre", ("rw", "flock")),
    Mount("/gpfs", "gpfs", ("rw",)),
    Mount("/run/user", "fuse.portal", ("rw", "nosuid")),
    Mount("/Volumes/team", "smbfs", ("rw", "nodev")),
]


def config(**changes: str) -> dict[str, doctor.Check]:
    """The checks of the recorded configuration with these values in place."""
    return {check.name: check for check in doctor_slurm.check_config(doctor_slurm.parse_config(CONFIG) | changes)}


# --------------------------------------------------------------------------------------------------------------------- slurm


def test_the_configuration_is_a_mapping_without_nulls() -> None:
    found = doctor_slurm.parse_config(CONFIG)
    assert found["KillWait"] == "5 sec"
    assert found["SlurmctldParameters"] == ""
    assert found["AuthInfo"] == "socket=/run/munge.socket,cred_expire=10"


def test_the_recorded_cluster_is_fine_but_for_its_kill_wait() -> None:
    checks = config()
    assert [check.name for check in checks.values() if check.verdict != "ok"] == ["KillWait"]
    assert "waits 11 s" in checks["requeue"].found  # measured: BeginTime is cred_expire + 1 after the requeue
    assert config(KillWait="30 sec")["KillWait"].verdict == "ok"
    assert "300 s" in checks["MinJobAge"].found


def test_a_requeued_job_waits_for_two_minutes_by_default() -> None:
    assert "waits 121 s" in config(AuthInfo="")["requeue"].found


def test_a_cluster_that_does_not_requeue_by_default_still_does_for_us() -> None:
    """man slurm.conf, JobRequeue: 0 means "not requeued unless explicitly enabled by the user"; every script says --requeue."""
    check = config(JobRequeue="0")["requeue"]
    assert check.verdict == "ok"
    assert "asks for it itself" in check.found


@pytest.mark.parametrize(
    ("mode", "parameters", "verdict", "word"),
    [
        ("OFF", "", "ok", "off"),
        ("REQUEUE", "", "ok", "SIGTERM"),
        ("REQUEUE", "preempt_send_user_signal,enable_configless", "ok", "SIGUSR2"),
        ("GANG,SUSPEND", "", "ok", "suspended"),
        ("CANCEL", "", "warning", "for good"),
    ],
)
def test_every_way_to_preempt_is_told(mode: str, parameters: str, verdict: str, word: str) -> None:
    check = config(PreemptMode=mode, SlurmctldParameters=parameters)["preemption"]
    assert check.verdict == verdict
    assert word in check.found


def test_a_cluster_without_arrays_gets_plain_jobs() -> None:
    assert "a job of its own" in config(MaxArraySize="0")["MaxArraySize"].found


def test_partitions_are_added_up_over_their_lines() -> None:
    gpu, short = doctor_slurm.parse_partitions(SINFO)
    assert (gpu.name, gpu.is_default, gpu.time_limit, gpu.states) == ("gpu", True, "1:00:00", {"mixed": 1, "idle": 3})
    assert (short.name, short.is_default, short.num_usable, short.gpus_per_node) == ("short", False, 4, {2})
    assert doctor_slurm.judge_partition(gpu).found == "4 nodes of 2 GPUs (3 idle, 1 mixed), time limit 1:00:00"


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("a|up|infinite|1|idle|(null)", "1 node without GPUs (1 idle), no time limit"),
        ("a|up|1-00:00:00|2|idle|gpu:4\na|up|1-00:00:00|1|idle|gpu:h100:8", "3 nodes of 4 to 8 GPUs (3 idle), time limit 1-"),
    ],
)
def test_a_partition_in_words(lines: str, words: str) -> None:
    (partition,) = doctor_slurm.parse_partitions(lines)
    assert doctor_slurm.judge_partition(partition).found.startswith(words)


@pytest.mark.parametrize(
    ("gres", "count"),
    [
        ("(null)", 0), ("gpu:2", 2), ("gpu:a100:8(S:0-1)", 8), ("gpu:a100:4(S:0),gpu:h100:2,shard:8", 6),
        ("shard:16,gpu:1", 1), ("craynetwork:4", 0),
    ],
)  # fmt: skip
def test_gpus_of_a_node_in_every_spelling(gres: str, count: int) -> None:
    assert doctor_slurm.count_gpus(gres) == count


@pytest.mark.parametrize(
    ("lines", "verdict"),
    [
        ("a|up|infinite|2|down*|gpu:1", "warning"),
        ("a|up|infinite|2|idle*|gpu:1", "warning"),
        ("a|up|infinite|2|drained|gpu:1\na|up|infinite|1|allocated|gpu:1", "ok"),
        ("a|up|infinite|2|idle~|gpu:1", "ok"),
        ("a|down|infinite|2|idle|gpu:1", "warning"),
        ("a|up|infinite|0|n/a|(null)", "warning"),
    ],
    ids=["down", "silent", "one left", "asleep", "closed", "empty"],
)
def test_a_partition_that_cannot_run_anything_now_is_a_warning(lines: str, verdict: str) -> None:
    (partition,) = doctor_slurm.parse_partitions(lines)
    assert doctor_slurm.judge_partition(partition).verdict == verdict


def test_a_runs_folder_that_other_nodes_do_not_see_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for sinfo, whose nodes are machines of their own."""
    stand_in = tmp_path / "sinfo"
    stand_in.write_text(f"#!/bin/sh\ncase \"$*\" in *--Node*) echo node01; echo node02;; *) echo '{SINFO}';; esac\n")
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    *partitions, folder = doctor_slurm.check_partitions(Mount("/", "ext4", ()))
    assert [check.verdict for check in partitions] == ["ok", "ok"]
    assert (folder.name, folder.verdict) == ("shared folder", "warning")
    shared = list(doctor_slurm.check_partitions(Mount("/home", "nfs4", ())))
    assert [check.name for check in shared] == ["partition gpu (default)", "partition short"]


def test_commands_without_a_cluster_differ_from_a_controller_that_is_down() -> None:
    assert doctor_slurm.judge_silence("scontrol: fatal: Could not establish a configuration source").verdict == "warning"
    assert doctor_slurm.judge_silence("Unable to contact slurm controller (connect failure)").verdict == "problem"


def test_no_slurm_is_no_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (check,) = doctor_slurm.check_slurm(Mount("/", "ext4", ()))
    assert check.verdict == "info"


def test_half_of_slurm_is_a_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "sbatch").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    (check,) = doctor_slurm.check_slurm(Mount("/", "ext4", ()))
    assert (check.verdict, check.found) == ("problem", "squeue, scontrol, scancel missing beside sbatch")


# --------------------------------------------------------------------------------------------------------------- runs folder


@pytest.mark.parametrize(
    ("folder", "kind", "is_network"),
    [
        ("/srv/runs", "ext4", False),
        ("/home/me/runs", "nfs4", True),
        ("/homes/runs", "ext4", False),
        ("/home/old", "nfs", True),
        ("/mnt/big scratch/runs", "lustre", True),
        ("/gpfs/x", "gpfs", True),
        ("/run/user/1", "fuse.portal", True),
        ("/Volumes/team/runs", "smbfs", True),
    ],
)
def test_the_file_system_of_a_folder_is_the_nearest_mount_above_it(folder: str, kind: str, is_network: bool) -> None:
    mount = mount_of(Path(folder), MOUNTS)
    assert (mount.kind, mount.is_network) == (kind, is_network)


def test_locks_that_stay_on_one_machine_are_a_warning(tmp_path: Path) -> None:
    verdicts = {}
    for place in ("/home/old", "/home", "/srv"):
        checks = doctor.check_runs_dir(tmp_path, mount_of(Path(place), MOUNTS))
        verdicts[place] = next(check.verdict for check in checks if check.name == "file system")
    assert verdicts == {"/home/old": "warning", "/home": "ok", "/srv": "ok"}


def test_trying_a_folder_leaves_nothing_behind(tmp_path: Path) -> None:
    checks = list(doctor.check_runs_dir(tmp_path / "not" / "yet", Mount("/", "ext4", ())))
    assert checks[0].verdict == "ok"
    assert "not there yet" in checks[0].found
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_a_file_or_cannot_be_written_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", Path("/proc/runs")):
        checks = list(doctor.check_runs_dir(place, Mount("/", "ext4", ())))
        assert [check.verdict for check in checks] == ["problem"]
        assert "--runs-dir" in (checks[0].advice or "")


def test_a_file_system_without_locks_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.try_folder(tmp_path) is None
    monkeypatch.setattr("fcntl.flock", lambda file, how: None)  # as where flock is a no-op
    assert "two processes" in (doctor.try_folder(tmp_path) or "")

    def missing(file: object, how: int) -> None:
        raise OSError(38, os.strerror(38))  # ENOSYS, as Lustre mounted without flock answers

    monkeypatch.setattr("fcntl.flock", missing)
    assert "flock" in (doctor.try_folder(tmp_path) or "")


def test_a_disk_that_is_nearly_full_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "FREE_DISK_GIB", 1e9)
    check = list(doctor.check_runs_dir(tmp_path, Mount("/", "ext4", ())))[-1]
    assert (check.name, check.verdict) == ("disk", "warning")


# ------------------------------------------------------------------------------------------------------------------- machine


def test_gpus_of_nvidia_smi() -> None:
    text = "NVIDIA H100 80GB HBM3, 81559, 550.54.15\nNVIDIA GB10, [N/A], 580.95.05\n"
    assert [(gpu.name, round(gpu.memory_gib), gpu.driver) for gpu in doctor.parse_gpus(text)] == [
        ("NVIDIA H100 80GB HBM3", 80, "550.54.15"),
        ("NVIDIA GB10", 0, "580.95.05"),
    ]
    assert doctor.parse_gpus("No devices were found\n") == []


def test_gpus_of_a_stand_in_for_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA L4, 23034, 550.54.15'\necho 'NVIDIA L4, 23034, 550.54.15'\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (check,) = doctor.check_gpus()
    assert check.found == "2 x NVIDIA L4 (22 GiB), driver 550.54.15"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert [check.verdict for check in doctor.check_gpus()] == ["ok", "warning"]


@pytest.mark.parametrize(
    ("found", "num_gpus", "verdict"),
    [
        ({"version": "2.11", "cuda": "13.2", "available": True, "gpus": ["L4", "L4"], "bf16": True}, 2, "ok"),
        ({"version": "2.11", "cuda": "13.2", "available": False}, 2, "problem"),
        ({"version": "2.11", "cuda": None, "available": False}, 2, "problem"),
        ({"version": "2.11", "cuda": None, "available": False}, 0, "info"),
    ],
)
def test_torch_and_nvidia_smi_must_agree(found: dict[str, object], num_gpus: int, verdict: str) -> None:
    assert doctor.judge_torch(found, num_gpus=num_gpus).verdict == verdict


def test_packages_of_extras_are_not_required() -> None:
    assert doctor.required(["torch>=2.11", "ruamel.yaml>=0.18", 'pytest>=8.4; extra == "dev"', "rich"]) == [
        "torch",
        "ruamel.yaml",
        "rich",
    ]


# ------------------------------------------------------------------------------------------------------------------ services

WANTED = (("asked", True), ("plain", False))

SECRET = "0123456789abcdef"


def wandb(**environment: str) -> str:
    login = doctor.find_wandb_login(environment)
    check = doctor.check_wandb(login, needed=False)
    assert check.verdict == "info"
    assert doctor.check_wandb(login, needed=True).verdict == ("info" if login.there else "warning")
    assert SECRET not in str(check)
    return check.found


def test_a_login_to_wandb_is_found_and_never_shown(tmp_path: Path) -> None:
    path = tmp_path / "netrc"
    assert "not logged in" in wandb(NETRC=str(path))
    path.write_text(f"machine api.wandb.ai\n  login user\n  password {SECRET}\n")
    assert "has a login for api.wandb.ai" in wandb(NETRC=str(path))
    assert "has no login for wandb.lab.org" in wandb(NETRC=str(path), WANDB_BASE_URL="https://wandb.lab.org:8080")
    assert "WANDB_API_KEY is set" in wandb(WANDB_API_KEY=SECRET, NETRC=str(path))
    path.write_text(f"machine api.wandb.ai\n  {SECRET} user\n")  # the parser's own message quotes the word
    assert "cannot be read: line 2" in wandb(NETRC=str(path))
    path.write_bytes(b"\xff\xfe")
    assert "cannot be read" in wandb(NETRC=str(path))


def test_the_server_is_the_one_that_the_client_would_ask(tmp_path: Path) -> None:
    config = {"WANDB_CONFIG_DIR": str(tmp_path)}
    assert doctor.wandb_url(config) == "https://api.wandb.ai"
    (tmp_path / "settings").write_text("[default]\nbase_url = https://wandb.lab.org\n")
    assert doctor.wandb_url(config) == "https://wandb.lab.org"
    assert doctor.wandb_url({**config, "WANDB_BASE_URL": "http://other"}) == "http://other"


def test_a_server_is_reached_or_not_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "HOST_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as there:
        url = f"http://127.0.0.1:{there.getsockname()[1]}"
        check = doctor.check_wandb_host({"WANDB_BASE_URL": url}, needed=True)
        assert (check.verdict, check.advice) == ("ok", None)
        check = doctor.check_wandb_host({"WANDB_BASE_URL": "https://wandb.lab.org", "https_proxy": url}, needed=True)
        assert check.verdict == "ok"
        assert "a proxy for wandb.lab.org" in check.found
    check = doctor.check_wandb_host({"WANDB_BASE_URL": url}, needed=True)
    assert check.verdict == "warning"
    assert "mode: offline" in str(check.advice)
    check = doctor.check_wandb_host({"WANDB_BASE_URL": url}, needed=False)
    assert check.verdict == "info"

    monkeypatch.setattr(
        socket, "create_connection", lambda *address, timeout: time.sleep(60) or socket.socket()
    )  # a name that nobody resolves
    before = time.monotonic()
    assert "does not answer" in str(doctor.try_host("nowhere", 443))
    assert time.monotonic() - before < 5


def test_what_wandb_will_do_is_said_before(tmp_path: Path) -> None:
    path = write_spec(tmp_path, tracking={"wandb": {"project": "p", "entity": "lab", "finish_timeout_seconds": 7}})
    specs = [experiment.spec for experiment in load_experiments(path)]
    (check,) = doctor.check_wandb_of(specs, {})
    assert check.found == "online: project p of lab; a finished run waits at most 7 s for it"
    (check,) = doctor.check_wandb_of(specs, {"WANDB_MODE": "offline"})
    assert check.found.startswith("offline (WANDB_MODE=offline)")
    (check,) = doctor.check_wandb_of([experiment.spec for experiment in load_experiments(write_spec(tmp_path, "none"))], {})
    assert "tracking.wandb is null" in check.found


def test_tensorboard_is_looked_for_where_a_run_asks_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, plain = (load_experiments(write_spec(tmp_path, name, tracking={"tensorboard": on}))[0].spec for name, on in WANTED)
    assert list(doctor.check_tensorboard_for([plain])) == []
    (there,) = doctor.check_tensorboard_for([plain, asked])
    assert there.verdict == "ok"
    monkeypatch.setattr("tclx.spec.rules.find_spec", lambda name: None)
    (lacking,) = doctor.check_tensorboard_for([plain, asked])
    assert lacking.verdict == "problem"
    assert lacking.found == "tracking.tensorboard: the package tensorboard is not installed"
    assert "pip install 'tclx[tensorboard]'" in (lacking.advice or "")


def test_the_hub_is_offline_when_it_says_so(tmp_path: Path) -> None:
    (offline,) = doctor.check_hub({"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)})
    assert "only what is there" in offline.found
    (online,) = doctor.check_hub({"HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "none")})
    assert "downloads" in online.found
    assert "not there yet" in online.found


# ---------------------------------------------------------------------------------------------------------- the command


def test_the_command_prints_checks_and_ends_with_3_where_there_is_a_problem(tmp_path: Path) -> None:
    fine = CliRunner().invoke(app, ["doctor", "--runs-dir", str(tmp_path), "--json"])
    checks = {check["name"]: check for check in json.loads(fine.stdout)}
    assert {"python", "torch", "cpu", "memory", "runs folder", "disk", "wandb", "model hub", "slurm"} <= set(checks)
    broken = CliRunner().invoke(app, ["doctor", "--runs-dir", "/proc/runs"])
    assert broken.exit_code == 3
    assert any(line.startswith("problem  runs folder") for line in broken.stdout.splitlines())
    assert "-> choose another place with --runs-dir" in broken.stdout


def test_torch_is_never_imported(tmp_path: Path) -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from tclx.cli.app import app\n"
        f"CliRunner().invoke(app, ['doctor', '--runs-dir', {str(tmp_path)!r}], catch_exceptions=False)\n"
        "print([name for name in ('torch', 'numpy', 'tclx.data') if name in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"


@pytest.mark.slow
def test_deep_asks_torch_itself() -> None:
    (check,) = doctor.check_torch_deeply()
    assert check.verdict in ("ok", "info")


@pytest.mark.parametrize(("can_submit", "verdict"), [(True, "warning"), (False, "problem")])
def test_without_torch_a_machine_may_still_submit(monkeypatch: pytest.MonkeyPatch, can_submit: bool, verdict: str) -> None:
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    (torch,) = [check for check in doctor.check_python(can_submit=can_submit) if check.name == "torch"]
    assert (torch.verdict, torch.found) == (verdict, "not installed")
    assert torch.advice == "install torch to train here" + ("; runs can be submitted without it" if can_submit else "")
    assert list(doctor.check_torch_deeply()) == []


def test_a_torch_that_hangs_or_fails_is_told_apart_from_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_ASK_TORCH", "import time; time.sleep(60)")
    monkeypatch.setattr(doctor, "DEEP_SECONDS", 0.5)
    (hung,) = doctor.check_torch_deeply()
    assert hung == doctor.Check("torch on GPUs", "problem", "torch did not answer within 0.5 s", "is the driver stuck?")
    monkeypatch.setattr(doctor, "_ASK_TORCH", "import sys; sys.exit('libcudart.so.13: cannot open shared object file')")
    monkeypatch.setattr(doctor, "DEEP_SECONDS", 30)
    (failed,) = doctor.check_torch_deeply()
    assert (failed.verdict, failed.found) == ("problem", "torch fails: libcudart.so.13: cannot open shared object file")


def test_a_slurm_configuration_that_is_not_there_is_said_before_slurm_looks_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in doctor_slurm.NEEDED:
        (tmp_path / name).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("SLURM_CONF", "/nowhere/slurm.conf")
    (check,) = doctor_slurm.check_slurm(None)
    assert (check.name, check.verdict) == ("slurm", "problem")
    assert check.found == "SLURM_CONF names /nowhere/slurm.conf, which is not there"
    assert check.advice == "unset it or name the cluster's slurm.conf"
