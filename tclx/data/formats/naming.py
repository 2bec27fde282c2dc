"""Which column or key is the image, and which are its captions? As the spec says, else by the names that people give them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from tclx.data.forms.form import Fault
from tclx.data.forms.table import FORMS

if TYPE_CHECKING:
    from tclx.spec.data import OwnData

IMAGE_NAMES = (
    "image",
    "image_path",
    "image_file",
    "image_name",
    "image_filename",
    "filepath",
    "file_path",
    "filename",
    "file_name",
    "img",
    "img_path",
    "path",
    "file",
)
CAPTION_NAMES = ("caption", "captions", "text", "title", "sentence", "sentences", "comment", "description", "raw")
_NUMBERED = re.compile(r"(caption|text|sentence|comment)s?[ _-]?\d+")


class Naming(NamedTuple):
    """What a spec says of names."""

    image: str | None
    captions: tuple[str, ...]
    form: str

    @classmethod
    def of(cls, source: OwnData) -> Naming:
        return cls(source.image_column, source.caption_columns, source.form)

    def is_header(self, cells: Sequence[str]) -> bool:
        """Whether the first line of a table names its columns."""
        if self.image is not None or self.captions:
            return {*self.captions, *([self.image] if self.image is not None else [])} <= {*cells}
        if self.form in FORMS:
            return {*FORMS[self.form].keys} <= {*cells}
        return bool(_named(cells, IMAGE_NAMES) and (_named(cells, CAPTION_NAMES) or _numbered(cells)))

    def named(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row with `image` and `caption` under these names, where they are told or can be told.

        Raises:
            Fault: a column that the spec names is missing.
        """
        if self.image is None and not self.captions and (self.form != "captions" or ("image" in row and "caption" in row)):
            return row
        own = dict(row)
        if self.image is not None:
            own["image"] = _taken(own, self.image, "image_column")
        elif self.form == "captions" and "image" not in own and len(found := _named(own, IMAGE_NAMES)) == 1:
            own["image"] = own.pop(found[0])
        if self.captions:
            own["caption"] = _joined([_taken(own, name, "caption_columns") for name in self.captions])
        elif self.form == "captions" and "caption" not in own:
            if len(found := _named(own, CAPTION_NAMES)) == 1:
                own["caption"] = own.pop(found[0])
            elif not found and (several := _numbered(own)):
                own["caption"] = _joined([own[name] for name in several])
        return own


def _taken(row: dict[str, Any], name: str, key: str) -> Any:
    if name not in row:
        raise Fault(f"`{name}`, which `{key}` names, is missing", f"there are: {', '.join(row) or 'no columns'}")
    return row[name]


def _joined(captions: list[Any]) -> Any:
    """One caption as it is; of several those that are there."""
    return captions[0] if len(captions) == 1 else [one for one in captions if one not in (None, "")]


def _named(names: Iterable[str], known: Sequence[str]) -> list[str]:
    return [name for name in names if name.strip().casefold().replace(" ", "_").replace("-", "_") in known]


def _numbered(names: Iterable[str]) -> list[str]:
    return [name for name in names if _NUMBERED.fullmatch(name.strip().casefold())]
