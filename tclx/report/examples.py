"""What did the models find? The same queries for every group, with pictures, from what the final evaluation kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tclx.eval.results import RunResult
from tclx.report.material import Material
from tclx.report.page import Html, details, escaped, joined, jpeg, text
from tclx.runs import RunFolder

OPEN_QUERIES = 3
"""Queries of a direction that are shown at once; the others are folded away."""
SHOWN_CAPTIONS = 3
"""Of those kept for a picture: a phone shows one below the other."""

Examples = Mapping[str, Any]


def examples(material: Material) -> list[Html]:
    """Queries of both directions and what each group's first seed with examples answers."""
    kept = {group.label: _first_kept(group.runs, material.results.split) for group in material.groups}
    shown = {label: found for label, found in kept.items() if found is not None}
    missing = [label for label, found in kept.items() if found is None]
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
    for direction, heading, query in (
        ("text_to_image", "From text to pictures", _caption_query),
        ("image_to_text", "From pictures to text", _picture_query),
    ):
        queries = [query(number, found) for number in _numbers(direction, found)]
        blocks.append(Html(f"<h3>{escaped(heading)}</h3>"))
        blocks += queries[:OPEN_QUERIES]
        if folded := queries[OPEN_QUERIES:]:
            blocks.append(details(f"{len(folded)} more", *folded))
    return blocks


def _first_kept(runs: tuple[RunResult, ...], split: str) -> tuple[RunResult, Examples] | None:
    for run in runs:
        folder = RunFolder(run.folder)
        if run.state.status == "finished" and folder.examples(split).exists():
            return run, folder.read_json(folder.examples(split))
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
    right = jpeg(
        first["pictures"][str(query["right_image"])], description="the picture that belongs to the caption", right=True
    )
    asked = f'<div class="asked">{right}<h3>{escaped(query["text"])}</h3></div>'
    lines = (
        _line(label, query["rank"], joined(_picture(one, result) for result in query["results"]))
        for label, one, query in answers
    )
    return Html(f'<div class="query">{asked}<div class="answers">{joined(lines)}</div></div>')


def _picture_query(number: tuple[int, str], found: Mapping[str, Examples]) -> Html:
    answers = list(_answers("image_to_text", number, found))
    _, first, query = answers[0]
    picture = jpeg(first["pictures"][str(query["image"])], description="the picture that asks")
    lines = (
        _line(
            label, query["rank"], Html(f"<ol>{joined(_caption(result) for result in query['results'][:SHOWN_CAPTIONS])}</ol>")
        )
        for label, _, query in answers
    )
    return Html(f'<div class="query"><div class="asked">{picture}</div><div class="answers">{joined(lines)}</div></div>')


def _line(label: str, rank: int, content: Html) -> Html:
    who = f'<div class="who"><b>{escaped(label)}</b><br><span class="small">right one at rank {rank}</span></div>'
    return Html(f'<div class="answer">{who}<div class="found">{content}</div></div>')


def _picture(one: Examples, result: Mapping[str, Any]) -> Html:
    right = bool(result["right"])
    description = f"picture {result['image']}" + (", the right one" if right else "")
    picture = jpeg(one["pictures"][str(result["image"])], description=description, right=right)
    tick = '<span class="tick" aria-hidden="true">✓</span>' if right else ""
    scores = "<br>".join(escaped(score) for score in _scores(result))
    return Html(f"<figure>{picture}{tick}<figcaption>{scores}</figcaption></figure>")


def _caption(result: Mapping[str, Any]) -> Html:
    kind, tick = (' class="right"', " ✓") if result["right"] else ("", "")
    scores = f'<span class="small">{escaped(" · ".join(_scores(result)))}</span>'
    return Html(f"<li{kind}>{escaped(result['text'] + tick)} {scores}</li>")


def _scores(result: Mapping[str, Any]) -> list[str]:
    matching = [f"ITM {result['score']:.2f}"] if result["score"] is not None else []
    return [*matching, f"cos {result['similarity']:.2f}"]
