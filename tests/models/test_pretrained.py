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


def test_training_goes_on_with_other_dropout_and_other_bounds_as_it_asks(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", TINY.but("image.patch_dropout=0.5"))
    assert pretrained.load(folder).towers.image.patch_dropout.prob == 0.5
    asked = TINY.but("image.patch_dropout=0", "scale.max=50")
    towers = pretrained.load(folder, expected=asked).towers  # FLIP's last epochs see all patches
    assert towers.config == asked
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(towers.train().image(images), pretrained.load(folder).towers.image(images))


def test_positions_are_stretched_by_cubic_weights_for_larger_pictures(tmp_path: Path) -> None:
    positions = torch.zeros(17, 2)
    positions[0] = torch.tensor([7.0, -7.0])
    positions[1:, 0] = torch.arange(4.0).repeat(4)  # the column
    positions[6, 1] = 1.0  # the patch in the second row and column
    wide = pretrained.stretched(positions, 8)
    assert wide[0].tolist() == [7.0, -7.0]
    grid = wide[1:].view(8, 8, 2)
    # new place i lies at old place i / 2 - 1/4; two places in from the border a cubic keeps a straight line
    assert grid[5, 3:5, 0].tolist() == pytest.approx([1.25, 1.75], abs=1e-6)
    # Keys' weights (a = -1/2) of a neighbour 1/4 and 3/4 away, by hand
    near, far = 1.5 * 0.25**3 - 2.5 * 0.25**2 + 1, 1.5 * 0.75**3 - 2.5 * 0.75**2 + 1
    assert grid[3:5, 3:5, 1].flatten().tolist() == pytest.approx([near * near, near * far, far * near, far * far], abs=1e-6)


def test_a_model_goes_on_with_larger_pictures_where_only_positions_hang_on_their_size(tmp_path: Path) -> None:
    folder, larger = write(tmp_path / "model"), TINY.but("image.image_size=32")
    towers, before = pretrained.load(folder, expected=larger).towers, pretrained.load(folder).towers
    assert towers.image(torch.randn(2, 3, 32, 32)).shape == (2, 8)
    assert torch.equal(towers.image.positional_embedding, pretrained.stretched(before.image.positional_embedding, 4))
    assert torch.equal(towers.image.conv1.weight, before.image.conv1.weight)
    for asked in ("image.patch_size=16", "regions={width: 16, blocks: 1, levels: 2}"):
        with pytest.raises(CheckpointError, match=r"Found model\..* in .* as this recipe says"):
            pretrained.load(folder, expected=larger.but(asked))


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
