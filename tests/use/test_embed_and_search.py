"""Promises of `tclx embed` and `tclx search`: rows and names agree, nothing is overwritten, an index is renewed and no more."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tclx.use.embedding import images_in
from tclx.use.loaded import VisionLanguageModel
from tclx.use.search import Query, cache_folder, index_folder, nearest, search
from tests.cli.test_cli import Ended

RUN = "whole-s0-00000001"


@pytest.fixture
def folder(photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three pictures, one of them in a folder inside; what is no picture; and a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    inside = tmp_path / "photos" / "inside"
    inside.mkdir(parents=True)
    for photo, place in zip(
        photos, (tmp_path / "photos" / "a.png", inside / "b.PNG", tmp_path / "photos" / "c.png"), strict=True
    ):
        shutil.copy(photo, place)
    (tmp_path / "photos" / "notes.txt").write_text("no picture")
    (tmp_path / "photos" / "._a.png").write_text("a side file")
    return tmp_path / "photos"


def embed(runs: Path, *arguments: str | Path) -> Ended:
    return Ended("embed", RUN, *arguments, "--runs-dir", runs)


def test_a_folder_holds_its_pictures_in_the_order_of_their_names(folder: Path) -> None:
    found = [path.relative_to(folder) for path in images_in([folder, folder / "a.png"])]
    assert found == [Path("a.png"), Path("c.png"), Path("inside/b.PNG")]


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".parquet"])
def test_rows_have_their_names_in_every_form(
    runs: Path, folder: Path, tmp_path: Path, suffix: str, whole: VisionLanguageModel
) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow", reason="Parquet needs pyarrow: pip install pyarrow")
    output = tmp_path / f"vectors{suffix}"
    ended = embed(runs, folder, "-o", output)
    assert (ended.code, ended.out.strip()) == (0, str(output)), ended.err
    if suffix == ".npy":
        names, vectors = json.loads((tmp_path / "vectors.json").read_text()), np.load(output)
    elif suffix == ".npz":
        with np.load(output, allow_pickle=False) as content:
            names, vectors = content["paths"].tolist(), content["vectors"]
    else:
        import pyarrow.parquet

        table = pyarrow.parquet.read_table(output)
        names, vectors = table["path"].to_pylist(), np.array(table["vector"].to_pylist(), np.float32)
    assert names == [str(path) for path in images_in([folder])]
    assert vectors.dtype == np.float32
    assert np.array_equal(vectors, whole.embed_images(names))


def test_lines_of_a_file_are_embedded_as_texts(runs: Path, tmp_path: Path, whole: VisionLanguageModel) -> None:
    (tmp_path / "lines.txt").write_text("a red circle\n\nblue\n")
    assert embed(runs, "--texts", tmp_path / "lines.txt", "-o", tmp_path / "t.npy").code == 0
    assert json.loads((tmp_path / "t.json").read_text()) == ["a red circle", "blue"]
    assert np.array_equal(np.load(tmp_path / "t.npy"), whole.embed_texts(["a red circle", "blue"]))


def test_unreadable_pictures_are_listed_and_nothing_is_written_unless_they_are_skipped(
    runs: Path, folder: Path, tmp_path: Path
) -> None:
    (folder / "torn.jpg").write_bytes(b"\xff\xd8\xff\xe0 torn")
    (folder / "inside" / "empty.png").touch()
    output = tmp_path / "v.npy"
    ended = embed(runs, folder, "-o", output)
    assert ended.code == 2
    assert "torn.jpg" in ended.err
    assert "empty.png: is empty" in ended.err
    assert "--skip-bad" in ended.err
    assert not output.exists()
    ended = embed(runs, folder, "-o", output, "--skip-bad")
    assert ended.code == 0
    assert "3 images, 2 left out" in ended.err
    assert len(np.load(output)) == len(json.loads((tmp_path / "v.json").read_text())) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["photos", "-o", "there.npy"], "there.npy exists"),
        (["photos", "-o", "named.npy"], "named.json exists"),
        (["photos", "-o", "vectors.csv"], "ends with none of .npy"),
        (["photos", "-o", "nowhere/v.npy"], "no folder nowhere"),
        (["gone", "-o", "v.npy"], "no file or folder gone"),
        (["empty", "-o", "v.npy"], "no images in empty"),
        (["-o", "v.npy"], "give images, or texts"),
        (["photos", "--texts", "lines.txt", "-o", "v.npy"], "give images, or texts"),
    ],
)
def test_what_cannot_be_embedded_is_refused_before_anything_is_done(
    runs: Path, folder: Path, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    Path("empty").mkdir()
    for name in ("there.npy", "named.json"):
        Path(name).write_text("precious")
    ended = embed(runs, *arguments)
    assert ended.code == 2
    assert message in ended.err
    assert Path("there.npy").read_text() == Path("named.json").read_text() == "precious"


def test_force_replaces(runs: Path, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "v.npy").write_text("old")
    assert embed(runs, folder, "-o", tmp_path / "v.npy", "--force").code == 0
    assert np.load(tmp_path / "v.npy").shape == (3, 8)


# -------------------------------------------------------------------------------------------------------------------- search


def test_the_nearest_are_those_of_a_full_sort() -> None:
    values = np.random.default_rng(0).integers(0, 9, 100).astype(np.float32)
    for count in (0, 1, 7, 99, 100, 200):
        assert nearest(values, count).tolist() == np.argsort(-values, kind="stable")[:count].tolist()
    assert nearest(values[:0], 3).tolist() == []


def test_an_index_embeds_only_what_is_new_or_changed(folder: Path, whole: VisionLanguageModel, tmp_path: Path) -> None:
    assert index_folder(whole, folder).num_embedded == 3
    assert index_folder(whole, folder).num_embedded == 0
    Image.new("RGB", (20, 20), "red").save(folder / "a.png")
    Image.new("RGB", (20, 20), "blue").save(folder / "new.png")
    (folder / "c.png").unlink()
    found = index_folder(whole, folder)
    assert found.num_embedded == 2
    assert [path.name for path in found.paths] == ["a.png", "b.PNG", "new.png"]
    assert found.vectors == pytest.approx(whole.embed_images(found.paths), abs=1e-6)
    (kept,) = cache_folder().iterdir()
    assert kept.is_relative_to(tmp_path / "cache")
    kept.write_bytes(b"damaged")
    told: list[str] = []
    assert index_folder(whole, folder, say=told.append).num_embedded == 3
    assert "is made anew" in told[0]


def test_another_model_has_another_index(folder: Path, runs: Path, whole: VisionLanguageModel) -> None:
    import tclx

    plain = tclx.load("plain", runs_dir=runs)
    index_folder(whole, folder)
    assert index_folder(plain, folder).num_embedded == 3
    assert tclx.load(runs / RUN).image_identity == whole.image_identity != plain.image_identity


def test_results_are_in_the_order_of_the_similarity_or_of_the_matching_head(folder: Path, whole: VisionLanguageModel) -> None:
    index = index_folder(whole, folder)
    cosine = whole.score(index.paths, ["a red circle"])[:, 0]
    match = whole.score(index.paths, ["a red circle"], by="itm")[:, 0]
    query = Query(text="a red circle")
    plain = search(whole, query, index.paths, index.vectors, top=3, rerank=0)
    assert [one.found for one in plain] == [str(index.paths[number]) for number in np.argsort(-cosine)]
    again = search(whole, query, index.paths, index.vectors, top=3, rerank=None)
    assert [one.found for one in again] == [str(index.paths[number]) for number in np.argsort(-match)]
    assert [one.match for one in again] == pytest.approx(np.sort(match)[::-1], abs=1e-5)
    two = search(whole, query, index.paths, index.vectors, top=3, rerank=2)
    assert [one.match is None for one in two] == [False, False, True]


def test_a_picture_finds_itself_and_ranks_texts(folder: Path, runs: Path, tmp_path: Path) -> None:
    ended = Ended("search", RUN, folder, "--image", folder / "c.png", "--json", "--runs-dir", runs)
    found = json.loads(ended.out)["results"]
    assert found[0]["found"] == str(folder / "c.png")
    assert found[0]["similarity"] == pytest.approx(1, abs=1e-5)
    (tmp_path / "lines.txt").write_text("a red circle\nblue\n")
    ended = Ended("search", RUN, tmp_path / "lines.txt", "--image", folder / "c.png", "--runs-dir", runs)
    assert ended.code == 0, ended.err
    head, *rows = ended.out.splitlines()
    assert head.split() == ["text", "cosine", "match"]
    assert {row.split("  ")[0] for row in rows} == {"a red circle", "blue"}


def test_a_page_carries_its_pictures(folder: Path, runs: Path, tmp_path: Path) -> None:
    (folder / "torn.jpg").write_bytes(b"\xff\xd8\xff\xe0 torn")
    Image.new("RGB", (800, 400)).save(folder / "<b>.png")
    ended = Ended("search", RUN, folder, "two <dogs>", "--top", 4, "--html", tmp_path / "page.html", "--runs-dir", runs)
    assert ended.code == 0, ended.err
    assert "left out" in ended.err
    page = (tmp_path / "page.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 4
    assert "two &lt;dogs&gt;" in page
    assert "<b>.png" not in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["photos"], "a text or --image"),
        (["photos", "red", "--image", "photos/a.png"], "a text or --image"),
        (["photos", " "], "is empty"),
        (["gone", "red"], "no folder or file gone"),
        (["photos", "--image", "photos/a.png", "--rerank", "5"], "compares a picture with a text"),
        (["photos", "--image", "photos/notes.txt"], "notes.txt"),
        (["torn", "red"], "none of the 1 pictures in torn can be used"),
    ],
)
def test_what_cannot_be_searched_is_refused(
    runs: Path, folder: Path, arguments: list[Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    Path("torn").mkdir()
    Path("torn", "a.jpg").write_bytes(b"torn")
    ended = Ended("search", RUN, *arguments, "--runs-dir", runs)
    assert ended.code == 2
    assert message in ended.err


def test_reranking_without_a_matching_head_is_refused_when_asked_for(runs: Path, folder: Path) -> None:
    assert Ended("search", "plain", folder, "red", "--runs-dir", runs).code == 0
    ended = Ended("search", "plain", folder, "red", "--rerank", 5, "--runs-dir", runs)
    assert ended.code == 2
    assert "no matching head" in ended.err
