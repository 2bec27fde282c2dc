"""The evaluation of a model on every task of a spec, and what the tasks have in common: eval mode, shares, precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tclx import distributed
from tclx.errors import RunFailed
from tclx.tasks.outcomes import write_outcomes

if TYPE_CHECKING:
    from tclx.data.tokenizer import CaptionTokenizer
    from tclx.model.tcl import MomentumModel
    from tclx.runs import RunFolder
    from tclx.spec.experiment import ExperimentSpec
    from tclx.tasks.task import Evaluation, Split


def evaluate_tasks(
    model: MomentumModel,
    spec: ExperimentSpec,
    split: Split,
    *,
    tokenizer: CaptionTokenizer,
    device: torch.device,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Evaluation]:
    """What each task of `spec.evaluation` gives on a split, by name; one that has no such split is left out.

    Args:
        model, spec, split, tokenizer, device: as `EvaluationTask.evaluate`, which raises the same.
        say: is told which task begins.
    """
    found = {}
    for name, task in spec.evaluation.tasks.items():
        if task.has(split):
            say(f"evaluating {name} on {split}")
            found[name] = task.evaluate(model, spec, split, tokenizer=tokenizer, device=device)
    return found


def row_of(found: Mapping[str, Evaluation], split: Split) -> dict[str, float]:
    """All metrics by the names that they have in the rows of a run."""
    return {f"{task}/{split}/{name}": value for task, one in found.items() for name, value in one.metrics.items()}


def write_evaluations(folder: RunFolder, found: Mapping[str, Evaluation], split: Split, *, origin: Mapping[str, Any]) -> None:
    """Put the final metrics and outcomes of each task into the run folder; `origin` says which weights they are of."""
    for task, evaluation in found.items():
        outcomes = folder.outcomes(task, split)
        if evaluation.outcomes is not None:
            write_outcomes(outcomes, evaluation.outcomes, origin=origin)
        else:
            outcomes.unlink(missing_ok=True)  # those of another evaluation
        folder.write_json(folder.evaluated(task, split), {**origin, "metrics": row_of({task: evaluation}, split)})
        if evaluation.predictions is not None:
            folder.write_json(folder.predictions(task, split), evaluation.predictions)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode; every module's own mode and the random state are put back, since training must not notice an evaluation."""
    modes = {module: module.training for module in model.modules()}
    with torch.random.fork_rng(devices=[]):
        model.eval()
        try:
            yield
        finally:
            for module, training in modes.items():
                module.training = training


def my_part(items: Tensor) -> Tensor:
    """This process's consecutive share of [N] items."""
    return items.tensor_split(distributed.world_size())[distributed.rank()]


def gather_parts(part: Tensor | None, device: torch.device) -> Tensor:
    """All processes' parts one after the other; None where a process had nothing to do."""
    parts = [piece for piece in distributed.all_gather_object(part) if piece is not None]
    return torch.cat(parts).to(device)


def require_finite(values: Tensor, what: str) -> None:
    """
    Raises:
        RunFailed: one of the values is not finite.
    """
    if not values.isfinite().all():
        raise RunFailed(f"evaluation stopped: the {what} is not finite; the weights have diverged or the precision is too low")
