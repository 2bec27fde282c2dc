"""`tclx data check --html`: a data set on one page, from leaks between splits to the oddest images.

The same data give the same page, byte by byte, so it does not say when it was made.
"""

from __future__ import annotations

import base64
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import plotly.graph_objects as go
import simplejpeg

import tclx
from tclx.data.images import BadImage, decode_image
from tclx.report.markup import Html, code, facts, figure, heading, joined, jpeg, part, table, text
from tclx.report.page import Page, styles

if TYPE_CHECKING:
    from tclx.data.checking.check import Checked
    from tclx.data.checking.duplicates import Same
    from tclx.spec.data import DataSpec

THUMBNAIL_SIDE = 240
"""Pixels of the longer side."""
NUM_PAIRS = 12
"""Of the images that are the same, so many pairs are shown a heading."""
NUM_LISTED = 50
"""Of the images that cannot be used."""


def write_checked(checked: Checked, data: DataSpec, output: Path, *, title: str, warnings: Sequence[str]) -> None:
    """Write the page of a check.

    Args:
        checked: what was found.
        data: how images are read.
        output: the file, replaced where it exists.
        title: the experiment's name.
        warnings: what else planning says of the data.

    Raises:
        MachineError: the page cannot be written.
    """
    pictures = _Pictures(checked, data)
    made = text(f"What `tclx data check` found, tclx {tclx.__version__}.", kind="small")
    page = Page(f"Data of {title}", lead=joined([made, _summary(checked)]))
    page.section("Warnings", *(text(line, kind="note") for line in warnings))
    if not len(checked.looks):
        page.section("Images", text("The data are generated: there are no images to check.")).write(output)
        return
    page.section("Between splits", *_between(checked, pictures))
    page.section("Images that cannot be used", *_unusable(checked))
    page.section("Sizes", *_sizes(checked))
    page.section("Repeated within a split", *_repeated(checked, pictures))
    page.section("Captions", *_captions(checked))
    page.section("The oddest images", *_odd(checked, pictures))
    page.write(output)


def _summary(checked: Checked) -> Html:
    repeated = [checked.repeated(split) for split in checked.splits]
    leaks = list(checked.leaks())
    return facts(
        [
            ("Images", f"{len(checked.looks):,}"),
            ("Cannot be used", f"{len(checked.bad):,}"),
            ("In two splits", f"{sum(len(exact.images) for _, _, exact, _ in leaks):,}"),
            ("Alike in two splits", f"{sum(len(near.images) for *_, near in leaks):,}"),
            ("Repeated in a split", f"{sum(len(exact.images) for exact, _ in repeated):,}"),
            ("Alike in a split", f"{sum(len(near.images) for _, near in repeated):,}"),
        ]
    )


def _between(checked: Checked, pictures: _Pictures) -> Iterator[Html]:
    leaks = list(checked.leaks())
    if not leaks:
        yield text("No image of a split has the bytes of one in another, or looks like one.")
        return
    yield text("Metrics on images that were trained on say nothing about unseen ones.", kind="note")
    yield table(
        ["images of", "in", "same bytes", "look the same"],
        [[second, first, f"{len(exact.images):,}", f"{len(near.images):,}"] for first, second, exact, near in leaks],
    )
    for first, second, exact, near in leaks:
        for same, how in ((exact, "the same bytes"), (near, "alike")):
            if len(same.images):
                yield heading(f"{second} and {first}: {how}")
                yield pictures.pairs(same)


def _unusable(checked: Checked) -> Iterator[Html]:
    if not checked.bad:
        yield text("Every image can be read.")
        return
    splits = [split for split in checked.splits if checked.unreadable(split)]
    causes = sorted({cause for split in splits for cause in checked.unreadable(split)})
    rows = [[split, *(f"{checked.unreadable(split).get(cause, 0):,}" for cause in causes)] for split in splits]
    yield table(["split", *causes], rows)
    bad = checked.bad_images
    reasons = Counter(re.sub(r"\d[\d,]*", "n", one.reason) for one in bad)
    yield table(["images", "why"], [[f"{count:,}", reason] for reason, count in reasons.most_common(20)], numbers=False)
    yield table(["split", "image", "why"], [[one.key, one.path, one.reason] for one in bad[:NUM_LISTED]], numbers=False)
    if len(bad) > NUM_LISTED:
        yield text(f"The first {NUM_LISTED} of {len(bad):,}; `--json` lists all.", kind="small")


