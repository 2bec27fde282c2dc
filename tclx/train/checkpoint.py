"""What must a run remember to go on as if it had never been killed, and how is it written so that no kill tears it?

    checkpoints/step-00001234/model.safetensors      every parameter and buffer: momentum encoders and queues, too
                              optimizer.safetensors  its moments under the names of their parameters
                              state.json             step, gradient scaler, counters
                              manifest.json          the size and checksum of each, and its own; written last

A folder is built beside its place, flushed to the disk and renamed: it is there completely or not at all, and goes in the same
way. Random states are not in it: every step draws from a seed of its own. Nothing here is ever unpickled.

Every load of weights goes through `_sound`, which compares all files with the manifest first: to resume, for the final
evaluation, for `init`, `tclx eval` and `tclx weights export`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from tclx import distributed
from tclx.data.tokenizer import CaptionTokenizer
from tclx.errors import InputError, Problem
from tclx.files import Unreadable, machine_error, parse_json, read_object, write_atomically
from tclx.model.sharding import divided_like, load_state, whole
from tclx.model.weights import KEY
from tclx.model.weights import read_weights as read_file
from tclx.runs import RunFolder, checkpoint_name, step_of_checkpoint
from tclx.spec.load import load_spec_json
from tclx.track.jsonl import read

SCHEMA = 1
_MODEL, _OPTIMIZER, _STATE, _MANIFEST = "model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"
_MOST_NAMES = 5
"""Names that a message lists before it says how many more there are."""


class Progress(NamedTuple):
    """The few numbers of a run that are not tensors."""

    step: int
    num_bad_images: int = 0
    num_bad_in_epoch: int = 0
    scaler: dict[str, Any] | None = None


class _Damaged(Exception):
    """A checkpoint folder that cannot be used as it is; never leaves this room."""


@dataclass(frozen=True)
class _File:
    bytes: int
    sha256: str


@dataclass(frozen=True)
class _Manifest:
    run_id: str
    step: int
    files: dict[str, _File]


_AS_MANIFEST, _AS_PROGRESS = TypeAdapter(_Manifest), TypeAdapter(Progress)

Report = Callable[[str], None]
T = TypeVar("T")


# ---------------------------------------------------------------------------------------------------------------- writing


class Content(NamedTuple):
    """The tensors of a checkpoint."""

    weights: Mapping[str, Tensor]
    """Every parameter and buffer by name, tied ones once."""
    aliases: Mapping[str, str]
    """Further names of tied ones."""
    moments: Mapping[str, Tensor]
    """As `optimizer_tensors`."""


def content_of(model: nn.Module, optimizer: Optimizer) -> Content:
    """What a model and its optimizer hold at this moment: their own tensors, not copies.

    Where layers are divided among processes, everyone must ask: theirs are put together and copied, one after the other, to
    the host of rank 0, which alone gets the content.
    """
    weights, aliases = _without_aliases(_of_everyone(model.state_dict()))
    return Content(weights, aliases, _of_everyone(optimizer_tensors(optimizer)))


def _of_everyone(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Divided tensors whole, where this process writes them."""
    found = {}
    for name, tensor in tensors.items():
        together = whole(tensor)
        if distributed.is_main():
            found[name] = together if together is tensor else together.cpu()
    return found


def save(checkpoints: Path, progress: Progress, *, content: Content, run_id: str) -> Path:
    """Write a checkpoint, atomically; returns its folder.

    Raises:
        MachineError: the disk is full or the place cannot be written; older checkpoints are intact and nothing half is left.
    """
    final = place(checkpoints, progress.step)
    building = checkpoints / f".{final.name}.{os.getpid()}.tmp"
    try:
        building.mkdir(parents=True)
        _write(building, progress, content=content, run_id=run_id)
        if os.path.lexists(final):  # a damaged one of the same step; a sound one would have been resumed from
            _remove(final)
        building.rename(final)
        _sync(checkpoints)
    except OSError as error:
        shutil.rmtree(building, ignore_errors=True)
        raise machine_error(error, f"could not save the checkpoint {final} (those before it are intact)") from error
    return final


