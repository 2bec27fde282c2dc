"""What is written down while it runs. metrics.jsonl in the run folder is always written."""

from __future__ import annotations

from tclx.spec.base import Count, Section


class TrackingSpec(Section):
    """How often numbers are recorded."""

    log_every_steps: Count = 10
    """Optimizer steps between two rows of metrics.jsonl."""
    term_gradient_norms_every_steps: Count | None = None
    """Steps between two measurements of every term's own gradient norm; each costs one more backward pass per term."""
