"""Promises of visual grounding: every expression as if it were alone, and figures that are what they are called."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
import torch
from torch import Tensor

from tclx.data.batch import normalise
from tclx.data.captions import clean_caption
from tclx.data.dataset import training_captions
from tclx.data.images import read_image
from tclx.data.tokenizer import CaptionTokenizer, build_tokenizer
from tclx.errors import InputError, RunFailed
from tclx.examples import read_judged
from tclx.metrics import find_metric
from tclx.model.tcl import TCL
from tclx.plan import check_spec
from tclx.spec.experiment import ExperimentSpec
from tclx.tasks.grad_cam import matching_maps, similarity_maps
from tclx.tasks.grounding import evaluation
from tclx.tasks.grounding.boxes import iou
from tclx.tasks.grounding.evaluation import Grounding, ground, grounding_figures
from tclx.tasks.grounding.scenes import SceneExpressions
from tclx.tasks.grounding.task import DescribedScenes, GroundingSpec
from tclx.tasks.task import Evaluation
from tests.processes import finish_processes, start_processes
from tests.train.toy import prepare, run, toy_spec

from .data import write_refcoco

NUM = 23
"""No multiple of the batch size."""
SCENES = {"source": "scenes", "num_expressions": NUM}
OF_SCENES: dict[str, Any] = {"test": SCENES, "batch_size": 4}
FINE = {"model.image_encoder.patch_size": 2}
TWO_LAYERS = {"model.fusion_encoder": {"num_layers": 2}}
CPU = torch.device("cpu")


def spec_with(grounding: dict[str, Any], **changes: Any) -> ExperimentSpec:
    return toy_spec(**{"evaluation.grounding": grounding, **changes})


def untrained(spec: ExperimentSpec) -> tuple[TCL, CaptionTokenizer]:
    tokenizer = build_tokenizer(spec.data.tokenizer, training_captions(spec.data))
    torch.manual_seed(0)
    model = TCL(spec, vocab_size=tokenizer.vocab_size, pad_token_id=tokenizer.pad_id)
    with torch.no_grad():  # what it looks at then differs from image to image
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model, tokenizer


def settings_of(spec: ExperimentSpec) -> GroundingSpec:
    assert spec.evaluation.grounding is not None
    return spec.evaluation.grounding


def evaluated(spec: ExperimentSpec) -> Evaluation:
    model, tokenizer = untrained(spec)
    return settings_of(spec).evaluate(model, spec, "test", tokenizer=tokenizer, device=CPU)


def map_of_one(model: TCL, spec: ExperimentSpec, tokenizer: CaptionTokenizer, image: Tensor, text: str) -> Tensor:
    """Of a single image and a single expression, without padding."""
    settings = settings_of(spec)
    encoded = tokenizer.encode(
        [clean_caption(text, max_words=spec.data.max_caption_words)], max_tokens=spec.data.max_caption_tokens
    )
    pixels = normalise(image[None], spec.data.normalization)
    ids, mask = torch.from_numpy(encoded.input_ids), torch.from_numpy(encoded.attention_mask)
    with torch.no_grad():
        said, seen = model.online.encode_text(ids, mask), model.online.encode_image(pixels)
    if settings.explains == "itm":
        fusion = model.online.fusion_encoder
        assert fusion is not None
        return matching_maps(model, fusion, said.tokens, mask, seen.tokens, layer=settings.layer)[0][0].mean(dim=0)
    assert said.embedding is not None
    return similarity_maps(model, pixels, said.embedding, block=settings.layer)[0][0]


@pytest.mark.parametrize("changes", [{}, {"layer": 1}, {"explains": "itc"}], ids=["itm", "itm-layer-1", "itc"])
def test_scenes_are_grounded_as_one_expression_at_a_time(changes: dict[str, Any]) -> None:
    spec = spec_with({**OF_SCENES, **changes}, **TWO_LAYERS)
    model, tokenizer = untrained(spec)
    found = ground(model, spec, "test", settings=settings_of(spec), tokenizer=tokenizer, device=CPU)
    expressions = SceneExpressions(DescribedScenes(**SCENES), "test")
    model.eval()
    right, points = [], []
    for number, item in enumerate(expressions.items):
        image = torch.from_numpy(expressions.image(number).transpose(2, 0, 1).copy())
        one = map_of_one(model, spec, tokenizer, image, item.text).view(4, 4)
        torch.testing.assert_close(found.maps[number], one, rtol=1e-3, atol=1e-6 * float(one.max()))
        wide = torch.nn.functional.interpolate(one[None, None], size=(32, 32), mode="bicubic")[0, 0]
        assert item.candidates is not None
        scores = [
            sum(float(wide[y, x]) for x in range(int(left), int(left + w)) for y in range(int(top), int(top + h)))
            / (w * h) ** 0.5
            for left, top, w, h in item.candidates
        ]
        right.append(item.candidates[int(np.argmax(scores))] == item.box)
        y, x = np.unravel_index(int(wide.argmax()), wide.shape)
        left, top, w, h = item.box
        points.append(left <= x < left + w and top <= y < top + h)
    figures = grounding_figures(found)
    assert 0 < sum(right) < NUM
    assert figures["accuracy"] == pytest.approx(100 * np.mean(right))
    assert figures["pointing"] == pytest.approx(100 * np.mean(points))
    assert figures["num_expressions"] == NUM


def test_layers_and_scores_look_elsewhere() -> None:
    spec = spec_with(OF_SCENES, **TWO_LAYERS)
    model, tokenizer = untrained(spec)
    maps = []
    for changes in ({}, {"layer": 0}, {"layer": 1}, {"explains": "itc"}):
        settings = GroundingSpec.model_validate({**OF_SCENES, **changes})
        maps.append(ground(model, spec, "test", settings=settings, tokenizer=tokenizer, device=CPU).maps)
    assert torch.equal(maps[0], maps[1]), "the middle one of two is the first"
    assert not torch.allclose(maps[1] / maps[1].max(), maps[2] / maps[2].max(), atol=0.01)
    assert not torch.allclose(maps[1] / maps[1].max(), maps[3] / maps[3].max(), atol=0.01)


def of_maps(monkeypatch: pytest.MonkeyPatch, spec: ExperimentSpec, place: Any) -> dict[str, float]:
    """The metrics of maps that are 1 at a patch of 16 x 16, which a function tells of the box, or nowhere."""

    def drawn(model: TCL, images: Any, inputs: Tensor, *, start: int, **_: Any) -> Any:
        for number in range(images.num_captions):
            item = images._source.items[number]
            if start <= item.image < start + len(inputs):
                width, height = images._source.sizes[item.image]
                one = torch.zeros(1, 16, 16)
                if (at := place(item.box)) is not None:
                    one[0, int(16 * at[1] / height), int(16 * at[0] / width)] = 1
                yield one.flatten(1)

    monkeypatch.setattr(evaluation, "_maps", drawn)
    model, tokenizer = untrained(spec)
    return grounding_figures(ground(model, spec, "test", settings=settings_of(spec), tokenizer=tokenizer, device=CPU))


def test_whoever_looks_at_the_middle_of_what_is_named_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = of_maps(monkeypatch, spec_with(OF_SCENES, **FINE), lambda box: (box[0] + box[2] / 2, box[1] + box[3] / 2))
    assert figures["pointing"] == 100.0
    assert figures["accuracy"] > 90.0  # a distractor may lie around the middle, too


def test_whoever_looks_nowhere_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = of_maps(monkeypatch, spec_with(OF_SCENES, **FINE), lambda _: None)
    assert (figures["pointing"], figures["accuracy"]) == (0.0, 0.0)


def test_parts_are_those_of_the_annotations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rows of testA have their box at the left, that of testB its at the right."""
    spec = spec_with({"test": write_refcoco(tmp_path)}, **FINE)
    assert of_maps(monkeypatch, spec, lambda _: (5, 5)) == {
        "num_expressions": 3.0,
        "accuracy": pytest.approx(200 / 3 / 2),
        "accuracy/testA": 50.0,
        "accuracy/testB": 0.0,
        "accuracy_chance": pytest.approx(100 * (1 / 3 + 1 / 3 + 1 / 2) / 3),
        "pointing": pytest.approx(200 / 3),
        "pointing/testA": 100.0,
        "pointing/testB": 0.0,
        "pointing_chance": pytest.approx(100 * (10 * 12.5 / (48 * 32) + 8 * 8 / (48 * 32) + 20 * 30 / (40 * 30)) / 3),
    }


