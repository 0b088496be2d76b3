"""The planner: counts that are published, memory that is measured, every recipe, and a sentence for what cannot fit."""

import functools
import subprocess
import sys

import pytest
import torch
from torch import nn

from tests.train.tiny import small
from vlm_core.cli import main
from vlm_core.errors import ConfigError, Incompatible
from vlm_core.models.towers import TwoTower
from vlm_core.recipes.pretrain.base import clip_rn50, clip_tiny, clip_vit_b32
from vlm_core.run import recipes
from vlm_core.train.config import Pretrain
from vlm_core.train.cost import Cost, cost_of
from vlm_core.train.plan import MACHINES, estimate, machine, require

RECIPES = recipes("pretrain")


@functools.cache
def clip_cost() -> Cost:
    return cost_of(clip_vit_b32())


# open_clip's docs/model_profile.csv: millions of numbers in all, G FLOPs of one picture and of one text (77 tokens)
PUBLISHED = {
    "ViT-B-32": (clip_vit_b32, (), 151_277_313, 8.82, 5.96),
    "ViT-B-16": (clip_vit_b32, ("model.image.patch_size=16",), 149_620_737, 35.13, 5.96),
    "RN50": (clip_rn50, (), 102_007_137, 12.22, 5.96),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_and_flops_are_those_that_open_clip_publishes(name: str) -> None:
    recipe, changes, parameters, image, text = PUBLISHED[name]
    cost = cost_of(recipe().but(*changes)) if name != "ViT-B-32" else clip_cost()
    assert sum(cost.parameters.values()) == cost.learning == parameters
    assert cost.forward["image"] / 1e9 == pytest.approx(image, rel=0.005)
    assert cost.forward["text"] / 1e9 == pytest.approx(text, rel=0.005)
    assert 2.9 < cost.flops / (cost.forward["image"] + cost.forward["text"]) <= 3.0  # backward costs twice forward, but for the first layer


def test_the_plan_counts_what_the_real_model_has() -> None:
    config = small()
    assert sum(cost_of(config).parameters.values()) == sum(value.numel() for value in TwoTower(config.model).parameters())


def test_activations_of_the_plan_are_what_autograd_really_keeps() -> None:
    """Autograd's own hooks on a real step of the real towers, storages counted once."""
    config = small("model.image.width=64", "model.image.layers=3")
    towers = TwoTower(config.model).train()
    weights = {value.untyped_storage().data_ptr() for value in towers.parameters()}

    def kept(pairs: int) -> int:
        seen: dict[int, torch.Tensor] = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda value: seen.setdefault(value.untyped_storage().data_ptr(), value) is None or value, lambda value: value
        ):
            out = towers({"images": torch.rand(pairs, 3, 32, 32), "ids": torch.ones(pairs, 12, dtype=torch.long)})
            (out.scale * out.image_BD @ out.text_BD.T).logsumexp(1).sum()
        return sum(value.untyped_storage().nbytes() for place, value in seen.items() if place not in weights)

    measured = (kept(64) - kept(32)) / 32
    assert cost_of(config).activations == pytest.approx(measured, rel=0.1)


PEAK = """
import resource, sys, torch
from tests.train.tiny import small
from vlm_core.models.towers import TwoTower
from vlm_core.stage import own_peak_mb
config = small("model.image.width=192", "model.image.layers=6", "model.image.heads=3", "model.image.patch_size=4")
towers = TwoTower(config.model).train()
optimizer = torch.optim.AdamW(towers.parameters())
def step(pairs):
    out = towers({"images": torch.rand(pairs, 3, 32, 32), "ids": torch.ones(pairs, 12, dtype=torch.long)})
    torch.nn.functional.cross_entropy(out.scale * out.image_BD @ out.text_BD.T, torch.arange(pairs)).backward()
    optimizer.step()
step(2)
before = own_peak_mb()
step(int(sys.argv[1]))
print(own_peak_mb() - before)
"""


def test_a_real_step_takes_the_memory_of_the_plan_within_a_factor_of_one_and_a_half() -> None:
    pairs = 96
    config = small("model.image.width=192", "model.image.layers=6", "model.image.heads=3", "model.image.patch_size=4")
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", PEAK, str(pairs)], capture_output=True, text=True, check=True)
    planned = cost_of(config).activations * pairs / 2**20
    assert 1 / 1.5 < float(done.stdout) / planned < 1.5


def test_locked_trunks_cost_their_heads_only() -> None:
    cost = cost_of(RECIPES["lit_packaged"]())  # type: ignore[arg-type]
    assert cost.learning < 1_500_000
    assert sum(cost.parameters.values()) > 20_000_000
    assert cost.flops < 6 * cost.learning * 1.05  # six FLOPs a number that learns


