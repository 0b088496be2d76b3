"""Intervals and tests against hand computation and against what they promise."""

import numpy as np
import pytest
from scipy.stats import binom

from vlm_core.errors import DataError
from vlm_core.evaluate import statistics


def test_mcnemar_of_five_against_one_is_seven_thirtyseconds() -> None:
    a, b = np.array([False] * 5 + [True] * 5), np.array([True] * 5 + [False] + [True] * 4)
    found = statistics.mcnemar(a, b)
    assert (found.n01, found.n10) == (5, 1)
    assert found.exact_p == pytest.approx(2 * binom.cdf(1, 6, 0.5)) == pytest.approx(7 / 32)
    assert found.p == found.exact_p


def test_equal_models_are_not_different() -> None:
    same = np.array([True, False, True])
    assert statistics.mcnemar(same, same).p == 1


def test_results_of_other_samples_are_refused() -> None:
    with pytest.raises(DataError, match="Found 3 and 4 per-sample results"):
        statistics.mcnemar(np.ones(3, bool), np.ones(4, bool))
    with pytest.raises(DataError, match="unpaired comparison is refused"):
        statistics.paired_bootstrap(np.ones(3), np.ones(4), np.zeros((2, 3), int))


def test_wilson_of_none_in_ten_reaches_up_to_28_percent() -> None:
    low, high = statistics.wilson(0, 10)
    assert low == pytest.approx(0, abs=1e-12)
    assert high == pytest.approx(1.959964**2 / (10 + 1.959964**2), rel=1e-5)


def test_holm_steps_down_and_never_changes_the_order_of_significance() -> None:
    np.testing.assert_allclose(statistics.holm(np.array([0.01, 0.04, 0.03])), [0.03, 0.06, 0.06])
    assert statistics.holm(np.array([0.9, 0.8])).max() == 1


def test_the_bootstrap_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        interval = statistics.bootstrap_mean((random.random(100) < 0.3).astype(float), 1_000, trial)
        hits += interval.low <= 0.3 <= interval.high
    assert 180 <= hits <= 199


def test_samples_of_one_cluster_stay_together_so_copies_do_not_narrow_the_interval() -> None:
    value = (np.random.default_rng(0).random(60) < 0.5).astype(float)
    once = statistics.bootstrap_mean(value, 4_000)
    copied = statistics.bootstrap_mean(np.repeat(value, 5), 4_000, clusters_N=np.repeat(np.arange(60), 5))
    naive = statistics.bootstrap_mean(np.repeat(value, 5), 4_000)
    assert copied == pytest.approx(once)
    assert naive.high - naive.low < 0.6 * (once.high - once.low)


def test_a_metric_of_copies_has_the_interval_of_the_originals_when_copies_stay_together() -> None:
    value = (np.random.default_rng(1).random(40) < 0.5).astype(float)
    copies, names = np.repeat(value, 6), np.repeat([f"g{n:02}" for n in range(40)], 6)
    once = statistics.bootstrap_metric(lambda chosen: float(value[chosen].mean()), 40, 1_000)
    copied = statistics.bootstrap_metric(lambda chosen: float(copies[chosen].mean()), 240, 1_000, 0, names)
    naive = statistics.bootstrap_metric(lambda chosen: float(copies[chosen].mean()), 240, 1_000)
    assert copied == pytest.approx(once)
    assert naive.high - naive.low < 0.6 * (once.high - once.low)


def test_clusters_of_different_sizes_are_drawn_whole() -> None:
    """Clusters a (rows 0, 2, 3) and b (row 1): every resample holds a's rows equally often."""
    seen = set()

    def counted(chosen: np.ndarray) -> float:
        counts = np.bincount(chosen, minlength=4)
        assert counts[0] == counts[2] == counts[3]
        seen.add((int(counts[0]), int(counts[1])))
        return 0.0

    statistics.bootstrap_metric(counted, 4, 200, 0, np.array(["a", "b", "a", "a"]))
    assert seen == {(2, 0), (1, 1), (0, 2)}


def test_a_metric_that_some_resamples_leave_undefined_still_has_an_interval() -> None:
    def first_kind_only(chosen: np.ndarray) -> float:
        if (chosen == 0).all():
            raise DataError("undefined here")
        return float(chosen.mean())

    found = statistics.bootstrap_metric(first_kind_only, 3, 1_000)
    assert found.value == 1
    assert 0 < found.low <= found.high <= 2


def test_the_detectable_difference_is_that_of_the_platform_sheet() -> None:
    """PLATFORM 9: a tenth discordant, 3,669 samples: 1.46 points; 10,000: 0.89; 50,000: 0.40."""
    assert [round(100 * statistics.detectable_difference(0.1, n), 2) for n in (3_669, 10_000, 50_000)] == [1.46, 0.89, 0.40]


def test_three_seeds_get_students_interval_beside_the_too_narrow_one() -> None:
    found = statistics.seed_statistics(np.array([0.5, 0.6, 0.7]))
    assert found.t95 == pytest.approx(4.302653 * 0.1 / np.sqrt(3), rel=1e-5)
    assert found.ci95 < found.t95
    assert np.isnan(statistics.seed_statistics(np.array([0.5])).t95)
