"""Promises of the calls to SLURM: its words are read as they are, and silence is never taken for an answer."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tclx.errors import MachineError
from tclx.launch.jobs import JobState
from tclx.launch.slurm import commands as slurm
from tclx.launch.slurm.commands import SlurmRefused, SlurmSilent
from tests.launch.handed import Commands

UNREACHABLE = "Unable to contact slurm controller (connect failure)"


def quiet(line: str) -> None:
    pass


# ------------------------------------------------------------------------------------------------------------------- parsers


@pytest.mark.parametrize(
    ("line", "job"),
    [
        ("12|RUNNING|n1|toy.ab|None", JobState("12", "RUNNING", "", "n1", "toy.ab")),
        ("12_3|PENDING||toy.ab|Resources", JobState("12_3", "PENDING", "Resources", "", "toy.ab")),
        ("12_3|RUNNING|n[1-2,5]|toy.ab|None", JobState("12_3", "RUNNING", "", "n[1-2,5]", "toy.ab")),
        (
            "9|PENDING||toy.ab|ReqNodeNotAvail, UnavailableNodes:n1|x",
            JobState("9", "PENDING", "ReqNodeNotAvail, UnavailableNodes:n1|x", "", "toy.ab"),
        ),
        ("  9|CANCELLED|n1|toy.ab|None  ", JobState("9", "CANCELLED", "", "n1", "toy.ab")),
    ],
)
def test_lines_of_squeue(commands: Commands, line: str, job: JobState) -> None:
    commands.say("squeue", f"{line}\n\nno such line\n")
    assert slurm.squeue([job.job_id]) == {job.job_id: job}


@pytest.mark.parametrize(
    ("line", "job"),
    [
        ("12|COMPLETED|0:0|n1|toy.ab", JobState("12", "COMPLETED", "exit code 0", "n1", "toy.ab")),
        ("12_3|FAILED|7:0|n1|toy.ab", JobState("12_3", "FAILED", "exit code 7", "n1", "toy.ab")),
        ("12_3|OUT_OF_MEMORY|0:125|n1|toy.ab", JobState("12_3", "OUT_OF_MEMORY", "signal 125", "n1", "toy.ab")),
        ("12|CANCELLED by 0|0:15|n1|toy.ab", JobState("12", "CANCELLED", "signal 15", "n1", "toy.ab")),
        ("12|CANCELLED by 1000|0:0|None assigned|toy.ab", JobState("12", "CANCELLED", "exit code 0", "", "toy.ab")),
        ("12|TIMEOUT|0:0|n[1-2]|odd|name", JobState("12", "TIMEOUT", "exit code 0", "n[1-2]", "odd|name")),
        ("12||0:0|n1|toy.ab", JobState("12", "UNKNOWN", "exit code 0", "n1", "toy.ab")),
    ],
)
def test_lines_of_sacct(commands: Commands, line: str, job: JobState) -> None:
    commands.say("sacct", f"{line}\n\nno such line\n")
    assert slurm.sacct([job.job_id]) == {job.job_id: job}


def test_a_requeued_job_is_known_by_its_newest_line(commands: Commands) -> None:
    """sacct lists a job once by default; with a clock that jumped it may list two, and the later stands below."""
    commands.say("sacct", "7|NODE_FAIL|0:0|n1|toy.ab\n7|COMPLETED|0:0|n2|toy.ab\n")
    assert slurm.sacct(["7"])["7"].state == "COMPLETED"


@pytest.mark.parametrize("ask", [slurm.squeue, slurm.sacct])
def test_an_array_is_asked_for_once_and_nothing_without_ids(
    commands: Commands, ask: Callable[[list[str]], dict[str, JobState]]
) -> None:
    commands.say(ask.__name__, "")
    assert ask([]) == {}
    assert commands.calls == []
    assert ask(["7_0", "7_1", "3", "7_1"]) == {}
    (call,) = commands.calls
    assert "--jobs=3,7 " in call
    assert "--array" in call.split()


@pytest.mark.parametrize(
    ("state", "lives"),
    [
        ("RUNNING", True),
        ("PENDING", True),
        ("COMPLETING", True),
        ("SUSPENDED", True),
        ("REQUEUED", True),
        ("COMPLETED", False),
        ("CANCELLED", False),
        ("FAILED", False),
        ("NODE_FAIL", False),
        ("PREEMPTED", False),
        ("TIMEOUT", False),
        ("OUT_OF_MEMORY", False),
        ("UNKNOWN", False),
    ],
)
def test_which_states_live(state: str, lives: bool) -> None:
    assert JobState("1", state).lives is lives


# ------------------------------------------------------------------------------------------------------------------- silence


@pytest.mark.parametrize(
    "words",
    [
        UNREACHABLE,
        "Unable to contact slurm controller",
        "slurm_load_jobs error: Socket timed out on send/recv operation",
        "Batch job submission failed: Unable to contact slurm controller (connect failure)",
        "slurm_persist_conn_open_without_init: failed to open persistent connection to host:db:6819: Connection refused",
        "Batch job submission failed: Zero Bytes were transmitted or received",
        "_fetch_child: failed to fetch remote configs: Connection refused; Could not establish a configuration source",
    ],
)
def test_an_unreachable_daemon_is_silence(commands: Commands, words: str) -> None:
    commands.refuse("sbatch", words)
    with pytest.raises(SlurmSilent, match=r"^sbatch: "):
        slurm.call(["sbatch"])


def test_a_machine_of_no_cluster_is_told_so_at_once(commands: Commands) -> None:
    """Not taken for a controller that is away, which is waited for. The words are those of SLURM 22.05."""
    words = ("resolve_ctls_from_dns_srv: res_nsearch error: Unknown host", "fetch_config: DNS SRV lookup failed",
             "Could not establish a configuration source")  # fmt: skip
    commands.put("sbatch", "".join(f"echo 'sbatch: error: {line}' >&2; " for line in words) + "exit 1")
    with pytest.raises(MachineError, match=r"^sbatch finds no cluster here .*: export SLURM_CONF=.* launch\.backend: local$"):
        slurm.patiently(lambda: slurm.sbatch(""), say=quiet)
    assert len(commands.calls) == 1


def test_a_configuration_that_is_not_there_is_not_waited_for(
    commands: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SLURM's commands would look for it for a minute each."""
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "nowhere.conf"))
    with pytest.raises(MachineError, match=r"nowhere\.conf, where no file is: export SLURM_CONF="):
        slurm.patiently(lambda: slurm.sbatch(""), say=quiet)
    assert commands.calls == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("invalid partition specified: nowhere", "invalid partition specified: nowhere"),
        ("Batch job submission failed: Requested node configuration is not available", None),
        ("Memory specification can not be satisfied", None),
    ],
)
def test_a_no_is_a_refusal_in_slurms_words(commands: Commands, words: str, said: str | None) -> None:
    commands.refuse("sbatch", words)
    with pytest.raises(SlurmRefused) as refused:
        slurm.call(["sbatch"])
    assert str(refused.value) == (said or words)


