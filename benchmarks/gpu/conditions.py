"""Under which conditions was it measured? The device and the sizes that were asked for, the machine that was found."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from tclx.gpus import peak_tflops
from tclx.provenance import describe_code, package_versions
from tclx.spec.experiment import ExperimentSpec
from tests.train.toy import toy_spec

Size = Literal["full", "tiny"]
Precision = Literal["fp32", "tf32", "bf16"]

PROJECT = Path(__file__).resolve().parents[2]


class Conditions(NamedTuple):
    """What was asked for."""

    device: str
    """cuda or cpu."""
    size: Size
    """full: ViT-B/16 at 256 px and BERT-base; tiny: a rehearsal."""

    @property
    def batch_sizes(self) -> tuple[int, int]:
        """The batch of every precision, and the largest that is tried."""
        return (64, 4096) if self.size == "full" else (2, 4)

    @property
    def num_steps(self) -> int:
        """Timed, after as many of warm-up as three."""
        return 10 if self.size == "full" else 2

    @property
    def vocab_size(self) -> int:
        return 30522 if self.size == "full" else 128

    @property
    def compiler(self) -> str:
        """torch.compile's backend; a rehearsal need not wait for a C++ compiler."""
        return "inductor" if self.size == "full" else "eager"

    @property
    def matrix(self) -> int:
        """Side of the matrices that show what the card reaches at best."""
        return 8192 if self.size == "full" else 64


def training_spec(conditions: Conditions, precision: Precision, *, batch_size: int, compiled: bool = False) -> ExperimentSpec:
    """TCL with every term on, from random weights: as published, or of a few thousand parameters."""
    changes: dict[str, Any] = {
        "training.device": conditions.device,
        "training.precision": precision,
        "training.compile": compiled,
        "training.batch_size_per_gpu": batch_size,
    }
    if conditions.size == "full":
        changes["model"] = {
            "image_encoder": {"name": "vit_base_patch16_224", "image_size": 256},
            "text_encoder": {"name": "bert-base-uncased", "num_layers": 6},
            "fusion_encoder": {"num_layers": 6},
            "embed_dim": 256,
            "momentum": 0.995,
            "queue_size": 65536,
        }
        changes["objectives.lmi"] = {"pooled_grid": 4}
        changes["optim.learning_rate"] = 1e-5
        changes["data.max_caption_tokens"] = 25
    return toy_spec(**changes)


def card_name(device: str) -> str:
    return torch.cuda.get_device_name(0) if device == "cuda" else f"CPU {platform.machine()}"


def describe(conditions: Conditions) -> dict[str, Any]:
    """The machine, its versions, and how busy it was."""
    about: dict[str, Any] = {
        "card": card_name(conditions.device),
        "device": conditions.device,
        "size": conditions.size,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "python": sys.version.split()[0],
        "packages": package_versions(),
        "cuda": torch.version.cuda,
        "num_cpus": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "kernel": platform.release(),
        "commit": describe_code()["commit"],
        "threads": torch.get_num_threads(),
    }
    if conditions.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        about |= {
            "memory_gib": properties.total_memory / 2**30,
            "compute_capability": list(torch.cuda.get_device_capability(0)),
            "num_multiprocessors": properties.multi_processor_count,
            "cudnn": torch.backends.cudnn.version(),
            "nccl": list(torch.cuda.nccl.version()),
            "peak_tflops_by_data_sheet": {each: peak_tflops(about["card"], each) for each in ("fp32", "tf32", "bf16")},
            "nvidia_smi": _nvidia_smi(),
        }
    return about


def _nvidia_smi() -> dict[str, str] | None:
    """Driver, clocks, power and temperature; None where the program is missing."""
    asked = ["driver_version", "clocks.sm", "clocks.mem", "power.draw", "power.limit", "temperature.gpu", "utilization.gpu"]
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={','.join(asked)}", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return dict(zip(asked, (value.strip() for value in done.stdout.splitlines()[0].split(",")), strict=True))
