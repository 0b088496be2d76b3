"""What every objective promises, whatever it computes."""

import importlib
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor
from torch.nn import functional as F

from vlm_core.models.towers import Outputs
from vlm_core.objectives import base
from vlm_core.objectives import config as menu

KINDS = tuple(menu.Objectives.model_fields)
CHUNKED = [kind for kind in KINDS if "chunk_size" in getattr(menu.Objectives.read({kind: {}}), kind).model_fields]


def settings_of(kind: str, **changes: Any) -> menu.Objectives:
    return menu.Objectives.read({kind: changes})


def outputs(image_BE: Tensor, text_BE: Tensor) -> Outputs:
    return Outputs(F.normalize(image_BE, dim=-1), F.normalize(text_BE, dim=-1), torch.tensor(10.0), torch.tensor(-10.0))


def free_pairs(seed: int = 0) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(12, 8, generator=random).requires_grad_(), torch.randn(12, 8, generator=random).requires_grad_()


@pytest.mark.parametrize("kind", KINDS)
def test_builds_from_defaults_under_its_own_name_with_its_weight(kind: str) -> None:
    modules, weights = base.build(settings_of(kind, weight=0.25))
    assert type(modules[kind]).__module__ == f"vlm_core.objectives.{kind}"
    assert weights == {kind: 0.25}
    assert importlib.import_module(f"vlm_core.objectives.{kind}").__doc__


@pytest.mark.parametrize("kind", KINDS)
def test_terms_are_finite_scalars_with_a_gradient_to_both_sides(kind: str) -> None:
    image_BE, text_BE = free_pairs()
    terms = base.build(settings_of(kind))[0][kind](outputs(image_BE, text_BE), {})
    for value in terms.values():
        assert value.shape == ()
        assert bool(value.isfinite())
        assert all(float(grad.abs().sum()) > 0 for grad in torch.autograd.grad(value, (image_BE, text_BE), retain_graph=True))


@pytest.mark.parametrize("kind", KINDS)
def test_falls_in_twenty_steps_until_pairs_find_each_other(kind: str) -> None:
    image_BE, text_BE = free_pairs()
    objective = base.build(settings_of(kind))[0][kind]
    optimizer, first, last = torch.optim.Adam([image_BE, text_BE], lr=0.2), None, None
    for _ in range(20):
        loss = sum(objective(outputs(image_BE, text_BE), {}).values(), torch.zeros(()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        first, last = first or float(loss.detach()), float(loss.detach())
    assert last is not None
    assert first is not None
    assert last < 0.5 * first
    out = outputs(image_BE, text_BE)
    assert (out.image_BD @ out.text_BD.T).argmax(1).tolist() == list(range(12))


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_pairs_does_not_matter(kind: str) -> None:
    image_BE, text_BE = free_pairs()
    objective, order = base.build(settings_of(kind))[0][kind], torch.randperm(12, generator=torch.Generator().manual_seed(5))
    for name, value in objective(outputs(image_BE, text_BE), {}).items():
        torch.testing.assert_close(objective(outputs(image_BE[order], text_BE[order]), {})[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", CHUNKED)
def test_chunks_give_the_same_loss(kind: str) -> None:
    image_BE, text_BE = free_pairs()
    whole, parts = (base.build(settings_of(kind, chunk_size=size))[0][kind](outputs(image_BE, text_BE), {}) for size in (0, 5))
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_settings_survive_yaml(kind: str) -> None:
    settings = settings_of(kind, weight=0.5)
    assert menu.Objectives.read(yaml.safe_load(yaml.safe_dump(settings.model_dump(mode="json")))) == settings
