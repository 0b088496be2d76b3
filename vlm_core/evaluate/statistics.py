"""Intervals and tests for per-sample results. Comparisons are paired: the same samples, two models.

Checked by golden `evaluation/paired_statistics` (scipy.stats.binomtest, NumPy) and `transfer/seed_statistics` (CoOp parse_test_res.py).
"""
# N samples, R resamples

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, chdtrc, ndtri, stdtrit

from vlm_core.errors import DataError
from vlm_core.evaluate.metrics import Array, Ints

RESAMPLES = 10_000
BLOCK_CELLS = 4_000_000  # resampled values held at once


class Interval(NamedTuple):
    value: float
    low: float
    high: float


class McNemar(NamedTuple):
    n01: int  # a wrong, b right
    n10: int  # a right, b wrong
    exact_p: float
    chi2_cc: float  # with continuity correction
    p: float  # exact below 25 discordant pairs, else from chi2_cc


def mcnemar(correct_a: NDArray[np.bool_], correct_b: NDArray[np.bool_]) -> McNemar:
    """Do two classifiers differ on the same samples? Looks only at the samples on which they disagree."""
    same_length(correct_a, correct_b)
    n01, n10 = int((~correct_a & correct_b).sum()), int((correct_a & ~correct_b).sum())
    n = n01 + n10
    exact = min(1.0, 2 * float(bdtr(min(n01, n10), n, 0.5))) if n else 1.0  # symmetric, so both tails are equal
    statistic = (abs(n01 - n10) - 1) ** 2 / n if n else 0.0
    return McNemar(n01, n10, exact, statistic, exact if n < 25 else float(chdtrc(1, statistic)))


def same_length(a: Array, b: Array) -> None:
    if len(a) != len(b):
        raise DataError(f"Found {len(a):,} and {len(b):,} per-sample results, expected the same samples; an unpaired comparison is refused.")


def resamples(n: int, count: int = RESAMPLES, seed: int = 0) -> Ints:
    """(R, N) rows of sample numbers drawn with replacement."""
    return np.random.default_rng(seed).integers(0, n, (count, n), dtype=np.int32)


def paired_bootstrap(value_a: Array, value_b: Array, index_RN: Ints) -> tuple[Array, tuple[float, float]]:
    """((R,) mean(b) - mean(a) per resample, 95 % percentile interval)."""
    same_length(value_a, value_b)
    gain = np.asarray(value_b, float) - np.asarray(value_a, float)
    difference = gain[index_RN].mean(axis=1)
    low, high = np.percentile(difference, [2.5, 97.5])
    return difference, (float(low), float(high))


def bootstrap_mean(value_N: Array, count: int = RESAMPLES, seed: int = 0, clusters_N: NDArray[np.generic] | None = None) -> Interval:
    """Mean with a 95 % percentile interval; samples of one cluster (captions of one image) stay together.

    Works in blocks, so memory does not grow with the number of resamples.
    """
    total, size = _cluster_sums(np.asarray(value_N, float), clusters_N)
    rng, means = np.random.default_rng(seed), []
    block = max(1, BLOCK_CELLS // len(total))
    for start in range(0, count, block):
        index = rng.integers(0, len(total), (min(block, count - start), len(total)), dtype=np.int32)
        means.append(total[index].sum(axis=1) / size[index].sum(axis=1))
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return Interval(float(total.sum() / size.sum()), float(low), float(high))


def _cluster_sums(value_N: Array, clusters_N: NDArray[np.generic] | None) -> tuple[Array, Array]:
    if clusters_N is None:
        return value_N, np.ones(len(value_N))
    _, inverse = np.unique(clusters_N, return_inverse=True)
    return np.bincount(inverse, value_N), np.bincount(inverse).astype(float)


def bootstrap_metric(metric: Callable[[Ints], float], n: int, count: int = 1_000, seed: int = 0, clusters_N: NDArray[np.generic] | None = None) -> Interval:
    """Interval of a number that is not a mean (AUC, mAP, F1): `metric` gets the chosen sample numbers, whole clusters of them where there are clusters.

    Resamples where it is undefined are skipped.
    """
    rows_of = _Members(np.arange(n) if clusters_N is None else clusters_N)
    values = []
    for drawn in resamples(rows_of.clusters, count, seed):
        try:
            values.append(metric(rows_of(drawn)))
        except DataError:
            continue
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return Interval(metric(np.arange(n)), float(low), float(high))


class _Members:
    """Numbers of the samples in some clusters, repeated as these are."""

    def __init__(self, clusters_N: NDArray[np.generic]) -> None:
        _, inverse = np.unique(clusters_N, return_inverse=True)
        self.order, self.sizes = np.argsort(inverse, kind="stable"), np.bincount(inverse)
        self.first, self.clusters = np.cumsum(self.sizes) - self.sizes, len(self.sizes)

    def __call__(self, drawn: Ints) -> Ints:
        sizes = self.sizes[drawn]
        place = np.repeat(self.first[drawn] - (np.cumsum(sizes) - sizes), sizes) + np.arange(sizes.sum())
        return self.order[place]


def wilson(right: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Interval of a share, good for n >= 30 and for shares near 0 and 1."""
    z = ndtri(0.5 + level / 2)
    p = right / n
    centre, half = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return float((centre - half) / (1 + z**2 / n)), float((centre + half) / (1 + z**2 / n))


def holm(p: Array) -> Array:
    """Step-down adjusted p values of a family of tests, in the given order."""
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate((len(p) - np.arange(len(p))) * np.asarray(p, float)[order])
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(stepped, 1)
    return adjusted


def detectable_difference(discordance: float, n: int) -> float:
    """The smallest gain that a paired test on n samples finds with 80 % power, when this share of the pairs disagrees."""
    return float(np.sqrt(discordance * (1.96 + 0.84) ** 2 / n))


class SeedStatistics(NamedTuple):
    mean: float
    std: float  # population, as CoOp reports it
    ci95: float  # 1.96 std / sqrt(n): too narrow for three seeds
    t95: float  # half width of Student's t interval (sample deviation): the honest one


def seed_statistics(values: Array) -> SeedStatistics:
    """Noise between training seeds; another thing than the noise between samples."""
    n, std = len(values), float(np.std(values))
    half = float(stdtrit(n - 1, 0.975) * np.std(values, ddof=1) / np.sqrt(n)) if n > 1 else float("nan")
    return SeedStatistics(float(np.mean(values)), std, 1.96 * std / float(np.sqrt(n)), half)
