"""The same images and captions in every format that people have them in."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tclx.data.annotations import Annotations, read_annotations
from tclx.data.dataset import train_batches
from tclx.data.facts import examine
from tclx.data.importing import Target, import_data
from tclx.data.selected import place_of
from tclx.data.sources.opening import open_source
from tclx.data.tokenizer import build_tokenizer
from tclx.errors import InputError
from tclx.spec.data import FilesSource, FolderSource
from tests.data.small import data_section, equal, experiment, files_source, photograph

CAPTIONS = [
    ["a dog, running fast", 'a "quoted" dog'],
    ["ein Hündchen 日本 🙂"],
    ["a cat; on a mat | asleep", "two cats", "a cat's tail"],
    ["birds\u2028over water", "[not a list]"],
]
IMAGES = [f"photos/übung {number}.jpg" for number in range(len(CAPTIONS))]
ROWS = [(image, caption) for image, captions in zip(IMAGES, CAPTIONS, strict=True) for caption in captions]


def table(delimiter: str, *, header: tuple[str, ...] | None = ("image", "caption"), end: str = "\n") -> str:
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, lineterminator=end)
    writer.writerows([header, *ROWS] if header else ROWS)
    return text.getvalue()


def quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def plain(delimiter: str, *, header: str = "") -> str:
    """As programs write it that know no quotes."""
    return header + "".join(f"{image}{delimiter}{caption}\n" for image, caption in ROWS)


def json_lines(**names: str) -> str:
    image, caption = names.get("image", "image"), names.get("caption", "caption")
    return "".join(json.dumps({image: one, caption: text}, ensure_ascii=False) + "\n" for one, text in ROWS)


def coco() -> str:
    numbers = [(IMAGES.index(image) + 7, caption) for image, caption in ROWS]
    annotations = [{"id": place, "image_id": number, "caption": caption} for place, (number, caption) in enumerate(numbers)]
    images = [{"id": number + 7, "file_name": image} for number, image in enumerate(IMAGES)]
    return json.dumps({"info": {}, "images": images, "annotations": annotations[::2] + annotations[1::2]})


def karpathy() -> str:
    images = [
        {"filepath": "photos", "filename": image.removeprefix("photos/"), "split": "train", "sentences": sentences}
        for image, sentences in zip(
            IMAGES, [[{"raw": text, "tokens": []} for text in texts] for texts in CAPTIONS], strict=True
        )
    ]
    images[1]["split"] = "restval"
    others = [{**images[0], "filename": "other.jpg", "split": split} for split in ("val", "test")]
    return json.dumps({"dataset": "x", "images": [*images, *others]})


FORMATS: dict[str, Callable[[], str | bytes]] = {
    "JSON list, a row a caption": lambda: json.dumps([{"image": image, "caption": caption} for image, caption in ROWS]),
    "JSON list, a row an image": lambda: json.dumps(
        [{"image": image, "caption": captions} for image, captions in zip(IMAGES, CAPTIONS, strict=True)], indent=1
    ),
    "JSON Lines": json_lines,
    "JSON Lines, other names": lambda: json_lines(image="file_name", caption="text"),
    "JSON Lines, BOM and CRLF": lambda: b"\xef\xbb\xbf" + json_lines().replace("\n", "\r\n").encode(),
    "CSV": lambda: table(","),
    "CSV, open_clip's names": lambda: table(",", header=("filepath", "title")),
    "CSV, other columns": lambda: (
        "id,Image Path,split,caption\n"
        + "".join(
            f'{number},{image},train,"{caption.replace(chr(34), chr(34) * 2)}"\n'
            for number, (image, caption) in enumerate(ROWS)
        )
    ),
    "CSV, BOM and CRLF": lambda: b"\xef\xbb\xbf" + table(",", end="\r\n").encode(),
    "CSV, UTF-16 as Excel writes it": lambda: table(",").encode("utf-16"),
    "CSV, no header": lambda: table(",", header=None),
    "CSV, semicolons": lambda: table(";"),
    "CSV, a list in a cell": lambda: (
        "filename,raw\n"
        + "".join(
            f"{image},{quoted(json.dumps(captions, ensure_ascii=False))}\n"
            for image, captions in zip(IMAGES, CAPTIONS, strict=True)
        )
    ),
    "TSV": lambda: table("\t"),
    "TSV without quotes": lambda: plain("\t", header="image\tcaption\n"),
    "TSV, no header, empty lines": lambda: plain("\t").replace("\n", "\n\n"),
    "COCO": coco,
    "Karpathy": karpathy,
    "Flickr's token text": lambda: "".join(f"{image}#{number}\t{caption}\n" for number, (image, caption) in enumerate(ROWS)),
}


def source_of(folder: Path, content: str | bytes, **keys: Any) -> Any:
    source = files_source(folder, "", form=keys.pop("form", "captions"))
    Path(source.files[0]).write_bytes(content.encode() if isinstance(content, str) else content)
    return source.model_copy(update=keys)


def gathered(read: Annotations) -> list[tuple[str, list[str]]]:
    captions = [[read.captions[number] for number in read.captions_of(row)] for row in range(read.num_rows)]
    return [(read.images[image], texts) for image, texts in zip(read.image_of_row.tolist(), captions, strict=True)]


def refusal(folder: Path, content: str | bytes, **keys: Any) -> str:
    with pytest.raises(InputError) as caught:
        read_annotations(source_of(folder, content, **keys), key="data.train", training=True)
    return str(caught.value)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_says_the_same(tmp_path: Path, name: str) -> None:
    read = read_annotations(source_of(tmp_path, FORMATS[name]()), key="data.train", training=True)
    wanted = [(image, sorted(captions)) for image, captions in zip(IMAGES, CAPTIONS, strict=True)]
    assert [(image, sorted(captions)) for image, captions in gathered(read)] == wanted
    if name != "COCO":  # whose annotations stand in an order of their own
        assert [captions for _, captions in gathered(read)] == CAPTIONS
    assert read.image_index.tolist() == list(range(len(IMAGES)))


def test_parquet_says_the_same(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="the extra `parquet` is not installed")
    from pyarrow import parquet

    source = source_of(tmp_path, "")
    columns = {"url": ["x"] * len(ROWS), "file_name": [image for image, _ in ROWS], "caption": [text for _, text in ROWS]}
    parquet.write_table(pyarrow.table(columns), source.files[0], row_group_size=3)
    read = read_annotations(source, key="data.train", training=True)
    assert gathered(read) == list(zip(IMAGES, CAPTIONS, strict=True))
    parquet.write_table(pyarrow.table({"image": [{"bytes": b"x", "path": "a"}], "caption": ["x"]}), source.files[0])
    with pytest.raises(InputError, match=r"rows\[0\]: `image` is an object"):
        read_annotations(source, key="data.train", training=True)


# A folder of images


def folder_source(folder: Path, **keys: Any) -> FolderSource:
    return FolderSource.model_validate_json(json.dumps({"source": "folder", "folder": str(folder), **keys}))


def photos(folder: Path, names: list[str] = IMAGES) -> None:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photograph(seed=number)).save(folder / name, "JPEG")


def test_a_folder_has_captions_in_text_files_beside_its_images(tmp_path: Path) -> None:
    photos(tmp_path)
    for image, captions in zip(IMAGES, CAPTIONS, strict=True):
        (tmp_path / image).with_suffix(".txt").write_text("\n".join(captions).replace("\u2028", " ") + "\n\n", encoding="utf-8")
    photos(tmp_path, ["photos/nothing.PNG", ".hidden.jpg", "photos/._side.jpg", "__MACOSX/x.jpg"])
    (tmp_path / "readme.txt").write_text("no caption")
    source = folder_source(tmp_path)
    read = read_annotations(source, key="data.train", training=True)
    without = [[text.replace("\u2028", " ") for text in captions] for captions in CAPTIONS]
    assert gathered(read) == list(zip(IMAGES, without, strict=True))
    assert read.left_out["without a caption"] == 1
    found = examine(data_section(train=source.model_dump(mode="json")))
    assert "data.train: 1 images without a caption are left out" in found.warnings


def test_a_folder_has_one_table_for_all_its_images_as_datasets_writes_it(tmp_path: Path) -> None:
    photos(tmp_path)
    (tmp_path / "metadata.csv").write_text(table(",", header=("file_name", "text")), encoding="utf-8")
    assert gathered(read_annotations(folder_source(tmp_path), key="data.train", training=True)) == list(
        zip(IMAGES, CAPTIONS, strict=True)
    )


def test_a_folder_that_img2dataset_wrote_is_read(tmp_path: Path) -> None:
    photos(tmp_path, ["00000/000000000.jpg", "00000/000000001.jpg"])
    (tmp_path / "00000/000000000.json").write_text(json.dumps({"caption": "a dog", "url": "x", "key": "000000000"}))
    (tmp_path / "00000/000000000.txt").write_text("a dog")
    (tmp_path / "00000/000000001.json").write_text(json.dumps({"caption": "a cat"}))
    (tmp_path / "00000_stats.json").write_text("{}")
    read = gathered(read_annotations(folder_source(tmp_path), key="data.train", training=True))
    assert read == [("00000/000000000.jpg", ["a dog"]), ("00000/000000001.jpg", ["a cat"])]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds no images (files that end with .jpg, .jpeg"),
        ({"a.jpg": b"x"}, "holds 1 images, and no captions (write them into a text file beside each image"),
        ({"a.jpg": b"x", "a.txt": b"\xff\xfe\xff"}, "a.txt cannot be read: it is not UTF-8 text"),
        ({"a.jpg": b"x", "a.json": b"{"}, "a.json: it is damaged"),
        ({"a.jpg": b"x", "a.json": b'{"caption": 3}'}, "image[0]: `caption[0]` is a number"),
        ({"metadata.csv": b"id,label\n1,2\n"}, "names no columns for image and caption: id, label"),
    ],
)
def test_a_folder_that_does_not_say_enough_is_refused(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_annotations(folder_source(tmp_path), key="data.train", training=True)
    assert message in str(caught.value)


# What is refused


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "image,caption\na.jpg,x\nb.jpg,one, two\n",
            "rows.json:3: row 1: has 3 values, and there are 2 columns (image, caption)",
        ),
        ('image,caption\na.jpg,"x\nb.jpg,"y"\n', "rows.json:2: not valid CSV: ',' expected after '\"'"),
        ('image,caption\na.jpg,"x\nb.jpg,y\n', "rows.json:2: not valid CSV: unexpected end of data"),
        ("image,image,caption\na,b,c\n", "rows.json:1: two columns are called 'image'"),
        ("image,caption\n,x\n", "rows.json:2: row 0: `image` is empty"),
        (
            "a,b\n1,2\n",
            "is CSV whose first line names no columns for image and caption: a, b (name them there, or as `image_column`",
        ),
        ("image,path,x\na,b,c\n", "names no columns for image and caption: image, path, x"),
        ("filename,path,caption\na,b,c\n", "row 0: `image` is missing"),
        ("a.jpg,b.jpg\n", "names no columns for image and caption: a.jpg, b.jpg"),
        ("a dog\thttp://x.org/a.jpg\n", "holds web addresses, no images, as CC3M and CC12M are published (download them"),
        ("image\tcaption\na.jpg\tx\ty\n", "rows.json:2: row 0: has 3 values"),
        ("a.jpg#0\tx\nb.jpg x\n", "rows.json:2: row 1: is not `NAME#NUMBER`, a tab and a caption"),
        (b"image,caption\na.jpg,\xe9t\xe9\n", "rows.json:2: is not UTF-8 text"),
        (b"image,caption\na.jpg,\xe2\x82", "is not UTF-8 text"),
        (
            '{"images": [{"id": 1, "file_name": "a"}], "annotations": [{"image_id": 1, "bbox": []}]}',
            "annotations[0] has no `caption`",
        ),
        ('{"images": [], "annotations": [{"image_id": 1, "caption": "x"}]}', "annotations name image 1, which is not among"),
        ('{"images": [{"id": 1}, {"id": 1}], "annotations": []}', "images[1] has the `id` of another: 1"),
        ('{"images": [{"id": 1}], "annotations": [{"image_id": 1, "caption": "x"}]}', "images[0]: `image` is null"),
        ('{"images": [{"filename": "a", "sentences": [{}]}]}', "images[0]: `sentences` is no list of objects with `raw`"),
        ('{"images": 3, "annotations": 4}', "row 0: `image` is missing"),
        ('{"images": [3], "annotations": []}', "`images` is no list of objects"),
        ('{"image": "a", "caption": "x"}\n{"image": "b", "caption"', "rows.json:2:25: not valid JSON"),
        ('{"image": "a", "caption": "x"}\n[1]\n', "rows.json:2: row 1: is a list"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_its_place(tmp_path: Path, content: str | bytes, message: str) -> None:
    assert message in refusal(tmp_path, content)


def test_columns_are_named_in_the_spec(tmp_path: Path) -> None:
    content = "Bild;Deutsch;English\n" + "".join(f"{number}.jpg;ein {number};a {number}\n" for number in range(3))
    source = source_of(tmp_path, content, image_column="Bild", caption_columns=("English", "Deutsch"))
    read = read_annotations(source, key="data.train", training=True)
    assert gathered(read) == [(f"{number}.jpg", [f"a {number}", f"ein {number}"]) for number in range(3)]
    without_header = source_of(tmp_path, "7,a.jpg,x\n8,b.jpg,y\n", image_column="2", caption_columns=("3", "1"))
    assert gathered(read_annotations(without_header, key="data.train", training=True)) == [
        ("a.jpg", ["x", "7"]),
        ("b.jpg", ["y", "8"]),
    ]
    message = refusal(tmp_path, '{"image": "a", "text": "x"}\n', caption_columns=("title",))
    assert "row 0: `title`, which `caption_columns` names, is missing (there are: image, text)" in message


def test_numbered_captions_are_all_of_an_image(tmp_path: Path) -> None:
    content = "image,caption_1,caption_2,caption_3\na.jpg,one,two,\nb.jpg,three,,four\n"
    read = read_annotations(source_of(tmp_path, content), key="data.train", training=True)
    assert gathered(read) == [("a.jpg", ["one", "two"]), ("b.jpg", ["three", "four"])]


def test_the_forms_of_tasks_are_read_from_tables_too(tmp_path: Path) -> None:
    content = "image,sentence,label\na.jpg,a dog runs,entailment\nb.jpg,a cat,neutral\n"
    read = read_annotations(source_of(tmp_path, content, form="entailment"), key="data.train", training=True)
    assert list(read.captions) == ["a dog runs", "a cat"]
    lines = source_of(tmp_path, '{"image": "a", "question": "what?", "answer": ["dog"], "question_id": 1}\n', form="vqa")
    assert read_annotations(lines, key="data.train", training=True).num_rows == 1


def test_the_retrieval_form_has_a_row_a_caption_from_every_format(tmp_path: Path) -> None:
    for name in ("CSV", "Karpathy", "Flickr's token text", "JSON Lines"):
        read = read_annotations(source_of(tmp_path, FORMATS[name](), form="retrieval"), key="data.train", training=True)
        own = [caption for image, caption in gathered(read) if "other" not in image]
        assert own == [[caption] for _, caption in ROWS]
        assert len(np.unique(read.image_index)) == len(np.unique(read.image_of_row))


# Splits and parts


def test_splits_are_those_of_the_file(tmp_path: Path) -> None:
    source = source_of(tmp_path, karpathy())
    for key, count in (("data.train", 4), ("data.val", 1), ("data.test", 1)):
        assert read_annotations(source, key=key, training=key == "data.train").num_rows == count
    restval = source.model_copy(update={"split": ("restval",)})
    assert read_annotations(restval, key="data.val", training=False).num_rows == 1
    message = refusal(tmp_path, karpathy(), split=("tset",))
    assert "no rows of the split tset; they have train (3), restval (1), val (1), test (1) (name one as `split`)" in message


def test_parts_are_stable_never_overlap_and_leave_nothing_out(tmp_path: Path) -> None:
    rows = [(f"{number}.jpg", f"caption {part}") for number in range(500) for part in range(2)]
    content = "image,caption\n" + "".join(f"{image},{caption}\n" for image, caption in rows)
    parts = []
    for part in ((0.0, 0.8), (0.8, 0.9), (0.9, 1.0)):
        read = read_annotations(source_of(tmp_path, content, part=part), key="data.train", training=True)
        assert set(map(len, (captions for _, captions in gathered(read)))) == {2}
        parts.append(set(read.images))
    assert sum(map(len, parts)) == len(set.union(*parts)) == 500
    assert [len(part) for part in parts] == pytest.approx([400, 50, 50], abs=25)
    # What a path hashes to is in people's runs: it must never change.
    assert [round(place_of(name), 6) for name in ("0.jpg", "photos/übung.jpg", "")] == [0.296748, 0.710473, 0.893168]
    more = content + "500.jpg,x\n"  # of more data every old image stays where it was
    assert set(read_annotations(source_of(tmp_path, more, part=(0.0, 0.8)), key="x", training=True).images) >= parts[0]


def test_parts_of_the_same_file_share_nothing_and_are_not_warned_of(tmp_path: Path) -> None:
    photos(tmp_path, [f"{number}.jpg" for number in range(40)])
    content = "image,caption\n" + "".join(f"{number}.jpg,a {number}\n" for number in range(40))
    source = source_of(tmp_path, content).model_dump(mode="json")
    apart = data_section(train={**source, "part": [0, 0.7]}, val={**source, "part": [0.7, 1]})
    assert examine(apart).warnings == ()
    overlapping = data_section(train={**source, "part": [0, 0.7]}, val={**source, "part": [0.5, 1]})
    assert "images of data.val are in data.train as well" in examine(overlapping).warnings[0]


def test_a_limit_takes_the_first_images_with_the_captions_that_follow_them(tmp_path: Path) -> None:
    read = read_annotations(source_of(tmp_path, FORMATS["CSV"](), limit=2), key="data.train", training=True)
    assert gathered(read) == list(zip(IMAGES, CAPTIONS, strict=True))[:2]


def sized(folder: Path) -> dict[str, Any]:
    """Images of four shapes, one that is none, and one that is not there."""
    for name, size in {"a": (64, 64), "b": (63, 200), "c": (64, 257), "d": (64, 256)}.items():
        Image.new("RGB", size).save(folder / f"{name}.png")
    (folder / "e.png").write_bytes(b"no image")
    rows = "".join(f"{name}.png,{text} {name}\n" for text in ("a", "the") for name in "abcdef")
    return source_of(folder, f"image,caption\n{rows}").model_dump(mode="json")


@pytest.mark.parametrize(
    ("wanted", "kept", "left_out"),
    [
        ({}, "abcdef", {}),
        ({"min_side": 64}, "acdef", {"below `min_side`": 1}),
        ({"max_aspect": 4}, "abdef", {"above `max_aspect`": 1}),
        ({"min_side": 64, "max_aspect": 4, "limit": 2}, "ad", {"below `min_side`": 1, "above `max_aspect`": 1}),
    ],
)
def test_images_of_another_size_are_left_out_with_all_they_have(
    tmp_path: Path, wanted: dict[str, Any], kept: str, left_out: dict[str, int]
) -> None:
    data = data_section(train={**sized(tmp_path), **wanted}, bad_images={"policy": "skip"})
    assert isinstance(data.train, FilesSource)
    read = read_annotations(data.train, key="data.train", training=True)
    texts = ("a", "the") if data.train.limit is None else ("a",)  # nothing is read after the first image too many
    assert gathered(read) == [(f"{name}.png", [f"{text} {name}" for text in texts]) for name in kept]
    assert {cause: count for cause, count in read.left_out.items() if count} == left_out
    found = examine(data, some_may_be_missing=True).warnings
    for cause, count in left_out.items():
        assert f"data.train: {count} images {cause} are left out" in found


def test_where_no_image_is_large_enough_that_is_said(tmp_path: Path) -> None:
    source = sized(tmp_path) | {"min_side": 100}
    Path(source["files"][0]).write_text("image,caption\na.png,a\nb.png,b\nc.png,c\nd.png,d\n")
    with pytest.raises(InputError, match="no image is left: 4 are below `min_side`"):
        examine(data_section(train=source))


# Training


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photos")
    photos(path, [f"{number}.jpg" for number in range(24)])
    return path


def test_every_format_gives_the_same_first_batch(folder: Path, tmp_path: Path) -> None:
    """As ALBEF's JSON, which the published code reads."""
    texts = {f"{number}.jpg": [f"photo {number} of a dog", f"number {number}"] for number in range(24)}
    rows = [(image, caption) for image, captions in texts.items() for caption in captions]
    contents = {
        "albef": json.dumps([{"image": image, "caption": captions} for image, captions in texts.items()]),
        "csv": "filepath,title\n" + "".join(f"{image},{caption}\n" for image, caption in rows),
        "token": "".join(f"{image}#{place % 2}\t{caption}\n" for place, (image, caption) in enumerate(rows)),
        "lines": "".join(json.dumps({"file_name": image, "text": caption}) + "\n" for image, caption in rows),
        "karpathy": json.dumps(
            {
                "images": [
                    {"filename": image, "split": "train", "sentences": [{"raw": text} for text in captions]}
                    for image, captions in texts.items()
                ]
            }
        ),
    }
    batches = {}
    for name, content in contents.items():
        train = source_of(tmp_path, content, form="pretrain" if name == "albef" else "captions")
        spec = experiment(data={"train": {**train.model_dump(mode="json"), "image_root": str(folder)}})
        tokenizer = build_tokenizer(spec.data.tokenizer, [caption for _, caption in rows])
        batches[name] = next(train_batches(spec, tokenizer=tokenizer))
    assert all(equal(batches["albef"], batch) for batch in batches.values())


