"""What every objective promises, whatever it computes."""

import importlib

import pytest
import torch
import yaml
from torch import Tensor

from tests.objectives.world import SMALL, batch, built, settings_of, terms, towers
from vlm_core.models.towers import Outputs, View, unit
from vlm_core.objectives import base
from vlm_core.objectives import config as menu

KINDS = tuple(menu.Objectives.model_fields)
SCHEMAS = {kind: getattr(settings_of(kind), kind) for kind in KINDS}
CHUNKED = [kind for kind in KINDS if "chunk_size" in type(SCHEMAS[kind]).model_fields]
DRAWS = (
    "cross_modal_mixup",
    "masked_language",
    "masked_autoencoder",
    "image_text_matching",
    "fused_masked_language",
    "masked_cross_modal",
    "masked_image",
    "patch_grouping",
)  # each pair gets random numbers by its place in the batch
REGIONS = ("region_word", "region_concept")
NUMBERED = (*DRAWS, "region_concept")  # and concepts are known by their row in the batch
IMAGES_ONLY = ("nearest_neighbour", "image_contrastive", "moco", "simsiam", "masked_autoencoder", "masked_image", "patch_grouping")
TEXTS_ONLY = ("masked_language",)
QUEUES = ("moco", "queued_contrastive")


def learning(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [value for value in model.parameters() if value.requires_grad]


@pytest.mark.parametrize("kind", KINDS)
def test_builds_from_defaults_under_its_own_name_with_its_weight(kind: str) -> None:
    modules, weights = base.build(menu.Objectives.read({kind: {"weight": 0.25}}), towers(kind=kind))
    assert type(modules[kind]).__module__ == f"vlm_core.objectives.{kind}"
    assert weights == {kind: 0.25}
    assert importlib.import_module(f"vlm_core.objectives.{kind}").__doc__


@pytest.mark.parametrize("kind", KINDS)
def test_terms_are_finite_scalars_named_after_it_with_a_gradient_to_the_towers_it_teaches(kind: str) -> None:
    model, settings = towers(kind=kind), settings_of(kind)
    modules = built(settings, model)
    for name, value in terms(settings, modules, model, batch()).items():
        assert name.split(".")[0] == kind
        assert value.shape == ()
        assert bool(value.isfinite())
        no_text = (*IMAGES_ONLY, *(REGIONS if "." in name else ()))  # where a box ends has nothing to do with its name
        taught = [side for side, other in ((model.image, TEXTS_ONLY), (model.text, no_text)) if kind not in other]
        for side in taught:
            grads = torch.autograd.grad(value, [*side.parameters()], retain_graph=True, allow_unused=True)
            assert sum(float(grad.abs().sum()) for grad in grads if grad is not None) > 0


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "weighted_captions"])  # its weights grow as the towers learn
def test_falls_in_a_few_steps(kind: str) -> None:
    few = 40 if kind == "patch_grouping" else 20  # its hard, noisy choices fall by 5 to 12 % in twenty, by the order in which threads add
    model, settings, given = towers(kind=kind), settings_of(kind), batch()
    modules = built(settings, model).train(kind not in QUEUES)  # in training a queue would fill with this one batch
    optimizer, losses = torch.optim.Adam([*learning(model), *modules.parameters()], lr=0.003), []
    for _ in range(few):
        loss = torch.stack([*terms(settings, modules, model, given).values()]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.08 * abs(losses[0])


@pytest.mark.parametrize("kind", [kind for kind in KINDS if SCHEMAS[kind].joins and not SCHEMAS[kind].needs & {"slow_towers", "neighbours", "one_tower"}])
def test_free_embeddings_find_each_other_in_forty_steps(kind: str) -> None:
    random = torch.Generator().manual_seed(0)
    image_BE, text_BE = (torch.randn(12, 8, generator=random).requires_grad_() for _ in range(2))
    objective, given = built(settings_of(kind), towers(kind=kind)).eval()[kind], {"ids": torch.full((12, 3), 9), "labels": torch.zeros(12, dtype=torch.long)}
    given["mixed"] = (False, 1.0)
    optimizer, losses = torch.optim.Adam([image_BE, text_BE], lr=0.2), []
    for _ in range(40):
        image_BD, text_BD = unit(image_BE), unit(text_BE)
        out = Outputs(
            image_BD, text_BD, torch.tensor(10.0), torch.tensor(-10.0), caption_BD=text_BD, raw_text_BD=text_BE, views=(View(image_BE, image_BD),),
            augmented_BD=text_BD, patches_BPD=image_BD[:, None], tokens_BLD=text_BD[:, None].expand(-1, 3, -1),
            regions_BD=image_BD, attributes_BD=text_BD,
        )  # fmt: skip
        loss = torch.stack([*objective(out, given).values()]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]
    assert (unit(image_BE) @ unit(text_BE).T).argmax(1).tolist() == list(range(12))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in NUMBERED])
def test_the_order_of_pairs_does_not_matter(kind: str) -> None:
    model, settings, given = towers(kind=kind), settings_of(kind), batch()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(5))
    other = {name: [view[order] for view in value] if isinstance(value, list) else value[order] for name, value in given.items()}
    first, second = (terms(settings, built(settings, model).train(kind != "mixup"), model, one) for one in (given, other))
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", CHUNKED)
def test_chunks_give_the_same_loss_and_gradients(kind: str) -> None:
    model, given, found = towers(kind=kind).double(), batch(dtype=torch.float64), list[tuple[Tensor, list[Tensor]]]()
    for size in (0, 5):
        settings = settings_of(kind, chunk_size=size)
        loss = torch.stack([*terms(settings, built(settings, model), model, given).values()]).sum()
        grads = torch.autograd.grad(loss, learning(model), allow_unused=True)
        found.append((loss, [grad for grad in grads if grad is not None]))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-10, atol=1e-12)
    for parts, whole in zip(found[1][1], found[0][1], strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_float32_where_the_towers_run_in_bfloat16(kind: str) -> None:
    model, settings, given = towers(kind=kind), settings_of(kind), batch()
    exact = terms(settings, built(settings, model), model, given)
    with torch.autocast("cpu", torch.bfloat16):
        rough = terms(settings, built(settings, model), model, given)
    for name, value in rough.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, exact[name], rtol=0.05, atol=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_its_state_holds_all_that_a_resumed_run_needs(kind: str) -> None:
    settings = settings_of(kind)

    def steps(modules: torch.nn.ModuleDict, count: int) -> float:
        total = torch.zeros(())
        for step in range(count):
            total = torch.stack([*terms(settings, modules, model, batch(), step).values()]).sum()
            grads = torch.autograd.grad(total, learning(model), allow_unused=True)
            with torch.no_grad():
                for value, grad in zip(learning(model), grads, strict=True):
                    value.sub_(0.05 * (0 if grad is None else grad))
        return float(total.detach())

    model = towers(kind=kind)
    first = built(settings, model)
    steps(first, 3)
    saved = {name: value.clone() for name, value in model.state_dict().items()}, {name: value.clone() for name, value in first.state_dict().items()}
    whole = steps(first, 3)
    model = towers(seed=9, kind=kind)
    second = built(settings, model, seed=9)
    model.load_state_dict(saved[0])
    second.load_state_dict(saved[1])
    assert steps(second, 3) == pytest.approx(whole, rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_settings_survive_yaml(kind: str) -> None:
    settings = settings_of(kind, weight=0.5)
    assert menu.Objectives.read(yaml.safe_load(yaml.safe_dump(settings.model_dump(mode="json")))) == settings


def test_the_table_of_small_settings_names_kinds_only() -> None:
    assert set(SMALL) <= set(KINDS)