def test_every_line_of_a_refusal_is_kept_without_the_programs_name(commands: Commands) -> None:
    commands.put("sbatch", "printf 'sbatch: error: one\\nsbatch: two\\n\\n' >&2; exit 1")
    with pytest.raises(SlurmRefused, match=r"^one; two$"):
        slurm.call(["sbatch"])


def test_a_refusal_without_words_names_its_code(commands: Commands) -> None:
    commands.put("scontrol", "exit 5")
    with pytest.raises(SlurmRefused, match=r"^scontrol ended with exit code 5$"):
        slurm.call(["scontrol"])


def test_a_missing_command_names_the_way_out(commands: Commands) -> None:
    commands.remove("sbatch")
    with pytest.raises(MachineError, match=r"^sbatch is not on this machine: submit where .* or set launch\.backend: local$"):
        slurm.call(["sbatch"])


def test_a_command_that_may_not_be_run_is_a_machine_error(commands: Commands) -> None:
    (commands.folder / "sbatch").write_text("no program")
    (commands.folder / "sbatch").chmod(0o644)
    with pytest.raises(MachineError, match="sbatch"):
        slurm.call(["sbatch"])


def test_a_command_that_hangs_is_silence(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "CALL_SECONDS", 0.2)
    commands.put("squeue", "exec sleep 20")
    started = time.monotonic()
    with pytest.raises(SlurmSilent, match="squeue has not answered within"):
        slurm.squeue(["1"])
    assert time.monotonic() - started < 10