def test_a_drawn_text_costs_what_a_picture_does_in_the_one_tower_that_sees_both() -> None:
    cost = cost_of(RECIPES["clippo_tiny"]())  # type: ignore[arg-type]
    assert cost.forward["text"] == cost.forward["image"] > 0


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_of_both_sizes_can_be_planned(recipe: str) -> None:
    config: Pretrain = RECIPES[recipe]()  # type: ignore[assignment]
    cost = cost_of(config)
    parts = sum(part.numel() for part in nn.ModuleList([TwoTower(config.model, fresh=False)]).parameters()) if recipe.endswith("_tiny") else None
    of_objectives = sum(size for name, size in cost.parameters.items() if name.startswith("objective "))
    assert parts is None or sum(cost.parameters.values()) - of_objectives == parts
    assert cost.flops > 0
    assert estimate(config, cost, MACHINES["h100"], 1_000_000).hours > 0


def test_checkpointed_blocks_keep_less_and_work_more() -> None:
    config = small("model.image.layers=4", "model.text.layers=4")
    plain, checkpointed = cost_of(config), cost_of(config.but("fit.checkpoint_blocks=true"))
    assert checkpointed.activations < plain.activations / 2
    assert plain.flops < checkpointed.flops < plain.flops * 4 / 3 * 1.01


def test_hours_are_flops_over_speed() -> None:
    config, cost = clip_vit_b32(), clip_cost()
    found = estimate(config, cost, machine("a100,reached=0.5:8"), 400_000_000)
    assert found.hours == pytest.approx(400e6 * cost.flops / (312e12 * 0.5 * 8) / 3600)
    assert estimate(config, cost, machine("a100,reached=0.5:16"), 400_000_000).hours == pytest.approx(found.hours / 2)


def test_what_cannot_fit_is_refused_with_what_would_and_that_fits() -> None:
    config, cost = clip_vit_b32(), clip_cost()
    refused = estimate(config, cost, machine("4090:8"), 1).refusal
    assert refused.startswith("Found that 4,096 pairs on one device take ")
    pairs = int(refused.partition("fit.micro_batch=")[2].split()[0])
    assert "checkpoint_blocks=true" in refused
    assert not estimate(config.but(f"fit.micro_batch={pairs}"), cost, machine("4090:8"), 1).refusal
    assert estimate(config.but(f"fit.micro_batch={pairs + 8}"), cost, machine("4090:8"), 1).refusal
    hopeless = estimate(config, cost, machine("mine,memory_gb=2,tflops=10:64"), 1).refusal
    assert "weights and optimiser alone are 2.4 GB" in hopeless


def test_pretrain_itself_refuses_a_papers_size_on_a_machine_without_room_and_lets_a_tiny_one_pass() -> None:
    with pytest.raises(Incompatible, match="one of 64 processes, which share 16 GB"):
        require(clip_vit_b32(), machine("cpu")._replace(memory_gb=16.0))
    require(clip_tiny(), machine("cpu")._replace(memory_gb=16.0))


def test_the_command_prints_the_plan_and_ends_with_20_where_nothing_fits(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["pretrain", "--plan", "--recipe", "clip_tiny", "--pairs", "2500"]
    assert main([*words, "--machine", "cpu", "--machine", "h100:4"]) == 0
    said = capsys.readouterr().out
    assert "8,048,641" in said
    assert "16 epochs of 2,500" in said
    assert main([*words, "--machine", "toy,memory_gb=1.05,tflops=1"]) == 20
    assert capsys.readouterr().err.startswith("Incompatible: Found that 128 pairs on one device take 0.")


def test_a_machine_that_is_not_known_is_refused() -> None:
    with pytest.raises(ConfigError, match="Found the machine 'h10', expected a known one or its memory_gb and tflops; did you mean 'h100'"):
        machine("h10")
    with pytest.raises(ConfigError, match=r"Found 'speed' of the machine 'a100,speed=3'"):
        machine("a100,speed=3")


def test_a_small_batch_of_large_pictures_is_asked_for_by_its_cost() -> None:
    with pytest.raises(Incompatible, match=r"Found that one of 8 processes, which share 16 GB, take "):
        require(RECIPES["glip"](), machine("cpu")._replace(memory_gb=16.0))  # type: ignore[arg-type]


def test_under_the_gradient_cache_towers_run_forward_once_more_and_what_objectives_keep_is_that_of_the_whole_batch() -> None:
    words = ("objectives.masked_language={}",)
    for changes in ((), words):
        whole = small(*changes, "model.image.width=64", "model.image.layers=3")
        cached = whole.but("fit.micro_batch=16")
        cost, where = cost_of(whole), machine("a100,reached=0.5:1")
        one, parts = (estimate(config, cost, where, 1_000_000) for config in (whole, cached))
        assert parts.activations == pytest.approx(16 * cost.of_towers + 64 * (cost.activations - cost.of_towers))
        assert (parts.hours - one.hours) * 3600 * 19.5e12 * 0.5 == pytest.approx(1e6 * cost.once)
        assert estimate(cached.but("fit.gradients=accumulated"), cost, where, 1_000_000).hours == one.hours
        share, both = cost.of_towers / cost.activations, cost.forward["image"] + cost.forward["text"]
        assert (0.95 < share <= 1 and cost.once == pytest.approx(both, rel=0.02)) if changes == () else (share < 0.9 and cost.once > both)
