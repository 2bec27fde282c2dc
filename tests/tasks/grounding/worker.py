"""One process of grounding: python -m tests.tasks.grounding.worker OUTPUT."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from tclx import distributed

from .test_grounding import OF_SCENES, evaluated, spec_with


def main(output: Path) -> None:
    torch.set_num_threads(1)
    with distributed.start(torch.device("cpu")):
        found = [evaluated(spec_with({**OF_SCENES, "batch_size": 12, "explains": explains})) for explains in ("itm", "itc")]
        if distributed.is_main():
            output.write_text(json.dumps([[one.metrics, one.examples()] for one in found]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
