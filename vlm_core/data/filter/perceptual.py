"""Hashes of how a picture looks: PDQ (256 bits and a quality), pHash and dHash (64 bits). Which of many lie close is found by `near_hashes`.

Sources: methods/data.md 13. Checked by golden `data/perceptual_hash`.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlm_core.errors import SchemaMismatch

_ONES = np.unpackbits(np.arange(1 << 16, dtype=np.uint16).view(np.uint8).reshape(-1, 2), axis=1).sum(axis=1, dtype=np.uint8)

# DCT-II rows that PDQ keeps: 16 of 64, orthonormal, without the constant
_DCT_64 = (np.sqrt(2 / 64) * np.cos(np.pi / 128 * np.outer(np.arange(1, 17), 2 * np.arange(64) + 1))).astype(np.float32)
_LUMA = np.array([[0.299, 0.587, 0.114]], np.float32)
CLEAR = 2e-2  # coefficients this far from the median, and farther, are on their side of it however sums are rounded


def pdq(rgb: NDArray[Any]) -> tuple[NDArray[Any], int]:
    """(256 bits, quality 0..100) of an RGB uint8 array. Hashes of quality below 50 say little.

    The PDQ library's steps with OpenCV's box filters, which are faster. Where rounding could decide a bit, the library decides; the quality may differ by 1.
    """
    import cv2

    luma = cv2.transform(rgb.astype(np.float32), _LUMA)
    rows, columns = luma.shape
    (high, above, row_share), (wide, left, column_share) = _window(rows), _window(columns)
    share = np.outer(row_share, column_share)
    for _ in range(2):  # each a box over the pixels that are there
        luma = cv2.boxFilter(luma, -1, (wide, high), anchor=(left, above), normalize=False, borderType=cv2.BORDER_CONSTANT) * share
    places = (np.arange(64) + 0.5) / 64
    small = luma[np.ix_((places * rows).astype(int), (places * columns).astype(int))]
    waves = _DCT_64 @ small @ _DCT_64.T
    below, median, over = np.sort(waves, axis=None)[126:129]
    if min(median - below, over - median) < CLEAR:
        return _pdq_of_library(rgb)
    steps = sum(int(abs((np.diff(small, axis=axis) * 100 / 255).astype(int)).sum()) for axis in (0, 1))
    return (waves > median).reshape(-1)[::-1].astype(np.uint8), min(100, steps // 90)


def _pdq_of_library(rgb: NDArray[Any]) -> tuple[NDArray[Any], int]:
    import pdqhash

    bits, quality = pdqhash.compute(np.ascontiguousarray(rgb))
    return np.asarray(bits, np.uint8), int(quality)


@functools.lru_cache(4096)
def _window(size: int) -> tuple[int, int, NDArray[np.float32]]:
    """PDQ's box along a side of this size: its length, how much of it lies before the pixel, and 1 / how much of it lies inside the picture, per pixel."""
    length = (size + 127) // 128
    before = length - (length + 2) // 2
    place = np.arange(size)
    inside = np.minimum(place + length - before, size) - np.maximum(place - before, 0)
    return length, before, (1 / inside).astype(np.float32)


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
