"""A trained model, ready for images and texts: `tclx.load`.

Images and texts are treated exactly as evaluation treats them (size, decoder, normalisation, cleaned text, tokenizer,
precision), so an embedding is the one that the run's metrics were computed from.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from tclx.data.augment import resize_for_evaluation
from tclx.data.batch import normalise
from tclx.data.captions import clean_caption
from tclx.data.dataset import stack_images
from tclx.data.images import BadImage, Pixels, decoding, pixels_in_memory, read_image
from tclx.data.items import clean_text
from tclx.errors import InputError, MachineError, Problem
from tclx.found import saved_or_run
from tclx.model.downstream import Answerer
from tclx.model.fusion import FusionEncoder
from tclx.model.precision import autocast
from tclx.model.tcl import TCL
from tclx.spec.training import TrainingSpec
from tclx.tasks.evaluating import require_finite
from tclx.tasks.grad_cam import matching_maps, similarity_maps
from tclx.tasks.retrieval.attention import WordMap
from tclx.tasks.retrieval.evaluation import caption_batches, kept_dtype, match_batch
from tclx.tasks.vqa.evaluation import answer_list, generate, rank
from tclx.tasks.vqa.task import VqaEvaluation, VqaSpec
from tclx.train.precision import choose_device, prepare_numerics
from tclx.use.exported import preprocessing_of, read_answers, without_training_parts
from tclx.use.saved import Saved, find_saved, model_of, spec_for

if TYPE_CHECKING:
    from tclx.data.tokenizer import CaptionTokenizer
    from tclx.spec.experiment import ExperimentSpec

ImageInput: TypeAlias = "str | os.PathLike[str] | Image.Image | NDArray[np.uint8]"
"""A path, a Pillow image, or [H, W, 3] uint8 RGB."""
Vectors: TypeAlias = "NDArray[np.float32]"
"""[N, D], each row of length 1."""
Device = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["fp32", "tf32", "bf16", "fp16"]
Score = Literal["cosine", "itm"]
T = TypeVar("T")


class Answer(NamedTuple):
    """One answer to a question."""

    text: str
    probability: float
    """Among the answers whose whole likelihood was computed; of a written answer, that of all its words."""


class Attention(NamedTuple):
    """Which patches of an image raise how well it goes with a text."""

    map: NDArray[np.float32]
    """[rows, columns] of the image encoder's grid, not negative; of a matching head the mean over the text's tokens."""
    words: tuple[WordMap, ...]
    """What each word looks at; empty for the cosine similarity, which knows the text as a whole."""
    score: float
    """What is explained: the matching head's logit of "matched", or the cosine similarity."""


def load(
    name: str | os.PathLike[str],
    *,
    spec: str | os.PathLike[str] | None = None,
    which: str = "best",
    device: Device = "auto",
    precision: Precision | None = None,
    runs_dir: str | os.PathLike[str] | None = None,
) -> VisionLanguageModel:
    """A trained model, ready to use.

    Args:
        name: a run's folder or id, the name or file of an experiment with one run, a checkpoint folder, a folder that
            `tclx export` wrote, or official weights (`.pth`, `.safetensors`). A name that stands for several runs is refused
            with their ids: which of several seeds is best is known by test metrics alone, and choosing by those flatters.
        spec: an experiment file that describes the model; needed for official weights.
        which: of a run: `best` by its validation metric, `last`, or a step that was kept.
        device: `auto` is an NVIDIA GPU where there is one, else the CPU.
        precision: of matrix products; None is that of the training.
        runs_dir: where ids and names are looked for; None is the environment's TCLX_RUNS, or `runs`.

    Raises:
        InputError: there is no such run, or several; its files are damaged or do not fit the spec.
        MachineError: the device is not there, or does not compute in the precision.
    """
    folder = Path(runs_dir if runs_dir is not None else os.environ.get("TCLX_RUNS") or "runs")
    saved = find_saved(saved_or_run(os.fspath(name), runs_dir=folder), which=which)
    described = spec_for(saved, None if spec is None else Path(spec), key="spec")
    trained_in: dict[str, str] = {"device": described.training.device, "precision": described.training.precision}
    changes = {"device": device, **({} if precision is None else {"precision": precision})}
    training = TrainingSpec.model_validate({**described.training.model_dump(), **changes})
    described = described.model_copy(update={"training": training})
    on = choose_device(training)
    model, tokenizer, step = model_of(saved, described, exactly=spec is None, key="spec")
    without_training_parts(model)
    model.to(on).eval().requires_grad_(False)
    loaded = VisionLanguageModel(model, described, saved=saved, tokenizer=tokenizer, device=on, step=step)
    loaded.trained_in = trained_in
    return loaded


