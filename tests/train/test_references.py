"""A model that looks things up: what attention mixes in, that no picture finds itself or its copies, and that a saved model sees as it did."""

import io
import json
import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from tests.train.test_pretrain import Told, settings
from tests.train.tiny import SMALL, make_shards
from vlm_core.checkpoint import read_weights
from vlm_core.data.shards.shards import read_index, read_samples
from vlm_core.errors import Incompatible, NothingLeft
from vlm_core.models import config as models
from vlm_core.models import packaged, pretrained
from vlm_core.models.retrieval import Retrieval, nearest
from vlm_core.recipes.pretrain.base import clip_tiny, lit_packaged
from vlm_core.recipes.pretrain.retrieval import ra_clip_tiny
from vlm_core.run import run
from vlm_core.train import references
from vlm_core.train.config import Distil, Pretrain
from vlm_core.train.fit import read_rows
from vlm_core.train.pretrain import parents, train


def small(*changes: str) -> Pretrain:
    return ra_clip_tiny().but(*SMALL, "model.retrieval={references: 60, neighbours: 4, heads: 2, image_size: 64}", "loader.cache_mb=0", *changes)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("shapes"))


def part(neighbours: int = 2) -> Retrieval:
    torch.manual_seed(0)
    made = Retrieval(models.Retrieval(references=5, neighbours=neighbours, heads=2), models.Vit(image_size=32, patch_size=8), 4).double()
    made.keep(torch.nn.functional.normalize(torch.randn(5, 1280), dim=-1), torch.nn.functional.normalize(torch.randn(5, 384), dim=-1))
    return made


@torch.no_grad()
def test_neighbours_are_mixed_in_as_computed_head_by_head() -> None:
    looking, image_BD, rows_BK = part(), torch.randn(3, 4, dtype=torch.float64), torch.tensor([[0, 4], [2, 1], [3, 3]])
    expected = image_BD.clone()
    sides = (looking.text_by_image, looking.image_RF, looking.text_RS), (looking.image_by_text, looking.text_RS, looking.image_RF)
    for attention, keys, values in sides:
        for row in range(3):
            q = attention.q_proj_weight @ image_BD[row]
            k, v = keys[rows_BK[row]] @ attention.k_proj_weight.T, values[rows_BK[row]] @ attention.v_proj_weight.T
            heads = []
            for head in (slice(0, 2), slice(2, 4)):
                weight = [math.exp(float(q[head] @ k[of, head]) / math.sqrt(2)) for of in range(2)]
                heads.append((weight[0] * v[0, head] + weight[1] * v[1, head]) / sum(weight))
            expected[row] += attention.out_proj.weight @ torch.cat(heads) + attention.out_proj.bias
    torch.testing.assert_close(looking(image_BD, rows_BK), expected, rtol=1e-10, atol=1e-12)


def test_the_order_of_neighbours_does_not_matter() -> None:
    looking, image_BD = part(), torch.randn(2, 4, dtype=torch.float64)
    torch.testing.assert_close(looking(image_BD, torch.tensor([[0, 4], [2, 1]])), looking(image_BD, torch.tensor([[4, 0], [1, 2]])))


