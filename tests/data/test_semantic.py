"""SemDeDup beyond the borders of clusters, and without chains."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_core.data.filter import dedup
from vlm_core.data.filter import select
from vlm_core.data.filter import semantic

EPS = 0.03


def planted(seed: int, n: int = 300, width: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """(unit rows, of which half are another one with noise; unit centroids)."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n, width))
    rows[n // 2 :] = rows[rng.integers(0, n // 2, n - n // 2)] + rng.uniform(0, 0.4, (n - n // 2, 1)) * rng.normal(size=(n - n // 2, width))
    centroids = rng.normal(size=(9, width))
    rows, centroids = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (rows, centroids))
    return rows.astype(np.float32), centroids.astype(np.float32)


def brute(rows: np.ndarray, order: np.ndarray) -> np.ndarray:
    """The largest cosine of each row with any earlier one."""
    sims = rows[order] @ rows[order].T
    out = np.empty(len(rows), np.float32)
    out[order] = np.maximum(np.tril(sims, -1).max(axis=1), 0)
    return out


@pytest.mark.parametrize("keep", ["hard", "easy"])
def test_in_its_own_cluster_a_row_meets_what_the_reference_shows_it(keep: str) -> None:
    rows, centroids = planted(1)
    own = select.assign_centroids(rows, centroids)
    order = semantic.visiting_order(rows, centroids, own, keep)  # type: ignore[arg-type]
    _, expected = dedup.semdedup(rows, centroids, own, keep)  # type: ignore[arg-type]
    assert semantic.largest_earlier(rows, own[:, None], order) == pytest.approx(expected, abs=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_visiting_every_cluster_is_comparing_all_with_all(seed: int) -> None:
    rows, centroids = planted(seed, 120)
    nearest = semantic.nearest_clusters(rows, centroids, len(centroids))
    order = semantic.visiting_order(rows, centroids, nearest[:, 0], "hard")
    assert semantic.largest_earlier(rows, nearest, order) == pytest.approx(brute(rows, order), abs=1e-6)


def test_two_more_clusters_find_duplicates_that_a_border_parts() -> None:
    found, total = np.zeros(3), 0
    for seed in range(8):
        rows, centroids = planted(seed)
        nearest = semantic.nearest_clusters(rows, centroids, 3)
        order = semantic.visiting_order(rows, centroids, nearest[:, 0], "hard")
        truth = brute(rows, order) > 1 - EPS
        total += truth.sum()
        for visits in (1, 2, 3):
            largest = semantic.largest_earlier(rows, nearest[:, :visits], order)
            assert not (largest > 1 - EPS)[~truth].any()
            found[visits - 1] += (largest > 1 - EPS)[truth].sum()
    recall = found / total
    assert recall[0] < 0.96 < 0.99 <= recall[1] <= recall[2]
    assert recall[2] >= 0.995


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 3))
def test_greedy_keeps_no_two_that_met_as_duplicates_and_drops_none_without_a_survivor(seed: int, visits: int) -> None:
    rows, centroids = planted(seed, 120)
    nearest = semantic.nearest_clusters(rows, centroids, visits)
    order = semantic.visiting_order(rows, centroids, nearest[:, 0], "hard")
    survivor = semantic.greedy_survivors(rows, nearest, order, 1 - EPS)
    stays = survivor == np.arange(len(rows))
    assert stays[survivor].all()
    place = np.argsort(order)
    assert (place[survivor[~stays]] < place[~stays]).all()
    assert ((rows * rows[survivor]).sum(axis=1)[~stays] > 1 - EPS).all()
    for first, second, cosines in semantic.meetings(rows, nearest):
        both = stays[first][:, None] & stays[second][None, :] & (first[:, None] != second[None, :])
        assert not (cosines[both] > 1 - EPS).any()
    reference = semantic.largest_earlier(rows, nearest, order) > 1 - EPS
    assert (~stays <= reference).all()


def test_the_far_end_of_a_chain_stays_with_greedy_and_goes_with_the_reference() -> None:
    angles = np.array([0.0, 0.2, 0.4])  # neighbours have cosine 0.980, the ends 0.921
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    nearest, order = np.zeros((3, 1), np.int64), np.arange(3)
    assert semantic.greedy_survivors(rows, nearest, order, 1 - EPS).tolist() == [0, 0, 2]
    assert (semantic.largest_earlier(rows, nearest, order) > 1 - EPS).tolist() == [False, True, True]
