"""A model folder and back, and every way in which it may be wrong."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vlm_core import checkpoint
from vlm_core.errors import CheckpointError
from vlm_core.models import config as menu
from vlm_core.models import pretrained
from vlm_core.models.pixels import pixels_of
from vlm_core.models.towers import TwoTower
from vlm_core.stage import file_sha256

TINY = menu.TwoTower(
    image=menu.Vit(image_size=16, patch_size=8, width=16, layers=1, heads=2),
    text=menu.ClipTransformer(context_length=12, vocab_size=49408, width=16, layers=1, heads=2),
    width=8,
)  # fmt: skip
ABOUT = {"recipe": "tiny", "seed": 0, "snapshot_md5": "0" * 32 + ".dir", "parents": []}


def write(folder: Path, config: menu.TwoTower = TINY) -> Path:
    folder.mkdir()
    torch.manual_seed(3)
    pretrained.save(folder, TwoTower(config), pixels_of(config.image), ABOUT)
    return folder


def pictures() -> list[Image.Image]:
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 255, (20 + 3 * n, 30, 3), dtype=np.uint8)) for n in range(5)]


def change(folder: Path, **values: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_a_saved_model_gives_the_same_embeddings(tmp_path: Path) -> None:
    torch.manual_seed(3)
    before = TwoTower(TINY).eval()
    model = pretrained.load(write(tmp_path / "model"))
    see = model.transform()
    with torch.no_grad():
        raw_BD = before.image(torch.stack([see(picture) for picture in pictures()]))
    image_BD = model.encode_images(pictures(), batch=2)
    torch.testing.assert_close(image_BD, raw_BD / raw_BD.norm(dim=-1, keepdim=True), rtol=1e-5, atol=1e-6)
    assert image_BD.dtype == torch.float32
    assert model.config["snapshot_md5"] == ABOUT["snapshot_md5"]
    assert model.digest == file_sha256(tmp_path / "model" / "model.safetensors")


def test_texts_come_back_in_the_order_in_which_they_were_given(tmp_path: Path) -> None:
    model = pretrained.load(write(tmp_path / "model"))
    texts = ["a rather long text about cats and dogs", "dog", "a bird", "two birds", "x"]
    one_by_one = torch.cat([model.encode_texts([text]) for text in texts])
    torch.testing.assert_close(model.encode_texts(texts, batch=2), one_by_one, rtol=1e-5, atol=1e-6)


def test_equal_weights_give_equal_bytes(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a"), write(tmp_path / "b")
    assert {file.name for file in a.iterdir()} == {"model.safetensors", "config.json", "card.md"}
    for file in a.iterdir():
        assert file.read_bytes() == (b / file.name).read_bytes()


def test_a_flipped_bit_in_the_weights_is_found(tmp_path: Path) -> None:
    folder = write(tmp_path / "model")
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match="Found weights with SHA-256"):
        pretrained.load(folder)


def test_another_activation_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "model")
    quick = TINY.model_copy(update={"activation": "quick_gelu"})
    with pytest.raises(CheckpointError, match="weights of activation 'gelu' .* expected 'quick_gelu'"):
        pretrained.load(folder, expected=quick)
    change(folder, model=quick.model_dump(mode="json"))
    with pytest.raises(CheckpointError, match="weights of activation 'gelu' under a model with 'quick_gelu'"):
        pretrained.load(folder)


def test_another_architecture_is_refused_by_the_name_of_the_setting(tmp_path: Path) -> None:
    folder = write(tmp_path / "model")
    with pytest.raises(CheckpointError, match=r"Found model\.image\.layers 1 in .*, expected 2"):
        pretrained.load(folder, expected=TINY.but("image.layers=2"))
    change(folder, model=TINY.but("width=16").model_dump(mode="json"))
    with pytest.raises(CheckpointError, match=r"Found 'image.proj' of shape \[16, 8\] in .* expected \[16, 16\]"):
        pretrained.load(folder)


def test_another_logit_scale_is_no_other_architecture(tmp_path: Path) -> None:
    pretrained.load(write(tmp_path / "model"), expected=TINY.but("scale.init=20"))


def test_other_pixels_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "model")
    settings = pretrained.read_settings(folder)
    change(folder, transform={**settings["transform"], "mean": [0.5, 0.5, 0.5]})
    with pytest.raises(CheckpointError, match="Found transform"):
        pretrained.load(folder)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(tmp_path: Path, missing: str) -> None:
    folder = write(tmp_path / "model")
    (folder / missing).unlink()
    with pytest.raises(CheckpointError, match=missing.replace(".", r"\.")):
        pretrained.load(folder)


def test_a_cut_weight_file_without_a_digest_is_refused_too(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    checkpoint.write_weights(file, {"a": torch.ones(1000)})
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(CheckpointError, match="unreadable"):
        checkpoint.read_weights(file)


def test_missing_and_unknown_weights_are_named(tmp_path: Path) -> None:
    module = torch.nn.Linear(2, 2)
    with pytest.raises(CheckpointError, match="Found no weight 'bias' in here"):
        checkpoint.fill(module, {"weight": torch.ones(2, 2)}, "here")
    with pytest.raises(CheckpointError, match="Found the weight 'extra' in here"):
        checkpoint.fill(module, {"weight": torch.ones(2, 2), "bias": torch.ones(2), "extra": torch.ones(1)}, "here")


def test_the_newest_step_checkpoint_that_can_be_read_and_is_finite_is_taken(tmp_path: Path) -> None:
    for step, value in ((9, 1.0), (10, 1.0), (100, float("nan")), (200, 1.0)):
        torch.save({"state_dict": {"w": torch.full((3,), value)}}, tmp_path / f"step-{step:08d}.ckpt")
    cut = tmp_path / "step-00000200.ckpt"
    cut.write_bytes(cut.read_bytes()[:-300])
    found = checkpoint.newest_valid(tmp_path)
    assert found is not None
    assert checkpoint.step_of(found) == 10
    assert checkpoint.newest_valid(tmp_path / "nowhere") is None
