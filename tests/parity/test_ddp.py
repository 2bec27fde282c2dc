"""Two processes under DDP against the official code: each one's losses, the averaged gradients, the gathered queue."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from .test_step import PARTS, check_gradients


def test_two_processes(shared: Path, tmp_path: Path) -> None:
    worker = Path(__file__).with_name("ddp_worker.py")
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", worker, shared, tmp_path],
        check=True,
        capture_output=True,
        timeout=300,
    )
    recorded = json.loads((shared / "parity" / "extras.json").read_text())["ddp_world2"]
    extras = load_file(shared / "parity" / "extras.safetensors")
    prefix = "ddp_world2/grad/"
    for rank in (0, 1):
        ours = load_file(tmp_path / f"rank{rank}.safetensors")
        for theirs, name in PARTS.items():
            assert ours[f"loss/{name}"].item() == pytest.approx(recorded[f"rank{rank}"][theirs], abs=1e-5), (rank, name)
        torch.testing.assert_close(ours["queue/image"].T, extras[f"ddp_world2/rank{rank}/image_queue_after"], rtol=0, atol=1e-6)
        torch.testing.assert_close(ours["queue/text"].T, extras[f"ddp_world2/rank{rank}/text_queue_after"], rtol=0, atol=1e-6)
        averaged = {name.removeprefix("grad/"): value for name, value in ours.items() if name.startswith("grad/")}
        check_gradients(
            averaged, {name.removeprefix(prefix): value for name, value in extras.items() if name.startswith(prefix)}
        )
