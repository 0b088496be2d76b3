"""Schedules and steps: what a learning rate is at a step, and how many steps a run has."""

import pytest

from tests.train.tiny import small
from vlm_core.errors import ConfigError
from vlm_core.train.body import Body
from vlm_core.train.config import Fit, Optim
from vlm_core.train.optim import groups, share_of_lr, steps_of
from vlm_core.train.pretrain import first_objectives, first_towers


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"schedule": "cosine", "warmup_steps": 2}, [0.5, 1.0, 1.0, 0.9619397663, 0.8535533906, 0.6913417162, 0.5, 0.3086582838, 0.1464466094, 0.0380602337]),
        ({"schedule": "linear", "warmup_steps": 2}, [0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]),
        ({"schedule": "constant", "warmup_share": 0.4, "cooldown_share": 0.3}, [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 2 / 3, 1 / 3]),
        ({"schedule": "constant", "warmup_steps": 0}, [1.0] * 10),
        ({"schedule": "linear", "warmup_steps": 0, "floor": 0.2}, [1.0, 0.92, 0.84, 0.76, 0.68, 0.6, 0.52, 0.44, 0.36, 0.28]),
        (
            {"schedule": "cosine", "warmup_steps": 2, "floor": 0.5},
            [0.5, 1.0, 1.0, 0.98096988, 0.92677670, 0.84567086, 0.75, 0.65432914, 0.57322330, 0.51903012],
        ),
        ({"schedule": "steps", "warmup_steps": 2, "milestones": [0.5, 0.8]}, [0.5, 1.0, 1.0, 1.0, 1.0, 0.1, 0.1, 0.1, 0.01, 0.01]),
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


def test_milestones_floors_and_rates_that_say_nothing_are_refused() -> None:
    for wrong in ({"schedule": "steps"}, {"milestones": [0.5]}, {"schedule": "steps", "milestones": [0.9, 0.5]}, {"schedule": "steps", "milestones": [1.5]}):
        with pytest.raises(ConfigError, match="Found milestones"):
            Optim.read(wrong)
    with pytest.raises(ConfigError, match="Found floor 0.1 with the schedule 'constant', expected cosine or linear"):
        Optim.read({"schedule": "constant", "floor": 0.1})
    with pytest.raises(ConfigError, match=r"Found the rate 0.1 for 'texts', expected 0 or more for a part of the model; did you mean 'text'"):
        Optim.read({"rates": {"texts": 0.1}})


def test_a_part_learns_at_its_own_rate_and_all_others_at_lr() -> None:
    config = small("objectives.moco={hidden: 16, width: 8, queue: 64}", "optim.rates={text: 0.1, objectives: 5}", "optim.lr=0.01")
    model = first_towers(config, "")
    body = Body(model, *first_objectives(config, model), config.objectives.needs)
    rate = {id(value): group["lr"] for group in groups(body, config.optim) for value in group["params"]}
    for name, value in body.named_parameters():
        if value.requires_grad:
            expected = {"towers.text": 0.001, "objectives": 0.05}.get(name.rpartition("towers.text.")[1].rstrip(".") or name.partition(".")[0], 0.01)
            assert rate[id(value)] == pytest.approx(expected), name
