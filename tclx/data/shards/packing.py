"""Packing: the images and captions of a source into tar files, a checked image at a time, several shards at once.

A shard holds a fixed run of the source's images, so that every shard can be written, and after an interruption kept or written
again, without the others. Nothing depends on time, order of processes or interruptions: the same data give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tclx.data.images import BadImage, Pixels, image_decoder
from tclx.data.kinds import kind_of_file
from tclx.data.shards.arrays import Texts, read_arrays, write_arrays
from tclx.data.shards.index import INDEX, REPORT, STATE, ShardIndex, check_shards, read_index
from tclx.data.shards.tar import write_end, write_member
from tclx.data.sources.opening import open_source
from tclx.errors import InputError, MachineError, Problem
from tclx.files import Unreadable, holding, machine_error, read_object, replacing, write_atomically
from tclx.processes import end_with
from tclx.system import START_METHOD, num_cpus
from tclx.tasks.task import CAPTION_FORMS

if TYPE_CHECKING:
    from tclx.data.scenes import Split
    from tclx.data.sources.source import Rows
    from tclx.spec.experiment import ExperimentSpec

NUM_LOOKED_AT = 256
"""Images, evenly spread, by whose bytes data are told apart, and from whose sizes the number of images of a shard follows."""
_LOCK = ".lock"
_OWN_NAMES = re.compile(
    rf"\w+-\d{{6}}\.(tar|part)|{re.escape(INDEX)}|{re.escape(REPORT)}|{re.escape(STATE)}|{re.escape(_LOCK)}|\..+\.\d+\.tmp"
)
_BESIDE_IMAGE = 2048
"""Bytes of a sample besides its image: two headers, captions, padding."""
_SUFFIXES = {"JPEG": "jpg", "PNG": "png", "WebP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif", "AVIF": "avif"}
MAX_BAD_SHOWN = 20


@dataclass(frozen=True)
class PackSettings:
    """How images are stored."""

    shard_mib: int = 256
    """About so large a shard is."""
    resize: int | None = None
    """Shorter side above which an image is made smaller and coded anew; null stores every file as it is."""
    quality: int = 95
    """Of the JPEGs that are coded anew; 100 codes them as PNG, without loss."""


class Lost(NamedTuple):
    """An image that cannot be used."""

    image: str
    cause: str
    """`missing`, `decoding` or `size`."""
    reason: str


class Packed(NamedTuple):
    """What is in a folder now."""

    folder: Path
    form: str
    num_images: int
    num_rows: int
    num_shards: int
    num_bytes: int
    lost: dict[str, int]
    """Images that were left out, by cause."""
    was_there: bool
    """Whether an earlier command has packed them."""


class _Content:
    """P images with all that is said of them, whatever their source."""

    def __init__(self, spec: ExperimentSpec, split: Split) -> None:
        section = getattr(spec.data, split)
        if section is None:
            raise InputError(Problem(f"data.{split}", "is not set: there is nothing to pack"))
        if section.source == "mixture":
            problem = "is a mixture, and each source is packed into a folder of its own"
            raise InputError(
                Problem(f"data.{split}", problem, "pack a spec with that source alone; a mixture takes the folders")
            )
        if section.form not in CAPTION_FORMS:
            problem = f"is {section.form}, and only rows of captions are packed"
            raise InputError(Problem(f"data.{split}.form", problem, "train on such rows as `source: files`"))
        source = open_source(section, key=f"data.{split}")
        self._max_pixels = spec.data.bad_images.max_pixels
        self.form = section.form
        self.rows: Rows = source.rows(spec.model_copy(update={"compat": None}))  # official training tells apart by row itself
        self._stored = source.stored_images
        if self._stored:
            named = getattr(source, "index" if section.source == "shards" else "annotations")
            self.names: Sequence[str] = named.images
            self.image_of_row: NDArray[np.int64] = named.image_of_row
        else:
            self.names = [f"scenes/{section.split}/{number:06d}.png" for number in range(self.rows.num_rows)]
            self.image_of_row = np.arange(self.rows.num_rows)

    @cached_property
    def rows_by_image(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The rows sorted by image, and where those of each image begin."""
        order = np.argsort(self.image_of_row, kind="stable")
        return order, np.searchsorted(self.image_of_row[order], np.arange(len(self.names) + 1))

    def captions(self, image: int) -> list[str]:
        """Of all its rows."""
        order, start = self.rows_by_image
        return [text for row in order[start[image] : start[image + 1]].tolist() for text in self.rows.captions(row)]

    def stored(self, image: int) -> bytes:
        """As its file has it; a drawn one as PNG.

        Raises:
            BadImage: it cannot be read.
        """
        if self._stored:
            return self._stored[image].read_bytes(max_pixels=self._max_pixels)
        return _encoded(self.rows.image(image), quality=100)

    def digest(self) -> str:
        """Of names, captions and what stands for the same image."""
        digest = hashlib.sha256(self.form.encode())
        for name in self.names:
            digest.update(json.dumps(name).encode())
        for row in range(self.rows.num_rows):
            digest.update(json.dumps(list(self.rows.captions(row))).encode())
        digest.update(np.ascontiguousarray(self.image_of_row, np.int64).data)
        digest.update(np.ascontiguousarray(self.rows.image_index, np.int64).data)
        return digest.hexdigest()

    def looked_at(self) -> list[int]:
        """Some of the images."""
        numbers: list[int] = np.unique(np.linspace(0, len(self.names) - 1, NUM_LOOKED_AT).astype(int)).tolist()
        return numbers


