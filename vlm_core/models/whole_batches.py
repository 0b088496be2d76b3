"""Batches of one size and, for texts, of one length: then no bit of an output depends on what else was asked for.

In float32 a batch of another size, or with padding, is summed in another order: 1e-7 off, and the heads that are fitted on outputs, and rounding to float16,
make other bytes of it. What is kept from one run to the next must be what a run from nothing would make.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

IMAGES, TEXTS = 64, 32  # in a batch
LOOKED_AT = 4096  # texts whose lengths are counted at a time

Thing = TypeVar("Thing")
Vectors = NDArray[np.float32]


def filled(things: Sequence[Thing], size: int = IMAGES) -> list[Thing]:
    """The last one again, until the last batch is full; drop what it gives."""
    missing = -len(things) % size
    return [*things, *(things[-1] for _ in range(missing))]


def texts(given: Sequence[str], lengths: Callable[[Sequence[str]], NDArray[np.int64]], encode: Callable[[Sequence[str]], Vectors]) -> Vectors:
    """Vectors (N, D) of texts, encoded by batches of TEXTS of them that have the same number of tokens."""
    parts = [lengths(given[begin : begin + LOOKED_AT]) for begin in range(0, len(given), LOOKED_AT)]
    length_N, out = np.concatenate(parts), list[tuple[NDArray[np.int64], Vectors]]()
    for length in np.unique(length_N):
        rows = np.flatnonzero(length_N == length)
        for begin in range(0, len(rows), TEXTS):
            part = rows[begin : begin + TEXTS]
            out.append((part, encode(filled([given[row] for row in part], TEXTS))[: len(part)]))
    vectors = np.empty((len(given), out[0][1].shape[1]), np.float32)
    for part, found in out:
        vectors[part] = found
    return vectors
