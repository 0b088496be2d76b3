"""Regions that a frozen network finds: where the object is, what the tower makes of them, and that a step reads those of its own rows."""

import io
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import sklearn.datasets
import torch
from PIL import Image
from torch import Tensor

from tests.train.test_pretrain import Told, settings
from tests.train.tiny import SMALL, make_shards
from vlm_core.data.shards.augment import Transform
from vlm_core.data.shards.samples import training_samples
from vlm_core.errors import ConfigError
from vlm_core.models import config as models
from vlm_core.models import packaged, roi_features
from vlm_core.models.efficientnet_lite0 import Trunk
from vlm_core.models.roi_features import PLACE, WIDTH, find, places
from vlm_core.models.towers import TwoTower, unit
from vlm_core.recipes.pretrain.contrastive import pyramidclip_tiny
from vlm_core.train import detections
from vlm_core.train.config import Pretrain
from vlm_core.train.fit import read_rows
from vlm_core.train.pretrain import parents, train


def small(*changes: str) -> Pretrain:
    return pyramidclip_tiny().but(*SMALL, "model.roi_features={regions: 3, blocks: 1, image_size: 64, names: 2}", "loader.cache_mb=0", *changes)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("shapes"))


def test_cells_of_a_map_are_where_they_are() -> None:
    assert places(2, 4)[5].tolist() == pytest.approx([0.25, 0.5, 0.5, 1.0, 0.25, 0.5])  # second row, second column


def test_regions_are_the_cells_of_which_the_network_is_surest() -> None:
    class Network:
        """Channel 0 says class 7, channel 1 class 3."""

        def cells(self, pixels_B3SS: Tensor) -> Tensor:
            map_BFHW = torch.zeros(1, 4, 2, 3)
            map_BFHW[0, 0, 1, 2], map_BFHW[0, 1, 0, 1], map_BFHW[0, 1, 1, 0] = 9.0, 6.0, 3.0
            return map_BFHW

        def classes(self, cells_BCF: Tensor) -> Tensor:
            logits_BCK = torch.zeros(*cells_BCF.shape[:2], 10)
            logits_BCK[..., 7], logits_BCK[..., 3] = cells_BCF[..., 0], cells_BCF[..., 1]
            return logits_BCK

    regions_BRF, class_BR = find(cast(Trunk, Network()), torch.zeros(1, 3, 64, 96), 3)
    assert class_BR.tolist() == [[7, 3, 3]]
    assert regions_BRF[0, :, :4].tolist() == [[9, 0, 0, 0], [0, 6, 0, 0], [0, 3, 0, 0]]
    assert regions_BRF[0, 0, 4:].tolist() == pytest.approx([2 / 3, 0.5, 1, 1, 1 / 3, 0.5])


def test_the_packaged_network_finds_a_photograph_in_the_half_of_the_square_where_it_is() -> None:
    photo = Image.fromarray(sklearn.datasets.load_sample_images().images[0]).resize((96, 192))  # a Chinese temple
    network = Trunk(packaged.efficientnet_lite0(), None, "auto")
    sides = []
    for left in (0, 96):
        square = Image.new("RGB", (192, 192), (127, 127, 127))
        square.paste(photo, (left, 0))
        regions_BRF, class_BR = find(network, torch.from_numpy(np.asarray(square).copy()).permute(2, 0, 1)[None], 10)
        middle_R = (regions_BRF[0, :, -PLACE] + regions_BRF[0, :, -PLACE + 2]) / 2
        sides.append(float((middle_R < 0.5).float().mean()))
    assert regions_BRF.shape == (1, 10, WIDTH)
    assert sides[0] > 0.6
    assert sides[1] < 0.4
    assert class_BR.shape == (1, 10)


