"""Stock open_clip loads what we export, and we load what it saves: equal embeddings both ways."""

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from vlm_core.checkpoint import write_weights
from vlm_core.errors import CheckpointError, Incompatible, MissingInput
from vlm_core.models import config as menu
from vlm_core.models import pretrained
from vlm_core.models.export import adopt, export, main_adopt, model_config, read_model_config
from vlm_core.models.pixels import pixels_of
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
    pretrained.save(tmp_path / "model", towers, pixels_of(MODELS[kind].image), {"recipe": "test", "parents": []})
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


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("built", [open_clip.CLIP, open_clip.CustomTextCLIP])
def test_weights_that_open_clip_made_are_adopted_with_equal_embeddings(kind: str, built: type, tmp_path: Path) -> None:
    torch.manual_seed(3)
    theirs = built(**model_config(MODELS[kind])).eval()
    write_weights(tmp_path / "weights.safetensors", theirs.state_dict())
    (tmp_path / "architecture.json").write_text(json.dumps(model_config(MODELS[kind])))
    assert main_adopt([str(tmp_path / "weights.safetensors"), "--config", str(tmp_path / "architecture.json"), "--out", str(tmp_path / "model")]) == 0
    ours = pretrained.load(tmp_path / "model")
    assert ours.towers.config.but("scale={}") == MODELS[kind].but("scale={}")
    images_B3HW, texts = torch.stack([ours.transform()(picture) for picture in pictures()]), ["a red bicycle", "x"]
    with torch.no_grad():
        torch.testing.assert_close(ours.encode_images(pictures()), F.normalize(theirs.encode_image(images_B3HW), dim=-1), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(ours.encode_texts(texts), F.normalize(theirs.encode_text(ours.tokenize(texts)), dim=-1), rtol=1e-5, atol=1e-6)


def test_an_activation_other_than_that_of_the_weights_is_refused(tmp_path: Path) -> None:
    write_weights(tmp_path / "quick.safetensors", open_clip.CLIP(**model_config(MODELS["vit"])).state_dict())
    (tmp_path / "quick.json").write_text(json.dumps(model_config(MODELS["vit"])))
    with pytest.raises(CheckpointError, match=r"Found activation 'quick_gelu' in .*quick\.json, expected 'gelu' as asked"):
        adopt(tmp_path / "quick.safetensors", MODELS["vit"].but("activation=gelu"), tmp_path / "model", "adopted")


def test_an_architecture_of_open_clip_that_we_do_not_have_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "siglip.json"
    file.write_text(json.dumps({"embed_dim": 768, "vision_cfg": {"timm_model_name": "vit_base_patch16_siglip_224"}, "text_cfg": {}}))
    with pytest.raises(Incompatible, match=r"Found 'timm_model_name' in .*siglip\.json"):
        read_model_config(file)
    with pytest.raises(MissingInput, match=r"Found no .*nowhere\.json"):
        read_model_config(tmp_path / "nowhere.json")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ("text.tokenizer=bpe", "Found the tokenizer 'bpe'"),
        ("image.pool=map", "Found model.image.pool 'map'"),
        ("decoder={layers: 1, heads: 2}", r"Found a model with model\.decoder"),
    ],
)
def test_what_open_clip_would_not_know_is_not_exported(change: str, what: str) -> None:
    with pytest.raises(Incompatible, match=what):
        model_config(MODELS["avg"].but(change))


def test_weights_of_another_shape_are_refused_by_name(tmp_path: Path) -> None:
    theirs = open_clip.CLIP(**model_config(MODELS["vit"]))
    write_weights(tmp_path / "open_clip.safetensors", theirs.state_dict())
    with pytest.raises(CheckpointError, match="shape"):
        adopt(tmp_path / "open_clip.safetensors", MODELS["vit"].but("width=32"), tmp_path / "model", "adopted")


def test_towers_that_open_clip_does_not_have_are_refused() -> None:
    with pytest.raises(Incompatible, match="efficientnet_lite0"):
        model_config(menu.TwoTower(image=menu.EfficientnetLite0(), text=menu.Minilm()))
