"""What opens a source of a spec."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, assert_never, cast

from tclx.spec.data import (
    DatasetsSource,
    DataSource,
    DataSpec,
    FilesSource,
    FolderSource,
    MixtureSource,
    ScenesSource,
    ShardsSource,
)

if TYPE_CHECKING:
    from tclx.data.sources.source import SingleSource, Source


def open_source(source: DataSource, *, key: str) -> Source:
    """One source of a spec; each kind's module is loaded when it is named.

    Args:
        source: one of `data.train`, `data.val`, `data.test`.
        key: which, as a key path; it decides whether the rows are to be trained on.
    """
    training = key.startswith("data.train")
    match source:
        case FilesSource() | FolderSource() | DatasetsSource():
            from tclx.data.sources.files import Files

            return Files(source, key=key, training=training)
        case ScenesSource():
            from tclx.data.sources.scenes import GeneratedScenes, SceneItems

            return GeneratedScenes(source) if source.form == "captions" else SceneItems(source)
        case ShardsSource():
            from tclx.data.sources.shards import Shards

            return Shards(source, key=key, training=training)
        case MixtureSource():
            from tclx.data.sources.mixture import Mixture

            named = {f"{key}.sources.{name}.data": one.data for name, one in source.sources.items()}
            return Mixture(
                source, {name: cast("SingleSource", open_source(one, key=name)) for name, one in named.items()}, key=key
            )
        case _:
            assert_never(source)


def sources_of(data: DataSpec) -> Iterator[tuple[str, Source]]:
    """Every source of a spec with its key path."""
    for key, source in (("data.train", data.train), ("data.val", data.val), ("data.test", data.test)):
        if source is not None:
            yield key, open_source(source, key=key)
