"""Promises of the order within shards: some of them at a time, every row once a pass, the same for any processes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tclx.data.order import LOOKED_AHEAD, Block, KeyedOrder, LookedAhead
from tclx.errors import MachineError

SHARD_OF_ROW = np.repeat(np.arange(10), 6)
BLOCK = Block(0, 60, 60, shard_of_row=SHARD_OF_ROW, shards_at_once=3)


def rows(blocks: Sequence[Block], *, epoch: int = 0, seed: int = 0) -> np.ndarray:
    """Of one epoch."""
    size = sum(block.rows_per_epoch for block in blocks)
    order = KeyedOrder(
        blocks=blocks, batch_size=size, accumulation_steps=1, seed=seed, rank=0, world_size=1, start_micro_step=epoch
    )
    return next(iter(order)).rows


def test_so_many_shards_are_read_at_a_time_and_no_more() -> None:
    for epoch in range(3):
        shards = SHARD_OF_ROW[rows([BLOCK], epoch=epoch)]
        parts = [set(shards[start : start + 18].tolist()) for start in range(0, 60, 18)]
        assert [len(part) for part in parts] == [3, 3, 3, 1]
        assert set.union(*parts) == set(range(10))


def test_every_row_comes_once_a_pass_and_each_pass_is_another() -> None:
    passes = [rows([BLOCK], epoch=epoch).tolist() for epoch in range(4)]
    assert all(sorted(each) == list(range(60)) for each in passes)
    assert len({tuple(each) for each in passes}) == 4
    together = [frozenset(SHARD_OF_ROW[each[:18]].tolist()) for each in passes]
    assert len(set(together)) > 1  # which shards are mixed is drawn anew


def test_within_those_shards_rows_are_mixed() -> None:
    shards = SHARD_OF_ROW[rows([BLOCK])[:18]].tolist()
    assert shards != sorted(shards)
    assert sum(one != other for one, other in pairwise(shards)) > 6


def test_a_mixture_keeps_the_order_of_each_source() -> None:
    """Else the rows of all shards would be needed at once again."""
    other = Block(60, 20, 20)
    mixed = rows([BLOCK, other])
    assert mixed[mixed < 60].tolist() == rows([BLOCK]).tolist()
    assert sorted(mixed[mixed >= 60].tolist()) == list(range(60, 80))


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    at_once=st.integers(1, 8),
    seed=st.integers(0, 1000),
    epoch=st.integers(0, 9),
)
def test_any_number_of_shards_of_any_size(sizes: list[int], at_once: int, seed: int, epoch: int) -> None:
    shard_of_row = np.repeat(np.arange(len(sizes)), sizes)
    block = Block(0, sum(sizes), sum(sizes), shard_of_row=shard_of_row, shards_at_once=at_once)
    found = rows([block], epoch=epoch, seed=seed)
    assert sorted(found.tolist()) == list(range(sum(sizes)))
    first_used = list(dict.fromkeys(shard_of_row[found].tolist()))
    together = [first_used.index(shard) // at_once for shard in shard_of_row[found].tolist()]
    assert together == sorted(together)


@pytest.mark.parametrize("at_once", [10, 50])
def test_all_shards_at_once_mix_all_rows(at_once: int) -> None:
    block = Block(0, 60, 60, shard_of_row=SHARD_OF_ROW, shards_at_once=at_once)
    assert rows([block]).tolist() == rows([Block.of(60)]).tolist()


def test_processes_and_resuming_as_with_any_order() -> None:
    def micro_batches(rank: int, world_size: int, start: int) -> list[list[int]]:
        order = KeyedOrder(
            blocks=[BLOCK],
            batch_size=6 // world_size,
            accumulation_steps=1,
            seed=3,
            rank=rank,
            world_size=world_size,
            start_micro_step=start,
        )
        return [each.rows.tolist() for each in islice(order, 12)]

    whole = micro_batches(0, 1, 0)
    halves = [micro_batches(rank, 2, 4) for rank in range(2)]
    assert [left + right for left, right in zip(*halves, strict=True)][:8] == whole[4:]


# ------------------------------------------------------------------------------------------------------------- fetched ahead


def test_shards_are_fetched_before_their_rows_are_read_each_once_in_order() -> None:
    fetched: list[int] = []
    block = replace(BLOCK, fetch=fetched.append)
    order = KeyedOrder(blocks=[block], batch_size=1, accumulation_steps=1, seed=0, rank=0, world_size=1, start_micro_step=0)
    followed = iter(LookedAhead(order))
    plain = list(islice(order, 60))
    for number in range(60 - LOOKED_AHEAD):
        assert next(followed).rows.tolist() == plain[number].rows.tolist()
        wanted = {int(SHARD_OF_ROW[each.rows[0]]) for each in plain[: number + LOOKED_AHEAD]}
        deadline = time.monotonic() + 30
        while not wanted <= set(fetched):
            assert time.monotonic() < deadline
            time.sleep(0.001)
    assert len(fetched) == len(set(fetched)) <= 10


def test_what_cannot_be_fetched_ahead_stops_nothing() -> None:
    """The worker that needs it says what is wrong."""

    def fail(shard: int) -> None:
        raise MachineError(f"shard {shard} is away")

    order = KeyedOrder(
        blocks=[replace(BLOCK, fetch=fail)],
        batch_size=6,
        accumulation_steps=1,
        seed=0,
        rank=0,
        world_size=1,
        start_micro_step=0,
    )
    assert len(list(islice(LookedAhead(order), 20))) == 20
