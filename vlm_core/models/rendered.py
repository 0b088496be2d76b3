"""Text that is drawn into a picture and read by the image tower: one tower for both, and no vocabulary (CLIPPO, arXiv 2212.08045).

Lower-case, black on grey 127, words wrapped, what does not fit is cut. CLIPPO draws with GNU Unifont; no package here has a font with Chinese, Japanese or
Korean letters, so what the font lacks is drawn as a block of 5 x 5 squares that spells the number of the letter: other letters look different.
Letters stand next to each other from left to right: scripts that join or turn theirs are not shaped.
"""

# B texts, S side of the drawn picture, D joint width

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from vlm_core.data.shards.augment import CLIP_MEAN, CLIP_STD
from vlm_core.errors import MissingInput
from vlm_core.models import config as menu

GREY, SIDE_OF_CODE = 127, 5


class Drawing:
    """Texts -> grey levels (B, S x S) as uint8. It stands where other text towers have a tokenizer."""

    name = "rendered"

    def __init__(self, config: menu.Rendered) -> None:
        self.side, self.line, self.context_length = config.image_size, config.font_size, config.image_size**2
        self.font = font_of(config.font, config.font_size)
        self._width = lru_cache(maxsize=65_536)(self._width_of)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        if not texts:
            return torch.zeros(0, self.context_length, dtype=torch.uint8)
        return torch.from_numpy(np.stack([np.asarray(self.draw(text)).reshape(-1) for text in texts]))

    def draw(self, text: str) -> Image.Image:
        page = Image.new("L", (self.side, self.side), GREY)
        pen = ImageDraw.Draw(page)
        for row, line in enumerate(self.lines(" ".join(text.lower().split()))):
            x = 1.0
            for letter in line:
                if has(self.font, letter):
                    pen.text((x, 1 + row * self.line), letter, fill=0, font=self.font)
                else:
                    self._code(pen, round(x), 1 + row * self.line, ord(letter))
                x += self._width(letter)
        return page

    def lines(self, text: str) -> list[str]:
        """The lines that fit; a word longer than a line is broken."""
        room, done, here, used = self.side - 2, list[str](), "", 0.0
        for word in text.split(" "):
            gap = self._width(" ") if here else 0.0
            width = sum(map(self._width, word))
            if used + gap + width <= room:
                here, used = f"{here}{' ' if here else ''}{word}", used + gap + width
                continue
            done += [here] if here else []
            here, used = "", 0.0
            for letter in word:
                if here and used + self._width(letter) > room:
                    done.append(here)
                    here, used = "", 0.0
                here, used = here + letter, used + self._width(letter)
        return [*done, here][: (self.side - 2) // self.line]

    def _width_of(self, letter: str) -> float:
        return float(self.font.getlength(letter)) if has(self.font, letter) else SIDE_OF_CODE * self._square + 2.0

    @property
    def _square(self) -> int:
        return max((self.line - 2) // SIDE_OF_CODE, 1)

    def _code(self, pen: ImageDraw.ImageDraw, left: int, top: int, code: int) -> None:
        """25 squares, black where a bit of the code point is 1."""
        side = self._square
        for bit in range(SIDE_OF_CODE**2):
            if code >> bit & 1:
                x, y = left + bit % SIDE_OF_CODE * side, top + bit // SIDE_OF_CODE * side
                pen.rectangle((x, y, x + side - 1, y + side - 1), fill=0)


@lru_cache(maxsize=8)
def font_of(path: str, size: int) -> ImageFont.FreeTypeFont:
    """A font of `size` pixels from line to line. Raises MissingInput."""
    from matplotlib import get_data_path

    try:
        file = path or f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf"
        return ImageFont.truetype(file, max(round(size * 0.8), 4), layout_engine=ImageFont.Layout.BASIC)
    except OSError as error:
        raise MissingInput(f"Found no font at {path} ({error}), expected a TrueType file; correct model.text.font, or leave it empty.") from None


@lru_cache(maxsize=65_536)
def has(font: ImageFont.FreeTypeFont, letter: str) -> bool:
    """Whether the font draws something else than its mark for missing letters."""
    return letter == " " or bytes(font.getmask(letter)) != bytes(font.getmask("\U0010ffff"))


class Rendered(nn.Module):
    """Has no weights of its own. Args: image: the tower that reads; held in a list, so that its weights are registered once."""

    def __init__(self, image: Any, side: int) -> None:
        super().__init__()
        self._image, self.side = [image], side
        mean, std = (sum(values) / 3 * 255 for values in (CLIP_MEAN, CLIP_STD))
        self.mean, self.std = mean, std

    @property
    def features_width(self) -> int:
        return int(self._image[0].features_width)

    def features(self, grey_BL: Tensor) -> Tensor:
        levels_B1SS = (grey_BL.float().view(-1, 1, self.side, self.side) - self.mean) / self.std
        out_BE: Tensor = self._image[0].features(levels_B1SS.expand(-1, 3, -1, -1))
        return out_BE

    def head(self, features_BE: Tensor) -> Tensor:
        out_BD: Tensor = self._image[0].head(features_BE)
        return out_BD

    def forward(self, grey_BL: Tensor) -> Tensor:
        """Raw joint embedding (B, D) of drawn texts."""
        return self.head(self.features(grey_BL))


def build(config: menu.Rendered, *, width: int, activation: menu.Activation, image: Any, fresh: bool = True) -> nn.Module:
    """Args: width, activation: the image tower's; image: that tower."""
    return Rendered(image, config.image_size)
