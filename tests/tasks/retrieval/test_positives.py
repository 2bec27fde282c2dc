"""Promises of positives beyond a caption's own image: mAP@R, R-Precision and R@1 as their authors count, ids that must fit."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tclx.data.dataset import open_evaluation_set, training_captions
from tclx.data.tokenizer import train_wordpiece
from tclx.errors import InputError
from tclx.metrics import chance_of
from tclx.model.tcl import TCL
from tclx.report.bootstrap import estimate
from tclx.spec.experiment import ExperimentSpec
from tclx.tasks.metric import Mean
from tclx.tasks.retrieval import QUALITIES
from tclx.tasks.retrieval.positives import check_positives, quality_by_chance, quality_of, read_positives
from tclx.tasks.task import Evaluation
from tests.conftest import PROJECT
from tests.processes import finish_processes, start_processes
from tests.train.toy import toy_spec

NUM_IMAGES, PER_IMAGE = 5, 2


def slow_quality(scores: Sequence[float], right: Sequence[int]) -> list[float]:
    """Sorted, then counted place by place."""
    ranked = sorted(range(len(scores)), key=lambda key: (scores[key], key), reverse=True)
    precisions = []
    for place in range(1, len(right) + 1):
        hits = sum(key in right for key in ranked[:place])
        precisions.append(hits / place if ranked[place - 1] in right else 0.0)
    share = sum(key in right for key in ranked[: len(right)]) / len(right)
    return [sum(precisions) / len(right), share, float(ranked[0] in right)]


def drawn(generator: np.random.Generator, *, ties: bool) -> tuple[Tensor, list[list[int]]]:
    scores = generator.integers(4, size=(40, 30)) if ties else generator.standard_normal((40, 30))
    right = [sorted(generator.permutation(30)[: generator.integers(1, 12)].tolist()) for _ in range(40)]
    return torch.from_numpy(scores).float(), right


@pytest.mark.parametrize("ties", [False, True])
def test_it_is_what_counting_place_by_place_gives(ties: bool) -> None:
    scores, right = drawn(np.random.default_rng(0), ties=ties)
    expected = [slow_quality(row, one) for row, one in zip(scores.tolist(), right, strict=True)]
    torch.testing.assert_close(quality_of(scores, right), torch.tensor(expected, dtype=torch.float64), atol=1e-12, rtol=0)


def test_a_query_that_is_not_asked_is_not_measured() -> None:
    found = quality_of(torch.tensor([[0.3, 0.2], [0.3, 0.2]]), [[], [0]])
    assert found[0].isnan().all()
    assert found[1].tolist() == [1.0, 1.0, 1.0]


@pytest.mark.filterwarnings("ignore:failed to import")  # of ujson, which the package does without
def test_it_equals_the_code_of_eccv_caption() -> None:
    official = pytest.importorskip("eccv_caption._metrics", reason="eccv-caption is not installed")
    scores, right = drawn(np.random.default_rng(1), ties=False)
    ranked = dict(enumerate(scores.argsort(dim=1, descending=True).tolist()))
    theirs = official.compute_eccv_metrics(ranked, dict(enumerate(right)))
    ours = quality_of(scores, right).mean(dim=0).tolist()
    assert ours == pytest.approx([theirs["eccv_map_at_r"], theirs["eccv_rprecision"], theirs["eccv_r1"]], abs=1e-6)


def test_chance_is_the_mean_over_random_orders() -> None:
    right = [[0, 1, 2], [3], []]
    generator = np.random.default_rng(0)
    drawn_scores = [torch.from_numpy(generator.permuted(np.tile(np.arange(6.0), (3, 1)), axis=1)) for _ in range(4000)]
    mean = torch.stack([quality_of(scores, right).nanmean(dim=0) for scores in drawn_scores]).mean(dim=0) * 100
    chance = quality_by_chance(right, num_keys=6)
    assert [chance["map_at_r_chance"], chance["chance"], chance["chance"]] == pytest.approx(mean.tolist(), abs=1.0)


# A whole evaluation.


def files_spec(folder: Path, *, change: Callable[[list[dict[str, Any]], dict[str, Any]], None] | None = None) -> ExperimentSpec:
    """Five images of COCO's names with two captions each; the positives of images 10 and 30 and of captions 100 and 131."""
    generator = np.random.default_rng(0)
    rows = []
    for number in (30, 10, 20, 50, 40):
        name = f"COCO_val2014_{number:012}.png"
        Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / name)
        ids = [number * 4 + place for place in range(PER_IMAGE)]
        rows.append({"image": name, "caption": [f"a thing {one}" for one in ids], "caption_id": ids})
    positives: dict[str, Any] = {
        "image_to_caption": {"10": [40, 41, 80], "30": [121]},
        "caption_to_image": {"80": [20, 10], "121": [30, 40, 50]},
    }
    if change is not None:
        change(rows, positives)
    (folder / "rows.json").write_text(json.dumps(rows, indent=0))
    (folder / "positives.json").write_text(json.dumps(positives))
    source = {"source": "files", "form": "retrieval", "files": [str(folder / "rows.json")], "image_root": str(folder)}
    changes = {"data.test": source, "evaluation.retrieval": {"top_k": 3, "positives": {"test": str(folder / "positives.json")}}}
    return toy_spec(**changes)


