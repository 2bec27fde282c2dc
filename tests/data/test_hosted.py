"""Data sets of the hub and folders of `datasets`: fetched once, read by row, learned from as from files."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

datasets = pytest.importorskip("datasets", reason="the extra `datasets` is not installed")

from tclx.data import hosted  # noqa: E402 nothing here runs without the library
from tclx.data.annotations import read_annotations  # noqa: E402
from tclx.data.checking.check import check_data, parts_of  # noqa: E402
from tclx.data.checking.clean import Filters, clean  # noqa: E402
from tclx.data.facts import examine  # noqa: E402
from tclx.data.hosted import Place, StoredRow  # noqa: E402
from tclx.data.images import BadImage  # noqa: E402
from tclx.data.scenes import write_scenes  # noqa: E402
from tclx.data.shards.packing import PackSettings, pack  # noqa: E402
from tclx.data.sources.opening import open_source  # noqa: E402
from tclx.errors import InputError, TclxError  # noqa: E402
from tclx.spec.data import DatasetsSource, DataSpec  # noqa: E402
from tests.cli.test_cli import Ended  # noqa: E402
from tests.data.hub_of_data import NAME, HubOfData, serving  # noqa: E402
from tests.data.small import data_section, encoded, experiment, photograph  # noqa: E402
from tests.data.test_formats import gathered  # noqa: E402
from tests.train.test_shards import what_was_learned  # noqa: E402
from tests.train.toy import outcome, prepare, run, toy_spec  # noqa: E402

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OLDER = "f" * 40
FEATURES = {"image": datasets.Image(), "caption": datasets.List(datasets.Value("string"))}


def rows_of(*captions: list[str], **more: Any) -> Any:
    """A table of photographs with captions; what follows are columns, or features of columns."""
    table = {
        "image": [{"bytes": encoded(photograph(seed=number)), "path": f"{number}.jpg"} for number in range(len(captions))],
        "caption": list(captions),
    }
    values = {name: value for name, value in more.items() if isinstance(value, list)}
    features = {**FEATURES, **{name: datasets.Value("string") for name in values}}
    return datasets.Dataset.from_dict({**table, **values}, features=datasets.Features(features))


def written(folder: Path, **splits: Any) -> Path:
    """A repository of Parquet files, a split each."""
    for name, rows in splits.items():
        rows.to_parquet(str(folder / "data" / f"{name}-00000-of-00001.parquet"))
    return folder


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache of the test's own, for this process and those that it starts, and no hub."""
    yield at(tmp_path / "hf", monkeypatch)
    forget()


def forget() -> None:
    """What this process has open."""
    for kept in (hosted.opened, hosted._images, hosted._stamp):
        kept.cache_clear()


def at(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HOME", str(home))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", home / "datasets")
    forget()
    return home


