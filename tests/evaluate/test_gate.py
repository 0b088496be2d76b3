"""Cards, paired comparison, and the gate through which a challenger must pass, on stored evaluations."""

from pathlib import Path

import numpy as np
import pytest

from vlm_core.errors import ConfigError, Incompatible, MissingInput
from vlm_core.evaluate.card import ProtocolCard, digest_of, read_cards, require_same
from vlm_core.evaluate.compare import compare
from vlm_core.evaluate.gate import gate
from vlm_core.evaluate.results import Results
from vlm_core.evaluate.statistics import mcnemar

N = 400
PRIMARY = "heldout/retrieval/recall_at_10"


def card(**changes: object) -> ProtocolCard:
    return ProtocolCard.from_config(
        {"task": "retrieval", "dataset": "heldout", "dataset_version": "v1.dir", "split": "heldout", "split_sha256": "0", "n": N}, changes
    )


def evaluation(folder: Path, right: float, guard: float = 0.5, version: str = "v1.dir", n: int = N) -> Path:
    """A stored evaluation in which the first `right` of the samples are correct; the guard suite likewise."""
    results = Results(folder.name, resamples=1_000)
    ids = [f"s{i:04}" for i in range(n)]
    results.per_sample(card(dataset_version=version, n=n), "recall_at_10", ids, np.arange(n) < right * n)
    results.per_sample(card(task="zero_shot", dataset="emoji", n=n), "acc1", ids, np.arange(n) < guard * n)
    folder.mkdir(parents=True)
    results.write(folder)
    return folder


def test_a_card_is_named_by_its_content_and_cannot_be_changed(tmp_path: Path) -> None:
    assert card().id == card().id != card(n=N + 1).id
    assert card(classes_sha256=digest_of(["cat", "dog"])).id != card(classes_sha256=digest_of(["dog", "cat"])).id
    with pytest.raises(ValueError, match="frozen"):
        card().n = 3  # type: ignore[misc]
    with pytest.raises(ConfigError, match="unknown setting 'tempalte_count'.*did you mean 'template_count'"):
        card(tempalte_count=3)
    assert read_cards(tmp_path / "none") == {}
    name = card().write(tmp_path)
    assert read_cards(tmp_path) == {name: card()}


def test_two_protocols_are_never_ranked_and_the_message_names_the_difference() -> None:
    require_same(card(), card())
    with pytest.raises(Incompatible, match=r"differ in precision \(float32 and bfloat16\)"):
        require_same(card(), card(precision="bfloat16"))


def test_a_clear_gain_promotes_and_the_difference_is_that_of_the_samples(tmp_path: Path) -> None:
    old, new = evaluation(tmp_path / "old", 0.5), evaluation(tmp_path / "new", 0.6)
    row = next(row for row in compare(old, new, 1_000) if row.suite == PRIMARY)
    assert row.difference == pytest.approx(0.1)
    assert row.ci_low == pytest.approx(0.1 - 1.96 * np.sqrt(0.09 / N), abs=0.005)
    assert row.p_holm == min(1, 2 * row.p)
    verdict = gate(new, old, primary=PRIMARY, resamples=1_000)
    assert verdict.outcome == "promote"
    assert verdict.promotes
    assert "+0.1000" in verdict.reason


def test_forty_copies_of_five_wins_are_five_wins_also_for_p_and_the_gate(tmp_path: Path) -> None:
    """Ten groups of forty pictures: b wins five groups, a wins three, two are even. Over 400 pictures McNemar would see 200 : 120 (p 1e-5)."""
    gain = np.repeat([1, 1, 1, 1, 1, -1, -1, -1, 0, 0], 40)
    a, b = np.where(gain < 0, 1, 0), np.where(gain > 0, 1, 0)
    folders = []
    for name, right in (("a", a), ("b", b)):
        results = Results(name, resamples=1_000)
        ids, groups = [f"s{i:04}" for i in range(N)], [f"g{i // 40}" for i in range(N)]
        results.per_sample(card(), "recall_at_10", ids, right.astype(float), group=groups, clustered=True)
        (tmp_path / name).mkdir()
        results.write(tmp_path / name)
        folders.append(tmp_path / name)
    assert mcnemar(a == 1, b == 1).p < 2e-5
    (row,) = compare(*folders, 4_000)
    draws = np.random.default_rng(7).choice(gain[::40], (100_000, 10)).mean(1)  # a bootstrap over groups of its own
    assert row.difference == pytest.approx(0.2)
    assert row.p == pytest.approx(2 * (draws <= 0).mean(), abs=0.04)
    assert row.p > 0.3
    assert (row.ci_low, row.ci_high) == pytest.approx(tuple(np.percentile(draws, [2.5, 97.5])), abs=0.11)
    assert row.detectable == pytest.approx(2.8 * np.sqrt(8) * 40 / 400)  # eight discordant groups of forty
    assert gate(folders[1], folders[0], primary=PRIMARY, resamples=4_000).outcome == "cannot_tell"