def evaluated(spec: ExperimentSpec) -> Evaluation:
    """Retrieval of an untrained model on the test split."""
    tokenizer = train_wordpiece(training_captions(spec.data), vocab_size=128)
    model = TCL(spec, vocab_size=tokenizer.vocab_size, pad_token_id=tokenizer.pad_id)
    assert spec.evaluation.retrieval is not None
    return spec.evaluation.retrieval.evaluate(model, spec, "test", tokenizer=tokenizer, device=torch.device("cpu"))


def test_ids_become_the_numbers_of_the_evaluation_set(tmp_path: Path) -> None:
    spec = files_spec(tmp_path)
    source = open_evaluation_set(spec, "test")
    found = read_positives(str(tmp_path / "positives.json"), spec.data, "test", source)
    assert found.image_to_text == [[1], [2, 3, 4], [], [], []]
    assert found.text_to_image == [[], [0, 3, 4], [], [], [1, 2], [], [], [], [], []]
    assert [source.captions[caption] for caption in (1, 4)] == ["a thing 121", "a thing 80"]
    assert source.image_of_caption[[1, 4]].tolist() == [0, 2]


def test_an_evaluation_measures_them_with_intervals_and_chance_and_leaves_the_rest_as_it_was(tmp_path: Path) -> None:
    spec = files_spec(tmp_path)
    found = evaluated(spec)
    without = copy.deepcopy(spec.model_dump(mode="json"))
    without["evaluation"]["retrieval"]["positives"] = None
    plain = evaluated(ExperimentSpec.model_validate_json(json.dumps(without)))
    assert plain.metrics.items() <= found.metrics.items()
    assert found.metrics["positives/image_to_text/num_queries"] == found.metrics["positives/text_to_image/num_queries"] == 2
    assert found.outcomes is not None
    for pathway in ("", "dual/"):
        for direction, clusters in (("image_to_text", [0, 1]), ("text_to_image", [0, 2])):
            for one in QUALITIES:
                name = f"{pathway}positives/{direction}/{one}"
                assert list(found.outcomes[name].queries.clusters) == clusters
                reached = estimate(found.outcomes, {name: Mean(name)}, num_resamples=10)[name]
                assert reached.value == pytest.approx(found.metrics[name], abs=1e-6)
                assert chance_of(name, found.metrics) == pytest.approx(
                    found.metrics[f"positives/{direction}/{'map_at_r_chance' if one == 'map_at_r' else 'chance'}"]
                )


def figures(found: Evaluation) -> list[Any]:
    """Every metric, and what each query reached of its positives, as JSON keeps them."""
    assert found.outcomes is not None
    return [found.metrics, {name: list(one.values) for name, one in found.outcomes.items() if "positives/" in name}]


def test_three_processes_give_what_one_gives(tmp_path: Path) -> None:
    for rank in range(3):
        (tmp_path / str(rank)).mkdir()
    output = tmp_path / "found.json"
    arguments = ["-m", "tests.tasks.retrieval.worker", str(tmp_path), str(output)]
    finish_processes(start_processes(arguments, world_size=3))
    (tmp_path / "alone").mkdir()
    assert json.loads(output.read_text()) == figures(evaluated(files_spec(tmp_path / "alone")))


