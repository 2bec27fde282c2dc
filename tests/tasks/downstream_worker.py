"""One process of an evaluation: python -m tests.tasks.downstream_worker TASK OUTPUT."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from tclx import distributed
from tests.tasks.test_downstream import evaluated


def main(task: str, output: Path) -> None:
    torch.set_num_threads(1)
    with distributed.start(torch.device("cpu")):
        found = evaluated(task)
        if distributed.is_main():
            output.write_text(json.dumps([found.metrics, found.examples(), found.predictions]))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