@torch.no_grad()
def test_regions_enter_the_last_blocks_behind_the_class_token() -> None:
    torch.manual_seed(0)
    model = TwoTower(models.TwoTower(
        image=models.Vit(image_size=32, patch_size=8, width=16, layers=3, heads=2), width=8, roi_features=models.RoiFeatures(regions=2, blocks=2),
        text=models.ClipTransformer(context_length=12, vocab_size=40, width=16, layers=1, heads=2),
    ))  # fmt: skip
    image, part, regions_BRF = model.image, model.roi_features, torch.randn(4, 2, WIDTH)
    assert part is not None
    x = torch.cat([(image.class_embedding + image.positional_embedding[0]).expand(4, 1, -1), part.enter(regions_BRF)], dim=1)  # type: ignore[union-attr,operator,arg-type]
    x = image.ln_pre(x)  # type: ignore[operator]
    for block in list(image.transformer.resblocks)[1:]:  # type: ignore[union-attr,arg-type]
        x = block(x)
    expected = image.ln_post(x)[:, 0] @ image.proj  # type: ignore[operator]
    torch.testing.assert_close(part(image, regions_BRF), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(part(image, regions_BRF.flip(1)), expected, rtol=1e-4, atol=1e-5)  # a set: the place is in the features
    ids = torch.tensor([[38, 5, 39]]).expand(4, 3)
    out = model({"images": torch.randn(4, 3, 32, 32), "ids": ids, "regions": regions_BRF, "name_ids": ids}, frozenset({"detections"}))
    torch.testing.assert_close(out.regions_BD, unit(expected), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(out.attributes_BD, out.text_BD)


def test_names_are_told_once_the_surest_first() -> None:
    found = detections.Detections(np.zeros((2, 4, 3), np.float16), np.array([[2, 0, 2, 1], [1, 1, 1, 1]], np.int16), ["ant", "bee", "cat"])
    assert found.texts([0, 1, 0], 2) == ["cat, ant", "bee", "cat, ant"]


def test_training_looks_once_reads_its_own_rows_and_names_the_network_as_a_parent(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small("fit.epochs=2", "fit.checkpoint_every=4")
    told = Told()
    train(settings(config, shards), tmp_path, told)
    whole = read_rows(tmp_path)
    samples = training_samples(shards, config.loader)
    kept = detections.attach(config, tmp_path)
    assert kept is not None
    assert kept.regions_NRF.shape == (len(samples), 3, WIDTH)
    row = len(samples) - 1
    square = Transform(64).eval_square(Image.open(io.BytesIO(samples.jpeg(row))))
    expected, _ = find(Trunk(packaged.efficientnet_lite0(), None, "auto"), square[None], 3)
    np.testing.assert_allclose(kept.regions_NRF[row].astype(np.float32), expected[0].numpy(), atol=5e-3)
    plain = packaged.efficientnet_lite0().features(packaged.pixels(square[None]))  # type: ignore[operator]
    seen = Trunk(packaged.efficientnet_lite0(), None, "auto").cells(packaged.pixels(square[None])).mean((2, 3))
    assert float(torch.nn.functional.cosine_similarity(plain, seen).min().detach()) > 0.998  # bfloat16 where the processor has it
    assert ("efficientnet_lite0", "encoder") in {(parent["name"], parent["relation"]) for parent in parents(config, "")}

    (tmp_path / "final.safetensors").unlink()
    sorted((tmp_path / "steps").iterdir())[-1].unlink()
    monkeypatch.setattr(roi_features, "find", lambda *_: pytest.fail("looked again"))
    train(settings(config, shards), tmp_path, Told())
    assert [one["loss"] for one in read_rows(tmp_path)] == pytest.approx([one["loss"] for one in whole], rel=1e-5)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ("model.roi_features.regions=5", "Found roi_features.regions 5 of 4 cells at image_size 64, expected so many at most"),
        ("views.crop_scale_max=0.1", "Found views.crop_scale_min 0.4 above views.crop_scale_max 0.1"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change: str, what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        small(change)
