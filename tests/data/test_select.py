"""Fractions, clusters, chance (golden arrays: tests/golden)."""

from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_core.data.filter import select

SCORES = st.lists(st.sampled_from([0.1, 0.2, 0.25, 0.3, 0.9]), min_size=1, max_size=40)


def uids(n: int) -> list[str]:
    return [f"{(i * 7919) % 104729:032x}" for i in range(n)]


@settings(max_examples=60, deadline=None)
@given(SCORES, st.floats(0.01, 1))
def test_a_fraction_keeps_exactly_its_share_and_nothing_better_than_what_it_drops(values: list[float], fraction: float) -> None:
    scores, names = np.array(values), uids(len(values))
    keep = select.keep_top(scores, names, fraction)
    assert keep.sum() == int(len(values) * fraction)
    if keep.any() and not keep.all():
        assert scores[keep].min() >= scores[~keep].max()
        assert scores[keep].min() == select.fraction_threshold(scores, fraction)
        tied = scores == scores[keep].min()
        kept_uids, dropped_uids = np.array(names)[tied & keep], np.array(names)[tied & ~keep]
        assert not len(dropped_uids) or max(kept_uids) < min(dropped_uids)


@settings(max_examples=40, deadline=None)
@given(SCORES, st.floats(0.01, 1), st.floats(0.01, 1), st.integers(0, 100))
def test_a_larger_fraction_keeps_a_superset_and_the_order_of_rows_is_nothing(values: list[float], one: float, two: float, seed: int) -> None:
    scores, names = np.array(values), np.array(uids(len(values)))
    small, large = (set(names[select.keep_top(scores, names.tolist(), f)]) for f in sorted((one, two)))
    assert small <= large
    shuffle = np.random.default_rng(seed).permutation(len(values))
    assert set(names[shuffle][select.keep_top(scores[shuffle], names[shuffle].tolist(), max(one, two))]) == large


def test_the_reference_keeps_one_more_and_all_ties() -> None:
    scores = np.array([0.9, 0.8, 0.7, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
    assert select.keep_top(scores, uids(10), 0.2, "reference").sum() == 4  # rank 2 counted from 0 is 0.7, twice
    assert select.keep_top(scores, uids(10), 0.2).sum() == 2


def ranked(scores: np.ndarray, names: list[str], fraction: float, mode: Literal["fixed", "reference"] = "fixed", block: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """(mask, thresholds) by a ranking over blocks, as a run over many rows goes about it."""
    ranking = select.Ranking(fraction, mode)
    blocks = [np.arange(start, min(start + block, len(scores))) for start in range(0, len(scores), block)]
    labels = np.array(names, dtype=object)
    for rows in blocks:
        ranking.count(labels[rows], scores[rows])
    for rows in blocks:
        ranking.collect(labels[rows], scores[rows], rows)
    parts = [ranking.decide(labels[rows], scores[rows], rows) for rows in blocks]
    return np.concatenate([keep for keep, _ in parts]), np.concatenate([threshold for _, threshold in parts])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.001, 1), st.sampled_from(["fixed", "reference"]), st.integers(1, 50))
def test_two_looks_over_blocks_keep_what_one_sort_keeps_ties_included(seed: int, fraction: float, mode: Literal["fixed", "reference"], block: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.choice([-1.5, -0.0, 0.0, 0.25, 0.2500001, 3e7, *rng.normal(size=5)], 40)  # few values: many ties
    names = rng.choice(["a", "b", ""], 40).tolist()
    keep, threshold = ranked(scores, names, fraction, mode, block)
    for name in set(names):
        rows = np.flatnonzero(np.array(names) == name)
        share = max(fraction, 1 / len(rows) + 1e-12)  # a name with any row keeps one
        assert keep[rows].tolist() == select.keep_top(scores[rows], [f"{row:02}" for row in rows], share, mode).tolist()
        assert (threshold[rows] == select.fraction_threshold(scores[rows], share, mode)).all()


def test_every_language_keeps_its_own_share_and_a_rare_one_keeps_its_best() -> None:
    lang = ["en"] * 10 + ["ko"] * 4 + ["ja"]
    scores = np.concatenate([np.linspace(0.5, 0.9, 10), [0.1, 0.2, 0.15, 0.05], [0.01]])
    keep, threshold = ranked(scores, lang, 0.5)
    assert np.flatnonzero(keep).tolist() == [5, 6, 7, 8, 9, 11, 12, 14]
    assert threshold[[0, 10, 14]] == pytest.approx([scores[5], 0.15, 0.01])
    everything, _ = ranked(scores, ["all"] * 15, 0.5)
    assert not everything[10:].any()


def test_uid_halves_are_sorted_as_128_bit_numbers() -> None:
    names = ["00000000000000020000000000000001", "0000000000000001ffffffffffffffff", "00000000000000020000000000000000"]
    assert select.uid_pairs(names).tolist() == [[1, 2**64 - 1], [2, 0], [2, 1]]


def test_a_long_centroid_attracts_more_as_in_datacomp() -> None:
    rows, centroids = np.array([[1.0, 0.2], [0.1, 1.0]]), np.array([[1.0, 0.0], [0.0, 8.0]])
    assert select.assign_centroids(rows, centroids).tolist() == [1, 1]
    assert select.assign_centroids(rows, centroids / np.linalg.norm(centroids, axis=1, keepdims=True)).tolist() == [0, 1]


def test_k_means_finds_well_separated_clusters_and_repeats_itself() -> None:
    rng = np.random.default_rng(0)
    centres = np.eye(4) * 10
    rows = (centres[:, None] + rng.normal(size=(4, 50, 4)) * 0.1).reshape(-1, 4).astype(np.float32)
    first, second = (select.kmeans(rows, 4, 20, seed=1, spherical=False) for _ in range(2))
    assert np.array_equal(first, second)
    ids = select.assign_centroids(rows, first).reshape(4, 50)
    assert all(len(set(row)) == 1 for row in ids.tolist())
    assert len(set(ids[:, 0])) == 4
    assert len(select.kmeans(rows, 1000, 2, seed=1, spherical=True)) == 200 // 39


def test_the_draw_depends_on_uid_and_seed_only_and_is_uniform() -> None:
    names = uids(20_000)
    draw = select.uniform(names, 7)
    assert np.array_equal(select.uniform(names[::-1], 7), draw[::-1])
    assert not np.array_equal(select.uniform(names, 8), draw)
    for p in (0.1, 0.5, 0.9):
        assert abs((draw < p).mean() - p) < 4 * np.sqrt(p * (1 - p) / 20_000)
