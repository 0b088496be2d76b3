"""OneR's three views: what the loss is made of, and what it is at its ends."""

import pytest
import torch

from tests.objectives.world import batch, built, settings_of, terms, towers
from vlm_core.models.towers import unit
from vlm_core.objectives.cross_modal_mixup import three_views_loss
from vlm_core.objectives.image_text_contrastive import clip_loss


def test_with_a_mixture_that_is_the_picture_it_is_two_thirds_of_clip_and_a_third_of_the_picture_with_itself() -> None:
    image_BD, text_BD = (unit(torch.randn(6, 4, generator=torch.Generator().manual_seed(seed))) for seed in (0, 1))
    scale = torch.tensor(10.0)
    expected = (2 * clip_loss(image_BD, text_BD, scale) + clip_loss(image_BD, image_BD, scale)) / 3
    torch.testing.assert_close(three_views_loss(image_BD, text_BD, image_BD, scale), expected)


def test_three_equal_orthogonal_views_leave_no_loss() -> None:
    eye = torch.eye(5)
    assert float(three_views_loss(eye, eye, eye, torch.tensor(100.0))) < 1e-3


def test_views_of_other_pairs_leave_the_loss_of_guessing() -> None:
    same = unit(torch.ones(7, 3))
    assert float(three_views_loss(same, same, same, torch.tensor(10.0))) == pytest.approx(torch.tensor(7.0).log().item(), rel=1e-5)


def test_the_share_is_drawn_anew_in_every_step() -> None:
    model, settings = towers(kind="cross_modal_mixup"), settings_of("cross_modal_mixup")
    modules = built(settings, model)
    values = [terms(settings, modules, model, batch(), seed)["cross_modal_mixup"].item() for seed in (0, 0, 1)]
    assert values[0] == values[1] != values[2]
