"""How fast are GPUs at best, and how much of it does training reach?"""

from __future__ import annotations

PEAK_TFLOPS: dict[str, dict[str, float]] = {
    "H200 NVL": {"fp32": 60.0, "tf32": 417.5, "bf16": 835.5},
    "H200": {"fp32": 66.9, "tf32": 494.7, "bf16": 989.4},
    "H100 NVL": {"fp32": 60.0, "tf32": 417.5, "bf16": 835.0},
    "H100 PCIe": {"fp32": 51.2, "tf32": 378.0, "bf16": 756.0},
    "H100": {"fp32": 66.9, "tf32": 494.7, "bf16": 989.4},
    "A100": {"fp32": 19.5, "tf32": 156.0, "bf16": 312.0},
    "L40S": {"fp32": 91.6, "tf32": 183.0, "bf16": 362.0},
    "L40": {"fp32": 90.5, "tf32": 90.5, "bf16": 181.0},
    "L4": {"fp32": 30.3, "tf32": 60.0, "bf16": 121.0},
    "RTX A6000": {"fp32": 38.7, "tf32": 77.4, "bf16": 154.8},
    "RTX 4090": {"fp32": 82.6, "tf32": 82.6, "bf16": 165.2},
    "RTX 3090": {"fp32": 35.6, "tf32": 35.6, "bf16": 71.0},
    "A10": {"fp32": 31.2, "tf32": 62.5, "bf16": 125.0},
}
"""The makers' data sheets, dense, by what the card's name contains; the first that fits counts. fp16 is as bf16."""

UTILISATION = {"fp32": 0.5, "tf32": 0.2, "bf16": 0.2, "fp16": 0.2}
"""Of the peak that training reaches, as measured on an H100 (docs/performance.md): 57 to 59 %, 19 to 22 %, 11 to 26 %."""


def peak_tflops(card: str, precision: str) -> float | None:
    """Of the card by its maker's data sheet; None where it is not in the table.

    Args:
        card: as the driver or SLURM names it: `NVIDIA H100 80GB HBM3`, `a100`.
        precision: as `training.precision`.
    """
    found = next((peaks for name, peaks in PEAK_TFLOPS.items() if name.casefold() in card.casefold()), {})
    return found.get("bf16" if precision == "fp16" else precision)
