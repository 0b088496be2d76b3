"""Comparisons of recipes: cells through the verbs, reused when they are there, refused in one sentence; and the leaderboard that comes out."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.train.tiny import SMALL, make_shards
from tests.train.transfer_world import labelled_set
from vlm_core.config import Config
from vlm_core.data.shards.mixture import read_caption, read_two
from vlm_core.errors import ConfigError, Incompatible
from vlm_core.race.cells import brought, cell
from vlm_core.race.cells import settings as settings_of
from vlm_core.race.config import ComparePretraining, Composed
from vlm_core.race.launch import environment_for
from vlm_core.run import run
from vlm_core.stage import Report, write_json

# fit.epochs plays no part where fit.samples is set
CHANGES = [*SMALL, "loader.cache_mb=0", "optim.warmup_steps=2"]
EVALUATE = {"datasets": ["colours"], "resamples": 1000, "probe": False}


def settings(*recipes: str, **changes: object) -> Config:
    return ComparePretraining.read({"recipes": list(recipes), "samples": 640, "seeds": 1, "threads": 1, "changes": CHANGES, "evaluate": EVALUATE, **changes})


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
    page = (world / "first" / "leaderboard.md").read_text()
    assert "Without a result: `ra_clip_tiny` (NothingLeft: Found 256 training pairs" in page
    assert "Captions are the raw ones." in page
    assert (world / "first" / "leaderboard.png").read_bytes()[:4] == b"\x89PNG"
    trained = json.loads((world / "first.parts" / "runs" / "siglip_tiny" / "640-0" / "model.run" / "result.json").read_text())
    assert f"| siglip_tiny | 640 | {round(trained['metrics']['pairs_per_s'], 1)} | {round(trained['seconds'] / 60, 2)} |" in page


def test_recipes_of_one_caption_read_the_raw_one_in_a_race_and_those_of_two_keep_theirs() -> None:
    record = {
        "uid": "u",
        "captions": [{"text": f"one caption of {origin}", "origin": origin} for origin in ("figcaption", "alt", "title", "rewritten", "synthetic")],
    }
    race = ComparePretraining()
    plain, two = (settings_of(race, cell(race, name, Path()), 0, 128) for name in ("clip_tiny", "laclip_tiny"))
    assert {read_caption(record, plain.loader, 0, epoch) for epoch in range(50)} == {("one caption of figcaption", "figcaption")}
    assert {read_two(record, two.loader, 0, epoch)[2] for epoch in range(50)} == {"rewritten", "synthetic"}
    asked = settings_of(race.but("changes=['loader.caption_weights={alt: 1}']"), cell(race, "clip_tiny", Path()), 0, 128)
    assert asked.loader.caption_weights == {"alt": 1.0}


def test_the_page_names_the_models_that_do_not_begin_from_nothing() -> None:
    packaged = Composed(recipe="clip_tiny", changes=["model.image={kind: efficientnet_lite0, image_size: 64, names: false}"])
    config = ComparePretraining(variants={"packaged_eyes": packaged})
    names = "clip_tiny", "lit_tiny", "ra_clip_tiny", "packaged_eyes"
    cells = [cell(config, name, Path(), f"{name}+{data}") for data in ("crawl", "filtered") for name in names]
    expected = (
        " Not from scratch, with packaged weights: `lit_tiny` (efficientnet_lite0), `ra_clip_tiny` (efficientnet_lite0 and minilm), "
        "`packaged_eyes` (efficientnet_lite0)."
    )
    assert brought(config, cells) == expected
    assert brought(config, cells[:1]) == ""


def test_runs_side_by_side_give_what_runs_in_a_row_give_and_say_whose_line_is_whose(
    world: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VLM_HOME", str(world / "home"))
    compare(world, settings("siglip_tiny", side_by_side=2), "side")
    assert pq.read_table(world / "first" / "leaderboard.parquet").equals(pq.read_table(world / "side" / "leaderboard.parquet"))
    said = capfd.readouterr().err.splitlines()
    for who in ("clip_tiny@0", "siglip_tiny@0"):
        assert any(line.startswith(f"{who} [pretrain] loss ") for line in said)
    assert all(line.startswith(("[compare-pretraining] ", "clip_tiny@", "siglip_tiny@")) for line in said)


def test_a_run_has_its_share_of_the_cores_unless_the_caller_says_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 12)
    assert environment_for(1, None).get("OMP_NUM_THREADS") is None
    assert environment_for(4, None)["OMP_NUM_THREADS"] == "3"
    assert environment_for(20, None)["OMP_NUM_THREADS"] == "1"
    assert environment_for(4, 2)["OMP_NUM_THREADS"] == "2"
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert environment_for(4, None)["OMP_NUM_THREADS"] == "5"


@pytest.mark.slow
def test_runs_end_with_the_process_that_compares(world: Path, tmp_path: Path) -> None:
    config = settings("siglip_tiny", samples=200_000, seeds=2, side_by_side=2)
    write_json(tmp_path / "spec.json", {"verb": "compare-pretraining", "config": config.model_dump(mode="json"),
                                        "inputs": {"shards": str(world / "shapes" / "out"), "eval_sets": str(world / "eval_sets")}})  # fmt: skip
    words = [sys.executable, "-m", "vlm_core", "compare-pretraining", "--spec", str(tmp_path / "spec.json"), "--out", str(tmp_path / "long")]
    victim = subprocess.Popen(words, env={**os.environ, "VLM_HOME": str(tmp_path / "home")}, stderr=subprocess.PIPE, text=True)
    assert victim.stderr is not None
    both = set[str]()
    for line in victim.stderr:
        both |= {line.partition(" ")[0]} if "[pretrain] loss" in line else set()
        if len(both) == 2:
            break
    children = [int(pid) for task in Path(f"/proc/{victim.pid}/task").iterdir() for pid in (task / "children").read_text().split()]
    assert len(children) == 2
    victim.kill()
    victim.wait()
    victim.stderr.close()
    until = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in children) and time.monotonic() < until:
        time.sleep(0.05)
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]


def test_a_recipe_that_does_not_exist_is_refused_before_anything_runs(world: Path) -> None:
    with pytest.raises(ConfigError, match=r"Found the recipe 'clip_tny', expected one of pretrain; did you mean 'clip_tiny'"):
        compare(world, settings("clip_tny"), "typo")
    assert not (world / "typo.parts").exists()


def test_a_change_that_does_not_fit_a_recipe_is_refused_before_anything_runs(world: Path) -> None:
    with pytest.raises(Incompatible, match="bias"):
        compare(world, settings("siglip_tiny", changes=[*CHANGES, "model.scale.bias=null"]), "unfit")
    assert not (world / "unfit.parts").exists()
