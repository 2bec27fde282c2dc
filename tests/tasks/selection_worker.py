"""One process of a selection: python -m tests.tasks.selection_worker OUTPUT."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from tclx import distributed

from .test_selection import SCENES, evaluated


def main(output: Path) -> None:
    torch.set_num_threads(1)
    with distributed.start(torch.device("cpu")):
        found = evaluated(SCENES)
        if distributed.is_main():
            output.write_text(json.dumps([found.metrics, found.examples()["items"]]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