def test_chance_is_what_a_box_and_a_place_at_random_reach() -> None:
    figures = evaluated(spec_with(OF_SCENES)).metrics
    items = SceneExpressions(DescribedScenes(**SCENES), "test").items
    covered = [item.box[2] * item.box[3] / 32**2 for item in items]
    assert figures["pointing_chance"] == pytest.approx(100 * np.mean(covered))
    assert figures["accuracy_chance"] == 25.0
    for name in ("accuracy", "pointing"):
        metric = find_metric(f"grounding/test/{name}")
        assert metric is not None
        assert metric.chance is not None
        assert metric.chance(figures) == figures[f"{name}_chance"]


def test_without_detections_the_map_only_points(tmp_path: Path) -> None:
    found = evaluated(spec_with({"test": write_refcoco(tmp_path, detections=None)}))
    assert found.metrics.keys() == {"num_expressions", "pointing", "pointing/testA", "pointing/testB", "pointing_chance"}
    items = found.examples()["items"]
    assert [len(item["answers"]) for item in items] == [1, 1, 1]
    assert all(item["answers"][0]["text"].startswith("at ") for item in items)


def test_official_numbers_take_an_overlap_of_one_pixel_for_none(tmp_path: Path) -> None:
    """The only box is the true one, and one pixel high."""
    boxes = {number: [0, 0, 30, 1] for number in ("11", "12", "13")}
    section = write_refcoco(tmp_path, boxes=boxes, detections={name: [[0, 0, 30, 1]] for name in ("7", "9")})
    ours = evaluated(spec_with({"test": section})).metrics
    official = evaluated(spec_with({"test": section}, compat="official")).metrics
    assert (ours["accuracy_chance"], official["accuracy_chance"]) == (100.0, 0.0)
    assert ours["accuracy"] > 0.0 == official["accuracy"]
    assert ours["pointing"] == official["pointing"]


