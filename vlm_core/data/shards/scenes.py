"""Scenes of several objects with exact boxes: pictures on plain light ground are cut out and pasted on one canvas.

The boxes enclose exactly the pixels that are still seen of each object, so no labelling is needed. GLIP and DetCLIP (arXiv 2112.03857, 2209.09407) train on
labelled boxes of photographs; composing scenes is our stand-in where a snapshot has none.
"""

# H, W picture; S side of the canvas; K objects

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from scipy.ndimage import binary_fill_holes
from torch import Tensor
from torch.nn.functional import interpolate

from vlm_core.data.shards.scene_config import Scenes

LIGHT = 192  # the ground is cut away only if all its channels are at least so bright
NEAR = 24  # a pixel is ground if no channel differs by more
PLAIN = 0.5  # share of the border that is ground
TRIES = 20  # places that are drawn for an object before it is left out
SMALLEST_PX = 4


class CutOut(NamedTuple):
    """An object in its own bounding box."""

    image_3HW: Tensor  # uint8
    mask_HW: Tensor  # bool


class Scene(NamedTuple):
    image_3SS: Tensor  # uint8
    owner_SS: Tensor  # int16: which object a pixel belongs to, -1 for the ground
    boxes_K4: Tensor  # float32: left, top, right, bottom of what is seen of each object; right and bottom are the first pixel outside
    objects: list[int]  # which of the given cut-outs they are


def cut_out(image_3HW: Tensor) -> CutOut:
    """What lies on plain light ground; the whole picture where there is none. Holes belong to the object."""
    border_3N = torch.cat([image_3HW[:, 0], image_3HW[:, -1], image_3HW[:, :, 0], image_3HW[:, :, -1]], dim=1)
    ground_311 = border_3N.median(dim=1).values.view(3, 1, 1).short()
    plain = ((border_3N.short() - ground_311[..., 0]).abs().amax(0) <= NEAR).float().mean()
    mask_HW = torch.from_numpy(binary_fill_holes(((image_3HW.short() - ground_311).abs().amax(0) > NEAR).numpy()))
    if int(ground_311.min()) < LIGHT or float(plain) < PLAIN or not mask_HW.any():
        return CutOut(image_3HW, torch.ones(image_3HW.shape[1:], dtype=torch.bool))
    return _tight(CutOut(image_3HW, mask_HW))


def resize(cut: CutOut, longest: int) -> CutOut:
    """The same object with its longest side `longest` pixels; its edge takes no colour of the ground."""
    height, width = cut.mask_HW.shape
    size = [max(1, round(side * longest / max(height, width))) for side in (height, width)]
    seen_1HW = cut.mask_HW[None].float()
    small_4HW = interpolate(torch.cat([cut.image_3HW.float() * seen_1HW, seen_1HW])[None], size, mode="bilinear", antialias=True)[0]
    alpha_HW = small_4HW[3]
    colour_3HW = (small_4HW[:3] / alpha_HW.clamp(min=1e-3)).round().clamp(0, 255).to(torch.uint8)
    return _tight(CutOut(colour_3HW, alpha_HW >= min(0.5, float(alpha_HW.max()))))


def compose(cuts: Sequence[CutOut], side: int, config: Scenes, dice: torch.Generator) -> Scene:
    """Paste every cut-out at a random scale and place, one over the other; what finds no free place is left out.

    Args:
        cuts: candidates, in the order of pasting.
        side: of the canvas, in pixels.
        config: scales, overlap and ground.
        dice: all random numbers come from here.
    """
    ground_3 = torch.randint(LIGHT, 256, (3,), generator=dice, dtype=torch.uint8) if config.ground == "colours" else torch.full((3,), 255, dtype=torch.uint8)
    image_3SS, owner_SS = ground_3.view(3, 1, 1).repeat(1, side, side), torch.full((side, side), -1, dtype=torch.int16)
    taken: list[tuple[int, int, int, int]] = []
    for number, cut in enumerate(cuts):
        longest = side * (config.smallest + (config.largest - config.smallest) * float(torch.rand((), generator=dice)))
        small = resize(cut, max(SMALLEST_PX, round(longest)))
        if (box := _free_place(small, side, taken, config.overlap, dice)) is not None:
            left, top, right, bottom = box
            image_3SS[:, top:bottom, left:right] = small.image_3HW.where(small.mask_HW, image_3SS[:, top:bottom, left:right])
            owner_SS[top:bottom, left:right][small.mask_HW] = number
            taken.append(box)
    objects = [number for number in range(len(cuts)) if bool((owner_SS == number).any())]
    boxes = [bounding_box(owner_SS == number) for number in objects]
    return Scene(image_3SS, owner_SS, torch.tensor(boxes, dtype=torch.float32).view(-1, 4), objects)


def bounding_box(mask_HW: Tensor) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the true pixels; right and bottom are the first ones outside."""
    rows, columns = mask_HW.any(1).nonzero(), mask_HW.any(0).nonzero()
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _tight(cut: CutOut) -> CutOut:
    left, top, right, bottom = bounding_box(cut.mask_HW)
    return CutOut(cut.image_3HW[:, top:bottom, left:right], cut.mask_HW[top:bottom, left:right])


def _free_place(cut: CutOut, side: int, taken: list[tuple[int, int, int, int]], overlap: float, dice: torch.Generator) -> tuple[int, int, int, int] | None:
    height, width = cut.mask_HW.shape
    for x, y in torch.rand(TRIES, 2, generator=dice).tolist():
        left, top = math.floor(x * (side - width + 1)), math.floor(y * (side - height + 1))
        box = left, top, left + width, top + height
        if all(_shared(box, other) <= overlap for other in taken):
            return box
    return None


def _shared(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> float:
    """Share of the smaller box that lies in the other one."""
    width, height = (min(one[axis + 2], other[axis + 2]) - max(one[axis], other[axis]) for axis in (0, 1))
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return max(width, 0) * max(height, 0) / smaller
