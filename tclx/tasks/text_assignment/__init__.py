"""Text assignment: which of two images does a caption describe, or neither? The pre-training step before NLVR2."""
