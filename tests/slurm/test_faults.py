"""What a cluster does to a run, done for real: in every case the run ends like an undisturbed one, or says why it does not.

The long ones are marked `faults`: `just faults` runs them. TCLX_REPEATS=10 repeats those that depend on the moment.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from tclx.launch.watch import watch_runs
from tclx.runs import RunFolder
from tests.disk import fill, small_disk
from tests.launch.toy import SPEC
from tests.slurm.cluster import Cluster
from tests.slurm.toy import (
    REPEATED,
    events,
    fingerprint,
    folders_in,
    only_run,
    rows,
    slurm_spec,
    status_of,
    status_of_state,
    tclx,
    until,
    until_standing,
    until_step,
)

pytestmark = [pytest.mark.usefixtures("cluster"), pytest.mark.slow]

STEPS = 120
FOUR = {"num_nodes": 2, "tasks_per_node": 2}


def submit(folder: Path, **changes: object) -> RunFolder:
    """A run that takes some seconds, handed to the cluster."""
    options = {"steps": STEPS, "every_steps": 40, **changes}
    tclx("run", slurm_spec(folder, **options), runs_dir=folder / "runs")  # type: ignore[arg-type]
    return only_run(folder / "runs")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, cluster: Cluster) -> RunFolder:
    folder = submit(tmp_path_factory.mktemp("undisturbed"))
    until_standing([folder], "finished")
    return folder


@pytest.fixture(scope="module")
def four_undisturbed(tmp_path_factory: pytest.TempPathFactory, cluster: Cluster) -> RunFolder:
    folder = submit(tmp_path_factory.mktemp("four"), launch=FOUR, training={"batch_size_per_gpu": 2})
    until_standing([folder], "finished")
    return folder


def assert_same(folder: RunFolder, undisturbed: RunFolder) -> None:
    assert fingerprint(folder) == fingerprint(undisturbed)
    assert rows(folder) == rows(undisturbed)


def job_id(folder: RunFolder) -> str:
    job = folder.read_job()
    assert job is not None
    assert job.job_id is not None
    return job.job_id


def processes_of(folder: RunFolder) -> list[psutil.Process]:
    """The training processes of a run, by rank. All nodes are this machine."""
    job = folder.read_job()
    assert job is not None
    found = []
    for process in psutil.process_iter():
        try:
            command, environment = process.cmdline(), process.environ()
        except psutil.Error:
            continue
        if command[1:5] == ["-m", "tclx.launch.task", "rank", job.folder] and "SLURM_PROCID" in environment:
            found.append((int(environment["SLURM_PROCID"]), process))
    return [process for _, process in sorted(found, key=lambda pair: pair[0])]


@REPEATED
def test_its_signal_saves_and_requeues(tmp_path: Path, undisturbed: RunFolder, repeat: int) -> None:
    folder = submit(tmp_path)
    until_step(folder, 10 + 7 * repeat % 40)
    signalled_at = time.time()
    subprocess.run(["scancel", "--signal=USR2", job_id(folder)], check=True)
    until_standing([folder], "restarting", seconds=120)
    (stopped,) = events(folder, "interrupted")
    print(f"signal to saved: {stopped['time'] - signalled_at:.2f} s, at step {stopped['step']}")
    assert stopped["time"] - signalled_at < 2
    assert "USR2" in (status_of(folder).reason or "")
    until_standing([folder], "finished")
    assert len(events(folder, "resumed")) == 1
    assert status_of(folder).restarts == 1
    assert_same(folder, undisturbed)


@pytest.mark.faults
def test_a_cancelled_job_saves_and_is_not_brought_back(tmp_path: Path, undisturbed: RunFolder) -> None:
    folder = submit(tmp_path)
    until_step(folder, 20)
    subprocess.run(["scancel", job_id(folder)], check=True)
    until_standing([folder], "cancelled", seconds=120)
    saved = int(max(path.name for path in folder.checkpoints.glob("step-*")).removeprefix("step-"))
    assert saved >= 20
    time.sleep(20)  # a requeued job would start again after 11 s
    assert status_of(folder).standing == "cancelled"
    tclx("resume", folder.path, runs_dir=tmp_path / "runs")
    until_standing([folder], "finished")
    assert_same(folder, undisturbed)


def test_tclx_cancel_and_resume(tmp_path: Path, undisturbed: RunFolder) -> None:
    folder = submit(tmp_path)
    until_step(folder, 20)
    (process,) = processes_of(folder)
    process.suspend()  # it would be at its end before the command has started on a machine with much to do
    tclx("cancel", folder.path, runs_dir=tmp_path / "runs")
    process.resume()
    until_standing([folder], "cancelled", seconds=120)
    tclx("resume", folder.path, runs_dir=tmp_path / "runs")
    until_standing([folder], "finished")
    assert_same(folder, undisturbed)


def test_a_job_of_higher_priority_takes_the_nodes_and_the_run_comes_back(
    tmp_path: Path, cluster: Cluster, undisturbed: RunFolder
) -> None:
    """Real preemption: SLURM sends SIGTERM alone, and the requeued job waits."""
    folder = submit(tmp_path, launch={"partition": "low", "sbatch_options": {"nodelist": "n3"}})
    until_step(folder, 10)
    other = ["sbatch", "-p", "high", "-w", "n3", "--exclusive", "--output=/dev/null", "--wrap", "sleep 1"]
    subprocess.run(other, check=True, stdout=subprocess.DEVNULL)
    until_standing([folder], "finished")
    assert len(events(folder, "resumed")) == 1
    assert_same(folder, undisturbed)


@pytest.mark.faults
def test_a_chain_of_tasks_is_preempted_in_each_stage_and_finishes(tmp_path: Path, cluster: Cluster) -> None:
    """A pre-training and two tasks that start from it, by one `tclx run`; each is sent away."""
    low = {"launch": {"partition": "low", "sbatch_options": {"nodelist": "n3"}}, "steps": STEPS, "every_steps": 40}
    scenes = {"source": "scenes", "picture_size": 16}
    slurm_spec(tmp_path, "pre", **low)  # type: ignore[arg-type]
    specs = [
        slurm_spec(
            tmp_path,
            task,
            init={"experiment": "pre.yaml"},
            task={"name": task},
            objectives={},
            data={
                **SPEC["data"],
                "max_caption_tokens": 24,
                **{
                    split: {**scenes, "split": split, "num_images": num_images, "form": task}
                    for split, num_images in (("train", 32), ("val", 8), ("test", 8))
                },
            },
            evaluation={task: {}, "at_end": "test"},
            **low,  # type: ignore[arg-type]
        )
        for task in ("vqa", "entailment")
    ]
    tclx("run", *specs, runs_dir=tmp_path / "runs")
    folders = folders_in(tmp_path / "runs")
    assert len(folders) == 3
    waiting = list(folders)
    while waiting:
        until(lambda: any(status_of(one).standing == "running" for one in waiting), what="a stage runs")
        folder = next(one for one in waiting if status_of(one).standing == "running")
        until_step(folder, 10)
        other = ["sbatch", "-p", "high", "-w", "n3", "--exclusive", "--output=/dev/null", "--wrap", "sleep 1"]
        subprocess.run(other, check=True, stdout=subprocess.DEVNULL)
        until(lambda: bool(events(folder, "resumed")), what="it goes on")  # noqa: B023 (called before the next turn)
        waiting.remove(folder)
    until_standing(folders, "finished")
    for folder in folders:
        assert events(folder, "resumed")  # the two tasks may share the node and are sent away together
        assert folder.read_evaluations()["test"].metrics
    assert len({(folder.tokenizer / "tokenizer.json").read_bytes() for folder in folders}) == 1


@pytest.mark.faults
def test_four_processes_stop_at_one_step_and_go_on_bit_for_bit(tmp_path: Path, four_undisturbed: RunFolder) -> None:
    folder = submit(tmp_path, launch=FOUR, training={"batch_size_per_gpu": 2})
    until_step(folder, 20)
    subprocess.run(["scancel", "--signal=USR2", job_id(folder)], check=True)
    until_standing([folder], "finished")
    assert len(events(folder, "resumed")) == 1
    assert_same(folder, four_undisturbed)


@REPEATED
@pytest.mark.faults
@pytest.mark.parametrize("rank", [0, 2])
def test_a_killed_rank_takes_the_others_along_and_the_run_goes_on(
    tmp_path: Path, four_undisturbed: RunFolder, rank: int, repeat: int
) -> None:
    folder = submit(tmp_path, launch=FOUR, training={"batch_size_per_gpu": 2})
    until_step(folder, 50)
    victims = processes_of(folder)
    assert len(victims) == 4
    victims[rank].send_signal(signal.SIGKILL)
    killed_at = time.monotonic()
    gone, alive = psutil.wait_procs(victims, timeout=60)
    assert len(gone) == 4, alive
    print(f"rank {rank} killed: all four gone after {time.monotonic() - killed_at:.1f} s")
    until_standing([folder], "finished")
    assert [event["step"] for event in events(folder, "killed")] == [40]
    assert_same(folder, four_undisturbed)


@pytest.mark.faults
@REPEATED
def test_a_rank_that_is_stopped_is_noticed_within_a_minute_and_the_run_goes_on(
    tmp_path: Path, four_undisturbed: RunFolder, repeat: int
) -> None:
    """SIGSTOP: to its companions it looks like one that hangs in the kernel. Repeats stop rank 0, too."""
    rank = (2, 0, 1, 3)[repeat % 4]
    folder = submit(tmp_path, launch=FOUR, training={"batch_size_per_gpu": 2})
    until_step(folder, 50)
    stopped = processes_of(folder)[rank]
    stopped.suspend()
    stopped_at = time.time()
    until(lambda: bool(events(folder, "stood_still")), what="noticed", seconds=180)
    (noticed,) = events(folder, "stood_still")
    notes = [json.loads(path.read_text()) for path in (folder.path / "errors").glob("rank*.json")]
    seconds = min(note["time"] for note in notes if "stood_still" in note) - stopped_at
    print(f"rank {rank} stopped: noticed after {seconds:.0f} s")
    assert seconds < 60
    assert re.match(rf"rank {rank} on n\d \(process {stopped.pid}\) has given no sign of life for", noticed["reason"])
    assert "is stopped (SIGSTOP" in noticed["reason"]
    until(lambda: f"rank {rank} on n" in (status_of(folder).reason or ""), what="named by status", seconds=60)
    assert list((folder.path / "errors").glob("rank*.stacks.txt"))
    until_standing([folder], "finished")
    assert not stopped.is_running()
    assert status_of(folder).restarts == 1
    assert_same(folder, four_undisturbed)


@pytest.mark.faults
def test_a_node_on_which_a_rank_was_stopped_twice_is_left_out(tmp_path: Path, four_undisturbed: RunFolder) -> None:
    """The second node of the two, each time; the user's own choice of nodes to leave out stays."""
    launch = {**FOUR, "sbatch_options": {"exclude": "n4"}}
    folder = submit(tmp_path, launch=launch, training={"batch_size_per_gpu": 2})
    for start in (0, 1):
        until(lambda start=start: len(events(folder, "resumed")) == start, what="training again")
        until_step(folder, 45)
        processes_of(folder)[3].suspend()
        until(lambda start=start: len(events(folder, "stood_still")) == start + 1, what="noticed", seconds=180)
    first, second = (event["node"] for event in events(folder, "stood_still"))
    until_standing([folder], "finished")
    shown = subprocess.run(["scontrol", "show", "job", job_id(folder)], capture_output=True, text=True, check=True).stdout
    avoided = re.findall(r"ExcNodeList=(\S+)", shown)[0]
    print(f"stopped on {first} and {second}; left out: {avoided}")
    assert first == second  # SLURM takes the first nodes that are free
    assert sorted(avoided.split(",")) == sorted([first, "n4"])
    assert status_of(folder).restarts == 2
    assert_same(folder, four_undisturbed)


