"""Contact sheets say in words what they show, in every script that a font among the packages has."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlm_core.data.pictures import EDGE, FONTS, MISSING, contact_sheet, drawable

GROUND = Image.new("RGB", (64, 64), "white")


def ink(text: str, folder: Path) -> np.ndarray:
    contact_sheet([(GROUND, text)], folder / "sheet.png", columns=1)
    return np.asarray(Image.open(folder / "sheet.png").convert("L"))[EDGE:] < 128


@pytest.mark.parametrize(
    ("text", "font"),
    [("a red balloon, déjà vu", 0), ("красный шар", 0), ("κόκκινο", 0), ("빨간 풍선", 1), ("赤い風船", None), ("紅色氣球", None)],
)
def test_letters_of_many_scripts_are_drawn_and_not_boxes(text: str, font: int | None, tmp_path: Path) -> None:
    letters = drawable(text)
    assert "".join(letter for letter, _ in letters) == text
    assert font is None or {number for letter, number in letters if letter != " "} == {font}
    boxes = ink(MISSING * len(text), tmp_path)
    assert ink(text, tmp_path).sum() > 10 * len(text) / 2
    assert (ink(text, tmp_path) != boxes).any()


def test_kana_and_han_that_nanum_lacks_come_from_the_japanese_font() -> None:
    assert [FONTS[number][0] for _, number in drawable("あ両")] == [FONTS[number][0] for _, number in drawable("あ")] + ["matplotlib_fontja"]


def test_what_no_font_has_is_one_empty_box_and_steering_letters_are_nothing(tmp_path: Path) -> None:
    assert drawable("a\U0001f9a5b\u202e\x07") == [("a", 0), (MISSING, 0), ("b", 0)]
    contact_sheet([(GROUND, "\U0001f9a5")], tmp_path / "sheet.png")
    assert drawable("") == []


def test_a_long_title_is_cut_to_two_lines_inside_the_tile(tmp_path: Path) -> None:
    long = ink("바람 " * 60, tmp_path)
    assert not long[:, EDGE - 2 :].any()
    assert long[:12].any()
    assert long[12:].any()
