"""`tclx data import`: any format as any other, and images out of tables that hold them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest

from tclx.data.annotations import read_annotations
from tclx.data.importing import Target, import_data
from tclx.errors import InputError
from tests.cli.test_cli import Ended
from tests.data.small import encoded, files_source, photograph
from tests.data.test_formats import CAPTIONS, FORMATS, IMAGES, ROWS, gathered, karpathy, source_of

TARGETS = get_args(Target)


@pytest.mark.parametrize("target", TARGETS)
def test_every_format_comes_back_from_every_other(tmp_path: Path, target: Target) -> None:
    if target == "parquet":
        pytest.importorskip("pyarrow", reason="the extra `parquet` is not installed")
    for number, name in enumerate(("CSV", "COCO", "JSON list, a row an image")):
        (written,) = import_data(source_of(tmp_path, FORMATS[name]()), tmp_path / str(number), target=target)
        read = read_annotations(source_of(tmp_path, written.path.read_bytes()), key="data.train", training=True)
        assert [(image, sorted(texts)) for image, texts in gathered(read)] == [
            (image, sorted(texts)) for image, texts in zip(IMAGES, CAPTIONS, strict=True)
        ]
        assert (written.num_images, written.num_captions, written.num_flattened) == (len(IMAGES), len(ROWS), 0)


def test_each_split_gets_a_file(tmp_path: Path) -> None:
    written = import_data(source_of(tmp_path, karpathy()), tmp_path / "out", target="csv")
    assert {one.path.name: one.num_images for one in written} == {"train.csv": 3, "restval.csv": 1, "val.csv": 1, "test.csv": 1}
    only = import_data(source_of(tmp_path, karpathy(), split=("val",)), tmp_path / "only", target="json")
    assert [one.path.name for one in only] == ["val.json"]
    mixed = '{"image": "a", "caption": "x", "split": "train"}\n{"image": "b", "caption": "x"}\n'
    with pytest.raises(InputError, match="1 rows have no split, and others have"):
        import_data(source_of(tmp_path, mixed), tmp_path / "mixed", target="json")


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    source = source_of(tmp_path, FORMATS["CSV"]())
    (written,) = import_data(source, tmp_path / "out", target="json")
    before = written.path.read_bytes()
    with pytest.raises(InputError, match=r"captions.json exists and is not overwritten \(choose another folder\)"):
        import_data(source, tmp_path / "out", target="coco")
    assert written.path.read_bytes() == before


def test_what_a_line_cannot_hold_is_flattened_and_counted(tmp_path: Path) -> None:
    content = json.dumps([{"image": "a.jpg", "caption": ["one\ntwo", "three\tfour", "five"]}])
    for target in ("tsv", "flickr"):
        (written,) = import_data(source_of(tmp_path, content), tmp_path / target, target=target)
        read = read_annotations(source_of(tmp_path, written.path.read_bytes()), key="data.train", training=True)
        assert list(read.captions) == ["one two", "three four", "five"]
        assert written.num_flattened == 2


PHOTOS = [encoded(photograph(seed=number), kind) for number, kind in enumerate(("JPEG", "PNG", "JPEG"))]


def images_in_a_table() -> dict[str, list[Any]]:
    held = [{"bytes": photo, "path": path} for photo, path in zip(PHOTOS, ("x/a.jpg", None, "../../c"), strict=True)]
    return {"image": held, "caption": [["a", "b"], ["c"], ["d"]], "size": [1, 2, 3]}


def test_images_are_taken_out_of_a_parquet_table(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="the extra `parquet` is not installed")
    from pyarrow import parquet

    source = files_source(tmp_path, "", form="captions")
    parquet.write_table(pyarrow.table(images_in_a_table()), source.files[0])
    with pytest.raises(InputError, match="`tclx data import` takes them out"):
        read_annotations(source, key="data.train", training=True)
    (written,) = import_data(source, tmp_path / "out", target="json")
    rows = json.loads(written.path.read_text())
    assert [row["image"] for row in rows] == ["000000000-a.jpg", "000000001.png", "000000002-c.jpg"]
    assert [row["caption"] for row in rows] == [["a", "b"], ["c"], ["d"]]
    assert [Path(str(written.image_root), row["image"]).read_bytes() for row in rows] == PHOTOS
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"images", "captions.json"}


def test_an_image_that_a_table_names_by_its_path_is_read_from_there(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="the extra `parquet` is not installed")
    from pyarrow import parquet

    source = files_source(tmp_path, "", form="captions")
    parquet.write_table(pyarrow.table({"image": [{"bytes": None, "path": "a.jpg"}], "text": ["x"]}), source.files[0])
    assert gathered(read_annotations(source, key="data.train", training=True)) == [("a.jpg", ["x"])]


def test_a_folder_that_datasets_saved_is_read(tmp_path: Path) -> None:
    """In the layout of `Dataset.save_to_disk`: Arrow streams, named in state.json; of a DatasetDict a folder a split."""
    pyarrow = pytest.importorskip("pyarrow", reason="the extra `parquet` is not installed")
    (tmp_path / "saved" / "train").mkdir(parents=True)
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["train"]}')
    files = ["data-00000-of-00001.arrow"]
    state = {"_data_files": [{"filename": name} for name in files], "_split": "train"}
    (tmp_path / "saved/train/state.json").write_text(json.dumps(state))
    table = pyarrow.table(images_in_a_table())
    with (
        pyarrow.OSFile(str(tmp_path / "saved/train" / files[0]), "wb") as file,
        pyarrow.ipc.new_stream(file, table.schema) as out,
    ):
        out.write_table(table)
    done = Ended("data", "import", tmp_path / "saved", "-o", tmp_path / "out", "--to", "csv")
    assert "train.csv: 3 images, 4 captions; image_root: " in done.err
    assert sorted(path.read_bytes() for path in (tmp_path / "out/images").iterdir()) == sorted(PHOTOS)
    (tmp_path / "saved/train" / files[0]).unlink()
    with pytest.raises(InputError, match="was saved by `datasets` and cannot be read"):
        import_data(
            files_source(tmp_path, "", form="captions").model_copy(update={"files": (str(tmp_path / "saved"),)}),
            tmp_path / "x",
            target="csv",
        )


def test_the_command_offers_every_format(tmp_path: Path) -> None:
    from tclx.cli.data import ImportFormat

    assert tuple(ImportFormat) == TARGETS
    (tmp_path / "c.csv").write_text("file,text\na.jpg,x\n")
    tree = json.loads(Ended("data", "import", tmp_path / "c.csv", "-o", tmp_path / "out", "--json").out)
    assert tree[0]["num_captions"] == 1