def test_a_killed_process_that_was_alone_goes_on_too(tmp_path: Path, undisturbed: RunFolder) -> None:
    folder = submit(tmp_path)
    until_step(folder, 50)
    processes_of(folder)[0].send_signal(signal.SIGKILL)
    until_standing([folder], "finished")
    assert_same(folder, undisturbed)


def test_a_run_without_memory_is_not_tried_again_and_says_so(tmp_path: Path) -> None:
    """The limit is below what torch itself needs."""
    folder = submit(tmp_path, launch={"sbatch_options": {"mem-per-cpu": "100M"}})
    until_standing([folder], "failed")
    assert "launch.memory_gb" in (status_of(folder).reason or "")
    assert status_of(folder).restarts == 0


def test_a_run_that_fails_by_itself_is_not_tried_again(tmp_path: Path) -> None:
    (tmp_path / "foreign.pth").write_bytes(b"no weights")
    folder = submit(
        tmp_path, launch=FOUR, training={"batch_size_per_gpu": 2}, init={"checkpoint": str(tmp_path / "foreign.pth")}
    )
    until_standing([folder], "failed")
    assert "foreign.pth" in (status_of(folder).reason or "")
    assert not events(folder, "killed")


def test_a_job_that_never_begins_shows_what_was_printed(tmp_path: Path) -> None:
    folder = submit(tmp_path, launch={"setup": ["echo the module is not there >&2; exit 7"]})
    until_standing([folder], "failed")
    assert "before training began" in (status_of(folder).reason or "")
    assert "the module is not there" in tclx("logs", folder.path, runs_dir=tmp_path / "runs").stdout


