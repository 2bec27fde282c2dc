"""Promises of what is seen of other processes, and of the tests' own means to start some."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from tclx.processes import look_at
from tests.processes import finish_processes, start_processes


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


def seen_as(pid: int, words: str) -> bool:
    """Whether it is, within some seconds."""
    deadline = time.monotonic() + 10
    while words not in look_at([pid]).words and time.monotonic() < deadline:
        time.sleep(0.05)
    return words in look_at([pid]).words


def test_a_sleeping_and_a_stopped_process_are_told_apart(sleeper: subprocess.Popen[bytes]) -> None:
    assert seen_as(sleeper.pid, f"process {sleeper.pid} sleeps")
    assert look_at([sleeper.pid]).stopped == ()
    sleeper.send_signal(signal.SIGSTOP)
    assert seen_as(sleeper.pid, "is stopped (SIGSTOP")
    assert look_at([sleeper.pid]).stopped == (sleeper.pid,)


def test_the_time_of_all_counts_and_who_is_gone_is_left_out(sleeper: subprocess.Popen[bytes]) -> None:
    sleeper.kill()
    sleeper.wait()
    seen = look_at([os.getpid(), sleeper.pid])
    assert 0 < seen.cpu_seconds <= time.process_time() + 0.1
    assert str(sleeper.pid) not in seen.words


def test_no_process_outlives_a_test_that_fails() -> None:
    """One falls at once, its companion would wait for it for a minute."""
    program = "import os, sys, time; sys.exit(3) if os.environ['RANK'] == '1' else time.sleep(60)"
    processes = start_processes(["-c", program], world_size=2)
    with pytest.raises(subprocess.TimeoutExpired):
        finish_processes(processes, timeout=0.5)
    assert [psutil.pid_exists(process.pid) for process in processes] == [False, False]
