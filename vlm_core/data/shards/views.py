"""What a batch holds beside its pairs: strongly augmented views of the same picture, augmented texts, superpixels. A function of (seed, epoch, uid) only.

Sources: MoCo v2, arXiv 2003.04297 (views); EDA, arXiv 1901.11196, as DeCLIP, arXiv 2110.05208, uses it (texts). EDA's synonym replacement and insertion
need a thesaurus, which is not shipped: texts get a random swap or a random deletion.
"""

# S side of the square, V views, B samples

from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional

from vlm_core.data.shards.augment import Transform
from vlm_core.data.shards.superpixels import of_patches, segments
from vlm_core.data.shards.view_config import Superpixels, Views

KEPT = 20_000  # pictures whose segments a reading process remembers: 80 MB at 64 pixels, 1 GB at 224
Part = tuple[list[Tensor], str, NDArray[np.int64] | None]
CHANGED = 0.1  # share of the words that an augmented text changes


@dataclass(frozen=True)
class Beside:
    """Args: views: how many; texts: whether an augmented text is wanted; superpixels, rows: how, and of how many rows of patches; config: how views are made;
    transform: of the model.
    """

    config: Views
    transform: Transform
    views: int = 0
    texts: bool = False
    superpixels: Superpixels | None = None
    rows: int = 0
    _known: dict[str, NDArray[np.int16]] = field(default_factory=dict)  # segments by picture, up to KEPT of them

    @property
    def wanted(self) -> bool:
        return bool(self.views or self.texts or self.superpixels)

    @property
    def crop_scale_min(self) -> float:
        return self.config.crop_scale_min if self.views else 1.0

    def of(self, image_3HW: Tensor, text: str, where: str) -> Part:
        """(views, each uint8 (3, S, S); augmented text or ""; superpixel of each patch (P,) or None) of a sample; `where` names the random numbers."""
        views = [strong_view(image_3HW, self.config, self.transform, Random(f"view/{number}/{where}")) for number in range(self.views)]
        return views, augment_text(text, Random(f"text/{where}")) if self.texts else "", self._patches(image_3HW, where)

    def _patches(self, image_3HW: Tensor, where: str) -> NDArray[np.int64] | None:
        """Those of the crop that the towers see, which the same random numbers make."""
        if self.superpixels is None:
            return None
        uid = where.rpartition("/")[2]
        found = self._known.get(uid)
        if found is None:
            found = segments(image_3HW, self.superpixels, self.transform.size_px)
            if len(self._known) < KEPT:
                self._known[uid] = found
        height, width = image_3HW.shape[1:]
        return of_patches(found, (height, width), self.transform, self.rows, Random(f"crop/{where}"))

    def batch(self, parts: list[Part]) -> dict[str, Any]:
        """`views`: V of uint8 (B, 3, S, S); `augmented_texts`: B; `superpixels`: (B, P)."""
        views = {"views": [torch.stack([own[number] for own, _, _ in parts]) for number in range(self.views)]} if self.views else {}
        texts = {"augmented_texts": [text for _, text, _ in parts]} if self.texts else {}
        pieces = {"superpixels": torch.from_numpy(np.stack([patches for _, _, patches in parts if patches is not None]))} if self.superpixels else {}
        return {**views, **texts, **pieces}


def strong_view(image_3HW: Tensor, config: Views, transform: Transform, dice: Random) -> Tensor:
    """Random crop, then colours, grey, blur and a flip, each by its share. uint8 (3, S, S)."""
    square = replace(transform, crop_scale_min=config.crop_scale_min, flip=config.flip).train_square(image_3HW, dice, config.crop_scale_max)
    if dice.random() < config.jitter_share:
        square = jitter(square, config, dice)
    if dice.random() < config.gray_share:
        square = functional.rgb_to_grayscale(square, num_output_channels=3)
    if dice.random() < config.blur_share:
        side = transform.size_px // 20 * 2 + 1  # odd, a tenth of the side
        square = functional.gaussian_blur(square, [side, side], [dice.uniform(0.1, 2.0)] * 2)
    return square


def jitter(square: Tensor, config: Views, dice: Random) -> Tensor:
    """Brightness, contrast, saturation and hue, in random order."""
    steps = [functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation, functional.adjust_hue]
    dice.shuffle(steps)
    for step in steps:
        change = dice.uniform(-1, 1)
        square = step(square, change * config.hue if step is functional.adjust_hue else 1 + change * config.jitter)
    return square


def augment_text(text: str, dice: Random) -> str:
    """One of EDA's operations, on a tenth of the words, at least one; a text of one word stays."""
    words = text.split()
    return " ".join(eda(words, dice.choice(("swap", "delete")), max(1, round(CHANGED * len(words))), dice))


def eda(words: list[str], operation: str, count: int, dice: Random) -> list[str]:
    """`count` random swaps of two words, or deletions; at least one word is left."""
    words = list(words)
    for _ in range(count):
        if len(words) < 2:
            break
        if operation == "swap":
            one, other = dice.sample(range(len(words)), 2)
            words[one], words[other] = words[other], words[one]
        else:
            del words[dice.randrange(len(words))]
    return words