def test_nothing_of_the_model_is_changed() -> None:
    for explains in ("itm", "itc"):
        spec = spec_with({**OF_SCENES, "explains": explains})
        model, tokenizer = untrained(spec)
        model.train()
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        state, random = {name: tensor.clone() for name, tensor in model.state_dict().items()}, torch.get_rng_state()
        settings_of(spec).evaluate(model, spec, "test", tokenizer=tokenizer, device=CPU)
        assert all(module.training for module in model.modules())
        assert all(parameter.grad is not None and (parameter.grad == 1).all() for parameter in model.parameters())
        assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
        assert torch.equal(random, torch.get_rng_state())


@pytest.mark.parametrize("explains", ["itm", "itc"])
def test_half_precision_looks_at_the_same_places(explains: str) -> None:
    maps = []
    for precision in ("fp32", "bf16"):
        spec = spec_with({**OF_SCENES, "explains": explains}, **{"training.precision": precision})
        model, tokenizer = untrained(spec)
        found = ground(model, spec, "test", settings=settings_of(spec), tokenizer=tokenizer, device=CPU)
        maps.append(found.maps.flatten(1))
    assert maps[1].dtype == torch.float32
    apart = (maps[0] - maps[1]).norm(dim=1) / maps[0].norm(dim=1).clamp(min=1e-12)
    assert 0 < float(apart.median()) < 0.1


def test_what_is_not_finite_stops_the_evaluation() -> None:
    spec = spec_with(OF_SCENES)
    model, tokenizer = untrained(spec)
    with torch.no_grad():
        next(model.online.image_encoder.parameters()).fill_(float("nan"))
    with pytest.raises(RunFailed, match="attention to an expression is not finite"):
        settings_of(spec).evaluate(model, spec, "test", tokenizer=tokenizer, device=CPU)


def test_examples_show_the_image_both_boxes_and_what_was_chosen(tmp_path: Path) -> None:
    spec = spec_with(OF_SCENES)
    model, tokenizer = untrained(spec)
    found = settings_of(spec).evaluate(model, spec, "test", tokenizer=tokenizer, device=CPU)
    (tmp_path / "kept.json").write_text(json.dumps(found.examples()))
    kept = read_judged(tmp_path / "kept.json")
    grounding: Grounding = ground(model, spec, "test", settings=settings_of(spec), tokenizer=tokenizer, device=CPU)
    assert len(kept["items"]) == 16
    for item in kept["items"]:
        (row,) = item["images"]
        expression = grounding.expressions.items[row]
        left, top, width, height = expression.box
        assert item["text"] == expression.text
        assert item["right"] == [f"{width} x {height} pixels at {left}, {top}"]
        scores = [answer["score"] for answer in item["answers"]]
        assert scores == sorted(scores, reverse=True)
        assert len(scores) == 3
        assert (item["answers"][0]["text"] in item["right"]) == (grounding.overlaps[row] >= 0.5)
        drawn = simplejpeg.decode_jpeg(base64.b64decode(kept["pictures"][str(row)]), colorspace="RGB").astype(int)
        edge = drawn[round(top * 3.5), round(left * 3.5) : round((left + width) * 3.5) - 1]
        assert (edge[:, 1] - edge[:, [0, 2]].max(axis=1)).mean() > 20, "the upper edge of the true box is green"


