"""Does a model tell matching pairs from the others? The area under the ROC curve, as a mean over the matching pairs."""
# I images, T texts, P matching pairs, D joint width

import numpy as np
from scipy.sparse import csr_matrix

from vlm_core.evaluate.metrics import Array, Ints, unit
from vlm_core.evaluate.retrieval import BLOCK


def placements(image_ID: Array, text_TD: Array, image_index_P: Ints, text_index_P: Ints) -> Array:
    """(P,) share of all non-matching cells that score below each matching pair (ties count half); the mean is the ROC AUC.

    These are DeLong's components, so intervals and paired comparisons can resample pictures. Memory is one block of scores.
    """
    image, text = unit(image_ID), unit(text_TD)
    blocks = [slice(start, start + BLOCK) for start in range(0, len(image), BLOCK)]
    own = np.empty(len(image_index_P))
    for rows in blocks:
        here = (image_index_P >= rows.start) & (image_index_P < rows.stop)
        own[here] = (image[rows] @ text.T)[image_index_P[here] - rows.start, text_index_P[here]]
    order = np.argsort(own, kind="stable")
    ranked = own[order]
    known = csr_matrix((np.ones(len(own), np.int8), (image_index_P, text_index_P)), shape=(len(image), len(text)))
    below, at_most, total = np.zeros(len(own) + 1), np.zeros(len(own) + 1), 0
    for rows in blocks:  # the same products again: a tie is then a tie to the last bit
        others = (image[rows] @ text.T)[known[rows].toarray() == 0]
        below += np.bincount(np.searchsorted(ranked, others, side="right"), minlength=len(own) + 1)
        at_most += np.bincount(np.searchsorted(ranked, others, side="left"), minlength=len(own) + 1)
        total += len(others)
    out = np.empty(len(own))
    out[order] = (below.cumsum()[:-1] + at_most.cumsum()[:-1]) / 2 / total
    return out
