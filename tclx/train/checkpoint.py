"""What must a run remember to go on as if it had never been killed, and how is it written so that no kill tears it?

    checkpoints/step-00001234/model.safetensors      every parameter and buffer: momentum encoders and queues, too
                              optimizer.safetensors  AdamW's moments under the names of their parameters
                              state.json             step, gradient scaler, counters
                              manifest.json          the size and checksum of each; written last

A folder is built beside its place, flushed to the disk and renamed: it is there completely or not at all. Random states are not
in it: every step draws from a seed of its own. Nothing here is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import AdamW

from tclx.errors import InputError, Problem
from tclx.runs import RunFolder, machine_error

SCHEMA = 1
_MODEL, _OPTIMIZER, _STATE, _MANIFEST = "model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"
_FOLDER = re.compile(r"step-(\d{8,})")
_MOST_NAMES = 5
"""Names that a message lists before it says how many more there are."""


class Progress(NamedTuple):
    """The few numbers of a run that are not tensors."""

    step: int
    num_bad_images: int = 0
    num_bad_in_epoch: int = 0
    scaler: dict[str, Any] | None = None


class Damaged(Exception):
    """A checkpoint folder that cannot be used as it is; never leaves this room."""


# ---------------------------------------------------------------------------------------------------------------- writing


def save(checkpoints: Path, progress: Progress, *, model: nn.Module, optimizer: AdamW, run_id: str) -> Path:
    """Write a checkpoint, atomically; returns its folder.

    Raises:
        MachineError: the disk is full or the place cannot be written; older checkpoints are intact and nothing half is left.
    """
    final = place(checkpoints, progress.step)
    building = checkpoints / f".{final.name}.{os.getpid()}.tmp"
    try:
        building.mkdir(parents=True)
        _write(building, progress, model=model, optimizer=optimizer, run_id=run_id)
        if final.exists():  # a damaged one of the same step; a sound one would have been resumed from
            shutil.rmtree(final)
        building.rename(final)
        _sync(checkpoints)
    except OSError as error:
        shutil.rmtree(building, ignore_errors=True)
        raise machine_error(error, f"could not save the checkpoint {final} (those before it are intact)") from error
    return final


def _write(folder: Path, progress: Progress, *, model: nn.Module, optimizer: AdamW, run_id: str) -> None:
    tensors, aliases = _without_aliases(model.state_dict())
    _save_tensors(folder / _MODEL, tensors, metadata={"aliases": json.dumps(aliases)})
    _save_tensors(folder / _OPTIMIZER, optimizer_tensors(optimizer))
    (folder / _STATE).write_text(json.dumps(progress._asdict()), encoding="utf-8")
    files = {name: {"bytes": (folder / name).stat().st_size, "sha256": _sha256(folder / name)} for name in _FILES}
    for name in _FILES:
        _sync(folder / name)
    manifest = {"schema": SCHEMA, "run_id": run_id, "step": progress.step, "files": files}
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    _sync(folder / _MANIFEST)
    _sync(folder)


_FILES = (_MODEL, _OPTIMIZER, _STATE)


def _save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path, metadata=metadata)
    except SafetensorError as error:
        # safetensors gives the system's error as text only.
        if found := re.search(r"os error (\d+)", str(error)):
            raise OSError(int(found[1]), str(error), str(path)) from error
        raise


def _without_aliases(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tied weights once, and which further name stands for which: the format refuses tensors that share memory."""
    unique: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    names: dict[tuple[Any, ...], str] = {}
    for name, tensor in tensors.items():
        place = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and place in names:
            aliases[name] = names[place]
        else:
            names[place] = name
            unique[name] = tensor
    return unique, aliases


