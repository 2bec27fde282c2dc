"""How long does it take to find near duplicates? Hashes are drawn, a hundredth of them copies with up to two bits changed.

python -m benchmarks.near_duplicates 100000 1000000
"""

from __future__ import annotations

import sys
import time

import numpy as np

from tclx.data.checking.duplicates import find_duplicates, within
from tclx.data.checking.look import LOOK
from tclx.system import peak_memory_bytes


def main() -> None:
    draw = np.random.default_rng(0)
    for number in map(int, sys.argv[1:]):
        looks, copies = np.zeros(number, LOOK), number // 100
        looks["width"] = 224
        looks["digest"][:, 0] = np.arange(number)
        hashes = draw.integers(1, 2**64, number, np.uint64, endpoint=False)
        flips = np.uint64(1) << draw.integers(0, 64, (2, copies)).astype(np.uint64)
        hashes[-copies:] = hashes[:copies] ^ flips[0] ^ flips[1]
        looks["hash"] = hashes
        began = time.perf_counter()
        found = within(find_duplicates(looks).near, np.arange(number)).images
        seconds, peak = time.perf_counter() - began, peak_memory_bytes() / 2**30
        right = int((found >= number - copies).sum())
        size = f"{number:,} images: {seconds:.1f} s, {peak:.2f} GiB"
        print(f"{size}; found {right:,} of {copies:,} copies, {len(found) - right} others")


main()
