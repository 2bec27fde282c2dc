"""What is learned from: images, captions, and what is done to them on the way in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from tclx.section import (
    AddressMarker,
    Commit,
    Conflict,
    Count,
    Fraction,
    HubName,
    LocalPath,
    NamedPath,
    Section,
    Sensible,
    Weight,
    text_like,
)
from tclx.spec.stores import scheme_of


class SourceSection(Section):
    """What every source of data answers without opening anything."""

    def paths(self) -> Iterator[NamedPath]:
        """Files and folders that must be there."""
        return iter(())

    def addresses(self) -> Iterator[tuple[str, str]]:
        """What lies in stores, by its key within the section."""
        return iter(())


class ScenesSource(SourceSection):
    """Generated images of coloured shapes with five varied captions each; the same seed and split give the same scenes."""

    source: Literal["scenes"]
    """Generated, so nothing is downloaded."""
    num_images: Count
    """Number of scenes."""
    split: Literal["train", "val", "test"]
    """Scenes of different splits never coincide."""
    picture_size: Annotated[int, Field(ge=16, le=256)] = 32
    """Side of a generated image in pixels."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the generator."""
    form: Literal["captions", "entailment", "vqa", "nlvr"] = "captions"
    """What is said of the scenes: captions, or the rows of a downstream task."""


Share = Annotated[float, Field(ge=0, le=1)]