def fetch(home: Path, hub: HubOfData, spec: dict[str, Any], folder: Path) -> subprocess.CompletedProcess[str]:
    """`tclx fetch`, as somebody with a network runs it."""
    path = folder / "fetched.yaml"
    path.write_text(json.dumps(spec))
    command = [sys.executable, "-m", "tclx.cli", "fetch", str(path)]
    environment = {**os.environ, "HF_HOME": str(home), "HF_ENDPOINT": hub.address, "HF_HUB_DISABLE_TELEMETRY": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def spec_of(**train: Any) -> dict[str, Any]:
    tree = experiment().model_dump(mode="json", exclude_unset=True)
    return {**tree, "data": {**tree["data"], "train": {"source": "datasets", "name": NAME, **train}}}


def section(**train: Any) -> DataSpec:
    return data_section(train={"source": "datasets", "name": NAME, **train})


def read(key: str = "data.train", **source: Any) -> list[tuple[str, list[str]]]:
    """Images with their captions."""
    return gathered(read_annotations(DatasetsSource(source="datasets", **source), key=key, training=key == "data.train"))


def refusal(**source: Any) -> str:
    with pytest.raises(TclxError) as caught:
        read(**source)
    return str(caught.value)


# Of the hub


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy's scenes as files, and as a repository."""
    folder = tmp_path_factory.mktemp("scenes")
    for split, source in (("train", toy_spec().data.train), ("validation", toy_spec().data.val)):
        path = write_scenes(folder / split, source)  # type: ignore[arg-type]
        listed = json.loads(path.replace(path.with_name("listed.json")).read_text())
        rows = [
            {"image": {"bytes": (folder / split / row["image"]).read_bytes(), "path": None}, **captions(row)} for row in listed
        ]
        made = datasets.Dataset.from_list(rows, features=datasets.Features(FEATURES))
        made.to_parquet(str(folder / "repository" / "data" / f"{split}-00000-of-00001.parquet"))
    return folder


def content(folder: Path, row: dict[str, Any]) -> bytes:
    return (folder / row["image"]).read_bytes()


def captions(row: dict[str, Any]) -> dict[str, list[str]]:
    return {"caption": row["caption"] if isinstance(row["caption"], list) else [row["caption"]]}


def test_a_data_set_is_fetched_once_and_learned_from_as_files_are(scenes: Path, tmp_path: Path, home: Path) -> None:
    def toy(source: Callable[[str, str], dict[str, Any]]) -> Any:
        splits = {"train": "train", "val": "validation", "test": "validation"}
        return toy_spec(**{f"data.{split}": source(split, name) for split, name in splits.items()}, **{"data.num_workers": 2})

    def files(_split: str, name: str) -> dict[str, Any]:
        return {"source": "files", "files": [str(scenes / name / "listed.json")], "image_root": str(scenes / name)}

    spec = toy(lambda split, name: {"source": "datasets", "name": NAME, **({"split": [name]} if split == "test" else {})})
    with serving(scenes / "repository", COMMIT) as hub:
        first = fetch(home, hub, spec.model_dump(mode="json", exclude_unset=True), tmp_path)
        assert first.returncode == 0, first.stderr
        assert f"{NAME}: is here now: a data set of the hub, commit {COMMIT[:12]}; rows: train" in first.stderr
        asked = len(hub.asked)
        again = fetch(home, hub, spec.model_dump(mode="json", exclude_unset=True), tmp_path)
        assert f"{NAME}: is here already" in again.stderr
        assert len(hub.asked) == asked
    # From here on nobody answers.
    (tmp_path / "spec.yaml").write_text(json.dumps(spec.model_dump(mode="json", exclude_unset=True)))
    planned = Ended("plan", tmp_path / "spec.yaml", "--json")
    assert planned.code == 0, planned.err
    described = json.loads(planned.out)[0]["data"]["data.train"]
    assert described["what"] == f"{NAME}: a data set of the hub, commit {COMMIT[:12]}"
    assert described["first_rows"][0]["image"] == "train/0"
    environment = {"HF_HOME": str(home), "HF_DATASETS_CACHE": str(home / "datasets")}
    learned = what_was_learned(outcome(run(prepare(tmp_path / "hosted", spec), environment=environment)))
    assert learned == what_was_learned(outcome(run(prepare(tmp_path / "files", toy(files)))))


def test_two_commits_are_told_apart_and_the_last_prepared_is_taken(tmp_path: Path, home: Path) -> None:
    for commit, caption in ((OLDER, "old"), (COMMIT, "new")):
        with serving(written(tmp_path / commit, train=rows_of([caption])), commit) as hub:
            fetched = fetch(home, hub, spec_of(revision=commit), tmp_path)
            assert fetched.returncode == 0, fetched.stderr
    assert read(name=NAME) == read(name=NAME, revision=COMMIT) == [("train/0", ["new"])]
    assert read(name=NAME, revision=OLDER) == [("train/0", ["old"])]
    assert "is not among the data sets" in refusal(name=NAME, revision="0" * 40)


def test_a_subset_is_named_where_there_are_several(tmp_path: Path, home: Path) -> None:
    card = "---\nconfigs:\n- {config_name: dogs, data_files: dogs/*}\n- {config_name: cats, data_files: cats/*}\n---\n"
    for name in ("dogs", "cats"):
        rows_of([f"of {name}"]).to_parquet(str(tmp_path / "repository" / name / "train.parquet"))
    (tmp_path / "repository" / "README.md").write_text(card)
    with serving(tmp_path / "repository", COMMIT) as hub:
        unnamed = fetch(home, hub, spec_of(), tmp_path)
        assert unnamed.returncode == 2
        assert re.search(r"fetched\.yaml:1:\d+: data\.train\.name: someone/Photos: .*dogs", unnamed.stderr)
        for name in ("dogs", "cats"):
            assert fetch(home, hub, spec_of(subset=name), tmp_path).returncode == 0
    assert read(name=NAME, subset="dogs") == [("train/0", ["of dogs"])]
    assert "has several subsets here: cats, dogs (say which: subset: cats)" in refusal(name=NAME)


def test_what_the_hub_does_not_have_is_said_in_a_line(tmp_path: Path, home: Path) -> None:
    with serving(written(tmp_path / "repository", train=rows_of(["a"])), COMMIT) as hub:
        unknown = fetch(home, hub, spec_of(name="someone/else"), tmp_path)
        assert unknown.returncode == 3
        assert "someone/else is not on this machine, and the hub has no data set of that name or commit" in unknown.stderr
        hub.address = "http://127.0.0.1:9"
        assert "the hub cannot be reached" in fetch(home, hub, spec_of(), tmp_path).stderr
    assert "`tclx fetch SPEC` fetches it" in refusal(name=NAME)


# Of a folder


def prepared(folder: Path) -> str:
    """Its name, once its rows can be read."""
    hosted.prepare(Place(str(folder), None, None), lambda _line: None)
    return str(folder)


def test_a_folder_is_prepared_too_and_one_that_was_saved_need_not_be(tmp_path: Path) -> None:
    rows = rows_of(["a dog", "one dog"], ["a cat"])
    folder = written(tmp_path / "repository", train=rows)
    assert "has no rows of it yet (`tclx fetch SPEC` prepares them)" in refusal(name=str(folder))
    expected = [("train/0", ["a dog", "one dog"]), ("train/1", ["a cat"])]
    assert read(name=prepared(folder)) == expected
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(str(tmp_path / "saved"))
    assert read(name=str(tmp_path / "saved")) == expected
    rows.select([1]).save_to_disk(str(tmp_path / "alone"))
    assert read(name=str(tmp_path / "alone")) == [("train/0", ["a cat"])]


def test_splits_are_those_of_the_rows_or_else_those_of_the_data_set(tmp_path: Path) -> None:
    own = rows_of(["a"], ["b"], ["c"], split=["val", "train", "test"])
    name = prepared(written(tmp_path / "own", test=own))
    assert read(name=name) == [("test/1", ["b"])]
    assert read("data.val", name=name) == [("test/0", ["a"])]
    other = prepared(written(tmp_path / "other", train=rows_of(["a"]), validation=rows_of(["b"], ["c"])))
    assert read("data.val", name=other) == [("validation/0", ["b"]), ("validation/1", ["c"])]
    assert read(name=other, split=("validation",), limit=1) == [("validation/0", ["b"])]
    message = "no rows of the split test, testing; they have validation (2), train (1)"
    with pytest.raises(InputError) as caught:
        read("data.test", name=other)
    assert message in str(caught.value)


def test_parts_share_nothing_and_the_same_rows_are_warned_of(tmp_path: Path) -> None:
    name = prepared(written(tmp_path / "all", train=rows_of(*([f"number {number}"] for number in range(20)))))
    train, val = read(name=name, part=(0, 0.7)), read(name=name, part=(0.7, 1))
    assert len(train) + len(val) == 20
    assert not {image for image, _ in train} & {image for image, _ in val}
    source = {"source": "datasets", "name": name, "split": ["train"]}
    apart = data_section(train={**source, "part": [0, 0.7]}, val={**source, "part": [0.7, 1]})
    assert not examine(apart).warnings
    (warning,) = examine(data_section(train=source, val=source)).warnings
    assert "20 of 20 images of data.val are in data.train as well" in warning


def test_columns_are_found_or_named(tmp_path: Path) -> None:
    rows = rows_of(["x"], ["y"]).rename_columns({"image": "picture", "caption": "alt"})
    rows = rows.add_column("sentence", [{"raw": "one", "id": 1}, {"raw": "two", "id": 2}])
    name = prepared(written(tmp_path / "named", train=rows))
    assert read(name=name, caption_columns=("alt",)) == [("train/0", ["x"]), ("train/1", ["y"])]
    assert read(name=name, caption_columns=("sentence.raw",))[1] == ("train/1", ["two"])
    assert "`colour`, which `caption_columns` names, is missing" in refusal(name=name, caption_columns=("colour",))
    assert "`alt`, which `image_column` names, holds no images" in refusal(name=name, image_column="alt")
    image = {"bytes": encoded(photograph()), "path": None}
    two = {"picture": datasets.Image(), "other": datasets.Image(), "alt": datasets.Value("string")}
    made = datasets.Dataset.from_list([{"picture": image, "other": image, "alt": "a"}], features=datasets.Features(two))
    several = prepared(written(tmp_path / "several", train=made))
    assert "several columns of images: picture, other (say which: image_column: picture)" in refusal(name=several)
    addresses = datasets.Dataset.from_dict({"image_url": ["http://x/1.jpg"], "caption": ["a"]})
    message = "has no column of images: image_url, caption (it names web addresses: fetch the images"
    assert message in refusal(name=prepared(written(tmp_path / "addresses", train=addresses)))


def test_images_may_lie_beside_the_rows_and_what_is_no_image_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "train").mkdir(parents=True)
    Image.fromarray(photograph(40, 90)).save(folder / "train" / "a.png")
    (folder / "train" / "b.png").write_bytes(b"no image")
    lines = [{"file_name": "a.png", "text": "a"}, {"file_name": "b.png", "text": "b"}]
    (folder / "train" / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    name = prepared(folder)
    source = open_source(section(name=name).train, key="data.train")
    rows = source.rows(experiment())
    assert rows.image(0).shape == (40, 90, 3)
    with pytest.raises(BadImage, match=r"b\.png: is not an image|train\[1\]: is not an image"):
        rows.image(1)
    assert [image for image, _ in read(name=name, min_side=40)] == ["train/0", "train/1"]  # one that tells no size stays
    assert [image for image, _ in read(name=name, max_aspect=2)] == ["train/1"]
    empty = rows_of(["a"], ["b"]).map(lambda row, number: {"image": row["image"] if number else None}, with_indices=True)
    empty.save_to_disk(str(tmp_path / "empty"))
    row = StoredRow(Place(str(tmp_path / "empty"), None, None), None, "train/0")
    assert row.stamp() is not None
    with pytest.raises(BadImage, match=r"empty: train\[0\]: the row holds no image"):
        row.read_bytes(max_pixels=10_000)


def test_it_is_checked_packed_and_written_out(tmp_path: Path) -> None:
    rows = rows_of(["a dog", "one dog"], ["a cat"], ["a dog again"])
    rows = datasets.concatenate_datasets([rows, rows.select([0])])
    name = prepared(written(tmp_path / "repository", train=rows))
    data = section(name=name)
    checked = check_data(data, num_processes=2)
    assert not checked.bad
    assert checked.name(3) == f"{name}: train[3]"
    with pytest.raises(InputError, match="is a data set of `datasets`: a list of files cannot name images in it"):
        clean(checked, tmp_path / "cleaned", filters=Filters())
    spec = experiment(data={"train": {"source": "datasets", "name": name}})
    packed = pack(spec, "train", tmp_path / "packed", settings=PackSettings())
    assert packed.num_images == 4
    assert Ended("data", "import", f"datasets:{name}", "-o", tmp_path / "out", "--split", "train").code == 0
    listed = json.loads((tmp_path / "out" / "train.json").read_text())
    assert [row["caption"] for row in listed] == [["a dog", "one dog"], ["a cat"], ["a dog again"], ["a dog", "one dog"]]
    assert (tmp_path / "out" / "images" / listed[1]["image"]).read_bytes() == encoded(photograph(seed=1))
    assert len(parts_of(data, {})[0].images) == 4


# What the spec says


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"revision": "main"}, "a commit of 40 hexadecimal digits"),
        ({"revision": COMMIT, "name": "/folder"}, "`revision` is a commit on the hub, and `name` is a folder"),
        ({"form": "retrieval"}, "captions"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, source: dict[str, Any], message: str) -> None:
    (tmp_path / "spec.yaml").write_text(json.dumps(spec_of(**source)))
    found = Ended("plan", tmp_path / "spec.yaml")
    assert found.code == 2
    assert message in found.err


def test_without_the_library_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install 'tclx[datasets]'" in refusal(name=NAME)
