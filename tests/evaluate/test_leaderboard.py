"""The leaderboard: intervals over samples and seeds against numbers worked out by hand, pairs, protocol cards, verdicts."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.train.transfer_world import stage_for
from vlm_core.errors import ConfigError
from vlm_core.evaluate.board import drawn, plain
from vlm_core.evaluate.card import ProtocolCard
from vlm_core.evaluate.config import CompareModels
from vlm_core.evaluate.leaderboard import compare_models, estimate, rank, read_models
from vlm_core.evaluate.results import Results
from vlm_core.evaluate.statistics import Interval
from vlm_core.stage import Report

CARD = ProtocolCard(task="matching", dataset="heldout", dataset_version="v", split="heldout", split_sha256="s", n=200, metrics={"auc": "x"})
N = 200


def evaluation(folder: Path, value_N: np.ndarray, card: ProtocolCard = CARD) -> Path:
    """An evaluation folder with one suite, as `vlm evaluate` writes it."""
    folder.mkdir(parents=True)
    results = Results("0" * 64, resamples=1_000)
    results.per_sample(card, "auc", [f"s{i}" for i in range(len(value_N))], value_N, group=[f"g{i}" for i in range(len(value_N))], clustered=True)
    results.write(folder)
    return folder


def board(tmp_path: Path, **folders: Path) -> tuple[Report, dict[str, dict[str, object]]]:
    stage = stage_for(tmp_path / "board", "compare-models", **{f"evaluations.{name.replace('__', '@')}": folder for name, folder in folders.items()})
    report = compare_models(CompareModels(base="clip"), stage)
    return report, {row["model"]: row for row in pq.read_table(stage.out / "leaderboard.parquet").to_pylist()}


def test_without_seeds_the_interval_is_students_t_over_samples() -> None:
    found = estimate(np.array([[0.0, 1.0, 1.0, 0.0]]), ["a", "b", "c", "d"])
    # mean 1/2, standard error sqrt(1/3)/2 = 0.288675, t(0.975, 3) = 3.182446
    assert found.value == 0.5
    assert found.low == pytest.approx(0.5 - 3.182446 * 0.288675, abs=1e-5)
    assert found.high == pytest.approx(0.5 + 3.182446 * 0.288675, abs=1e-5)


def test_samples_of_one_group_count_once() -> None:
    twice = estimate(np.array([[0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0]]), list("aabbccdd"))
    once = estimate(np.array([[0.0, 1.0, 1.0, 0.0]]), list("abcd"))
    assert twice == pytest.approx(once)


def test_seeds_that_disagree_widen_the_interval_to_that_of_their_few_degrees_of_freedom() -> None:
    value_SN = np.tile(np.array([[0.0], [0.1], [0.2]]), (1, 1000))  # samples agree, seeds do not: 0.1 +- t(0.975, 2) x 0.1 / sqrt(3)
    found = estimate(value_SN, [str(i) for i in range(1000)])
    assert found.high - found.value == pytest.approx(4.302653 * 0.1 / 3**0.5, rel=1e-6)


def test_the_interval_of_a_difference_covers_the_truth_about_95_times_in_100() -> None:
    random, inside = np.random.default_rng(0), 0
    for _ in range(400):
        seeds, samples, both = random.normal(0, 0.02, (3, 1)), random.normal(0, 0.3, (1, 150)), random.normal(0, 0.3, (3, 150))
        found = estimate(0.05 + seeds + samples + both, [str(i) for i in range(150)])
        inside += found.low <= 0.05 <= found.high
    assert 0.93 <= inside / 400 <= 0.99


def test_differences_are_paired_by_sample_and_by_seed_and_verdicts_follow_the_interval(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    hard_N = random.uniform(0, 1, N)  # what makes samples differ is common to all models, and cancels
    clip = {seed: np.clip(0.8 * hard_N + 0.05 * random.uniform(0, 1, N), 0, 1) for seed in (0, 1)}
    folders = {f"clip__{seed}": evaluation(tmp_path / f"clip{seed}", value) for seed, value in clip.items()}
    folders |= {f"better__{seed}": evaluation(tmp_path / f"better{seed}", value + 0.02) for seed, value in clip.items()}
    folders |= {f"worse__{seed}": evaluation(tmp_path / f"worse{seed}", value - 0.02) for seed, value in clip.items()}
    folders |= {f"same__{seed}": evaluation(tmp_path / f"same{seed}", np.clip(value + random.normal(0, 0.2, N), 0, 1)) for seed, value in clip.items()}
    folders["other__0"] = evaluation(tmp_path / "other0", clip[0] + 0.1, CARD.merged({"tokenizer": "another"}))
    report, rows = board(tmp_path, **folders)
    assert {name: row["verdict"] for name, row in rows.items()} == {
        "clip": "base", "better": "better", "worse": "worse", "same": "cannot_tell", "other": "other_protocol",
    }  # fmt: skip
    assert rows["better"]["difference"] == pytest.approx(0.02)
    assert rows["better"]["by_seed"] == pytest.approx([0.02, 0.02])
    assert rows["other"]["difference"] is None
    assert rows["other"]["value"] == pytest.approx(clip[0].mean() + 0.1)
    assert rows["better"]["difference_low"] == pytest.approx(0.02), "what samples have in common cancels"
    assert rows["better"]["ci_high"] - rows["better"]["ci_low"] > 0.05
    assert report.counts["verdict.better"] == 1
    page = (tmp_path / "board" / "out" / "leaderboard.md").read_text()
    assert "1 of 4 beat the base: better." in page
    assert "does not beat the base" in page
    drawn_N3 = np.asarray(Image.open(tmp_path / "board" / "pictures" / "leaderboard.png").convert("RGB")).reshape(-1, 3).astype(int)
    for colour in ((44, 160, 44), (214, 39, 40), (31, 119, 180)):  # matplotlib's green, red and blue: one is better, one is worse, one is the base
        assert (np.abs(drawn_N3 - colour).max(axis=1) < 8).sum() > 20


def test_an_interval_above_0_that_may_be_chance_among_many_says_so() -> None:
    row = {"model": "m", "value": 0.2, "ci_low": 0.1, "ci_high": 0.3, "difference": 0.1, "difference_low": 0.01, "difference_high": 0.2, "seeds": 3, "n": 9,
           "verdict": "better", "own_input": False}  # fmt: skip
    assert [plain({**row, "p_holm": p})["verdict"] for p in (0.049, 0.05, 0.69)] == ["beats the base", *["beats the base; not after Holm"] * 2]
    assert plain({**row, "verdict": "cannot_tell", "p_holm": 1.0})["verdict"] == "does not beat the base"


def test_in_a_race_another_input_on_the_same_data_is_paired_and_marked_and_other_data_never_are(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    base = random.uniform(0, 1, N)
    cards = {"clip": CARD, "wide": CARD.merged({"tokenizer": "bpe", "context_length": 64, "image_preprocess": {"size_px": 192}, "precision": "bf16"}),
             "other": CARD.merged({"dataset_version": "w"}), "asks": CARD.merged({"templates_sha256": "t"})}  # fmt: skip
    inputs = {f"evaluations.{name}@0": evaluation(tmp_path / name, base + (0 if name == "clip" else 0.1), card) for name, card in cards.items()}
    rows = {mode: {row["model"]: row for row in rank(read_models(inputs), "clip", pairs_on=mode)} for mode in ("card", "data")}
    assert rows["data"]["wide"]["difference"] == pytest.approx(0.1)
    assert (rows["data"]["wide"]["verdict"], rows["data"]["wide"]["own_input"]) == ("better", True)
    assert {rows["card"][name]["verdict"] for name in ("wide", "other", "asks")} == {"other_protocol"}
    assert {rows["data"][name]["verdict"] for name in ("other", "asks")} == {"other_protocol"}
    stage = stage_for(tmp_path / "board", "compare-models", **inputs)
    compare_models(CompareModels(base="clip", pairs_on="data"), stage)
    assert "| **beats the base**; own input |" in (stage.out / "leaderboard.md").read_text()


def test_the_picture_shows_every_task_with_the_largest_sets_of_each_and_the_primary_suite_first() -> None:
    suites = {"emoji/linear_probe/acc1": 9, "b/zero_shot_ensemble/acc1": 30, "a/zero_shot_ensemble/acc1": 20, "c/zero_shot_ensemble/acc1": 40,
              "heldout/retrieval/text_retrieval_recall_at_1": 50, "heldout/retrieval/text_retrieval_recall_at_5": 50, "heldout/matching/auc": 50,
              "heldout/retrieval/image_retrieval_recall_at_10": 50, "b/zero_shot_single/acc1": 30}  # fmt: skip
    rows = [{"suite": suite, "n": n, "difference": 0.0} for suite, n in suites.items()] + [{"suite": "scenes/segmentation/miou", "n": 99, "difference": None}]
    assert drawn(rows, "b/zero_shot_ensemble/acc1") == [
        "b/zero_shot_ensemble/acc1", "heldout/matching/auc", "heldout/retrieval/text_retrieval_recall_at_1", "heldout/retrieval/image_retrieval_recall_at_10",
        "c/zero_shot_ensemble/acc1", "emoji/linear_probe/acc1",
    ]  # fmt: skip


def test_what_the_base_has_not_and_what_is_no_mean_over_samples_is_shown_without_a_difference(tmp_path: Path) -> None:
    folders = {f"clip__{seed}": evaluation(tmp_path / f"clip{seed}", np.linspace(0, 1, N)) for seed in (0, 1)}
    for seed, miou in ((0, 0.25), (1, 0.75)):
        results = Results("0" * 64, resamples=1_000)
        scenes = CARD.merged({"dataset": "scenes", "task": "segmentation"})
        results.per_sample(CARD, "auc", [f"s{i}" for i in range(N)], np.linspace(0, 1, N))
        results.per_sample(scenes, "scene_iou", ["a", "b", "c"], np.array([0.2, 0.4, 0.6]))
        results.whole(scenes, "miou", Interval(miou, miou - 0.1, miou + 0.1), 3)
        (tmp_path / f"dense{seed}").mkdir()
        results.write(tmp_path / f"dense{seed}")
        folders[f"dense__{seed}"] = tmp_path / f"dense{seed}"
    report, _ = board(tmp_path, **folders)
    rows = {row["suite"]: row for row in pq.read_table(tmp_path / "board" / "out" / "leaderboard.parquet").to_pylist() if row["model"] == "dense"}
    assert {suite: row["verdict"] for suite, row in rows.items()} == {
        "heldout/matching/auc": "cannot_tell", "scenes/segmentation/scene_iou": "no_base", "scenes/segmentation/miou": "not_paired",
    }  # fmt: skip
    whole = rows["scenes/segmentation/miou"]
    assert (whole["value"], whole["seeds"], whole["difference"]) == (0.5, 2, None)
    assert (whole["ci_low"], whole["ci_high"]) == pytest.approx((0.4, 0.6))
    assert report.tables["scenes segmentation miou"][0]["model"] == "dense"


def test_a_table_without_the_base_or_with_a_nameless_input_is_refused(tmp_path: Path) -> None:
    folder = evaluation(tmp_path / "one", np.linspace(0, 1, N))
    with pytest.raises(ConfigError, match="Found no evaluation of the base 'clip', expected one; "):
        board(tmp_path / "a", other__0=folder)
    with pytest.raises(ConfigError, match=r"Found the input 'evaluations.clip', expected evaluations.MODEL@SEED"):
        board(tmp_path / "b", clip=folder)


def test_p_values_count_the_candidates_that_a_search_dropped(tmp_path: Path) -> None:
    random = np.random.default_rng(2)
    base = random.uniform(0, 1, N)
    inputs = {"evaluations.clip@0": evaluation(tmp_path / "clip", base), "evaluations.new@0": evaluation(tmp_path / "new", base + random.normal(0.03, 0.2, N))}
    alone, among = (next(row for row in rank(read_models(inputs), "clip", count) if row["model"] == "new") for count in (0, 11))
    assert alone["p_holm"] == alone["p"]
    assert among["p_holm"] == pytest.approx(min(10 * alone["p"], 1))
