"""Which hashes lie within a radius of each other, exactly, without comparing all with all: multi-index hashing (Norouzi et al., arXiv 1307.2982).

A hash is cut into parts. If two hashes differ in at most r bits, then in some part they differ in at most its `flips`, as long as the sum of (flips + 1) over
the parts is r + 1. So rows lie in buckets by each part, and a row meets only those of the buckets that so many flips lead to. How many parts: whatever costs
least for the number of rows, which keeps buckets short (`cuts_of`). Everything is numpy over rows that lie in the order of their buckets.
"""

from collections.abc import Iterator
from functools import lru_cache
from itertools import combinations, groupby
from math import comb
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]
Words = NDArray[np.uint64]  # (W, N): hashes in words of 64 bits

MOST_BITS = 20  # of a part that make a bucket: 4 MB of bucket ends
PROBE, MEETING = 10.0, 7.0  # ns to look into a bucket, and per row that lies there; measured with 300,000 rows, and only their ratio matters
BLOCK = 1 << 16  # comparisons at once: what fits into a cache


class Part(NamedTuple):
    """Bits [first, first + width) of a hash."""

    first: int
    width: int
    flips: int

    @property
    def probes(self) -> int:
        return sum(comb(self.width, n) for n in range(self.flips + 1))


@lru_cache
def cuts_of(rows: int, bits: int, radius: int) -> tuple[Part, ...]:
    """The cheapest cut for this many rows."""

    def cost(parts: tuple[Part, ...]) -> float:
        return sum(part.probes * (PROBE + MEETING * rows / 2**part.width) + 2**part.width / max(rows, 1) for part in parts)

    return min((_cut(rows, bits, radius, count) for count in range(1, min(radius + 1, bits // 4) + 1)), key=cost)


def _cut(rows: int, bits: int, radius: int, count: int) -> tuple[Part, ...]:
    """Equal parts; the narrower ones bear a flip more. Buckets need no more bits than there are rows for them."""
    most = min(MOST_BITS, max(4, rows.bit_length() + 1))
    widths = [bits // count] * (count - bits % count) + [bits // count + 1] * (bits % count)
    more = (radius + 1) % count
    flips = [(radius + 1) // count - 1 + (place < more) for place in range(count)]
    firsts = np.cumsum([0, *widths]).tolist()
    return tuple(Part(first, min(width, most), flip) for first, width, flip in zip(firsts, widths, flips, strict=False))


def masks_of(part: Part) -> list[int]:
    """What to flip, by the highest bit; the first mask flips nothing."""
    return sorted(sum(1 << bit for bit in bits) for n in range(part.flips + 1) for bits in combinations(range(part.width), n))


def words_of(codes_NP: NDArray[Any]) -> Words:
    """Packed hashes (N, P) uint16 as columns of 64 bits."""
    padded = np.pad(codes_NP, ((0, 0), (0, -codes_NP.shape[1] % 4)))
    return np.ascontiguousarray(np.ascontiguousarray(padded).view(np.uint64).T)


def twins(codes_NP: NDArray[Any]) -> Rows:
    """Per row the first row with the same hash."""
    words = words_of(codes_NP)
    order = np.lexsort(words)  # equal hashes stay in the order of their rows
    ranked = words[:, order]
    begins = np.concatenate([[True], (ranked[:, 1:] != ranked[:, :-1]).any(axis=0)])[: len(order)]
    first = np.empty(len(order), np.int64)
    first[order] = order[np.flatnonzero(begins)[np.cumsum(begins) - 1]]
    return first


def keys_of(codes_NP: NDArray[Any], part: Part) -> NDArray[np.int64]:
    """The bits of a part as a number."""
    begin, shift = divmod(part.first, 16)
    wide = np.zeros(len(codes_NP), np.int64)
    for place in range(begin, begin + 3):
        wide = wide << 16 | (codes_NP[:, place].astype(np.int64) if place < codes_NP.shape[1] else 0)
    return wide >> (48 - shift - part.width) & ((1 << part.width) - 1)


class Buckets:
    """Rows in the order of a part's bits, and where each bucket begins."""

    def __init__(self, codes_NP: NDArray[Any], part: Part) -> None:
        self.part = part
        keys = keys_of(codes_NP, part).astype(np.int32)
        self.order = np.argsort(keys, kind="stable").astype(np.int32)
        self.keys = keys[self.order]
        self.begins = np.searchsorted(self.keys, np.arange(2**part.width + 1, dtype=np.int32)).astype(np.int32)

    def with_others(self, keys: NDArray[np.int32]) -> Iterator[tuple[Rows, Rows]]:
        """(place among the keys, place in the order of the buckets) of all whose parts are near."""
        for mask in masks_of(self.part):
            wanted = keys ^ np.int32(mask)
            yield from _met(np.arange(len(keys)), self.begins[wanted], self.begins[wanted + 1])

    def with_themselves(self) -> Iterator[tuple[Rows, Rows]]:
        """Places in the order of the buckets of all whose parts are near, each pair once: only a row without the highest of the flipped bits looks for the other."""
        for top, masks in groupby(masks_of(self.part), int.bit_length):
            if not top:
                places = np.arange(len(self.keys))
                yield from _met(places, places + 1, self.begins[self.keys + 1])
                continue
            places = np.flatnonzero(self.keys >> (top - 1) & 1 == 0)
            keys = self.keys[places]
            for mask in masks:
                wanted = keys ^ np.int32(mask)
                yield from _met(places, self.begins[wanted], self.begins[wanted + 1])


def _met(places: Rows, first: NDArray[Any], last: NDArray[Any]) -> Iterator[tuple[Rows, Rows]]:
    """Every place with everything from its first up to its last, in blocks."""
    sizes = last - first
    busy = np.flatnonzero(sizes > 0)
    if not len(busy):
        return
    places, sizes, first = places[busy], sizes[busy].astype(np.int64), first[busy].astype(np.int64)
    ends = np.cumsum(sizes)
    first -= ends - sizes
    for begin, end in _runs(ends):
        counts, done = sizes[begin:end], ends[begin - 1] if begin else 0
        left = np.repeat(places[begin:end], counts)
        yield left, np.arange(done, done + len(left)) + np.repeat(first[begin:end], counts)


def _runs(ends: Rows) -> Iterator[tuple[int, int]]:
    """Runs of rows with about BLOCK comparisons; a row is never parted."""
    begin = 0
    while begin < len(ends):
        done = ends[begin - 1] if begin else 0
        end = max(begin + 1, int(np.searchsorted(ends, done + BLOCK, side="right")))
        yield begin, end
        begin = end


def near_pairs(codes_NP: NDArray[Any], radius: int, parts: slice = slice(None)) -> Rows:
    """All pairs (i < j) of rows whose hashes differ in 1 .. radius bits, sorted; of rows with equal hashes only the first takes part (`twins`).

    With `parts` only those that some of these parts of the hash (`parts_of`) bring together: the union over all parts is everything.
    """
    rows = np.unique(twins(codes_NP))
    codes, n = codes_NP[rows], len(rows)
    words, found = words_of(codes), [np.zeros(0, np.int64)]
    for part in cuts_of(n, 16 * codes_NP.shape[1], radius)[parts]:
        buckets = Buckets(codes, part)
        ranked = words[:, buckets.order]
        for pair in buckets.with_themselves():
            left, right = _within(ranked, pair[0], ranked, pair[1], radius)
            one, two = buckets.order[left].astype(np.int64), buckets.order[right]
            found.append(np.minimum(one, two) * n + np.maximum(one, two))
    pairs = np.unique(np.concatenate(found))
    return np.stack([rows[pairs // max(n, 1)], rows[pairs % max(n, 1)]], axis=1)


def parts_of(codes_NP: NDArray[Any], radius: int) -> int:
    """How many parts `near_pairs` looks at."""
    return len(cuts_of(len(np.unique(twins(codes_NP))), 16 * codes_NP.shape[1], radius))


class NearTo:
    """A base of hashes that others are compared with: `index.first(codes)` is per row the first row of the base within the radius, or -1.

    Built once; memory is about 4 bytes a part and row of the base.
    """

    def __init__(self, base_MP: NDArray[Any], radius: int) -> None:
        self._radius, self._words, self._rows = radius, words_of(base_MP), len(base_MP)
        self._buckets = [Buckets(base_MP, part) for part in cuts_of(len(base_MP), 16 * base_MP.shape[1], radius)] if len(base_MP) else []

    def first(self, codes_NP: NDArray[Any]) -> Rows:
        found, words = np.full(len(codes_NP), self._rows, np.int64), words_of(codes_NP)
        for buckets in self._buckets:
            keys = keys_of(codes_NP, buckets.part).astype(np.int32)
            for place, other in buckets.with_others(keys):
                left, right = _within(words, place, self._words, buckets.order[other].astype(np.int64), self._radius)
                np.minimum.at(found, left, right)
        return np.where(found < self._rows, found, -1)


def _within(ours: Words, left: Rows, theirs: Words, right: Rows, radius: int) -> tuple[Rows, Rows]:
    """The pairs whose hashes differ in at most `radius` bits. Half of the words decide about nearly all others."""
    half = max(1, len(ours) // 2)
    for some in (slice(0, half), slice(0, len(ours))):
        ones = sum(_ones(ours[word][left] ^ theirs[word][right]) for word in range(*some.indices(len(ours))))
        near = np.flatnonzero(ones <= np.uint64(radius))
        left, right = left[near], right[near]
        if half == len(ours) or not len(near):
            break
    return left, right


_PAIRS, _FOURS, _EIGHTS, _SUM = (np.uint64(int(digits * (16 // len(digits)), 16)) for digits in ("5", "3", "0f", "01"))


def _ones(words: Words) -> Words:
    """Bits that are set, word by word (numpy 1.26 has no bitwise_count)."""
    words -= (words >> np.uint64(1)) & _PAIRS
    words = (words & _FOURS) + ((words >> np.uint64(2)) & _FOURS)
    words += words >> np.uint64(4)
    words &= _EIGHTS
    words *= _SUM
    words >>= np.uint64(56)
    return words