class VisionLanguageModel:
    """A trained model in eval mode. Made by `load`.

    Attributes:
        spec: what it was trained by, with the device and the precision that it computes in here.
        saved: where its weights are from.
        step: optimizer steps done; None for a file of weights.
        device: where it computes.
        tokenizer: of its texts.
        model: the module itself.
        trained_in: device and precision that the spec asked for in training.
    """

    def __init__(
        self,
        model: Any,
        spec: ExperimentSpec,
        *,
        saved: Saved,
        tokenizer: CaptionTokenizer,
        device: torch.device,
        step: int | None,
    ) -> None:
        self.model, self.spec, self.saved, self.tokenizer = model, spec, saved, tokenizer
        self.device, self.step = device, step
        self.trained_in: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"<{self.name}: {self.spec.task.name}, {self.saved.path.name}, on {self.device}>"

    @property
    def name(self) -> str:
        """The run's id, or the weights' file."""
        if self.saved.run is not None:
            return self.saved.run.run_id
        return self.saved.exported.name if self.saved.exported is not None else self.saved.path.name

    @property
    def has_common_space(self) -> bool:
        """Whether images and texts have embeddings that can be compared."""
        return self.model.online.image_projection is not None and self.model.online.text_projection is not None

    @property
    def has_matching(self) -> bool:
        """Whether a head tells if an image and a text belong together."""
        return isinstance(self.model, TCL) and self.model.head("itm") is not None

    @cached_property
    def image_identity(self) -> str:
        """64 hexadecimal digits, equal for models that embed images alike: of weights, preprocessing and precision."""
        found = hashlib.sha256(
            json.dumps(
                [
                    self.spec.model.image_encoder.model_dump(mode="json"),
                    preprocessing_of(self.spec)["image"],
                    self.spec.training.precision,
                ],
                sort_keys=True,
            ).encode()
        )
        for part in (self.model.online.image_encoder, self.model.online.image_projection):
            for tensor_name, tensor in part.state_dict().items() if part is not None else ():
                found.update(tensor_name.encode())
                found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        return found.hexdigest()

    # ------------------------------------------------------------------------------------------------------------ embeddings

    def embed_images(self, images: Sequence[ImageInput], *, batch_size: int = 64) -> Vectors:
        """Embeddings of images.

        Args:
            images: paths, Pillow images, or [H, W, 3] uint8 arrays, mixed at will.
            batch_size: images per forward pass.

        Returns:
            [N, D] fp32, each row of length 1.

        Raises:
            InputError: an image cannot be used (all such are named, with their numbers), or the model has no common space.
            RunFailed: an embedding is not finite.
        """
        self._require_common_space()
        parts = [self.embed_pixels(pixels) for pixels in self._batches(images, batch_size)]
        return np.concatenate(parts) if parts else np.empty((0, self.spec.model.embed_dim), np.float32)

    def embed_pixels(self, pixels: Sequence[Pixels]) -> Vectors:
        """As `embed_images`, of one batch that `prepared` gave."""
        with self._computing():
            embedding = self.model.online.encode_image(self._normalised(pixels)).embedding
        require_finite(embedding, "embedding of an image")
        found: Vectors = embedding.cpu().numpy()
        return found

    def embed_texts(self, texts: Sequence[str], *, batch_size: int = 64) -> Vectors:
        """Embeddings of texts; arguments, result and errors as of `embed_images`.

        A text is cut at the number of words and tokens that the model was trained with, as evaluation cuts captions.
        """
        self._require_common_space()
        if not len(_listed(texts, str, "texts")):
            return np.empty((0, self.spec.model.embed_dim), np.float32)
        ids, mask = self._encoded(texts)
        found = torch.empty(len(ids), self.spec.model.embed_dim, device=self.device)
        with self._computing():
            for rows, encoded in caption_batches(self.model, ids, mask, batch_size=batch_size):
                found[rows] = encoded.embedding  # type: ignore[assignment]
        require_finite(found, "embedding of a text")
        vectors: Vectors = found.cpu().numpy()
        return vectors

    # ---------------------------------------------------------------------------------------------------------------- scores

    def score(
        self, images: Sequence[ImageInput], texts: Sequence[str], *, by: Score = "cosine", batch_size: int = 64
    ) -> NDArray[np.float32]:
        """How well each image goes with each text.

        Args:
            images, texts: I and T, as `embed_images` and `embed_texts` take them.
            by: `cosine`, -1 to 1; or `itm`, the matching head's probability: every pair goes through the fusion encoder.
            batch_size: images per forward pass.

        Returns:
            [I, T] fp32

        Raises:
            InputError, RunFailed: as `embed_images`; or the model has no matching head.
        """
        if by == "cosine":
            similarity: NDArray[np.float32] = (
                self.embed_images(images, batch_size=batch_size) @ self.embed_texts(texts, batch_size=batch_size).T
            )
            return similarity
        self._require_matching(by)
        numbers = range(len(_listed(texts, str, "texts")))
        parts = [
            self._matched(pixels, texts, [(image, text) for image in range(len(pixels)) for text in numbers], batch_size)
            for pixels in self._batches(images, batch_size)
        ]
        found = np.concatenate(parts) if parts else np.empty(0, np.float32)
        return found.reshape(len(images), len(texts))

    def score_pairs(
        self, images: Sequence[ImageInput], texts: Sequence[str], *, by: Score = "cosine", batch_size: int = 64
    ) -> NDArray[np.float32]:
        """How well each image goes with the text of the same number: [N] fp32. Arguments and errors as of `score`.

        Raises:
            InputError: there are more of one than of the other.
        """
        if len(images) != len(texts):
            raise InputError(Problem("texts", f"{len(images)} images and {len(texts)} texts make no pairs", "as many of each"))
        if by == "cosine":
            first, second = self.embed_images(images, batch_size=batch_size), self.embed_texts(texts, batch_size=batch_size)
            products: NDArray[np.float32] = np.einsum("nd,nd->n", first, second)
            return products
        self._require_matching(by)
        _listed(texts, str, "texts")
        parts, done = [], 0
        for pixels in self._batches(images, batch_size):
            own = texts[done : done + len(pixels)]
            parts.append(self._matched(pixels, own, [(row, row) for row in range(len(pixels))], batch_size))
            done += len(pixels)
        return np.concatenate(parts) if parts else np.empty(0, np.float32)

    def _matched(
        self, pixels: Sequence[Pixels], texts: Sequence[str], pairs: Sequence[tuple[int, int]], batch_size: int
    ) -> NDArray[np.float32]:
        """[P] probabilities of pairs of numbers of an image and a text."""
        if not pairs:
            return np.empty(0, np.float32)
        ids, mask = self._encoded(texts)
        image_rows, text_rows = torch.tensor(pairs, device=self.device).T
        with self._computing():
            tokens = torch.zeros(
                *ids.shape, self.model.online.text_encoder.width, dtype=kept_dtype(self.device), device=self.device
            )
            for rows, encoded in caption_batches(self.model, ids, mask, batch_size=batch_size):
                tokens[rows, : encoded.tokens.shape[1]] = encoded.tokens.to(tokens.dtype)
            images = self._normalised(pixels)
            logits = match_batch(self.model, images, image_rows, text_rows, tokens, mask, batch_size=batch_size)
        require_finite(logits, "matching score")
        found: NDArray[np.float32] = functional.softmax(logits, dim=1)[:, 1].cpu().numpy()
        return found

    # --------------------------------------------------------------------------------------------- explanations and answers

    def attention(self, image: ImageInput, text: str, *, by: Score | None = None) -> Attention:
        """Grad-CAM: where an image raises how well it goes with a text.

        Args:
            by: `itm`, in the middle layer of the fusion encoder; `cosine`, two thirds up the image encoder; None is `itm` where
                the model has a matching head.

        Raises:
            InputError: the image cannot be used, or the model has no such part.
        """
        if by is None:
            by = "itm" if self.has_matching else "cosine"
        if by == "itm":
            self._require_matching(by)
        else:
            self._require_common_space()
        ids, mask = self._encoded(_listed([text], str, "text"))
        images = self._normalised(self.prepared([image]))
        online, grid = self.model.online, self.model.online.image_encoder.grid
        with self._computing():
            encoded = online.encode_text(ids, mask)
            if by == "cosine":
                maps, scores = similarity_maps(self.model, images, encoded.embedding)
                return Attention(maps[0].view(grid).numpy(), (), float(scores[0]))
            patches = online.encode_image(images).tokens
            maps, found = matching_maps(self.model, online.fusion_encoder, encoded.tokens, mask, patches)
        cleaned = clean_caption(text, max_words=self.spec.data.max_caption_words)
        words = tuple(
            WordMap(word.text, maps[0, list(word.places)].mean(dim=0).view(grid))
            for word in self.tokenizer.words(cleaned, max_tokens=self.spec.data.max_caption_tokens)
        )
        return Attention(maps[0].mean(dim=0).view(grid).numpy(), words, float(found[0]) if found is not None else float("nan"))

    def answer(
        self, image: ImageInput, question: str, *, answers: Sequence[str] | None = None, write: bool | None = None, top: int = 3
    ) -> list[Answer]:
        """Answers to a question about an image, the most likely first.

        Args:
            answers: to choose from; None takes those of the run's evaluation (its list, or all of its training data).
            write: word after word instead, one answer; None does as the run's evaluation does.
            top: so many.

        Raises:
            InputError: the image cannot be used, the model answers no questions, or the list is not there.
        """
        if not isinstance(self.model, Answerer) or not isinstance(self.spec.task, VqaSpec):
            raise self.lacks("no decoder for answers", "train with `task: {name: vqa}`")
        found = self.spec.evaluation.tasks.get("vqa")
        settings = found if isinstance(found, VqaEvaluation) else VqaEvaluation()
        longest = self.spec.task.max_answer_tokens
        writes = write if write is not None else answers is None and settings.answer == "generate"
        listed = [] if writes else list(self._answers if answers is None else _listed(answers, str, "answers"))
        if not writes and not listed:
            raise InputError(Problem("answers", "there is nothing to choose from", "at least one answer"))
        candidates = self.tokenizer.encode_answers(listed, max_tokens=longest)
        _listed([question], str, "question")
        encoded = self.tokenizer.encode([clean_text(question, self.spec)], max_tokens=self.spec.data.max_caption_tokens)
        ids, mask = (torch.from_numpy(one).to(self.device) for one in encoded)
        images = self._normalised(self.prepared([image]))
        with self._computing():
            states = self.model.read(self.model.online, images[:, None], ids, mask)
            require_finite(states, "state of a question")
            if writes:
                (written,) = generate(self.model, states, mask, tokenizer=self.tokenizer, max_tokens=longest)
                return [Answer(*one) for one in written]
            official = self.spec.compat == "official"
            ranked = rank(self.model, states, mask, candidates, top_k=settings.top_k, official=official)
        best = zip(ranked.numbers[0, :top].tolist(), ranked.shares[0, :top].tolist(), strict=True)
        return [Answer(listed[number], share) for number, share in best]

    @cached_property
    def _answers(self) -> list[str]:
        """Those of the run's evaluation."""
        if self.saved.exported is not None and (kept := read_answers(self.saved.exported)) is not None:
            return kept
        return self.answers_of_evaluation()

    def answers_of_evaluation(self) -> list[str]:
        """The answers that the run's evaluation chooses from.

        Raises:
            InputError: the list or the training data are not there.
        """
        found = self.spec.evaluation.tasks.get("vqa")
        return answer_list(self.spec, found if isinstance(found, VqaEvaluation) else VqaEvaluation())

    # ------------------------------------------------------------------------------------------------------------- preparing

    def prepared(self, images: Sequence[ImageInput]) -> list[Pixels]:
        """Images as the encoder sees them before they are normalised: [S, S, 3] uint8 each.

        Raises:
            InputError: one cannot be used; all such are named, with their numbers.
        """
        return next(self._batches(images, max(len(images), 1)), [])

    def prepare(self, image: ImageInput, name: str = "the image") -> Pixels:
        """One image as `prepared`.

        Raises:
            BadImage: it cannot be used, with the reason; an image without a path is called `name`.
        """
        data, as_stored = self.spec.data, self.spec.compat == "official"
        limit = data.bad_images.max_pixels
        if isinstance(image, Image.Image):
            pixels = pixels_in_memory(image, name, max_pixels=limit, as_stored=as_stored)
        elif isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
                raise BadImage(name, f"is {list(image.shape)} {image.dtype}, where [height, width, 3] uint8 is expected")
            pixels = np.ascontiguousarray(image)
        elif isinstance(image, str | os.PathLike):
            pixels = read_image(Path(image), max_pixels=limit, **decoding(self.spec, reduces=True))
        else:
            what = type(image).__name__
            raise BadImage(name, f"is a {what}, where a path, a Pillow image or an array [height, width, 3] uint8 is expected")
        return resize_for_evaluation(pixels, image_size=self.spec.model.image_encoder.image_size, decoder=data.decoder)

    def _batches(self, images: Sequence[ImageInput], batch_size: int) -> Iterator[list[Pixels]]:
        """Prepared images, so many at a time. After the first bad one the rest is only read, to name them all."""
        _listed(images, object, "images")
        if batch_size < 1:
            raise InputError(Problem("batch_size", f"is {batch_size}", "at least 1"))
        bad: list[Problem] = []
        for start in range(0, len(images), batch_size):
            batch = []
            for number in range(start, min(start + batch_size, len(images))):
                try:
                    batch.append(self.prepare(images[number]))
                except BadImage as error:
                    bad.append(Problem(f"images[{number}]", str(error)))
            if not bad:
                yield batch
        if bad:
            raise InputError(*bad)

    def _normalised(self, pixels: Sequence[Pixels]) -> Tensor:
        return normalise(stack_images(pixels).to(self.device), self.spec.data.normalization)

    def _encoded(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        data = self.spec.data
        cleaned = [clean_caption(text, max_words=data.max_caption_words) for text in texts]
        encoded = self.tokenizer.encode(cleaned, max_tokens=data.max_caption_tokens)
        return torch.from_numpy(encoded.input_ids).to(self.device), torch.from_numpy(encoded.attention_mask).to(self.device)

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """Precision and switches as in evaluation, no gradients; the process's own switches come back afterwards."""
        precision, tf32 = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
        deterministic = torch.are_deterministic_algorithms_enabled()
        warns = torch.is_deterministic_algorithms_warn_only_enabled()
        fills = getattr(torch.utils.deterministic, "fill_uninitialized_memory")  # noqa: B009  (torch's stubs lack it)
        try:
            prepare_numerics(self.spec.training, self.device)
            with torch.no_grad(), autocast(self.device, self.spec.training.precision):
                yield
        except torch.OutOfMemoryError as error:
            raise MachineError(f"the memory of {self.device} is full: choose a smaller batch_size, or device cpu") from error
        finally:
            torch.set_float32_matmul_precision(precision)
            torch.backends.cudnn.allow_tf32 = tf32
            torch.use_deterministic_algorithms(deterministic, warn_only=warns)
            setattr(torch.utils.deterministic, "fill_uninitialized_memory", fills)  # noqa: B010

    def _require_common_space(self) -> None:
        if not self.has_common_space:
            raise self.lacks("no common space of images and texts", "a contrastive term such as objectives.cma makes one")

    def _require_matching(self, by: str) -> None:
        if by != "itm":
            raise InputError(Problem("by", f"is {by!r}", "cosine or itm"))
        if not self.has_matching or not isinstance(self.model.online.fusion_encoder, FusionEncoder):
            raise self.lacks("no matching head", "objectives.itm trains one; or score by cosine")

    def lacks(self, what: str, hint: str) -> InputError:
        """The refusal of what the model has no part for."""
        return InputError(Problem("", f"{self.name} has {what} (it was trained for {self.spec.task.name})", hint))


def _listed(values: Sequence[T], kind: type[Any], what: str) -> Sequence[T]:
    """The values, once it is sure that they are several of a kind, and not one that happens to be a sequence itself."""
    alone = isinstance(values, str | bytes | os.PathLike | Image.Image) or (isinstance(values, np.ndarray) and values.ndim == 3)
    if alone or not hasattr(values, "__len__") or not hasattr(values, "__getitem__"):
        raise InputError(Problem(what, f"one {type(values).__name__} is no list", f"put it in one: [{what[:-1]}]"))
    wrong = [number for number, one in enumerate(values) if not isinstance(one, kind)]
    if wrong:
        message = f"is a {type(values[wrong[0]]).__name__}, where {kind.__name__} is expected"
        raise InputError(Problem(f"{what}[{wrong[0]}]" if what.endswith("s") else what, message))
    return values
