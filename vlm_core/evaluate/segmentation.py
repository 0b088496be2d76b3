"""Semantic segmentation from one confusion matrix over the whole split (never the mean of per-image IoU), and the scenes on which models are compared.

Source of the scores: CLIP-ES eval_cam.py. Checked by golden `evaluation/segmentation_iou`. Scenes are composed of the test pictures of a labelled set, one per
class, so every pixel's class is known. Every patch takes the class whose prompts are nearest; ground is left out, since no class name describes it.
"""
# N images, H, W pixels, S side of a scene, C classes, P patches, D joint width

import colorsys
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

from vlm_core.data.eval_sets.eval_sets import EvalSet
from vlm_core.data.pictures import contact_sheet
from vlm_core.data.shards.scene_config import Scenes
from vlm_core.data.shards.scenes import compose, cut_out
from vlm_core.evaluate.card import ProtocolCard, digest_of
from vlm_core.evaluate.metrics import Array, Ints
from vlm_core.evaluate.results import Results
from vlm_core.evaluate.statistics import bootstrap_metric
from vlm_core.models.features import Encoder, model_card_fields
from vlm_core.models.pretrained import Vlm
from vlm_core.models.towers import unit

SIDE = 224  # of a scene, whatever the model's size
GROUND = 255
SHOWN, TRIES = 8, 50
LAYOUT = Scenes(objects_min=2, objects_max=4, smallest=0.25, largest=0.45, overlap=0.0, ground="white")
SEED = 20_221_127  # the same scenes for every model


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


# ---------------------------------------------------------------- scenes with known masks


class Segmented(NamedTuple):
    """Scenes and the class of every pixel."""

    keys: list[str]  # of the pictures in each scene
    images: list[Image.Image]
    truth_NSS: Ints  # GROUND where no object is


def can_segment(vlm: Vlm) -> bool:
    """Whether the image tower shows its patches in the joint space."""
    return "dense" in vlm.towers.config.image.gives


def segmented_scenes(data: EvalSet, count: int) -> Segmented:
    """The same scenes for every model: objects of different classes on white, from the test split."""
    dice, test = np.random.default_rng(SEED), data.rows("test")
    rows_of = {label: test[data.labels[test] == label] for label in np.unique(data.labels[test])}
    drawn = [_draw(rows_of, dice) for _ in range(count)]
    used = sorted({row for rows in drawn for row in rows})
    cuts = {row: cut_out(pil_to_tensor(picture)) for row, picture in zip(used, data.images(used), strict=True)}
    keys, images, truth = list[str](), list[Image.Image](), list[Ints]()
    for number, rows in enumerate(drawn):
        dice_of = torch.Generator().manual_seed(SEED + number)
        for _ in range(TRIES):  # until all objects found a place
            scene = compose([cuts[row] for row in rows], SIDE, LAYOUT, dice_of)
            if len(scene.objects) == len(rows):
                break
        labels = np.array([*data.labels[rows], GROUND])  # -1, the ground, is the last
        keys.append("+".join(data.keys[rows[place]] for place in scene.objects))
        images.append(to_pil_image(scene.image_3SS))
        truth.append(labels[scene.owner_SS.numpy()])
    return Segmented(keys, images, np.stack(truth))


def _draw(rows_of: dict[int, Ints], dice: np.random.Generator) -> list[int]:
    most = min(LAYOUT.objects_max, len(rows_of))
    labels = dice.choice(sorted(rows_of), dice.integers(min(LAYOUT.objects_min, most), most + 1), replace=False)
    return [int(dice.choice(rows_of[label])) for label in labels]