def test_a_photograph_is_squeezed_and_its_map_stretched_again(tmp_path: Path) -> None:
    spec = spec_with({"test": write_refcoco(tmp_path)})
    model, tokenizer = untrained(spec)
    found = ground(model, spec, "test", settings=settings_of(spec), tokenizer=tokenizer, device=CPU)
    path = tmp_path / "images" / "COCO_train2014_000000000007.png"
    assert read_image(path, decoder="fast", max_pixels=10**6).shape == (32, 48, 3)
    assert found.images.image(0).shape == (32, 32, 3)
    assert found.maps.shape == (3, 4, 4)
    item = found.expressions.items[0]
    assert item.candidates is not None
    assert float(found.overlaps[0]) in [pytest.approx(iou(item.box, box)) for box in item.candidates] or not found.maps[0].any()


PROBLEMS: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (
        {"val": SCENES},
        {"evaluation.during_training": None, "evaluation.every_steps": None},
        r"grounding\.val: is never evaluated",
    ),
    (
        OF_SCENES,
        {"evaluation.best_metric": "grounding/pointing"},
        "selects the best checkpoint on val, which grounding does not have",
    ),
    (OF_SCENES, {"objectives.itm": None}, r"evaluation\.grounding: .*objectives\.itm is off"),
    ({**OF_SCENES, "layer": 1}, {}, r"grounding\.layer: 1, but the fusion encoder has 1 layers"),
    ({**OF_SCENES, "explains": "itc", "layer": 1}, {}, r"grounding\.layer: 1, but the image encoder has 1 blocks"),
    (
        {**OF_SCENES, "explains": "itc"},
        {
            "objectives": {"itm": {}, "mlm": {}, "imc": {}},
            "evaluation.retrieval": None,
            "evaluation.best_metric": "grounding/pointing",
        },
        "no term that is on brings images and texts together",
    ),
    (
        {**OF_SCENES, "explains": "itc"},
        {"model.image_encoder": {"name": "resnet18", "image_size": 32}},
        "itc shows where a ViT's .* and resnet18 is none",
    ),
]


@pytest.mark.parametrize(("grounding", "changes", "message"), PROBLEMS)
def test_what_cannot_be_grounded_is_refused(grounding: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_spec(spec_with(grounding, **changes))


def test_without_boxes_to_choose_from_no_accuracy_chooses_the_checkpoint(tmp_path: Path) -> None:
    section = write_refcoco(tmp_path, detections=None)
    with pytest.raises(InputError, match=r"there is no accuracy without boxes to choose from, and val has no detections"):
        check_spec(spec_with({"val": section, "test": section}, **{"evaluation.best_metric": "grounding/accuracy"}))
    check_spec(spec_with({"val": section, "test": section}, **{"evaluation.best_metric": "grounding/pointing"}))


def test_expressions_are_named_for_a_split() -> None:
    with pytest.raises(ValueError, match="no expressions are named"):
        spec_with({})


def test_a_model_without_the_part_that_is_explained_is_refused() -> None:
    model, tokenizer = untrained(toy_spec(**{"objectives.itm": None}))
    spec = spec_with(OF_SCENES)
    with pytest.raises(InputError, match="this model has no matching head"):
        settings_of(spec).evaluate(model, spec, "test", tokenizer=tokenizer, device=CPU)
    changes = {"evaluation.retrieval": None, "evaluation.best_metric": "grounding/pointing"}
    model, tokenizer = untrained(spec_with(OF_SCENES, objectives={"itm": {}, "mlm": {}}, **changes))
    spec = spec_with({**OF_SCENES, "explains": "itc"})
    with pytest.raises(InputError, match="this model has no common space"):
        settings_of(spec).evaluate(model, spec, "test", tokenizer=tokenizer, device=CPU)
    with pytest.raises(InputError, match=r"evaluation\.grounding\.val: is not set"):
        settings_of(spec).evaluate(model, spec, "val", tokenizer=tokenizer, device=CPU)


def test_a_run_may_choose_its_checkpoint_by_it(tmp_path: Path) -> None:
    both = {"test": SCENES, "val": {"source": "scenes", "num_expressions": 6}}
    folder = run(prepare(tmp_path / "run", spec_with(both, **{"evaluation.best_metric": "grounding/pointing"})))
    metrics = folder.read_evaluations()["test"].metrics
    assert {"retrieval/test/r_mean", "grounding/test/accuracy", "grounding/test/pointing"} <= metrics.keys()
    assert len(read_judged(folder.examples("grounding", "test"))["items"]) == 16
    best = folder.read_best()
    assert best is not None
    assert best.metric == "grounding/val/pointing"


def test_processes_find_exactly_what_one_finds(tmp_path: Path) -> None:
    """Two batches, so that one process of three has nothing to do."""
    for number in (1, 3):
        arguments = ["-m", "tests.tasks.grounding.worker", str(tmp_path / f"{number}.json")]
        finish_processes(start_processes(arguments, world_size=number))
    alone, together = (json.loads((tmp_path / f"{number}.json").read_text()) for number in (1, 3))
    assert len(alone) == 2
    assert alone == together
