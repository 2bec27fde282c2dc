"""A study outlives torn writes, full disks, killed and paused writers; a storage that cannot be reached is said in words."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import optuna
import psutil
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend, JournalFileBackend

from tclx.errors import InputError, MachineError
from tclx.sweep import storage
from tclx.sweep.storage import HealingJournalFile, open_storage, patiently
from tests import disk
from tests.postgres import Server
from tests.sweep.toy import load

TORN = b'{"op_code":8,"worker_id":"a","trial_id":0,"user_attr":{"ha'
"""What a killed process, or a full disk, leaves of a line."""


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "journal.log"


def study_in(backend: BaseJournalBackend) -> optuna.Study:
    return optuna.create_study(storage=JournalStorage(backend), study_name="study", load_if_exists=True)


def ended(study: optuna.Study) -> list[float]:
    return [trial.value for trial in study.trials if trial.value is not None]


def tell(study: optuna.Study, value: float) -> None:
    study.tell(study.ask(), value)


def is_whole(journal: Path) -> bool:
    """Every line is one that Optuna wrote."""
    return all("op_code" in json.loads(line) for line in journal.read_bytes().splitlines())


# --------------------------------------------------------------------------------------------------------------------- a tear


def test_a_torn_journal_is_read_and_the_next_write_heals_it(journal: Path) -> None:
    for number in range(20):
        tell(study_in(HealingJournalFile(journal)), number)
        with journal.open("ab") as file:
            file.write(TORN)
        assert ended(study_in(HealingJournalFile(journal))) == list(range(number + 1))
    tell(study_in(HealingJournalFile(journal)), 20)
    assert ended(study_in(HealingJournalFile(journal))) == list(range(21))
    assert is_whole(journal)


def test_a_torn_journal_is_healed_under_a_study_that_is_open_elsewhere(journal: Path) -> None:
    here, there = study_in(HealingJournalFile(journal)), study_in(HealingJournalFile(journal))
    tell(here, 0)
    with journal.open("ab") as file:
        file.write(TORN)
    assert ended(there) == [0]
    tell(here, 1)
    tell(there, 2)
    assert ended(here) == ended(there) == [0, 1, 2]


def test_the_stock_journal_is_lost_to_the_same_tear(journal: Path) -> None:
    tell(study_in(JournalFileBackend(str(journal))), 0)
    with journal.open("ab") as file:
        file.write(TORN)
    with pytest.raises((AttributeError, json.JSONDecodeError)):
        tell(study_in(JournalFileBackend(str(journal))), 1)
    with pytest.raises((AttributeError, json.JSONDecodeError)):
        study_in(JournalFileBackend(str(journal)))


def test_a_line_longer_than_a_block_is_cut_off_whole(journal: Path) -> None:
    tell(study_in(HealingJournalFile(journal)), 0)
    whole = journal.read_bytes()
    with journal.open("ab") as file:
        file.write(TORN + b"x" * 200_000)
    tell(study_in(HealingJournalFile(journal)), 1)
    assert journal.read_bytes().startswith(whole)
    assert is_whole(journal)


# ---------------------------------------------------------------------------------------------------------------- a full disk


def test_a_journal_on_a_full_disk_is_what_it_was_and_goes_on_when_there_is_space(journal: Path) -> None:
    study = study_in(HealingJournalFile(journal))
    tell(study, 0)
    before, limits = journal.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 40, limits[1]))
    try:
        for _ in range(3):
            with pytest.raises(OSError, match="too large"):
                tell(study, 1)
            assert journal.read_bytes() == before
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    tell(study, 1)
    assert ended(study) == ended(study_in(HealingJournalFile(journal))) == [0, 1]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with disk.small_disk(tmp_path / "disk", size="64k") as place:
        yield place


def fill(disk: Path, *, free_blocks: int) -> Path:
    """A file that leaves so many blocks of 4 KiB."""
    filler = disk / "filler"
    filler.write_bytes(bytes(os.statvfs(disk).f_bavail * 4096 - free_blocks * 4096))
    return filler


@pytest.mark.parametrize("free_blocks", [0, 1, 2])
def test_what_did_not_fit_on_the_disk_is_written_later_and_nothing_in_between_is_spoilt(
    small_disk: Path, free_blocks: int
) -> None:
    journal = small_disk / "journal.log"
    study = study_in(HealingJournalFile(journal))
    acknowledged = {}
    for lap in range(3):
        filler = fill(small_disk, free_blocks=free_blocks)
        failed = False
        for number in range(12):
            key, text = f"{lap}.{number}", "x" * 1500
            try:
                study.set_user_attr(key, text)
                acknowledged[key] = text
            except OSError:
                failed = True
        assert failed
        filler.unlink()
        study.set_user_attr(f"after {lap}", lap)
        acknowledged[f"after {lap}"] = lap
    assert study_in(HealingJournalFile(journal)).user_attrs == study.user_attrs == acknowledged
    assert is_whole(journal)


def test_a_full_disk_is_waited_for(journal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = study_in(HealingJournalFile(journal))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (journal.stat().st_size + 40, limits[1]))
    said: list[str] = []

    def say(line: str) -> None:  # somebody reads it, and cleans up
        said.append(line)
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    try:
        patiently(lambda: tell(study, 1), say=say)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "too large" in said[0]
    assert ended(study) == [1]


# ------------------------------------------------------------------------------------------------- killed and paused writers

INSIDE_A_WRITE = """
import os, signal, sys
from pathlib import Path
from tclx.sweep import storage

