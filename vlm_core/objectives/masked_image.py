"""Which patches a picture hides for masked image modelling with visual tokens: rectangles (BEiT, arXiv 2106.08254, algorithm 1; FLAVA, 2112.04482)."""

# R rows of the patch grid

import math
from random import Random

import numpy as np
from numpy.typing import NDArray

ATTEMPTS = 10  # per rectangle


def block_mask(rows: int, count: int, dice: Random, min_patches: int = 16, min_aspect: float = 0.3) -> NDArray[np.bool_]:
    """(R, R), true where a patch is hidden: rectangles of random size and aspect until `count` patches are hidden or no further rectangle fits.

    Source: BEiT, arXiv 2106.08254 (facebookresearch/multimodal, whose order of draws this keeps). Checked by golden `pretraining/beit_block_masking`.
    """
    hidden = np.zeros((rows, rows), np.bool_)
    while (left := count - int(hidden.sum())) > 0:
        block = _block(hidden, left, dice, min_patches, math.log(min_aspect))
        if block is None:
            break
        hidden[block] = True
    return hidden


def _block(hidden: NDArray[np.bool_], left: int, dice: Random, min_patches: int, log_aspect: float) -> tuple[slice, slice] | None:
    """A rectangle that hides between 1 and `left` further patches, or None after ten misses."""
    rows = len(hidden)
    for _ in range(ATTEMPTS):
        area = dice.uniform(min_patches, left)
        aspect = math.exp(dice.uniform(log_aspect, -log_aspect))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if height < rows and width < rows:
            top, side = dice.randint(0, rows - height), dice.randint(0, rows - width)
            block = slice(top, top + height), slice(side, side + width)
            if 0 < height * width - int(hidden[block].sum()) <= left:
                return block
    return None
