"""A whole run that takes seconds: 64 scenes, width 16, every term on. Also the program that other tests start and kill."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from tclx.plan import DataFacts, make_plan
from tclx.runs import RunFolder
from tclx.spec.experiment import ExperimentSpec

NUM_SCENES = 64
TIME_BASED = ("speed/",)


def toy_spec(**changes: Any) -> ExperimentSpec:
    """The spec, with whole keys replaced by dotted path: `toy_spec(**{"training.steps": 3})`."""
    tree: dict[str, Any] = {
        "name": "toy",
        "seed": 3,
        "model": {
            "image_encoder": {"name": "vit_tiny_patch16_224", "image_size": 32, "patch_size": 8, "width": 16, "depth": 1, "num_heads": 2},
            "text_encoder": {"sizes": {"width": 16, "num_heads": 2, "intermediate_size": 32}, "num_layers": 1},
            "fusion_encoder": {"num_layers": 1},
            "embed_dim": 8,
            "queue_size": 24,
            "momentum": 0.9,
        },
        "objectives": {"cma": {}, "imc": {}, "lmi": {"pooled_grid": 2}, "itm": {}, "mlm": {}},
        "data": {
            "train": {"source": "scenes", "num_images": NUM_SCENES, "split": "train"},
            "val": {"source": "scenes", "num_images": 6, "split": "val"},
            "test": {"source": "scenes", "num_images": 6, "split": "test"},
            "tokenizer": {"source": "captions", "vocab_size": 128},
            "num_workers": 0,
        },
        "optim": {"learning_rate": 0.003, "schedule": {"name": "cosine", "warmup_steps": 2}},
        "training": {"steps": 12, "batch_size_per_gpu": 8, "device": "cpu", "checkpoints": {"every_steps": 3}},
        "evaluation": {"retrieval": {"top_k": 4, "batch_size": 8}, "during_training": "val", "every_steps": 6, "at_end": "test"},
        "tracking": {"log_every_steps": 2},
    }  # fmt: skip
    for path, value in changes.items():
        *sections, key = path.split(".")
        place = tree
        for section in sections:
            place = place[section]
        place[key] = value
    return ExperimentSpec.model_validate_json(json.dumps(tree))


def prepare(path: Path, spec: ExperimentSpec) -> RunFolder:
    """A run folder as `tclx run` prepares it."""
    folder = RunFolder(path)
    path.mkdir(parents=True, exist_ok=True)
    plan = make_plan(spec, DataFacts(NUM_SCENES, NUM_SCENES, 6, 30, 6, 30))
    folder.write_json(folder.spec, spec.model_dump(mode="json"))
    folder.write_json(folder.plan, plan.to_json())
    return folder


def outcome(folder: RunFolder) -> tuple[dict[str, str], list[dict[str, Any]], dict[str, Any]]:
    """What must not depend on interruptions: the last checkpoint's files by checksum, every row but its speeds, the evaluation."""
    from tclx.track.jsonl import read
    from tclx.train.checkpoint import newest

    last = newest(folder.checkpoints)
    assert last is not None
    names = ("model.safetensors", "optimizer.safetensors", "state.json")
    sums = {f"{last.name}/{name}": hashlib.sha256((last / name).read_bytes()).hexdigest() for name in names}
    rows = [{name: value for name, value in row.items() if not name.startswith(TIME_BASED)} for row in read(folder.metrics)]
    return sums, rows, folder.read_json(folder.evaluation / "test.json")


def main() -> None:
    """Train the run of a prepared folder; exit code 75 when it was stopped."""
    from tclx.errors import Interrupted
    from tclx.plan import Plan
    from tclx.train.loop import train

    folder = RunFolder(Path(sys.argv[1]))
    spec = ExperimentSpec.model_validate_json(folder.spec.read_text(encoding="utf-8"))
    try:
        train(folder, spec, Plan.from_json(folder.read_json(folder.plan)))
    except Interrupted as stopped:
        sys.exit(75 if "saved at step" in str(stopped) else 1)


if __name__ == "__main__":
    main()
