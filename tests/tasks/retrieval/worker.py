"""One process of a retrieval with positives: python -m tests.tasks.retrieval.worker FOLDER OUTPUT."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from tclx import distributed
from tests.tasks.retrieval.test_positives import evaluated, figures, files_spec


def main(folder: Path, output: Path) -> None:
    torch.set_num_threads(1)
    with distributed.start(torch.device("cpu")):
        found = evaluated(files_spec(folder / str(distributed.rank())))
        if distributed.is_main():
            output.write_text(json.dumps(figures(found)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