@pytest.mark.faults
def test_without_restarts_left_it_ends_failed_and_resumable(tmp_path: Path, undisturbed: RunFolder) -> None:
    folder = submit(tmp_path, launch={"max_restarts": 0})
    until_step(folder, 20)
    subprocess.run(["scancel", "--signal=USR2", job_id(folder)], check=True)
    until_standing([folder], "failed")
    assert "launch.max_restarts is 0" in (status_of(folder).reason or "")
    tclx("resume", folder.path, runs_dir=tmp_path / "runs")
    until_standing([folder], "finished")
    assert_same(folder, undisturbed)


@pytest.mark.faults
def test_a_controller_that_is_away_for_a_minute_delays_and_loses_nothing(
    tmp_path: Path, cluster: Cluster, undisturbed: RunFolder
) -> None:
    """While it is down one run trains, one is stopped and has to requeue itself, and two seeds are submitted as an array."""
    for name in ("trains", "stops", "new"):
        (tmp_path / name).mkdir()
    trains, stops = submit(tmp_path / "trains"), submit(tmp_path / "stops")
    until_step(trains, 5)
    until_step(stops, 5)
    (process,) = processes_of(stops)
    cluster.stop_controller()
    down_at = time.monotonic()
    try:
        process.send_signal(signal.SIGUSR2)  # as slurmd would: it keeps the time limit by itself
        assert status_of(trains).standing in ("running", "finished")
        spec = slurm_spec(tmp_path / "new", steps=2, seeds=[0, 1])
        new = start_tclx("run", spec, runs_dir=tmp_path / "new" / "runs")
        time.sleep(60 - (time.monotonic() - down_at))
        assert new.poll() is None
    finally:
        cluster.start_controller()
    _, said = new.communicate(timeout=120)
    assert new.returncode == 0, said
    seeds = folders_in(tmp_path / "new" / "runs")
    until_standing([trains, stops, *seeds], "finished")
    for folder in (trains, stops):
        assert_same(folder, undisturbed)
    assert [len(events(stops, name)) for name in ("stopped", "resumed")] == [1, 1]
    assert [len(events(folder, "started")) for folder in seeds] == [1, 1]
    ((name, _),) = submissions_of(seeds)
    assert jobs_named(name) == submissions_of(seeds)
    assert len(list((tmp_path / "new" / "runs" / ".submissions").glob("*/job.sbatch"))) == 1


