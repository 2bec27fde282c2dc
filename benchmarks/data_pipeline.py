"""How many training images a second does one core prepare, with `decoder: fast` and with `decoder: pil`?

Each image is read, decoded and augmented into two views at the published settings (256 pixels, all operations), from 500 x
375 JPEGs made here, or, with `--camera`, from 4000 x 3000 as a camera writes them, upright and turned by EXIF, with and without
`reduce_jpegs`. The ways take turns image by image, so that a busy machine slows all alike.

    python benchmarks/data_pipeline.py [--images 200] [--image-size 256] [--camera]
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import cv2
import numpy as np
from PIL import Image

from tclx.data.augment import CROP_RATIO, apply_view, draw_view
from tclx.data.images import Decoder, read_image
from tclx.spec.data import AugmentationSpec

DECODERS: tuple[Decoder, ...] = ("fast", "pil")


def make_photographs(folder: Path, count: int, *, size: tuple[int, int] = (375, 500), turned: bool = False) -> list[Path]:
    """JPEGs with the spectrum of photographs (amplitude 1/f), about 60 kB each at the size of COCO's.

    Args:
        folder: to write them to.
        count: how many.
        size: height and width.
        turned: as a telephone that was held upright writes them: EXIF says how to turn them.
    """
    rng = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(size[0])[:, None], np.fft.rfftfreq(size[1])[None])
    frequency[0, 0] = 1
    paths = [folder / f"{'turned-' if turned else ''}{number}.jpg" for number in range(count)]
    exif = Image.Exif()
    exif[0x0112] = 6
    for path in paths:
        noise = np.fft.rfft2(rng.standard_normal((3, *size)))
        planes = np.fft.irfft2(noise / frequency**1.2, s=size)
        pixels = 128 + 55 * (planes - planes.mean()) / planes.std()
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))
        image.save(path, quality=90, **({"exif": exif.tobytes()} if turned else {}))
    return paths


def prepare(path: Path, decoder: Decoder, rng: np.random.Generator, image_size: int, *, shorter_side: int = 0) -> None:
    """What a loader worker does for one image with IMC or LMI on."""
    image = read_image(path, decoder=decoder, max_pixels=50_000_000, shorter_side=shorter_side)
    for _ in range(2):
        view = draw_view(rng, AugmentationSpec(), height=image.shape[0], width=image.shape[1])
        apply_view(image, view, image_size=image_size, decoder=decoder)


def cpu_seconds(work: Callable[[], None]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def of_a_camera(count: int, image_size: int) -> dict[str, dict[str, float]]:
    """Items a second of photographs of 12 megapixels, decoded in full and reduced."""
    area, _ = AugmentationSpec().crop_scale
    shorter_side = math.ceil(image_size / math.sqrt(area * CROP_RATIO[0]))
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for turned in (False, True):
            paths = make_photographs(Path(folder), 4, size=(3000, 4000), turned=turned)
            seconds: dict[int, list[float]] = {0: [], shorter_side: []}
            for number in range(count):
                for side, times in seconds.items():
                    rng, path = np.random.default_rng(number), paths[number % len(paths)]
                    times.append(cpu_seconds(lambda: prepare(path, "fast", rng, image_size, shorter_side=side)))  # noqa: B023
            in_full, reduced = seconds.values()
            found["turned" if turned else "upright"] = {
                "in full, images per CPU second": round(count / sum(in_full), 1),
                "reduced, images per CPU second": round(count / sum(reduced), 1),
                "ratio, median of pairs": round(median(a / b for a, b in zip(in_full, reduced, strict=True)), 2),
                "mean JPEG megabytes": round(sum(path.stat().st_size for path in paths) / len(paths) / 1e6, 2),
            }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--camera", action="store_true")
    arguments = parser.parse_args()
    cv2.setNumThreads(0)
    if arguments.camera:
        print(json.dumps(of_a_camera(arguments.images, arguments.image_size), indent=1))
        return
    seconds: dict[Decoder, list[float]] = {decoder: [] for decoder in DECODERS}
    with tempfile.TemporaryDirectory() as folder:
        paths = make_photographs(Path(folder), min(arguments.images, 50))
        for number in range(arguments.images):
            for decoder in DECODERS:
                rng = np.random.default_rng(number)  # the same two views for both
                path = paths[number % len(paths)]
                seconds[decoder].append(cpu_seconds(lambda: prepare(path, decoder, rng, arguments.image_size)))  # noqa: B023
        megabytes = sum(path.stat().st_size for path in paths) / len(paths) / 1e6
    rates = {decoder: len(times) / sum(times) for decoder, times in seconds.items()}
    ratio = median(pil / fast for fast, pil in zip(seconds["fast"], seconds["pil"], strict=True))
    print(
        json.dumps(
            {
                "images_per_cpu_second": {decoder: round(rate, 1) for decoder, rate in rates.items()},
                "fast_over_pil": {"overall": round(rates["fast"] / rates["pil"], 2), "median_of_pairs": round(ratio, 2)},
                "mean_jpeg_megabytes": round(megabytes, 3),
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
