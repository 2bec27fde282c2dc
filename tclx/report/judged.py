"""What models answered on the tasks beside retrieval: the same items for every group, from what the final evaluation kept."""

from __future__ import annotations

from collections.abc import Mapping

from tclx.examples import Judged, JudgedItems, read_judged
from tclx.report.markup import Html, details, heading, joined, jpeg, part, text
from tclx.report.material import Material
from tclx.runs import RunFolder
from tclx.spec.evaluation import EVALUATION_TASKS

OPEN_ITEMS = 3
"""Items of a task that are shown at once; the others are folded away."""

_Key = tuple[tuple[int, ...], str]


def answers(material: Material) -> list[Html]:
    """A heading and a few items for each task of which something was kept; empty where nothing was."""
    blocks: list[Html] = []
    for task in EVALUATION_TASKS:
        if task == "retrieval" or not (found := _kept(task, material)):
            continue
        items = dict.fromkeys(_key(item) for one in found.values() for item in one["items"])
        shown = [_item(key, found) for key in items]
        blocks += [heading(task), *shown[:OPEN_ITEMS]]
        if folded := shown[OPEN_ITEMS:]:
            blocks.append(details(f"{len(folded)} more", *folded))
    if blocks:
        lead = f"Items at equal distances through {material.results.split}, picked by nobody. A green ✓ marks what is right."
        blocks.insert(0, text(lead))
    return blocks


def _kept(task: str, material: Material) -> dict[str, JudgedItems]:
    """Of each group's first run that has some, by label."""
    found = {}
    for group in material.groups:
        paths = (RunFolder(run.folder).examples(task, material.results.split) for run in group.runs)
        if (path := next((path for path in paths if path.exists()), None)) is not None:
            found[group.label] = read_judged(path)
    return found


def _key(item: Judged) -> _Key:
    return tuple(item["images"]), item["text"]


def _item(key: _Key, found: Mapping[str, JudgedItems]) -> Html:
    of_groups = [(label, one, item) for label, one in found.items() for item in one["items"] if _key(item) == key]
    _, first, item = of_groups[0]
    seen = joined(jpeg(first["pictures"][str(number)], description="what was asked about") for number in item["images"])
    lines = [
        (label, "", part("captions", results=[_answer(one["score"], each, of["right"]) for each in of["answers"]]))
        for label, one, of in of_groups
    ]
    answered = {each["text"] for _, _, of in of_groups for each in of["answers"]}
    missed = [each for each in item["right"] if each not in answered]
    words = item["text"] + (f" (right: {', '.join(missed)})" if missed else "")
    return part("query", kind="", image=seen, words=words.strip(), lines=lines)


def _answer(score: str, answer: Mapping[str, object], right: list[str]) -> tuple[str, bool, str]:
    return str(answer["text"]), answer["text"] in right, f"{score} {answer['score']:.2f}"
