"""`tclx init`: an experiment on one's own images."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tclx.cli.console import say, show
from tclx.cli.plan import print_data
from tclx.errors import InputError, Problem

EXAMPLE = "Example:  tclx init mine --images photos --captions captions.csv"


class SizeChoice(StrEnum):
    """How large the model is."""

    TINY = "tiny"
    BASE = "base"


class DeviceChoice(StrEnum):
    """What it trains on."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"
    MPS = "mps"


def init(
    folder: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="Where it is written.", file_okay=False)] = Path(),
    images: Annotated[Path | None, typer.Option("--images", metavar="FOLDER", help="Folder of the images.")] = None,
    captions: Annotated[
        Path | None,
        typer.Option("--captions", metavar="FILE", help="CSV, JSON, COCO, ... ; without it they lie beside the images."),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="What the experiment is called.  [default: as its folder]")
    ] = None,
    size: Annotated[SizeChoice, typer.Option("--size", help="tiny: a laptop; base: ViT-B/16 and BERT-base.")] = SizeChoice.TINY,
    device: Annotated[DeviceChoice, typer.Option("--device", help="What it trains on.")] = DeviceChoice.AUTO,
    val_share: Annotated[
        float, typer.Option("--val-share", min=0.0, max=1.0, help="Share of the images set aside for evaluation.")
    ] = 0.1,
) -> None:
    """Write an experiment on your own images, with a comment on every key, and a small sweep around it.

    Captions that mark splits are used by those; of others a share of the images is set aside, always the same ones. What is
    not given is asked for at a terminal. Nothing is overwritten.
    """
    images = images or Path(_asked("images", "Folder of the images"))
    if captions is None and sys.stdin.isatty():
        question = "File of the captions (none: they lie beside the images)"
        asked = typer.prompt(question, default="", show_default=False, err=True)
        captions = Path(asked) if asked else None
    called = folder.absolute().name
    if name is None:
        name = _asked("name", "Name of the experiment", default=called) if sys.stdin.isatty() else called

    from pydantic import TypeAdapter, ValidationError

    from tclx.spec.experiment import SafeName
    from tclx.use.beginning import Wanted, begin

    try:
        TypeAdapter(SafeName).validate_python(name)
    except ValidationError:
        raise InputError(Problem("--name", f"`{name}` is no name", "letters, digits and `._+-`, at most 64")) from None
    if not images.is_dir():
        raise InputError(Problem("--images", f"no such folder: {images}"))
    made = begin(Wanted(name, images, captions, size.value, device.value, val_share), folder)
    say(f"wrote {made.spec} and {made.sweep}")
    print_data(made.data)
    show(f"tclx run {made.spec} --smoke   # does it work?\ntclx run {made.spec}\ntclx sweep {made.sweep}")


def _asked(option: str, question: str, *, default: str | None = None) -> str:
    if not sys.stdin.isatty():
        raise InputError(Problem(f"--{option}", "is needed", "or answer at a terminal"))
    return str(typer.prompt(question, default=default, err=True))
