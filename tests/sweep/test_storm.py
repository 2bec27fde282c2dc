"""Workers are killed, databases restarted: every trial ends exactly once, goes on from where it was saved, and none is lost."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import psutil
import pytest
from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial, TrialState

from tclx.launch.prepare import prepare
from tclx.runs import Attempt, RunFolder, RunState
from tclx.sweep import claims, worker
from tclx.sweep import process as run_process
from tclx.sweep import trial as trial_module
from tclx.sweep.begin import create_studies
from tclx.sweep.load import load_sweeps
from tclx.sweep.parts import open_parts
from tclx.sweep.stage import Search
from tclx.sweep.study import OF, SEED, StudyFolder, open_study
from tclx.track.jsonl import read
from tclx.worker import INTERRUPTED_AND_SAVED
from tests.launch.handed import planned
from tests.postgres import Server, own_server, programs
from tests.sweep.toy import TRAINING, write_sweep

LIGHT = "tests.sweep.light"
"""The real worker with runs that train nothing."""

REAL = "tclx.sweep.worker"

STEPS = 4


@dataclass
class Workers:
    """Worker processes of a study; those that are killed are started again."""

    folder: StudyFolder
    module: str
    seats: list[subprocess.Popen[bytes]] = field(default_factory=list)
    exit_codes: list[int] = field(default_factory=list)
    """Of those that ended, killed ones among them."""

    def start(self, count: int) -> None:
        with (self.folder.path / "printed.log").open("ab") as log:
            for _ in range(count):
                self.seats.append(
                    subprocess.Popen(
                        [sys.executable, "-m", self.module, str(self.folder.path)],
                        stdout=log,
                        stderr=log,
                        env={**os.environ, "OMP_NUM_THREADS": "1"},
                    )
                )

    def collect(self) -> None:
        """Put those that ended aside."""
        for process in [one for one in self.seats if one.poll() is not None]:
            self.seats.remove(process)
            self.exit_codes.append(process.returncode)

    def at_work(self) -> list[subprocess.Popen[bytes]]:
        """Those that have begun a trial, or a training that confirms one."""
        folders = [stage for part in self.folder.parts() for stage in (part, part.confirming())]
        found = (claims.read_claim(one, int(path.stem)) for one in folders for path in one.claims.glob("*.json"))
        alive = {claim.worker for claim in found if claim is not None and claims.is_alive(self.folder, claim)}
        pids = {claims.process_of(self.folder, worker)[0] for worker in alive}
        return [process for process in self.seats if process.pid in pids]

    def kill(self, worker: subprocess.Popen[bytes], *, with_its_runs: bool) -> None:
        """SIGKILL, as it comes to one process, or as when a machine goes: to everything that it started, too."""
        with suppress(psutil.NoSuchProcess):
            for process in psutil.Process(worker.pid).children(recursive=True) if with_its_runs else []:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        worker.kill()
        worker.wait()

    def finish(self, timeout: float = 500) -> None:
        """Until all have ended by themselves."""
        for process in self.seats:
            process.wait(timeout)
        self.collect()

    @property
    def printed(self) -> str:
        return (self.folder.path / "printed.log").read_text()


@contextmanager
def working(folder: StudyFolder, module: str, count: int = 4) -> Iterator[Workers]:
    workers = Workers(folder, module)
    try:
        workers.start(count)
        yield workers
    finally:
        for process in workers.seats:
            process.kill()
            process.wait()


def new_study(
    folder: Path, *, num_trials: int, storage: str | None, experiment: dict[str, Any] | None = None, **changes: Any
) -> StudyFolder:
    whole = {"training": {**TRAINING, "steps": STEPS}, "tracking": {"log_every_steps": 1}, **(experiment or {})}
    asked = {"num_trials": num_trials, "num_workers": 4, "storage": storage, **changes}
    sweeps = load_sweeps(write_sweep(folder, experiment=whole, **asked), runs_dir=folder / "runs")
    study = StudyFolder.of("toy-sweep", folder / "runs")
    create_studies(sweeps, study)
    study.note_start()
    return study


def trials_of(folder: StudyFolder) -> list[FrozenTrial]:
    return open_study(folder, folder.read_sweep()).trials


def kill_storm(workers: Workers, *, kills: int, rng: random.Random, pause: float) -> int:
    """So many kills, or until the study is done, each a while after some training step; returns how many there were.

    Killed more often than it gets on, a trial would rightly fail.
    """
    for number in range(kills):
        before, rows = time.monotonic(), num_rows(workers.folder)
        while time.monotonic() - before < pause or num_rows(workers.folder) <= rows or not workers.at_work():
            time.sleep(rng.uniform(0, 0.1))
            workers.collect()
            if not workers.seats:
                return number
        workers.kill(rng.choice(workers.at_work() or workers.seats), with_its_runs=rng.random() < 0.5)
        workers.collect()
        workers.start(1)
    return kills


def num_rows(folder: StudyFolder) -> int:
    return sum(path.read_bytes().count(b"\n") for path in folder.runs_dir.glob("*/metrics.jsonl"))


def assert_every_trial_ended_once(folder: StudyFolder, num_trials: int) -> Counter[int]:
    """Returns how many trials were begun how often."""
    trials = trials_of(folder)
    assert [trial.number for trial in trials] == list(range(num_trials))
    assert Counter(trial.state for trial in trials) == {TrialState.COMPLETE: num_trials}
    assert len({trial.params["optim.learning_rate"] for trial in trials}) == num_trials
    for trial in trials:
        (run_id,) = trial.user_attrs["runs"]
        rows = list(read(RunFolder(folder.runs_dir / run_id).metrics))
        steps = [row["step"] for row in rows if "loss/total" in row]
        assert steps == list(range(1, STEPS + 1)), f"trial {trial.number}"
        evaluated = [row["retrieval/val/r_mean"] for row in rows if "retrieval/val/r_mean" in row]
        assert list(trial.intermediate_values.values()) == evaluated
        assert trial.value == max(evaluated)
    starts = Counter(claim.starts for trial in trials if (claim := claims.read_claim(folder, trial.number)))
    assert starts.total() == num_trials
    return starts


def storm(folder: StudyFolder, module: str, *, num_trials: int, kills: int, pause: float) -> None:
    rng = random.Random(0)
    with working(folder, module) as workers:
        begun = time.monotonic()
        killed = kill_storm(workers, kills=kills, rng=rng, pause=pause)
        workers.finish()
        seconds = time.monotonic() - begun
    starts = assert_every_trial_ended_once(folder, num_trials)
    assert Counter(workers.exit_codes) == {-signal.SIGKILL: killed, 0: len(workers.exit_codes) - killed}, workers.printed
    taken_over = sum(count for times, count in starts.items() if times > 1)
    print(f"{num_trials} trials, {killed} kills, {taken_over} taken over ({dict(starts)}), {seconds:.0f} s")
    assert taken_over


ON_EVERY_STORAGE = pytest.mark.parametrize(
    "storage",
    ["journal", pytest.param("sqlite", marks=pytest.mark.faults), pytest.param("postgresql", marks=pytest.mark.faults)],
    indirect=True,
)


@ON_EVERY_STORAGE
def test_killed_workers_lose_and_repeat_nothing(storage: str | None, tmp_path: Path) -> None:
    folder = new_study(tmp_path, num_trials=8, storage=storage)
    storm(folder, LIGHT, num_trials=8, kills=3, pause=0.1)


@ON_EVERY_STORAGE
def test_killed_workers_search_and_confirm_each_variant_once(storage: str | None, tmp_path: Path) -> None:
    variants = {"variants": {"cma": {"objectives": {"imc": None}}, "tcl": {}}}
    confirm = {"top": 1, "seeds": 3}
    folder = new_study(tmp_path, num_trials=3, storage=storage, experiment=variants, variants="all", confirm=confirm)
    with working(folder, LIGHT) as workers:
        killed = kill_storm(workers, kills=6, rng=random.Random(1), pause=0.5)
        workers.finish()
    assert Counter(workers.exit_codes)[-signal.SIGKILL] == killed >= 3, workers.printed
    for part in open_parts(folder):
        confirmation, study = part.confirmation(), part.confirming
        assert confirmation is not None
        assert study is not None
        assert confirmation.is_over, workers.printed
        assert [trial.state for trial in part.search.trials] == [TrialState.COMPLETE] * 3
        asked = Counter((one.user_attrs[OF], one.user_attrs[SEED]) for one in study.trials)
        assert len(study.trials) == len(asked)
        assert {trial.state for trial in study.trials} == {TrialState.COMPLETE}
        for trial in (*part.search.trials, *study.trials):
            (run_id,) = trial.user_attrs["runs"]
            steps = [row["step"] for row in read(RunFolder(folder.runs_dir / run_id).metrics)]
            assert steps == list(range(1, STEPS + 1)), f"{trial.user_attrs}"


@pytest.mark.faults
def test_a_long_storm_loses_and_repeats_nothing(storage: str | None, tmp_path: Path) -> None:
    folder = new_study(tmp_path, num_trials=60, storage=storage)
    storm(folder, LIGHT, num_trials=60, kills=24, pause=0.5)


@pytest.mark.faults
def test_training_workers_that_are_killed_go_on_from_their_checkpoints(storage: str | None, tmp_path: Path) -> None:
    folder = new_study(tmp_path, num_trials=8, storage=storage)
    storm(folder, REAL, num_trials=8, kills=6, pause=2.0)


# ------------------------------------------------------------------------------------------------------- a restarted database


@pytest.fixture
def own_postgres(monkeypatch: pytest.MonkeyPatch, closing: None) -> Iterator[Server]:
    """A PostgreSQL that nobody else uses."""
    if programs() is None:
        pytest.skip("PostgreSQL is not installed: `just postgres-up` does it (Debian)")
    with own_server() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server


def restart_during(folder: StudyFolder, server: Server, module: str, *, num_trials: int, after: tuple[int, ...]) -> None:
    """Crash the database when so many trials have begun, leave it away for a while, and start it again."""
    with working(folder, module) as workers:
        for begun in after:
            while len(list(folder.claim(0).parent.glob("*.json"))) < begun:
                workers.collect()
                assert len(workers.seats) == 4, workers.printed
                time.sleep(0.05)
            server.stop("immediate")
            time.sleep(2)
            server.start()
        workers.finish()
    assert workers.exit_codes == [0] * 4, workers.printed
    assert_every_trial_ended_once(folder, num_trials)


def test_workers_outlive_a_database_that_crashes(own_postgres: Server, tmp_path: Path) -> None:
    folder = new_study(tmp_path, num_trials=12, storage=own_postgres.url())
    restart_during(folder, own_postgres, LIGHT, num_trials=12, after=(4, 8))


@pytest.mark.faults
def test_training_workers_outlive_a_database_that_crashes(own_postgres: Server, tmp_path: Path) -> None:
    folder = new_study(tmp_path, num_trials=12, storage=own_postgres.url())
    restart_during(folder, own_postgres, REAL, num_trials=12, after=(2, 6, 10))


# ------------------------------------------------------------------------------------------------- between two lines of code


def test_a_trial_whose_worker_died_before_it_claimed_it_is_worked_on(tmp_path: Path) -> None:
    folder = new_study(tmp_path, num_trials=2, storage=None)
    open_study(folder, folder.read_sweep()).ask()
    with working(folder, LIGHT, count=1) as workers:
        workers.finish()
    assert_every_trial_ended_once(folder, 2)


def test_a_trial_that_began_without_an_answer_is_the_next_one(
    storage: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    working_on = worker_of(new_study(tmp_path, num_trials=2, storage=storage))
    monkeypatch.setattr(working_on.study, "ask", failing_once_after(working_on.study.ask))
    found = worker._next([working_on.stage], working_on.folder, "me")
    assert isinstance(found, worker.Chosen)
    assert found.trial.number == 0
    assert len([trial for trial in working_on.study.trials if trial.state == TrialState.RUNNING]) == 1


def test_a_draw_that_was_kept_without_an_answer_counts(
    storage: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    working_on = worker_of(new_study(tmp_path, num_trials=5, storage=storage))
    study = working_on.study
    study.tell(study.ask(), 1.0)  # the experiment itself, where nothing is drawn
    trial = study.ask()
    monkeypatch.setattr(study._storage, "set_trial_param", failing_once_after(study._storage.set_trial_param))
    (run,) = trial_module._planned(trial, working_on)
    assert run.spec.optim.learning_rate == study.trials[1].params["optim.learning_rate"]


@pytest.fixture
def holding_back() -> Iterator[None]:
    """Forks are born with signals held back; those of other tests' server are not, and there is one server a process."""
    stop = forkserver._forkserver._stop  # type: ignore[attr-defined]
    stop()
    run_process.start_server()
    yield
    stop()


