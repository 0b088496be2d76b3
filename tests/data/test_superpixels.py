"""Superpixels: hand-computed joins, the crop that the towers see, and what a reading process hands on."""

from random import Random

import numpy as np
import torch

from vlm_core.data.shards.augment import Transform
from vlm_core.data.shards.superpixels import felzenszwalb, of_patches, segments
from vlm_core.data.shards.view_config import Superpixels, Views
from vlm_core.data.shards.views import Beside


def strip(*greys: float) -> np.ndarray:
    """A picture one pixel high."""
    return np.repeat(np.array(greys, float)[None, :, None], 3, axis=2) / np.sqrt(3)  # the distance of two pixels is the difference of their greys


def test_neighbours_join_while_their_difference_is_below_scale_over_size() -> None:
    # edges by cost: 0.1 (a-b), 0.1 (c-d), 0.5 (b-c). Pieces of one pixel: threshold 0 + scale / 1. Then both hold two pixels: 0.1 + scale / 2.
    for scale, expected in ((0.05, [0, 1, 2, 3]), (0.2, [0, 0, 1, 1]), (0.79, [0, 0, 1, 1]), (0.81, [0, 0, 0, 0])):
        assert felzenszwalb(strip(0.0, 0.1, 0.6, 0.7), scale * 255, 0.0, 1).tolist() == [expected], scale


def test_segments_below_the_smallest_size_join_their_nearest_neighbour() -> None:
    assert felzenszwalb(strip(0.0, 0.0, 0.0, 0.9, 1.0, 1.0, 1.0), 0.01, 0.0, 1).tolist() == [[0, 0, 0, 1, 2, 2, 2]]
    assert felzenszwalb(strip(0.0, 0.0, 0.0, 0.9, 1.0, 1.0, 1.0), 0.01, 0.0, 2).tolist() == [[0, 0, 0, 1, 1, 1, 1]]


def test_joining_equal_pixels_at_once_changes_nothing() -> None:
    random = np.random.default_rng(0)
    picture = random.random((6, 7, 1)).repeat(3, 2).repeat(2, 0).repeat(2, 1)  # four equal pixels each, all differences between them of their own
    tilted = picture + 1e-9 * random.random(picture.shape)  # none equal, the order of unequal ones the same
    for scale in (20, 100, 400):
        one, other = (felzenszwalb(pixels, scale, 0.0, 3) for pixels in (picture, tilted))
        assert one.max() == other.max()
        assert len(np.unique(np.stack([one.ravel(), other.ravel()]), axis=1).T) == one.max() + 1  # the same pieces under other numbers


def quarters(side: int) -> torch.Tensor:
    """Four squares of one colour each."""
    image = torch.zeros(3, side, side, dtype=torch.uint8)
    half = side // 2
    image[0, :half, :half], image[1, :half, half:], image[2, half:, :half] = 255, 255, 255
    return image


def test_a_picture_of_four_colours_has_four_segments_at_any_size() -> None:
    for side in (40, 64, 128):
        found = segments(quarters(side), Superpixels(sigma=0), 64)
        assert found.shape == (min(side, 64),) * 2
        assert found.max() == 3
        assert {found[0, 0], found[0, -1], found[-1, 0], found[-1, -1]} == {0, 1, 2, 3}


def test_patches_are_cut_like_the_picture() -> None:
    """Every patch of a crop whose pixels all have one colour belongs to the segment of that colour, flips included."""
    picture, transform = quarters(90), Transform(64, crop_scale_min=0.3, flip=True)
    found, pure = segments(picture, Superpixels(), 64), 0
    for number in range(30):
        square = transform.train_square(picture, Random(number)).float()
        patches = of_patches(found, (90, 90), transform, 8, Random(number)).reshape(8, 8)
        cells = square.reshape(3, 8, 8, 8, 8).permute(1, 3, 0, 2, 4).reshape(8, 8, 3, -1)
        names = dict[tuple[int, ...], set[int]]()
        for row in range(8):
            for column in range(8):
                if float(cells[row, column].std(-1).max()) < 1:
                    pure += 1
                    names.setdefault(tuple(cells[row, column].mean(-1).round().int().tolist()), set()).add(int(patches[row, column]))
        assert all(len(labels) == 1 for labels in names.values())
        assert len(set().union(*names.values())) == len(names)
        assert sorted(set(patches.ravel().tolist())) == list(range(patches.max() + 1))
    assert pure > 1000


def test_a_reading_process_gives_them_beside_the_views_and_remembers_the_picture() -> None:
    transform = Transform(64)
    beside = Beside(Views(), transform, 1, False, Superpixels(), 8)
    parts = [beside.of(quarters(90), "a text", f"0/{epoch}/uid-{uid}") for epoch in range(2) for uid in "ab"]
    batch = beside.batch(parts)
    assert batch["superpixels"].shape == (4, 64)
    assert batch["superpixels"].dtype == torch.int64
    assert len(batch["views"]) == 1
    assert sorted(beside._known) == ["uid-a", "uid-b"]
    assert (beside.of(quarters(90), "a text", "0/1/uid-a")[2] == parts[2][2]).all()
    assert len({beside.of(quarters(90), "a text", f"0/{epoch}/uid-a")[2].tobytes() for epoch in range(12)}) > 1  # another epoch, another crop
