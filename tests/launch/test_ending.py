"""Promises of `find_cause`: the process that fell first is named, never one that fell over it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tclx.launch.ending import Cause, find_cause, last_lines, tail
from tclx.runs import RunFolder

ATTEMPT = "job7.0"


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


def note(folder: RunFolder, rank: int, reason: str, *, time: float, lost_peer: bool = False, attempt: str = ATTEMPT) -> None:
    said = {"attempt": attempt, "host": f"n{rank}", "time": time, "reason": reason, "lost_peer": lost_peer}
    folder.write_json(folder.error(rank), said)


def cause(folder: RunFolder, log: str | None = None, *, memory_key: str | None = "launch.memory_gb") -> tuple[str, bool]:
    path = folder.path / "slurm.out"
    if log is not None:
        path.write_text(log)
    found = find_cause(folder, ATTEMPT, log=path, memory_key=memory_key)
    return found.reason, found.by_itself


def test_the_earliest_error_that_is_no_consequence_is_the_cause(folder: RunFolder) -> None:
    note(folder, 0, "lost rank 3", time=1.0, lost_peer=True)
    note(folder, 1, "the disk is full", time=3.0)
    note(folder, 2, "the loss is NaN", time=2.0)
    assert cause(folder) == ("rank 2 on n2: the loss is NaN", True)


def test_a_single_process_needs_no_rank(folder: RunFolder) -> None:
    note(folder, 0, "the loss is NaN", time=1.0)
    assert cause(folder) == ("the loss is NaN", True)


def test_a_rank_other_than_the_first_is_named_though_it_is_alone(folder: RunFolder) -> None:
    note(folder, 11, "the loss is NaN", time=1.0)
    assert cause(folder) == ("rank 11 on n11: the loss is NaN", True)


def test_errors_of_another_attempt_are_ignored(folder: RunFolder) -> None:
    note(folder, 0, "an old story", time=1.0, attempt="job7.1")
    note(folder, 1, "another", time=1.0, attempt="job6.0")
    assert cause(folder) == ("a process was killed without a word", False)
    note(folder, 2, "the loss is NaN", time=9.0)
    assert cause(folder)[0].startswith("rank 2")


def test_a_rank_that_stood_still_is_the_cause_also_where_the_disturbed_ones_spoke_first(folder: RunFolder) -> None:
    """Started again, perhaps elsewhere, the run may get on; the node is known."""
    note(folder, 0, "lost rank 2", time=10.0, lost_peer=True)
    note(folder, 1, "gloo: something broke", time=11.0)
    said = {"attempt": ATTEMPT, "host": "h", "time": 12.0, "reason": "rank 2 on n2 gave no sign of life", "lost_peer": False}
    folder.write_json(folder.error(3), {**said, "stood_still": {"rank": 2, "node": "n2"}})
    found = find_cause(folder, ATTEMPT, log=None, memory_key=None)
    assert found == Cause("rank 2 on n2 gave no sign of life", by_itself=False, stood_still=True, node="n2")


def test_an_error_long_before_anything_stood_still_is_the_cause(folder: RunFolder) -> None:
    note(folder, 1, "the loss is NaN", time=1.0)
    said = {"attempt": ATTEMPT, "host": "h", "time": 50.0, "reason": "rank 1 on n1 gave no sign of life", "lost_peer": False}
    folder.write_json(folder.error(3), {**said, "stood_still": {"rank": 1, "node": "n1"}})
    assert cause(folder) == ("rank 1 on n1: the loss is NaN", True)


def test_the_node_of_a_killed_rank_is_known_by_its_last_word(folder: RunFolder) -> None:
    folder.write_json(folder.rank(3), {"attempt": ATTEMPT, "node": "n2"})
    folder.write_json(folder.rank(4), {"attempt": "job6.0", "node": "n1"})
    (folder.path / "slurm.out").write_text("srun: error: n2: task 3: Killed\n")
    assert find_cause(folder, ATTEMPT, log=folder.path / "slurm.out", memory_key=None).node == "n2"
    (folder.path / "slurm.out").write_text("srun: error: n2: task 4: Killed\n")
    assert find_cause(folder, ATTEMPT, log=folder.path / "slurm.out", memory_key=None).node is None


def test_words_win_over_the_log(folder: RunFolder) -> None:
    """Ranks that are killed after the first has said why are no news."""
    note(folder, 1, "the loss is NaN", time=1.0)
    assert cause(folder, "srun: error: n1: task 0: Killed\nslurmstepd: error: Detected 1 oom_kill event")[0].endswith("is NaN")


@pytest.mark.parametrize(
    "log",
    [
        "slurmstepd: error: Detected 1 oom_kill event in StepId=7.0. Some of the step tasks have been OOM Killed.\n"
        "srun: error: n2: task 3: Out Of Memory\n",
        "slurmstepd: error: Detected 1 oom-kill event(s) in StepId=7.batch cgroup.\nsrun: error: n1: task 0: Killed",
        "slurmstepd: error: Exceeded job memory limit",
        "slurmstepd: error: Step 7.0 exceeded memory limit (2048 > 1024), being killed",
        "slurmstepd: error: StepId=7.0 hit memory limit at least once during execution... oom_kill",
    ],
)
def test_out_of_memory_names_the_key(folder: RunFolder, log: str) -> None:
    reason, by_itself = cause(folder, log)
    assert by_itself
    assert "ran out of memory and was killed: raise launch.memory_gb, or lower data.num_workers or the batch" in reason
    assert "give it more memory" in cause(folder, log, memory_key=None)[0]


def test_the_rank_that_ran_out_of_memory_is_named(folder: RunFolder) -> None:
    """Its peers are ended because of it, hence below it in the log."""
    log = (
        "slurmstepd: error: Detected 1 oom_kill event in StepId=7.0. Some of the step tasks have been OOM Killed.\n"
        "srun: error: n2: task 3: Out Of Memory\n"
        "srun: Terminating StepId=7.0\n"
        "srun: error: n1: task 0: Terminated\n"
        "srun: error: n2: tasks 1-2: Terminated\n"
    )
    assert cause(folder, log)[0].startswith("rank 3 ran out of memory")


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        ("srun: error: n1: task 2: Killed\n", "rank 2 was killed (killed) without a word"),
        (
            "srun: error: n1: task 0: Segmentation fault (core dumped)\n",
            "rank 0 was killed (segmentation fault) without a word",
        ),
        ("srun: error: n1: task 1: Bus error\n", "rank 1 was killed (bus error) without a word"),
        (
            "srun: error: n1: task 1: Exited with exit code 134\n",
            "rank 1 was killed (exited with exit code 134) without a word",
        ),
        ("srun: error: Node failure on n1\n", "a process was killed without a word"),
        ("", "a process was killed without a word"),
    ],
)
def test_a_killed_task_is_named_and_may_try_again(folder: RunFolder, log: str, reason: str) -> None:
    assert cause(folder, log) == (reason, False)


def test_the_first_task_that_fell_is_named_not_those_that_were_ended_for_it(folder: RunFolder) -> None:
    log = "srun: error: n1: task 2: Killed\nsrun: Terminating StepId=7.0\nsrun: error: n1: tasks 0-1,3: Terminated\n"
    assert cause(folder, log) == ("rank 2 was killed (killed) without a word", False)
    log = log.replace("tasks 0-1,3", "task 0")
    assert cause(folder, log) == ("rank 2 was killed (killed) without a word", False)


def test_the_log_of_an_earlier_attempt_is_not_read(folder: RunFolder) -> None:
    """A requeued job appends to the same file."""
    log = (
        "slurmstepd: error: Detected 1 oom_kill event in StepId=7.0.\nsrun: error: n1: task 3: Out Of Memory\n"
        "slurmstepd: error: *** JOB 7 ON n1 CANCELLED AT 2026-01-01T00:00:00 DUE TO JOB REQUEUE ***\n"
        "srun: error: n1: task 1: Killed\n"
    )
    assert cause(folder, log) == ("rank 1 was killed (killed) without a word", False)


def test_without_a_log_there_is_still_an_answer(folder: RunFolder) -> None:
    assert find_cause(folder, ATTEMPT, log=None, memory_key=None) == Cause(
        "a process was killed without a word", by_itself=False
    )


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"attempt": 7}'])
def test_a_note_that_cannot_be_read_hides_nothing(folder: RunFolder, text: str) -> None:
    """A disk that filled up, an editor: what became of the run is still found out."""
    note(folder, 1, "the loss is NaN", time=1.0)
    folder.error(0).write_text(text)
    assert cause(folder)[0].endswith("the loss is NaN")


def test_the_tail_is_the_end_of_the_file_and_bytes_that_are_no_text_are_no_obstacle(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"first\n" * 10_000 + b"\xff\xfe\n\n  \nlast\n")
    assert tail(log, num_bytes=5) == "last\n"
    assert last_lines(log, count=2)[-1] == "last"
    assert len(last_lines(log, count=2)) == 2
    assert last_lines(tmp_path / "none", count=2) == []
    assert tail(tmp_path) == ""
    assert tail(None) == ""
