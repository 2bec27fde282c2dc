"""What is written down about a step? Its row of metrics, each term's own gradient norm, and why it could not be taken."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor, nn

from tclx import distributed
from tclx.data.batch import RowBatch
from tclx.system import peak_memory_bytes
from tclx.tasks.task import StepOutput
from tclx.track.jsonl import Row

_MOST_ROWS = 20
"""Row numbers that a message lists before it says how many more there are."""


@dataclass
class Tally:
    """What this process counts between two rows."""

    num_bad_images: int
    """Since the start of the run; rank 0's holds those of all processes up to the checkpoint that was resumed."""
    num_bad_in_epoch: int
    """Of these, in the present epoch."""
    num_images: int = 0
    seconds: float = 0.0
    """Spent in steps, evaluations and saving left out."""
    seconds_waiting: float = 0.0
    """Of these, for the data loader."""

    def count(self, batch: RowBatch) -> None:
        """A batch that this process learns from."""
        self.num_images += len(batch.row)
        self.num_bad_images += batch.num_bad_images
        self.num_bad_in_epoch += batch.num_bad_images

    @contextmanager
    def timing(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - began

    @contextmanager
    def waiting(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds_waiting += time.perf_counter() - began

    def bad_images(self, device: torch.device) -> tuple[int, int]:
        """Since the start and in the present epoch, over all processes; every one must ask."""
        counts = torch.tensor([self.num_bad_images, self.num_bad_in_epoch], device=device)
        total, in_epoch = distributed.total(counts).tolist()
        return int(total), int(in_epoch)

    def speed(self, device: torch.device) -> Row:
        """Since the last call: images a second over all processes, the share of the time spent waiting for data. And this
        process's largest memory so far in GiB, on its GPU where it has one."""
        images, seconds, waiting = self.num_images * distributed.world_size(), self.seconds, self.seconds_waiting
        self.num_images, self.seconds, self.seconds_waiting = 0, 0.0, 0.0
        peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory_bytes()
        return {
            "speed/images_per_second": images / seconds,
            "speed/share_waiting_for_data": waiting / seconds,
            "memory/peak_gib": peak / 2**30,
        }


def average(outputs: Sequence[dict[str, Tensor]]) -> dict[str, float]:
    """The mean of each measure over the passes of a step and over processes. One transfer from the device."""
    names = sorted(outputs[0])
    values = torch.stack([torch.stack([output[name].float() for name in names]) for output in outputs])
    return dict(zip(names, distributed.mean(values.mean(dim=0)).tolist(), strict=True))


def term_gradient_norms(output: StepOutput, parameters: Sequence[nn.Parameter], *, scale: float) -> dict[str, float]:
    """The norm of each unweighted term's gradient alone, averaged over processes as DDP does; one backward pass per term.

    Args:
        output: of a forward pass whose graph is still there; it stays usable.
        parameters: everything that is trained.
        scale: what the loss is multiplied with against underflow (fp16), 1 otherwise.
    """
    norms = {}
    for name, term in output.terms.items():
        gradients = torch.autograd.grad(term * scale, parameters, retain_graph=True, allow_unused=True)
        averaged = [distributed.mean(gradient) / scale for gradient in gradients if gradient is not None]
        norms[f"gradient_norm/{name}"] = nn.utils.get_total_norm(averaged).item()
    return norms


def term_relations(output: StepOutput, parameters: Sequence[nn.Parameter], *, scale: float) -> dict[str, float]:
    """How the gradients of the weighted terms lie to each other, averaged over processes as DDP does.

    Of each pair the cosine: below 0 one undoes what the other does. Of each term its share of the update, the projection of its
    gradient on the whole one's, which sum to 1 and may be negative; and the ratio of its norm to the whole one's. One
    backward pass a term, as far as these parameters.

    Args:
        output: of a forward pass whose graph is still there; it stays usable.
        parameters: which all terms share.
        scale: what the loss is multiplied with against underflow (fp16), 1 otherwise.

    Returns:
        Nothing where there are fewer than two terms.
    """
    if len(output.terms) < 2 or not parameters:
        return {}
    stacked = weighted_gradients(output, parameters, scale=scale)
    products = (stacked @ stacked.T).double().cpu()
    whole, norms = products.sum(), products.diagonal().sqrt()
    found: dict[str, float] = {}
    for place, name in enumerate(output.terms):
        found[f"gradient_share/{name}"] = float(products[place].sum() / whole)
        found[f"gradient_ratio/{name}"] = float(norms[place] / whole.sqrt())
    for (one, first), (other, second) in combinations(enumerate(output.terms), 2):
        found[f"gradient_cosine/{first}_{second}"] = float(products[one, other] / (norms[one] * norms[other]))
    return {name: value for name, value in found.items() if math.isfinite(value)}


def weighted_gradients(output: StepOutput, parameters: Sequence[nn.Parameter], *, scale: float) -> Tensor:
    """[K, P] the gradient of each of K weighted terms for P numbers of parameters; arguments as of `term_relations`."""
    terms = list(output.terms.values())
    weights = torch.autograd.grad(output.loss, terms, retain_graph=True)
    gradients = []
    for term, weight in zip(terms, weights, strict=True):
        parts = torch.autograd.grad(term * scale, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
        gradients.append(distributed.mean(torch.cat([part.flatten().float() for part in parts]) * weight / scale))
    return torch.stack(gradients)


def describe_nonfinite(step: int, measures: Sequence[dict[str, Tensor]], rows: Tensor, gradient_norm: float) -> str:
    """The message of a run that stops before an update: what is not finite, the terms, the data, what to try.

    Args:
        step: updates done.
        measures: of this process's passes of the step.
        rows: [N] the training rows of this process.
        gradient_norm: of the averaged gradient.
    """
    mine = {name: [output[name].item() for output in measures] for name in sorted(measures[0]) if name.startswith("loss/")}
    everyone = distributed.all_gather_object((mine, rows.tolist()))
    lines = [f"step {step + 1} is not finite; it was not taken, and the weights of step {step} are intact"]
    for rank, (losses, row_numbers) in enumerate(everyone):
        values = ", ".join(
            f"{name.removeprefix('loss/')} {' '.join(f'{value:.4g}' for value in each)}" for name, each in losses.items()
        )
        more = f" and {len(row_numbers) - _MOST_ROWS} more" if len(row_numbers) > _MOST_ROWS else ""
        lines.append(f"  process {rank}: {values}; training rows {', '.join(map(str, row_numbers[:_MOST_ROWS]))}{more}")
    lines.append(f"  gradient norm {gradient_norm:.4g}")
    lines.append(
        "  try a lower optim.learning_rate, a longer optim.schedule.warmup_steps, optim.clip_gradient_norm: 1.0, "
        "or training.precision: bf16 in place of fp16"
    )
    return "\n".join(lines)
