"""Hashes of how a picture looks: PDQ (256 bits and a quality), pHash and dHash (64 bits). Which of many lie close is found by `near_hashes`.

Sources: methods/data.md 13. Checked by golden `data/perceptual_hash`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlm_core.errors import SchemaMismatch

_ONES = np.unpackbits(np.arange(1 << 16, dtype=np.uint16).view(np.uint8).reshape(-1, 2), axis=1).sum(axis=1, dtype=np.uint8)


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