def test_the_same_model_again_does_not_replace_the_champion(tmp_path: Path) -> None:
    old, new = evaluation(tmp_path / "old", 0.5), evaluation(tmp_path / "new", 0.5)
    assert gate(new, old, primary=PRIMARY, resamples=1_000).outcome == "keep"


def test_a_guard_that_gets_worse_stops_a_better_challenger(tmp_path: Path) -> None:
    old, new = evaluation(tmp_path / "old", 0.5, guard=0.5), evaluation(tmp_path / "new", 0.7, guard=0.4)
    verdict = gate(new, old, primary=PRIMARY, margin=0.02, resamples=1_000)
    assert verdict.outcome == "keep"
    assert "emoji/zero_shot/acc1 -0.1000" in verdict.reason


def test_a_gain_too_small_for_the_sample_is_not_claimed(tmp_path: Path) -> None:
    """Eight of forty samples change, five for the better: nothing that forty samples could show."""
    ids = [f"s{i:04}" for i in range(40)]
    a, b = np.arange(40) < 20, np.arange(40) < 20
    b[:3], b[20:25] = False, True
    for name, value in (("old", a), ("new", b)):
        results = Results(name, resamples=1_000)
        results.per_sample(card(n=40), "recall_at_10", ids, value)
        (tmp_path / name).mkdir()
        results.write(tmp_path / name)
    verdict = gate(tmp_path / "new", tmp_path / "old", primary=PRIMARY, margin=0.02, resamples=1_000)
    assert verdict.outcome == "cannot_tell"
    assert "40 samples show gains of 0.1980 or more only" in verdict.reason


def test_a_cheaper_model_may_pass_when_it_is_not_worse(tmp_path: Path) -> None:
    old, new = evaluation(tmp_path / "old", 0.5), evaluation(tmp_path / "new", 0.5)
    assert gate(new, old, primary=PRIMARY, margin=0.02, cheaper_by=0.3, resamples=1_000).outcome == "promote"


def test_the_first_model_takes_the_empty_place(tmp_path: Path) -> None:
    assert gate(evaluation(tmp_path / "new", 0.1), None).promotes


def test_an_evaluation_on_other_data_is_refused_rather_than_ranked(tmp_path: Path) -> None:
    old, new = evaluation(tmp_path / "old", 0.5), evaluation(tmp_path / "new", 0.9, version="v2.dir")
    with pytest.raises(Incompatible, match=r"dataset_version \(v1.dir and v2.dir\)"):
        compare(old, new)
    assert gate(new, old, primary=PRIMARY).outcome == "refused"


def test_other_samples_under_the_same_card_are_refused(tmp_path: Path) -> None:
    old, new = evaluation(tmp_path / "old", 0.5), evaluation(tmp_path / "new", 0.5)
    results = Results("new", resamples=1_000)
    results.per_sample(card(), "recall_at_10", [f"t{i}" for i in range(N)], np.ones(N))
    results.write(new)
    with pytest.raises(Incompatible, match="not the same"):
        compare(old, new)


def test_a_missing_evaluation_and_a_misspelt_suite_are_said_in_one_sentence(tmp_path: Path) -> None:
    old, new = evaluation(tmp_path / "old", 0.5), evaluation(tmp_path / "new", 0.6)
    with pytest.raises(MissingInput, match="run 'vlm evaluate' first"):
        compare(tmp_path / "nowhere", new)
    with pytest.raises(ConfigError, match="did you mean 'heldout/retrieval/recall_at_10'"):
        gate(new, old, primary="heldout/retrieval/recall_at_1", resamples=1_000)


def test_the_bytes_of_an_evaluation_depend_on_what_was_measured_only(tmp_path: Path) -> None:
    one, two = evaluation(tmp_path / "a" / "m", 0.5), evaluation(tmp_path / "b" / "m", 0.5)
    for name in ("predictions.parquet", "metrics.parquet"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
