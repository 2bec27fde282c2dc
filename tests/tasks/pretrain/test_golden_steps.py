"""Every combination of the five terms costs, and teaches, what it did at 53ca314, where `golden_steps.json` was recorded.

On the kind of processor it was recorded on, bit for bit; elsewhere kernels add in another order, and rounding is allowed for.
`python -m tests.train.test_golden_steps FILE` records another.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tclx.model.tcl import TCL
from tclx.spec.experiment import ExperimentSpec
from tclx.tasks.pretrain.step import TrainingStep
from tests.train.step_worker import VOCAB_SIZE, global_batch
from tests.train.toy import toy_spec

GOLDEN = Path(__file__).with_name("golden_steps.json")
TERMS = ("cma", "imc", "lmi", "itm", "mlm")
LMI = {"pooled_grid": 2}


def cases() -> Iterator[tuple[str, dict[str, Any]]]:
    """A name, and what is changed in the toy spec: all 31 combinations, then what else decides how a term is computed."""
    for size in range(1, len(TERMS) + 1):
        for on in combinations(TERMS, size):
            yield "+".join(on), {f"objectives.{term}": (LMI if term == "lmi" else {}) if term in on else None for term in TERMS}
    yield "official", {"compat": "official"}
    yield "no soft labels", {"objectives.soft_labels": None}
    yield "own temperatures", {f"objectives.{term}": {"temperature": {"initial": 0.2}} for term in ("cma", "imc", "lmi")}
    yield "every patch", {"objectives.lmi": {"pooled_grid": None}}
    yield "no queue", {"model.queue_size": 0}
    yield "frozen image encoder", {"model.image_encoder": {**toy_image_encoder(), "frozen": True}, "objectives.imc": None}


def toy_image_encoder() -> dict[str, Any]:
    encoder: dict[str, Any] = toy_spec().model.image_encoder.model_dump(mode="json", exclude_defaults=True)
    return encoder


def taken(changes: dict[str, Any]) -> dict[str, Any]:
    """What one forward and backward pass gives, dropout included."""
    spec = toy_spec(**changes)
    model = TCL(spec, vocab_size=VOCAB_SIZE, pad_token_id=0)
    torch.manual_seed(0)
    with torch.no_grad():  # fresh weights give nearly the same loss in every direction
        for parameter in model.parameters():
            if parameter.dim():  # a temperature has none
                parameter.add_(0.3 * torch.randn_like(parameter))
        if model.queue is not None:
            model.queue.enqueue(*(torch.nn.functional.normalize(torch.randn(8, 8), dim=1) for _ in range(2)), torch.arange(8))
    weight = 0.4 if spec.objectives.soft_labels is not None else 0.0
    output = TrainingStep(model, spec)(batch_of(spec), soft_label_weight=weight, draw=3, measure=True)
    output.loss.backward()
    gradients = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
    rooms: dict[str, list[Tensor]] = {}
    for name, gradient in gradients.items():
        rooms.setdefault(".".join(name.split(".")[:2]), []).append(gradient.flatten())
    digest = hashlib.sha256()
    for name in sorted(gradients):
        digest.update(name.encode() + gradients[name].contiguous().numpy().tobytes())
    return {
        "loss": output.loss.item(),
        "measures": {name: value.item() for name, value in sorted(output.measures.items())},
        "gradient_norms": {name: torch.cat(parts).double().norm().item() for name, parts in sorted(rooms.items())},
        "gradients": digest.hexdigest(),
    }


def batch_of(spec: ExperimentSpec) -> Any:
    """The batch as the data loader would make it: what no term looks at is not there."""
    batch, objectives = global_batch(), spec.objectives
    if not (objectives.imc or objectives.lmi):
        batch = replace(batch, images_second=None)
    if not objectives.mlm:
        batch = replace(batch, masked_input_ids=None, mlm_positions=None, mlm_labels=None)
    return batch


def processor() -> str:
    """What decides the last bits: torch's build, its vector instructions, the processor."""
    said = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    facts = [re.search(rf"^{key}\s*: (.*)$", said, re.MULTILINE) for key in ("model name", "cpu family", "model", "stepping")]
    names = [found[1] if found else "unknown" for found in facts]
    return ", ".join([f"torch {torch.__version__}", torch.backends.cpu.get_cpu_capability(), *names])


def record(path: Path) -> None:
    torch.set_num_threads(1)
    content = {"processor": processor(), "steps": {name: taken(changes) for name, changes in cases()}}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


@pytest.mark.parametrize(("name", "changes"), list(cases()), ids=[name for name, _ in cases()])
def test_a_step_is_what_it_was(name: str, changes: dict[str, Any]) -> None:
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    before, threads = golden["steps"][name], torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        after = taken(changes)
    finally:
        torch.set_num_threads(threads)
    recorded = before["measures"]  # others came since
    after["measures"] = {measure: value for measure, value in after["measures"].items() if measure in recorded}
    if golden["processor"] == processor():
        assert after == before
    for part in ("measures", "gradient_norms"):
        assert after[part] == pytest.approx(before[part], rel=1e-4, abs=1e-6), part
    assert after["loss"] == pytest.approx(before["loss"], rel=1e-5)


if __name__ == "__main__":
    record(Path(sys.argv[1]))
