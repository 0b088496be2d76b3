"""Grounding: a detector that knows everything has 1, one that knows nothing has almost 0, and hits count by hand."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from tests.evaluate.test_evaluate import CONFIG
from tests.train.tiny import make_shards
from tests.train.transfer_world import labelled_set, stage_for
from vlm_core.evaluate.card import read_cards
from vlm_core.evaluate.evaluate import evaluate
from vlm_core.evaluate.grounding import Question, by_chance, hits, judge, pooled_ap, questions
from vlm_core.evaluate.heldout import read_heldout
from vlm_core.models import config as menu
from vlm_core.models import pretrained
from vlm_core.models.pixels import pixels_of
from vlm_core.models.regions import Found
from vlm_core.models.towers import TwoTower


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("grounding"))


@pytest.fixture(scope="module")
def asked(shards: Path) -> list[Question]:
    return questions(read_heldout(shards), 48, 40)


def perfect(one: Question) -> Found:
    return Found(one.scene.boxes_K4, torch.from_numpy(one.phrase_K), torch.linspace(0.9, 0.5, len(one.phrase_K)))


def ap(asked: list[Question], found: list[Found], iou: float | None = None) -> float:
    return pooled_ap([judge(one.scene.boxes_K4, one.phrase_K, guess) for one, guess in zip(asked, found, strict=True)], iou)


def test_scenes_are_the_same_at_every_call_and_ask_for_more_than_is_there(shards: Path, asked: list[Question]) -> None:
    again = questions(read_heldout(shards), 48, 40)
    for one, same in zip(asked, again, strict=True):
        assert torch.equal(one.scene.image_3SS, same.scene.image_3SS)
        assert one.phrases == same.phrases
        assert len(one.scene.boxes_K4) == len(one.phrase_K) >= 1
        assert len(set(one.phrases)) == len(one.phrases) > len(set(one.phrase_K.tolist()))


def test_a_perfect_detector_has_one(asked: list[Question]) -> None:
    found = [perfect(one) for one in asked]
    assert ap(asked, found) == pytest.approx(1.0)
    assert all(
        hits(one.scene.boxes_K4, one.phrase_K, guess).all()
        for one, guess in zip(asked, found, strict=True)
        if len(set(one.phrase_K.tolist())) == len(one.phrase_K)
    )


def test_random_boxes_find_almost_nothing_and_random_names_lose_most_of_it(asked: list[Question]) -> None:
    random, found = torch.Generator().manual_seed(0), []
    for one in asked:
        corner = torch.rand(25, 2, generator=random) * 30
        boxes = torch.cat([corner, corner + 6 + 12 * torch.rand(25, 2, generator=random)], 1)
        found.append(Found(boxes, torch.randint(len(one.phrases), (25,), generator=random), torch.rand(25, generator=random).sort(descending=True).values))
    assert ap(asked, found, 0.5) < 0.05
    named = [by_chance(perfect(one), len(one.phrases), random) for one in asked]
    assert ap(asked, named) < 0.3


def test_average_precision_by_hand() -> None:
    truth, phrase = torch.tensor([[0.0, 0, 10, 10], [20.0, 20, 30, 30]]), np.array([0, 1])
    found = Found(torch.tensor([[0.0, 0, 10, 10], [0.0, 0, 10, 10], [20.0, 20, 30, 30]]), torch.tensor([0, 1, 1]), torch.tensor([0.9, 0.8, 0.7]))
    judged = judge(truth, phrase, found)
    assert judged.right_TD[0].tolist() == [True, False, True]
    # precision 1 up to recall 1/2 (51 of 101 points), then 2/3
    assert pooled_ap([judged], 0.5) == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert hits(truth, phrase, found).tolist() == [1, 0]  # the best box of the second phrase is the wrong one


def test_the_evaluator_measures_models_with_regions_and_says_so_where_there_are_none(shards: Path, tmp_path: Path) -> None:
    labelled_set(tmp_path / "eval_sets")
    settings = menu.TwoTower(
        image=menu.Vit(image_size=32, patch_size=8, width=16, layers=1, heads=2), text=menu.ClipTransformer(context_length=48, width=16, layers=1, heads=2), width=8,
        regions=menu.Regions(width=8, blocks=1, reads="concepts"),
    )  # fmt: skip
    for name, config in (("with", settings), ("without", settings.but("regions=null"))):
        (tmp_path / name).mkdir()
        torch.manual_seed(0)
        pretrained.save(tmp_path / name, TwoTower(config), pixels_of(config.image), {})
        stage = stage_for(tmp_path / f"{name}-out", "evaluate", model=tmp_path / name, shards=shards, eval_sets=tmp_path / "eval_sets")
        report = evaluate(CONFIG.but("scenes=10", "probe=false"), stage)
        rows = pq.read_table(stage.out / "metrics.parquet").to_pylist()
        found = {row["metric"]: row for row in rows if row["task"] == "grounding"}
        assert ("no regions" in (stage.out / "report.md").read_text()) == (name == "without")
        assert (stage.pictures / "grounding.png").exists() == (name == "with") == any("grounding.png" in picture for picture in report.pictures.values())
        assert set(found) == ({"ap", "ap50", "ap50_by_chance", "recall_at_1", "recall_at_1_by_chance"} if name == "with" else set())
        for row in found.values():
            assert 0 <= row["ci_low"] <= row["value"] <= row["ci_high"] <= 1
            assert read_cards(stage.out / "cards")[row["card_id"]].metrics["scenes"]["objects_max"] == 4
