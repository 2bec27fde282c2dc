"""Zero-shot classification by prompts: each image is of the class whose prompts it is most similar to.

Source: Radford et al. 2021, arXiv:2103.00020: the embedding of a class is the mean of its prompts' embeddings, normalised.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from tclx.errors import InputError, Problem
from tclx.section import BatchSize, Conflict, Count, LocalPath, NamedPath, Section
from tclx.tasks.metric import MeanOfClasses, Metric
from tclx.tasks.needs import Needs
from tclx.tasks.outcomes import Outcome, Queries, fingerprint
from tclx.tasks.task import Evaluation, OwnDataTask, Split

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from tclx.data.dataset import EvaluationSet
    from tclx.data.images import Pixels
    from tclx.data.tokenizer import CaptionTokenizer
    from tclx.model.tcl import TCL
    from tclx.spec.experiment import ExperimentSpec


class FolderOfClasses(Section):
    """Your own labelled images, one folder a class."""

    source: Literal["folder"]
    """Images in `folder/<class>/`, at any depth; hidden files are passed over."""
    folder: LocalPath
    """A class is a folder in it; its name, underscores read as spaces, is what prompts call it."""
    class_names: LocalPath | None = None
    """A JSON file with other names: an object from a folder's name to that of its class."""

    def paths(self) -> Iterator[NamedPath]:
        yield NamedPath("folder", self.folder, "folder")
        if self.class_names is not None:
            yield NamedPath("class_names", self.class_names, "file")


class LabelledScenes(Section):
    """Generated scenes of a single shape, by its shape or its colour."""

    source: Literal["scenes"]
    """Generated, so nothing is downloaded."""
    attribute: Literal["shape", "color"]
    """What the class is."""
    num_images: Count = 256
    """Number of scenes."""
    picture_size: Annotated[int, Field(ge=16, le=256)] = 32
    """Side of a generated image in pixels."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the generator. With that of `data` they come from splits that training has not seen."""

    def paths(self) -> Iterator[NamedPath]:
        return iter(())


LabelledImages = Annotated[FolderOfClasses | LabelledScenes, Field(discriminator="source")]


_TEMPLATES = ("a photo of a {}",)
_ONE_PLACE = "one `{}`, as in `a photo of a {}`"


def _fault_of(template: str) -> str | None:
    places = template.count("{}")
    return None if places == 1 else f"`{template}` has {places} places for the class"


