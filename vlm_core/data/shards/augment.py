"""From a decoded picture to the square a model reads: named, digestible, the same for every model of one run.

Training: random resized crop (Inception's rule: area share uniform, aspect ratio log-uniform), no flip unless asked, since captions and emoji have a left and a right.
Evaluation: shorter side resized with PIL, then the centre cut out, which is open_clip's rule, so an exported model sees the same pixels.
Differs from torchvision's RandomResizedCrop in one thing: the random numbers come from a generator that the caller seeds per sample.

Shapes: H, W height and width of the picture, S side of the square, B batch.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from random import Random
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms.v2 import functional

from vlm_core.config import canonical_json

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
VERSION = 1  # raise it when the same settings give other pixels
TRIES = 10


class Dice(Protocol):
    """Uniform numbers in [0, 1): random.Random (twelve times cheaper to seed) or numpy's Generator."""

    def random(self) -> float: ...


@dataclass(frozen=True)
class Transform:
    """How a model wants its pictures. `Transform(**model_config["transform"])` gives it back."""

    size_px: int
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    interpolation: str = "bicubic"
    crop_scale_min: float = 0.5
    crop_ratio_max: float = 4 / 3
    flip: bool = False

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))

    def settings(self) -> dict[str, Any]:
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}

    def digest(self) -> str:
        """SHA-256 of the settings and of the version of this file's rules."""
        return hashlib.sha256(canonical_json({"version": VERSION, **self.settings()}).encode()).hexdigest()

    def train_square(self, image_3HW: Tensor, dice: Dice, scale_max: float = 1.0) -> Tensor:
        """A random crop of a uint8 picture that keeps at most that share of it, as uint8 (3, S, S)."""
        top, left, height, width = random_crop(image_3HW.shape[1], image_3HW.shape[2], self.crop_scale_min, self.crop_ratio_max, dice, scale_max)
        cut = image_3HW[:, top : top + height, left : left + width]
        # what torchvision's resize does for uint8, without its 0.1 ms of dispatch
        square = interpolate(cut[None], [self.size_px, self.size_px], mode=self.interpolation, antialias=True)[0]
        return square.flip(-1) if self.flip and dice.random() < 0.5 else square

    def eval_square(self, image: Image.Image) -> Tensor:
        """The centre of a picture, as uint8 (3, S, S)."""
        image, side, short = image.convert("RGB"), self.size_px, min(image.size)
        width, height = (int(side * edge / short) for edge in image.size)
        image = image.resize((width, height), Image.Resampling[self.interpolation.upper()])
        left, top = round((width - side) / 2), round((height - side) / 2)
        return functional.pil_to_tensor(image.crop((left, top, left + side, top + side)))

    def normalise(self, images_B3SS: Tensor) -> Tensor:
        """uint8 0..255 to float32, mean 0 and deviation 1 per channel over the data the numbers were taken from."""
        mean, std = (torch.tensor(values, device=images_B3SS.device).view(3, 1, 1) * 255 for values in (self.mean, self.std))
        return (images_B3SS.float() - mean) / std

    def for_pictures(self, train: bool = False, seed: int = 0) -> Callable[[Image.Image], Tensor]:
        """PIL picture -> normalised float32 (3, S, S), for callers outside the loader."""
        dice = Random(seed)

        def apply(image: Image.Image) -> Tensor:
            square = self.train_square(functional.pil_to_tensor(image.convert("RGB")), dice) if train else self.eval_square(image)
            return self.normalise(square)

        return apply


def random_crop(height: int, width: int, scale_min: float, ratio_max: float, dice: Dice, scale_max: float = 1.0) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a crop: area share uniform in [scale_min, scale_max], aspect log-uniform in [1/ratio_max, ratio_max].

    Source: Szegedy et al., arXiv 1409.4842, section 6, with torchvision's fall-back: after ten misses the largest centred crop of an allowed aspect.
    """
    for _ in range(TRIES):
        area = height * width * (scale_min + (scale_max - scale_min) * dice.random())
        ratio = ratio_max ** (2 * dice.random() - 1)
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(dice.random() * (height - h + 1)), int(dice.random() * (width - w + 1)), h, w
    w = min(width, round(height * ratio_max))
    h = min(height, round(width * ratio_max))
    return (height - h) // 2, (width - w) // 2, h, w
