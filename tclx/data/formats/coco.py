"""COCO's captions and Karpathy's splits: one JSON object that lists images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from tclx.data.formats.entry import Entry, Unreadable
from tclx.data.forms.form import Fault


def read_coco(tree: dict[str, Any]) -> Iterator[Entry]:
    """An entry an image, with its captions in the order of `annotations`; without any for one that has none.

    Raises:
        Unreadable: an annotation has no caption, or belongs to no image; two images have one id.
    """
    captions: defaultdict[Any, list[Any]] = defaultdict(list)
    for number, annotation in enumerate(_objects(tree, "annotations")):
        if "caption" not in annotation or not isinstance(annotation.get("image_id"), int | str):
            keys = ", ".join(annotation)
            hint = "boxes and segments are other files of COCO: captions_train2017.json has captions"
            raise Unreadable(f": annotations[{number}] has no `caption` and `image_id`, but {keys}", hint)
        captions[annotation["image_id"]].append(annotation["caption"])
    known: set[Any] = set()
    for number, image in enumerate(_objects(tree, "images")):
        identity, name = image.get("id"), image.get("file_name")
        if not isinstance(identity, int | str) or identity in known:
            fault = "has no `id`" if not isinstance(identity, int | str) else f"has the `id` of another: {identity}"
            raise Unreadable(f": images[{number}] {fault}")
        known.add(identity)
        yield Entry(number, None, {"image": name, "image_id": identity, "caption": captions.pop(identity, [])}, "images")
    if captions:
        raise Unreadable(f": annotations name image {next(iter(captions))}, which is not among its images")


def read_karpathy(tree: dict[str, Any]) -> Iterator[Entry]:
    """An entry an image, with the captions of `sentences` as they were written (`raw`), and its split.

    Raises:
        Unreadable: what it lists are no objects.
    """
    for number, image in enumerate(_objects(tree, "images")):
        name, folder, sentences = image.get("filename"), image.get("filepath"), image.get("sentences")
        if not isinstance(sentences, list) or not all(isinstance(one, dict) and "raw" in one for one in sentences):
            yield Entry(number, None, Fault("`sentences` is no list of objects with `raw`"), "images")
            continue
        path = f"{folder}/{name}" if isinstance(folder, str) and folder and isinstance(name, str) else name
        row = {"image": path, "caption": [one["raw"] for one in sentences]}
        yield Entry(number, None, row | ({"split": image["split"]} if "split" in image else {}), "images")


def _objects(tree: dict[str, Any], key: str) -> list[dict[str, Any]]:
    items = tree[key]
    if not isinstance(items, list) or not all(isinstance(one, dict) for one in items):
        raise Unreadable(f": `{key}` is no list of objects")
    return items