class ClassificationSpec(OwnDataTask):
    """Zero-shot classification: which class's prompts an image is most similar to, by cosine similarity."""

    key: ClassVar = "classification"
    metrics: ClassVar = (
        Metric(
            "accuracy",
            "accuracy",
            "%",
            "higher",
            lambda found: 100.0 / found["num_classes"],
            about="Images whose own class's prompts are the most similar to them.",
        ),
        Metric(
            "balanced_accuracy",
            "balanced accuracy",
            "%",
            "higher",
            lambda found: 100.0 / found["num_classes"],
            MeanOfClasses("accuracy", classes="class"),
            about="Mean over classes of each one's accuracy, so that frequent ones do not count more.",
        ),
        Metric("num_images", "images"),
        Metric("num_classes", "classes"),
    )
    main: ClassVar = ("accuracy", "balanced_accuracy")
    columns: ClassVar = ("accuracy", "balanced_accuracy")

    val: LabelledImages | None = None
    """Evaluated where `during_training` or `at_end` is val."""
    test: LabelledImages | None = None
    """Evaluated where `during_training` or `at_end` is test."""
    templates: Annotated[tuple[str, ...], Field(min_length=1)] = _TEMPLATES
    """Prompts; `{}` stands for the class."""
    templates_file: LocalPath | None = None
    """A JSON list of prompts, in place of `templates`."""
    batch_size: BatchSize = 64
    """Images or prompts per forward pass."""

    @model_validator(mode="after")
    def _templates_name_the_class(self) -> Self:
        for template in self.templates:
            if (fault := _fault_of(template)) is not None:
                raise Conflict(fault, "templates", hint=_ONE_PLACE)
        if self.templates_file is not None and self.templates != _TEMPLATES:
            message = "give at most one of `templates` and `templates_file`"
            raise Conflict(message, "templates", "templates_file", one_too_many=True)
        if self.val is None and self.test is None:
            raise Conflict("no labelled images are named", "val", "test", hint="val: {source: folder, folder: ...}")
        return self

    def problems(self, spec: ExperimentSpec) -> Iterator[Problem]:
        yield from super().problems(spec)
        aligns = any(term.aligns and Needs.PROJECTIONS in term.needs for term in spec.objectives.terms.values())
        if not aligns:
            message = "no term that is on brings the embeddings of images and texts together"
            yield Problem("evaluation.classification", message, "switch on objectives.cma, or set null", others=("objectives",))

    def paths(self) -> Iterator[NamedPath]:
        yield from super().paths()
        if self.templates_file is not None:
            yield NamedPath("templates_file", self.templates_file, "file")

    def prompts(self) -> tuple[str, ...]:
        """The templates.

        Raises:
            InputError: the file is no list of prompts with one place for the class each.
        """
        if self.templates_file is None:
            return self.templates
        from tclx.files import Unreadable, read_texts

        key, path = "evaluation.classification.templates_file", Path(self.templates_file)
        try:
            templates = read_texts(path)
        except Unreadable as error:
            raise InputError(Problem(key, str(error), 'a JSON list of prompts: ["a photo of a {}", ...]')) from None
        faults = [f"{path}: prompt {number}: {fault}" for number, one in enumerate(templates) if (fault := _fault_of(one))]
        if faults or not templates:
            raise InputError(Problem(key, faults[0] if faults else f"{path} is an empty list", _ONE_PLACE))
        return tuple(templates)

    def images(self, split: Split) -> list[Path]:
        self.prompts()  # read before training begins
        labelled = getattr(self, split)
        if not isinstance(labelled, FolderOfClasses):
            return []
        return [path for path, _ in _read_folder(labelled, key=f"evaluation.classification.{split}").images]

    def evaluate(
        self, model: TCL, spec: ExperimentSpec, split: Split, *, tokenizer: CaptionTokenizer, device: torch.device
    ) -> Evaluation:
        import torch

        from tclx.data.batch import normalise
        from tclx.data.dataset import EvaluationSet
        from tclx.model.precision import autocast
        from tclx.tasks.evaluating import evaluating, gather_parts, my_part, require_finite

        labelled = self.data_of(split)
        rows: Rows = (
            _FolderRows(labelled, spec, key=f"evaluation.classification.{split}")
            if isinstance(labelled, FolderOfClasses)
            else _SceneRows(labelled, split)
        )
        images = EvaluationSet(rows, spec.data, image_size=spec.model.image_encoder.image_size)
        with torch.no_grad(), evaluating(model), autocast(device, spec.training.precision):
            classes = self._class_embeddings(model, spec, rows.classes, tokenizer=tokenizer, device=device)
            require_finite(classes, "embedding of a class")
            mine = my_part(torch.arange(images.num_images)).tolist()
            parts = []
            for batch in images.image_batches(mine, batch_size=self.batch_size) if mine else ():
                encoded = model.online.encode_image(normalise(batch.to(device), spec.data.normalization))
                require_finite(_embedding(encoded.embedding), "embedding of an image")
                parts.append((_embedding(encoded.embedding) @ classes.T).cpu())
            similarity = gather_parts(torch.cat(parts) if parts else None, torch.device("cpu"))
        labels = torch.tensor(rows.labels)
        right = similarity.argmax(dim=1) == labels
        num_of_class = labels.bincount(minlength=len(rows.classes))
        by_class = 100.0 * labels[right].bincount(minlength=len(rows.classes)) / num_of_class  # NaN where there is no image
        metrics = {
            "accuracy": 100.0 * float(right.float().mean()),
            "balanced_accuracy": float(by_class.nanmean()),
            "num_images": float(images.num_images),
            "num_classes": float(len(rows.classes)),
        }
        examples = partial(_examples, rows, images, similarity, num_of_class.tolist(), by_class.tolist())
        queries = Queries(fingerprint(rows.classes, rows.labels, rows.names), list(range(images.num_images)))
        return Evaluation(
            metrics, examples, {"accuracy": Outcome(queries, right.int().tolist()), "class": Outcome(queries, rows.labels)}
        )

    def _class_embeddings(
        self, model: TCL, spec: ExperimentSpec, classes: Sequence[str], *, tokenizer: CaptionTokenizer, device: torch.device
    ) -> Tensor:
        """[classes, D] L2-normalised."""
        import torch
        from torch.nn import functional

        from tclx.data.captions import clean_caption

        data = spec.data
        templates = self.prompts()
        prompts = [template.replace("{}", name) for name in classes for template in templates]
        cleaned = [clean_caption(prompt, max_words=data.max_caption_words) for prompt in prompts]
        parts = []
        for start in range(0, len(cleaned), self.batch_size):
            ids = tokenizer.encode(cleaned[start : start + self.batch_size], max_tokens=data.max_caption_tokens)
            input_ids, mask = torch.from_numpy(ids.input_ids).to(device), torch.from_numpy(ids.attention_mask).to(device)
            parts.append(_embedding(model.online.encode_text(input_ids, mask).embedding))
        means = torch.cat(parts).view(len(classes), len(templates), -1).mean(dim=1)
        return functional.normalize(means, dim=-1)


def _embedding(embedding: Tensor | None) -> Tensor:
    if embedding is None:
        raise InputError(Problem("evaluation.classification", "this model has no common space", "switch on objectives.cma"))
    return embedding


# ---------------------------------------------------------------------------------------------------------- the labelled images


class _Labelled(NamedTuple):
    classes: tuple[str, ...]
    images: list[tuple[Path, int]]
    """With the number of their class."""