def pack(
    spec: ExperimentSpec,
    split: Split,
    folder: Path,
    *,
    settings: PackSettings,
    num_processes: int | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Packed:
    """Pack one split, or go on with what was begun.

    Args:
        spec: the experiment whose data are packed, and as whose training they are read and checked.
        split: which of its sources.
        folder: of the shards; made if needed.
        settings: how images are stored.
        num_processes: defaults to the CPUs that this process may use.
        say: is told the progress, a line every few seconds.

    Raises:
        InputError: images cannot be used and the policy asks for all of them; the folder holds something else, or shards of
            other data; the data are wrong.
        MachineError: the folder cannot be written, another process packs into it, or a packing process died.
    """
    _refuse_foreign(folder)
    content = _Content(spec, split)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with holding(folder / _LOCK) as mine:
            if not mine:
                raise MachineError(f"another process is packing into {folder}")
            packing = _Packing(spec, split, folder, content, settings, say)
            try:
                return packing.run(num_processes or num_cpus())
            finally:
                (folder / _LOCK).unlink()
    except OSError as error:
        raise machine_error(error, f"could not write {folder}") from error


def _refuse_foreign(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise InputError(Problem("", f"{folder} is no folder", "name another with -o"))
    names = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    foreign = [name for name in names if not _OWN_NAMES.fullmatch(name)]
    if not {STATE, INDEX} & {*names}:  # then no tar is of a packing that was begun
        foreign += [name for name in names if name.endswith(".tar")]
    if foreign:
        raise InputError(Problem("", f"{folder} holds other files: {foreign[0]}", "name an empty folder with -o"))


class _Packing:
    """One split on its way into a folder whose lock is held."""

    def __init__(
        self,
        spec: ExperimentSpec,
        split: Split,
        folder: Path,
        content: _Content,
        settings: PackSettings,
        say: Callable[[str], None],
    ) -> None:
        self.split, self.folder, self.content, self.settings, self.say = split, folder, content, settings, say
        self.decode = image_decoder(spec)
        self.limits = spec.data.bad_images
        # As before training: a test set with holes compares with nothing.
        self.refuses = split != "train" or self.limits.policy == "refuse"
        self.read_as = [spec.data.decoder, spec.compat] if settings.resize else None

    def run(self, num_processes: int) -> Packed:
        for path in self.folder.glob(".*.tmp"):  # of a process that was killed
            path.unlink()
        request = self._request()
        earlier = self._earlier()
        if earlier is not None:
            self._refuse_other(request, earlier)
            request |= {"images_per_shard": earlier["images_per_shard"]}
        if not (self.folder / INDEX).exists():
            if earlier is None:
                write_atomically(self.folder / STATE, json.dumps(request, sort_keys=True))
            self._write_shards(request, num_processes)
            self._finish(request)
            earlier = None
        for path in (*self.folder.glob(f"{self.split}-*.part"), self.folder / STATE):
            path.unlink(missing_ok=True)
        index = read_index(self.folder / INDEX, folder=self.folder)
        check_shards(index, key="")
        about, num_bytes = index.about, sum(shard["size"] for shard in index.about["shards"])
        sizes = len(index.images), len(index.image_of_row), len(index.shards)
        return Packed(self.folder, about["form"], *sizes, num_bytes, about["lost"], was_there=earlier is not None)

    def _request(self) -> dict[str, Any]:
        """What is to be packed, as far as it can be told without reading everything."""
        looked_at, sizes = dict[str, str](), list[int]()
        for image in self.content.looked_at():
            try:
                stored = self.content.stored(image)
                sizes.append(len(self._image(image, stored)))
                looked_at[str(image)] = hashlib.sha256(stored).hexdigest()[:32]
            except BadImage:
                continue  # packing says so
        mean = sum(sizes) / len(sizes) if sizes else 100_000
        return {
            "version": 1,
            "split": self.split,
            "rows": self.content.digest(),
            "looked_at": looked_at,
            "settings": asdict(self.settings),
            "read_as": self.read_as,
            "images_per_shard": max(1, int(self.settings.shard_mib * 2**20 / (mean + _BESIDE_IMAGE))),
        }

    def _earlier(self) -> dict[str, Any] | None:
        if (self.folder / INDEX).exists():
            about = read_index(self.folder / INDEX, folder=self.folder).about
            request: dict[str, Any] = about["request"]
            return request
        return read_object(self.folder / STATE) if (self.folder / STATE).exists() else None

    def _refuse_other(self, request: dict[str, Any], earlier: dict[str, Any]) -> None:
        """Images that could not be read then or cannot be now are no difference: they may have been mended."""
        keys = ("version", "split", "settings", "read_as", "rows")
        found = next((key for key in keys if request[key] != earlier.get(key)), None)
        both = request["looked_at"].keys() & earlier["looked_at"].keys()
        if found is None and any(request["looked_at"][image] != earlier["looked_at"][image] for image in both):
            found = "looked_at"
        if found is not None:
            what = {"settings": "with other options", "read_as": "with other options", "looked_at": "from other images"}
            how = what.get(found, "from other rows")
            raise InputError(Problem("", f"{self.folder} holds shards that were packed {how}", "name another folder with -o"))

    def _name(self, shard: int) -> str:
        return f"{self.split}-{shard:06d}"

    # -- shards --------------------------------------------------------------------------------------------------------------

    def _write_shards(self, request: dict[str, Any], num_processes: int) -> None:
        size, total = request["images_per_shard"], len(self.content.names)
        runs = {number: range(start, min(start + size, total)) for number, start in enumerate(range(0, total, size))}
        left = {number: run for number, run in runs.items() if not self._is_done(number)}
        if len(left) < len(runs):
            self.say(f"{len(runs) - len(left):,} of {len(runs):,} shards are packed already")
        lost: dict[int, list[Lost]] = {}
        started, told, done = time.monotonic(), time.monotonic(), 0
        for number, found in self._written(left, num_processes):
            lost[number] = found
            done += len(left[number])
            if time.monotonic() > told + 5:
                told = time.monotonic()
                self.say(f"{len(lost):,} of {len(left):,} shards, {done / (told - started):,.0f} images a second")
        found = [one for number in sorted(lost) for one in lost[number]]
        if self.refuses and found:
            self._report(found, None)
            shown = [Problem(f"data.{self.split}", f"{one.image}: {one.reason}") for one in found[:MAX_BAD_SHOWN]]
            hint = f"{self.folder / REPORT} lists them; mend them and run the same command again"
            if self.split == "train":
                hint += ", or leave them out with data.bad_images.policy: skip"
            raise InputError(*shown, Problem("", f"{len(found):,} of {total:,} images cannot be used", hint))

    def _written(self, left: dict[int, range], num_processes: int) -> Iterator[tuple[int, list[Lost]]]:
        """The shards as they are done, with what could not be used."""
        if min(num_processes, len(left)) < 2:
            yield from ((number, self.write_shard(number, run)) for number, run in left.items())
            return
        context = get_context(START_METHOD)
        workers = min(num_processes, len(left))
        try:
            with ProcessPoolExecutor(workers, context, initializer=_begin_worker, initargs=(self, os.getpid())) as pool:
                waited = {pool.submit(_write_shard, number, run): number for number, run in left.items()}
                try:
                    for future in as_completed(waited):
                        yield waited[future], future.result()
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
        except BrokenProcessPool as error:
            raise MachineError("a packing process died; most often the machine ran out of memory") from error

    def _is_done(self, number: int) -> bool:
        """A shard's part is written after it, so that it tells of a whole one."""
        try:
            about = read_arrays(self.folder / f"{self._name(number)}.part").about
            return bool((self.folder / f"{self._name(number)}.tar").stat().st_size == about["size"])
        except (Unreadable, OSError):
            return False

    def write_shard(self, number: int, images: range) -> list[Lost]:
        """Write a shard and its part of the index; neither where an image cannot be used and all are needed.

        Returns:
            The images that cannot be used.
        """
        name, lost, kept = self._name(number), list[Lost](), list[tuple[int, int, int, int]]()
        with suppress(_Refused), replacing(self.folder / f"{name}.tar") as file:
            for image in images:
                try:
                    stored = self._image(image, self.content.stored(image))
                except BadImage as error:
                    lost.append(Lost(self.content.names[image], error.cause, error.reason))
                    continue
                if lost and self.refuses:
                    continue  # the others are only looked at
                suffix, about = _suffix(stored), {"image": self.content.names[image], "caption": self.content.captions(image)}
                offset = write_member(file, f"{image:09d}.{suffix}", stored)
                write_member(file, f"{image:09d}.json", json.dumps(about, ensure_ascii=False).encode("utf-8", "replace"))
                kept.append((image, offset, len(stored), zlib.crc32(stored)))
            if lost and self.refuses:
                raise _Refused
            write_end(file)
            size = file.tell()
        if not (lost and self.refuses):
            table = np.array(kept, np.int64).reshape(-1, 4)
            columns = {name: table[:, column] for column, name in enumerate(("image", "offset", "length", "crc32"))}
            about_part = {"size": size, "lost": [list(one) for one in lost]}
            write_arrays(self.folder / f"{name}.part", about_part, columns)
        return lost

    def _image(self, image: int, stored: bytes) -> bytes:
        """What is stored of it, after it has been decoded as training decodes it.

        Raises:
            BadImage: it cannot be decoded.
        """
        pixels = self.decode(stored, self.content.names[image])
        shorter = min(pixels.shape[:2])
        if self.settings.resize is None or shorter <= self.settings.resize:
            return stored
        return _encoded(_smaller(pixels, self.settings.resize), quality=self.settings.quality)

    # -- the index -----------------------------------------------------------------------------------------------------------

    def _finish(self, request: dict[str, Any]) -> None:
        """Put the parts together; the index is last."""
        num_shards = -(-len(self.content.names) // request["images_per_shard"])
        parts = [read_arrays(self.folder / f"{self._name(number)}.part") for number in range(num_shards)]
        lost = [Lost(*one) for part in parts for one in part.about["lost"]]
        columns = {
            name: np.concatenate([part.arrays[name] for part in parts]) for name in ("image", "offset", "length", "crc32")
        }
        total = len(self.content.names)
        if len(lost) == total or (lost and len(lost) > self.limits.limit * total):
            self._report(lost, None)
            problem = f"{len(lost):,} of {total:,} images cannot be used, more than {self.limits.limit:.2%} of them"
            raise InputError(Problem("data.bad_images.limit", problem, f"{self.folder / REPORT} lists them"))
        kept = columns["image"]
        new_number = np.full(total, -1)
        new_number[kept] = np.arange(len(kept))
        of_row = new_number[self.content.image_of_row]
        rows = np.flatnonzero(of_row >= 0)
        captions = [list(self.content.rows.captions(row)) for row in rows.tolist()]
        digests = [_row_digest(image, texts) for image, texts in zip(of_row[rows].tolist(), captions, strict=True)]
        index = ShardIndex(
            folder=self.folder,
            about={
                "shards": [{"name": f"{self._name(n)}.tar", "size": part.about["size"]} for n, part in enumerate(parts)],
                "form": self.content.form,
                "request": request,
                "lost": dict(sorted(Counter(one.cause for one in lost).items())),
                "left_out": {"without a usable image": self.content.rows.num_rows - len(rows)} if lost else {},
            },
            shard_start=np.cumsum([0, *(len(part.arrays["image"]) for part in parts)]),
            offset=columns["offset"],
            length=columns["length"],
            crc32=columns["crc32"].astype(np.uint32),
            images=Texts.of(self.content.names[number] for number in kept.tolist()),
            image_of_row=of_row[rows],
            image_index=_dense(self.content.rows.image_index[rows]),
            row_digests=np.array(digests, np.int64),
            caption_start=np.cumsum([0, *map(len, captions)]),
            captions=Texts.of(text for texts in captions for text in texts),
        )
        self._report(lost, index)
        index.write(self.folder / INDEX)

    def _report(self, lost: list[Lost], index: ShardIndex | None) -> None:
        report = {
            "finished": index is not None,
            "num_images": 0 if index is None else len(index.images),
            "num_rows": 0 if index is None else len(index.image_of_row),
            "lost": dict(sorted(Counter(one.cause for one in lost).items())),
            "lost_images": [one._asdict() for one in lost],
        }
        write_atomically(self.folder / REPORT, json.dumps(report, indent=1))


class _Refused(Exception):
    """A shard is not written because one of its images cannot be used."""


_packing: _Packing | None = None
"""Of a packing process."""


def _begin_worker(packing: _Packing, parent: int) -> None:
    global _packing
    _packing = packing
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shard that was begun is written again
    end_with(parent)


def _write_shard(number: int, images: range) -> list[Lost]:
    if _packing is None:
        raise TypeError("no packing process")
    return _packing.write_shard(number, images)


def _dense(image_index: NDArray[np.int64]) -> NDArray[np.int64]:
    """The same identities, from 0 without gaps; unchanged where there are none."""
    dense: NDArray[np.int64] = np.unique(image_index, return_inverse=True)[1]
    return dense


def _row_digest(image: int, captions: list[str]) -> int:
    return int.from_bytes(hashlib.blake2b(json.dumps([image, *captions]).encode(), digest_size=8).digest(), signed=True)


def _suffix(content: bytes) -> str:
    kind = kind_of_file(content) or ""
    return next((suffix for name, suffix in _SUFFIXES.items() if f" {name} " in kind), "img")


def _smaller(pixels: Pixels, shorter_side: int) -> Pixels:
    """Averaged over areas, so that nothing aliases; the shorter side is `shorter_side`."""
    import cv2

    height, width = pixels.shape[:2]
    scale = shorter_side / min(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    smaller: Pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    return smaller


def _encoded(pixels: Pixels, *, quality: int) -> bytes:
    """JPEG with full colour resolution, or PNG where the quality is 100."""
    import cv2

    options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    bgr = np.ascontiguousarray(pixels[..., ::-1])
    _, coded = cv2.imencode(".png", bgr) if quality == 100 else cv2.imencode(".jpg", bgr, options)
    content: bytes = coded.tobytes()
    return content
