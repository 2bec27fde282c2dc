"""Small folders of photographs, packed into several shards; what a folder holds, byte by byte."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tclx.data.shards import packing as module
from tclx.data.shards.packing import Packed, PackSettings, pack
from tclx.spec.experiment import ExperimentSpec
from tests.data.small import encoded, experiment, files_source, photograph

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
LARGE = 2**18
"""Bytes that an image is counted as, so that a shard of 1 MiB holds three."""


def photographs(folder: Path, number: int = 10) -> list[dict[str, Any]]:
    """Images of several formats and rows for them, two of which show one image."""
    rows = []
    for n in range(number):
        name = f"{n}.{FORMATS[n % len(FORMATS)].lower()}"
        (folder / name).write_bytes(encoded(photograph(seed=n), FORMATS[n % len(FORMATS)]))
        rows.append({"image": name, "caption": [f"photograph {n}", f"no. {n}, größer"]})
    return [*rows, {"image": rows[1]["image"], "caption": "the second again"}]


def reading(folder: Path, rows: list[dict[str, Any]], *, form: str = "pretrain", **data: Any) -> ExperimentSpec:
    return experiment(data={"train": files_source(folder, rows, form=form).model_dump(mode="json"), **data})


def on_shards(spec: ExperimentSpec, folder: Path, *, form: str = "pretrain", **data: Any) -> ExperimentSpec:
    """The experiment on what was packed of it."""
    tree = spec.model_dump(mode="json")
    tree["data"] |= {"train": {"source": "shards", "folder": str(folder), "form": form}, **data}
    return ExperimentSpec.model_validate_json(json.dumps(tree))


@contextmanager
def few_a_shard() -> Iterator[None]:
    before, module._BESIDE_IMAGE = module._BESIDE_IMAGE, LARGE
    try:
        yield
    finally:
        module._BESIDE_IMAGE = before


def packed(spec: ExperimentSpec, folder: Path, *, num_processes: int = 1, **settings: Any) -> Packed:
    """Its training data in shards of three images."""
    with few_a_shard():
        return pack(spec, "train", folder, settings=PackSettings(shard_mib=1, **settings), num_processes=num_processes)


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}
