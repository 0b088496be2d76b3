"""Segmentation of composed scenes: exact masks, a tower that knows the classes scores 1, one that does not scores what chance gives; others skip it."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from tests.data.small_world import make_shards
from tests.train.transfer_world import labelled_set, stage_for, tiny_model
from vlm_core.data.eval_sets.eval_sets import EvalSet, read_dataset
from vlm_core.evaluate.config import Evaluate
from vlm_core.evaluate.evaluate import evaluate
from vlm_core.evaluate.segmentation import GROUND, SIDE, confusion_matrix, segment, segmentation_scores, segmented_scenes
from vlm_core.models import config as menu
from vlm_core.models.pixels import pixels_of
from vlm_core.models.pretrained import Vlm, load, save
from vlm_core.models.towers import TwoTower


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> EvalSet:
    return read_dataset(labelled_set(tmp_path_factory.mktemp("sets"), "emoji_groups"))


def colour_reader(folder: Path, kind: str) -> Vlm:
    """A tower whose patches are their own mean colour: what a perfect segmenter of plain colours sees."""
    image = menu.Vit(image_size=112, patch_size=8, width=16, layers=1, heads=2)
    config = menu.TwoTower(image=image, text=menu.ClipTransformer(context_length=16, width=16, layers=1, heads=2), width=12)
    folder.mkdir()
    save(folder, TwoTower(config), pixels_of(config.image), {"recipe": kind, "seed": 0})
    return load(folder)


def test_every_pixel_of_a_scene_has_the_class_of_the_picture_it_was_cut_from(data: EvalSet) -> None:
    made = segmented_scenes(data, 30)
    colours = np.array([(220, 30, 30), (30, 200, 40), (40, 60, 230)])
    assert {len(key.split("+")) for key in made.keys} == {2, 3}  # as many as there are classes at most
    for key, picture, truth_SS in zip(made.keys, made.images, made.truth_NSS, strict=True):
        pixels = np.asarray(picture).astype(int)
        nearest = np.abs(pixels[:, :, None] - colours).sum(-1).argmin(-1)
        known = truth_SS != GROUND
        assert (nearest[known] == truth_SS[known]).all()
        assert (pixels[~known] == 255).all()
        present = {int(part.partition("-")[0]) for part in key.split("+")}
        assert set(np.unique(truth_SS[known])) <= present
        assert len(present) == len(key.split("+"))


def test_scenes_are_the_same_for_every_model_and_come_from_the_test_split(data: EvalSet) -> None:
    one, other = segmented_scenes(data, 12), segmented_scenes(data, 12)
    assert one.keys == other.keys
    assert (one.truth_NSS == other.truth_NSS).all()
    assert {part.split("-")[1] for key in one.keys for part in key.split("+")} == {"test"}


def test_patches_that_are_their_own_colour_are_segmented_almost_to_the_edges(data: EvalSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vlm, made = colour_reader(tmp_path / "model", "colours"), segmented_scenes(data, 20)
    middle = torch.tensor([0.35, 0.4, 0.45])

    def tokens(images_B3HW: torch.Tensor) -> torch.Tensor:
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (vlm.pixels.mean, vlm.pixels.std))
        patches = torch.nn.functional.avg_pool2d(images_B3HW * std + mean, 8).flatten(2).transpose(1, 2) - middle
        return torch.cat([patches.mean(1, keepdim=True), patches], dim=1)

    image = vlm.towers.image
    monkeypatch.setattr(image, "tokens", tokens)
    monkeypatch.setattr(image, "head", lambda states: states)
    weights_CD = torch.nn.functional.normalize(torch.tensor([(220, 30, 30), (30, 200, 40), (40, 60, 230)]) / 255 - middle, dim=-1)
    said_NSS, whole_N = segment(vlm, made.images, weights_CD)
    assert said_NSS.shape == (20, SIDE, SIDE)
    assert whole_N.shape == (20,)
    scores = segmentation_scores(confusion_matrix(made.truth_NSS, said_NSS, 3))
    assert scores.miou > 0.97
    flat = np.broadcast_to(whole_N[:, None, None], said_NSS.shape)
    assert segmentation_scores(confusion_matrix(made.truth_NSS, flat, 3)).miou < 0.6


def test_random_answers_give_the_iou_of_chance(data: EvalSet) -> None:
    made = segmented_scenes(data, 40)
    said_NSS = np.random.default_rng(0).integers(0, 3, made.truth_NSS.shape)
    assert segmentation_scores(confusion_matrix(made.truth_NSS, said_NSS, 3)).miou == pytest.approx(0.2, abs=0.01)  # 1/9 hit of 1/3 + 1/3 - 1/9


def run(root: Path, model: Path, out: str, **settings: object) -> tuple[Path, set[str]]:
    stage = stage_for(root / out, "evaluate", model=model, shards=root / "shards" / "out", eval_sets=root / "eval_sets")
    report = evaluate(Evaluate(resamples=1_000, probe=False, scenes=10).merged(settings), stage)
    assert all((stage.pictures / file).exists() for file in report.pictures.values())
    return stage.out, set(report.pictures.values())


def test_the_verb_measures_towers_that_show_patches_and_says_why_others_are_left_out(tmp_path: Path) -> None:
    make_shards(tmp_path / "shards")
    labelled_set(tmp_path / "eval_sets", "emoji_groups")
    tiny_model(tmp_path / "dense")
    out, pictures = run(tmp_path, tmp_path / "dense", "a")
    rows = [row for row in pq.read_table(out / "metrics.parquet").to_pylist() if row["task"] == "segmentation"]
    assert {row["metric"] for row in rows} == {"miou", "whole_picture_miou", "scene_iou"}
    assert all(0 <= row["ci_low"] <= row["value"] <= row["ci_high"] <= 1 and row["n"] == 10 for row in rows)
    assert len({row["card_id"] for row in rows}) == 1
    samples = [row for row in pq.read_table(out / "predictions.parquet").to_pylist() if row["task"] == "segmentation"]
    assert np.mean([row["correct"] for row in samples]) == pytest.approx(next(row["value"] for row in rows if row["metric"] == "scene_iou"))
    assert "segmentation.png" in pictures
    assert "Segmentation was not measured" not in (out / "report.md").read_text()

    out, pictures = run(tmp_path, tmp_path / "dense", "b", segmentation="")
    assert "Segmentation was not measured: the set of its scenes is not among the evaluated ones." in (out / "report.md").read_text()
    assert "segmentation.png" not in pictures

    config = menu.TwoTower(
        image=menu.ClipResnet(image_size=32, layers=[1, 1, 1, 1], width=8, heads=4),
        text=menu.ClipTransformer(context_length=16, width=16, layers=1, heads=2), width=12,
    )  # fmt: skip
    (tmp_path / "plain").mkdir()
    save(tmp_path / "plain", TwoTower(config), pixels_of(config.image), {"recipe": "plain", "seed": 0})
    out, _ = run(tmp_path, tmp_path / "plain", "c")
    assert "Segmentation was not measured: this model does not show its patches in the joint space." in (out / "report.md").read_text()
