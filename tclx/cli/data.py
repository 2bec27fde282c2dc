"""`tclx data`: look at generated data, and check images before training."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tclx.cli.console import AsJson, Overrides, print_json, say, show
from tclx.errors import InputError, Problem
from tclx.terminal import one_line

if TYPE_CHECKING:
    from tclx.spec.data import ScenesSource

EXAMPLE = "Example:  tclx data write experiments/quickstart.yaml scenes"

app = typer.Typer(
    no_args_is_help=True, help="Check images before training; convert annotation files; write generated data.", epilog=EXAMPLE
)


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


@app.command(epilog="Example:  tclx data check experiments/quickstart.yaml")
def check(
    spec: Annotated[Path, typer.Argument(metavar="SPEC", help="An experiment file.")],
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Open every image of a spec's data and list the bad ones; exit code 2 where there are any.

    Images, rows and ids that are the same where they should differ are warned of, by path and by content.
    """
    from tclx.data.facts import check_images, examine
    from tclx.spec.load import load_experiments

    num_bad, trees = 0, list[dict[str, Any]]()
    specs = [experiment.spec for experiment in load_experiments(spec, overrides or [])]
    for data, evaluation in dict.fromkeys((spec.data, spec.evaluation) for spec in specs):
        examined = examine(data, some_may_be_missing=True)
        evaluation.check(data)
        report = check_images(data, others=evaluation.images())
        warnings = [*examined.warnings, *report.warnings]
        num_bad += len(report.bad)
        for warning in warnings:
            say(f"warning: {warning}")
        if as_json:
            bad = [image._asdict() for image in report.bad]
            trees.append({"num_images": report.num_images, "bad": bad, "warnings": warnings})
            continue
        for image in report.bad:
            show(one_line(f"{image.path}: {image.reason}"))
        say(report.summary() if report.num_images else "the data are generated: there are no images to check")
    if as_json:
        print_json(trees)
    raise typer.Exit(InputError.exit_code if num_bad else 0)


@app.command("import", epilog="Example:  tclx data import captions.csv -o converted --to coco")
def import_(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Annotation files, or a folder of images.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where to write; nothing is overwritten.")],
    to: Annotated[ImportFormat, typer.Option("--to", help="The format to write.")] = ImportFormat.json,
    image_column: Annotated[str | None, typer.Option("--image-column", help="Column or key of the image's path.")] = None,
    caption_columns: Annotated[
        list[str] | None, typer.Option("--caption-column", help="Column or key of a caption; may be repeated.")
    ] = None,
    splits: Annotated[list[str] | None, typer.Option("--split", help="Only this split of the files; may be repeated.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only the first so many images.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write annotation files of any format as another, a file a split.

    Images that a Parquet table or a folder of `datasets` holds are written out, too.
    """
    from tclx.data.importing import import_data
    from tclx.spec.data import FilesSource

    source = FilesSource(
        source="files",
        files=tuple(str(path.absolute()) for path in files),
        image_root=str(Path.cwd()),
        image_column=image_column,
        caption_columns=tuple(caption_columns or ()),
        split=tuple(splits or ()),
        limit=limit,
    )
    written = import_data(source, output, target=to.value)
    if as_json:
        print_json([{**one._asdict(), "path": str(one.path)} for one in written])
        return
    for one in written:
        flattened = f"; {one.num_flattened:,} tabs and line ends became spaces" if one.num_flattened else ""
        root = f"; image_root: {one.image_root}" if one.image_root else ""
        say(f"wrote {one.path}: {one.num_images:,} images, {one.num_captions:,} captions{root}{flattened}")


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
