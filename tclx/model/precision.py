"""The precision that the encoders compute in, as `training.precision` names it."""

from __future__ import annotations

import torch

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Matrix products under autocast."""


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context of a forward pass; does nothing for fp32 and tf32."""
    half = HALF.get(precision)
    return torch.autocast(device.type, dtype=half or torch.bfloat16, enabled=half is not None)
