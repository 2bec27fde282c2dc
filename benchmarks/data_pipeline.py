"""How many training images a second does one core prepare, with `decoder: fast` and with `decoder: pil`?

Each image is read, decoded and augmented into two views at the published settings (256 pixels, all operations), from 500 x
375 JPEGs made here. The two decoders take turns image by image, so that a busy machine slows both alike.

    python benchmarks/data_pipeline.py [--images 200] [--image-size 256]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import cv2
import numpy as np

from tclx.data.augment import apply_view, draw_view
from tclx.data.images import Decoder, read_image
from tclx.spec.data import AugmentationSpec

DECODERS: tuple[Decoder, ...] = ("fast", "pil")


def make_photographs(folder: Path, count: int) -> list[Path]:
    """JPEGs with the spectrum of photographs (amplitude 1/f), about 60 kB each."""
    rng = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(375)[:, None], np.fft.rfftfreq(500)[None])
    frequency[0, 0] = 1
    paths = [folder / f"{number}.jpg" for number in range(count)]
    for path in paths:
        noise = np.fft.rfft2(rng.standard_normal((3, 375, 500)))
        planes = np.fft.irfft2(noise / frequency**1.2, s=(375, 500))
        pixels = 128 + 55 * (planes - planes.mean()) / planes.std()
        cv2.imwrite(str(path), pixels.clip(0, 255).astype(np.uint8).transpose(1, 2, 0), [cv2.IMWRITE_JPEG_QUALITY, 90])
    return paths


def prepare(path: Path, decoder: Decoder, rng: np.random.Generator, image_size: int) -> None:
    """What a loader worker does for one image with IMC or LMI on."""
    image = read_image(path, decoder=decoder, max_pixels=50_000_000)
    for _ in range(2):
        view = draw_view(rng, AugmentationSpec(), height=image.shape[0], width=image.shape[1])
        apply_view(image, view, image_size=image_size, decoder=decoder)


def cpu_seconds(work: Callable[[], None]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--image-size", type=int, default=256)
    arguments = parser.parse_args()
    cv2.setNumThreads(0)
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
