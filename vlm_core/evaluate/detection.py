"""COCO box metrics with base and new (novel) categories, in NumPy.

Same numbers as pycocotools 2.0.11 (COCOeval, iouType bbox), which needs a compiler and cannot take an empty result list.
Checked by golden `evaluation/coco_ap_base_novel`.
"""
# G ground truths, D detections, T IoU thresholds, R recall points, K categories

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vlm_core.evaluate.metrics import Array, Ints

IOU_T = np.linspace(0.5, 0.95, 10)
RECALL_R = np.linspace(0, 1, 101)
AREAS = {"all": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
MAX_DETECTIONS = (1, 10, 100)


class Boxes(NamedTuple):
    """Ground truth or detections of a data set. Boxes are x, y, width, height in pixels."""

    image: Ints
    category: Ints
    box_X4: Array
    score: Array  # of detections; ones for ground truth
    crowd: NDArray[np.bool_]  # of ground truth; False for detections
    area: Array

    def of(self, category: int, image: int) -> "Boxes":
        chosen = (self.category == category) & (self.image == image)
        return Boxes(*(column[chosen] for column in self))


class CocoScores(NamedTuple):
    stats12: Array  # COCOeval.stats: AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100, ARs, ARm, ARl
    precision_TRK: Array  # area all, 100 detections; -1 where a category has no ground truth
    categories: Ints

    def ap(self, categories: Iterable[int] | None = None, iou: float | None = None) -> float:
        """Mean over the entries above -1 for these categories, at one IoU or over .5:.95; nan when there are none."""
        chosen = np.ones(len(self.categories), bool) if categories is None else np.isin(self.categories, list(categories))
        part = self.precision_TRK[:, :, chosen]
        part = part if iou is None else part[np.isclose(IOU_T, iou)]
        return float(part[part > -1].mean()) if (part > -1).any() else float("nan")


def box_iou(detection_D4: Array, truth_G4: Array, crowd_G: NDArray[np.bool_]) -> Array:
    """(D, G) overlap; against a crowd it is the share of the detection that lies inside."""
    low = np.maximum(detection_D4[:, None, :2], truth_G4[None, :, :2])
    high = np.minimum(detection_D4[:, None, :2] + detection_D4[:, None, 2:], truth_G4[None, :, :2] + truth_G4[None, :, 2:])
    both = np.clip(high - low, 0, None).prod(axis=2)
    own, other = detection_D4[:, 2:].prod(axis=1)[:, None], truth_G4[:, 2:].prod(axis=1)[None, :]
    return both / np.where(crowd_G[None, :], own, own + other - both)


def match(detections: Boxes, truths: Boxes, area: tuple[float, float]) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]:
    """((T, D) matched, (T, D) ignored, (G,) ignored truths) of one image and category; detections sorted by score, best first."""
    skip = truths.crowd | (truths.area < area[0]) | (truths.area > area[1])
    order = np.argsort(skip, kind="stable")
    iou, crowd, skip = box_iou(detections.box_X4, truths.box_X4[order], truths.crowd[order]), truths.crowd[order], skip[order]
    matched, ignored = np.zeros((2, len(IOU_T), len(detections.score)), bool)
    for t, threshold in enumerate(IOU_T):
        taken = np.zeros(len(skip), bool)
        for d in range(len(detections.score)):
            g = _best_truth(iou[d], min(threshold, 1 - 1e-10), taken & ~crowd, skip)
            if g >= 0:
                taken[g] = matched[t, d] = True
                ignored[t, d] = skip[g]
    outside = (detections.area < area[0]) | (detections.area > area[1])
    return matched, ignored | (~matched & outside[None, :]), skip


def _best_truth(iou_G: Array, threshold: float, closed_G: NDArray[np.bool_], skip_G: NDArray[np.bool_]) -> int:
    """The free truth with the largest overlap, real ones before ignored ones; the last of equals; -1 for none."""
    for part in (~skip_G, skip_G):
        fits = part & ~closed_G & (iou_G >= threshold)
        if fits.any():
            best = np.flatnonzero(fits & (iou_G == iou_G[fits].max()))
            return int(best[-1])
    return -1


def coco_ap(truths: Boxes, detections: Boxes, images: Iterable[int], categories: Iterable[int]) -> CocoScores:
    """Average precision and recall as COCO reports them."""
    image_ids, ids = list(images), np.array(sorted(categories))
    curves = {
        (area, limit): [_category_curve(truths, detections, image_ids, int(k), bounds, limit) for k in ids]
        for area, bounds in AREAS.items()
        for limit in MAX_DETECTIONS
        if area == "all" or limit == MAX_DETECTIONS[-1]
    }
    precision = {key: np.stack([p for p, _ in value], axis=2) for key, value in curves.items()}
    recall = {key: np.stack([r for _, r in value], axis=1) for key, value in curves.items()}
    every, last = precision["all", 100], MAX_DETECTIONS[-1]
    stats = [_above(every), _above(every[:1]), _above(every[5:6]), *(_above(precision[size, last]) for size in ("small", "medium", "large"))]
    stats += [_above(recall["all", limit]) for limit in MAX_DETECTIONS] + [_above(recall[size, last]) for size in ("small", "medium", "large")]
    return CocoScores(np.array(stats), every, ids)


def _above(values: Array) -> float:
    return float(values[values > -1].mean()) if (values > -1).any() else -1.0


def _category_curve(truths: Boxes, detections: Boxes, images: list[int], category: int, area: tuple[float, float], limit: int) -> tuple[Array, Array]:
    """((T, R) interpolated precision, (T,) recall) of one category; -1 without ground truth."""
    parts, positives = [], 0
    for image in images:
        truth, found = truths.of(category, image), detections.of(category, image)
        best = np.argsort(-found.score, kind="stable")[:limit]
        found = Boxes(*(column[best] for column in found))
        matched, ignored, skipped = match(found, truth, area)
        positives += int((~skipped).sum())
        parts.append((found.score, matched, ignored))
    if positives == 0:
        return np.full((len(IOU_T), len(RECALL_R)), -1.0), np.full(len(IOU_T), -1.0)
    order = np.argsort(-np.concatenate([p[0] for p in parts]), kind="stable")
    matched = np.concatenate([p[1] for p in parts], axis=1)[:, order]
    ignored = np.concatenate([p[2] for p in parts], axis=1)[:, order]
    true = (matched & ~ignored).cumsum(axis=1)
    false = (~matched & ~ignored).cumsum(axis=1)
    return interpolate(true, false, positives)


def interpolate(true_TD: Ints, false_TD: Ints, positives: int) -> tuple[Array, Array]:
    if true_TD.shape[1] == 0:
        return np.zeros((len(true_TD), len(RECALL_R))), np.zeros(len(true_TD))
    recall = true_TD / positives
    precision = true_TD / np.maximum(true_TD + false_TD, np.spacing(1))
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    curve = np.zeros((len(true_TD), len(RECALL_R)))
    for t in range(len(true_TD)):
        place = np.searchsorted(recall[t], RECALL_R, side="left")
        inside = place < recall.shape[1]
        curve[t, inside] = envelope[t, place[inside]]
    return curve, recall[:, -1]
