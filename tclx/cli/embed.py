"""`tclx embed`: images or texts in, vectors out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tclx.cli.completion import complete_runs
from tclx.cli.console import DEFAULT_RUNS_DIR, RunsDir, say, show
from tclx.cli.using import BatchSize, Device, DeviceOption, PrecisionOption, SpecOption, load_model
from tclx.errors import InputError, Problem

EXAMPLE = "Example:  tclx embed runs/quickstart-s0-68463135 photos -o vectors.npy"


def embed(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN", help="A run, a checkpoint, an exported folder, or official weights.", autocompletion=complete_runs
        ),
    ],
    images: Annotated[
        list[Path] | None, typer.Argument(metavar="FILES|FOLDERS...", help="Images; folders recursively.")
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="Output: .npy (names in .json beside it), .npz or .parquet.")
    ] = Path("vectors.npy"),
    texts: Annotated[Path | None, typer.Option("--texts", metavar="FILE", help="Embed its lines instead of images.")] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave unreadable images out.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the output where it exists.")] = False,
    batch_size: BatchSize = 64,
    spec: SpecOption = None,
    device: DeviceOption = Device.AUTO,
    precision: PrecisionOption = None,
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
) -> None:
    """Write the embeddings of images or texts: one row each, of length 1, so that products are cosine similarities.

    Unreadable images are listed and nothing is written (exit code 2), unless --skip-bad leaves them out.
    """
    if bool(images) == bool(texts):
        raise InputError(Problem("", "give images, or texts with --texts", "tclx embed RUN photos -o vectors.npy"))
    from tclx.use.embedding import check_output, embed_files, images_in, read_lines, write_vectors

    check_output(output, force=force)
    if texts is not None:
        lines = read_lines(texts, key="--texts")
        model = load_model(run, spec=spec, device=device, precision=precision, runs_dir=runs_dir)
        write_vectors(output, model.embed_texts(lines, batch_size=batch_size), lines, of="texts")
        say(f"{len(lines):,} texts")
        show(str(output))
        return
    paths = images_in(images or [])
    model = load_model(run, spec=spec, device=device, precision=precision, runs_dir=runs_dir)
    found = embed_files(model, paths, batch_size=batch_size, skip_bad=skip_bad, say=say)
    if found.bad and not skip_bad:
        count = len(found.bad)
        hint = f"mend {'it' if count == 1 else 'them'}, or leave {'it' if count == 1 else 'them'} out with --skip-bad"
        said = f"{count} of {len(paths):,} images cannot be used; nothing was written"
        raise InputError(*(Problem("", str(bad)) for bad in found.bad), Problem("", said, hint))
    for bad in found.bad:
        say(f"left out: {bad}")
    if not found.paths:
        raise InputError(Problem("", "none of the images can be used; nothing was written"))
    write_vectors(output, found.vectors, [str(path) for path in found.paths], of="paths")
    say(f"{len(found.paths):,} images" + (f", {len(found.bad)} left out" if found.bad else ""))
    show(str(output))