def _write(folder: Path, progress: Progress, *, content: Content, run_id: str) -> None:
    _save_tensors(folder / _MODEL, content.weights, metadata={"aliases": json.dumps(content.aliases)})
    _save_tensors(folder / _OPTIMIZER, content.moments)
    (folder / _STATE).write_text(json.dumps(progress._asdict()), encoding="utf-8")
    files = {name: {"bytes": (folder / name).stat().st_size, "sha256": _sha256(folder / name)} for name in _FILES}
    for name in _FILES:
        _sync(folder / name)
    manifest: dict[str, Any] = {"schema": SCHEMA, "run_id": run_id, "step": progress.step, "files": files}
    manifest["sha256"] = _sha256_of(manifest)
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


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as `moment/parameter name`, so that a changed order of parameters cannot mix it up."""
    return {
        f"{moment}/{name}": value
        for group in optimizer.param_groups
        for name, parameter in zip(group["param_names"], group["params"], strict=True)
        for moment, value in optimizer.state[parameter].items()
        if isinstance(value, Tensor)  # Muon also notes which parameters are its own, and finds that out again
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sha256_of(manifest: Mapping[str, Any]) -> str:
    """A manifest's own checksum: of all that it says."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ---------------------------------------------------------------------------------------------------------------- finding


def place(checkpoints: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return checkpoints / checkpoint_name(step)


def step_of(folder: Path) -> int:
    """The optimizer steps that a checkpoint folder's name says were done."""
    step = step_of_checkpoint(folder.name)
    if step is None:
        raise ValueError(f"{folder} is not named like a checkpoint")
    return step


def complete(checkpoints: Path) -> list[Path]:
    """The checkpoints that are all there by their files' sizes, newest first. Contents are checked where they are loaded."""
    return [folder for folder in named(checkpoints) if _is_complete(folder)]


def newest(checkpoints: Path) -> Path | None:
    """The newest complete checkpoint, or None."""
    return next(iter(complete(checkpoints)), None)


def named(checkpoints: Path) -> list[Path]:
    """Whatever is named like a checkpoint, sound or not, newest first."""
    folders = [folder for folder in checkpoints.glob("step-*") if step_of_checkpoint(folder.name) is not None]
    return sorted(folders, key=step_of, reverse=True)


def _is_complete(folder: Path) -> bool:
    try:
        _check_sizes(folder, _read_manifest(folder))
    except (_Damaged, InputError):
        return False
    return True


def _read_manifest(folder: Path) -> _Manifest:
    """What the checkpoint's files must be.

    Raises:
        _Damaged: there is no manifest, or it is not as it was written.
        InputError: a newer version of tclx wrote it.
    """
    try:
        manifest = read_object(folder / _MANIFEST)
    except Unreadable as error:
        raise _Damaged(f"{_MANIFEST} cannot be read: {error.why}") from error
    own = manifest.pop("sha256", None)  # of versions before it had one, none
    if own is not None and own != _sha256_of(manifest):
        raise _Damaged(f"the checksum of {_MANIFEST} is wrong")
    if isinstance(version := manifest.get("schema"), int) and version > SCHEMA:
        message = f"{folder} is a checkpoint of format {version}, and this version of tclx reads format {SCHEMA}"
        raise InputError(Problem("", message, "use the version of tclx that wrote it, or a newer one"))
    with _parsing(_MANIFEST):
        if version != SCHEMA or set(manifest["files"]) != set(_FILES):
            raise _Damaged(f"{_MANIFEST} is not one of a checkpoint")
        found = _AS_MANIFEST.validate_python(manifest)
    if (step := step_of_checkpoint(folder.name)) is not None and step != found.step:
        raise _Damaged(f"{_MANIFEST} is that of step {found.step}")
    return found


def _check_sizes(folder: Path, manifest: _Manifest) -> None:
    for name, file in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise _Damaged(f"{name} is missing")
        if (size := path.stat().st_size) != file.bytes:
            raise _Damaged(f"{name} has {size} bytes instead of {file.bytes}")


# ---------------------------------------------------------------------------------------------------------------- reading


class _Sound(NamedTuple):
    """A checkpoint of which every file is what its manifest says."""

    run_id: str
    step: int
    weights: dict[str, Tensor]
    """Every parameter and buffer by name, tied ones under each of their names, on the CPU."""


def _sound(folder: Path) -> _Sound:
    """Compare a checkpoint's files with its manifest, and read its weights.

    Raises:
        _Damaged: a file is not what the manifest says, or cannot be parsed.
        InputError: a newer version of tclx wrote it.
    """
    manifest = _read_manifest(folder)
    _check_sizes(folder, manifest)
    for name, facts in manifest.files.items():
        with _parsing(name):
            if _sha256(folder / name) != facts.sha256:
                raise _Damaged(f"the checksum of {name} is wrong")
    with _parsing(_MODEL):
        tensors = _read_tensors(folder / _MODEL)
        with safe_open(folder / _MODEL, framework="pt") as file:
            aliases = parse_json((file.metadata() or {}).get("aliases", "{}"))
        tied = {alias: tensors[name] for alias, name in aliases.items()}
    return _Sound(manifest.run_id, manifest.step, {**tensors, **tied})


def resume(checkpoints: Path, *, model: nn.Module, optimizer: Optimizer, run_id: str, report: Report) -> Progress | None:
    """Load the newest sound checkpoint; a damaged one is reported, set aside as `*.damaged`, and the next older is used.

    Returns:
        Where the run stands, or None when there is no checkpoint to go on from.

    Raises:
        InputError: the checkpoint belongs to another run, another model or a newer version of tclx.
    """

    def use(folder: Path) -> Progress:
        return _load(folder, model=model, optimizer=optimizer, run_id=run_id)

    return _first_sound(named(checkpoints), use, report=report, instead="the next older one is tried")


def restore(folders: Iterable[Path], *, model: nn.Module, report: Report) -> Path | None:
    """Put the weights of the first sound one of these checkpoints into the model; damaged ones are reported and set aside.

    Returns:
        Which one it was; None when none is sound, and the model is as it was.

    Raises:
        InputError: as `resume`.
    """

    def use(folder: Path) -> Path:
        put_weights(folder, _sound(folder).weights, model)
        return folder

    return _first_sound(folders, use, report=report, instead="the next best one is tried")


def _first_sound(folders: Iterable[Path], use: Callable[[Path], T], *, report: Report, instead: str) -> T | None:
    for folder in folders:
        try:
            return use(folder)
        except _Damaged as error:
            aside = folder.with_name(f"{folder.name}.damaged")
            try:
                if os.path.lexists(aside):
                    _remove(aside)
                folder.rename(aside)
            except OSError as refused:
                raise machine_error(refused, f"{folder} is damaged ({error}) and could not be renamed") from refused
            report(f"checkpoint {folder.name} is damaged ({error}); it is kept as {aside.name}, and {instead}")
    return None


def load(folder: Path, *, model: nn.Module, optimizer: Optimizer, run_id: str | None) -> Progress:
    """Check a checkpoint against its manifest and put it into the model and the optimizer.

    Args:
        run_id: of the run that it must be of; None takes any.

    Raises:
        InputError: it is damaged, of another run, or of a model of other names or shapes; nothing has been changed.
    """
    with _refusing(folder):
        return _load(folder, model=model, optimizer=optimizer, run_id=run_id)


def _load(folder: Path, *, model: nn.Module, optimizer: Optimizer, run_id: str | None) -> Progress:
    sound = _sound(folder)
    if run_id not in (None, sound.run_id):
        raise InputError(_foreign(folder, f"it was saved by run {sound.run_id}, and this is run {run_id}"))
    with _parsing(_OPTIMIZER):
        moments = _read_tensors(folder / _OPTIMIZER)
    with _parsing(_STATE):
        progress = _AS_PROGRESS.validate_python(read_object(folder / _STATE))
    state = _optimizer_state(folder, moments, optimizer)
    put_weights(folder, sound.weights, model)
    # Learning rate, decay and betas come from the spec, not from the file.
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return progress


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Every parameter and buffer of a checkpoint by name, tied ones under each of their names, on the CPU.

    Raises:
        InputError: a file of it is not what its manifest says.
    """
    with _refusing(folder):
        return _sound(folder).weights


def put_weights(folder: Path, tensors: Mapping[str, Tensor], model: nn.Module) -> None:
    """Put what `read_weights` gave into a model of exactly its names and shapes.

    Raises:
        InputError: names or shapes differ; the message names them and the folder.
    """
    if problems := _differences(tensors, model.state_dict()):
        raise InputError(_foreign(folder, "; ".join(problems)))
    load_state(model, tensors)


# ------------------------------------------------------------------------------------------------------------ the tokenizer

_TOKENIZER_SUMS = "sha256.json"


def save_tokenizer(tokenizer: CaptionTokenizer, folder: Path) -> None:
    """Write a run's tokenizer with its checksums: one changed word would give other figures.

    Raises:
        MachineError: the folder cannot be written.
    """
    tokenizer.save(folder)
    sums = {path.name: _sha256(path) for path in sorted(folder.iterdir())}
    write_atomically(folder / _TOKENIZER_SUMS, json.dumps(sums, indent=1))


def load_tokenizer(folder: Path) -> CaptionTokenizer:
    """A run's tokenizer, as it was saved; those of earlier versions have no checksums.

    Raises:
        InputError: it is damaged.
    """
    sums = read_object(folder / _TOKENIZER_SUMS) if (folder / _TOKENIZER_SUMS).exists() else {}
    for name, sha256 in sums.items():
        if not (folder / name).is_file() or _sha256(folder / name) != sha256:
            hint = "remove the folder, and the run makes it anew from the same captions"
            raise InputError(Problem("", f"the tokenizer {folder} is damaged: the checksum of {name} is wrong", hint))
    return CaptionTokenizer.load(folder)


# ---------------------------------------------------------------------------------------------------- weights to start from


class Weights(NamedTuple):
    """Weights of a checkpoint, or of a file of others."""

    path: Path
    """A checkpoint folder or a file."""
    tensors: dict[str, Tensor]
    """Under our names."""
    step: int | None
    """Optimizer steps done; unknown for a file."""


def weights_of(path: Path, *, key: str = KEY) -> Weights:
    """The weights that a path stands for: a run folder its best checkpoint, a checkpoint folder or a file itself.

    Args:
        path: of any of these; `model.safetensors` in a checkpoint folder is that checkpoint.
        key: the spec key that errors name.

    Raises:
        InputError: nothing is there, it is damaged, or it is no checkpoint of TCL.
    """
    path = place_of(path)
    if not path.is_dir():
        return Weights(path, read_file(path, key=key), None)
    with _refusing(path):
        sound = _sound(path)
    return Weights(path, sound.weights, sound.step)


def place_of(path: Path) -> Path:
    """The checkpoint folder or the file that a path stands for.

    Raises:
        InputError: it is a run folder whose best checkpoint is missing, or a folder of another kind.
    """
    if (path / "spec.json").is_file():
        found = best_or_newest(RunFolder(path))
        if found is None:
            raise InputError(Problem("", f"the run {path} has no checkpoint yet", "let it train first"))
        return found
    whole = path.resolve()
    folder = whole.parent if whole.name == _MODEL else whole
    if (folder / _MANIFEST).exists() or step_of_checkpoint(folder.name) is not None:
        return folder
    if path.is_dir():
        raise InputError(Problem("", f"{path} is neither a run folder, a checkpoint folder nor a weights file"))
    return path


def newest_of(path: Path) -> Path:
    """The checkpoint folder that a run is to go on from: that of a path, of a run folder the newest.

    Raises:
        InputError: there is none.
    """
    folder = newest(RunFolder(path).checkpoints) if (path / "spec.json").is_file() else place_of(path)
    if folder is None or not folder.is_dir():
        message = f"{path} has no checkpoint of a run, with its optimizer"
        raise InputError(Problem("init.resume", message, "false takes over weights alone"))
    return folder


def tokenizer_beside(path: Path) -> Path | None:
    """The tokenizer of the run whose weights a path stands for; None where it stands for a file.

    Raises:
        InputError: as `place_of`.
    """
    place = place_of(path).resolve()
    tokenizer = RunFolder(place.parent.parent).tokenizer
    return tokenizer if place.is_dir() and tokenizer.is_dir() else None


def best_or_newest(run: RunFolder) -> Path | None:
    """The checkpoint of a run's best evaluation, or its newest one where nothing was evaluated; None before the first.

    Contents are checked where it is loaded. The newest never stands in for a best one that is gone: its metrics are others.

    Raises:
        InputError: the best one is missing, or best.json and metrics.jsonl contradict each other.
    """
    step = _best_step(run)
    if step is None:
        return next(iter(named(run.checkpoints)), None)
    best = place(run.checkpoints, step)
    if not best.exists():
        there = ", ".join(str(step_of(folder)) for folder in complete(run.checkpoints)) or "none"
        message = f"the best checkpoint of {run.path}, {best.name}, is missing"
        raise InputError(Problem("", message, f"name another one to use that; steps that are there: {there}"))
    return best


def _best_step(run: RunFolder) -> int | None:
    """The step that best.json names, which must be a row of metrics, too; without it the best row; None where there is none."""
    metric = load_spec_json(run.spec).evaluation.best_row_metric
    rows = read(run.metrics) if run.metrics.exists() else []
    values = {row["step"]: row[metric] for row in rows if isinstance(row.get(metric), int | float)}
    noted = run.read_best()
    if noted is None:
        return max(values, key=values.__getitem__, default=None)
    if noted.metric != metric or values.get(noted.step) != noted.value:
        message = f"{run.best} names step {noted.step} with {noted.metric} {noted.value:g}, and {run.metrics} has no such row"
        raise InputError(Problem("", f"{message}: one of them is damaged", "name the checkpoint to use"))
    return noted.step


def _read_tensors(path: Path) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (a safe_open is no mapping)


def _optimizer_state(folder: Path, tensors: Mapping[str, Tensor], optimizer: Optimizer) -> dict[int, dict[str, Tensor]]:
    """The tensors of `optimizer_tensors` under the numbers that this optimizer gives to its parameters."""
    parameters = [pair for group in optimizer.param_groups for pair in zip(group["param_names"], group["params"], strict=True)]
    index_of = {name: index for index, (name, _) in enumerate(parameters)}
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        moment, _, name = key.partition("/")
        if name not in index_of:
            raise InputError(_foreign(folder, f"its optimizer moved {name}, which this run does not train"))
        index = index_of[name]
        parameter = parameters[index][1]
        state.setdefault(index, {})[moment] = divided_like(tensor, parameter) if tensor.shape == parameter.shape else tensor
    return state


@contextmanager
def _parsing(name: str) -> Iterator[None]:
    """Turn what a malformed file raises into `_Damaged`.

    Raises:
        MachineError: the file may not be read; that says nothing of its contents.
    """
    try:
        yield
    except PermissionError as error:
        raise machine_error(error, f"could not read {name} of a checkpoint") from error
    except Unreadable as error:
        raise _Damaged(f"{name} cannot be read: {error.why}") from error
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _Damaged(f"{name} cannot be read: {error!r}") from error


@contextmanager
def _refusing(folder: Path) -> Iterator[None]:
    """Damage, in the words of a refusal."""
    try:
        yield
    except _Damaged as error:
        raise InputError(Problem("", f"the checkpoint {folder} is damaged: {error}", "name another one to use that")) from error


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


def clear_leftovers(checkpoints: Path) -> None:
    """Remove what killed saves and removals left behind. Only the process that holds the run's lock may call this."""
    for leftover in checkpoints.glob(".step-*.tmp"):
        _remove(leftover)


def prune(checkpoints: Path, *, keep_last: int, keep_step: int | None) -> None:
    """Remove all but the `keep_last` newest complete checkpoints and that of `keep_step` (the best)."""
    for folder in complete(checkpoints)[keep_last:]:
        if step_of(folder) != keep_step:
            # Under another name first: a kill in between leaves a leftover, not a checkpoint that lacks files.
            _remove(folder.rename(folder.with_name(f".{folder.name}.pruned.tmp")))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
