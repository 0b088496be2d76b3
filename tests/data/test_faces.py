"""Faces: found on drawn heads, blurred as the golden arrays say (tests/golden), and nothing else touched."""

import io
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFilter

from tests.data.filter_world import encoded, picture
from vlm_core.data.filter.faces import HaarFaces, blur_boxes, blurred


def head(size: int, skin: tuple[int, int, int] = (224, 188, 160)) -> Image.Image:
    """A drawn face in the middle of a plain picture; the head is `size` pixels high."""
    scale, edge = size / 100, 0.2 * size
    image = Image.new("RGB", (int(1.4 * size),) * 2, (150, 170, 190))
    draw = ImageDraw.Draw(image)

    def oval(left: float, top: float, right: float, bottom: float, colour: tuple[int, int, int]) -> None:
        draw.ellipse([edge + left * scale, edge + (top - 5) * scale, edge + right * scale, edge + (bottom - 5) * scale], fill=colour)

    def shade(share: float) -> tuple[int, int, int]:
        red, green, blue = (min(int(value * share), 255) for value in skin)
        return red, green, blue

    oval(10, -5, 90, 70, (60, 40, 30))
    oval(15, 5, 85, 105, skin)
    for x in (33, 67):
        oval(x - 11, 38, x + 11, 52, shade(0.72))
        oval(x - 9, 41, x + 9, 50, (245, 245, 245))
        oval(x - 4.5, 41, x + 4.5, 50, (40, 30, 20))
        oval(x - 12, 29, x + 12, 33, (60, 40, 30))
    oval(46, 48, 54, 70, shade(1.06))
    oval(42, 66, 58, 73, shade(0.8))
    oval(35, 79, 65, 89, (170, 80, 80))
    return image.filter(ImageFilter.GaussianBlur(1.2 * scale))


@pytest.mark.parametrize("size", [60, 100, 250])
@pytest.mark.parametrize("skin", [(224, 188, 160), (141, 85, 54)])
def test_a_drawn_face_is_found_where_it_is_at_every_size(size: int, skin: tuple[int, int, int]) -> None:
    ((left, top, right, bottom),) = HaarFaces().faces(encoded(head(size, skin), "JPEG", quality=95))
    assert 0.1 <= left <= 0.25
    assert 0.1 <= top <= 0.25
    assert 0.7 <= right <= 0.9
    assert 0.7 <= bottom <= 0.9


def test_two_faces_are_two_and_blobs_are_none() -> None:
    wide = Image.new("RGB", (420, 200), (150, 170, 190))
    wide.paste(head(120), (10, 10))
    wide.paste(head(120), (230, 20))
    boxes = HaarFaces().faces(encoded(wide, "JPEG", quality=95))
    assert len(boxes) == 2
    assert boxes[0][2] < 0.5 < boxes[1][0]
    assert not any(HaarFaces().faces(encoded(picture(seed, 160), "JPEG")) for seed in range(12))
    assert HaarFaces().faces(b"no picture") == []


SHARES = st.floats(0, 1)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(SHARES, SHARES, SHARES, SHARES), max_size=3), st.integers(0, 5))
def test_pixels_far_from_every_box_stay_and_no_generator_is_touched(corners: list[tuple[float, float, float, float]], seed: int) -> None:
    boxes = [(min(a, c), min(b, d), max(a, c), max(b, d)) for a, b, c, d in corners]
    image = np.asarray(picture(seed, 80))
    random.seed(1)
    np.random.seed(1)
    states = random.getstate(), np.random.get_state()[1].copy()
    out = blur_boxes(image, boxes)
    assert states[0] == random.getstate()
    assert (states[1] == np.random.get_state()[1]).all()
    longest = max((max(int(c * 80) - int(a * 80), int(d * 80) - int(b * 80)) for a, b, c, d in boxes), default=0)
    far = np.ones((80, 80), bool)
    for left, top, right, bottom in boxes:
        more = 0.1 * longest + np.ceil(0.1 * longest) + 2
        rows, columns = np.mgrid[:80, :80]
        far &= (columns < left * 80 - more) | (columns > right * 80 + more) | (rows < top * 80 - more) | (rows > bottom * 80 + more)
    assert (out[far] == image[far]).all()
    assert out.shape == image.shape


def test_the_detail_of_a_blurred_face_is_gone_and_that_of_its_surroundings_stays() -> None:
    jpeg = encoded(head(250), "JPEG", quality=95)
    detector = HaarFaces()
    hidden = blurred(jpeg, detector.faces(jpeg))
    before, after = (np.asarray(Image.open(io.BytesIO(data)).convert("L"), float) for data in (jpeg, hidden))
    eyes = slice(140, 190), slice(90, 270)
    assert np.abs(np.diff(after[eyes], axis=1)).mean() < 0.25 * np.abs(np.diff(before[eyes], axis=1)).mean()
    assert np.abs(after[:10] - before[:10]).mean() <= 0.5  # a second JPEG, no blur
    assert blurred(jpeg, detector.faces(jpeg)) == hidden
