"""Schedules and steps: what a learning rate is at a step, and how many steps a run has."""

import pytest

from vlm_core.errors import ConfigError
from vlm_core.train.config import Fit, Optim
from vlm_core.train.optim import share_of_lr, steps_of


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"schedule": "cosine", "warmup_steps": 2}, [0.5, 1.0, 1.0, 0.9619397663, 0.8535533906, 0.6913417162, 0.5, 0.3086582838, 0.1464466094, 0.0380602337]),
        ({"schedule": "linear", "warmup_steps": 2}, [0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]),
        ({"schedule": "constant", "warmup_share": 0.4, "cooldown_share": 0.3}, [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 2 / 3, 1 / 3]),
        ({"schedule": "constant", "warmup_steps": 0}, [1.0] * 10),
        ({"schedule": "linear", "warmup_steps": 100}, [0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]),  # no more than a fifth of the run
    ],
)
def test_the_rate_rises_stays_and_falls_as_the_schedule_says(settings: dict[str, object], expected: list[float]) -> None:
    config = Optim.read(settings)
    assert [share_of_lr(step, 10, config) for step in range(10)] == pytest.approx(expected)


@pytest.mark.parametrize(("samples", "batch", "steps"), [(1000, 100, 10), (1000, 128, 8), (1000, 64, 16), (10, 64, 1)])
def test_a_run_by_samples_has_the_same_pairs_whatever_the_batch(samples: int, batch: int, steps: int) -> None:
    fit = Fit(samples=samples, epochs=7)
    assert steps_of(fit, batch, steps_per_epoch=3) == steps
    assert samples < batch or abs(steps * batch - samples) <= batch / 2
    assert steps_of(Fit(epochs=7), batch, steps_per_epoch=3) == 21


def test_shares_that_exceed_the_run_or_fall_twice_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"Found cooldown_share 0.2 with the schedule 'cosine', which falls by itself, expected 0"):
        Optim.read({"cooldown_share": 0.2})
    with pytest.raises(ConfigError, match=r"Found warmup_share 0.6 and cooldown_share 0.5, expected at most 1 together"):
        Optim.read({"schedule": "constant", "warmup_share": 0.6, "cooldown_share": 0.5})
