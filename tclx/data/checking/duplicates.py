"""Which images are the same: byte by byte, or to the eye?

Near duplicates are images whose perceptual hashes differ in at most `MOST_BITS` of 64 bits. They are found without comparing
all with all: of two such hashes, one of three thirds differs in one bit at most, so hashes are sorted 64 times, each time by a
third without one of its bits, and only those that agree there are compared (multi-index hashing: Norouzi, Punjani and Fleet
2012, arXiv:1307.2982).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tclx.data.checking.look import NO_HASH, Looks

MOST_BITS = 5
"""Of 7,000 photographs of Flickr8k no two different ones are nearer than 8; of copies as JPEG of quality 10, or a third or
twice as large, all are within 5."""
_THIRDS = ((0, 21), (21, 21), (42, 22))
"""First bit and number of bits. A difference of 5 bits leaves at most 1 to one of three."""
MOST_COMPARED = 1000
"""Where more hashes than this agree in the rest of a third, each is compared with so many that follow in order of the whole
hash, so that a million of almost the same image take a bounded number of comparisons."""
_MOST_LINKS = 4_000_000

Labels = NDArray[np.int64]
"""[N] of each image the first image of its group; -1 where it cannot be used. An image like no other is its own."""


class Duplicates(NamedTuple):
    """Groups of the same images."""

    exact: Labels
    """The same bytes."""
    near: Labels
    """The same to the eye: groups of `exact`, and what near hashes link."""


def find_duplicates(looks: Looks) -> Duplicates:
    """Groups of images with the same bytes, and of images that look the same.

    Args:
        looks: [N]
    """
    usable = np.flatnonzero(looks["width"] > 0)
    digests = looks["digest"][usable]
    exact = np.full(len(looks), -1, np.int64)
    exact[usable] = usable[_first_of_equal(digests[:, 0], digests[:, 1])]
    hashes, hash_of = np.unique(looks["hash"][usable], return_inverse=True)
    group = _linked(hashes)[hash_of]
    alone = np.flatnonzero(hashes[hash_of] == NO_HASH)  # those are compared by their bytes alone
    group[alone] = len(hashes) + exact[usable[alone]]
    near = np.full(len(looks), -1, np.int64)
    near[usable] = usable[_first_of_equal(group)]
    return Duplicates(exact, near)


def _first_of_equal(*keys: NDArray[np.generic]) -> NDArray[np.int64]:
    """[N] of each the first that is equal in all keys."""
    order = np.lexsort(keys[::-1])  # stable: within equal ones in their order
    begins = np.ones(len(order), bool)
    if len(order):
        begins[1:] = np.logical_or.reduce([key[order][1:] != key[order][:-1] for key in keys])
    first = np.empty(len(order), np.int64)
    first[order] = order[np.maximum.accumulate(np.where(begins, np.arange(len(order)), 0))]
    return first


def _linked(hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """[U] a number for the group of each of U different hashes in ascending order."""
    links: list[NDArray[np.int64]] = []
    for start, width in _THIRDS:
        third = (hashes >> np.uint64(start) & np.uint64((1 << width) - 1)).astype(np.uint32)
        for bit in range(width):
            rest = third & ~np.uint32(1 << bit)
            order = np.argsort(rest, kind="stable")
            rest = rest[order]
            one = np.arange(len(order))
            for distance in range(1, MOST_COMPARED + 1):
                one = one[: np.searchsorted(one, len(order) - distance)]
                one = one[rest[one] == rest[one + distance]]
                if not len(one):
                    break
                pair = np.stack([order[one], order[one + distance]])
                links.append(pair[:, np.bitwise_count(hashes[pair[0]] ^ hashes[pair[1]]) <= MOST_BITS])
                if sum(each.shape[1] for each in links) > _MOST_LINKS:
                    links = [_spanning(links, len(hashes))]
    return _groups(links, len(hashes))


def _groups(links: list[NDArray[np.int64]], number: int) -> NDArray[np.int64]:
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    one, other = np.concatenate([np.empty((2, 0), np.int64), *links], axis=1)
    graph = coo_array((np.ones(len(one), bool), (one, other)), shape=(number, number))
    labels: NDArray[np.int64] = connected_components(graph, directed=False)[1].astype(np.int64)
    return labels


def _spanning(links: list[NDArray[np.int64]], number: int) -> NDArray[np.int64]:
    """As few links as give the same groups."""
    first = _first_of_equal(_groups(links, number))
    linked = np.flatnonzero(first != np.arange(number))
    return np.stack([first[linked], linked])


class Same(NamedTuple):
    """Images that are the same as an earlier one, or as one of other data."""

    images: NDArray[np.int64]
    """[M] in ascending order."""
    of: NDArray[np.int64]
    """[M] the first image that each is the same as."""


def within(labels: Labels, among: NDArray[np.int64]) -> Same:
    """Those of some images that repeat an earlier one of them.

    Args:
        labels: of all images.
        among: their numbers, ascending.
    """
    return _like(labels, among, among)


def across(labels: Labels, first: NDArray[np.int64], second: NDArray[np.int64]) -> Same:
    """Those of some images that are in others as well.

    Args:
        labels: of all images.
        first: the numbers of the others, ascending.
        second: of these.
    """
    return _like(labels, first, second)


def _like(labels: Labels, first: NDArray[np.int64], second: NDArray[np.int64]) -> Same:
    first, second = first[labels[first] >= 0], second[labels[second] >= 0]
    earliest = np.full(len(labels), -1, np.int64)
    earliest[labels[first[::-1]]] = first[::-1]  # the last that is written is the first image
    of = earliest[labels[second]]
    found = (of >= 0) & (of != second)
    return Same(second[found], of[found])
