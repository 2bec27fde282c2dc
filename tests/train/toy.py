"""A whole run that takes a second: 64 scenes, width 16, every term on; and the means to start, kill and compare such runs."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

from tclx.files import read_as
from tclx.plan import DataFacts, Plan, make_plan
from tclx.runs import RunFolder
from tclx.spec.experiment import ExperimentSpec

NUM_SCENES = 64
STOPPED, REFUSED = 75, 3
"""Exit codes of a process that was stopped and saved, and of one that met an error with a message."""
TIME_BASED = ("speed/", "memory/")
PATIENCE = 120.0
"""Seconds after which a test gives up on a process."""


def toy_spec(**changes: Any) -> ExperimentSpec:
    """The spec, with keys changed by dotted path: `toy_spec(**{"training.steps": 3})`."""
    vit = {"name": "vit_tiny_patch16_224", "image_size": 32, "patch_size": 8, "width": 16, "depth": 1, "num_heads": 2}
    bert = {"width": 16, "num_heads": 2, "intermediate_size": 32}
    tree: dict[str, Any] = {
        "name": "toy",
        "seed": 3,
        "model": {
            "image_encoder": vit,
            "text_encoder": {"sizes": bert, "num_layers": 1},
            "fusion_encoder": {"num_layers": 1},
            "embed_dim": 8,
            "queue_size": 24,
            "momentum": 0.9,
        },
        "objectives": {"cma": {}, "imc": {}, "lmi": {"pooled_grid": 2}, "itm": {}, "mlm": {}},
        "data": {
            "train": {"source": "scenes", "num_images": NUM_SCENES, "split": "train"},
            "val": {"source": "scenes", "num_images": 6, "split": "val"},
            "test": {"source": "scenes", "num_images": 6, "split": "test"},
            "tokenizer": {"source": "captions", "vocab_size": 128},
            "num_workers": 0,
        },
        "optim": {"learning_rate": 0.003, "schedule": {"name": "cosine", "warmup_steps": 2}},
        "training": {"steps": 12, "batch_size_per_gpu": 8, "device": "cpu", "checkpoints": {"every_steps": 3}},
        "evaluation": {
            "retrieval": {"top_k": 4, "batch_size": 8},
            "during_training": "val",
            "every_steps": 6,
            "at_end": "test",
        },
        "tracking": {"log_every_steps": 2},
        "launch": {"backend": "local"},
    }
    for path, value in changes.items():
        *sections, key = path.split(".")
        place = tree
        for section in sections:
            place = place.setdefault(section, {})
        place[key] = value
    return ExperimentSpec.model_validate_json(json.dumps(tree))


def prepare(path: Path, spec: ExperimentSpec) -> RunFolder:
    """A run folder as `tclx run` prepares it."""
    folder = RunFolder(path)
    path.mkdir(parents=True, exist_ok=True)
    plan = make_plan(spec, DataFacts(NUM_SCENES, NUM_SCENES, 6, 30, 6, 30))
    folder.write_json(folder.spec, spec.model_dump(mode="json"))
    folder.write_json(folder.plan, plan.to_json())
    return folder


# -------------------------------------------------------------------------------------------------------- starting processes

# A server that has imported everything and forks: a run starts in milliseconds, each in a process of its own that has never
# trained before. (Forking from the tests' own process would inherit the threads of whatever they did with torch.)
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["tclx.train.loop", "tests.train.toy"])


def start(
    folder: RunFolder,
    *,
    num_processes: int | None = None,
    environment: Mapping[str, str] | None = None,
    prepare_process: Callable[[str], None] | None = None,
) -> list[BaseProcess]:
    """Start the processes of a prepared run, by default as many as its plan says; stderr goes to `stderr<rank>.txt`.

    They have the environment of the first test that started any, and what `environment` adds to it, and first call
    `prepare_process` with their device's name.
    """
    world_size = num_processes or read_as(folder.plan, Plan).world_size
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(world_size):
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        own = {**(environment or {}), **{name: str(value) for name, value in names.items()}}
        processes.append(_SERVER.Process(target=_work, args=(folder.path, own, prepare_process)))
    for process in processes:
        process.start()
    return processes


def start_with(prepare_process: Callable[[str], None], folder: RunFolder) -> BaseProcess:
    """As `start`, one process that first calls the function with its device's name."""
    (process,) = start(folder, num_processes=1, prepare_process=prepare_process)
    return process


def _work(path: Path, environment: dict[str, str], prepare_process: Callable[[str], None] | None = None) -> None:
    import torch

    from tclx.errors import Interrupted, TclxError
    from tclx.train.loop import train

    os.environ.update(environment)
    torch.set_num_threads(1)
    stderr = os.open(path / f"stderr{environment['RANK']}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(stderr, 2)
    folder = RunFolder(path)
    spec = ExperimentSpec.model_validate_json(folder.spec.read_text(encoding="utf-8"))
    if prepare_process is not None:
        prepare_process(spec.training.device)
    try:
        train(folder, spec, read_as(folder.plan, Plan))
    except Interrupted:
        sys.exit(STOPPED)
    except TclxError as error:
        print(error, file=sys.stderr)
        sys.exit(REFUSED)


def wait(processes: Sequence[BaseProcess]) -> list[int | None]:
    """The exit codes, negative for a signal; ends what does not end by itself."""
    deadline = time.monotonic() + PATIENCE
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    codes = [process.exitcode for process in processes]
    kill(processes)
    return codes


def kill(processes: Sequence[BaseProcess]) -> None:
    """SIGKILL to each of them."""
    for process in processes:
        process.kill()
    for process in processes:
        process.join()
        process.close()


def wait_until(condition: Callable[[], bool], processes: Sequence[BaseProcess]) -> None:
    """Return as soon as the condition holds, or a process has ended."""
    deadline = time.monotonic() + PATIENCE
    while not condition() and all(process.is_alive() for process in processes):
        if time.monotonic() > deadline:
            raise TimeoutError("the processes are alive, and what the test waits for did not happen")
        time.sleep(0.0002)


def run(folder: RunFolder, *, environment: Mapping[str, str] | None = None) -> RunFolder:
    """Run to the end; fails with what was printed when it does not finish."""
    codes = wait(start(folder, environment=environment))
    if any(code != 0 for code in codes):  # None: it was still running
        printed = "".join(path.read_text() for path in sorted(folder.path.glob("stderr*.txt")))
        raise AssertionError(f"exit codes {codes}:\n{printed}")
    return folder


# ----------------------------------------------------------------------------------------------------------------- comparing


class Outcome(NamedTuple):
    """What must not depend on interruptions."""

    checksums: dict[str, str]
    """Of the last checkpoint's files."""
    rows: list[dict[str, Any]]
    """Of metrics.jsonl, speeds left out."""
    best: dict[str, Any]
    evaluation: dict[str, Any]


def outcome(folder: RunFolder) -> Outcome:
    """What a finished run leaves behind."""
    from tclx.track.jsonl import read
    from tclx.train.checkpoint import newest

    last = newest(folder.checkpoints)
    assert last is not None
    names = ("model.safetensors", "optimizer.safetensors", "state.json")
    return Outcome(
        {f"{last.name}/{name}": hashlib.sha256((last / name).read_bytes()).hexdigest() for name in names},
        [{name: value for name, value in row.items() if not name.startswith(TIME_BASED)} for row in read(folder.metrics)],
        folder.read_json(folder.best) if folder.best.exists() else {},
        folder.read_json(test) if (test := folder.evaluated("retrieval", "test")).exists() else {},
    )
