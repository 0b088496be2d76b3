"""The grouping tower of SegCLIP: hard choices with a soft gradient, centres in the place of patches, and a way back for MAE."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from tests.train.test_pretrain import Told, settings
from tests.train.tiny import make_shards, small
from vlm_core.errors import ConfigError
from vlm_core.models import config as menu
from vlm_core.models.towers import TwoTower
from vlm_core.models.vit_grouping import VitGrouping, gumbel
from vlm_core.objectives.patch_grouping import superpixel_kl
from vlm_core.train.fit import read_rows
from vlm_core.train.pretrain import train

TOWER = menu.VitGrouping(image_size=32, patch_size=8, width=32, layers=3, last=1, heads=2, centres=4)


def tower(seed: int = 0, **changes: object) -> VitGrouping:
    torch.manual_seed(seed)
    config = menu.TwoTower(image=TOWER, text=menu.ClipTransformer(context_length=12, vocab_size=40, width=16, layers=1, heads=2), width=8)
    made = TwoTower(config.but(*(f"image.{name}={value}" for name, value in changes.items()))).image
    assert isinstance(made, VitGrouping)
    return made


def pictures(count: int = 6) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_in_evaluation_every_patch_has_the_centre_it_fits_best_and_the_tower_is_a_function_of_the_picture() -> None:
    image = tower().eval()
    states, assigned = image.grouped(pictures())
    assert states.shape == (6, 17, 32)
    assert assigned.shape == (6, 4, 16)
    assert set(assigned.unique().tolist()) == {0.0, 1.0}
    assert (assigned.sum(1) == 1).all()
    assert torch.equal(image.tokens(pictures()), states)
    assert torch.equal(image(pictures()), image.head(image.pool(states)))


def test_patches_of_one_centre_have_one_state_and_the_picture_is_the_largest_of_all_centres() -> None:
    image = tower().eval()
    states, assigned = image.grouped(pictures())
    for one, choice in zip(states, assigned.argmax(1), strict=True):
        for centre in choice.unique():
            mine = one[1:][choice == centre]
            torch.testing.assert_close(mine, mine[:1].expand_as(mine))
    centres, _ = image.group(image.first(image._enter(pictures())))
    torch.testing.assert_close(states[:, 0], F.layer_norm(image.last(centres).amax(1), (32,)))


def test_the_noise_of_training_comes_from_torchs_generator_and_is_gumbels() -> None:
    image, found = tower().train(), []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        found.append(image.grouped(pictures())[1])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0].round(), found[2].round())
    torch.manual_seed(0)
    noise = gumbel(torch.empty(200_000, dtype=torch.float64))
    assert float(noise.mean()) == pytest.approx(0.5772, abs=0.01)  # Euler's constant
    assert float(noise.var()) == pytest.approx(torch.pi**2 / 6, abs=0.02)


def test_the_hard_choice_has_the_gradient_of_the_soft_one() -> None:
    image = tower().double().eval()
    assigned = image.grouped(pictures().double())[1]
    pieces = torch.arange(16).expand(6, -1) // 4
    superpixel_kl(assigned.transpose(1, 2), pieces).backward()
    assert image.group.centres_CE.grad is not None
    assert float(image.group.centres_CE.grad.abs().sum()) > 0
    assert float(image.conv1.weight.grad.abs().sum()) > 0  # type: ignore[union-attr]


def test_mae_sees_only_the_patches_it_is_given_rebuilt_from_centres() -> None:
    image, images = tower().eval(), pictures()
    seen = torch.tensor([[0, 5, 6, 15]]).expand(6, -1)
    states = image.tokens(images, seen_BV=seen)
    assert states.shape == (6, 5, 32)
    other = images.clone()
    other[:, :, 8:16, :8] += 3  # patch 4, which is not seen
    assert torch.equal(image.tokens(other, seen_BV=seen), states)
    other[:, :, :8, :8] += 3  # patch 0, which is
    assert not torch.equal(image.tokens(other, seen_BV=seen), states)


def test_a_hidden_patch_shows_nothing_of_its_pixels() -> None:
    image, images, mask = tower().eval(), pictures(), torch.randn(32)
    hidden = torch.zeros(6, 16, dtype=torch.bool)
    hidden[:, 4] = True
    other = images.clone()
    other[:, :, 8:16, :8] += 3
    assert torch.equal(image.tokens(other, hidden, mask), image.tokens(images, hidden, mask))
    assert not torch.equal(image.tokens(other), image.tokens(images))


def test_the_choice_is_made_in_float32_under_bfloat16() -> None:
    image = tower().eval()
    with torch.autocast("cpu", torch.bfloat16):
        states, assigned = image.grouped(pictures())
    assert assigned.dtype == torch.float32
    exact_states, exact = image.grouped(pictures())
    same = (assigned.argmax(1) == exact.argmax(1)).float().mean()
    assert float(same) > 0.9  # of ties broken otherwise
    assert F.cosine_similarity(states[:, 0].float(), exact_states[:, 0], dim=-1).mean() > 0.98


def test_superpixel_kl_is_0_where_each_superpixel_has_one_centre_and_grows_with_strays() -> None:
    pieces = (torch.arange(16) // 4).expand(2, -1)
    pure = F.one_hot(pieces % 3, 3).double()
    assert float(superpixel_kl(pure, pieces)) == 0
    found = []
    for strays in (1, 2):
        mixed = pure.clone()
        mixed[:, :strays] = torch.tensor([0.0, 0.0, 1.0])
        found.append(float(superpixel_kl(mixed, pieces)))
    assert 0 < found[0] < found[1]


SEGCLIP = (
    "model.image={kind: vit_grouping, image_size: 32, patch_size: 4, width: 32, layers: 2, last: 1, heads: 2, centres: 4}", "objectives.patch_grouping={}",
    "objectives.masked_autoencoder={width: 32, layers: 1, heads: 2}",
)  # fmt: skip


def test_a_killed_run_goes_on_to_the_same_numbers_noise_and_superpixels_included(tmp_path: Path) -> None:
    shards, folder = make_shards(tmp_path / "shapes"), tmp_path / "run"
    config = small(*SEGCLIP, "fit.epochs=2", "fit.checkpoint_every=4")
    folder.mkdir()
    train(settings(config, shards), folder, Told())
    whole = read_rows(folder)
    (folder / "final.safetensors").unlink()
    (folder / "steps" / "step-00000008.ckpt").unlink()
    train(settings(config, shards), folder, Told())
    for before, after in zip(whole[4:], read_rows(folder)[4:], strict=True):
        for name in ("loss", "term.patch_grouping", "term.masked_autoencoder", "grad_norm"):
            assert after[name] == pytest.approx(before[name], rel=1e-5, abs=1e-7), (name, after["step"])


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        (("objectives.patch_grouping={}",), "Found the objective 'patch_grouping', which needs patches that choose a centre, with the image tower 'vit'"),
        ((SEGCLIP[0],), "Found model.image.rebuild=true without objectives.masked_autoencoder"),
        ((*SEGCLIP, "model.image.rebuild=false"), "Found the objective 'masked_autoencoder' with model.image.rebuild=false"),
        ((*SEGCLIP, "model.image.last=2"), "Found last 2 of 2 layers, expected a block at least that sees patches"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(changes: tuple[str, ...], what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        small(*changes)