def _sizes(checked: Checked) -> Iterator[Html]:
    looks = styles(checked.splits)
    plot = go.Figure()
    for split in checked.splits:
        sides = checked.sides(split)
        plot.add_bar(
            x=[f"{low} to {high - 1}" if high is not None else f"{low} or more" for low, high, _ in sides],
            y=[100 * count / max(sum(each[2] for each in sides), 1) for *_, count in sides],
            name=split,
            marker={"color": looks[split].color},
            hovertemplate="%{y:.3~g} % at %{x}<extra>" + split + "</extra>",
        )
    plot.update_layout(
        template=None,
        legend={"orientation": "h", "y": 1.15},
        margin={"l": 48, "r": 8, "t": 24, "b": 34},
        xaxis={"title": {"text": "pixels", "standoff": 4}, "automargin": True, "type": "category"},
        yaxis={"automargin": True, "nticks": 6, "rangemode": "tozero"},
    )
    yield figure(plot, title="Shorter side, % of the images of a split")
    rows = []
    for split in checked.splits:
        usable = checked.looks[checked.usable(split)]
        if len(usable):
            width, height = usable["width"], usable["height"]
            extreme = float(checked.aspects[checked.usable(split)].max())
            ranges = [f"{side.min():,} to {side.max():,}" for side in (width, height)]
            rows.append([split, f"{len(usable):,}", *ranges, f"{extreme:.3g} : 1"])
    yield table(["split", "images", "width", "height", "longest shape"], rows)


def _repeated(checked: Checked, pictures: _Pictures) -> Iterator[Html]:
    rows = []
    found = {split: checked.repeated(split) for split in checked.splits}
    for split, (exact, near) in found.items():
        rows.append([split, f"{len(exact.images):,}", f"{len(near.images):,}"])
    yield table(["split", "same bytes as an earlier one", "look like an earlier one"], rows)
    for split, (exact, near) in found.items():
        for same, how in ((exact, "the same bytes"), (near, "alike")):
            if len(same.images):
                yield heading(f"{split}: {how}")
                yield pictures.pairs(same)


def _captions(checked: Checked) -> Iterator[Html]:
    rows = []
    for split, one in checked.captions.items():
        words = "{} / {} / {}".format(*one.words)
        numbers = (one.num_captions, one.empty, one.repeated, one.too_long)
        rows.append([split, *(f"{number:,}" for number in numbers), words])
    if not rows:
        return
    longer = f"over {checked.max_words} words"
    yield table(["split", "captions", "empty", "repeat another", longer, "words: least / median / most"], rows)
    yield text("Of captions with more words the rest is not read: `data.max_caption_words`.", kind="small")
    for split, one in checked.captions.items():
        if one.most_frequent:
            yield heading(f"{split}: the most frequent")
            yield table(["caption", "times"], [[words[:200], f"{count:,}"] for words, count in one.most_frequent])


def _odd(checked: Checked, pictures: _Pictures) -> Iterator[Html]:
    found = {"The smallest": checked.smallest(), "The longest shapes": checked.most_extreme()}
    for title, numbers in found.items():
        if numbers:
            yield heading(title)
            yield pictures.sheet(numbers)
    if any(found.values()):
        yield code("tclx data check SPEC --clean FOLDER --min-side 64 --max-aspect 4")
        yield text("writes lists without such images; both limits are examples.", kind="small")


class _Pictures:
    """Contact sheets of images, which are read again."""

    def __init__(self, checked: Checked, data: DataSpec) -> None:
        self._checked, self._data = checked, data

    def sheet(self, numbers: Sequence[int]) -> Html:
        return part("sheet", kind="", figures=[([self._picture(number)], [self._about(number)]) for number in numbers])

    def pairs(self, same: Same) -> Html:
        pairs = list(zip(same.images.tolist(), same.of.tolist(), strict=True))
        figures = [
            ([self._picture(of), self._picture(one)], [self._about(of), self._about(one)]) for one, of in pairs[:NUM_PAIRS]
        ]
        shown = part("sheet", kind=" pairs", figures=figures)
        if len(pairs) <= NUM_PAIRS:
            return shown
        return joined([shown, text(f"The first {NUM_PAIRS} of {len(pairs):,}; `--json` lists all.", kind="small")])

    def _about(self, number: int) -> str:
        one = self._checked.looks[number]
        return f"{self._checked.part(number).split}, {one['width']} x {one['height']}: {self._checked.name(number)}"

    def _picture(self, number: int) -> Html:
        image, max_pixels = self._checked.image(number), self._data.bad_images.max_pixels
        try:
            content = image.read_bytes(max_pixels=max_pixels)
            pixels = decode_image(content, str(image), decoder=self._data.decoder, max_pixels=max_pixels)
        except BadImage as error:
            return text(f"cannot be shown any more: {error.reason}", kind="small")
        scale = min(1.0, THUMBNAIL_SIDE / max(pixels.shape[:2]))
        size = [max(1, round(side * scale)) for side in pixels.shape[1::-1]]
        small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
        encoded = simplejpeg.encode_jpeg(small, quality=85, colorsubsampling="444")
        return jpeg(base64.b64encode(encoded).decode(), description=self._about(number))
