"""Classification metrics: zero-shot, multi-label, per group, calibration. NumPy in, numbers out.

Sources: `CLIP_benchmark` (zero-shot classification, multi-label AP), scikit-learn (F1, recall, Jaccard, AUC), torchmetrics 1.9 (ECE).
Checked by golden `evaluation/{zeroshot_classifier,multilabel_ap,group_metrics,calibration}`.
"""
# B, N samples; C classes; D joint width; T templates

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vlm_core.errors import DataError

Array = NDArray[Any]  # of floats
Ints = NDArray[Any]


def unit(x: Array) -> Array:
    """Rows of length one; a row of zeros stays zero."""
    norm = np.linalg.norm(x, axis=-1, keepdims=True)
    return x / np.where(norm == 0, 1, norm)


def classifier_weights(prompt_embeddings_CTD: Array) -> Array:
    """(D, C) text classifier: unit prompts, mean over templates, unit again. The mean of logits is another thing."""
    return unit(unit(prompt_embeddings_CTD).mean(axis=1)).T


def classify(image_ND: Array, weights_DC: Array, scale: float = 100.0) -> Array:
    """(N, C) logits: scale times the cosine."""
    return scale * unit(image_ND) @ weights_DC


def topk_correct(logits_NC: Array, targets_N: Ints, k: int = 1) -> NDArray[np.bool_]:
    """Whether the target is among the k best. A tie with a wrong class counts as wrong: constant scores earn nothing."""
    target = logits_NC[np.arange(len(targets_N)), targets_N][:, None]
    return (logits_NC >= target).sum(axis=1) <= k


def topk_accuracy(logits_NC: Array, targets_N: Ints, k: int = 1) -> float:
    return float(topk_correct(logits_NC, targets_N, k).mean())


def mean_per_class_recall(predictions_N: Ints, targets_N: Ints) -> float:
    """Balanced accuracy over the classes that occur among the targets."""
    return float(np.mean([(predictions_N[targets_N == c] == c).mean() for c in np.unique(targets_N)]))


# ---------------------------------------------------------------- multi-label


def average_precision(scores_NC: Array, targets_NC: Ints) -> Array:
    """(C,) mean of the precision at each positive, in score order. A class without positives gets 0 and counts in the suite's mean."""
    order = np.argsort(-scores_NC, axis=0, kind="stable")
    hits = np.take_along_axis(targets_NC > 0, order, axis=0)
    precision = hits.cumsum(axis=0) / np.arange(1, len(hits) + 1)[:, None]
    return (precision * hits).sum(axis=0) / np.maximum(hits.sum(axis=0), 1)


def ap11(scores_NC: Array, targets_NC: Ints) -> Array:
    """(C,) PASCAL VOC 2007: mean over recall 0, .1 .. 1 of the best precision at that recall or more; nan without positives."""
    order = np.argsort(-scores_NC, axis=0, kind="stable")
    hits = np.take_along_axis(targets_NC > 0, order, axis=0).cumsum(axis=0)
    positives = hits[-1]
    precision = hits / np.arange(1, len(hits) + 1)[:, None]
    recall = hits / np.maximum(positives, 1)
    best = [np.where(recall >= level, precision, 0).max(axis=0) for level in np.arange(0.0, 1.1, 0.1)]  # the official float levels: .30000000000000004
    return np.where(positives > 0, np.mean(best, axis=0), np.nan)


# ---------------------------------------------------------------- groups


class GroupScores(NamedTuple):
    accuracy_G: Array
    worst: float
    average: float  # over samples
    macro_f1: float
    macro_recall: float


def group_metrics(groups_N: Ints, targets_N: Ints, predictions_N: Ints) -> GroupScores:
    """Accuracy per group (in sorted order), the worst one, and macro F1 and recall over classes (DataComp's fairness and WILDS tasks)."""
    from sklearn.metrics import f1_score

    right = predictions_N == targets_N
    accuracy = np.array([right[groups_N == g].mean() for g in np.unique(groups_N)])
    classes = np.unique(targets_N)
    recall = np.mean([right[targets_N == c].mean() for c in classes])
    f1 = f1_score(targets_N, predictions_N, average="macro")
    return GroupScores(accuracy, float(accuracy.min()), float(right.mean()), float(f1), float(recall))


def choice_jaccard(scores_K: Array, truth_K: NDArray[np.bool_]) -> float:
    """WinoGAViL: take as many candidates as are true, by score; Jaccard index of the two sets."""
    chosen = np.zeros(len(truth_K), bool)
    chosen[np.argsort(-scores_K, kind="stable")[: int(truth_K.sum())]] = True
    return float((chosen & truth_K).sum() / (chosen | truth_K).sum())


def roc_auc(scores_N: Array, labels_N: NDArray[np.bool_]) -> float:
    """Chance that a true sample scores above a false one; ties count half."""
    if labels_N.all() or not labels_N.any():
        raise DataError(f"Found only {'true' if labels_N.all() else 'false'} labels among {len(labels_N)}, expected both kinds; an AUC needs two classes.")
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(labels_N, scores_N))


# ---------------------------------------------------------------- calibration


def softmax(logits_NC: Array) -> Array:
    z = np.exp(logits_NC - logits_NC.max(axis=1, keepdims=True))
    return z / z.sum(axis=1, keepdims=True)


def nll(logits_NC: Array, targets_N: Ints, temperature: float = 1.0) -> float:
    """Mean negative log-likelihood of the targets under softmax(logits / temperature)."""
    z = logits_NC.astype(np.float64) / temperature
    z = z - z.max(axis=1, keepdims=True)
    return float((np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(z)), targets_N]).mean())


def brier(probs_NC: Array, targets_N: Ints) -> float:
    """Mean over samples of the summed squared error of the probabilities."""
    return float(((probs_NC - np.eye(probs_NC.shape[1])[targets_N]) ** 2).sum(axis=1).mean())


def ece(probs_NC: Array, targets_N: Ints, bins: int = 15, norm: Literal["l1", "l2", "max"] = "l1") -> float:
    """Expected calibration error over equal-width bins of the top probability."""
    confidence, right = probs_NC.max(axis=1), probs_NC.argmax(axis=1) == targets_N
    place = np.clip(np.searchsorted(np.linspace(0, 1, bins + 1), confidence, side="right") - 1, 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    share = count / len(confidence)
    gap = np.abs(np.bincount(place, confidence, bins) - np.bincount(place, right, bins)) / np.maximum(count, 1)
    if norm == "max":
        return float(gap.max())
    return float((gap * share).sum()) if norm == "l1" else float(np.sqrt((gap**2 * share).sum()))