def optimizer_tensors(optimizer: AdamW) -> dict[str, Tensor]:
    """The optimizer's state as `moment/parameter name`, so that a changed order of parameters cannot mix it up."""
    return {
        f"{moment}/{name}": value
        for group in optimizer.param_groups
        for name, parameter in zip(group["param_names"], group["params"], strict=True)
        for moment, value in optimizer.state[parameter].items()
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ---------------------------------------------------------------------------------------------------------------- finding


def place(checkpoints: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return checkpoints / f"step-{step:08d}"


def step_of(folder: Path) -> int:
    """The optimizer steps that a checkpoint folder's name says were done."""
    found = _FOLDER.fullmatch(folder.name)
    if found is None:
        raise ValueError(f"{folder} is not named like a checkpoint")
    return int(found[1])


def complete(checkpoints: Path) -> list[Path]:
    """The checkpoints that are all there by their files' sizes, newest first. Contents are checked by `load`."""
    folders = [folder for folder in checkpoints.glob("step-*") if _FOLDER.fullmatch(folder.name)]
    return [folder for folder in sorted(folders, key=step_of, reverse=True) if _is_complete(folder)]


def _is_complete(folder: Path) -> bool:
    try:
        _check_sizes(folder, read_manifest(folder))
    except Damaged:
        return False
    return True


def newest(checkpoints: Path) -> Path | None:
    """The newest complete checkpoint, or None."""
    return next(iter(complete(checkpoints)), None)


def best_or_newest(folder: RunFolder) -> Path | None:
    """The checkpoint that best.json names when it is there, else the newest complete one: the weights to use of a run."""
    if folder.best.exists():
        best = place(folder.checkpoints, folder.read_json(folder.best)["step"])
        if _is_complete(best):
            return best
    return newest(folder.checkpoints)


def read_manifest(folder: Path) -> dict[str, Any]:
    """A checkpoint's manifest.

    Raises:
        Damaged: there is none, or it is not one of ours.
    """
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        if manifest["schema"] != SCHEMA:
            raise Damaged(f"its format is version {manifest['schema']}, this tclx reads version {SCHEMA}")
        if set(manifest["files"]) != set(_FILES) or not isinstance(manifest["run_id"], str):
            raise Damaged("its manifest lists other files")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Damaged(f"its manifest cannot be read: {error!r}") from error
    return dict(manifest)


def _check_sizes(folder: Path, manifest: dict[str, Any]) -> None:
    for name, facts in manifest["files"].items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != facts["bytes"]:
            raise Damaged(f"{name} is missing or not {facts['bytes']} bytes long")


# ---------------------------------------------------------------------------------------------------------------- reading


def resume(
    checkpoints: Path, *, model: nn.Module, optimizer: AdamW, run_id: str, report: Callable[[str], None]
) -> Progress | None:
    """Load the newest sound checkpoint; a damaged one is reported, set aside as `*.damaged`, and the next older is used.

    Returns:
        Where the run stands, or None when there is no checkpoint to go on from.

    Raises:
        InputError: the checkpoint belongs to another run or another model.
    """
    while (folder := newest(checkpoints)) is not None:
        try:
            return load(folder, model=model, optimizer=optimizer, run_id=run_id)
        except Damaged as error:
            aside = folder.with_name(f"{folder.name}.damaged")
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
            report(f"checkpoint {folder.name} is damaged ({error}); it is kept as {aside.name} and an older one is used")
    return None


def load(folder: Path, *, model: nn.Module, optimizer: AdamW, run_id: str) -> Progress:
    """Check a checkpoint against its manifest and put it into the model and the optimizer.

    Raises:
        Damaged: a file is not what the manifest says, or cannot be parsed; nothing has been changed.
        InputError: it belongs to another run, or to a model of other names or shapes; nothing has been changed.
    """
    manifest = read_manifest(folder)
    if manifest["run_id"] != run_id:
        raise InputError(_foreign(folder, f"it was saved by run {manifest['run_id']}, and this is run {run_id}"))
    verify(folder, manifest)
    weights = read_weights(folder)
    with _parsing(_OPTIMIZER):
        moments = _read_tensors(folder / _OPTIMIZER)
    with _parsing(_STATE):
        progress = Progress(**json.loads((folder / _STATE).read_text(encoding="utf-8")))
    state = _optimizer_state(folder, moments, optimizer)
    put_weights(folder, weights, model)
    # Learning rate, decay and betas come from the spec, not from the file.
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return progress


def verify(folder: Path, manifest: dict[str, Any]) -> None:
    """Compare sizes and checksums with the manifest.

    Raises:
        Damaged: a file differs.
    """
    _check_sizes(folder, manifest)
    for name, facts in manifest["files"].items():
        if _sha256(folder / name) != facts["sha256"]:
            raise Damaged(f"the checksum of {name} is wrong")


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Every parameter and buffer of a checkpoint by name, tied ones under each of their names, on the CPU.

    Raises:
        Damaged: the file is not a safetensors file.
    """
    with _parsing(_MODEL):
        tensors = _read_tensors(folder / _MODEL)
        with safe_open(folder / _MODEL, framework="pt") as file:
            aliases = json.loads((file.metadata() or {}).get("aliases", "{}"))
        return {**tensors, **{alias: tensors[name] for alias, name in aliases.items()}}


def put_weights(folder: Path, tensors: Mapping[str, Tensor], model: nn.Module) -> None:
    """Put what `read_weights` gave into a model of exactly its names and shapes.

    Raises:
        InputError: names or shapes differ; the message names them and the folder.
    """
    if problems := _differences(tensors, model.state_dict()):
        raise InputError(_foreign(folder, "; ".join(problems)))
    model.load_state_dict(tensors)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (a safe_open is no mapping)


def _optimizer_state(folder: Path, tensors: Mapping[str, Tensor], optimizer: AdamW) -> dict[int, dict[str, Tensor]]:
    """The tensors of `optimizer_tensors` under the numbers that this optimizer gives to its parameters."""
    names = [name for group in optimizer.param_groups for name in group["param_names"]]
    index_of = {name: index for index, name in enumerate(names)}
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        moment, _, name = key.partition("/")
        if name not in index_of:
            raise InputError(_foreign(folder, f"its optimizer moved {name}, which this run does not train"))
        state.setdefault(index_of[name], {})[moment] = tensor
    return state


@contextmanager
def _parsing(name: str) -> Iterator[None]:
    """Turn what a malformed file raises into `Damaged`."""
    try:
        yield
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{name} cannot be read: {error!r}") from error


def _differences(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    shapes = [
        f"{name} is {list(found[name].shape)}, here {list(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in found and found[name].shape != tensor.shape
    ]
    missing, unknown = wanted.keys() - found.keys(), found.keys() - wanted.keys()
    return [
        *([_list(shapes)] if shapes else []),
        *([f"it lacks {_list(missing)}"] if missing else []),
        *([f"it has {_list(unknown)} besides"] if unknown else []),
    ]


def _list(names: set[str] | list[str] | Any) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - _MOST_NAMES} more" if len(ordered) > _MOST_NAMES else ""
    return ", ".join(ordered[:_MOST_NAMES]) + more


def _foreign(folder: Path, difference: str) -> Problem:
    return Problem(
        key="",
        message=f"the checkpoint {folder} does not fit this experiment: {difference}",
        hint="start in another run folder, or load its weights with init.checkpoint",
    )


# --------------------------------------------------------------------------------------------------------------- clearing


def sweep_leftovers(checkpoints: Path) -> None:
    """Remove what killed saves and removals left behind. Only the process that holds the run's lock may call this."""
    for leftover in checkpoints.glob(".step-*.tmp"):
        shutil.rmtree(leftover)
    for folder in checkpoints.glob("step-*"):
        if _FOLDER.fullmatch(folder.name) and not (folder / _MANIFEST).exists():
            shutil.rmtree(folder)


def prune(checkpoints: Path, *, keep_last: int, keep_step: int | None) -> None:
    """Remove all but the `keep_last` newest complete checkpoints and that of `keep_step` (the best)."""
    for folder in complete(checkpoints)[keep_last:]:
        if step_of(folder) != keep_step:
            # The manifest goes first: a kill in between leaves an incomplete folder, not a complete-looking one.
            (folder / _MANIFEST).unlink()
            shutil.rmtree(folder)
