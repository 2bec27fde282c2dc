"""`tclx search`: which pictures go with a text, and which texts or pictures with a picture?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tclx.cli.completion import complete_runs
from tclx.cli.console import DEFAULT_RUNS_DIR, AsJson, RunsDir, aligned, print_json, say, show
from tclx.cli.using import BatchSize, Device, DeviceOption, PrecisionOption, SpecOption, load_model
from tclx.errors import InputError, Problem
from tclx.terminal import one_line

EXAMPLE = 'Example:  tclx search runs/quickstart-s0-68463135 photos "two dogs in the snow"'
TOLD_OF = 5


def search(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN", help="A run, a checkpoint, an exported folder, or official weights.", autocompletion=complete_runs
        ),
    ],
    where: Annotated[Path, typer.Argument(metavar="FOLDER|LINES.txt", help="Folder of pictures, or texts, one a line.")],
    query: Annotated[str | None, typer.Argument(metavar="TEXT", help="What to look for.")] = None,
    image: Annotated[Path | None, typer.Option("--image", metavar="FILE", help="Look for what is like this picture.")] = None,
    top: Annotated[int, typer.Option("--top", metavar="N", min=1, help="Number of results.")] = 10,
    rerank: Annotated[
        int | None,
        typer.Option(
            "--rerank", metavar="N", min=0, help="Best N, sorted by the matching head; 50 where the model has one, 0 for none."
        ),
    ] = None,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write a page with the pictures.")] = None,
    as_json: AsJson = False,
    batch_size: BatchSize = 64,
    spec: SpecOption = None,
    device: DeviceOption = Device.AUTO,
    precision: PrecisionOption = None,
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
) -> None:
    """Search the pictures of a folder, or the lines of a file, by a text or a picture.

    The embeddings of a folder are kept in the user's cache and renewed for files that are new or changed.
    """
    if (query is None) == (image is None):
        raise InputError(Problem("", "give a text or --image, one of them", 'tclx search RUN photos "a dog"'))
    if query is not None and not query.strip():
        raise InputError(Problem("TEXT", "is empty", 'such as "a dog"'))
    if not where.exists():
        raise InputError(Problem("", f"there is no folder or file {where}"))
    from tclx.use.embedding import read_lines
    from tclx.use.search import Query, index_folder, write_page
    from tclx.use.search import search as search_in

    texts = None if where.is_dir() else read_lines(where, key="LINES.txt")
    model = load_model(run, spec=spec, device=device, precision=precision, runs_dir=runs_dir)
    asked = Query(query, image)
    if texts is not None:
        results = search_in(model, asked, texts, model.embed_texts(texts, batch_size=batch_size), top=top, rerank=rerank)
        num_searched = len(texts)
    else:
        index = index_folder(model, where, batch_size=batch_size, say=say)
        for bad in index.bad[:TOLD_OF]:
            say(f"left out: {one_line(str(bad))}")
        if len(index.bad) > TOLD_OF:
            say(f"left out: {len(index.bad) - TOLD_OF} more")
        if not index.paths:
            raise InputError(Problem("", f"none of the {len(index.bad)} pictures in {where} can be used"))
        results = search_in(model, asked, index.paths, index.vectors, top=top, rerank=rerank)
        num_searched = len(index.paths)
    if html is not None:
        write_page(html, model, asked, results, of_texts=texts is not None)
        say(f"wrote {html}")
    if as_json:
        found = [
            {"rank": rank, "found": one.found, "similarity": one.similarity, "match": one.match}
            for rank, one in enumerate(results, start=1)
        ]
        print_json(
            {"model": model.name, "text": query, "image": None if image is None else str(image), "num_searched": num_searched}
            | {"results": found}
        )
        return
    matched = any(one.match is not None for one in results)
    rows = [
        [one.found, f"{one.similarity:.3f}", *([f"{one.match:.3f}" if one.match is not None else "-"] if matched else [])]
        for one in results
    ]
    show(aligned([["picture" if texts is None else "text", "cosine", *(["match"] if matched else [])], *rows]))
