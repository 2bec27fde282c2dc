"""Which experiments and sweeps come with tclx, and where are they? A file names one as `tclx:NAME`, wherever tclx is installed.

In a clone they are the folders `experiments` and `sweeps` beside the package, in an installed one within it (setup.py).
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple

import tclx
from tclx.errors import InputError, Location, Problem
from tclx.files import machine_error, write_atomically
from tclx.spec.fields import nearest

PREFIX = "tclx:"
_FOLDERS = ("experiments", "sweeps")
_NAMED_FILE = re.compile(r"\b((?:extends|experiment): *)([^\s,}\"'#]+\.yaml)")
_SCHEMA_LINE = re.compile(r"\A# yaml-language-server: \$schema=.*\n")


class Shipped(NamedTuple):
    """A file that comes with tclx."""

    name: str
    """As it is named after `tclx:`."""
    path: Path
    is_sweep: bool

    @property
    def about(self) -> str:
        """The first sentence of its comment."""
        comments = []
        for line in _text(self.path).splitlines()[1:]:
            if not line.startswith("# "):
                break
            comments.append(line.removeprefix("# ").strip())
        return re.split(r"(?<=[.?])\s+(?=[A-Z`])", " ".join(comments))[0]

    @property
    def is_part(self) -> bool:
        """Whether it is there only to be extended: it names no run."""
        return not re.search(r"^name:", _text(self.path), re.MULTILINE)


def all_shipped() -> list[Shipped]:
    """Every experiment, then every sweep, by name; the quickstart first."""
    inside = Path(tclx.__file__).parent / "shipped"
    root = inside if inside.is_dir() else Path(tclx.__file__).parents[1]
    return [
        Shipped(path.relative_to(root / folder).with_suffix("").as_posix(), path, folder == "sweeps")
        for folder in _FOLDERS
        for path in sorted((root / folder).rglob("*.yaml"), key=lambda path: (path.stem != "quickstart", path))
    ]


def find_shipped(name: str, *, key: str = "", where: Location | None = None) -> Shipped:
    """The file of a name, with `tclx:` and `.yaml` or without.

    Args:
        name: as it is written.
        key: under which, for messages.
        where: it was written.

    Raises:
        InputError: nothing of that name comes with tclx.
    """
    wanted = name.removeprefix(PREFIX).removesuffix(".yaml")
    found = all_shipped()
    for one in found:
        if one.name == wanted:
            return one
    names = [one.name for one in found]
    same_end = next((one for one in names if wanted and one.rpartition("/")[2] == wanted.rpartition("/")[2]), None)
    close = same_end or nearest(wanted, names)
    hint = f"did you mean {PREFIX}{close}?" if close else "`tclx examples` lists them"
    raise InputError(Problem(key, f"no experiment or sweep `{wanted}` comes with tclx", hint, where))


def spec_file(path: Path) -> Path:
    """The file that a spec's path stands for: `tclx:NAME` is one that comes with tclx, any other path is itself.

    Raises:
        InputError: nothing of that name comes with tclx.
    """
    return find_shipped(str(path)).path if str(path).startswith(PREFIX) else path


def as_own(shipped: Shipped) -> str:
    """The file's text for another folder: the files that it names come with tclx, and its first line, the schema's, is gone."""
    paths = {one.path.resolve(): one.name for one in all_shipped()}

    def named(match: re.Match[str]) -> str:
        return f'{match[1]}"{PREFIX}{paths[(shipped.path.parent / match[2]).resolve()]}"'

    return _NAMED_FILE.sub(named, _SCHEMA_LINE.sub("", _text(shipped.path)))


def write_new(path: Path, text: str, *, is_sweep: bool = False) -> None:
    """Write a spec that is not there yet; its first line names a schema for editors, which is put into `.schema` beside it.

    Args:
        path: of the spec; folders that are missing are made.
        text: what follows the first line.
        is_sweep: whether it is a sweep.

    Raises:
        InputError: there is such a file already.
        MachineError: it cannot be written.
    """
    from tclx.spec.schema import experiment_schema, sweep_schema

    if path.exists():
        raise InputError(Problem("", f"{path} is there already, and nothing is overwritten", "name another folder"))
    kind, made = ("sweep", sweep_schema) if is_sweep else ("experiment", experiment_schema)
    schema = path.parent / ".schema" / f"{kind}.json"
    try:
        schema.parent.mkdir(parents=True, exist_ok=True)
        if not schema.exists():
            write_atomically(schema, json.dumps(made(), indent=1) + "\n")
        with path.open("x", encoding="utf-8") as file:
            file.write(f"# yaml-language-server: $schema=.schema/{kind}.json\n{text}")
    except OSError as error:
        raise machine_error(error, f"could not write {path}") from error


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")
