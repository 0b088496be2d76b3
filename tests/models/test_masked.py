"""Scores without lettering (T-MARS), on pictures with rendered text and a made-up encoder."""

from pathlib import Path
from typing import cast

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from tests.data.filter_world import World, picture
from tests.data.small_world import stage_for
from tests.data.test_lettering import lettered
from vlm_core.data.config import TextMask
from vlm_core.data.fetch.stored import Pictures
from vlm_core.data.filter.lettering import Area, Strokes, mask_of, text_overlap
from vlm_core.models.embed import Embedded, cosines
from vlm_core.models.masked import cover, masked_scores

WHITE = Image.new("RGB", (256, 256), "white")


class Counting(Strokes):
    """The detector, counting the pictures that it sees; it dies when told to."""

    def __init__(self, last: int = 10**6) -> None:
        super().__init__()
        self.seen, self.last = 0, last

    def boxes(self, image_HW3: np.ndarray) -> list[Area]:
        self.seen += 1
        if self.seen > self.last:
            raise KeyboardInterrupt
        return super().boxes(image_HW3)


def look(images: list[Image.Image]) -> np.ndarray:
    """Unit vectors that depend on every part of a picture."""
    rows = np.stack([np.asarray(image.convert("L").resize((4, 4), Image.Resampling.BOX), np.float32).ravel() for image in images])
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def world(folder: Path) -> tuple[Embedded, Pictures]:
    made = World()
    words = Image.fromarray(lettered(WHITE, "SALE TODAY", 34, (10, 100), "black")[0])
    for caption, image in (("words", words), ("blobs", picture(3, 256)), ("the same words", words), ("nothing", WHITE)):
        made.add(caption, image)
    store = Pictures(made.write(folder)["images"])
    samples = pa.table({"uid": [s["uid"] for s in made.samples], "caption": [s["caption"] for s in made.samples], "sha256": ["a", "b", "a", "c"]})
    image_ND = look([store.image(uid) for uid in samples["uid"].to_pylist()])
    text = np.random.default_rng(0).random((4, 16), np.float32)
    text_ND = text / np.linalg.norm(text, axis=1, keepdims=True)
    none = cast("object", None)
    return Embedded(samples, image_ND, text_ND, none, {}, cosines(image_ND, text_ND), lambda images, rows: look(list(images)), {}), store  # type: ignore[arg-type]


def test_only_pictures_with_lettering_are_scored_again_and_equal_ones_once(tmp_path: Path) -> None:
    found, store = world(tmp_path / "in")
    detector = Counting()
    out = masked_scores(TextMask(), found, store, stage_for(tmp_path, {}), detector)
    assert detector.seen == 3  # distinct pictures
    assert (out["text_area"] > 0).tolist() == [True, False, True, False]
    assert out["masked_score"][[1, 3]] == pytest.approx(found.scores[[1, 3]])
    covered, area, _ = cover(np.asarray(store.image(found.samples["uid"][0].as_py())), Strokes())
    assert out["text_area"][0] == pytest.approx(area)
    assert out["masked_score"][[0, 2]] == pytest.approx((look([covered])[0] * found.text_ND[[0, 2]]).sum(1), abs=1e-6)
    assert np.abs(out["masked_score"][0] - found.scores[0]) > 1e-3
    assert "text_overlap" not in out  # strokes are found, not read


def test_words_of_a_caption_that_are_read_in_its_picture_are_counted(tmp_path: Path) -> None:
    found, store = world(tmp_path / "in")
    captions = ["Sale of new shoes", "sale", "SALE: today!", "nothing"]  # of pictures: SALE TODAY, blobs, SALE TODAY, none
    samples = found.samples.set_column(found.samples.column_names.index("caption"), "caption", pa.array(captions))
    out = masked_scores(TextMask(), found._replace(samples=samples), store, stage_for(tmp_path, {}))
    assert out["text_overlap"].tolist() == pytest.approx([1 / 3, 0, 1, 0])
    assert text_overlap("my cat, a Cat, a dog", "CAT on a mat") == 0.5
    assert text_overlap("Grand opening", "grandopeningofourshop") == 1.0
    assert text_overlap("!? by me", "by me!?") == 0.0


def test_what_is_painted_over_is_what_was_found(tmp_path: Path) -> None:
    pixels, ink = lettered(WHITE, "hello world", 30, (20, 90), "black")
    covered, area, read = cover(pixels, Strokes())
    assert read == ""
    assert area == mask_of(Strokes().boxes(pixels), 256, 256).mean()
    assert np.asarray(covered)[ink].min() > 250
    assert (np.asarray(covered)[:60] == pixels[:60]).all()


def test_a_killed_run_looks_at_no_block_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlm_core.models.masked.BLOCK", 1)
    found, store = world(tmp_path / "in")
    stage = stage_for(tmp_path, {})
    with pytest.raises(KeyboardInterrupt):
        masked_scores(TextMask(), found, store, stage, Counting(last=2))
    again = Counting()
    out = masked_scores(TextMask(), found, store, stage, again)
    assert again.seen == 1
    assert (out["text_area"] > 0).tolist() == [True, False, True, False]