@pytest.mark.usefixtures("holding_back")
def test_a_run_that_is_asked_to_stop_before_it_could_take_over_has_not_failed(tmp_path: Path) -> None:
    run = planned(tmp_path)
    folder = RunFolder(tmp_path / "runs" / run.plan.run_id)
    prepare(run, folder)
    folder.begin(Attempt("an-older-one"))
    saved = RunState("interrupted", 2, 6, "saved at step 2", updated_at=1.0)
    folder.write_json(folder.path / "state.json", asdict(saved))
    (folder.path / "logs").mkdir()
    os.mkfifo(folder.log(0))  # it opens its log before anything else, and waits until somebody reads
    started = run_process.start(run, folder, environment={}, takes_over=True)
    started.stop()
    threading.Thread(target=folder.log(0).read_bytes, daemon=True).start()
    while (exit_code := started.exit_code()) is None:
        time.sleep(0.01)
    assert exit_code == INTERRUPTED_AND_SAVED
    assert started.outcome(exit_code).ending == "interrupted"
    assert folder.read_state() == saved


def test_who_looks_whether_a_worker_lives_is_not_taken_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = new_study(tmp_path, num_trials=2, storage=None)
    name = claims.new_worker()
    (folder.workers / name).touch()  # as one that was killed leaves it
    claim = claims.take(folder, 0, name, step=0)
    look, seen = claims.lock_is_free, []

    def look_while_another_does(file: int) -> bool:
        monkeypatch.setattr(claims, "lock_is_free", look)
        found = look(file)
        seen.append(claims.is_alive(folder, claim))  # the other one, before this one lets go
        return found

    monkeypatch.setattr(claims, "lock_is_free", look_while_another_does)
    assert not claims.is_alive(folder, claim)
    assert seen == [False]
    with claims.living(folder, name):
        assert claims.is_alive(folder, claim)


def worker_of(folder: StudyFolder) -> trial_module.Worker:
    sweep = folder.read_sweep()
    return trial_module.Worker(Search(open_study(folder, sweep), sweep, folder), print, lambda: False)


def failing_once_after(call: Callable[..., Any]) -> Callable[..., Any]:
    """It does what is asked, but the first answer is lost."""
    lost = False

    def answer(*arguments: Any, **named: Any) -> Any:
        nonlocal lost
        found = call(*arguments, **named)
        if not lost:
            lost = True
            raise StorageInternalError("the server closed the connection")
        return found

    return answer
