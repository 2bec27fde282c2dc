"""Promises of the table of sources: whatever a spec may name is opened, documented, and answers everything that is asked."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any, get_args

import datasets
import numpy as np
import pytest

from tclx.data.sources.mixture import single_sources
from tclx.data.sources.opening import open_source
from tclx.data.sources.source import Rows, SingleSource, Source
from tclx.spec.data import DataSource, SourceSection
from tclx.spec.schema import experiment_schema
from tests.data.small import encoded, experiment, photograph

DOCS = Path(__file__).resolve().parents[2] / "docs" / "data.md"
SECTIONS = {kind.model_fields["source"].annotation.__args__[0]: kind for kind in get_args(get_args(DataSource)[0])}


SAMPLES: dict[str, dict[str, Any]] = {
    "files": {"form": "pretrain", "files": ["rows.json"], "image_root": "."},
    "scenes": {"num_images": 3, "split": "val"},
    "shards": {"folder": "tars"},
    "folder": {"folder": "photos"},
    "datasets": {"name": "saved"},
    "mixture": {
        "sources": {
            "made": {"data": {"source": "scenes", "num_images": 1, "split": "val"}},
            "others": {"data": {"source": "scenes", "num_images": 2, "split": "val", "seed": 1}},
        }
    },
}
"""One small source of each kind: three rows, and three different images unless it says otherwise."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What samples that read files find: three images, `rows.json` and `twice.json`, in which the first image stands twice."""
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_bytes(encoded(photograph(32, 32, seed=number)))
    for name, numbers in (("rows.json", (0, 1, 2)), ("twice.json", (0, 0, 2))):
        rows = [{"image": f"{n}.jpg", "caption": [f"{place} {k}" for k in range(5)]} for place, n in enumerate(numbers)]
        (tmp_path / name).write_text(json.dumps(rows), encoding="utf-8")
    for inside in ("tars", "photos"):
        (tmp_path / inside).mkdir()
    for number in range(3):
        shutil.copy(tmp_path / f"{number}.jpg", tmp_path / "photos")
        (tmp_path / f"photos/{number}.txt").write_text("".join(f"{number} {k}\n" for k in range(5)))
    with tarfile.open(tmp_path / "tars" / "0.tar", "w") as tar:
        for number in range(3):
            tar.add(tmp_path / f"{number}.jpg", f"{number}.jpg")
            (tmp_path / "captions").write_text(json.dumps({"caption": [f"{number} {k}" for k in range(5)]}))
            tar.add(tmp_path / "captions", f"{number}.json")
    columns = {
        "image": [{"bytes": (tmp_path / f"{number}.jpg").read_bytes(), "path": None} for number in range(3)],
        "caption": [[f"{number} {k}" for k in range(5)] for number in range(3)],
    }
    features = {"image": datasets.Image(), "caption": datasets.List(datasets.Value("string"))}
    rows = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    datasets.DatasetDict({"train": rows, "val": rows}).save_to_disk(str(tmp_path / "saved"))
    return tmp_path


def sample(name: str, folder: Path, **changes: Any) -> DataSource:
    fields = {"source": name, **SAMPLES[name], **changes}
    if "files" in fields:
        fields |= {"files": [str(folder / file) for file in fields["files"]], "image_root": str(folder)}
    for key in {"folder", "name"} & {*fields}:
        fields[key] = str(folder / fields[key])
    section: DataSource = SECTIONS[name].model_validate_json(json.dumps(fields))
    return section


def asked(protocol: type) -> set[str]:
    return {part for part in vars(protocol) if not part.startswith("_")}


@pytest.mark.parametrize("name", SECTIONS)
def test_a_source_stands_in_docs_and_schema(name: str) -> None:
    assert f"source: {name}" in DOCS.read_text(encoding="utf-8")
    section = SECTIONS[name]
    assert issubclass(section, SourceSection)
    definition = experiment_schema()["$defs"][section.__name__]
    assert definition["properties"]["source"]["const"] == name
    assert definition["description"]
    assert all(field.get("description") for field in definition["properties"].values())


@pytest.mark.parametrize("name", SECTIONS)
def test_a_source_answers_all_that_is_asked(name: str, folder: Path) -> None:
    source = open_source(sample(name, folder), key="data.val")
    assert asked(Source) <= set(dir(source))
    assert (source.size.num_rows, source.size.num_images, source.size.num_captions) == (3, 3, 15)
    assert len(list(source.captions())) == 15
    assert all(image.read_bytes(max_pixels=10_000) for image in source.stored_images)
    assert not [*source.missing(all_needed=True), *source.warnings()]
    for one in single_sources(source, key="data.val").values():
        assert asked(SingleSource) <= set(dir(one))
        assert one.shares_with(one, names=("data.train", "data.val"))


@pytest.mark.parametrize("name", SECTIONS)
def test_rows_answer_all_that_is_asked(name: str, folder: Path) -> None:
    rows = open_source(sample(name, folder), key="data.val").rows(experiment())
    assert asked(Rows) <= set(dir(rows))
    assert (rows.num_rows, rows.image_index.tolist(), len(rows.captions(2))) == (3, [0, 1, 2], 5)
    image = rows.image(2)
    assert (image.shape, image.dtype) == ((32, 32, 3), np.uint8)


@pytest.mark.parametrize("key", ["data.train", "data.val", "data.test"])
@pytest.mark.parametrize("compat", [None, "official"])
def test_an_image_that_is_listed_twice_is_one_except_in_the_published_pretraining(
    key: str, compat: str | None, folder: Path
) -> None:
    rows = open_source(sample("files", folder, files=["twice.json"]), key=key).rows(experiment(compat=compat))
    by_row = compat == "official" and key == "data.train"
    assert rows.image_index.tolist() == ([0, 1, 2] if by_row else [0, 0, 1])


def test_the_published_fine_tuning_knows_an_image_that_is_listed_twice(folder: Path) -> None:
    listed = [{"image": f"{number}.jpg", "image_id": number, "caption": "a"} for number in (0, 0, 2)]
    (folder / "retrieval.json").write_text(json.dumps(listed), encoding="utf-8")
    source = sample("files", folder, form="retrieval", files=["retrieval.json"])
    assert open_source(source, key="data.train").rows(experiment(compat="official")).image_index.tolist() == [0, 0, 1]
