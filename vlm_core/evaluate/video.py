"""Action recognition on RareAct: weighted average precision with hard negatives.

Source: antoine77340/RareAct compute_score.py. Checked by golden `evaluation/rareact_mwap`.
"""
# N clips, C classes (verb, noun)

import numpy as np
from numpy.typing import NDArray

from vlm_core.evaluate.metrics import Array, Ints


def rareact_mwap(scores_NC: Array, video_N: Ints, class_N: Ints, annotation_N: Ints, verb_C: Ints, noun_C: Ints) -> tuple[Array, float]:
    """((C,) weighted AP, mean over classes with a positive). Annotation 1: both right; 2, 3, 4: partly; 0: neither."""
    per_class = np.full(scores_NC.shape[1], np.nan)
    for k in range(scores_NC.shape[1]):
        positive, hard, negative = rareact_groups(k, class_N, annotation_N, verb_C, noun_C)
        if positive.any():
            chosen = np.concatenate([np.flatnonzero(part) for part in (positive, negative, hard)])
            weight = np.concatenate([_video_weights(video_N[part]) for part in (positive, negative, hard)])
            per_class[k] = weighted_average_precision(scores_NC[chosen, k], positive[chosen], weight)
    return per_class, float(np.nanmean(per_class))


def rareact_groups(k: int, class_N: Ints, annotation_N: Ints, verb_C: Ints, noun_C: Ints) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]:
    """Positives, hard negatives and negatives of class k: a right clip of another class is hard if it shares exactly verb or noun."""
    own, right = class_N == k, annotation_N == 1
    verb, noun = verb_C[class_N] == verb_C[k], noun_C[class_N] == noun_C[k]
    hard = (own & np.isin(annotation_N, (2, 3, 4))) | (~own & right & (verb != noun))
    return own & right, hard, (own & (annotation_N == 0)) | (~own & right & ~verb & ~noun)


def _video_weights(video_K: Ints) -> Array:
    """Clips of one video share a weight of one inside their group."""
    _, inverse, count = np.unique(video_K, return_inverse=True, return_counts=True)
    return 1.0 / count[inverse] if len(video_K) else np.zeros(0)


def weighted_average_precision(scores_K: Array, positive_K: NDArray[np.bool_], weight_K: Array) -> float:
    """Sum over positives of (weighted precision there) x (its share of the positive weight), best score first."""
    order = np.argsort(-scores_K, kind="stable")
    weight, hit = weight_K[order], positive_K[order] * weight_K[order]
    return float(((hit.cumsum() / weight.cumsum()) * hit).sum() / hit.sum())
