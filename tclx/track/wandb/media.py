"""What do people look at on W&B besides curves? Tables of examples, histograms of similarities, attention maps.

Made from the files that evaluations write (`tclx.examples`), in the process that uploads.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import wandb
from PIL import Image

from tclx.examples import Examples, JudgedItems, read_examples, read_judged
from tclx.metrics import is_evaluated
from tclx.runs import RunFolder
from tclx.spec.evaluation import EVALUATION_TASKS
from tclx.track.jsonl import Row

SPLITS = ("val", "test")


def media_of_row(folder: RunFolder, row: Row) -> dict[str, Any]:
    """What belongs to a row of metrics.jsonl; nothing unless an evaluation wrote it and its examples."""
    evaluated = {tuple(name.split("/")[:2]) for name in row if is_evaluated(name)}
    return {
        name: value
        for task, split in evaluated
        if (path := folder.examples(task, split, step=row["step"])).exists()
        for name, value in media(task, split, path).items()
    }


def final_media(folder: RunFolder) -> dict[str, Any]:
    """What belongs to the final metrics, of every split that has some."""
    return {
        name: value
        for task in EVALUATION_TASKS
        for split in SPLITS
        if (path := folder.examples(task, split)).exists()
        for name, value in media(task, split, path).items()
    }


def media(task: str, split: str, path: Path) -> dict[str, Any]:
    """The client's objects under their names on W&B.

    Args:
        task, split: what was evaluated.
        path: what was kept of it; retrieval's of earlier versions lack `similarity` and `attention`.

    Raises:
        Unreadable: it is not what was written.
    """
    if task != "retrieval":
        return {f"examples/{split}/{task}": _judged(read_judged(path))}
    examples = read_examples(path)
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


def _judged(kept: JudgedItems) -> Any:
    num_images = max((len(item["images"]) for item in kept["items"]), default=1)
    num_answers = max((len(item["answers"]) for item in kept["items"]), default=0)
    images = ["image"] if num_images == 1 else [f"image {number}" for number in range(1, num_images + 1)]
    table = wandb.Table(columns=[*images, "text", "right", *_numbered(num_answers)])
    for item in kept["items"]:
        shown = [_image(kept["pictures"][str(number)], None) for number in item["images"]]
        found = [f"{answer['text']} ({kept['score']} {answer['score']:.2f})" for answer in item["answers"]]
        shown += [None] * (num_images - len(shown))
        table.add_data(*shown, item["text"], ", ".join(item["right"]), *found, *[None] * (num_answers - len(found)))
    return table


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
    table = wandb.Table(columns=["image", "rank", *_numbered(num_results)])
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
