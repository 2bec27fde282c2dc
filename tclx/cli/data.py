"""`tclx data`: look at generated data, check images before training, pack them."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tclx.cli.console import AsJson, Overrides, print_json, say, show
from tclx.cli.data_check import check
from tclx.errors import InputError, Problem
from tclx.terminal import one_line

if TYPE_CHECKING:
    from tclx.data.scenes import Split
    from tclx.spec.data import ScenesSource
    from tclx.spec.experiment import ExperimentSpec

SPLITS: tuple[Split, ...] = ("train", "val", "test")
EXAMPLE = "Example:  tclx data write experiments/quickstart.yaml scenes"

DATA_SET = "datasets:"
"""In front of the name of a data set where files are expected."""

HELP = "Check images before training; convert annotation files; pack into shards; write generated data."

app = typer.Typer(no_args_is_help=True, help=HELP, epilog=EXAMPLE)


class ImportFormat(StrEnum):
    """As `tclx.data.importing.Target`, which is not loaded with the command line."""

    json = "json"
    retrieval = "retrieval"
    jsonl = "jsonl"
    csv = "csv"
    tsv = "tsv"
    coco = "coco"
    karpathy = "karpathy"
    flickr = "flickr"
    parquet = "parquet"


@app.command(epilog=EXAMPLE)
def write(
    source: Annotated[
        str, typer.Argument(metavar="SPEC|scenes", help="An experiment file whose data are generated, or `scenes`.")
    ],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Output folder; created if needed.", file_okay=False)],
    num_images: Annotated[int, typer.Option("--num-images", min=1, help="With `scenes`: number of scenes per split.")] = 256,
    overrides: Overrides = None,
) -> None:
    """Write generated scenes as images and JSON files.

    The files are in the official form, so that they can be looked at, or trained on as `source: files`.
    """
    from tclx.data.scenes import write_scenes

    for scenes in _scenes_of(source, num_images, overrides or []):
        say(f"wrote {scenes.num_images} {scenes.split} scenes: {write_scenes(folder, scenes)}")


app.command(epilog="Example:  tclx data check experiments/quickstart.yaml --html data.html")(check)


@app.command("import", epilog="Example:  tclx data import captions.csv -o converted --to coco")
def import_(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...", help="Annotation files, a folder of images, or datasets:NAME (a folder, or of the hub)."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where to write; nothing is overwritten.")],
    to: Annotated[ImportFormat, typer.Option("--to", help="The format to write.")] = ImportFormat.json,
    image_column: Annotated[str | None, typer.Option("--image-column", help="Column or key of the image's path.")] = None,
    caption_columns: Annotated[
        list[str] | None, typer.Option("--caption-column", help="Column or key of a caption; may be repeated.")
    ] = None,
    splits: Annotated[list[str] | None, typer.Option("--split", help="Only this split of the files; may be repeated.")] = None,
    subset: Annotated[str | None, typer.Option("--subset", help="Of a data set that has several.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only the first so many images.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write annotation files of any format as another, a file a split.

    Images that a Parquet table or a folder of `datasets` holds are written out, too; so are those of a data set of the hub,
    which is fetched if needed.
    """
    from tclx.data.importing import data_set, import_data
    from tclx.spec.data import DatasetsSource, FilesSource, OwnData

    choice: dict[str, Any] = {"image_column": image_column, "limit": limit}
    choice |= {"caption_columns": tuple(caption_columns or ()), "split": tuple(splits or ())}
    source: OwnData
    if str(files[0]).startswith(DATA_SET):
        if len(files) > 1:
            raise InputError(Problem("", f"{files[0]} is a data set, which is imported alone", "one command for each"))
        name = str(files[0]).removeprefix(DATA_SET)
        name = str(Path(name).absolute()) if name.startswith((".", "/", "~")) else name
        source = data_set(DatasetsSource(source="datasets", name=name, subset=subset, **choice), say=say)
    else:
        if subset is not None:
            raise InputError(
                Problem("", "--subset is of a data set, and files have none", f"{DATA_SET}NAME in place of a file")
            )
        paths = tuple(str(path.absolute()) for path in files)
        source = FilesSource(source="files", files=paths, image_root=str(Path.cwd()), **choice)
    written = import_data(source, output, target=to.value)
    if as_json:
        print_json([{**one._asdict(), "path": str(one.path)} for one in written])
        return
    for one in written:
        flattened = f"; {one.num_flattened:,} tabs and line ends became spaces" if one.num_flattened else ""
        root = f"; image_root: {one.image_root}" if one.image_root else ""
        say(f"wrote {one.path}: {one.num_images:,} images, {one.num_captions:,} captions{root}{flattened}")


