"""Zero-shot image-text retrieval: settings, metrics, evaluation, what people look at."""
