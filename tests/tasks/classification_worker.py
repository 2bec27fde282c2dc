"""One process of a classification: python -m tests.tasks.classification_worker OUTPUT."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from tclx import distributed

from .test_classification import SHAPES_OF_SCENES, evaluated, spec_with


def main(output: Path) -> None:
    torch.set_num_threads(1)
    with distributed.start(torch.device("cpu")):
        found, _, _ = evaluated(spec_with(SHAPES_OF_SCENES))
        if distributed.is_main():
            output.write_text(json.dumps([found.metrics, found.examples(), found.outcomes]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
