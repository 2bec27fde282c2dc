"""Promises of image-text selection: files are read as published, made captions are right and wrong, choices are counted."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tclx.data.batch import normalise
from tclx.data.captions import clean_caption
from tclx.data.scenes import draw_image, draw_scenes
from tclx.data.selection import CHANGES, Claim, Said, claims, items_of, scene_items
from tclx.errors import InputError
from tclx.plan import check_spec
from tclx.spec.data import ScenesSource
from tclx.spec.experiment import ExperimentSpec
from tclx.tasks.selection import SelectionScenes
from tclx.tasks.task import Evaluation
from tests.processes import finish_processes, start_processes
from tests.tasks.test_classification import untrained
from tests.train.toy import prepare, run, toy_spec

CPU = torch.device("cpu")
SCENES = {"source": "scenes", "num_items": 21}
SUGARCREPE = {"filename": "0.png", "caption": "a red circle", "negative_caption": "a blue circle"}
ARO = {"image_path": "0.png", "true_caption": "a red circle", "false_caption": "a blue circle", "relation_name": "of"}
WINOGROUND = {
    "caption_0": "a red circle",
    "caption_1": "a blue circle",
    "image_0": "0",
    "image_1": "1",
    "collapsed_tag": "Object",
}
FORMS = {"sugarcrepe": SUGARCREPE, "aro": ARO, "winoground": WINOGROUND}


def spec_with(data: dict[str, Any], **changes: Any) -> ExperimentSpec:
    return toy_spec(**{"evaluation.selection": {"test": data}, **changes})


def evaluated(data: dict[str, Any], **changes: Any) -> Evaluation:
    spec = spec_with(data, **changes)
    model, tokenizer = untrained(spec)
    task = spec.evaluation.selection
    assert task is not None
    return task.evaluate(model, spec, "test", tokenizer=tokenizer, device=CPU)


def written(folder: Path, form: str, content: Any, *, lines: bool = False) -> dict[str, Any]:
    for number, color in enumerate([(200, 0, 0), (0, 0, 200)]):
        Image.new("RGB", (40, 30), color).save(folder / f"{number}.png")
    text = "\n".join(map(json.dumps, content)) if lines else json.dumps(content)
    (folder / "items.json").write_text(text)
    return {"source": form, "file": str(folder / "items.json"), "image_root": str(folder)}


# -------------------------------------------------------------------------------------------------------------- made of scenes


@pytest.mark.parametrize("category", CHANGES)
def test_right_captions_are_true_and_wrong_ones_are_false_of_the_facts(category: str) -> None:
    random, made = Random(0), 0
    for scene in draw_scenes(ScenesSource(source="scenes", split="train", num_images=600)):
        if len(scene.objects) < 2 or (found := claims(scene, category, random)) is None:
            continue
        right, wrong = found
        facts = [(one.color, one.shape) for one in scene.objects]
        assert right.holds(scene)
        assert not wrong.holds(scene)
        assert str(right) != str(wrong)
        for said in (right.first, right.second):  # a reader of its own
            assert any(shape == said.shape and said.color in (None, color) for color, shape in facts)
        made += 1
    assert made > 200


def test_a_claim_reads_as_it_is_built() -> None:
    claim = Claim(Said("orange", "star"), "above", Said(None, "ring"), Said("red", "heart"))
    assert str(claim) == "an orange star above a ring and a red heart"


def test_categories_come_in_turn_and_every_split_has_scenes_of_its_own() -> None:
    data = SelectionScenes(source="scenes", num_items=70)
    items = scene_items(data, "test")
    assert Counter(item.category for item in items) == dict.fromkeys(CHANGES, 10)
    assert items == scene_items(data, "test")
    assert [image.scene for item in items for image in item.images] != [
        image.scene for item in scene_items(data, "val") for image in item.images
    ]


# ------------------------------------------------------------------------------------------------------------------- its scores


def resized(path: Path | None) -> Any:
    with Image.open(str(path)) as image:
        return np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC))


def slow(spec: ExperimentSpec, data: dict[str, Any]) -> list[list[list[tuple[float, float]]]]:
    """Cosine and matching logit of every image of an item with every caption, one pair at a time."""
    model, tokenizer = untrained(spec)
    model.eval()
    found = []
    task = spec.evaluation.selection
    assert task is not None
    for item in items_of(task.test, "test", key="evaluation.selection.test"):  # type: ignore[arg-type]
        table = []
        for image in item.images:
            pixels = draw_image(image.scene) if image.scene is not None else resized(image.path)
            views = normalise(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None], spec.data.normalization)
            row = []
            for caption in item.captions:
                encoded = tokenizer.encode([clean_caption(caption, max_words=30)], max_tokens=30)
                ids, mask = torch.from_numpy(encoded.input_ids), torch.from_numpy(encoded.attention_mask)
                with torch.no_grad():
                    seen, said = model.online.encode_image(views), model.online.encode_text(ids, mask)
                    fused = model.online.fuse(said.tokens, mask, seen.tokens)
                    head = model.head("itm")
                    assert head is not None
                    row.append((float((seen.embedding * said.embedding).sum()), float(head(fused[:, 0])[0, 1])))  # type: ignore[operator]
            table.append(row)
        found.append(table)
    return found


def test_accuracy_counts_pairs_one_at_a_time_by_both_scores() -> None:
    found = evaluated(SCENES).metrics
    tables = slow(spec_with(SCENES), SCENES)
    for place, prefix in ((0, "dual/"), (1, "")):
        right = [table[0][0][place] > table[0][1][place] for table in tables]
        assert found[f"{prefix}accuracy"] == pytest.approx(100 * sum(right) / len(right))
    assert (found["chance"], found["num_items"]) == (50.0, 21.0)


def test_winoground_has_a_text_an_image_and_a_group_score(tmp_path: Path) -> None:
    rows = [
        WINOGROUND,
        {**WINOGROUND, "caption_0": "star", "image_0": "1.png", "image_1": "0.png"},
        {**WINOGROUND, "caption_1": "ring"},
    ]
    data = written(tmp_path, "winoground", rows, lines=True)
    found = evaluated(data).metrics
    text, image, group = [], [], []
    for (a, b), (c, d) in [[[pair[1] for pair in row] for row in table] for table in slow(spec_with(data), data)]:
        text.append(a > b and d > c)
        image.append(a > c and d > b)
        group.append(text[-1] and image[-1])
    for name, right in (("text_score", text), ("image_score", image), ("group_score", group), ("accuracy", group)):
        assert found[name] == pytest.approx(100 * sum(right) / 3), name
    assert found["chance"] == pytest.approx(100 / 6)


def test_without_a_matching_head_the_cosine_decides_and_without_embeddings_the_head() -> None:
    only_cosine = evaluated(SCENES, objectives={"cma": {}}).metrics
    assert only_cosine["accuracy"] == only_cosine["dual/accuracy"]
    only_matching = evaluated(SCENES, objectives={"itm": {}}, **{"evaluation.retrieval": None}).metrics
    assert only_matching["accuracy"] == only_matching["dual/accuracy"]


def test_a_box_cuts_the_part_that_is_meant(tmp_path: Path) -> None:
    boxed = {**ARO, "bbox_x": 10, "bbox_y": 5, "bbox_w": 20, "bbox_h": 10}
    data = written(tmp_path, "aro", [boxed, ARO])
    task = spec_with(data).evaluation.selection
    assert task is not None
    first, second = items_of(task.test, "test", key="k")  # type: ignore[arg-type]
    assert (first.images[0].box, second.images[0].box) == ((10, 5, 20, 10), None)
    assert first.category == "of"
    assert evaluated(data).examples()["categories"]["of"]["num_items"] == 2


def test_an_object_and_a_list_of_sugarcrepe_are_the_same(tmp_path: Path) -> None:
    found = [evaluated(written(tmp_path, "sugarcrepe", content)).metrics for content in ({"0": SUGARCREPE}, [SUGARCREPE])]
    assert found[0] == found[1]


def test_a_run_writes_its_choices_for_people_to_see(tmp_path: Path) -> None:
    folder = run(prepare(tmp_path / "run", spec_with(SCENES)))
    assert "selection/test/accuracy" in folder.read_evaluations()["test"].metrics
    kept = folder.read_json(folder.examples("selection", "test"))
    assert set(kept["categories"]) == set(CHANGES)
    scores = [[answer["score"] for answer in item["answers"]] for item in kept["items"]]
    assert all(one == sorted(one, reverse=True) for one in scores)


def test_three_processes_give_what_one_gives(tmp_path: Path) -> None:
    output = tmp_path / "found.json"
    finish_processes(start_processes(["-m", "tests.tasks.selection_worker", str(output)], world_size=3))
    metrics, items = json.loads(output.read_text())
    alone = evaluated(SCENES)
    assert metrics == alone.metrics
    assert [item["answers"][0]["text"] for item in items] == [item["answers"][0]["text"] for item in alone.examples()["items"]]


# ------------------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("form", "content", "message"),
    [
        ("sugarcrepe", {"7": {**SUGARCREPE, "caption": " "}}, "item 7: `caption` is ' ' (expected text)"),
        ("sugarcrepe", [ARO], "item 0: `filename` is missing (it is an item of `source: aro`)"),
        (
            "aro",
            [{**ARO, "false_caption": "a red circle"}],
            "item 0: both captions are 'a red circle'",
        ),
        ("aro", [{**ARO, "bbox_x": 1}], "item 0: its box is [1, None, None, None]"),
        ("winoground", [WINOGROUND, {"caption_0": "x"}], "item 1: `caption_1` is missing"),
        ("winoground", ["text"], "item 0: is 'text' (an object with caption_0, caption_1, image_0, image_1)"),
        ("aro", [], "holds no items"),
    ],
)
def test_a_wrong_file_is_refused_before_training(tmp_path: Path, form: str, content: Any, message: str) -> None:
    task = spec_with(written(tmp_path, form, content)).evaluation.selection
    assert task is not None
    with pytest.raises(InputError) as refused:
        task.images("test")
    assert message in str(refused.value)
    assert str(refused.value).startswith("evaluation.selection.test.file: ")


@pytest.mark.parametrize("form", FORMS)
def test_its_images_are_looked_at_before_training(tmp_path: Path, form: str) -> None:
    task = spec_with(written(tmp_path, form, [FORMS[form]])).evaluation.selection
    assert task is not None
    assert {path.name for path in task.images("test")} <= {"0.png", "1.png"}


def test_a_model_that_compares_nothing_is_refused() -> None:
    with pytest.raises(InputError, match=r"evaluation\.selection: no term that is on tells whether"):
        check_spec(
            spec_with(
                SCENES, objectives={"mlm": {}}, **{"evaluation.retrieval": None, "evaluation.best_metric": "selection/accuracy"}
            )
        )
