"""Generated scenes as a source."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain
from random import Random
from typing import TYPE_CHECKING

from tclx.data.forms.table import FORMS
from tclx.data.scenes import NUM_CAPTIONS, Scene, Scenes, draw_images, draw_scenes
from tclx.data.sources.source import Description, SourceSize

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tclx.data.forms.form import Item
    from tclx.data.images import Pixels
    from tclx.data.order import Block
    from tclx.data.sources.source import StoredImage, TrainingRows
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

    @property
    def description(self) -> Description:
        return Description("generated scenes", self.size, ())

    def captions(self) -> Iterable[str]:
        return chain.from_iterable(Scenes(self._source).captions)

    def rows(self, spec: ExperimentSpec) -> TrainingRows:
        return SceneRows(Scenes(self._source))

    @property
    def stored_images(self) -> Sequence[StoredImage]:
        return ()

    def missing(self, *, all_needed: bool) -> Iterator[Problem]:
        return iter(())

    def warnings(self) -> Iterator[str]:
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

    @property
    def blocks(self) -> Sequence[Block]:
        from tclx.data.order import Block  # planning needs none of it

        return (Block.of(self.num_rows),)

    def captions(self, row: int) -> Sequence[str]:
        return self._captions[row]

    def image(self, row: int) -> Pixels:
        image: Pixels = self._images[row]
        return image


class SceneItems(GeneratedScenes):
    """The rows of a downstream task, made of the facts of the scenes."""

    @cached_property
    def _items(self) -> list[Item]:
        source = self._source
        random = Random("/".join(("items", source.form, str(source.seed), source.split, str(source.picture_size))))
        return list(FORMS[source.form].of_scenes(self._scenes, random))

    @cached_property
    def _scenes(self) -> list[Scene]:
        return list(draw_scenes(self._source))

    @property
    def size_without_data(self) -> SourceSize:
        num_items = FORMS[self._source.form].items_a_scene * self._source.num_images
        return SourceSize(num_items, self._source.num_images, num_items)

    def captions(self) -> Iterable[str]:
        for item in self._items:
            yield item.text
            yield from FORMS[self._source.form].words(item.target)

    def rows(self, spec: ExperimentSpec) -> SceneItemRows:
        return SceneItemRows(draw_images(self._scenes), self._items)


class SceneItemRows:
    """The images are drawn when the source is opened, so that forked loaders share them."""

    def __init__(self, images: NDArray[np.uint8], items: Sequence[Item]) -> None:
        self._images, self._items = images, items

    @property
    def num_rows(self) -> int:
        return len(self._items)

    @cached_property
    def image_index(self) -> NDArray[np.int64]:
        import numpy as np

        return np.array([int(item.images[0]) for item in self._items])

    @property
    def blocks(self) -> Sequence[Block]:
        from tclx.data.order import Block  # planning needs none of it

        return (Block.of(self.num_rows),)

    def captions(self, row: int) -> Sequence[str]:
        return (self._items[row].text,)

    def image(self, row: int) -> Pixels:
        return self.images(row)[0]

    def images(self, row: int) -> list[Pixels]:
        return [self._images[int(number)] for number in self._items[row].images]

    def item(self, row: int) -> Item:
        return self._items[row]