def test_bytes_that_are_no_text_are_read_all_the_same(commands: Commands) -> None:
    commands.put("squeue", "printf '7|RUNNING|n1|caf\\xe9|None\\n'")
    assert slurm.squeue(["7"])["7"].state == "RUNNING"


def test_a_job_that_squeue_has_forgotten_is_no_silence(commands: Commands) -> None:
    commands.refuse("squeue", "slurm_load_jobs error: Invalid job id specified")
    assert slurm.squeue(["7"]) == {}


def test_any_other_refusal_of_squeue_says_nothing_of_jobs(commands: Commands) -> None:
    commands.refuse("squeue", "Access/permission denied")
    with pytest.raises(SlurmSilent, match="squeue: Access/permission denied"):
        slurm.squeue(["7"])


def test_one_forgotten_job_does_not_hide_the_others(commands: Commands) -> None:
    """squeue with one id of a forgotten job answers with nothing but an error; with several it lists those it knows."""
    commands.put(
        "squeue",
        'case "$*" in *--jobs=7,8*) echo "7|RUNNING|n1|a|None";; *) echo "Invalid job id specified" >&2; exit 1;; esac',
    )
    assert list(slurm.squeue(["8", "7"])) == ["7"]


def test_no_accounts_are_no_silence(commands: Commands) -> None:
    commands.refuse("sacct", "Slurm accounting storage is disabled")
    assert slurm.sacct(["7"]) == {}
    commands.remove("sacct")
    assert slurm.sacct(["7"]) == {}


def test_accounts_out_of_reach_are_silence(commands: Commands) -> None:
    commands.refuse("sacct", "slurm_persist_conn_open_without_init: failed to open persistent connection: Connection refused")
    with pytest.raises(SlurmSilent):
        slurm.sacct(["7"])


# ------------------------------------------------------------------------------------------------------------------ patience


def test_patience_tries_again_until_there_is_an_answer(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "RETRY_SECONDS", 0.0)
    counter = commands.folder / "calls"
    commands.put(
        "sbatch", f"[ $(wc -l < {counter}) -ge 3 ] && echo 42 && exit; echo 'sbatch: error: {UNREACHABLE}' >&2; exit 1"
    )
    said: list[str] = []
    assert slurm.patiently(lambda: slurm.sbatch("#!/bin/bash\n"), say=said.append) == "42"
    assert len(commands.calls) == 3
    assert said == [f"SLURM does not answer (sbatch: {UNREACHABLE}); trying for 150 s"]


