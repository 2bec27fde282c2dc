"""What do people look at on W&B besides curves? Tables of retrieval examples, histograms of similarities, attention maps.

Made from the files that evaluations write (`tclx.tasks.retrieval.examples`), in the process that uploads.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping
from typing import Any

import wandb
from PIL import Image

from tclx.examples import Examples, read_examples
from tclx.runs import RunFolder
from tclx.track.jsonl import Row

SPLITS = ("val", "test")


def media_of_row(folder: RunFolder, row: Row) -> dict[str, Any]:
    """What belongs to a row of metrics.jsonl; nothing unless an evaluation wrote it and its examples."""
    for split in SPLITS:
        path = folder.examples("retrieval", split, step=row["step"])
        if any(name.startswith(f"retrieval/{split}/") for name in row) and path.exists():
            return media(split, read_examples(path))
    return {}


def final_media(folder: RunFolder) -> dict[str, Any]:
    """What belongs to the final metrics, of every split that has some."""
    paths = {split: folder.examples("retrieval", split) for split in SPLITS}
    return {
        name: value
        for split, path in paths.items()
        if path.exists()
        for name, value in media(split, read_examples(path)).items()
    }


def media(split: str, examples: Examples) -> dict[str, Any]:
    """The client's objects under their names on W&B.

    Args:
        split: that was evaluated.
        examples: as `tclx.tasks.retrieval.examples.examples_of` returns them; runs of earlier versions have no `similarity` and
            `attention`.
    """
    values: dict[str, Any] = {
        f"examples/{split}/text_to_image": _captions_that_ask(examples),
        f"examples/{split}/image_to_text": _images_that_ask(examples),
    }
    if similarity := examples.get("similarity"):
        for kind in ("matched", "unmatched"):
            counts = (similarity[kind], similarity["edges"])
            values[f"similarity/{split}/{kind}"] = wandb.Histogram(np_histogram=counts)
    if attention := list(_attention(examples)):
        values[f"attention/{split}"] = attention
    return values


def _captions_that_ask(examples: Examples) -> Any:
    num_results = max((len(query["results"]) for query in examples["text_to_image"]), default=0)
    table = wandb.Table(columns=["caption", "rank", "its image", *_numbered(num_results)])
    for query in examples["text_to_image"]:
        found = [_named_image(examples, result["image"], _scores(result)) for result in query["results"]]
        found += [None] * (num_results - len(found))
        table.add_data(query["text"], query["rank"], _named_image(examples, query["right_image"]), *found)
    return table


def _images_that_ask(examples: Examples) -> Any:
    num_results = max((len(query["results"]) for query in examples["image_to_text"]), default=0)
    table = wandb.Table(columns=["picture", "rank", *_numbered(num_results)])
    for query in examples["image_to_text"]:
        found = [f"{result['text']} ({_scores(result)})" for result in query["results"]]
        table.add_data(_named_image(examples, query["image"]), query["rank"], *found, *[None] * (num_results - len(found)))
    return table


def _numbered(count: int) -> list[str]:
    return [f"answer {number}" for number in range(1, count + 1)]


def _scores(result: Mapping[str, Any]) -> str:
    matching = f"ITM {result['score']:.2f}, " if result["score"] is not None else ""
    return f"{'right, ' if result['right'] else ''}{matching}cos {result['similarity']:.2f}"


def _named_image(examples: Examples, number: int, caption: str | None = None) -> Any:
    return _image(examples["pictures"][str(number)], caption)


def _attention(examples: Examples) -> Iterator[Any]:
    """A caption's image, then the same under the map of each of its words."""
    for explained in examples.get("attention", ()):
        matching = f" (ITM {explained['score']:.2f})" if explained["score"] is not None else ""
        yield _named_image(examples, explained["image"], f"{explained['text']}{matching}")
        for word in explained["words"]:
            yield _image(word["picture"], word["word"])


def _image(encoded: str, caption: str | None) -> Any:
    with Image.open(io.BytesIO(base64.b64decode(encoded))) as image:
        return wandb.Image(image, caption=caption, file_type="jpg")
