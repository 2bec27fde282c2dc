"""What did the models find, and where do they look? The same for every group, from what the final evaluation kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tclx.examples import Examples, read_examples
from tclx.report import figures
from tclx.report.markup import Html, details, figure, heading, joined, jpeg, part, text
from tclx.report.material import Material
from tclx.report.results import RunResult
from tclx.runs import RunFolder

OPEN_QUERIES = 3
"""Queries of a direction that are shown at once; the others are folded away."""
SHOWN_CAPTIONS = 3
"""Of those kept for an image: a phone shows one below the other."""


def examples(material: Material) -> list[Html]:
    """Queries of both directions and what each group's first seed with examples answers."""
    shown = _kept(material)
    missing = [group.label for group in material.groups if group.label not in shown]
    if not shown:
        return [text("No examples were kept: `tclx eval RUN` on a finished run writes them.", kind="note")]
    seeds = {run.seed for run, _ in shown.values()}
    whose = f"seed {seeds.pop()}" if len(seeds) == 1 else "each group's first seed that has some"
    blocks = [
        text(
            f"Queries at equal distances through {material.results.split}, picked by nobody; answers of {whose}. "
            "A green ✓ marks what belongs to the query. cos is the dual encoder's similarity; "
            "ITM, the matching head's logit, decides the order where there is one."
        )
    ]
    if missing:
        blocks.append(text(f"No examples of {', '.join(missing)}: `tclx eval RUN` writes them.", kind="note"))
    found = {label: one for label, (_, one) in shown.items()}
    for direction, title, query in (
        ("text_to_image", "From text to images", _caption_query),
        ("image_to_text", "From images to text", _image_query),
    ):
        queries = [query(number, found) for number in _numbers(direction, found)]
        blocks.append(heading(title))
        blocks += queries[:OPEN_QUERIES]
        if folded := queries[OPEN_QUERIES:]:
            blocks.append(details(f"{len(folded)} more", *folded))
    return blocks


def similarities(material: Material) -> list[Html]:
    """How well similarities tell pairs that belong together from all others."""
    kept = {label: one["similarity"] for label, (_, one) in _kept(material).items() if "similarity" in one}
    if not kept:
        return [text("No similarities of pairs were kept: `tclx eval RUN` on a finished run writes them.", kind="note")]
    plot = figures.shares({label: figures.Shares(**one) for label, one in kept.items()}, material.styles)
    title = f"Similarity of pairs on {material.results.split}, % of pairs"
    caption = "Cosine of the dual encoder. Filled: captions with their own image. Dotted: with all others."
    return [figure(plot, title=title, caption=caption)]


def attention(material: Material) -> list[Html]:
    """What words look at in the image of their caption."""
    found = {label: one for label, (_, one) in _kept(material).items() if one.get("attention")}
    if not found:
        advice = "a model without a fusion encoder has none; for others `tclx eval RUN` on a finished run writes them."
        return [text(f"No attention maps were kept: {advice}", kind="note")]
    captions = dict.fromkeys((each["caption"], each["text"]) for one in found.values() for each in one["attention"])
    explained = (
        "Bright is where the cross-attention of a word raises the matching head's logit for its caption and image "
        "(Grad-CAM in the middle layer of the fusion encoder), each map on a scale of its own."
    )
    blocks = [_looks(number, words, found) for number, words in captions]
    folded = [details(f"{len(blocks) - 1} more", *blocks[1:])] if len(blocks) > 1 else []
    return [text(explained), *blocks[:1], *folded]


def _looks(number: int, words: str, found: Mapping[str, Examples]) -> Html:
    seen = [
        (label, one["pictures"][str(each["image"])], each)
        for label, one in found.items()
        for each in one["attention"]
        if (each["caption"], each["text"]) == (number, words)
    ]
    lines = [
        (label, f"ITM {each['score']:.2f}" if each["score"] is not None else "", joined(map(_word, each["words"])))
        for label, _, each in seen
    ]
    image = jpeg(seen[0][1], description="the image of the caption")
    return part("query", kind=" looks", image=image, words=words, lines=lines)


def _word(word: Mapping[str, str]) -> Html:
    image = jpeg(word["picture"], description=f"where {word['word']} looks")
    return part("shown", image=image, right=False, lines=[word["word"]])


def _kept(material: Material) -> dict[str, tuple[RunResult, Examples]]:
    """Of each group that has some."""
    kept = {group.label: _first_kept(group.runs, material.results.split) for group in material.groups}
    return {label: found for label, found in kept.items() if found is not None}


def _first_kept(runs: tuple[RunResult, ...], split: str) -> tuple[RunResult, Examples] | None:
    for run in runs:
        folder = RunFolder(run.folder)
        if run.state.status == "finished" and folder.examples("retrieval", split).exists():
            return run, read_examples(folder.examples("retrieval", split))
    return None


def _numbers(direction: str, found: Mapping[str, Examples]) -> list[tuple[int, str]]:
    """All queries that any group has, by number and words: on other data, a number is another query."""
    return list(dict.fromkeys(_identity(direction, query) for one in found.values() for query in one[direction]))


def _identity(direction: str, query: Mapping[str, Any]) -> tuple[int, str]:
    return (query["caption"], query["text"]) if direction == "text_to_image" else (query["image"], "")


def _answers(direction: str, number: tuple[int, str], found: Mapping[str, Examples]) -> Iterator[tuple[str, Examples, Any]]:
    for label, one in found.items():
        for query in one[direction]:
            if _identity(direction, query) == number:
                yield label, one, query


def _caption_query(number: tuple[int, str], found: Mapping[str, Examples]) -> Html:
    answers = list(_answers("text_to_image", number, found))
    _, first, query = answers[0]
    right = jpeg(first["pictures"][str(query["right_image"])], description="the image that belongs to the caption", right=True)
    lines = [(label, _at(query), joined(_image(one, result) for result in query["results"])) for label, one, query in answers]
    return part("query", kind="", image=right, words=query["text"], lines=lines)


def _image_query(number: tuple[int, str], found: Mapping[str, Examples]) -> Html:
    answers = list(_answers("image_to_text", number, found))
    _, first, query = answers[0]
    image = jpeg(first["pictures"][str(query["image"])], description="the image that asks")
    lines = [
        (label, _at(query), part("captions", results=[_caption(result) for result in query["results"][:SHOWN_CAPTIONS]]))
        for label, _, query in answers
    ]
    return part("query", kind="", image=image, words="", lines=lines)


def _at(query: Mapping[str, Any]) -> str:
    return f"right one at rank {query['rank']}"


def _image(one: Examples, result: Mapping[str, Any]) -> Html:
    right = bool(result["right"])
    description = f"image {result['image']}" + (", the right one" if right else "")
    image = jpeg(one["pictures"][str(result["image"])], description=description, right=right)
    return part("shown", image=image, right=right, lines=_scores(result))


def _caption(result: Mapping[str, Any]) -> tuple[str, bool, str]:
    return result["text"], bool(result["right"]), " · ".join(_scores(result))


def _scores(result: Mapping[str, Any]) -> list[str]:
    matching = [f"ITM {result['score']:.2f}"] if result["score"] is not None else []
    return [*matching, f"cos {result['similarity']:.2f}"]
