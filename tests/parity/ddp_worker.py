"""One of two processes of the recorded DDP step: python -m torch.distributed.run ... ddp_worker.py SHARED OUTPUT."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tclx import distributed
from tclx.tasks.pretrain.features import HardNegatives
from tclx.tasks.pretrain.step import TrainingStep
from tests.parity.official import recorded_batch, tiny_model, tiny_spec
from tests.parity.test_step import follow_online, gradients


def main(shared: Path, output: Path) -> None:
    torch.set_num_threads(1)
    with distributed.start(torch.device("cpu")):
        rank = distributed.rank()
        spec = tiny_spec()
        model = tiny_model(shared, spec, initial="pretrain_init")
        follow_online(model)
        extras = load_file(shared / "parity" / "extras.safetensors")
        tensors = load_file(shared / "parity" / "tensors.safetensors") | extras
        recorded = f"ddp_world2/rank{rank}"
        step = distributed.wrap(TrainingStep(model, spec))
        result = step(
            recorded_batch(tensors, "pretrain/in0", recorded, rows=slice(2 * rank, 2 * rank + 2)),
            soft_label_weight=0.4,
            draw=0,
            negatives=HardNegatives(tensors[f"{recorded}/neg_image_idx"], tensors[f"{recorded}/neg_text_idx"]),
        )
        result.loss.backward()
        model.queue.enqueue(*result.keys)
        content = {name: value.clone() for name, value in result.measures.items()}
        content |= {"queue/image": model.queue.image.clone(), "queue/text": model.queue.text.clone()}
        content |= {f"grad/{name}": value.clone() for name, value in gradients(model, form="pretrain").items()}
        save_file({name: value.contiguous() for name, value in content.items()}, output / f"rank{rank}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
