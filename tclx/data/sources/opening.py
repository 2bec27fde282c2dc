"""The table of sources."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tclx.data.sources.files import Files
from tclx.data.sources.scenes import GeneratedScenes
from tclx.data.sources.source import Source
from tclx.spec.data import DataSource, DataSpec

SOURCES: dict[str, Any] = {
    "files": Files,
    "scenes": GeneratedScenes,
}
"""What opens a source, by its `source`; each is called with the section and `key`, `training`."""


def open_source(source: DataSource, *, key: str) -> Source:
    """One source of a spec.

    Args:
        source: one of `data.train`, `data.val`, `data.test`.
        key: which, as a key path; it decides whether the rows are to be trained on.
    """
    opened: Source = SOURCES[source.source](source, key=key, training=key == "data.train")
    return opened


def sources_of(data: DataSpec) -> Iterator[tuple[str, Source]]:
    """Every source of a spec with its key path."""
    for key, source in (("data.train", data.train), ("data.val", data.val), ("data.test", data.test)):
        if source is not None:
            yield key, open_source(source, key=key)
