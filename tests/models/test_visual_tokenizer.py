"""Visual tokens: clusters that say how patches look, the same for every rank and after a resume; DALL-E's encoder from a file."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.train.test_pretrain import Told, settings
from tests.train.tiny import make_shards, small
from vlm_core.checkpoint import read_weights
from vlm_core.errors import CheckpointError, ConfigError, Incompatible
from vlm_core.models import config as menu
from vlm_core.models import dvae, patch_clusters
from vlm_core.train.pretrain import train

COLOURS = torch.tensor([[1.0, -1.0, 0.0], [0.0, 1.0, -1.0], [-1.0, 0.0, 1.0], [1.0, 1.0, 1.0]])


def clusters(vocabulary: int = 4, rows: int = 4, patch_px: int = 8) -> patch_clusters.PatchClusters:
    made = patch_clusters.build(menu.PatchClusters(vocabulary=vocabulary, patches=4000), rows=rows, patch_px=patch_px)
    assert isinstance(made, patch_clusters.PatchClusters)
    return made


def checkers(count: int, side: int = 8, noise: float = 0.05) -> tuple[torch.Tensor, torch.Tensor]:
    """(pictures of 4 x 4 patches of one colour each, with a little noise; the colour of each patch)."""
    random = torch.Generator().manual_seed(0)
    which = torch.randint(4, (count, 16), generator=random)
    images = COLOURS[which].view(count, 4, 4, 3).permute(0, 3, 1, 2).repeat_interleave(side, 2).repeat_interleave(side, 3)
    return images + noise * torch.randn(images.shape, generator=random), which


@pytest.mark.parametrize("patch_px", [4, 8, 16])
def test_patches_of_one_colour_get_one_token_and_are_rebuilt_in_that_colour(patch_px: int) -> None:
    images, which = checkers(60, patch_px)
    tokens = clusters(patch_px=patch_px)
    assert not tokens.ready
    tokens.fit(images, seed=1)
    assert tokens.ready
    ids = tokens.encode(images)
    assert ids.shape == which.shape
    assert ids.dtype == torch.int64
    assert len(torch.unique(torch.stack([ids.flatten(), which.flatten()]), dim=1).T) == 4  # one token per colour and the other way round
    rebuilt = tokens.rebuild(ids)
    assert rebuilt.shape[-1] == 4 * min(patch_px, 8)
    shown = rebuilt.unflatten(2, (4, -1)).unflatten(4, (4, -1)).mean((3, 5)).flatten(2).transpose(1, 2)
    torch.testing.assert_close(shown, COLOURS[which], rtol=0, atol=0.05)


def test_the_nearest_cluster_is_chosen() -> None:
    images, tokens = checkers(20)[0], clusters(vocabulary=9)
    tokens.fit(images, seed=0)
    patches = tokens.patches_of(images).flatten(0, 1)
    far = torch.cdist(patches.double(), tokens.centres_VS.double())
    assert len(tokens.encode(images).unique()) == 9
    torch.testing.assert_close(far.gather(1, tokens.encode(images).flatten()[:, None])[:, 0], far.min(1).values, rtol=1e-4, atol=0)


def test_equal_patches_count_once_and_too_few_of_them_are_refused() -> None:
    tokens = clusters(vocabulary=4)
    with pytest.raises(Incompatible, match="Found 2 distinct patches in the training pictures for model.visual_tokens.vocabulary 4"):
        tokens.fit(torch.cat([torch.zeros(50, 3, 32, 32), torch.ones(1, 3, 32, 32)]), seed=0)


def test_two_fits_are_equal() -> None:
    images, found = checkers(30, noise=0.5)[0], []
    for _ in range(2):
        tokens = clusters(vocabulary=16)
        tokens.fit(images, seed=5)
        found.append(tokens.centres_VS.clone())
    assert torch.equal(*found)


MASKED = "objectives.masked_image={}", "model.visual_tokens={kind: patch_clusters, vocabulary: 32, patches: 2000}"


def test_training_fits_them_once_keeps_them_in_every_checkpoint_and_goes_on_with_the_same(tmp_path: Path) -> None:
    shards = make_shards(tmp_path / "shapes")
    config = small(*MASKED, "fit.epochs=2", "fit.checkpoint_every=4")
    folder = tmp_path / "run"
    folder.mkdir()
    train(settings(config, shards), folder, Told())
    whole, fitted = read_weights(folder / "final.safetensors"), read_weights(folder / "visual_tokens.safetensors")["centres_VS"]
    assert torch.equal(whole["visual_tokens.centres_VS"], fitted)
    state = torch.load(folder / "steps" / "step-00000004.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(next(value for name, value in state.items() if name.endswith("visual_tokens.centres_VS")), fitted)
    for name in ("final.safetensors", "steps/step-00000008.ckpt"):
        (folder / name).unlink()
    train(settings(config, shards), folder, Told())
    again = read_weights(folder / "final.safetensors")
    for name, value in whole.items():
        torch.testing.assert_close(again[name], value, rtol=0, atol=1e-6)


def official_names(encoder: dvae.Dvae) -> dict[str, torch.Tensor]:
    return {name.replace(".weight", ".w").replace(".bias", ".b"): value.clone() for name, value in encoder.state_dict().items()}


def test_the_encoder_of_dall_e_has_the_official_names_and_sizes() -> None:
    with torch.device("meta"):
        encoder = dvae.build(menu.Dvae(weights="x"), rows=14, patch_px=16, fresh=False)
    names = official_names(encoder)  # type: ignore[arg-type]
    assert {"blocks.input.w", "blocks.group_1.block_1.res_path.conv_1.w", "blocks.group_4.block_2.res_path.conv_4.b", "blocks.output.conv.w"} <= names.keys()
    assert names["blocks.input.w"].shape == (256, 3, 7, 7)
    assert names["blocks.group_3.block_1.id_path.w"].shape == (1024, 512, 1, 1)
    assert names["blocks.output.conv.w"].shape == (8192, 2048, 1, 1)
    assert "blocks.group_1.block_1.id_path.w" not in names


def test_its_weights_come_from_a_safetensors_file_and_stay_as_they_are(tmp_path: Path) -> None:
    config = menu.Dvae(weights=str(tmp_path / "encoder.safetensors"), width=8, vocabulary=20)
    torch.manual_seed(0)
    first = dvae.Dvae(config, rows=4)
    save_file(official_names(first), config.weights)
    read = dvae.build(config, rows=4, patch_px=8)
    images = torch.randn(3, 3, 32, 32)
    ids = read.encode(images)  # type: ignore[operator]
    assert ids.shape == (3, 16)
    assert torch.equal(ids, first.encode(images))
    assert int(ids.max()) < 20
    assert not any(value.requires_grad for value in read.parameters())
    with pytest.raises(CheckpointError, match="expected a safetensors file"):
        dvae.build(config.but("weights=''"), rows=4, patch_px=8)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        (("objectives.masked_image={}",), "Found the objective 'masked_image' with model.visual_tokens=null"),
        ((MASKED[1],), "Found model.visual_tokens without an objective that guesses them"),
        (
            (*MASKED, "model.image={kind: clip_resnet, image_size: 32, layers: [1, 1, 1, 1], width: 8, heads: 4}"),
            "Found model.visual_tokens with the image tower 'clip_resnet', which has no grid of patches",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(changes: tuple[str, ...], what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        small(*changes)