class OwnSource(SourceSection):
    """What is chosen of somebody's own images and captions."""

    image_column: Annotated[str, Field(min_length=1)] | None = None
    """The column or key that holds an image's path; by default found by its name (image, filepath, file_name and the like)."""
    caption_columns: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """The columns or keys that hold captions; by default found by name (caption, title, text, caption_1 and the like)."""
    split: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Of files that mark splits (Karpathy's, or a column `split`): which are read; by default train and restval for data.train,
    val for data.val, test for data.test. Only with `form: captions`."""
    part: tuple[Share, Share] | None = None
    """Only images whose path hashes into this range of 0 to 1: [0, 0.9] to train, [0.9, 1] to validate on the same files. An
    image with all its captions is always in one part, whatever else the files hold."""
    limit: Count | None = None
    """Only the first so many images, to try something out."""
    min_side: Count | None = None
    """Leave out images whose shorter side has fewer pixels. Every image's header is read whenever the files are; for millions,
    `tclx data check --clean` or `tclx data pack` does it once."""
    max_aspect: Annotated[float, Field(ge=1), Sensible(at_most=1e6)] | None = None
    """Leave out images whose longer side is more than so many times the shorter one; as `min_side`, from the header."""

    @model_validator(mode="after")
    def _part_is_a_range(self) -> Self:
        if self.part is not None and not self.part[0] < self.part[1]:
            low, high = self.part
            raise Conflict(f"`part` [{low:g}, {high:g}] is no range: the first is below the second", "part")
        return self


class FilesSource(OwnSource):
    """Annotation files of any format and a folder of images."""

    files_key: ClassVar = "files"
    root_key: ClassVar = "image_root"

    source: Literal["files"]
    """Your own images and captions."""
    form: Literal["captions", "pretrain", "retrieval", "entailment", "vqa", "nlvr"] = "captions"
    """What a row says. `captions`: an image with one caption or several; all captions of an image are gathered, and one of them
    is drawn per epoch. The others take rows as ALBEF and TCL write them. `pretrain`: {image, caption: text or list}, a row at
    a time. `retrieval`: {image, image_id, caption}, a row a caption, to train on, {image, caption: list} to evaluate.
    `entailment`: {image, sentence, label}. `vqa`: {image, question, answer: text or list, question_id}. `nlvr`: {images:
    [left, right], sentence, label}."""
    files: Annotated[tuple[LocalPath, ...], Field(min_length=1)]
    """Files, read one after the other: JSON, JSON Lines, CSV, TSV, COCO's captions, Karpathy's splits, Flickr's token text,
    Parquet. The format is recognised from the content."""
    image_root: LocalPath
    """The folder that the files' image paths start from."""
    approximate_rows: Count | None = None
    """Roughly how many rows the files hold, so that `tclx plan --without-data` can count steps where the files are not."""

    def paths(self) -> Iterator[NamedPath]:
        for index, file in enumerate(self.files):
            yield NamedPath(f"files[{index}]", file, "file")
        yield NamedPath("image_root", self.image_root, "folder")


class FolderSource(OwnSource):
    """A folder of images with their captions beside them."""

    files_key: ClassVar = "folder"
    root_key: ClassVar = "folder"

    source: Literal["folder"]
    """Your own images, each with a text file of its name (`a.jpg`, `a.txt`, a caption a line), or with one `metadata.csv` or
    `metadata.jsonl` for all."""
    form: Literal["captions"] = "captions"
    """All captions of an image are gathered, and one of them is drawn per epoch."""
    folder: LocalPath
    """Where the images are, in folders of their own if you like."""
    approximate_rows: Count | None = None
    """Roughly how many images it holds, so that `tclx plan --without-data` can count steps where it is not."""

    @property
    def files(self) -> tuple[str, ...]:
        return (self.folder,)

    @property
    def image_root(self) -> str:
        return self.folder

    def paths(self) -> Iterator[NamedPath]:
        yield NamedPath("folder", self.folder, "folder")


class DatasetsSource(OwnSource):
    """A data set that the `datasets` library reads: of the hub by its name, or a folder."""

    files_key: ClassVar = "name"
    root_key: ClassVar = "name"

    source: Literal["datasets"]
    """A data set with the images in it; `tclx fetch` brings it to this machine, and runs read it there."""
    form: Literal["captions"] = "captions"
    """All captions of a row are gathered, and one of them is drawn per epoch."""
    name: HubName
    """`owner/name` on the hub, or a local folder that `datasets` reads or has saved (written `./folder` or `/folder`)."""
    subset: Annotated[str, Field(min_length=1)] | None = None
    """Which part of the data set, where it has several (its "config")."""
    revision: Commit | None = None
    """The commit of the data set on the hub; null takes the one that was prepared last on this machine."""
    approximate_rows: Count | None = None
    """Roughly how many rows it holds, so that `tclx plan --without-data` can count steps where it is not."""

    @model_validator(mode="after")
    def _folders_have_no_commits(self) -> Self:
        if self.revision is not None and self.name.startswith("/"):
            raise Conflict("`revision` is a commit on the hub, and `name` is a folder", "revision")
        return self

    @property
    def files(self) -> tuple[str, ...]:
        return (self.name,)

    def paths(self) -> Iterator[NamedPath]:
        if self.name.startswith("/"):
            yield NamedPath("name", self.name, "folder")


class ShardCacheSpec(Section):
    """Where shards are kept while they are read; all processes of a machine share it."""

    folder: LocalPath | None = None
    """A folder on the machine that trains; null takes `$SLURM_TMPDIR` there, else `$TMPDIR`, else the system's own."""
    max_gib: Annotated[float, Field(gt=0), Sensible(at_most=1e6)] = 100.0
    """GiB of shards that are kept; then those that were not read for longest go."""


class ShardsSource(SourceSection):
    """Images in a few large tar files: what `tclx data pack` wrote, or WebDataset tars that others have made."""

    source: Literal["shards"]
    """Packed images and captions."""
    folder: Annotated[LocalPath, AddressMarker()]
    """The folder of the tars: of one split, as `tclx data pack` names it; or its address in a web or object store (`https://`,
    `s3://`). Tars without an index are samples `KEY.jpg` (or another format) with `KEY.txt`, or with `KEY.json` that holds
    `caption`."""
    form: Literal["captions", "pretrain", "retrieval"] = "captions"
    """The form of the rows that were packed; tars that others have made are `captions`."""
    shards_at_once: Count | None = None
    """Mix the rows of so many shards at a time, drawn anew in each pass, where not all shards can be kept near; null mixes all
    rows, as with files."""
    cache: ShardCacheSpec | None = None
    """Keep shards on the machine that trains: fetched whole, ahead of their rows. Those of a store are in any case."""
    approximate_rows: Count | None = None
    """Roughly how many rows there are, so that `tclx plan --without-data` can count steps where the shards are not."""

    def paths(self) -> Iterator[NamedPath]:
        if scheme_of(self.folder) is None:
            yield NamedPath("folder", self.folder, "folder")

    def addresses(self) -> Iterator[tuple[str, str]]:
        if scheme_of(self.folder) is not None:
            yield "folder", self.folder


FileData = FilesSource | FolderSource
"""Images are files of their own."""
OwnData = FileData | DatasetsSource

SingleSource = ScenesSource | FilesSource | FolderSource | DatasetsSource | ShardsSource


class MixedSource(Section):
    """One source of a mixture."""

    data: Annotated[SingleSource, Field(discriminator="source")]
    """Its images and captions."""
    share: Weight | None = None
    """How much of the mixture it is, in proportion to the shares of the others; with none, each row comes once an epoch."""


class MixtureSource(SourceSection):
    """Several sources as one, in stated shares."""

    source: Literal["mixture"]
    """Sources of different kinds, folders and sizes, learned from together."""
    sources: Annotated[
        dict[Annotated[str, text_like(r"^[a-z_0-9]+$", "a name of small letters, digits and _")], MixedSource],
        Field(min_length=1),
    ]
    """By names of your own."""
    rows_per_epoch: Count | None = None
    """How many rows an epoch draws, by default as many as there are. With shares the rows of every source are gone through in
    passes, each in a new order, and the next epoch goes on where this one ended: none is drawn again before all were."""

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        without = [name for name, one in self.sources.items() if one.share is None]
        if without and (len(without) < len(self.sources) or self.rows_per_epoch is not None):
            why = "others have one" if len(without) < len(self.sources) else "`rows_per_epoch` is drawn by shares"
            raise Conflict(
                f"`{without[0]}` has no share, and {why}", f"sources.{without[0]}", hint="give each a share, or none"
            )
        forms = {name: one.data.form for name, one in self.sources.items()}
        other = next((name for name, form in forms.items() if form != self.form), None)
        if other is not None:
            first = next(iter(forms))
            raise Conflict(f"`{other}` is of `form: {forms[other]}`, `{first}` of {self.form}", f"sources.{other}.data")
        return self

    @property
    def form(self) -> str:
        """Of the rows, the same in all sources."""
        return next(iter(self.sources.values())).data.form

    def paths(self) -> Iterator[NamedPath]:
        for name, one in self.sources.items():
            for key, path, kind in one.data.paths():
                yield NamedPath(f"sources.{name}.data.{key}", path, kind)

    def addresses(self) -> Iterator[tuple[str, str]]:
        for name, one in self.sources.items():
            for key, address in one.data.addresses():
                yield f"sources.{name}.data.{key}", address


DataSource = Annotated[SingleSource | MixtureSource, Field(discriminator="source")]


class HubTokenizer(Section):
    """A tokenizer by name or folder."""

    source: Literal["pretrained"]
    """A pretrained tokenizer, with its own vocabulary."""
    name: HubName
    """A hub name, or a local folder with `tokenizer.json` or `vocab.txt` (written `./folder` or `/folder`)."""


class TrainedTokenizer(Section):
    """A lower-case WordPiece tokenizer, trained on the training captions when the run starts and kept with it."""

    source: Literal["captions"]
    """Learned from the training captions."""
    vocab_size: Annotated[int, Field(ge=64), Sensible(at_most=10_000_000)] = 8192
    """Upper bound of the vocabulary."""


TokenizerSpec = Annotated[HubTokenizer | TrainedTokenizer, Field(discriminator="source")]


CropArea = Annotated[float, Field(ge=0, le=1), Sensible(at_least=0.001)]
Mean = Annotated[float, Sensible(at_least=-1000, at_most=1000)]
Deviation = Annotated[float, Field(gt=0), Sensible(at_least=0.001, at_most=1000)]
TextLength = Annotated[int, Sensible(at_most=100_000)]


class AugmentationSpec(Section):
    """Training-time augmentation; the two views of IMC and LMI are two independent draws."""

    crop_scale: tuple[CropArea, CropArea] = (0.2, 1.0)
    """Range of the random resized crop's area, as a fraction of the image."""
    color_jitter: Fraction = 0.8
    """Probability of jittering brightness, contrast, saturation (0.4 each) and hue (0.1)."""
    grayscale: Fraction = 0.2
    """Probability of converting to grayscale."""
    blur: Fraction = 0.5
    """Probability of a Gaussian blur, sigma 0.1 to 2 pixels."""
    flip: Fraction = 0.5
    """Probability of a horizontal flip; 0 where captions mention left and right."""
    random_ops: Annotated[int, Field(ge=0, le=8)] = 2
    """RandAugment operations sampled per view, each applied with probability 0.5; 0 disables RandAugment."""
    random_magnitude: Annotated[int, Field(ge=0, le=10)] = 7
    """RandAugment's magnitude."""

    @model_validator(mode="after")
    def _scale_is_a_range(self) -> Self:
        low, high = self.crop_scale
        if not 0 < low <= high:
            message = f"`crop_scale` [{low:g}, {high:g}] is no range of areas: the first is above 0 and at most the second"
            raise Conflict(message, "crop_scale")
        return self


class NormalizationSpec(Section):
    """Per-channel mean and standard deviation of pixels in [0, 1]; the default is CLIP's."""

    mean: tuple[Mean, Mean, Mean] = (0.48145466, 0.4578275, 0.40821073)
    """Means of red, green and blue."""
    std: tuple[Deviation, Deviation, Deviation] = (0.26862954, 0.26130258, 0.27577711)
    """Standard deviations of red, green and blue."""


class BadImagesSpec(Section):
    """Handling of images that are missing, truncated, not images or too large."""

    policy: Literal["refuse", "skip"] = "refuse"
    """`refuse`: every image is opened before training and one bad one stops the run. `skip`: a bad one is replaced by the
    next good row, counted and reported; nothing is opened beforehand."""
    limit: Fraction = 0.01
    """With `skip`: the run stops when more than this share of the images of an epoch was bad."""
    max_pixels: Annotated[int, Field(ge=10_000), Sensible(at_most=10**10)] = 50_000_000
    """Images with more pixels are never decoded."""


class DataSpec(Section):
    """Training, validation and test data, and their preprocessing."""

    train: DataSource
    """Training data."""
    val: DataSource | None = None
    """Validation data, evaluated during training; selects the best checkpoint."""
    test: DataSource | None = None
    """Test data, for the final metrics."""
    tokenizer: TokenizerSpec = TrainedTokenizer(source="captions")
    """Tokenizer of the captions."""
    max_caption_words: Annotated[TextLength, Field(ge=1)] = 30
    """Captions are truncated to this many words."""
    max_caption_tokens: Annotated[TextLength, Field(ge=2)] = 30
    """And to this many tokens, [CLS] included."""
    augmentation: AugmentationSpec = AugmentationSpec()
    """Training-time augmentation; evaluation only resizes."""
    normalization: NormalizationSpec = NormalizationSpec()
    """Pixel normalization; use what the image encoder's weights were trained with."""
    bad_images: BadImagesSpec = BadImagesSpec()
    """Handling of unusable images."""
    decoder: Literal["fast", "pil"] = "fast"
    """`fast`: turbo-JPEG and OpenCV. `pil`: Pillow throughout, as the official code."""
    reduce_jpegs: bool = False
    """Decode a JPEG at a half, a quarter or an eighth of its size where the smallest crop keeps `image_size` pixels: 2 to 5
    times as fast on photographs of 12 megapixels, with slightly other pixels."""
    num_workers: Annotated[int, Field(ge=0, le=128)] = 4
    """Data-loading worker processes per training process; results do not depend on it."""

    def single_sources(self) -> Iterator[tuple[str, SingleSource]]:
        """The sources with their key paths, those of mixtures one by one."""
        for split in ("train", "val", "test"):
            source = getattr(self, split)
            if isinstance(source, MixtureSource):
                yield from ((f"data.{split}.sources.{name}.data", one.data) for name, one in source.sources.items())
            elif source is not None:
                yield f"data.{split}", source
