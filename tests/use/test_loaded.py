"""Promises of `tclx.load`: what evaluation computes, from three lines of Python; every mistake in words."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tclx
from tclx.data.dataset import open_evaluation_set
from tclx.errors import InputError
from tclx.runs import RunFolder
from tclx.spec.load import load_spec_json
from tclx.tasks.retrieval.evaluation import Captions, retrieve
from tclx.use.loaded import VisionLanguageModel
from tests.conftest import PROJECT

BATCH = 4


@pytest.mark.parametrize("run", ["whole-s0-00000001", "plain-s0-00000002"])
def test_embeddings_are_those_of_retrieval_evaluation_bit_for_bit(
    runs: Path, run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tclx.load(run, runs_dir=runs)
    spec = load_spec_json(RunFolder(runs / run).spec)
    source = open_evaluation_set(spec, "test")
    seen: list[torch.Tensor] = []
    monkeypatch.setattr("tclx.tasks.retrieval.evaluation.require_finite", lambda values, what: seen.append(values))

    def batches(numbers: Any) -> Any:
        from tclx.data.batch import normalise

        for images in source.image_batches(numbers, batch_size=BATCH):
            yield normalise(images, spec.data.normalization)

    captions = Captions(*source.encode_captions(model.tokenizer), torch.from_numpy(source.image_of_caption))
    retrieve(
        model.model,
        image_batches=batches,
        num_images=source.num_images,
        captions=captions,
        top_k=4,
        batch_size=BATCH,
        precision=spec.training.precision,
    )
    images = model.embed_images([source.image(number) for number in range(source.num_images)], batch_size=BATCH)
    texts = model.embed_texts(source.captions, batch_size=BATCH)
    assert np.array_equal(texts, seen[0].numpy())
    assert np.array_equal(images, seen[1].numpy())
    assert np.allclose(np.linalg.norm(images, axis=1), 1, atol=1e-6)


def test_a_matching_probability_is_the_softmax_of_one_pair_alone(whole: VisionLanguageModel, photos: list[Path]) -> None:
    texts = ["a red circle", "two green squares on a white background", "blue"]
    found = whole.score(photos, texts, by="itm", batch_size=2)
    for row, photo in enumerate(photos):
        for column, text in enumerate(texts):
            assert whole.score_pairs([photo], [text], by="itm") == pytest.approx(found[row, column], abs=1e-5)
    assert whole.score_pairs(photos, texts, by="itm", batch_size=2) == pytest.approx(np.diagonal(found), abs=1e-5)
    online, head = whole.model.online, whole.model.head("itm")
    ids, mask = whole._encoded([texts[1]])
    with torch.no_grad():
        patches = online.encode_image(whole._normalised(whole.prepared([photos[2]]))).tokens
        fused = online.fuse(online.encode_text(ids, mask).tokens, mask, patches)
        assert found[2, 1] == pytest.approx(float(head(fused[:, 0]).softmax(dim=1)[0, 1]), abs=1e-5)


def test_cosines_are_products_of_embeddings(whole: VisionLanguageModel, photos: list[Path]) -> None:
    texts = ["a red circle", "blue"]
    products = whole.embed_images(photos) @ whole.embed_texts(texts).T
    assert np.array_equal(whole.score(photos, texts), products)
    assert whole.score_pairs(photos[:2], texts) == pytest.approx(np.diagonal(products), abs=1e-6)


def test_a_path_an_opened_image_and_an_array_are_one_image(whole: VisionLanguageModel, photos: list[Path]) -> None:
    with Image.open(photos[0]) as opened:
        forms = [photos[0], str(photos[0]), opened, np.asarray(opened), opened.convert("RGBA")]
        # One at a time: some processors' kernels round the rows of a batch differently.
        found = [whole.embed_images([form]) for form in forms]
    assert all(np.array_equal(one, found[0]) for one in found)


def test_an_opened_photograph_is_turned_as_its_file_is(whole: VisionLanguageModel, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6  # turned by 90 degrees
    pixels = np.zeros((40, 40, 3), np.uint8)
    pixels[:20] = 255
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as opened:
        found = whole.prepared([tmp_path / "turned.png", opened])
        assert np.array_equal(*found)
        assert "exif" in opened.info
    assert not np.array_equal(found[0], whole.prepared([pixels])[0])


def test_every_bad_image_is_named_with_its_number(whole: VisionLanguageModel, photos: list[Path], tmp_path: Path) -> None:
    (tmp_path / "torn.jpg").write_bytes(b"\xff\xd8\xff\xe0 torn")
    wrong: list[Any] = [photos[0], tmp_path / "torn.jpg", photos[1], tmp_path / "gone.png", np.zeros((4, 4)), 7]
    with pytest.raises(InputError) as refused:
        whole.embed_images(wrong, batch_size=2)
    assert [problem.key for problem in refused.value.problems] == [f"images[{number}]" for number in (1, 3, 4, 5)]
    assert "gone.png: does not exist" in str(refused.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: model.embed_images("photo.jpg"), "no list"),
        (lambda model: model.embed_images(np.zeros((4, 4, 3), np.uint8)), "no list"),
        (lambda model: model.embed_texts("a dog"), "no list"),
        (lambda model: model.embed_texts(["a dog", 3]), r"texts\[1\]: is a int"),
        (lambda model: model.score_pairs([], ["a dog"]), "make no pairs"),
        (lambda model: model.score([], [], by="clip"), "cosine or itm"),
        (lambda model: model.embed_images([], batch_size=0), "at least 1"),
        (lambda model: model.answer("photo.jpg", "what?"), "no decoder"),
    ],
)
def test_what_is_asked_wrongly_is_refused_in_words(whole: VisionLanguageModel, call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(whole)


def test_nothing_in_gives_nothing_out(whole: VisionLanguageModel) -> None:
    assert whole.embed_images([]).shape == whole.embed_texts([]).shape == (0, 8)
    assert whole.score([], ["a dog"], by="itm").shape == (0, 1)


def test_attention_is_a_map_of_the_grid_for_the_text_and_each_word(whole: VisionLanguageModel, photos: list[Path]) -> None:
    found = whole.attention(photos[0], "a Red circle!")
    assert found.map.shape == (4, 4)
    assert found.map.min() >= 0
    assert [word.text for word in found.words] == ["a", "red", "circle"]
    by_cosine = whole.attention(photos[0], "a red circle", by="cosine")
    assert by_cosine.map.shape == (4, 4)
    assert by_cosine.score == pytest.approx(float(whole.score([photos[0]], ["a red circle"])[0, 0]), abs=1e-5)
    probability = 1 - 1 / (1 + np.exp(found.score))
    assert 0 < probability < 1


def test_a_model_without_a_part_says_so(runs: Path, photos: list[Path]) -> None:
    plain, asked = tclx.load("plain", runs_dir=runs), tclx.load("asked", runs_dir=runs)
    for call in (lambda: plain.score(photos, ["blue"], by="itm"), lambda: plain.attention(photos[0], "blue", by="itm")):
        with pytest.raises(InputError, match="no matching head"):
            call()
    with pytest.raises(InputError, match=r"no common space.*vqa"):
        asked.embed_images(photos)


def test_answers_are_those_of_the_evaluation(runs: Path) -> None:
    model = tclx.load("asked", runs_dir=runs)
    kept = json.loads(RunFolder(runs / "asked-s0-00000003").predictions("vqa", "test").read_text())
    from tclx.data.items import open_items

    items = open_items(model.spec, "test")
    given = [model.answer(items.images(number)[0], items.items[number].text)[0].text for number in range(items.num_items)]
    assert given == [one["answer"] for one in kept]
    (image,) = items.images(0)
    few = model.answer(image, "is it red?", answers=["yes", "no"])
    assert {one.text for one in few} == {"yes", "no"}
    assert sum(one.probability for one in few) == pytest.approx(1)
    assert len(model.answer(image, "is it red?", write=True)) == 1
    with pytest.raises(InputError, match="nothing to choose from"):
        model.answer(image, "is it red?", answers=[])


def test_the_switches_of_the_process_come_back(whole: VisionLanguageModel) -> None:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        whole.embed_texts(["a dog"])
        assert not torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(before)


def test_a_checkpoint_and_a_step_can_be_named(runs: Path) -> None:
    run = runs / "whole-s0-00000001"
    by_folder = tclx.load(run / "checkpoints" / "step-00000004")
    assert by_folder.step == tclx.load(run, which="4").step == 4
    with pytest.raises(InputError, match="neither best, last"):
        tclx.load(run, which="9")


def test_a_name_of_several_runs_is_refused_with_their_ids(runs: Path, tmp_path: Path) -> None:
    for number in (1, 2):
        folder = tmp_path / f"whole-s{number}-0000000{number}"
        folder.mkdir()
        (folder / "spec.json").write_bytes((runs / "whole-s0-00000001" / "spec.json").read_bytes())
    with pytest.raises(InputError, match="whole stands for 2 runs: whole-s1-00000001, whole-s2-00000002"):
        tclx.load("whole", runs_dir=tmp_path)
    with pytest.raises(InputError, match="no run at nobody"):
        tclx.load("nobody", runs_dir=tmp_path)


def test_official_weights_take_a_spec(runs: Path, photos: list[Path], tmp_path: Path, whole: VisionLanguageModel) -> None:
    from tclx.use.saved import export_saved

    file = tmp_path / "official.pth"
    export_saved(runs / "whole-s0-00000001", file, form="pretrain")
    with pytest.raises(InputError, match=r"spec: .*does not say what it is"):
        tclx.load(file)
    spec = tmp_path / "toy.yaml"
    resolved = json.loads((runs / "whole-s0-00000001" / "spec.json").read_text())
    del resolved["variant"]
    spec.write_text(json.dumps(resolved))  # JSON is YAML
    found = tclx.load(file, spec=spec)
    assert np.array_equal(found.embed_images(photos), whole.embed_images(photos))


def test_importing_tclx_stays_light() -> None:
    code = "import sys, tclx; assert 'torch' not in sys.modules; assert callable(tclx.load); assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=True)
    with pytest.raises(AttributeError):
        tclx.laod  # type: ignore[attr-defined]  # noqa: B018
