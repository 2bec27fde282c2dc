"""How to run: the training step, the loop around it, and everything a run must remember."""
