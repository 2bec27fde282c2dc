from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest

from tclx.train import stopping
from tclx.train.stopping import REQUESTS, answering_requests, end_start_up_on_request, stop_request


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR2])
def test_a_signal_sets_the_flag_and_nothing_else(number: signal.Signals) -> None:
    with stop_request() as stop:
        assert not stop
        os.kill(os.getpid(), number)
        assert stop
        assert stop.signal_name == number.name


def until(condition: Callable[[], bool]) -> bool:
    """Whether it happens within a few seconds."""
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


class Heard:
    """What was printed about requests, and why the process was to be left."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self.reasons: list[str] = []
        self.said, self._capfd = "", capfd

    def has_said(self, words: str) -> bool:
        self.said += self._capfd.readouterr().err
        return words in self.said


@pytest.fixture
def heard(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Heard:
    """With waits that suit a test."""
    for name, seconds in (("GRACE_SECONDS", 0.2), ("ECHO_SECONDS", 1.0), ("DOUBLE_SECONDS", 0.0)):
        monkeypatch.setattr(stopping, name, seconds)
    return Heard(capfd)


def test_the_first_request_is_answered_and_waits_for_the_step(heard: Heard) -> None:
    with answering_requests(doing=lambda: "a training step", leave=heard.reasons.append), stop_request() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop
        assert until(lambda: heard.has_said("SIGINT: stopping after this step and saving (now a training step)"))
        time.sleep(0.4)
    assert heard.reasons == []
    assert "still" not in heard.said


@pytest.mark.parametrize("doing", ["waiting for a batch", "saving a checkpoint"])
def test_a_second_one_ends_the_process_and_says_what_it_waits_for(heard: Heard, doing: str) -> None:
    with answering_requests(doing=lambda: doing, leave=heard.reasons.append), stop_request():
        os.kill(os.getpid(), signal.SIGTERM)
        assert until(lambda: heard.has_said("SIGTERM: stopping"))
        os.kill(os.getpid(), signal.SIGINT)
        assert until(lambda: heard.has_said(f"SIGINT: still {doing}; ends within"))
        assert until(lambda: bool(heard.reasons))
    assert heard.reasons == [
        f"ended by SIGINT while {doing}, without saving; the same command continues from the newest checkpoint"
    ]


def test_a_second_one_leaves_a_save_that_ends_in_time_alone(heard: Heard) -> None:
    with answering_requests(doing=lambda: "saving a checkpoint", leave=heard.reasons.append), stop_request():
        os.kill(os.getpid(), signal.SIGINT)
        assert until(lambda: heard.has_said("SIGINT: stopping"))
        os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.4)
    assert heard.reasons == []


def test_the_same_request_on_two_ways_is_one(heard: Heard) -> None:
    """`tclx cancel` sends SIGTERM, and the file that it leaves is found a moment later."""
    with answering_requests(doing=lambda: "a training step", leave=heard.reasons.append), stop_request():
        os.kill(os.getpid(), signal.SIGTERM)
        assert until(lambda: heard.has_said("SIGTERM: stopping"))
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.5)
    assert heard.reasons == []


def test_a_main_thread_that_no_handler_reaches_is_ended_by_the_second_request() -> None:
    """It waits inside a library, as in a collective: Python's handlers do not run there."""
    program = (
        "import ctypes, os\n"
        "from tclx.train.stopping import answering_requests, stop_request\n"
        "semaphore = ctypes.create_string_buffer(64)\n"
        "library = ctypes.CDLL(None)\n"
        "library.sem_init(semaphore, 0, 0)\n"
        "with answering_requests(doing=lambda: 'a collective', leave=lambda reason: os._exit(75)), stop_request():\n"
        "    print('waits', flush=True)\n"
        "    while True:\n"
        "        while library.sem_wait(semaphore):\n"
        "            library.sem_wait(semaphore)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "waits\n"
        process.send_signal(signal.SIGINT)
        assert process.stderr.readline() == "\n"
        assert process.stderr.readline().startswith("SIGINT: stopping after this step")
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 75
    finally:
        process.kill()
        process.communicate()


def test_before_training_the_first_request_ends_it_where_no_handler_can(heard: Heard) -> None:
    end_start_up_on_request()
    with answering_requests(doing=lambda: "starting", leave=heard.reasons.append):
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert until(lambda: bool(heard.reasons))  # as if it had not come through


def test_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with stop_request():
        assert signal.getsignal(signal.SIGINT) != before
    assert signal.getsignal(signal.SIGINT) == before


@pytest.mark.parametrize("number", REQUESTS)
def test_the_first_request_ends_a_start_up_and_later_ones_do_not_disturb_the_end(number: signal.Signals) -> None:
    end_start_up_on_request()
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), number)
    os.kill(os.getpid(), number)


def test_after_training_a_request_changes_nothing() -> None:
    end_start_up_on_request()
    with stop_request() as stop:
        pass
    for number in REQUESTS:
        os.kill(os.getpid(), number)
    assert not stop


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_forked_loader_process_does_not_take_the_request_for_its_own() -> None:
    with stop_request() as stop:
        if (child := os.fork()) == 0:  # pragma: no cover
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(1 if stop else 0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert not stop


def test_outside_the_main_thread_there_is_no_handler_and_no_crash() -> None:
    flags = []

    def ask() -> None:
        with stop_request() as stop:
            flags.append(bool(stop))

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert flags == [False]
