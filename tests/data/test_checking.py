"""Promises of `tclx data check`: what is found, by any number of processes, after any interruption, and what is cleaned."""

from __future__ import annotations

import io
import json
import random
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tclx.data.annotations import read_annotations
from tclx.data.checking import looking
from tclx.data.checking.check import Checked, Progress, check_data
from tclx.data.checking.clean import Filters, clean
from tclx.data.checking.duplicates import MOST_BITS, find_duplicates
from tclx.data.checking.look import LOOK, perceptual_hash
from tclx.data.images import decode_image
from tclx.errors import InputError
from tclx.report.checked import write_checked
from tclx.spec.data import DataSpec, FilesSource
from tests.data.packing import on_shards, packed, photographs, reading
from tests.data.small import data_section, encoded, photograph


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(looking, "IMAGES_PER_TASK", 3)
    return tmp_path / "cache" / "tclx" / "checked"


def source(folder: Path, name: str, rows: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    (folder / f"{name}.json").write_text(json.dumps(rows))
    return {"source": "files", "files": [str(folder / f"{name}.json")], "image_root": str(folder), **more}


def written(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)


def smaller(pixels: np.ndarray, side: int, quality: int) -> bytes:
    return encoded(Image.fromarray(pixels).resize((side, side)), quality=quality)


@pytest.fixture
def planted(tmp_path: Path) -> DataSpec:
    """Ten photographs to train on, three to validate; then what goes wrong with data."""
    for number in range(13):
        written(tmp_path, f"{number}.jpg", encoded(photograph(64, 80, seed=number)))
    rows = [{"image": f"{number}.jpg", "caption": [f"caption {number}", "seen twice"]} for number in range(13)]
    train, val = rows[:10], rows[10:]
    written(tmp_path, "0.jpg", (tmp_path / "0.jpg").read_bytes()[:-900])
    (tmp_path / "1.jpg").unlink()
    written(tmp_path, "copy.jpg", (tmp_path / "2.jpg").read_bytes())
    written(tmp_path, "leak.jpg", (tmp_path / "10.jpg").read_bytes())
    written(tmp_path, "alike.jpg", smaller(photograph(64, 80, seed=11), 50, 60))
    written(tmp_path, "wide.png", encoded(photograph(8, 90, seed=77), "PNG"))
    train += [{"image": name, "caption": [name]} for name in ("copy.jpg", "leak.jpg", "alike.jpg", "wide.png")]
    train[5]["caption"] = ["...", "!"]
    train[6]["caption"] = ["word " * 40]
    return data_section(train=source(tmp_path, "train", train), val=source(tmp_path, "val", val))


def checked(data: DataSpec, **options: Any) -> tuple[Checked, int]:
    """And how many images an earlier check has looked at."""
    told: list[Progress] = []
    found = check_data(data, report=told.append, **options)
    assert told[-1].done == told[-1].total == len(found.looks)
    return found, told[-1].known


def names(pairs: list[list[str]] | list[tuple[str, str]]) -> list[list[str]]:
    return [[Path(name).name for name in pair] for pair in pairs]


def test_every_planted_fault_is_found(planted: DataSpec) -> None:
    tree = checked(planted, num_processes=1)[0].tree()
    train, val = tree["splits"]["data.train"], tree["splits"]["data.val"]
    assert [(Path(bad["path"]).name, bad["cause"]) for bad in tree["bad"]] == [("0.jpg", "decoding"), ("1.jpg", "missing")]
    assert train["unreadable"] == {"decoding": 1, "missing": 1}
    assert val["unreadable"] == {}
    assert names(train["duplicates"]["exact"]) == [["copy.jpg", "2.jpg"]]
    (leak,) = tree["leaks"]
    assert (leak["from"], leak["to"]) == ("data.train", "data.val")
    assert names(leak["exact"]) == [["10.jpg", "leak.jpg"]]
    assert names(leak["near"]) == [["11.jpg", "alike.jpg"]]
    facts = train["captions"]
    assert (facts["num_captions"], facts["empty"], facts["too_long"], facts["repeated"]) == (23, 2, 1, 7)
    assert facts["most_frequent"] == [{"caption": "seen twice", "count": 8}]
    assert sum(one["num_images"] for one in train["shorter_side"]) == 12
    assert Path(tree["smallest"][0]["path"]).name == Path(tree["most_extreme"][0]["path"]).name == "wide.png"


def test_any_number_of_processes_gives_the_same_report_and_page(planted: DataSpec, tmp_path: Path) -> None:
    pages, trees = [], []
    for number in (1, 2, 3):
        found, known = checked(planted, num_processes=number)
        for kept in (tmp_path / "cache" / "tclx" / "checked").iterdir():
            kept.unlink()
        assert known == 0
        write_checked(found, planted, tmp_path / "page.html", title="planted", warnings=())
        pages.append((tmp_path / "page.html").read_bytes())
        trees.append(json.dumps(found.tree()))
    assert len(set(pages)) == len(set(trees)) == 1


def test_an_interrupted_check_goes_on_where_it_stopped(planted: DataSpec) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.done >= 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check_data(planted, num_processes=1, report=interrupt)
    found, known = checked(planted, num_processes=1)
    assert known == 7  # of nine two cannot be used, which are looked at again
    again, all_known = checked(planted, num_processes=2)
    assert all_known == len(found.looks) - 2
    assert again.tree() == found.tree()


def test_a_changed_image_is_looked_at_again(planted: DataSpec, tmp_path: Path) -> None:
    before = checked(planted)[0]
    written(tmp_path, "5.jpg", b"no image any more")
    after, known = checked(planted)
    assert known == len(before.looks) - 3
    assert [Path(bad.path).name for bad in after.bad_images] == ["0.jpg", "1.jpg", "5.jpg"]


@pytest.mark.parametrize("seed", range(12))
def test_a_damaged_cache_costs_time_and_never_an_answer(planted: DataSpec, cache: Path, seed: int) -> None:
    right = checked(planted)[0].tree()
    (kept,) = cache.iterdir()
    content, draw = bytearray(kept.read_bytes()), random.Random(seed)
    for _ in range(draw.randrange(1, 30)):
        content[draw.randrange(len(content))] = draw.randrange(256)
    kept.write_bytes(content[draw.choice((0, 0, 3)) : len(content) - draw.randrange(100)])
    assert checked(planted)[0].tree() == right
    assert checked(planted)[1] == 15  # all of it is kept again


def test_a_cache_that_cannot_be_written_is_none(planted: DataSpec, cache: Path) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text("a file in the way")
    assert len(checked(planted)[0].bad) == 2
    assert checked(planted)[1] == 0


def test_only_what_the_spec_selects_is_looked_at(planted: DataSpec) -> None:
    few = planted.model_copy(update={"train": planted.train.model_copy(update={"limit": 4}), "val": None})
    assert len(checked(few)[0].looks) == 4


def test_shards_are_checked_as_the_files_that_they_were_packed_from(tmp_path: Path) -> None:
    files = reading(tmp_path, photographs(tmp_path))
    packed(files, tmp_path / "shards")
    shards = on_shards(files, tmp_path / "shards")
    of_files, _ = checked(files.data, num_processes=1)
    of_shards, known = checked(shards.data, num_processes=2)
    assert known == 0
    assert (of_files.looks == of_shards.looks).all()
    assert of_files.captions == of_shards.captions
    assert checked(shards.data)[1] == len(of_shards.looks)
    with pytest.raises(InputError, match="is packed: a list of files cannot name images in shards"):
        clean(of_shards, tmp_path / "clean", filters=Filters())


def test_hostile_words_stay_words_on_the_page(planted: DataSpec, tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script>"
    rows = [{"image": f"{hostile.replace('/', '')}.jpg", "caption": [hostile, hostile]}, {"image": "3.jpg", "caption": hostile}]
    data = data_section(train=source(tmp_path, "hostile", rows))
    write_checked(checked(data)[0], data, tmp_path / "page.html", title=hostile, warnings=(hostile,))
    assert "<script>alert" not in (tmp_path / "page.html").read_text()


def test_a_hash_outlives_coding_and_resizing_and_tells_photographs_apart() -> None:
    hashes = [perceptual_hash(photograph(96, 128, seed=seed)) for seed in range(30)]
    assert min((one ^ other).bit_count() for one, other in combinations(hashes, 2)) > MOST_BITS
    for seed, one in enumerate(hashes):
        for quality, side in ((30, 96), (80, 48), (90, 300)):
            copy = smaller(photograph(96, 128, seed=seed), side, quality)
            pixels = decode_image(copy, "copy", decoder="fast", max_pixels=10**6)
            assert (perceptual_hash(pixels) ^ one).bit_count() <= MOST_BITS


def test_images_of_one_colour_look_like_no_other() -> None:
    looks = np.zeros(3, LOOK)
    looks["width"] = 1
    looks["digest"] = [[1, 0], [2, 0], [1, 0]]
    looks["hash"] = [perceptual_hash(np.full((9, 9, 3), grey, np.uint8)) for grey in (0, 255, 0)]
    assert find_duplicates(looks).near.tolist() == [0, 1, 0]


def test_near_duplicates_are_those_that_comparing_all_with_all_finds() -> None:
    draw = random.Random(0)
    hashes = [draw.getrandbits(64) for _ in range(150)]
    for _ in range(250):
        flips = draw.sample(range(64), draw.randrange(9))
        hashes.append(draw.choice(hashes) ^ sum(1 << bit for bit in flips))
    looks = np.zeros(len(hashes), LOOK)
    looks["width"], looks["hash"], looks["digest"][:, 0] = 1, np.array(hashes, np.uint64), np.arange(len(hashes))
    group = list(range(len(hashes)))

    def root(one: int) -> int:
        return one if group[one] == one else root(group[one])

    for one, other in combinations(range(len(hashes)), 2):
        if (hashes[one] ^ hashes[other]).bit_count() <= MOST_BITS:
            first, second = sorted((root(one), root(other)))
            group[second] = first
    assert find_duplicates(looks).near.tolist() == [root(one) for one in range(len(hashes))]


# --clean


def test_a_cleaned_list_of_clean_data_says_the_same(tmp_path: Path) -> None:
    for number in range(4):
        written(tmp_path, f"{number}.jpg", encoded(photograph(seed=number)))
    rows = [{"image": f"{n % 4}.jpg", "image_id": n % 2, "caption": f"text {n}"} for n in range(8)]
    for form in ("captions", "pretrain", "retrieval"):
        data = data_section(train=source(tmp_path, form, rows, form=form))
        (one,) = clean(check_data(data), tmp_path / f"clean-{form}", filters=Filters())
        before = read_annotations(data.train, key="data.train", training=True)  # type: ignore[arg-type]
        after = read_annotations(FilesSource.model_validate_json(json.dumps(one.source)), key="data.train", training=True)
        assert one.left_out == {}
        assert list(after.captions) == list(before.captions)
        for name in ("image_of_row", "image_index", "caption_start"):
            assert (getattr(after, name) == getattr(before, name)).all(), (form, name)


def test_what_is_bad_is_left_out_and_counted_and_nothing_is_touched(planted: DataSpec, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    train, val = clean(check_data(planted), tmp_path / "clean", filters=Filters(max_aspect=4, near=True))
    assert train.left_out == {
        "unreadable": 2, "too long a shape": 1, "in val or test": 1, "looks like one in val or test": 1, "duplicate": 1,
        "empty captions": 2, "without a caption": 1,
    }  # fmt: skip
    assert val.left_out == {}
    rows = {row["image"]: row["caption"] for row in json.loads(train.path.read_text())}
    assert sorted(rows) == ["2.jpg", "3.jpg", "4.jpg", "6.jpg", "7.jpg", "8.jpg", "9.jpg"]
    assert rows["2.jpg"] == ["caption 2", "seen twice", "copy.jpg"]  # the copy's caption is its, too
    assert all(path.read_bytes() == content for path, content in before.items())
    assert sum(1 for _ in io.StringIO((tmp_path / "clean" / "left_out.jsonl").read_text())) == 6
    clean_data = data_section(train=train.source, val=val.source)
    again = check_data(clean_data)
    assert not again.bad
    assert list(again.warnings()) == []
    with pytest.raises(InputError, match=r"train.json exists and is not overwritten"):
        clean(again, tmp_path / "clean", filters=Filters())


def test_sources_of_a_mixture_are_cleaned_one_by_one(planted: DataSpec, tmp_path: Path) -> None:
    own, other = planted.train.model_dump(mode="json"), planted.val.model_dump(mode="json")  # type: ignore[union-attr]
    data = data_section(train={"source": "mixture", "sources": {"mine": {"data": own}, "web": {"data": other}}})
    mine, web = clean(check_data(data), tmp_path / "clean", filters=Filters())
    assert (mine.key, mine.path.name) == ("data.train.sources.mine.data", "train.mine.json")
    assert web.left_out == {"duplicate": 1}  # it is the first source's


def test_rows_of_downstream_tasks_are_cleaned_like_captions(tmp_path: Path) -> None:
    for number in range(4):
        written(tmp_path, f"{number}.jpg", encoded(photograph(seed=number)))
    written(tmp_path, "copy.jpg", (tmp_path / "1.jpg").read_bytes())
    written(tmp_path, "bad.jpg", b"no image")
    answered = {"question": "what?", "answer": ["a", "b", "a"], "question_id": 7}
    rows = {
        "vqa": [
            {"image": "0.jpg", **answered},
            {"image": "bad.jpg", **answered},
            {"image": "1.jpg", "question": "where?", "answer": "here", "dataset": "vg"},
            {"image": "copy.jpg", "question": "where?", "answer": "here", "dataset": "vg"},
            {"image": "copy.jpg", "question": "and this?", "answer": ["c"], "question_id": "q"},
        ],
        "nlvr": [
            {"images": ["0.jpg", "1.jpg"], "sentence": "both", "label": "True"},
            {"images": ["0.jpg", "bad.jpg"], "sentence": "both", "label": "False"},
            {"images": ["copy.jpg", "2.jpg"], "sentence": "none", "label": False},
        ],
        "entailment": [
            {"image": "0", "sentence": "one", "label": "neutral"},
            {"image": "bad.jpg", "sentence": "two", "label": "neutral"},
            {"image": "copy.jpg", "sentence": "three", "label": "entailment"},
            {"image": "1.jpg", "sentence": "three", "label": "contradiction"},
        ],
    }
    wanted = {
        "vqa": [rows["vqa"][0], {**rows["vqa"][2], "answer": ["here"]}, {**rows["vqa"][4], "image": "1.jpg"}],
        "nlvr": [rows["nlvr"][0], {"images": ["1.jpg", "2.jpg"], "sentence": "none", "label": "False"}],
        "entailment": [
            {**rows["entailment"][0], "image": "0.jpg"},
            *({**row, "image": "copy.jpg"} for row in rows["entailment"][2:]),  # it came first
        ],
    }
    for form, written_rows in wanted.items():
        data = data_section(train=source(tmp_path, form, rows[form], form=form))
        (one,) = clean(check_data(data), tmp_path / f"clean-{form}", filters=Filters())
        assert json.loads(one.path.read_text()) == written_rows, form
        assert one.left_out == {"unreadable": 1, "duplicate": 1} | ({"repeated rows": 1} if form == "vqa" else {})
        assert (one.num_captions, one.source["form"]) == (len(written_rows), form)
        again = FilesSource.model_validate_json(json.dumps(one.source))
        assert read_annotations(again, key="data.train", training=True).num_rows == len(written_rows)


def test_what_cannot_be_cleaned_is_said(planted: DataSpec, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="generated"):
        clean(check_data(data_section()), tmp_path / "clean", filters=Filters())
    with pytest.raises(InputError, match=r"data\.train: nothing is left of its 14 images"):
        clean(check_data(planted), tmp_path / "clean", filters=Filters(min_side=1000))
    assert not (tmp_path / "clean").exists()
