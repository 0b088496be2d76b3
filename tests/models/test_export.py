"""Stock open_clip loads what we export, and we load what it saves: equal embeddings both ways."""

from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from vlm_core.checkpoint import write_weights
from vlm_core.errors import CheckpointError, Incompatible
from vlm_core.models import config as menu
from vlm_core.models import pretrained
from vlm_core.models.export import adopt, export, model_config
from vlm_core.models.towers import TwoTower

TEXT = menu.ClipTransformer(context_length=16, width=32, layers=2, heads=2)
MODELS = {
    "vit": menu.TwoTower(image=menu.Vit(image_size=32, patch_size=8, width=48, layers=2, heads=3, mlp_ratio=2), text=TEXT, width=24, activation="quick_gelu"),
    "avg": menu.TwoTower(image=menu.Vit(image_size=32, patch_size=8, width=48, layers=2, heads=3, pool="avg"), text=TEXT, width=24),
    "resnet": menu.TwoTower(image=menu.ClipResnet(image_size=64, layers=[1, 1, 1, 1], width=16, heads=8), text=TEXT, width=24),
    "biased": menu.TwoTower(
        image=menu.Vit(image_size=32, patch_size=16, width=32, layers=1, heads=2), text=TEXT, width=16, scale=menu.LogitScale(init=10, bias=-10)
    ),
}


def pictures(count: int = 3) -> list[Image.Image]:
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 255, (40 + 9 * n, 57, 3), dtype=np.uint8)) for n in range(count)]


def shaken(config: menu.TwoTower) -> TwoTower:
    """A model no weight of which still has its first value."""
    torch.manual_seed(1)
    towers = TwoTower(config).eval()
    with torch.no_grad():
        for value in towers.parameters():
            value.add_(0.05 * torch.randn_like(value))
    return towers


@pytest.mark.parametrize("kind", MODELS)
def test_stock_open_clip_gives_the_embeddings_of_the_model_folder(kind: str, tmp_path: Path) -> None:
    towers = shaken(MODELS[kind])
    (tmp_path / "model").mkdir()
    pretrained.save(tmp_path / "model", towers, pretrained.pixels_of(MODELS[kind].image), {"recipe": "test", "parents": []})
    weights = export(tmp_path / "model", tmp_path / "export", f"vlm-test-{kind}")
    open_clip.add_model_config(tmp_path / "export" / f"vlm-test-{kind}.json")
    theirs, _, preprocess = open_clip.create_model_and_transforms(f"vlm-test-{kind}", pretrained=str(weights))
    tokenize = open_clip.get_tokenizer(f"vlm-test-{kind}")
    texts = ["a red bicycle", "two dogs and a very long tail of words that does not fit into the context of this model at all"]
    with torch.no_grad():
        image_BD = F.normalize(theirs.eval().encode_image(torch.stack([preprocess(picture) for picture in pictures()])), dim=-1)
        text_BD = F.normalize(theirs.encode_text(tokenize(texts)), dim=-1)
    ours = pretrained.load(tmp_path / "model")
    torch.testing.assert_close(ours.encode_images(pictures()), image_BD, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.encode_texts(texts), text_BD, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(theirs.logit_scale.exp(), ours.towers.scale)
    if MODELS[kind].scale.bias is not None:
        torch.testing.assert_close(theirs.logit_bias, ours.towers.bias)


def test_weights_that_open_clip_made_are_adopted_with_equal_embeddings(tmp_path: Path) -> None:
    config = MODELS["vit"]
    torch.manual_seed(3)
    theirs = open_clip.CLIP(**{key: value for key, value in model_config(config).items()}).eval()
    write_weights(tmp_path / "open_clip.safetensors", theirs.state_dict())
    adopt(tmp_path / "open_clip.safetensors", config, tmp_path / "model", "adopted")
    ours = pretrained.load(tmp_path / "model")
    images_B3HW = torch.stack([ours.transform()(picture) for picture in pictures()])
    with torch.no_grad():
        torch.testing.assert_close(ours.encode_images(pictures()), F.normalize(theirs.encode_image(images_B3HW), dim=-1), rtol=1e-5, atol=1e-6)


def test_weights_of_another_shape_are_refused_by_name(tmp_path: Path) -> None:
    theirs = open_clip.CLIP(**model_config(MODELS["vit"]))
    write_weights(tmp_path / "open_clip.safetensors", theirs.state_dict())
    with pytest.raises(CheckpointError, match="shape"):
        adopt(tmp_path / "open_clip.safetensors", MODELS["vit"].but("width=32"), tmp_path / "model", "adopted")


def test_towers_that_open_clip_does_not_have_are_refused() -> None:
    with pytest.raises(Incompatible, match="efficientnet_lite0"):
        model_config(menu.TwoTower(image=menu.EfficientnetLite0(), text=menu.Minilm()))