def test_images_that_are_elsewhere_are_told_for_a_folder_with_a_table(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text("file_name,text\nphotos\\a.jpg,x\n")
    with pytest.raises(InputError, match=r"data.train.folder: none of 1 images looked for is there.*backslashes"):
        examine(data_section(train={"source": "folder", "folder": str(tmp_path)}))


def test_docs_name_every_format(tmp_path: Path) -> None:
    docs = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    for name, content in FORMATS.items():
        told = read_annotations(source_of(tmp_path, content()), key="data.train", training=True).formats[0]
        assert told.removeprefix("a ").removesuffix(" with semicolons") in docs, name


def test_real_captions_give_the_same_first_batch_in_every_format(shared: Path, tmp_path: Path) -> None:
    """Flickr8k as ALBEF's rows, Karpathy's JSON, token text, COCO, CSV and JSON Lines."""
    flickr = shared / "real-bench" / "flickr8k"
    if not flickr.is_dir():
        pytest.skip("no real photos beside the project")
    albef = {"source": "files", "form": "pretrain", "files": [str(flickr / "pretrain.json")], "image_root": str(flickr)}
    own = FilesSource.model_validate_json(json.dumps({**albef, "form": "captions"}))
    targets: tuple[Target, ...] = ("karpathy", "flickr", "coco", "csv", "jsonl", "tsv")
    trains: list[dict[str, Any]] = [albef]
    for target in targets:
        (written,) = import_data(own, tmp_path / target, target=target)
        assert (written.num_images, written.num_captions) == (6000, 30_000)
        trains.append({"source": "files", "files": [str(written.path)], "image_root": str(flickr)})
    batches = []
    for train in trains:
        spec = experiment(data={"train": train, "tokenizer": {"source": "captions", "vocab_size": 512}})
        captions = open_source(spec.data.train, key="data.train").captions()
        batches.append(next(train_batches(spec, tokenizer=build_tokenizer(spec.data.tokenizer, list(captions)))))
    assert all(equal(batches[0], batch) for batch in batches[1:])
