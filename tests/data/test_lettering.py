"""Lettering in pictures, on rendered text: found, painted over, and nothing found where none is."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont

from tests.data.filter_world import picture
from vlm_core.data.filter.lettering import Area, Network, Strokes, TextDetector, mask_of, painted_over

SIDE = 256


def lettered(ground: Image.Image, text: str, size: int, place: tuple[int, int], fill: str, font: str = "DejaVuSans") -> tuple[np.ndarray, np.ndarray]:
    """(the picture with text on it, which pixels are ink)."""
    out = ground.convert("RGB").copy()
    letters = ImageFont.truetype(f"{get_data_path()}/fonts/ttf/{font}.ttf", size)
    ImageDraw.Draw(out).text(place, text, fill=fill, font=letters, stroke_width=int(fill == "white"), stroke_fill="black" if fill == "white" else None)
    pixels = np.asarray(out)
    return pixels, (pixels != np.asarray(ground.convert("RGB"))).any(axis=2)


def found_ink(pixels: np.ndarray, ink: np.ndarray, detector: TextDetector | None = None) -> float:
    mask = mask_of((detector or Strokes()).boxes(pixels), *pixels.shape[:2])
    return float((mask & ink).sum() / ink.sum())


def test_most_of_rendered_text_is_found_over_sizes_fonts_colours_and_grounds() -> None:
    rng, shares = np.random.default_rng(5), []
    for number in range(40):
        ground = picture(number, SIDE) if number % 2 else Image.new("RGB", (SIDE, SIDE), tuple(rng.integers(140, 256, 3).tolist()))
        font = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif")[number % 3]
        text = ("SALE TODAY", "Free shipping", "hello world", "Birthday")[number % 4]
        place = (int(rng.integers(5, 30)), int(rng.integers(5, 190)))
        shares.append(found_ink(*lettered(ground, text, int(rng.integers(14, 36)), place, "white" if number % 5 == 0 else "black", font)))
    assert np.mean(shares) > 0.75
    assert np.mean(np.array(shares) > 0.4) > 0.8


def test_no_text_is_found_where_there_is_none() -> None:
    for number in range(20):
        assert Strokes().boxes(np.asarray(picture(number, SIDE))) == []
    ramp = np.broadcast_to(np.arange(SIDE, dtype=np.uint8)[:, None], (SIDE, SIDE))
    assert Strokes().boxes(np.stack([ramp] * 3, axis=2)) == []
    assert Strokes().boxes(np.full((20, 300, 3), 7, np.uint8)) == []


@pytest.mark.parametrize(("text", "size", "fill"), [("SALE TODAY", 30, "black"), ("hello", 80, "red"), ("Free shipping", 16, "white")])
def test_the_network_finds_what_strokes_overlook_too(text: str, size: int, fill: str) -> None:
    ground = picture(3, SIDE).convert("RGB") if fill == "white" else Image.new("RGB", (SIDE, SIDE), "ivory")
    pixels, ink = lettered(ground, text, size, (8, 60), fill)
    assert found_ink(pixels, ink, Network()) > 0.9
    turned = np.ascontiguousarray(np.rot90(pixels)), np.ascontiguousarray(np.rot90(ink))
    assert found_ink(*turned, Network()) > 0.9


def test_the_network_reads_nothing_into_pictures_without_text() -> None:
    assert [Network().boxes(np.asarray(picture(number, SIDE).convert("RGB"))) for number in range(6)] == [[]] * 6
    assert Network().boxes(np.full((20, 300, 3), 7, np.uint8)) == []


def test_fewer_letters_than_asked_for_are_no_text() -> None:
    pixels, ink = lettered(Image.new("RGB", (SIDE, SIDE), "white"), "abc", 40, (20, 100), "black")
    assert Strokes(letters=4).boxes(pixels) == []
    (area,) = Strokes(letters=3).boxes(pixels)
    assert mask_of([area], SIDE, SIDE)[ink].all()


def test_text_painted_over_on_plain_ground_leaves_the_ground() -> None:
    ground = Image.new("RGB", (SIDE, SIDE), (200, 220, 240))
    pixels, ink = lettered(ground, "hello world", 30, (20, 100), "black")
    clean = painted_over(pixels, Strokes().boxes(pixels))
    assert np.abs(clean.astype(int) - np.asarray(ground).astype(int)).max() <= 1
    assert ink.sum() > 500


AREAS = st.lists(
    st.tuples(*[st.integers(0, 40)] * 4).map(lambda v: Area(min(v[0], v[2]), min(v[1], v[3]), max(v[0], v[2]) + 1, max(v[1], v[3]) + 1)), max_size=4
)


@settings(max_examples=60, deadline=None)
@given(AREAS, st.integers(0, 5))
def test_only_boxes_are_painted_over_each_with_one_colour_of_its_surroundings(areas: list[Area], seed: int) -> None:
    image = np.asarray(picture(seed, 40))
    areas = [Area(left, top, min(right, 40), min(bottom, 40)) for left, top, right, bottom, _ in areas]
    areas = [area for area in areas if area.left < area.right and area.top < area.bottom]
    out, mask = painted_over(image, areas), mask_of(areas, 40, 40)
    assert (out[~mask] == image[~mask]).all()
    for left, top, right, bottom, _ in areas[-1:]:  # an earlier one may be painted again
        assert len(np.unique(out[top:bottom, left:right].reshape(-1, 3), axis=0)) == 1
        assert (out[top, left] >= image.min(axis=(0, 1))).all()
        assert (out[top, left] <= image.max(axis=(0, 1))).all()


@pytest.mark.parametrize("shift", [(3, 0), (0, 17), (20, 11)])
def test_the_boxes_move_with_the_text(shift: tuple[int, int]) -> None:
    ground = Image.new("RGB", (SIDE, SIDE), "white")
    (one,), (two,) = (Strokes().boxes(lettered(ground, "shipping", 28, (30 + x, 60 + y), "black")[0]) for x, y in ((0, 0), shift))
    assert np.abs(np.array(two[:4]) - np.array(one[:4]) - [*shift, *shift]).max() <= 1
