"""Weights & Biases: the upload of runs and studies, in processes of their own, and the workspace that shows them.

Only `upload` and `study_upload`, which those processes run, import wandb.
"""