def test_the_nearest_are_found_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = torch.nn.functional.normalize(torch.randn(50, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    expected = (keys[:7] @ keys.half().float().T).argsort(1, descending=True)[:, :5]
    for block in (64, 9, 3):
        monkeypatch.setattr("vlm_core.models.retrieval.BLOCK", block)
        assert nearest(keys[:7], keys.half(), 5).tolist() == expected.tolist()


def test_references_are_whole_groups_that_no_step_sees_and_a_function_of_the_seed(shards: Path) -> None:
    uids, aside = references.drawn(small(), shards)
    index = read_index(shards, "train")
    group_of = dict(zip(index["uid"].to_pylist(), index["group"].to_pylist(), strict=True))
    assert len(uids) == 60
    trained = references.trained_on(small(), shards).uids
    assert len(trained) + len(aside) == len(index)
    assert not {group_of[uid] for uid in aside} & {group_of[uid] for uid in trained}  # no copy, no equal caption
    assert references.drawn(small(), shards) == (uids, aside)
    assert references.drawn(small("seed=1"), shards)[0] != uids
    with pytest.raises(NothingLeft, match="Found 256 training pairs .* expected at least twice the 157 references; lower model.retrieval.references"):
        references.drawn(small("model.retrieval.references=157"), shards)


def test_the_verb_learns_saves_its_references_and_a_loaded_model_looks_them_up(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLM_HOME", str(tmp_path / "home"))
    report = run("pretrain", small("fit.epochs=20"), {"shards": shards}, tmp_path / "model", recipe="ra_clip_tiny")
    assert report.counts["in"] == len(references.trained_on(small(), shards))
    assert report.metrics["quick.auc"] > 0.7  # 0.5 is chance
    model = pretrained.load(tmp_path / "model")
    assert model.towers.retrieval is not None
    assert model.config["references"]["pairs"] == 60
    assert model.config["references"]["sha256"] == model.towers.retrieval.digest()
    held = pq.read_table(tmp_path / "model" / "references.parquet").to_pylist()
    assert {row["uid"] for row in held} == set(references.drawn(small(), shards)[0])

    # a reference finds itself first, so the pictures of the table are those of the features; and what is found is mixed in
    stored = {sample.uid: sample for sample in read_samples(shards, "train")}
    shown = [row for row in range(60) if held[row]["uid"] in stored][:6]
    pictures = [_decoded(stored[held[row]["uid"]].jpeg) for row in shown]
    see = model.transform()
    images_B3HW = torch.stack([see(picture) for picture in pictures])
    with torch.inference_mode():
        found_BK = model.towers.retrieval.look_up(images_B3HW)
        plain_BD = torch.nn.functional.normalize(model.towers.image(images_B3HW), dim=-1)
        mixed_BD = torch.nn.functional.normalize(model.towers.retrieval(plain_BD, found_BK), dim=-1)
    assert found_BK[:, 0].tolist() == shown
    torch.testing.assert_close(model.encode_images(pictures), mixed_BD, rtol=1e-5, atol=1e-6)
    assert float((mixed_BD * plain_BD).sum(1).max()) < 0.999
    torch.testing.assert_close(pretrained.load(tmp_path / "model").encode_images(pictures), mixed_BD, rtol=1e-5, atol=1e-6)


def _decoded(jpeg: bytes) -> Image.Image:
    return Image.open(io.BytesIO(jpeg)).convert("RGB")


def test_training_reads_the_neighbours_of_its_own_rows_and_goes_on_to_the_same_numbers(shards: Path, tmp_path: Path) -> None:
    config = small("fit.epochs=3", "fit.checkpoint_every=4")
    train(settings(config, shards), tmp_path, Told())
    whole, kept = read_rows(tmp_path), read_weights(tmp_path / references.FILE)
    trained = references.trained_on(config, shards)
    assert kept["neighbours"].shape == (len(trained), 4)
    step = next(iter((tmp_path / "steps").glob("step-00000004.ckpt")), None) or sorted((tmp_path / "steps").iterdir())[0]
    names = torch.load(step, map_location="cpu", weights_only=True)["state_dict"]
    assert any("text_by_image" in name for name in names)
    assert not any("image_RF" in name for name in names)  # frozen: the folder has them once
    (tmp_path / "final.safetensors").unlink()
    sorted((tmp_path / "steps").iterdir())[-1].unlink()
    train(settings(config, shards), tmp_path, Told())
    again = read_rows(tmp_path)
    assert [row["loss"] for row in again] == pytest.approx([row["loss"] for row in whole], rel=1e-5)


@torch.no_grad()
def test_a_look_up_sees_the_pixels_and_not_the_statistics_of_the_image_tower() -> None:
    looking = Retrieval(models.Retrieval(references=5, neighbours=2, heads=2, image_size=64), models.Vit(image_size=64, patch_size=8), 8)
    pixels_3SS = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 64, 64), np.uint8))
    expected = packaged.efficientnet_lite0().features(packaged.pixels(pixels_3SS[None]))  # type: ignore[operator]
    got = looking.features(looking.pixels.normalise(pixels_3SS)[None])
    assert float((torch.nn.functional.normalize(expected, dim=-1) * got).sum()) > 0.998  # bfloat16 where the processor has it


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        (("model.retrieval=null",), r"Found the objective 'retrieval_augmented' with model.retrieval=null, expected a reference set"),
        (("objectives={image_text_contrastive: {}}", "objectives.retrieval_augmented=null"), "Found model.retrieval without an objective that teaches it"),
        (("loader.mix={web: {shards: elsewhere}}",), "Found model.retrieval with loader.mix, expected one snapshot"),
        (("model.image={kind: efficientnet_lite0}", "model.text={kind: minilm}"), "Found model.retrieval with image names=true"),
        (("model.image={kind: efficientnet_lite0, names: false}",), "Found the objective 'retrieval_augmented' with a locked image tower"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes: tuple[str, ...], what: str) -> None:
    with pytest.raises(Incompatible, match=what):
        small(*changes)


def test_a_student_with_references_is_refused() -> None:
    with pytest.raises(Incompatible, match="Found a student that looks things up"):
        Distil(student=small())


def test_the_encoders_that_look_references_up_are_parents_of_the_model_and_towers_that_begin_from_packages_say_so() -> None:
    names = ("efficientnet_lite0", "minilm")
    assert parents(small(), "") == [{"model_id": packaged.digest(name), "relation": "encoder", "name": name} for name in names]
    assert parents(lit_packaged(), "") == [{"model_id": packaged.digest(name), "relation": "initial", "name": name} for name in names]
    assert parents(clip_tiny(), "") == []


def test_its_settings_say_where_the_references_came_from(shards: Path, tmp_path: Path) -> None:
    towers = pretrained.TwoTower(small().model)
    about = references.describe(small(), shards, towers, tmp_path)
    assert json.dumps(about["references"]["encoders"]).count('"') == 8
    assert [len(value) for value in about["references"]["encoders"].values()] == [64, 64]
