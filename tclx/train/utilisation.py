"""How much of the GPU's arithmetic does training use? What a step computes, counted once, over what the card could do."""

from __future__ import annotations

from functools import cached_property

import torch

from tclx.gpus import peak_tflops
from tclx.metrics import MFU
from tclx.plan import Plan
from tclx.spec.experiment import ExperimentSpec
from tclx.track.jsonl import Row
from tclx.train.cost import estimate_cost


class Utilisation:
    """Model FLOPs utilisation (Chowdhery et al. 2022, arXiv:2204.02311): a step's forward and backward passes and the momentum
    encoders, captions as long as the spec allows; what is computed again for want of memory does not count.

    Args:
        spec: of the run.
        plan: derived from it.
        device: that is trained on; where no data sheet says how fast it is, nothing is counted.
        vocab_size: of the tokenizer.
    """

    def __init__(self, spec: ExperimentSpec, plan: Plan, device: torch.device, *, vocab_size: int) -> None:
        self._spec, self._plan, self._vocab_size = spec, plan, vocab_size
        card = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        self._peak = peak_tflops(card, spec.training.precision)

    def read(self, images_per_second: float) -> Row:
        """In percent of the peak of all GPUs; empty where that is not known."""
        if self._peak is None:
            return {}
        flops = images_per_second * self._flops_per_image
        return {MFU: 100 * flops / (self._peak * 1e12 * self._plan.world_size)}

    @cached_property
    def _flops_per_image(self) -> float:
        training = self._spec.training.model_copy(update={"activation_checkpointing": False})
        spec = self._spec.model_copy(update={"training": training})
        cost = estimate_cost(spec, self._plan, vocab_size=self._vocab_size)
        return cost.flops_per_step / self._plan.global_batch_size
