"""The search over recipes and filters: one split for all training data, a budget that is kept, and a leaderboard against the crawl as it is."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.train.tiny import SMALL
from vlm_core.data.sample import CAPTIONS
from vlm_core.errors import BudgetSpent, ConfigError, DataError
from vlm_core.race.cells import settings
from vlm_core.race.config import RAW, Sweep
from vlm_core.race.recipes import recipes_by_filter
from vlm_core.race.sweep import _cells, names_of, rounds
from vlm_core.run import load, run

SMALLEST = {
    "recipes": ["siglip_tiny"], "samples": 64, "seeds": 2, "changes": [*SMALL, "loader.batch_size=16", "loader.cache_mb=0"],
    "evaluate": {"resamples": 1000, "probe": False}, "primary": "heldout/matching/auc",
}  # fmt: skip


def plan(**values: object) -> Sweep:
    return Sweep.read({**SMALLEST, **values})


def test_a_plain_grid_is_one_round_of_all_candidates() -> None:
    assert rounds(plan(), 6) == [(6, 2, 64)]


def test_halving_gives_each_round_a_share_of_the_pairs_and_keeps_the_base_beside_the_best_share() -> None:
    # 27 candidates and the base; a third goes on: 28 -> 9 + 1 -> 3 + 1
    assert rounds(plan(rungs=2, samples=9000, seeds=3), 28) == [(28, 1, 1000), (10, 1, 3000), (4, 3, 9000)]


def test_the_base_is_the_first_candidate_whatever_the_recipes_are() -> None:
    names = names_of(plan())
    assert names[0] == "clip_tiny+crawl"
    assert sorted(names) == sorted(f"{recipe}+{data}" for recipe in ("clip_tiny", "siglip_tiny") for data in ("crawl", "filtered", "filtered_captions"))


def test_variants_are_candidates_and_what_reads_its_own_captions_is_run_once_for_data_that_differ_in_captions_only() -> None:
    composed = {"both": {"recipe": "siglip_tiny", "changes": ["objectives.image_contrastive={hidden: 32, width: 16}"]},
                "all_captions": {"recipe": "clip_tiny", "changes": ["loader.caption_weights={alt: 1}"]}}  # fmt: skip
    cells = {one.name: one for one in _cells(plan(variants=composed), Path("shards"))}
    assert {name for name in cells if name.startswith(("both", "all"))} == {
        "both+crawl",
        "both+filtered",
        "both+filtered_captions",
        "all_captions+crawl",
        "all_captions+filtered",
    }
    made = settings(plan(variants=composed), cells["both+filtered"], 0, 64)
    assert set(made.objectives.chosen()) == {"sigmoid", "image_contrastive"}
    assert made.loader.caption_weights == RAW
    assert settings(plan(variants=composed), cells["all_captions+crawl"], 0, 64).loader.caption_weights == {"alt": 1.0}
    with pytest.raises(ConfigError, match="Found the variant 'clip_tiny', which is the name of a recipe"):
        names_of(plan(variants={"clip_tiny": composed["both"]}))
    with pytest.raises(ConfigError, match="Found the variant 'a b', expected a name of letters"):
        plan(variants={"a b": composed["both"]})


def test_the_packaged_sweep_fits_its_budget_and_holds_compositions() -> None:
    config = recipes_by_filter()
    names = names_of(config)
    assert names[0] == "clip_tiny+crawl"
    assert sum(cells * seeds * pairs for cells, seeds, pairs in rounds(config, len(names))) <= config.max_pairs
    assert {name.partition("+")[0] for name in names} >= set(config.variants) >= {"two_texts_simclr"}


def test_a_plan_beyond_the_budget_is_refused_before_anything_runs_with_what_would_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLM_HOME", str(tmp_path / "home"))
    given = {}
    for name in ("pairs", "images", "embeddings", "captions"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text(name)
        given[name] = tmp_path / name
    # 6 candidates x 2 seeds x 64 pairs
    with pytest.raises(BudgetSpent, match=r"Found a plan of 768 pairs \(6 cells x 2 seeds x 64\), expected at most max_pairs 384; set samples=32,"):
        run("sweep", plan(max_pairs=384), given, tmp_path / "out")
    assert not (tmp_path / "out.parts" / "filtered").exists()


def test_base_data_that_are_not_among_the_data_are_refused() -> None:
    with pytest.raises(ConfigError, match="Found base_data 'crowl', expected one of data; did you mean 'crawl'"):
        plan(base_data="crowl")


def test_a_filter_takes_over_the_groups_of_another_one_and_refuses_samples_that_it_does_not_know(
    small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLM_HOME", str(tmp_path / "home"))
    given = {"pairs": small_set / "candidate_pairs", "images": small_set / "images", "embeddings": small_set / "embeddings"}
    run("filter", load("filter", "no_filter")[1], given, tmp_path / "all")
    half = load("filter", "no_filter", None, ("cuts={clip: {fraction: 0.5}}", "group={pdq_bits: 0, phash_bits: 0}"))[1]
    run("filter", half, {**given, "groups": tmp_path / "all"}, tmp_path / "half")
    groups = [
        dict(zip(*(pq.read_table(tmp_path / name / "kept.parquet")[column].to_pylist() for column in ("uid", "group")), strict=True))
        for name in ("all", "half")
    ]
    assert 0 < len(groups[1]) < len(groups[0])
    assert groups[1].items() <= groups[0].items()
    with pytest.raises(DataError, match=r"without a group in .*half .*expected one that keeps all that this filter keeps"):
        run("filter", load("filter", "no_filter", None, ("text={min_chars: 1}",))[1], {**given, "groups": tmp_path / "half"}, tmp_path / "again")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_candidate_is_judged_on_pairs_that_no_training_set_holds(small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow as pa

    monkeypatch.setenv("VLM_HOME", str(tmp_path / "home"))
    (tmp_path / "captions").mkdir()
    pq.write_table(pa.Table.from_pylist([], CAPTIONS), tmp_path / "captions" / "captions.parquet")
    given = {"pairs": small_set / "candidate_pairs", "images": small_set / "images", "embeddings": small_set / "embeddings", "captions": tmp_path / "captions"}
    data = {"crawl": {"filter": "no_filter"}, "best": {"filter": "no_filter", "changes": ["cuts={clip: {fraction: 0.7}}"]}}
    sets = {"datasets": ["emoji_groups"]}
    config = plan(data=data, judged_on="best", rungs=1, keep=0.5, eval_sets=sets, shard={"held_out": 0.3, "grow": False})
    report = run("sweep", config, given, tmp_path / "sweep")
    assert report.counts["models"] == 3  # of 4 candidates: the base, and the better two of three
    parts = tmp_path / "sweep.parts"
    split = {name: pq.read_table(parts / "shards" / name / "index.parquet").to_pandas() for name in data}
    judged = split["best"][split["best"]["split"] == "heldout"]
    for index in split.values():
        train = index[index["split"] == "train"]
        assert not set(train["uid"]) & set(judged["uid"])
        assert not set(train["group"]) & set(judged["group"])
    assert (parts / "runs" / "clip_tiny+crawl" / "32-0" / "evaluation" / "metrics.parquet").exists()
    page = (tmp_path / "sweep" / "leaderboard.md").read_text()
    assert "4 candidates x 1 seeds x 32 pairs, then 3 candidates x 2 seeds x 64 pairs" in page
    assert "and over all 4 that the search began with" in page
