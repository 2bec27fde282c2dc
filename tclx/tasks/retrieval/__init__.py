"""Zero-shot image-text retrieval: settings, metrics, evaluation, what people look at."""

CUTOFFS = (1, 5, 10)
"""K of R@K."""
