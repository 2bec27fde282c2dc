"""What tasks and terms need: the model builds, and the data brings, what is needed, and nothing else."""

from __future__ import annotations

from enum import Flag, auto


class Needs(Flag):
    """What terms need: the model builds, and the data brings, what some term that is on needs, and nothing else."""

    PROJECTIONS = auto()
    """Image and text embeddings in the common space."""
    MOMENTUM = auto()
    """Features of the momentum encoders."""
    QUEUE = auto()
    """Negatives: the other pairs of the batch, and the queue where there is one."""
    OTHER_PAIRS = auto()
    """Negatives: the other pairs of the batch; no queue replaces them."""
    HARD_NEGATIVES = auto()
    """Negatives drawn by similarity, where there are projections that tell it."""
    SECOND_VIEW = auto()
    """Each image augmented twice."""
    FUSION = auto()
    """The fusion encoder."""
    MASKED_WORDS = auto()
    """A second copy of each caption with words hidden, and the head that names them."""
    SOFT_LABELS = auto()
    """The momentum model's prediction in the target, where the spec has `soft_labels`: then MOMENTUM is needed, too."""
