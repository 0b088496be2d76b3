"""Effective robustness: how far a model lies above what its in-distribution accuracy predicts.

Source: imagenet-testbed plotting/plotter.py. Checked by golden `evaluation/effective_robustness`.
"""

from typing import Literal, NamedTuple

from scipy.special import expit, logit
from scipy.stats import linregress, norm

from vlm_core.evaluate.metrics import Array

Scale = Literal["linear", "logit", "probit"]


class Robustness(NamedTuple):
    slope: float
    intercept: float
    r2: float
    expected: Array  # percent
    gain: Array  # percentage points above the expectation


def effective_robustness(baseline_id: Array, baseline_ood: Array, model_id: Array, model_ood: Array, scale: Scale = "logit") -> Robustness:
    """Fit ood = f(id) on baselines (percentages, at least 20, without the models under test), then measure the distance to the line."""
    there = {"linear": lambda p: p, "logit": lambda p: logit(p / 100), "probit": lambda p: norm.ppf(p / 100)}[scale]
    back = {"linear": lambda z: z, "logit": lambda z: 100 * expit(z), "probit": lambda z: 100 * norm.cdf(z)}[scale]
    fit = linregress(there(baseline_id), there(baseline_ood))
    expected = back(fit.slope * there(model_id) + fit.intercept)
    return Robustness(float(fit.slope), float(fit.intercept), float(fit.rvalue**2), expected, model_ood - expected)
