"""Contact sheets: what people look at in the UI."""

import functools
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

EDGE, LINE, LINES = 128, 12, 2


def contact_sheet(items: Iterable[tuple[bytes | Image.Image, str]], path: Path, columns: int = 8) -> None:
    """Thumbnails with two lines of text below each, as one PNG. Letters beyond Latin are left out: no font that comes with the packages has them."""
    tiles = [_tile(picture, title) for picture, title in items]
    rows = max(1, -(-len(tiles) // columns))
    sheet = Image.new("RGB", (columns * EDGE, rows * (EDGE + LINES * LINE + 4)), "white")
    for place, tile in enumerate(tiles):
        sheet.paste(tile, (place % columns * EDGE, place // columns * tile.height))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, optimize=True)


def boxed(image: Image.Image, boxes: Mapping[str, Sequence[Sequence[float]]], edge: int = EDGE - 4) -> Image.Image:
    """The picture scaled to `edge`, with rectangles by colour (left, top, right, bottom in pixels of the given picture)."""
    scale = edge / max(image.size)
    large = image.convert("RGB").resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(large)
    for colour, drawn in boxes.items():
        for left, top, right, bottom in drawn:
            draw.rectangle((left * scale, top * scale, max(right * scale - 1, left * scale), max(bottom * scale - 1, top * scale)), outline=colour)
    return large


@functools.cache
def _font() -> ImageFont.FreeTypeFont:
    from matplotlib import get_data_path

    return ImageFont.truetype(f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf", 9)  # Pillow's own font lacks accents


def _tile(picture: bytes | Image.Image, title: str) -> Image.Image:
    image = (Image.open(io.BytesIO(picture)) if isinstance(picture, bytes) else picture).convert("RGB")
    image.thumbnail((EDGE - 4, EDGE - 4))
    tile = Image.new("RGB", (EDGE, EDGE + LINES * LINE + 4), "white")
    tile.paste(image, ((EDGE - image.width) // 2, (EDGE - image.height) // 2))
    font, draw = _font(), ImageDraw.Draw(tile)
    words = "".join(letter for letter in " ".join(title.split()) if ord(letter) < 0x250 and letter.isprintable())
    for line in range(LINES):
        width = len(words)
        while width and draw.textlength(words[:width], font) > EDGE - 4:
            width -= 1
        draw.text((2, EDGE + line * LINE), words[:width], fill="black", font=font)
        words = words[width:].lstrip()
    return tile
