"""Images, expressions, true boxes and detections in the published form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROWS: list[dict[str, Any]] = [
    {"image": "COCO_train2014_000000000007.png", "text": "the red one", "ref_id": 11, "split": "testA"},
    {"image": "other_000000000009.png", "text": "a blue thing", "ref_id": 12, "split": "testB"},
    {"image": "COCO_train2014_000000000007.png", "text": "left, please", "ref_id": 13, "split": "testA"},
]
"""Rows of one image need not follow each other."""
BOXES: dict[str, Any] = {"11": [2, 3, 10, 12.5], "12": [20, 0, 20, 30], "13": [0, 0, 8, 8]}
DETECTIONS: dict[str, Any] = {
    "7": [[1, 3, 10, 12], [20, 3, 9, 9, 0.93], [0, 0, 8, 8]],
    "9": [[0, 0, 20, 30], [19, 0, 21, 30]],
}
SIZES = {"COCO_train2014_000000000007.png": (48, 32), "other_000000000009.png": (40, 30)}


def write_refcoco(folder: Path, *, detections: Any = DETECTIONS, boxes: Any = BOXES, rows: Any = None) -> dict[str, Any]:
    """The files, and the section that names them."""
    (folder / "images").mkdir(parents=True)
    for number, (name, size) in enumerate(SIZES.items()):
        pixels = np.random.default_rng(number).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / name)
    (folder / "rows.json").write_text(json.dumps(ROWS if rows is None else rows))
    (folder / "boxes.json").write_text(json.dumps(boxes))
    section: dict[str, Any] = {
        "source": "refcoco",
        "file": str(folder / "rows.json"),
        "image_root": str(folder / "images"),
        "boxes": str(folder / "boxes.json"),
    }
    if detections is not None:
        (folder / "dets.json").write_text(json.dumps(detections))
        section["detections"] = str(folder / "dets.json")
    return section