def test_own_positives_alone_give_the_recall_that_is_always_measured(tmp_path: Path) -> None:
    """R@1 is then R@1 of both orders; of captions, which have one image, R-Precision and mAP@R are too."""

    def own(rows: list[dict[str, Any]], positives: dict[str, Any]) -> None:
        numbers = [int(row["image"][-6:-4]) for row in rows]
        positives["image_to_caption"] = {str(one): row["caption_id"] for one, row in zip(numbers, rows, strict=True)}
        positives["caption_to_image"] = {
            str(caption): [one] for one, row in zip(numbers, rows, strict=True) for caption in row["caption_id"]
        }

    metrics = evaluated(files_spec(tmp_path, change=own)).metrics
    for pathway in ("", "dual/"):
        for direction in ("image_to_text", "text_to_image"):
            r1 = metrics[f"{pathway}{direction}/r1"]
            assert metrics[f"{pathway}positives/{direction}/r1"] == pytest.approx(r1)
        for one in QUALITIES:
            assert metrics[f"{pathway}positives/text_to_image/{one}"] == pytest.approx(r1)


# What does not fit.


def damaged(what: str) -> Callable[[list[dict[str, Any]], dict[str, Any]], None]:
    def change(rows: list[dict[str, Any]], positives: dict[str, Any]) -> None:
        match what:
            case "no caption ids":
                del rows[2]["caption_id"]
            case "too few":
                rows[2]["caption_id"] = [80]
            case "a caption twice":
                rows[2]["caption_id"] = [80, 120]
            case "unknown query":
                positives["image_to_caption"]["99"] = [40]
            case "unknown key":
                positives["caption_to_image"]["80"] = [99]
            case "none":
                positives["caption_to_image"]["80"] = []
            case "twice":
                positives["caption_to_image"]["80"] = [20, "020"]
            case "no direction":
                del positives["caption_to_image"]
            case "no number":
                rows[2]["image"] = "photo.png"

    return change


@pytest.mark.parametrize(
    ("what", "key", "message"),
    [
        ("no caption ids", "data.test.files", r"rows\.json:\d+: row 2: `caption_id` is missing"),
        ("too few", "data.test.files", r"rows\.json:\d+: row 2: `caption_id` is not one id for each of 2 captions"),
        ("a caption twice", "data.test.files", r"rows\.json:\d+: row 2: caption id 120 is also in row 0"),
        ("no number", "data.test.files", r"rows\.json:\d+: row 2: no `image_id`"),
        ("unknown query", "evaluation.retrieval.positives.test", "image_to_caption: 99: no image of the split has this id"),
        ("unknown key", "evaluation.retrieval.positives.test", "caption_to_image: 80: no image of the split has the id 99"),
        ("none", "evaluation.retrieval.positives.test", "caption_to_image: 80: has no positives"),
        ("twice", "evaluation.retrieval.positives.test", "caption_to_image: 80: names one image twice"),
        ("no direction", "evaluation.retrieval.positives.test", "`caption_to_image` is missing"),
    ],
)
def test_what_does_not_fit_is_one_line_before_training(tmp_path: Path, what: str, key: str, message: str) -> None:
    spec = files_spec(tmp_path, change=damaged(what))
    with pytest.raises(InputError) as caught:
        spec.evaluation.check(spec.data)
    (problem,) = caught.value.problems
    assert problem.key == key
    assert re.search(message, problem.message)


def test_generated_scenes_have_no_ids(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text("{}")
    with pytest.raises(InputError, match="go by the ids of images and captions"):
        check_positives(str(tmp_path / "p.json"), toy_spec().data, "test")


def test_the_documented_lines_add_the_ids_that_belong_to_the_captions(tmp_path: Path) -> None:
    """By their text, whatever the order is; of two captions with the same text each takes one id."""
    page = (PROJECT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    (lines,) = [code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "caption_id" in code]
    annotations = [(9, "A  dog."), (4, "a cat"), (5, "a cat"), (7, "a cow ")]
    coco = {"annotations": [{"id": number, "image_id": 42, "caption": text} for number, text in annotations]}
    (tmp_path / "captions_val2014.json").write_text(json.dumps(coco))
    rows = [{"image": "val2014/COCO_val2014_000000000042.jpg", "caption": ["a cow", "a cat", "A dog.", "a cat"]}]
    (tmp_path / "coco_test.json").write_text(json.dumps(rows))
    subprocess.run([sys.executable, "-c", lines], cwd=tmp_path, check=True)
    (row,) = json.loads((tmp_path / "coco_test_ids.json").read_text())
    assert row["caption_id"] == [7, 4, 9, 5]
