"""Generated scenes as a source."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from tclx.data.scenes import NUM_CAPTIONS, Scenes
from tclx.data.sources.source import SourceSize

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tclx.data.images import Pixels
    from tclx.errors import Problem
    from tclx.spec.data import ScenesSource
    from tclx.spec.experiment import ExperimentSpec


class GeneratedScenes:
    """One row a scene."""

    def __init__(self, source: ScenesSource) -> None:
        self._source = source

    @property
    def size_without_data(self) -> SourceSize:
        return SourceSize(self._source.num_images, self._source.num_images, NUM_CAPTIONS * self._source.num_images)

    @property
    def size(self) -> SourceSize:
        return self.size_without_data

    def captions(self) -> Iterable[str]:
        return chain.from_iterable(Scenes(self._source).captions)

    def rows(self, spec: ExperimentSpec) -> SceneRows:
        return SceneRows(Scenes(self._source))

    @property
    def image_names(self) -> Sequence[str]:
        return ()

    def path_of(self, name: str) -> Path:
        raise LookupError(name)

    def missing(self, *, all_needed: bool) -> Iterator[Problem]:
        return iter(())

    def repeats(self) -> Iterator[str]:
        return iter(())

    def shares_with(self, other: GeneratedScenes, *, names: tuple[str, str]) -> str | None:
        if self._source.split != other._source.split:
            return None
        return f"{names[1]} draws from the same scenes as {names[0]} (split: {self._source.split})"


class SceneRows:
    """The images are drawn when the source is opened, so that forked loaders share them."""

    def __init__(self, scenes: Scenes) -> None:
        self._captions = scenes.captions
        self._images = scenes.images

    @property
    def num_rows(self) -> int:
        return len(self._captions)

    @cached_property
    def image_index(self) -> NDArray[np.int64]:
        import numpy as np

        return np.arange(self.num_rows)

    def captions(self, row: int) -> Sequence[str]:
        return self._captions[row]

    def image(self, row: int) -> Pixels:
        image: Pixels = self._images[row]
        return image
