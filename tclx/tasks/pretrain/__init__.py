"""Pre-training: the step, and the terms of its loss."""