def _read_folder(labelled: FolderOfClasses, *, key: str) -> _Labelled:
    """
    Raises:
        InputError: there are no classes, a class has no image, or names are missing or the same.
    """
    root = Path(labelled.folder)
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(folders) < 2:
        found = f"{root} has {len(folders)} folders"
        raise InputError(Problem(f"{key}.folder", found, "a folder for each class, two or more, with its images in it"))
    names = _class_names(labelled, [folder.name for folder in folders], key=key)
    problems, images = list[Problem](), list[tuple[Path, int]]()
    for number, folder in enumerate(folders):
        inside = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith(".")]
        images += [(path, number) for path in inside]
        if not inside:
            problems.append(Problem(f"{key}.folder", f"{folder} has no image", "remove it, or put its images there"))
    if problems:
        raise InputError(*problems[:20])
    return _Labelled(names, images)


def _class_names(labelled: FolderOfClasses, folders: Sequence[str], *, key: str) -> tuple[str, ...]:
    from tclx.files import Unreadable, read_object

    names = {folder: folder.replace("_", " ") for folder in folders}
    if labelled.class_names is not None:
        key = f"{key}.class_names"
        try:
            written = read_object(Path(labelled.class_names))
        except Unreadable as error:
            raise InputError(Problem(key, str(error), "a JSON object from a folder's name to that of its class")) from None
        if missing := [folder for folder in folders if not isinstance(written.get(folder), str)]:
            shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
            raise InputError(Problem(key, f"{labelled.class_names} has no name, a text, for {shown}"))
        names = {folder: written[folder] for folder in folders}
    most_common, count = Counter(names.values()).most_common(1)[0]
    if count > 1:
        raise InputError(Problem(key, f"{count} classes are called {json.dumps(most_common)}", "a name for each"))
    return tuple(names.values())


class Rows:
    """Images with a class each, as `EvaluationSet` reads rows; a row's caption is the name of its class."""

    classes: tuple[str, ...]
    labels: list[int]
    names: list[str]
    """What tells each image from others."""

    @property
    def num_rows(self) -> int:
        return len(self.labels)

    @property
    def image_index(self) -> Any:
        import numpy as np

        return np.arange(self.num_rows)

    def captions(self, row: int) -> Sequence[str]:
        return (self.classes[self.labels[row]],)

    def image(self, row: int) -> Pixels:
        raise NotImplementedError


class _FolderRows(Rows):
    def __init__(self, labelled: FolderOfClasses, spec: ExperimentSpec, *, key: str) -> None:
        from tclx.data.images import image_reader

        found = _read_folder(labelled, key=key)
        self.classes, self.labels = found.classes, [label for _, label in found.images]
        self._paths = [path for path, _ in found.images]
        self.names = [path.relative_to(labelled.folder).as_posix() for path in self._paths]
        self._read = image_reader(spec)

    def image(self, row: int) -> Pixels:
        return self._read(self._paths[row])


class _SceneRows(Rows):
    def __init__(self, labelled: LabelledScenes, split: Split) -> None:
        from tclx.data.scenes import COLORS, SHAPES, draw_image, draw_scenes
        from tclx.spec.data import ScenesSource

        # A third of the scenes has one object; what an image is of is then beyond doubt.
        drawn = ScenesSource(
            source="scenes",
            split=split,
            num_images=6 * labelled.num_images + 64,
            picture_size=labelled.picture_size,
            seed=labelled.seed,
        )
        single = [scene for scene in draw_scenes(drawn) if len(scene.objects) == 1][: labelled.num_images]
        self.classes = tuple(SHAPES if labelled.attribute == "shape" else COLORS)
        self.labels = [self.classes.index(getattr(scene.objects[0], labelled.attribute)) for scene in single]
        self.names = [f"{split} {labelled.seed} {labelled.picture_size} {number}" for number in range(len(single))]
        self._images = [draw_image(scene) for scene in single]

    def image(self, row: int) -> Pixels:
        return self._images[row]


# ------------------------------------------------------------------------------------------------------------ for people to see


def _examples(
    rows: Rows, images: EvaluationSet, similarity: Tensor, num_of_class: Sequence[int], by_class: Sequence[float]
) -> dict[str, Any]:
    """Each class's accuracy in percent, and `JudgedItems`: a few images with their class and the three most similar ones."""
    from tclx.tasks.thumbnails import NUM_SHOWN, jpeg, small, spaced

    shown = spaced(len(rows.labels), NUM_SHOWN)
    best = similarity[shown].topk(min(3, len(rows.classes)), dim=1)
    return {
        "classes": {
            name: {"num_images": num_images, "accuracy": accuracy if num_images else None}
            for name, num_images, accuracy in zip(rows.classes, num_of_class, by_class, strict=True)
        },
        "score": "cos",
        "items": [
            {
                "images": [row],
                "text": "",
                "right": [rows.classes[rows.labels[row]]],
                "answers": [
                    {"text": rows.classes[number], "score": value} for number, value in zip(numbers, values, strict=True)
                ],
            }
            for row, numbers, values in zip(shown, best.indices.tolist(), best.values.tolist(), strict=True)
        ],
        "pictures": {str(row): jpeg(small(images.image(row))) for row in shown},
    }
