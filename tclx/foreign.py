"""Other people's model folders: what their readers raise becomes one line that names the folder.

transformers, torch and safetensors answer a damaged file with whatever their code meets first, from ZeroDivisionError to
UnpicklingError, and with advice that is none here, such as to let the file run code.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tclx.errors import InputError, MachineError, Problem, TclxError


@contextmanager
def reading(source: str, *, key: str) -> Iterator[None]:
    """While a model or a part of it is read from `source`, a folder, a hub name or the name of an architecture.

    Raises:
        InputError: the files are damaged, incomplete, contradict each other, or want to run code of their own.
        MachineError: they are not here, and the hub did not give them.
    """
    try:
        yield
    except TclxError:
        raise
    except Exception as error:  # on the files of others, the readers of others raise anything
        raise _explained(source, key, error) from error


def first_line(error: Exception) -> str:
    """What an exception says, without what follows its first line; its name where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__


def _explained(source: str, key: str, error: Exception) -> InputError | MachineError:
    is_folder = Path(source).is_dir()
    place = f"the folder {source}" if is_folder else source
    if "trust_remote_code" in str(error):
        message = f"{place} brings code of its own, which tclx never runs"
        return InputError(Problem(key, message, "choose a model whose architecture transformers has itself"))
    if isinstance(error, pickle.UnpicklingError) or "weights_only" in str(error) or "WeightsUnpickler" in str(error):
        message = f"{place} holds Python objects beside its tensors; reading those could run foreign code, so it was not opened"
        return InputError(Problem(key, message, "ask its author for model.safetensors"))
    if isinstance(error, OSError) and not is_folder:
        return MachineError(
            f"{key}: {source} is not a folder here, and it could not be fetched from the hub ({first_line(error)}); "
            f"check the name and the network, or put the model in a local folder and name that"
        )
    said = first_line(error)
    said = f"{type(error).__name__}: {said}" if isinstance(error, KeyError | IndexError | AttributeError | TypeError) else said
    hint = "is it a whole, undamaged model of one architecture?"
    return InputError(Problem(key, f"{place} could not be read as a transformers model: {said}", hint))
