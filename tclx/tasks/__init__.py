"""Tasks: what a model is trained or tried on."""
