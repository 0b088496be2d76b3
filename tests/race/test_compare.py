"""Comparisons of recipes: cells through the verbs, reused when they are there, refused in one sentence; and the leaderboard that comes out."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.train.tiny import SMALL, make_shards
from tests.train.transfer_world import labelled_set
from vlm_core.config import Config
from vlm_core.errors import ConfigError, Incompatible
from vlm_core.race.config import ComparePretraining
from vlm_core.run import run
from vlm_core.stage import Report

# fit.epochs plays no part where fit.samples is set
CHANGES = [*SMALL, "loader.cache_mb=0", "optim.warmup_steps=2"]
EVALUATE = {"datasets": ["colours"], "resamples": 1000, "probe": False}


def settings(*recipes: str, **changes: object) -> Config:
    return ComparePretraining.read({"recipes": list(recipes), "samples": 640, "seeds": 1, "changes": CHANGES, "evaluate": EVALUATE, **changes})


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("race")
    make_shards(root / "shapes")
    labelled_set(root / "eval_sets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLM_HOME", str(root / "home"))
        compare(root, settings("siglip_tiny"), "first")
    return root


def compare(root: Path, config: Config, name: str) -> Report:
    return run("compare-pretraining", config, {"shards": root / "shapes" / "out", "eval_sets": root / "eval_sets"}, root / name)


def test_every_recipe_sees_the_same_pairs_and_meets_the_same_cards_and_the_base_takes_part_unasked(world: Path) -> None:
    rows = pq.read_table(world / "first" / "leaderboard.parquet").to_pylist()
    assert {row["model"] for row in rows} == {"clip_tiny", "siglip_tiny"}
    assert {row["verdict"] for row in rows if row["model"] == "clip_tiny"} == {"base"}
    assert all(row["difference"] is not None for row in rows if row["model"] == "siglip_tiny")
    for recipe in ("clip_tiny", "siglip_tiny"):
        model = world / "first.parts" / "runs" / recipe / "640-0" / "model"
        assert json.loads(model.with_name("model.run").joinpath("result.json").read_text())["counts"]["seen"] == 640
        assert json.loads((model / "config.json").read_text())["seed"] == 0


def test_values_and_differences_are_those_of_the_evaluations(world: Path) -> None:
    rows = {(row["suite"], row["model"]): row for row in pq.read_table(world / "first" / "leaderboard.parquet").to_pylist()}
    for recipe in ("clip_tiny", "siglip_tiny"):
        found = pq.read_table(world / "first.parts" / "runs" / recipe / "640-0" / "evaluation" / "metrics.parquet").to_pylist()
        for suite in ("heldout/matching/auc", "colours/zero_shot_ensemble/acc1"):
            (value,) = [row["value"] for row in found if f"{row['dataset']}/{row['task']}/{row['metric']}" == suite]
            assert rows[suite, recipe]["value"] == pytest.approx(value)
    for suite in ("heldout/matching/auc", "colours/zero_shot_ensemble/acc1"):
        gain = rows[suite, "siglip_tiny"]["value"] - rows[suite, "clip_tiny"]["value"]
        assert rows[suite, "siglip_tiny"]["difference"] == pytest.approx(gain, abs=1e-12)


def test_a_second_comparison_finds_the_finished_runs_and_says_why_a_recipe_has_no_result(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLM_HOME", str(world / "home"))
    before = pq.read_table(world / "first" / "leaderboard.parquet")
    again = compare(world, settings("siglip_tiny", "ra_clip_tiny"), "first")
    assert (again.counts["parts_reused"], again.counts["failed"], again.counts["models"]) == (4, 1, 2)
    assert pq.read_table(world / "first" / "leaderboard.parquet").equals(before)
    assert "Without a result: `ra_clip_tiny` (NothingLeft: Found 256 training pairs" in (world / "first" / "leaderboard.md").read_text()


def test_a_recipe_that_does_not_exist_is_refused_before_anything_runs(world: Path) -> None:
    with pytest.raises(ConfigError, match=r"Found the recipe 'clip_tny', expected one of pretrain; did you mean 'clip_tiny'"):
        compare(world, settings("clip_tny"), "typo")
    assert not (world / "typo.parts").exists()


def test_a_change_that_does_not_fit_a_recipe_is_refused_before_anything_runs(world: Path) -> None:
    with pytest.raises(Incompatible, match="bias"):
        compare(world, settings("siglip_tiny", changes=[*CHANGES, "model.scale.bias=null"]), "unfit")
    assert not (world / "unfit.parts").exists()
