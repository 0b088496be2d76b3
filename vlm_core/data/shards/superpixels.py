"""Superpixels of a picture, and which of them each patch of a crop belongs to (Felzenszwalb and Huttenlocher, IJCV 2004; SegCLIP, arXiv 2211.14813).

Neighbours (eight of them) join in the order of their difference, if it is below what holds either segment together + scale / its size. Pixels without any
difference always join, which is done at once: a corpus of clip art is mostly such pixels.
"""

# H, W height and width, N pixels, M edges, R rows of the patch grid

from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torch.nn.functional import interpolate

from vlm_core.data.shards.augment import Transform, random_crop
from vlm_core.data.shards.view_config import Superpixels

SIDE = 224  # of the picture whose lengths the settings mean
INSIDE = 4  # points of a patch that are looked at, each way


def segments(image_3HW: Tensor, config: Superpixels, side: int) -> NDArray[np.int16]:
    """Segment of every pixel (H, W) of a uint8 picture, made small enough that its shorter side is at most `side`."""
    height, width = image_3HW.shape[1:]
    shrink = min(side / min(height, width), 1)
    small = interpolate(image_3HW[None].float(), [max(round(height * shrink), 1), max(round(width * shrink), 1)], mode="area")[0]
    unit = min(small.shape[1:]) / SIDE
    pixels_HW3 = small.permute(1, 2, 0).double().numpy() / 255
    return felzenszwalb(pixels_HW3, config.scale * unit**2, config.sigma * unit, round(config.min_size * unit**2)).astype(np.int16)


def felzenszwalb(pixels_HW3: NDArray[np.float64], scale: float, sigma: float, min_size: int) -> NDArray[np.int64]:
    """Segments (H, W), numbered from 0. `scale` is for pixels of 0..255, as in scikit-image."""
    blurred = gaussian_filter(pixels_HW3, [sigma, sigma, 0])
    first_M, second_M, cost_M = _edges(blurred)
    height, width = blurred.shape[:2]
    equal = cost_M == 0
    graph = coo_array((np.ones(equal.sum(), np.int8), (first_M[equal], second_M[equal])), (height * width,) * 2)
    _, label_N = connected_components(graph, directed=False)
    first_M, second_M = label_N[first_M], label_N[second_M]
    kept = np.flatnonzero(first_M != second_M)
    kept = kept[np.argsort(cost_M[kept], kind="stable")]
    parent = _join(first_M[kept].tolist(), second_M[kept].tolist(), cost_M[kept].tolist(), np.bincount(label_N).tolist(), scale / 255, min_size)
    return np.unique(np.array(parent)[label_N], return_inverse=True)[1].reshape(height, width)


def _edges(pixels_HW3: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """(pixel, neighbour, distance of their colours) of all eight directions, each once."""
    height, width = pixels_HW3.shape[:2]
    number = np.arange(height * width).reshape(height, width)
    pairs: list[tuple[Any, Any]] = [
        (np.s_[:, 1:], np.s_[:, :-1]), (np.s_[1:], np.s_[:-1]), (np.s_[1:, 1:], np.s_[:-1, :-1]), (np.s_[1:, :-1], np.s_[:-1, 1:]),
    ]  # fmt: skip
    costs = [np.sqrt(np.square(pixels_HW3[one] - pixels_HW3[other]).sum(-1)).ravel() for one, other in pairs]
    return np.concatenate([number[one].ravel() for one, _ in pairs]), np.concatenate([number[other].ravel() for _, other in pairs]), np.concatenate(costs)


def _join(first: list[int], second: list[int], costs: list[float], size: list[int], scale: float, min_size: int) -> list[int]:
    """Segment of every starting piece; the lists are edges in the order of their cost, and the sizes of the pieces."""
    parent, inside = list(range(len(size))), [0.0] * len(size)

    def root(piece: int) -> int:
        while parent[piece] != piece:
            parent[piece] = piece = parent[parent[piece]]
        return piece

    def join(one: int, other: int) -> int:
        parent[other] = one
        size[one] += size[other]
        return one

    for left, right, cost in zip(first, second, costs, strict=True):
        one, other = root(left), root(right)
        if one != other and cost < min(inside[one] + scale / size[one], inside[other] + scale / size[other]):
            inside[join(one, other)] = cost
    for left, right in zip(first, second, strict=True):
        one, other = root(left), root(right)
        if one != other and min(size[one], size[other]) < min_size:
            join(one, other)
    return [root(piece) for piece in range(len(size))]


def of_patches(segments_HW: NDArray[np.int16], picture_HW: tuple[int, int], transform: Transform, rows: int, dice: Random) -> NDArray[np.int64]:
    """For every patch (R x R) of the random crop that `dice` gives, as in `Transform.train_square`, the segment that most of it belongs to."""
    top, left, height, width = random_crop(*picture_HW, transform.crop_scale_min, transform.crop_ratio_max, dice)
    steps = (np.arange(rows * INSIDE) + 0.5) / (rows * INSIDE)
    down = ((top + steps * height) * segments_HW.shape[0] / picture_HW[0]).astype(int)
    right = ((left + steps * width) * segments_HW.shape[1] / picture_HW[1]).astype(int)
    seen = segments_HW[np.ix_(down, right)]
    if transform.flip and dice.random() < 0.5:
        seen = seen[:, ::-1]
    names, local = np.unique(seen, return_inverse=True)
    inside = local.reshape(rows, INSIDE, rows, INSIDE).transpose(0, 2, 1, 3).reshape(rows**2, -1)
    votes = (inside[:, :, None] == np.arange(len(names))).sum(1)
    return np.unique(votes.argmax(1), return_inverse=True)[1].astype(np.int64)