measure = storage._end_of_lines

def interrupted(file):
    end = measure(file)
    os.kill(os.getpid(), int(sys.argv[2]))
    return end

storage._end_of_lines = interrupted
storage.HealingJournalFile(Path(sys.argv[1])).append_logs([{"op_code": 2, "worker_id": "slow"}])
"""


def signalled_inside_a_write(journal: Path, number: signal.Signals) -> subprocess.Popen[bytes]:
    """A process that holds the journal's lock when the signal comes."""
    process = subprocess.Popen([sys.executable, "-c", INSIDE_A_WRITE, str(journal), str(int(number))])
    gone = (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE)
    while psutil.Process(process.pid).status() not in gone:
        time.sleep(0.02)
    return process


def test_a_killed_writer_s_lock_holds_nobody_up(journal: Path) -> None:
    study = study_in(HealingJournalFile(journal))
    assert signalled_inside_a_write(journal, signal.SIGKILL).wait() == -signal.SIGKILL
    before = time.monotonic()
    tell(study, 1)
    assert time.monotonic() - before < 5
    assert ended(study) == [1]


def test_a_paused_writer_spoils_nothing_when_it_goes_on(journal: Path) -> None:
    backend = HealingJournalFile(journal)
    backend.append_logs([{"op_code": 0, "worker_id": "first"}])
    paused = signalled_inside_a_write(journal, signal.SIGSTOP)
    other = threading.Thread(target=backend.append_logs, args=([{"op_code": 1, "worker_id": "other"}],))
    other.start()
    other.join(float(os.environ.get("TCLX_PAUSE_SECONDS", "1")))
    paused.send_signal(signal.SIGCONT)
    assert paused.wait() == 0
    other.join()
    assert sorted(log["op_code"] for log in backend.read_logs(0)) == [0, 1, 2]


# ------------------------------------------------------------------------------------------------------------------- patience


def test_what_is_asked_wrongly_is_not_asked_again(journal: Path) -> None:
    study = study_in(HealingJournalFile(journal))
    with pytest.raises(ValueError, match="not been created"):
        patiently(lambda: study.tell(7, 1.0))


def test_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "PATIENCE_SECONDS", 1.0)
    said: list[str] = []

    def away() -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(MachineError, match=r"has not answered for 1 s: .*No space left on device"):
        patiently(away, say=said.append)
    assert "No space left on device" in said[0]


# ------------------------------------------------------------------------------------------------------- opening a database


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="could not open"):
        open_storage(None, tmp_path / "nowhere" / "journal.log")


def test_a_server_that_does_not_answer_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", "hunter2")
    url = "postgresql://somebody@127.0.0.1:9/study"
    with pytest.raises(
        MachineError, match=r"^storage: cannot open postgresql://somebody@127.0.0.1:9/study: .*refused"
    ) as error:
        open_storage(url, tmp_path / "journal.log")
    assert "hunter2" not in str(error.value)


def test_a_database_that_does_not_exist_is_said(postgres_url: str, tmp_path: Path) -> None:
    url = postgres_url.rpartition("/")[0] + "/nothing_here"
    with pytest.raises(MachineError, match=r"^storage: cannot open .*/nothing_here: .*does not exist") as error:
        open_storage(url, tmp_path / "journal.log")
    assert os.environ["PGPASSWORD"] not in str(error.value)


def test_a_wrong_password_is_said_but_not_repeated(postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", "hunter2")
    with pytest.raises(MachineError, match=r"storage: cannot open .*password authentication failed") as error:
        open_storage(postgres_url, tmp_path / "journal.log")
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize("url", ["postgresql://me:hunter2@host/study", "postgresql://me@host/study?password=hunter2"])
def test_a_password_in_a_sweep_is_refused_and_not_repeated(url: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"storage: .*PGPASSWORD") as error:
        load(tmp_path, storage=url)
    assert "hunter2" not in str(error.value)


def test_a_missing_driver_is_said_with_what_installs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(MachineError, match=r"storage: .*driver is missing.*pip install 'tclx\[postgres\]'"):
        open_storage("postgresql://somebody@127.0.0.1:9/study", tmp_path / "journal.log")


def test_a_database_s_password_comes_from_the_user_s_file(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passfile = tmp_path / "pgpass"
    passfile.write_text(f"127.0.0.1:{Server().port}:*:tclx:{os.environ['PGPASSWORD']}\n")
    passfile.chmod(0o600)
    monkeypatch.delenv("PGPASSWORD")
    monkeypatch.setenv("PGPASSFILE", str(passfile))
    study = optuna.create_study(storage=open_storage(postgres_url, tmp_path / "journal.log"))
    tell(study, 1.0)
    assert ended(study) == [1.0]
