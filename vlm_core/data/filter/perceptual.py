"""Hashes of how a picture looks, and the pairs of hashes that lie close: PDQ (256 bits and a quality), pHash and dHash (64 bits).

Close pairs come from multi-index hashing (Norouzi et al., arXiv 1307.2982): cut every hash into 16-bit parts; two hashes within r bits agree in some part
up to r // parts flips, so only rows that meet in such a bucket are compared. Nothing is compared with everything.
Sources: methods/data.md 13. Checked by golden `data/perceptual_hash`.
"""

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlm_core.errors import SchemaMismatch

_ONES = np.array([bin(value).count("1") for value in range(1 << 16)], np.uint8)
BUCKET_BLOCK = 2_000_000  # comparisons held in memory at once


def pdq(rgb: NDArray[Any]) -> tuple[NDArray[Any], int]:
    """(256 bits, quality 0..100) of an RGB uint8 array. Hashes of quality below 50 say little."""
    import pdqhash

    bits, quality = pdqhash.compute(np.ascontiguousarray(rgb))
    return np.asarray(bits, np.uint8), int(quality)


def phash(rgb: NDArray[Any]) -> NDArray[Any]:
    """64 bits: signs of the low frequencies against their median."""
    import imagehash
    from PIL import Image

    return np.asarray(imagehash.phash(Image.fromarray(rgb)).hash).reshape(-1)


def dhash(rgb: NDArray[Any]) -> NDArray[Any]:
    """64 bits: is a pixel of the 9 x 8 thumbnail brighter than its left neighbour."""
    import imagehash
    from PIL import Image

    return np.asarray(imagehash.dhash(Image.fromarray(rgb)).hash).reshape(-1)


def to_hex(bits: NDArray[Any]) -> str:
    return np.packbits(bits.astype(bool)).tobytes().hex()


def parse_hex(codes: Sequence[str], bits: int) -> NDArray[Any]:
    """Packed hashes (N, bits / 16) uint16 from hex text. Raises SchemaMismatch for text of another length."""
    wrong = next((code for code in codes if len(code) * 4 != bits), None)
    if wrong is not None:
        raise SchemaMismatch(f"Found the hash {wrong!r} of {len(wrong) * 4} bits, expected {bits} bits in hex; download again, the status table is damaged.")
    return np.frombuffer(bytes.fromhex("".join(codes)), ">u2").astype(np.uint16).reshape(len(codes), bits // 16)


def distance(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    """Differing bits of packed hashes along the last axis."""
    return _ONES[np.bitwise_xor(a, b)].sum(axis=-1, dtype=np.int64)


def twins(codes_NP: NDArray[Any]) -> NDArray[Any]:
    """Per row the first row with the same hash."""
    _, first, inverse = np.unique(codes_NP, axis=0, return_index=True, return_inverse=True)
    return first[inverse.reshape(-1)]


def near_pairs(codes_NP: NDArray[Any], radius: int, parts: slice = slice(None)) -> NDArray[Any]:
    """All pairs (i < j) of rows whose hashes differ in 1 .. radius bits, sorted; of rows with equal hashes only the first takes part (`twins`).

    With `parts` only those that some of these parts of the hash bring together: the union over all parts is everything.
    """
    rows = np.unique(twins(codes_NP))
    codes = codes_NP[rows]
    found = [pairs[distance(codes[pairs[:, 0]], codes[pairs[:, 1]]) <= radius] for pairs in _candidates(codes, radius, parts)]
    pairs = np.concatenate(found) if found else np.zeros((0, 2), np.int64)
    return rows[np.unique(np.sort(pairs, axis=1), axis=0)] if len(pairs) else pairs


def _candidates(codes: NDArray[Any], radius: int, parts: slice) -> Iterator[NDArray[Any]]:
    """Blocks of row pairs that agree in one of the parts up to the flips which the pigeonhole principle leaves."""
    flips = [sum(1 << bit for bit in bits) for n in range(radius // codes.shape[1] + 1) for bits in combinations(range(16), n)]
    for part in codes.T[parts]:
        order = np.argsort(part, kind="stable")
        ranked = part[order]
        for flip in flips:
            wanted = part ^ np.uint16(flip)
            first, last = np.searchsorted(ranked, wanted, "left"), np.searchsorted(ranked, wanted, "right")
            yield from _expand(order, first, last)


def near_to(codes_NP: NDArray[Any], base_MP: NDArray[Any], radius: int) -> NDArray[np.int64]:
    """Per row the first row of the base within the radius, or -1. The same buckets, of the base only: cost grows with the rows, not with rows x base."""
    found = np.full(len(codes_NP), len(base_MP))
    flips = [sum(1 << bit for bit in bits) for n in range(radius // codes_NP.shape[1] + 1) for bits in combinations(range(16), n)]
    for part, ours in zip(base_MP.T, codes_NP.T, strict=True):
        order = np.argsort(part, kind="stable")
        ranked = part[order]
        for flip in flips:
            first, last = (np.searchsorted(ranked, ours ^ np.uint16(flip), side) for side in ("left", "right"))
            for left, right in _buckets(order, first, last):
                near = distance(codes_NP[left], base_MP[right]) <= radius
                np.minimum.at(found, left[near], right[near])
    return np.where(found < len(base_MP), found, -1)


def _expand(order: NDArray[Any], first: NDArray[Any], last: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Pairs (row, every row of its bucket after it), in blocks of bounded size."""
    for left, right in _buckets(order, first, last):
        yield np.stack([left, right], axis=1)[left < right]


def _buckets(order: NDArray[Any], first: NDArray[Any], last: NDArray[Any]) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """(row, row of its bucket), every one with every one, in blocks of bounded size."""
    sizes = last - first
    block = np.cumsum(sizes) // BUCKET_BLOCK
    for number in np.unique(block):
        rows = np.flatnonzero((block == number) & (sizes > 0))
        left = np.repeat(rows, sizes[rows])
        within = np.arange(len(left)) - np.repeat(np.cumsum(sizes[rows]) - sizes[rows], sizes[rows])
        yield left, order[np.repeat(first[rows], sizes[rows]) + within]