@torch.inference_mode()
def segment(vlm: Vlm, images: list[Image.Image], weights_CD: Tensor, batch: int = 16) -> tuple[Ints, Ints]:
    """(class of every pixel (N, S, S), class of every whole picture (N,)) for square pictures of S = SIDE pixels."""
    see, pixels, whole = vlm.transform(), list[Ints](), list[Ints]()
    image: Any = vlm.towers.image
    for begin in range(0, len(images), batch):
        states_BPE = image.tokens(torch.stack([see(picture) for picture in images[begin : begin + batch]]).to(vlm.device))
        weights_DC = weights_CD.T.to(vlm.device)
        patches_BPC = unit(image.head(states_BPE[:, 1:])) @ weights_DC
        rows = round(patches_BPC.shape[1] ** 0.5)
        map_BCRR = patches_BPC.transpose(1, 2).unflatten(2, (rows, rows))
        pixels.append(F.interpolate(map_BCRR, [SIDE, SIDE], mode="bilinear").argmax(1).cpu().numpy())
        whole.append((unit(image.head(image.pool(states_BPE))) @ weights_DC).argmax(1).cpu().numpy())
    return np.concatenate(pixels), np.concatenate(whole)


def evaluate_segmentation(encoder: Encoder, data: EvalSet, version: str, scenes: int, results: Results, sheet: Path) -> None:
    """mIoU over all scenes with its interval, beside that of one class for the whole picture; the IoU of each scene for paired comparisons."""
    vlm, classes, made = encoder.vlm, len(data.classnames), segmented_scenes(data, scenes)
    said_NSS, whole_N = segment(vlm, made.images, encoder.classifier(data.classnames, data.templates))
    card = ProtocolCard.from_config(
        model_card_fields(vlm),
        {"task": "segmentation", "dataset": data.name, "dataset_version": version, "split": "test", "split_sha256": digest_of(made.keys), "n": scenes},
        {"classes_sha256": digest_of(data.classnames), "class_count": classes, "templates_sha256": digest_of(data.templates)},
        {"template_count": len(data.templates), "aggregation": "unit mean of unit prompt embeddings", "language": "en", "background": "ignored"},
        {"metrics": {"miou": "one confusion matrix over all scenes", "side_px": SIDE, "scenes": LAYOUT.model_dump(mode="json"), "seed": SEED}},
    )
    flat_NSS = np.broadcast_to(whole_N[:, None, None], said_NSS.shape)
    for name, found_NSS in (("miou", said_NSS), ("whole_picture_miou", flat_NSS)):
        matrix_NCC = np.stack([confusion_matrix(truth, found, classes) for truth, found in zip(made.truth_NSS, found_NSS, strict=True)])
        interval = bootstrap_metric(partial(_miou, matrix_NCC), scenes, 1_000, results.seed)
        results.whole(card, name, interval, scenes)
        if name == "miou":
            results.per_sample(card, "scene_iou", made.keys, np.array([segmentation_scores(matrix_CC).miou for matrix_CC in matrix_NCC]))
    _draw_masks(made, said_NSS, data.classnames, sheet)


def _miou(matrix_NCC: Ints, chosen: Ints) -> float:
    return segmentation_scores(matrix_NCC[chosen].sum(0)).miou


def _draw_masks(made: Segmented, said_NSS: Ints, names: list[str], sheet: Path) -> None:
    """Scene, truth and what the model says, ground left white; under each the classes by area."""
    colours_C3 = np.random.default_rng(0).permutation(
        np.array([[int(255 * part) for part in colorsys.hsv_to_rgb(place / len(names), 0.75, 0.85)] for place in range(len(names))], np.uint8)
    )
    items = list[tuple[Image.Image, str]]()
    for picture, truth_SS, said_SS in zip(made.images[:SHOWN], made.truth_NSS, said_NSS, strict=False):
        items.append((picture, "scene"))
        for what, mask_SS in (("true", truth_SS), ("found", np.where(truth_SS == GROUND, GROUND, said_SS))):
            seen = mask_SS != GROUND
            pixels = np.full((*mask_SS.shape, 3), 255, np.uint8)
            pixels[seen] = colours_C3[mask_SS[seen]]
            order = np.bincount(mask_SS[seen], minlength=len(names)).argsort()[::-1][: len(np.unique(mask_SS[seen]))]
            items.append((Image.fromarray(pixels), f"{what}: {', '.join(names[label] for label in order)}"))
    contact_sheet(items, sheet, columns=6)
