"""Retrieval: image-text recall, choosing the right caption, re-identification.

Sources: `CLIP_benchmark` zeroshot_retrieval.py and image_caption_selection.py; CLIP-ReID utils/metrics.py.
Checked by golden `evaluation/{retrieval_recall,caption_selection,reid_cmc_map}`.
"""
# I images, T texts, N instances, Q queries, G gallery, D joint width, K cut-offs

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from vlm_core.evaluate.metrics import Array, Ints, unit

BLOCK = 1024  # queries scored at once: memory is BLOCK x candidates


def best_ranks(query_QD: Array, candidate_GD: Array, positive: csr_matrix) -> Ints:
    """(Q,) rank of each query's best positive, 1 is best: one more than the wrong candidates that score at least as much.

    A tie with a wrong candidate counts against us, so constant scores are at the bottom. Queries without a positive get rank G + 1.
    """
    ranks = np.empty(len(query_QD), np.int64)
    for start in range(0, len(query_QD), BLOCK):
        rows = slice(start, start + BLOCK)
        scores = query_QD[rows] @ candidate_GD.T
        right = positive[rows].toarray().astype(bool)
        best = np.where(right, scores, -np.inf).max(axis=1)
        ranks[rows] = 1 + ((scores >= best[:, None]) & ~right).sum(axis=1)
    return ranks


class Ranks(NamedTuple):
    of_texts: Ints  # (I,) image query: rank of the best caption of that image
    of_images: Ints  # (T,) text query: rank of the best image of that text


def retrieval_ranks(image_ID: Array, text_TD: Array, image_index_P: Ints, text_index_P: Ints) -> Ranks:
    """Ranks both ways; pair p says that image `image_index_P[p]` and text `text_index_P[p]` belong together (any number per side)."""
    shape = (len(image_ID), len(text_TD))
    positive = csr_matrix((np.ones(len(image_index_P), np.int8), (image_index_P, text_index_P)), shape=shape)
    image, text = unit(image_ID), unit(text_TD)
    return Ranks(best_ranks(image, text, positive), best_ranks(text, image, positive.T.tocsr()))


def retrieval_recall(image_ID: Array, text_TD: Array, text_image_index_T: Ints, ks: tuple[int, ...] = (1, 5, 10)) -> dict[str, float]:
    """Recall@k both ways: a text finds its image (mean over texts); an image finds at least one of its captions (mean over images)."""
    ranks = retrieval_ranks(image_ID, text_TD, text_image_index_T, np.arange(len(text_TD)))
    both = {"image_retrieval": ranks.of_images, "text_retrieval": ranks.of_texts}
    return {f"{name}_recall_at_{k}": float((rank <= k).mean()) for k in ks for name, rank in both.items()}


def caption_selection(image_NID: Array, text_NTD: Array) -> dict[str, float]:
    """Winoground-like: does every image of an instance prefer its own caption (text), every caption its own image (image), both (group)?

    A tie counts as wrong, where the official argmax would credit a model with constant scores.
    """
    m = min(image_NID.shape[1], text_NTD.shape[1])
    scores = unit(image_NID) @ unit(text_NTD).transpose(0, 2, 1)
    own = np.eye(scores.shape[1], scores.shape[2], dtype=bool)
    diagonal = scores[:, np.arange(m), np.arange(m)]
    wrong = np.where(own, -np.inf, scores)
    text = (diagonal > wrong[:, :m].max(axis=2)).all(axis=1)
    image = (diagonal > wrong[:, :, :m].max(axis=1)).all(axis=1)
    return {"text_acc": float(text.mean()), "image_acc": float(image.mean()), "group_acc": float((text & image).mean())}


class ReidScores(NamedTuple):
    cmc_K: Array
    mean_ap: float


def reid_cmc_map(
    query_QD: Array, gallery_GD: Array, query_id: Ints, gallery_id: Ints, query_camera: Ints, gallery_camera: Ints, max_rank: int = 10
) -> ReidScores:
    """Re-identification: gallery pictures of the same person by the same camera are left out; queries without a match do not count."""
    distance = -(unit(query_QD) @ unit(gallery_GD).T)
    cmc, precisions = [], []
    for q in range(len(query_QD)):
        order = np.argsort(distance[q], kind="stable")
        order = order[~((gallery_id[order] == query_id[q]) & (gallery_camera[order] == query_camera[q]))]
        match: NDArray[np.bool_] = gallery_id[order] == query_id[q]
        if match.any():
            cmc.append(np.pad(match[:max_rank].cumsum() > 0, (0, max(0, max_rank - len(match))), mode="edge"))
            precisions.append((match.cumsum() / np.arange(1, len(match) + 1))[match].mean())
    return ReidScores(np.mean(cmc, axis=0), float(np.mean(precisions)))