def test_a_no_right_after_a_silence_is_asked_for_again(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    """A controller that has just come back has no nodes yet."""
    monkeypatch.setattr(slurm, "RETRY_SECONDS", 0.0)
    counter = commands.folder / "calls"
    commands.put(
        "sbatch",
        f"case $(wc -l < {counter}) in 1) why='{UNREACHABLE}';; 2|3) why='Requested node configuration is not available';; "
        '*) echo 42; exit;; esac; echo "sbatch: error: $why" >&2; exit 1',
    )
    assert slurm.patiently(lambda: slurm.sbatch(""), say=quiet) == "42"
    assert len(commands.calls) == 4
    counter.write_text("")
    monkeypatch.setattr(slurm, "SETTLING_SECONDS", 0.0)
    with pytest.raises(SlurmRefused):
        slurm.patiently(lambda: slurm.sbatch(""), say=quiet)


def test_patience_has_an_end(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "RETRY_SECONDS", 0.01)
    commands.refuse("sbatch", UNREACHABLE)
    with pytest.raises(SlurmSilent):
        slurm.patiently(lambda: slurm.sbatch(""), say=quiet, seconds=1.0)
    assert len(commands.calls) >= 2


def test_a_no_is_not_asked_for_twice(commands: Commands) -> None:
    commands.refuse("sbatch", "invalid partition specified: nowhere")
    with pytest.raises(SlurmRefused):
        slurm.patiently(lambda: slurm.sbatch(""), say=quiet)
    assert len(commands.calls) == 1


# ------------------------------------------------------------------------------------------------------------- single answers


def test_sbatch_reads_the_script_from_us_and_answers_with_an_id(commands: Commands) -> None:
    commands.put("sbatch", f'cat > {commands.folder}/script; echo "42;cluster"')
    assert slurm.sbatch("#!/bin/bash\n# of ours\n") == "42"
    assert (commands.folder / "script").read_text() == "#!/bin/bash\n# of ours\n"
    assert commands.calls == ["sbatch --parsable"]


def test_a_test_submits_nothing(commands: Commands) -> None:
    commands.put("sbatch", "cat > /dev/null; echo 'sbatch: Job 5 to start at 2030-01-01' >&2")
    slurm.sbatch("#!/bin/bash\n", test_only=True)
    assert commands.calls == ["sbatch --test-only"]


def test_the_controllers_own_word_on_a_job(commands: Commands) -> None:
    commands.say("scontrol", "JobId=7 JobName=a Requeue=1 Restarts=0 JobState=CANCELLED Reason=None Dependency=(null)\n")
    assert slurm.job_state("7") == "CANCELLED"
    commands.refuse("scontrol", "slurm_load_jobs error: Invalid job id specified")
    assert slurm.job_state("7") is None
    commands.refuse("scontrol", UNREACHABLE)
    with pytest.raises(SlurmSilent):
        slurm.job_state("7")


def test_the_clusters_largest_array(commands: Commands) -> None:
    commands.say("scontrol", "MaxArraySize            = 500\nMaxJobCount = 10000\n")
    assert slurm.max_array_size() == 500
    commands.say("scontrol", "nothing of the kind\n")
    assert slurm.max_array_size() == 1001


@pytest.mark.parametrize(
    ("queue", "accounts", "found"),
    [
        ("41|toy.ab\n", "", "41"),
        ("41|toy.ab\n41|toy.ab\n", "", "41"),
        ("41|other.toy.abc\n", "", None),
        ("", "40_0\n40_1\n", "40"),
        ("", "40\n", "40"),
        ("", "\n", None),
    ],
)
def test_a_job_is_found_by_its_name(commands: Commands, queue: str, accounts: str, found: str | None) -> None:
    commands.say("squeue", queue)
    commands.say("sacct", accounts)
    assert slurm.find_by_name("toy.ab") == found


def test_a_lost_job_is_looked_for_where_no_accounts_are_kept(commands: Commands) -> None:
    commands.say("squeue", "")
    commands.refuse("sacct", "Slurm accounting storage is disabled")
    assert slurm.find_by_name("toy.ab") is None
    commands.remove("sacct")
    assert slurm.find_by_name("toy.ab") is None


def test_nobody_says_there_is_no_such_job_while_slurm_is_silent(commands: Commands) -> None:
    commands.refuse("squeue", UNREACHABLE)
    with pytest.raises(SlurmSilent):
        slurm.find_by_name("toy.ab")
    commands.refuse("squeue", "Access/permission denied")
    with pytest.raises(SlurmSilent):
        slurm.find_by_name("toy.ab")


# --------------------------------------------------------------------------------------------------------------- environment


def test_what_a_job_was_told_about_itself_does_not_reach_its_own_submissions(
    commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropped = ("SLURM_JOB_ID", "SLURM_NTASKS", "SRUN_CPUS_PER_TASK", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
               "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TCLX_ATTEMPT", "TCLX_MEETING_FILE", "TCLX_PRINT_INTO_LOG",
               "SBATCH_PARTITION", "SBATCH_TIMELIMIT", "SQUEUE_STATES", "SQUEUE_USERS", "SACCT_FORMAT")  # fmt: skip
    kept = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT", "WANDB_API_KEY", "HOME", "CUDA_HOME")
    for name in (*dropped, *kept):
        monkeypatch.setenv(name, "/dev/null")  # a SLURM_CONF must be a file
    commands.put("squeue", f"{sys.executable} -c 'import json, os; print(json.dumps(dict(os.environ)))'")
    seen = json.loads(slurm.call(["squeue"]))
    assert [name for name in dropped if name in seen] == []
    assert [name for name in kept if name not in seen] == []
