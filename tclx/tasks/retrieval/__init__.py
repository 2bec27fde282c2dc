"""Zero-shot image-text retrieval: settings, metrics, evaluation, what people look at."""

CUTOFFS = (1, 5, 10)
"""K of R@K."""

QUALITIES = ("map_at_r", "r_precision", "r1")
"""How well a ranking finds several right keys: `tclx.tasks.retrieval.positives`."""
