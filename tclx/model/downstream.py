"""Models of downstream tasks: the encoders of a pre-training, with what the task adds, and their momentum copy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tclx.errors import InputError, Problem
from tclx.model.decoder import PairedFusion, build_decoder
from tclx.model.fusion import FusionEncoder, Groups
from tclx.model.tcl import Encoders, MomentumModel, build_encoders

if TYPE_CHECKING:
    from tclx.spec.experiment import ExperimentSpec


class Downstream(MomentumModel):
    """Encoders that meet in the fusion encoder, built on the CPU from the spec's seed; the global random state stays as it was.

    Args:
        spec: the experiment.
        vocab_size, pad_token_id: of its tokenizer.
        with_momentum: whether something compares with a momentum copy.

    Raises:
        InputError, MachineError: as `build_encoders`.
    """

    def __init__(self, spec: ExperimentSpec, *, vocab_size: int, pad_token_id: int, with_momentum: bool) -> None:
        super().__init__()
        if spec.model.fusion_encoder is None:
            raise InputError(
                Problem("model.fusion_encoder", f"needed by task {spec.task.name}", "for instance {num_layers: 6}")
            )
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(spec.seed)
            self.online = build_encoders(
                spec,
                vocab_size=vocab_size,
                pad_token_id=pad_token_id,
                projections=self.needs_projections,
                fusion=True,
                mlm=self.needs_words,
            )
            self.add_parts()
            self.momentum = self.online.momentum_copy(with_fusion=True) if with_momentum else None

    needs_words = False
    """Whether what the task adds starts from the head that names hidden words."""
    needs_projections = False

    def add_parts(self) -> None:
        """Put what the task adds into `online`."""
        raise NotImplementedError


class Classifier(Downstream):
    """Which of a few classes is a text, seen with its image or images?

    Args:
        num_classes: how many.
        num_images: 1, or 2 for a text about a left and a right image.
    """

    def __init__(
        self,
        spec: ExperimentSpec,
        *,
        vocab_size: int,
        pad_token_id: int,
        with_momentum: bool,
        num_classes: int,
        num_images: int = 1,
    ) -> None:
        self.num_classes, self.num_images = num_classes, num_images
        super().__init__(spec, vocab_size=vocab_size, pad_token_id=pad_token_id, with_momentum=with_momentum)

    def add_parts(self) -> None:
        online, width = self.online, self.online.text_encoder.width
        if self.num_images == 2 and isinstance(online.fusion_encoder, FusionEncoder):
            online.fusion_encoder = PairedFusion(online.fusion_encoder)
        online.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, self.num_classes))

    def classify(self, encoders: Encoders, images: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits of the classes.

        Args:
            encoders: the online ones or their momentum copy.
            images: [B, n, 3, S, S] normalised, n as `num_images`.
            input_ids: [B, L] int64.
            attention_mask: [B, L] bool, False at padding.

        Returns:
            [B, num_classes] fp32
        """
        tokens = encoders.image_encoder(images.flatten(0, 1))
        tokens = tokens.view(*images.shape[:2], *tokens.shape[1:])
        text = encoders.text_encoder(input_ids, attention_mask)
        if isinstance(encoders.fusion_encoder, PairedFusion):
            fused = encoders.fusion_encoder(text, attention_mask, tokens)
        else:
            fused = encoders.fuse(text, attention_mask, tokens[:, 0])
        if encoders.head is None:
            raise TypeError("a classifier without its head")
        logits: Tensor = encoders.head(fused[:, 0]).float()
        return logits


class TextAssigner(Downstream):
    """Which of two images does a caption describe, or neither?"""

    needs_projections = True

    def add_parts(self) -> None:
        online = self.online
        if isinstance(online.fusion_encoder, FusionEncoder):
            online.fusion_encoder = PairedFusion(online.fusion_encoder)
        online.head = nn.Linear(online.text_encoder.width, 3)
        online.text_projection = None
        if online.image_projection is not None:
            online.image_projection.requires_grad_(False)  # it draws the wrong images, and learns nothing

    def assign(self, text: Tensor, attention_mask: Tensor, images: Tensor) -> Tensor:
        """Logits of left, right and neither.

        Args:
            text: [B, L, width] of the text encoder.
            attention_mask: [B, L] bool, False at padding.
            images: [B, 2, N, width] of the image encoder.

        Returns:
            [B, 3] fp32
        """
        online = self.online
        if not isinstance(online.fusion_encoder, PairedFusion) or online.head is None:
            raise TypeError("text assignment without pairs of fusion layers")
        logits: Tensor = online.head(online.fusion_encoder(text, attention_mask, images)[:, 0]).float()
        return logits


class Answerer(Downstream):
    """What is the answer to a question about an image? Ranked from a list, or written.

    Args:
        decoder_layers: how many; None for as many as the fusion encoder has.
    """

    needs_words = True

    def __init__(
        self,
        spec: ExperimentSpec,
        *,
        vocab_size: int,
        pad_token_id: int,
        with_momentum: bool,
        decoder_layers: int | None = None,
    ) -> None:
        self.decoder_layers = decoder_layers
        super().__init__(spec, vocab_size=vocab_size, pad_token_id=pad_token_id, with_momentum=with_momentum)

    def add_parts(self) -> None:
        self.online.decoder = build_decoder(self.online, num_layers=self.decoder_layers, key="model.text_encoder.name")
        self.online.mlm_head = None  # the decoder has its copy

    def read(self, encoders: Encoders, images: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The states of questions [B, L, width] that have looked at their image; arguments as `Classifier.classify`."""
        text = encoders.text_encoder(input_ids, attention_mask)
        return encoders.fuse(text, attention_mask, encoders.image_encoder(images[:, 0]))

    def write(
        self,
        encoders: Encoders,
        answer_ids: Tensor,
        answer_mask: Tensor,
        questions: Tensor,
        question_mask: Tensor,
        rows: Tensor | Groups | None = None,
        first_place: int = 0,
    ) -> Tensor:
        """Logits of each next word from a place on [R, L - first_place, V]; arguments as `AnswerDecoder.forward`."""
        if encoders.decoder is None:
            raise TypeError("an answerer without its decoder")
        logits: Tensor = encoders.decoder(answer_ids, answer_mask, questions, question_mask, rows, first_place)
        return logits
