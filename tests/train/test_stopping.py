from __future__ import annotations

import os
import signal
import threading

import pytest

from tclx.train.stopping import REQUESTS, end_start_up_on_request, stop_request


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR2])
def test_a_signal_sets_the_flag_and_nothing_else(number: signal.Signals, capfd: pytest.CaptureFixture[str]) -> None:
    with stop_request() as stop:
        assert not stop
        os.kill(os.getpid(), number)
        assert stop
        assert stop.signal_name == number.name
    assert f"{number.name}: stopping after this step" in capfd.readouterr().err


def test_a_second_one_does_not_interrupt_the_save(capfd: pytest.CaptureFixture[str]) -> None:
    with stop_request() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop
    assert "still saving" in capfd.readouterr().err


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
