"""Which words of a text and which patches of a picture are hidden, for all objectives that guess what they did not see."""

# B texts, L tokens, R rows of the patch grid

import math
from collections.abc import Collection
from random import Random

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlm_core.models.tokenizer import Special

IGNORED = -100
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


def mask_tokens(
    ids: Tensor, special_ids: Collection[int], mask_id: int, share: float, select: Tensor, replace: Tensor, randomise: Tensor, words: Tensor
) -> tuple[Tensor, Tensor]:
    """(ids with hidden words, labels: the id where a word was chosen, else -100).

    Args:
        ids: of any shape; all tensors below have the same.
        special_ids: never chosen.
        mask_id: takes the place of 80 % of the chosen words; 10 % become another word, 10 % stay.
        share: of words that are chosen.
        select: uniform numbers; a word is chosen below `share`.
        replace: uniform numbers; below 0.8 the mask takes its place.
        randomise: uniform numbers; below 0.5 a word that is not masked becomes another one.
        words: those others.

    Source: DeCLIP, arXiv 2110.05208. Checked by golden `pretraining/mlm_masking`.
    """
    chosen = (select < share) & ~torch.isin(ids, torch.tensor(sorted(special_ids), device=ids.device))
    masked = chosen & (replace < 0.8)
    other = chosen & ~masked & (randomise < 0.5)
    return ids.where(~masked, ids.new_tensor(mask_id)).where(~other, words), ids.where(chosen, ids.new_tensor(IGNORED))


def hide_words(ids_BL: Tensor, special: Special, share: float) -> tuple[Tensor, Tensor]:
    """`mask_tokens` with numbers drawn by torch."""
    select, replace, randomise = torch.rand(3, *ids_BL.shape, device=ids_BL.device)
    words_BL = torch.randint(*special.words, ids_BL.shape, device=ids_BL.device)
    return mask_tokens(ids_BL, special.ids, special.mask, share, select, replace, randomise, words_BL)


def hide_patches(count: int, rows: int, share: float) -> Tensor:
    """`block_mask` of `count` pictures (B, R x R), with numbers drawn by torch; rectangles as large as FLAVA's are in its grid of 14 x 14."""
    seeds = torch.randint(2**31, (count,)).tolist()
    smallest = max(16 * rows**2 // 14**2, 1)
    return torch.from_numpy(np.stack([block_mask(rows, max(round(share * rows**2), 1), Random(seed), smallest) for seed in seeds])).flatten(1)