@app.command(epilog="Example:  tclx data pack experiments/quickstart.yaml -o shards --split val")
def pack(
    spec: Annotated[Path, typer.Argument(metavar="SPEC", help="An experiment file.")],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FOLDER", help="Output folder; each split has one in it.", file_okay=False),
    ],
    split: Annotated[Literal["train", "val", "test", "all"], typer.Option(help="Which data.")] = "all",
    shard_mib: Annotated[int, typer.Option(min=1, max=65_536, help="Approximate size of a shard in MiB.")] = 256,
    resize: Annotated[
        int | None,
        typer.Option(min=16, metavar="N", help="Shrink images to N pixels on the shorter side. [default: as stored]"),
    ] = None,
    quality: Annotated[
        int | None, typer.Option(min=1, max=100, help="JPEG quality with --resize; 100 is lossless PNG. [default: 95]")
    ] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Pack images and captions into a few large tar files, to train on as `source: shards`.

    Every image is decoded and checked. After an interruption the same command continues. Prints what to write into the spec.
    """
    from tclx.data.shards.packing import PackSettings, pack

    if quality is not None and resize is None:
        raise InputError(Problem("", "--quality is for images that are coded anew", "give --resize as well, or leave it out"))
    experiment = _one_experiment(spec, overrides or [])
    given = {name for name in SPLITS if getattr(experiment.data, name) is not None}
    splits = [name for name in SPLITS if name == split or (split == "all" and name in given)]
    settings = PackSettings(shard_mib=shard_mib, resize=resize, quality=95 if quality is None else quality)
    trees = []
    for name in splits:
        found = pack(experiment, name, output / name, settings=settings, say=say)
        for cause, number in found.lost.items():
            say(f"warning: data.{name}: {number:,} images are left out ({cause}): {found.folder / 'report.json'} lists them")
        counted = f"{found.num_images:,} images, {found.num_rows:,} rows, {found.num_shards:,} shards"
        say(f"data.{name}: {'packed earlier' if found.was_there else 'packed'}: {counted}, {found.num_bytes / 2**20:,.1f} MiB")
        trees.append({"split": name, **found._asdict(), "folder": str(found.folder)})
        if not as_json:
            form = "" if found.form == "captions" else f", form: {found.form}"
            show(one_line(f"data.{name}: {{source: shards, folder: {json.dumps(str(found.folder.absolute()))}{form}}}"))
    if as_json:
        print_json(trees)


def _one_experiment(spec: Path, overrides: list[str]) -> ExperimentSpec:
    """The file's experiment, or any of several with the same data.

    Raises:
        InputError: its runs have different data.
    """
    from tclx.spec.load import load_experiments

    specs = [experiment.spec for experiment in load_experiments(spec, overrides)]
    if len({(each.data, each.compat) for each in specs}) > 1:
        raise InputError(Problem("data", f"{spec} has runs with different data", "write them as files of their own"))
    return specs[0]


def _scenes_of(source: str, num_images: int, overrides: list[str]) -> list[ScenesSource]:
    from tclx.spec.data import ScenesSource
    from tclx.spec.load import load_experiments

    if source == "scenes":
        return [ScenesSource(source="scenes", num_images=num_images, split=split) for split in ("train", "val", "test")]
    data = load_experiments(Path(source), overrides)[0].spec.data
    scenes = [part for part in (data.train, data.val, data.test) if isinstance(part, ScenesSource)]
    if not scenes:
        raise InputError(Problem("data", f"{source} reads files: there is nothing to generate"))
    return scenes
