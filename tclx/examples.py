"""What does a run folder keep of an evaluation for people to look at? Read and checked, for pages and for W&B."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NotRequired

from typing_extensions import TypedDict  # pydantic reads typing's own from Python 3.12 on

from tclx.files import Unreadable, read_as

Examples = Mapping[str, Any]


class _Result(TypedDict):
    similarity: float
    score: float | None
    right: bool
    image: NotRequired[int]
    caption: NotRequired[int]
    text: NotRequired[str]


class _CaptionQuery(TypedDict):
    caption: int
    text: str
    right_image: int
    rank: int
    results: list[_Result]


class _ImageQuery(TypedDict):
    image: int
    rank: int
    results: list[_Result]


class _Similarity(TypedDict):
    edges: list[float]
    matched: list[float]
    unmatched: list[float]


class _Word(TypedDict):
    word: str
    picture: str


class _Explained(TypedDict):
    caption: int
    text: str
    image: int
    score: float | None
    words: list[_Word]


class _Kept(TypedDict):
    """What `tclx.tasks.retrieval.examples.examples_of` writes; earlier versions kept no similarities and no attention."""

    text_to_image: list[_CaptionQuery]
    image_to_text: list[_ImageQuery]
    pictures: dict[str, str]
    similarity: NotRequired[_Similarity]
    attention: NotRequired[list[_Explained]]


def read_examples(path: Path) -> Examples:
    """What an evaluation kept for people to look at (`tclx.tasks.retrieval.examples.examples_of`).

    Raises:
        Unreadable: it is not there, or not what was written.
    """
    kept = read_as(path, _Kept)
    shown = {query["right_image"] for query in kept["text_to_image"]} | {query["image"] for query in kept["image_to_text"]}
    shown |= {result.get("image", -1) for query in kept["text_to_image"] for result in query["results"]}
    shown |= {explained["image"] for explained in kept.get("attention", ())}
    if missing := shown - {int(number) for number in kept["pictures"] if number.isdecimal()}:
        raise Unreadable(path, f"image {min(missing)} is not in it")
    if any("text" not in result for query in kept["image_to_text"] for result in query["results"]):
        raise Unreadable(path, "an answer has no text")
    similarity = kept.get("similarity")
    if similarity and {len(similarity["matched"]), len(similarity["unmatched"])} != {len(similarity["edges"]) - 1}:
        raise Unreadable(path, "its similarities are no histogram")
    return kept


class Answer(TypedDict):
    """One of a few that a model gave most weight."""

    text: str
    score: float


class Judged(TypedDict):
    """An item that a model was asked about: its images, the words that came with them, what is right, what it answered."""

    images: list[int]
    """By number, in the order in which the model saw them."""
    text: str
    """A question or a statement; empty where the images alone ask."""
    right: list[str]
    """What would be right; several where several are."""
    answers: list[Answer]
    """The best first."""


class JudgedItems(TypedDict):
    """What every task but retrieval keeps of an evaluation."""

    score: str
    """What the score of an answer is: `cos`, `probability`."""
    items: list[Judged]
    pictures: dict[str, str]
    """Number of an image -> base64 of a JPEG."""


def read_judged(path: Path) -> JudgedItems:
    """What an evaluation of a task other than retrieval kept for people to look at.

    Raises:
        Unreadable: it is not there, or not what was written.
    """
    kept = read_as(path, JudgedItems)
    if missing := {number for item in kept["items"] for number in item["images"]} - {
        int(number) for number in kept["pictures"]
    }:
        raise Unreadable(path, f"image {min(missing)} is not in it")
    return kept
