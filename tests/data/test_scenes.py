"""Composed scenes: boxes are exact to the pixel, objects keep their colours and no ground, and equal seeds give equal scenes."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from vlm_core.data.shards.scene_config import Scenes
from vlm_core.data.shards.scenes import bounding_box, compose, cut_out, resize

COLOURS = ((220, 30, 30), (30, 160, 30), (40, 60, 220), (120, 0, 120))


def dice(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def on_ground(colour: tuple[int, int, int], ground: int = 250, side: int = 40) -> Tensor:
    """A 16 x 10 block of one colour with a hole, on plain ground."""
    image = torch.full((3, side, side), ground, dtype=torch.uint8)
    image[:, 5:21, 8:18] = torch.tensor(colour, dtype=torch.uint8).view(3, 1, 1)
    image[:, 10:12, 11:13] = ground
    return image


def test_what_is_cut_out_is_the_object_with_its_holes_and_nothing_of_the_ground() -> None:
    cut = cut_out(on_ground(COLOURS[0]))
    assert cut.mask_HW.shape == (16, 10)
    assert bool(cut.mask_HW.all())  # the hole is part of it
    assert cut.image_3HW[:, 0, 0].tolist() == [220, 30, 30]


def test_slight_noise_of_a_jpeg_is_ground() -> None:
    image = on_ground(COLOURS[1], ground=235)
    noise = torch.randint(-10, 11, image.shape, generator=dice())
    assert cut_out((image.short() + noise).clamp(0, 255).to(torch.uint8)).mask_HW.shape == (16, 10)


@pytest.mark.parametrize("ground", [40, None])
def test_a_picture_without_plain_light_ground_is_taken_whole(ground: int | None) -> None:
    image = torch.randint(0, 256, (3, 20, 30), generator=dice(), dtype=torch.uint8) if ground is None else on_ground(COLOURS[0], ground=ground)
    cut = cut_out(image)
    assert cut.mask_HW.shape == image.shape[1:]
    assert bool(cut.mask_HW.all())


def test_a_smaller_object_keeps_its_shape_and_takes_no_colour_of_the_ground() -> None:
    small = resize(cut_out(on_ground(COLOURS[2])), 8)
    assert small.mask_HW.shape == (8, 5)
    assert {tuple(pixel) for pixel in small.image_3HW[:, :, [0, -1]].flatten(1).T.tolist()} == {COLOURS[2]}


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("ground", ["white", "colours"])
def test_boxes_enclose_exactly_the_pixels_of_their_object(seed: int, ground: str) -> None:
    solid = [torch.full((3, 12, 9), 255, dtype=torch.uint8) for _ in COLOURS]
    for image, colour in zip(solid, COLOURS, strict=True):
        image[:, 2:10, 2:7] = torch.tensor(colour, dtype=torch.uint8).view(3, 1, 1)
    scene = compose([cut_out(image) for image in solid], 64, Scenes(overlap=0.4, ground=ground), dice(seed))  # type: ignore[arg-type]
    pixels_SS3 = scene.image_3SS.permute(1, 2, 0).numpy()
    assert scene.objects
    for number, box in zip(scene.objects, scene.boxes_K4.tolist(), strict=True):
        rows, columns = np.nonzero((pixels_SS3 == COLOURS[number]).all(-1))  # recomputed from the colours alone
        assert box == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert bounding_box(scene.owner_SS == number) == tuple(box)


@pytest.mark.parametrize("seed", range(6))
def test_objects_share_no_more_than_allowed_and_have_the_sizes_asked_for(seed: int) -> None:
    settings = Scenes(overlap=0.0, smallest=0.2, largest=0.5)
    scene = compose([cut_out(on_ground(colour)) for colour in COLOURS], 64, settings, dice(seed))
    owned = sum(int((scene.owner_SS == number).sum()) for number in scene.objects)
    sizes_K2 = scene.boxes_K4[:, 2:] - scene.boxes_K4[:, :2]
    assert owned == int(sizes_K2.prod(1).sum())  # solid blocks that do not overlap fill their boxes
    longest_K = sizes_K2.amax(1)
    assert bool(((longest_K >= 0.2 * 64 - 1) & (longest_K <= 0.5 * 64 + 1)).all())


def test_what_finds_no_place_is_left_out_and_the_first_always_fits() -> None:
    full = Scenes(overlap=0.0, smallest=1.0, largest=1.0)
    scene = compose([cut_out(torch.zeros(3, 10, 10, dtype=torch.uint8))] * 3, 32, full, dice())
    assert scene.objects == [0]
    assert scene.boxes_K4.tolist() == [[0, 0, 32, 32]]


def test_equal_seeds_give_equal_scenes_and_others_do_not() -> None:
    cuts = [cut_out(on_ground(colour)) for colour in COLOURS]
    one, same, other = (compose(cuts, 48, Scenes(), dice(seed)) for seed in (3, 3, 4))
    assert torch.equal(one.image_3SS, same.image_3SS)
    assert torch.equal(one.boxes_K4, same.boxes_K4)
    assert not torch.equal(one.image_3SS, other.image_3SS)


def test_settings_out_of_order_are_refused() -> None:
    with pytest.raises(ValidationError, match="Found objects_min 5 above objects_max 4"):
        Scenes(objects_min=5)