def start_tclx(*arguments: str | Path, runs_dir: Path) -> subprocess.Popen[str]:
    """The command line, not waited for."""
    command = [sys.executable, "-m", "tclx.cli", *map(str, arguments)]
    environment = {**os.environ, "TCLX_RUNS": str(runs_dir)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def jobs_named(prefix: str) -> Counter[tuple[str, str]]:
    """How many jobs SLURM has of each name and id; an array counts once."""
    lines = subprocess.run(
        ["squeue", "--noheader", "--states=all", "--format=%j|%F"], capture_output=True, text=True, check=True
    ).stdout.split()
    return Counter((name, job) for name, job in {tuple(line.split("|")) for line in lines} if name.startswith(prefix))


def submissions_of(folders: Sequence[RunFolder]) -> Counter[tuple[str, str]]:
    """The jobs that the run folders know of."""
    jobs = [job for folder in folders if (job := folder.read_job())]
    pairs = {((Path(job.folder) / "name").read_text(encoding="utf-8"), (job.job_id or "").partition("_")[0]) for job in jobs}
    return Counter(pairs)


@pytest.mark.faults
def test_a_storm_of_killed_submitters_leaves_one_job_a_run_and_no_orphan(tmp_path: Path) -> None:
    """SIGKILL at any moment of a submission, half of the time around sbatch; then the same command in peace."""
    chance = random.Random(20)
    began = time.monotonic()
    name = f"storm{os.getpid()}"
    tclx("run", storm_spec(tmp_path, name, seed=99), runs_dir=tmp_path / "runs")
    whole = time.monotonic() - began
    found: Counter[str] = Counter()
    for number in range(24):
        spec = storm_spec(tmp_path, name, seed=number // 3 * 2)
        submitting = start_tclx("run", spec, runs_dir=tmp_path / "runs")
        if number % 2:
            before = set((tmp_path / "runs" / ".submissions").glob("*/job.sbatch"))
            while submitting.poll() is None and set((tmp_path / "runs" / ".submissions").glob("*/job.sbatch")) == before:
                time.sleep(0.001)
            time.sleep(chance.uniform(0, 0.1))
        else:
            time.sleep(chance.uniform(0.3, 1) * whole)
        submitting.kill()
        submitting.communicate()
        found[moment(tmp_path / "runs")] += 1
        if number % 3 == 2:
            tclx("run", spec, runs_dir=tmp_path / "runs")
    folders = folders_in(tmp_path / "runs")
    assert len(folders) == 18
    assert jobs_named(name) == submissions_of(folders)
    assert len(submissions_of(folders)) == 9
    print(f"24 killed submitters, {whole:.1f} s each in peace; records they left: {dict(found)}")
    tclx("cancel", *(folder.path for folder in folders), runs_dir=tmp_path / "runs")


def storm_spec(folder: Path, name: str, *, seed: int) -> Path:
    """Two seeds that wait in the queue."""
    launch = {"sbatch_options": {"begin": "now+1hour"}}
    return slurm_spec(folder, name, steps=1, every_steps=1, launch=launch, seeds=[seed, seed + 1], evaluation={})


def moment(runs_dir: Path) -> str:
    """How far the last submission has come, by what its records say."""
    records = [folder.read_json(folder.job) for folder in folders_in(runs_dir) if folder.job.exists()]
    without = sum(record["job_id"] is None for record in records)
    return {0: "complete or none", 1: "one run without its job's id", 2: "both without"}[without]


def test_a_full_disk_is_named_and_what_was_saved_is_there(tmp_path: Path, undisturbed: RunFolder) -> None:
    """A file system of its own that fills up while the run trains; with space again the run goes on."""
    with small_disk(tmp_path / "runs", size="24m"):
        folder = submit(tmp_path)
        until_step(folder, 45)
        filler = tmp_path / "runs" / "filler"
        fill(filler)
        until_standing([folder], "failed")
        assert "disk is full" in (status_of(folder).reason or "")
        filler.unlink()
        tclx("resume", folder.path, runs_dir=tmp_path / "runs")
        until_standing([folder], "finished")
        assert_same(folder, undisturbed)


@pytest.mark.faults
def test_two_hundred_runs_are_one_array_and_none_is_lost(tmp_path: Path) -> None:
    """Prints how long it takes to submit them, and to ask where they stand."""
    spec = slurm_spec(tmp_path, steps=1, every_steps=1, launch={"max_parallel_runs": 8}, seeds=list(range(200)), evaluation={})
    started = time.monotonic()
    tclx("run", spec, runs_dir=tmp_path / "runs")
    submitted = time.monotonic()
    tclx("status", runs_dir=tmp_path / "runs")
    asked = time.monotonic()
    print(f"200 runs: submitted in {submitted - started:.1f} s, tclx status in {asked - submitted:.1f} s")
    folders = folders_in(tmp_path / "runs")
    assert len(folders) == 200
    most, standings = 0, [""]
    while set(standings) != {"finished"}:
        standings = [status.standing for status in watch_runs([folder.path for folder in folders])]
        most = max(most, sum(standing in ("running", "starting") for standing in standings))
        assert not {"failed", "lost", "cancelled", "unknown"} & set(standings)
        time.sleep(1)
    assert most <= 8
    assert all([len(events(folder, name)) for name in ("started", "finished")] == [1, 1] for folder in folders)


@pytest.mark.faults
def test_more_runs_than_an_array_may_have_are_two_arrays(tmp_path: Path) -> None:
    """The cluster's MaxArraySize is 1001."""
    launch = {"sbatch_options": {"begin": "now+1hour"}}
    spec = slurm_spec(tmp_path, "many", steps=1, every_steps=1, launch=launch, seeds=list(range(1003)), evaluation={})
    started = time.monotonic()
    tclx("run", spec, runs_dir=tmp_path / "runs")
    submitted = time.monotonic()
    try:
        tclx("status", runs_dir=tmp_path / "runs")
        print(f"1003 runs: submitted in {submitted - started:.1f} s, tclx status in {time.monotonic() - submitted:.1f} s")
        folders = folders_in(tmp_path / "runs")
        arrays = Counter(job_id(folder).partition("_")[0] for folder in folders)
        assert sorted(arrays.values()) == [2, 1001]
        assert {status.standing for status in watch_runs([folder.path for folder in folders])} == {"queued"}
    finally:
        tclx("cancel", "many", runs_dir=tmp_path / "runs")


def steps_in(seconds: float, undisturbed: RunFolder) -> int:
    """How many steps a run takes in so many seconds on this machine, as busy as it is, rounded to hundreds."""
    rows = [json.loads(line) for line in undisturbed.metrics.read_text(encoding="utf-8").splitlines()]
    speed = statistics.median(row["speed/images_per_second"] for row in rows if "speed/images_per_second" in row)
    return max(600, round(seconds * speed / 800) * 100)


@pytest.mark.faults
def test_a_time_limit_reached_twice_continues_in_fresh_allocations(tmp_path: Path, undisturbed: RunFolder) -> None:
    """An allocation lasts for about 60 s of training; two runs of three times that, of which one may restart only once."""
    steps = steps_in(180, undisturbed)
    launch = {"partition": "short", "time_limit_minutes": 2, "signal_seconds": 50}
    places = {name: tmp_path / name for name in ("free", "bounded", "whole")}
    for place in places.values():
        place.mkdir()
    free = submit(places["free"], steps=steps, every_steps=steps, launch=launch)
    bounded = submit(places["bounded"], steps=steps, every_steps=steps, launch={**launch, "max_restarts": 1})

    until_standing([bounded], "failed", seconds=600)
    reason = status_of(bounded).reason or ""
    assert "SIGUSR2" in reason
    assert "it was restarted 1 times, and launch.max_restarts is 1" in reason
    assert [len(events(bounded, name)) for name in ("started", "stopped", "resumed")] == [1, 1, 1]
    submit(places["bounded"], steps=steps, every_steps=steps)  # the same run, in another partition with a longer limit

    until_standing([free], "finished", seconds=900)
    stops = [event["step"] for event in events(free, "stopped")]
    assert len(stops) >= 2
    assert [event["step"] for event in events(free, "resumed")] == stops
    assert status_of(free).restarts == len(stops)
    print(f"{steps} steps in allocations of 2 minutes: stopped and saved at {stops}, {len(stops)} restarts")

    whole = submit(places["whole"], steps=steps, every_steps=steps)
    until_standing([bounded, whole], "finished", seconds=900)
    assert_same(free, whole)
    assert_same(bounded, whole)


@pytest.mark.faults
@REPEATED
def test_a_node_that_is_lost_comes_back_and_no_writer_is_in_the_others_way(
    tmp_path: Path, cluster: Cluster, undisturbed: RunFolder, repeat: int
) -> None:
    """slurmd dies, the process on its node lives on while the run is started again elsewhere."""
    steps = steps_in(120, undisturbed)
    for name in ("lost", "whole"):
        (tmp_path / name).mkdir()
    length = {"steps": steps, "every_steps": steps // 20}
    whole = submit(tmp_path / "whole", launch={"sbatch_options": {"nodelist": "n4"}}, **length)
    folder = submit(tmp_path / "lost", launch={"sbatch_options": {"exclude": "n4"}}, **length)
    until_step(folder, 20)
    node = status_of(folder).node
    assert node is not None
    (old,) = processes_of(folder)
    cluster.kill_node(node)
    killed_at = time.monotonic()
    try:
        until(lambda: status_of(folder).standing == "restarting", what="requeued")
        seen = status_of_state(folder)
        until(lambda: status_of_state(folder) > seen, what="written to by the process that nobody ended")
        until(lambda: (attempt := folder.read_attempt()) is not None and attempt.restart == 1, what="started again")
        print(f"slurmd of {node} killed: started again after {time.monotonic() - killed_at:.0f} s")
        old.wait(timeout=30)  # it finds out by itself: its node has no slurmd that could end it
        until(lambda: status_of(folder).node not in (None, "", node), what="on another node")
    finally:
        cluster.start_node(node)
    until_standing([folder], "finished", "lost", seconds=600)
    if status_of(folder).standing == "lost":  # SLURM may refuse the requeued job's credential
        print("SLURM has given the requeued job up; resumed by hand")
        tclx("resume", folder.path, runs_dir=tmp_path / "lost" / "runs")
        until_standing([folder], "finished", seconds=600)
    else:
        assert status_of(folder).restarts == 1
    until_standing([whole], "finished", seconds=600)

    assert "is trained by the newer attempt" in folder.log(0).read_text(encoding="utf-8")
    resumed = events(folder, "resumed")[-1]
    saved = [event["step"] for event in events(folder, "saved") if event["time"] > resumed["time"]]
    assert saved == sorted(set(saved))  # one writer
    assert saved[0] > resumed["step"]
    assert [row["step"] for row in rows(folder) if "loss/total" in row] == list(range(1, steps + 1))
    assert_same(folder, whole)
