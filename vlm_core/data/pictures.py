"""Contact sheets: what people look at in the UI."""

import functools
import importlib.util
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

EDGE, LINE, LINES = 128, 12, 2
MISSING = "▯"


def contact_sheet(items: Iterable[tuple[bytes | Image.Image, str]], path: Path, columns: int = 8) -> None:
    """Thumbnails with two lines of text below each, as one PNG."""
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


# Packages that carry a font -> the font. Each letter takes the first that has it: DejaVu has Latin, Greek, Cyrillic, Arabic and more, Nanum Hangul and many Han,
# IPAexGothic Kana and Japanese Han. Han that only simplified Chinese has, and scripts of India, have none among the packages.
FONTS = (("matplotlib", "mpl-data/fonts/ttf/DejaVuSans.ttf"), ("koreanize_matplotlib", "fonts/NanumGothic.ttf"), ("matplotlib_fontja", "fonts/ipaexg.ttf"))


@functools.cache
def _fonts() -> list[tuple[ImageFont.FreeTypeFont, frozenset[int]]]:
    """Font and the letters that it has; packages that are not there are passed over."""
    from fontTools.ttLib import TTFont

    found = []
    for package, name in FONTS:
        spec = importlib.util.find_spec(package)
        file = Path(spec.origin).parent / name if spec and spec.origin else None
        if file is not None and file.is_file():
            with TTFont(file, lazy=True) as font:
                found.append((ImageFont.truetype(str(file), 9), frozenset(font.getBestCmap())))
    return found


def drawable(text: str) -> list[tuple[str, int]]:
    """Each letter with the number of the first font that has it; one that none has becomes an empty box."""
    seen = [letter for letter in " ".join(text.split()) if letter.isprintable()]
    which = [next((number for number, (_, letters) in enumerate(_fonts()) if ord(letter) in letters), None) for letter in seen]
    return [(MISSING, 0) if number is None else (letter, number) for letter, number in zip(seen, which, strict=True)]


def _tile(picture: bytes | Image.Image, title: str) -> Image.Image:
    image = (Image.open(io.BytesIO(picture)) if isinstance(picture, bytes) else picture).convert("RGB")
    image.thumbnail((EDGE - 4, EDGE - 4))
    tile = Image.new("RGB", (EDGE, EDGE + LINES * LINE + 4), "white")
    tile.paste(image, ((EDGE - image.width) // 2, (EDGE - image.height) // 2))
    draw, x, line = ImageDraw.Draw(tile), 2.0, 0
    for letter, number in drawable(title):
        font = _fonts()[number][0]
        width = font.getlength(letter)
        if x + width > EDGE - 2:
            x, line = 2.0, line + 1
        if line == LINES:
            break
        if x > 2 or letter != " ":
            draw.text((x, EDGE + line * LINE + LINE - 3), letter, fill="black", font=font, anchor="ls")
            x += width
    return tile
