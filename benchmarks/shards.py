"""What do shards save? Samples a second and files opened, one core, of files and of the shards packed of them.

Reads (decodes, makes two views of 256 pixels) the same images in the same random order, in alternating turns, so that a busy
machine slows all alike; `webdataset` joins in where it is installed. The pages are in the system's cache: on a disk or
a network file system files are slower, shards hardly.

    python -m benchmarks.shards [--images 2000] [--turns 7]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.data_pipeline import make_photographs
from tclx.data.augment import apply_view, draw_view
from tclx.data.images import decode_image, read_bytes
from tclx.data.shards.index import INDEX, read_index
from tclx.data.shards.member import OpenShards
from tclx.data.shards.packing import PackSettings, pack
from tclx.spec.data import AugmentationSpec
from tclx.spec.experiment import ExperimentSpec

MAX_PIXELS = 50_000_000


def experiment(folder: Path, paths: list[Path], number: int) -> ExperimentSpec:
    rows = [{"image": f"{n:06d}.jpg", "caption": "a photograph"} for n in range(number)]
    for n, row in enumerate(rows):
        (folder / row["image"]).write_bytes(paths[n % len(paths)].read_bytes())
    (folder / "rows.json").write_text(json.dumps(rows))
    train = {"source": "files", "form": "pretrain", "files": [str(folder / "rows.json")], "image_root": str(folder)}
    tree: dict[str, Any] = {
        "name": "shards",
        "model": {
            "image_encoder": {"name": "vit_tiny_patch16_224", "image_size": 32},
            "text_encoder": {"sizes": {"width": 32, "num_heads": 2, "intermediate_size": 64}, "num_layers": 1},
        },
        "objectives": {"cma": {}},
        "data": {"train": train},
        "optim": {"learning_rate": 1e-3},
        "training": {"epochs": 1, "batch_size_per_gpu": 6},
    }
    return ExperimentSpec.model_validate_json(json.dumps(tree))


WORK = ("read", "decoded", "in two views")


def prepare(content: bytes, what: str, number: int) -> None:
    """What is done with an image's bytes; the same views of the same number."""
    if what == "read":
        return
    image = decode_image(content, "image", decoder="fast", max_pixels=MAX_PIXELS)
    if what == "in two views":
        for part in range(2):
            view = draw_view(
                np.random.default_rng([number, part]), AugmentationSpec(), height=image.shape[0], width=image.shape[1]
            )
            apply_view(image, view, image_size=256, decoder="fast")


def seconds(work: Callable[[], None]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--turns", type=int, default=7)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "images").mkdir()
        spec = experiment(folder / "images", make_photographs(folder, 50), arguments.images)
        pack(spec, "train", folder / "shards", settings=PackSettings(shard_mib=16))
        index = read_index(folder / "shards" / INDEX, folder=folder / "shards")
        order = np.random.default_rng(0).permutation(arguments.images).tolist()
        paths = [folder / "images" / index.images[number] for number in range(arguments.images)]

        def files(what: str) -> None:
            for number in order:
                prepare(read_bytes(paths[number], max_pixels=MAX_PIXELS), what, number)

        def shards(what: str, *, checked: bool = True) -> None:
            opened = OpenShards()
            for number in order:
                member = index.member(number)
                if not checked:
                    object.__setattr__(member, "crc32", None)
                prepare(opened.read(member, max_pixels=MAX_PIXELS), what, number)

        def webdataset(what: str) -> None:
            import webdataset as wds

            urls = [str(path) for path in index.shards]
            for number, sample in enumerate(wds.WebDataset(urls, shardshuffle=False)):
                prepare(sample["jpg"], what, number)

        ways: dict[str, Callable[[], None]] = {}
        for what in WORK:
            ways[f"files, {what}"] = partial(files, what)
            ways[f"shards, {what}"] = partial(shards, what)
            if find_spec("webdataset"):
                ways[f"webdataset in the tars' order, {what}"] = partial(webdataset, what)
        ways["shards without checksums, read"] = lambda: shards("read", checked=False)
        took: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(arguments.turns):
            for way, work in ways.items():
                took[way].append(seconds(work))
        opened = OpenShards()
        for number in order:
            opened.read(index.member(number), max_pixels=MAX_PIXELS)
        print(
            json.dumps(
                {
                    "images_per_cpu_second": {way: round(arguments.images / median(times)) for way, times in took.items()},
                    "shards_over_files": {
                        what: round(
                            median(a / b for a, b in zip(took[f"files, {what}"], took[f"shards, {what}"], strict=True)), 3
                        )
                        for what in WORK
                    },
                    **(
                        {
                            "shards_over_webdataset": {
                                what: round(
                                    median(
                                        a / b
                                        for a, b in zip(
                                            took[f"webdataset in the tars' order, {what}"], took[f"shards, {what}"], strict=True
                                        )
                                    ),
                                    3,
                                )
                                for what in WORK
                            }
                        }
                        if find_spec("webdataset")
                        else {}
                    ),
                    "microseconds_of_a_checksum": round(
                        1e6
                        * median(
                            (a - b) / arguments.images
                            for a, b in zip(took["shards, read"], took["shards without checksums, read"], strict=True)
                        ),
                        1,
                    ),
                    "files_opened": {"files": arguments.images, "shards": opened.num_opened},
                    "mean_megabytes": round(float(index.length.mean()) / 1e6, 3),
                },
                indent=1,
            )
        )


if __name__ == "__main__":
    main()
