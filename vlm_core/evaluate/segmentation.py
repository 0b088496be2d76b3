"""Semantic segmentation from one confusion matrix over the whole split (never the mean of per-image IoU).

Source: CLIP-ES eval_cam.py. Checked by golden `evaluation/segmentation_iou`.
"""
# N images, H, W pixels, C classes

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vlm_core.evaluate.metrics import Array, Ints


class SegmentationScores(NamedTuple):
    pixel_accuracy: float
    mean_accuracy: float
    frequency_weighted_iou: float
    miou: float  # over classes present in the ground truth
    iou_C: Array
    present_C: NDArray[np.bool_]


def confusion_matrix(gt_NHW: Ints, pred_NHW: Ints, classes: int) -> Ints:
    """(C, C) counts, rows are the ground truth. Pixels whose ground truth is outside 0..C-1 (255) are ignored."""
    known = (gt_NHW >= 0) & (gt_NHW < classes)
    return np.bincount(classes * gt_NHW[known].astype(np.int64) + pred_NHW[known], minlength=classes**2).reshape(classes, classes)


def segmentation_scores(confusion_CC: Ints) -> SegmentationScores:
    """All scores of a summed confusion matrix: matrices of several batches or resampled images just add up."""
    hit, truth, said = np.diag(confusion_CC).astype(float), confusion_CC.sum(axis=1), confusion_CC.sum(axis=0)
    present, union = truth > 0, truth + said - hit
    iou = np.divide(hit, union, out=np.full(len(hit), np.nan), where=union > 0)
    accuracy = np.divide(hit, truth, out=np.full(len(hit), np.nan), where=present)
    share = truth / truth.sum()
    return SegmentationScores(
        pixel_accuracy=float(hit.sum() / truth.sum()),
        mean_accuracy=float(accuracy[present].mean()),
        frequency_weighted_iou=float((share[present] * iou[present]).sum()),
        miou=float(iou[present].mean()),
        iou_C=iou,
        present_C=present,
    )


def seen_unseen_iou(scores: SegmentationScores, seen: int) -> tuple[float, float, float]:
    """(seen mIoU, unseen mIoU, harmonic mean): classes below `seen` were trained on, the others not."""
    first = np.arange(len(scores.iou_C)) < seen
    a = float(scores.iou_C[first & scores.present_C].mean())
    b = float(scores.iou_C[~first & scores.present_C].mean())
    return a, b, harmonic_mean(a, b)


def harmonic_mean(a: float, b: float) -> float:
    """2ab / (a + b): base and new accuracy, seen and unseen IoU."""
    return 2 * a * b / (a + b) if a + b else 0.0
