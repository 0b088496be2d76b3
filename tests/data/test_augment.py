"""Pixels: the evaluation square is open_clip's, crops keep their promises, and a digest tells two rules apart."""

import math
from random import Random

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from vlm_core.data.shards.augment import CLIP_MEAN, CLIP_STD, Transform, random_crop


def photo(width: int, height: int) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x * 255 / width, y * 255 / height, (x * y) % 256], -1).astype(np.uint8))


@pytest.mark.parametrize("size", [(64, 64), (100, 40), (41, 97), (33, 50), (17, 16)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_the_evaluation_picture_is_the_one_of_open_clip(size: tuple[int, int], interpolation: str) -> None:
    theirs = open_clip.image_transform(32, is_train=False, mean=CLIP_MEAN, std=CLIP_STD, interpolation=interpolation)
    ours = Transform(32, interpolation=interpolation).for_pictures()
    torch.testing.assert_close(ours(photo(*size)), theirs(photo(*size)), rtol=0, atol=1e-6)


def test_normalising_is_affine_per_channel() -> None:
    transform = Transform(2, mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 1.0))
    pixels = torch.tensor([0, 255, 51], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    torch.testing.assert_close(transform.normalise(pixels)[0, :, 0, 0], torch.tensor([-1.0, 3.0, 0.2]))


def test_a_crop_lies_inside_and_its_share_and_aspect_are_spread_as_promised() -> None:
    random = Random(0)
    crops = np.array([random_crop(400, 400, 0.5, 4 / 3, random) for _ in range(4000)])
    top, left, height, width = crops.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= 400).all()
    assert (left + width <= 400).all()
    share, ratio = height * width / 400**2, np.log(width / height) / math.log(4 / 3)
    assert share.min() > 0.49
    assert np.abs(ratio).max() < 1.02
    small = share < 0.74  # below this share every aspect fits, so nothing was drawn again: uniform in [.5, .74], and aspects symmetric
    assert abs(share[small].mean() - 0.62) < 0.005
    assert abs(ratio[small].mean()) < 0.05
    assert abs((ratio[small] ** 2).mean() - 1 / 3) < 0.02, "log-uniform"


def test_a_local_crop_keeps_no_more_than_it_may() -> None:
    random = Random(0)
    *_, height, width = np.array([random_crop(400, 400, 0.05, 4 / 3, random, 0.4) for _ in range(4000)]).T
    share = height * width / 400**2
    assert 0.045 < share.min() < 0.055
    assert 0.39 < share.max() < 0.405
    assert abs(share.mean() - 0.225) < 0.005  # uniform between the two


def test_a_picture_too_long_for_any_crop_gives_its_centre() -> None:
    assert random_crop(10, 1000, 0.9, 4 / 3, Random(0)) == (0, 493, 10, 13)


def test_the_same_seed_gives_the_same_crop_and_another_seed_another() -> None:
    transform = Transform(16)
    image = torch.from_numpy(np.array(photo(60, 40))).permute(2, 0, 1)
    one, same, other = (transform.train_square(image, Random(seed)) for seed in (1, 1, 2))
    assert one.shape == (3, 16, 16)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_the_crop_is_resized_as_torchvision_would() -> None:
    from torchvision.transforms.v2 import functional

    image = torch.from_numpy(np.array(photo(60, 40))).permute(2, 0, 1)
    for mode in ("bicubic", "bilinear"):
        square = Transform(16, interpolation=mode, crop_scale_min=0.3).train_square(image, Random(3))
        top, left, height, width = random_crop(40, 60, 0.3, 4 / 3, Random(3))
        theirs = functional.resized_crop(image.contiguous(), top, left, height, width, [16, 16], functional.InterpolationMode(mode), antialias=True)
        assert (square.int() - theirs.int()).abs().max() <= 1


def test_nothing_is_mirrored_unless_asked() -> None:
    image = torch.arange(256, dtype=torch.uint8).expand(3, 200, 256).clone()  # brighter to the right
    still, flipping = Transform(8), Transform(8, flip=True)
    rising = [float((s[0, 0].diff().float() > 0).float().mean()) for s in (still.train_square(image, Random(n)) for n in range(40))]
    assert set(rising) == {1.0}
    mirrored = sum(int(flipping.train_square(image, Random(n))[0, 0, 0] > 100) for n in range(40))
    assert 8 < mirrored < 32


def test_the_digest_depends_on_every_setting_and_survives_a_round_trip() -> None:
    base = Transform(32)
    changed = [Transform(33), Transform(32, mean=(0.5, 0.5, 0.5)), Transform(32, std=(0.5, 0.5, 0.5)), Transform(32, interpolation="bilinear"),
               Transform(32, crop_scale_min=0.9), Transform(32, crop_ratio_max=1.0), Transform(32, flip=True)]  # fmt: skip
    assert len({transform.digest() for transform in (base, *changed)}) == 8
    assert Transform(**changed[1].settings()) == changed[1]
    assert Transform(**base.settings()).digest() == base.digest()
