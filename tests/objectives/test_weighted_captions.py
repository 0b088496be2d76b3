"""ALIP's weights and loss: what the paper says of them, beside the goldens; running means that learn in training only and travel in checkpoints."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vlm_core.data.captions.alip import Means, alip_weights, weights_at
from vlm_core.errors import Incompatible
from vlm_core.models.towers import Outputs
from vlm_core.objectives import config as menu
from vlm_core.objectives.image_text_contrastive import clip_loss
from vlm_core.objectives.weighted_captions import WeightedCaptions, weighted_clip_loss
from vlm_core.recipes.pretrain.base import clip_tiny
from vlm_core.train.config import Pretrain


def rows(seed: int, n: int = 6, d: int = 8) -> Tensor:
    return F.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=-1)


def outputs(image: Tensor, text: Tensor, caption: Tensor | None) -> Outputs:
    return Outputs(image, text, torch.tensor(10.0, dtype=torch.float64), None, caption)


def objective(**settings: Any) -> WeightedCaptions:
    return WeightedCaptions(menu.WeightedCaptions(**settings)).double()


def test_weights_of_hand_computed_cosines() -> None:
    """One sample whose captions agree more than usual (all weights 1), one whose captions agree less."""
    means = Means(*torch.tensor([0.5, 0.2, 0.3]))
    image = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    raw = torch.tensor([[0.6, 0.8, 0.0], [0.6, 0.8, 0.0]])
    caption = torch.tensor([[0.8, 0.6, 0.0], [0.8, -0.6, 0.0]])  # cosines with raw: 0.96 and 0.0
    weights = weights_at(means, image, raw, caption, gamma=2.0)
    assert weights.sample_B.tolist() == pytest.approx([1.0, math.exp(-1.0)])
    assert weights.raw_B.tolist() == pytest.approx([1.0, math.exp(2 * 0.4)])
    assert weights.caption_B.tolist() == pytest.approx([1.0, math.exp(2 * 0.5)])


def test_the_means_are_renewed_before_they_are_used() -> None:
    image, raw, caption = rows(0), rows(1), rows(2)
    weights, means = alip_weights(image, raw, caption, Means(*torch.ones(3, dtype=torch.float64)), momentum=0.5)
    assert float(means.text) == pytest.approx(0.5 + 0.5 * float((raw * caption).sum(-1).mean()))
    assert torch.equal(weights.sample_B, weights_at(means, image, raw, caption).sample_B)
    assert not weights.raw_B.requires_grad


def test_with_weights_of_one_the_loss_is_that_of_clip() -> None:
    image, text, scale, one = rows(0), rows(1), torch.tensor(10.0, dtype=torch.float64), torch.ones(6, dtype=torch.float64)
    assert float(weighted_clip_loss(image, text, scale, one, one)) == pytest.approx(float(clip_loss(image, text, scale)))


def test_a_sample_of_weight_zero_is_no_question_but_stays_an_answer_of_others() -> None:
    image, text, scale = rows(0).requires_grad_(), rows(1), torch.tensor(10.0, dtype=torch.float64)
    one = torch.ones(6, dtype=torch.float64)
    none = one.clone()
    none[2] = 0
    whole, less = (weighted_clip_loss(image, text, scale, one, sample) for sample in (one, none))
    assert float(less.detach()) < float(whole.detach())
    grads = torch.autograd.grad(less, image)[0].norm(dim=-1)
    assert bool((grads > 0).all())


def test_samples_with_one_caption_meet_it_twice_at_full_weight() -> None:
    image, text = rows(0).float(), rows(1).float()
    terms = WeightedCaptions(menu.WeightedCaptions())(Outputs(image, text, torch.tensor(10.0), None, text.clone()), {})
    expected = float(clip_loss(image, text, torch.tensor(10.0)))
    assert {name: float(value) for name, value in terms.items()} == pytest.approx({"weighted_captions.raw": expected, "weighted_captions.caption": expected})


def test_only_training_moves_the_means_and_a_checkpoint_holds_them() -> None:
    image, raw, caption = rows(0), rows(1), rows(2)
    learning = objective(momentum=0.9)
    learning.eval()
    learning(outputs(image, raw, caption), {})
    assert learning.means.tolist() == [1, 1, 1]
    learning.train()
    learning(outputs(image, raw, caption), {})
    expected = [0.9 + 0.1 * float((a * b).sum(-1).mean()) for a, b in ((raw, caption), (image, raw), (image, caption))]
    assert learning.means.tolist() == pytest.approx(expected)
    again = objective()
    again.load_state_dict(learning.state_dict())
    assert again.means.tolist() == learning.means.tolist()
    fresh = objective(start=None)
    fresh(outputs(image, raw, caption), {})
    assert fresh.means.tolist() == pytest.approx([float((a * b).sum(-1).mean()) for a, b in ((raw, caption), (image, raw), (image, caption))])


def test_settings_without_second_captions_are_refused() -> None:
    values = {**clip_tiny().model_dump(), "objectives": {"weighted_captions": {}}}
    with pytest.raises(Incompatible, match=r"loader.second_caption=\[\]"):
        Pretrain.read(values)
    values["loader"]["second_caption"] = ["synthetic"]
    assert list(Pretrain.read(values).objectives.chosen()) == ["weighted_captions"]
