"""Linear probes: logistic regression on frozen features, and how its strength is chosen on validation data.

Sources: arXiv 2103.00020 appendix A.3 (L-BFGS, C by a search over strengths at eight a decade); KaiyangZhou/CoOp lpclip/linear_probe.py (few-shot search).
Checked by golden `evaluation/linear_probe_lbfgs` and `transfer/linear_probe_l2_search`.
"""
# N samples, D width, C classes

import warnings
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from vlm_core.evaluate.metrics import Array, Ints

PER_DECADE = 8  # strengths of CLIP's sweep
COARSE = (1e6, 1e4, 1e2, 1.0, 1e-2, 1e-4, 1e-6)


def linear_probe(train_x: Array, train_y: Ints, c: float, max_iter: int = 1000, tol: float = 1e-4) -> LogisticRegression:
    """Minimise 0.5 |w|^2 + c * SUM of cross-entropy; the intercept is free."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a weak penalty on few samples has no finite optimum: the cap is the protocol
        return LogisticRegression(C=c, max_iter=max_iter, tol=tol).fit(train_x, train_y)


def accuracy(probe: LogisticRegression, x: Array, y: Ints) -> float:
    return float((probe.predict(x) == y).mean())


class Probe(NamedTuple):
    model: LogisticRegression
    c: float
    val_accuracy: float


def choose(train_x: Array, train_y: Ints, val_x: Array, val_y: Ints, grid: Sequence[float], max_iter: int = 1000) -> Probe:
    """The grid's best on validation data, refitted on training and validation data together. Ties: the stronger penalty."""
    scored = [(accuracy(linear_probe(train_x, train_y, c, max_iter), val_x, val_y), -c) for c in grid]
    best, minus_c = max(scored)
    model = linear_probe(np.concatenate([train_x, val_x]), np.concatenate([train_y, val_y]), -minus_c, max_iter)
    return Probe(model, -minus_c, best)


def sweep(train_x: Array, train_y: Ints, val_x: Array, val_y: Ints, max_iter: int = 1000) -> Probe:
    """CLIP's search over 1e-6 .. 1e6 at eight strengths a decade: seven coarse ones, then the interval around the best is halved down to neighbours; refitted on
    training and validation data together. Ties: the stronger penalty. At most 15 of the 97 strengths are fitted.
    """
    known: dict[int, float] = {}

    def score(place: int) -> tuple[float, int]:
        if place not in known:
            known[place] = accuracy(linear_probe(train_x, train_y, strength(place), max_iter), val_x, val_y)
        return known[place], -place

    end, step = 6 * PER_DECADE, 2 * PER_DECADE
    best = max(range(-end, end + 1, step), key=score)
    while step > 1:
        step //= 2
        best = max((place for place in (best - step, best, best + step) if abs(place) <= end), key=score)
    model = linear_probe(np.concatenate([train_x, val_x]), np.concatenate([train_y, val_y]), strength(best), max_iter)
    return Probe(model, strength(best), known[best])


def strength(place: int) -> float:
    """C at a place of CLIP's lattice."""
    return float(10.0 ** (place / PER_DECADE))


def search(train_x: Array, train_y: Ints, val_x: Array, val_y: Ints, steps: int = 8, max_iter: int = 1000) -> Iterator[Probe]:
    """CoOp's few-shot search: seven coarse strengths, then `steps` halvings in log space towards the better side (ties: left).

    Yields the better probe of every step; the last one is the result. It is the probe of that side, not a refit.
    """
    coarse = coarse_accuracies(train_x, train_y, val_x, val_y, max_iter)
    yield from bisect(COARSE[int(np.argmax(coarse))], train_x, train_y, val_x, val_y, steps, max_iter)


def coarse_accuracies(train_x: Array, train_y: Ints, val_x: Array, val_y: Ints, max_iter: int = 1000) -> list[float]:
    """Validation accuracy of the seven coarse strengths."""
    return [accuracy(linear_probe(train_x, train_y, c, max_iter), val_x, val_y) for c in COARSE]


def bisect(peak: float, train_x: Array, train_y: Ints, val_x: Array, val_y: Ints, steps: int = 8, max_iter: int = 1000) -> Iterator[Probe]:
    """The steps of the search around a coarse peak."""
    left, right = 1e-1 * peak, 1e1 * peak
    for _ in range(steps):
        low, high = (_scored(train_x, train_y, val_x, val_y, c, max_iter) for c in (left, right))
        middle = 0.5 * (np.log10(right) + np.log10(left))
        if low.val_accuracy < high.val_accuracy:
            left, right = float(np.power(10, middle)), float(np.power(10, np.log10(right)))
            yield high
        else:
            left, right = float(np.power(10, np.log10(left))), float(np.power(10, middle))
            yield low


def _scored(train_x: Array, train_y: Ints, val_x: Array, val_y: Ints, c: float, max_iter: int) -> Probe:
    model = linear_probe(train_x, train_y, c, max_iter)
    return Probe(model, c, accuracy(model, val_x, val_y))
