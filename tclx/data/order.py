"""Which rows are learned from when, and what is drawn for each? Keyed streams: nothing depends on what was drawn before."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from itertools import count
from queue import Empty, SimpleQueue
from threading import Thread
from typing import cast

import numpy as np
from numpy.typing import NDArray

from tclx.errors import TclxError


class Draw(IntEnum):
    """What a random stream is for; one stream each, so that switching a term off does not change what the others draw."""

    ORDER = 0
    CAPTION = 1
    FIRST_VIEW = 2
    SECOND_VIEW = 3
    MASK = 4
    MIXTURE = 5


def keyed_generator(draw: Draw, *, seed: int, epoch: int, row: int = 0) -> np.random.Generator:
    """A stream that depends on its arguments alone."""
    return np.random.Generator(np.random.Philox(key=[seed, draw], counter=[0, 0, row, epoch]))


@dataclass(frozen=True)
class Block:
    """Successive rows that are drawn from evenly: in passes, each through all of them in an order of its own."""

    start: int
    num_rows: int
    rows_per_epoch: int
    shard_of_row: NDArray[np.int64] | None = None
    """[num_rows]"""
    shards_at_once: int | None = None
    """A pass takes so many shards, drawn, at a time, and mixes their rows; None mixes all rows."""
    fetch: Callable[[int], None] | None = None
    """Brings a shard near; None where all are."""

    @classmethod
    def of(cls, num_rows: int) -> Block:
        """Every row once an epoch."""
        return cls(0, num_rows, num_rows)

    def drawn(self, number: int, *, epoch: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """What an epoch draws: the next `rows_per_epoch` of the passes one after the other.

        Args:
            number: of the block among those of the source.
            epoch, seed: of the run.

        Returns:
            The rows, and in which pass each is drawn.
        """
        first, end = epoch * self.rows_per_epoch, (epoch + 1) * self.rows_per_epoch
        rows, passes = [], []
        for one_pass in range(first // self.num_rows, -(-end // self.num_rows)):
            before = one_pass * self.num_rows
            order = self._order(keyed_generator(Draw.ORDER, seed=seed, epoch=one_pass, row=number))
            rows.append(order[max(first - before, 0) : end - before] + self.start)
            passes.append(np.full(len(rows[-1]), one_pass))
        return np.concatenate(rows), np.concatenate(passes)

    def _order(self, rng: np.random.Generator) -> NDArray[np.int64]:
        order = rng.permutation(self.num_rows)
        if self.shard_of_row is None or self.shards_at_once is None:
            return order
        place = rng.permutation(int(self.shard_of_row.max()) + 1)
        return order[np.argsort(place[self.shard_of_row[order]] // self.shards_at_once, kind="stable")]


@dataclass(frozen=True)
class MicroBatch:
    """Which rows one process learns from in one forward pass."""

    rows: NDArray[np.int64]
    """[B]"""
    passes: NDArray[np.int64]
    """[B] how many times each was drawn before; all the same where every row comes once an epoch."""

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Every row with its pass."""
        return zip(self.rows.tolist(), self.passes.tolist(), strict=True)


@dataclass(frozen=True)
class KeyedOrder:
    """An endless order over epochs, each a permutation whose incomplete last optimizer step is dropped.

    Global micro-batch m of an epoch is a run of W * B rows of its permutation, of which process r takes the r-th B.
    """

    blocks: Sequence[Block]
    batch_size: int
    accumulation_steps: int
    seed: int
    rank: int
    world_size: int
    start_micro_step: int

    @property
    def micro_steps_per_epoch(self) -> int:
        num_rows = sum(block.rows_per_epoch for block in self.blocks)
        return num_rows // (self.world_size * self.batch_size * self.accumulation_steps) * self.accumulation_steps

    def __iter__(self) -> Iterator[MicroBatch]:
        current = -1
        for micro_step in count(self.start_micro_step):
            epoch, number = divmod(micro_step, self.micro_steps_per_epoch)
            if epoch != current:
                current, (rows, passes) = epoch, self._drawn(epoch)
            start = (number * self.world_size + self.rank) * self.batch_size
            run = slice(start, start + self.batch_size)
            yield MicroBatch(rows[run], passes[run])

    def _drawn(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The rows of an epoch and their passes: which block is drawn from next is drawn, within a block it has its order."""
        drawn = [block.drawn(number, epoch=epoch, seed=self.seed) for number, block in enumerate(self.blocks)]
        rows, passes = (np.concatenate(each) for each in zip(*drawn, strict=True))
        if len(drawn) == 1:
            return rows, passes
        blocks = np.repeat(np.arange(len(drawn)), [len(of_block) for of_block, _ in drawn])
        turns = keyed_generator(Draw.MIXTURE, seed=self.seed, epoch=epoch).permutation(blocks)
        place = np.empty(len(rows), np.int64)
        place[np.argsort(turns, kind="stable")] = np.arange(len(rows))
        return rows[place], passes[place]


@dataclass(frozen=True)
class LookedAhead:
    """An order whose next shards are fetched, by threads, while earlier ones are read.

    What a thread cannot fetch is met again by the worker that needs it, which says so.
    """

    order: KeyedOrder

    def __iter__(self) -> Iterator[MicroBatch]:
        wanted: SimpleQueue[tuple[Callable[[int], None], int] | None] = SimpleQueue()
        for _ in range(NUM_FETCHERS):
            Thread(target=_fetch, args=(wanted,), name="shards", daemon=True).start()
        coming: deque[MicroBatch] = deque()
        asked: OrderedDict[tuple[int, int], None] = OrderedDict()
        try:
            for micro_batch in self.order:
                for number, shard in self._shards(micro_batch.rows):
                    if (number, shard) not in asked:
                        wanted.put((cast("Callable[[int], None]", self.order.blocks[number].fetch), shard))
                    asked[number, shard] = None
                    asked.move_to_end((number, shard))
                while len(asked) > _REMEMBERED:
                    asked.popitem(last=False)
                coming.append(micro_batch)
                if len(coming) > LOOKED_AHEAD:
                    yield coming.popleft()
        finally:
            with suppress(Empty):  # what nobody waits for any more
                while True:
                    wanted.get_nowait()
            for _ in range(NUM_FETCHERS):
                wanted.put(None)

    def _shards(self, rows: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
        for number, block in enumerate(self.order.blocks):
            own = rows[(rows >= block.start) & (rows < block.start + block.num_rows)] - block.start
            if block.fetch is not None and block.shard_of_row is not None:
                yield from ((number, shard) for shard in np.unique(block.shard_of_row[own]).tolist())


LOOKED_AHEAD = 32
"""Micro-batches."""
NUM_FETCHERS = 4
_REMEMBERED = 1024
"""Shards that are not asked for again; one that had to go since is fetched when it is needed."""


def _fetch(wanted: SimpleQueue[tuple[Callable[[int], None], int] | None]) -> None:
    while (one := wanted.get()) is not None:
        fetch, shard = one
        with suppress(TclxError):
            fetch(shard)
