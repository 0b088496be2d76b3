"""A loss that explodes without a NaN: named with step, term and the last checkpoint from before, and let off where it is a moment or a warm-up."""

from pathlib import Path

import pytest
import torch

from vlm_core.errors import NumericsError
from vlm_core.train.diverge import Explosion

FINE, WRONG = 4.0, 20.0  # ln(64) = 4.16, three times that 12.5


def rows(*losses: float) -> list[dict[str, float]]:
    return [{"step": 10.0 * place, "loss": 99.0, "term.contrast": value, "scale": 100.0} for place, value in enumerate(losses, 1)]


def look(explosion: Explosion, losses: list[float], folder: Path) -> None:
    for row in rows(*losses):
        explosion.look(row, folder)


def test_five_rows_in_a_row_end_the_run_and_name_the_checkpoint_from_before_the_first(tmp_path: Path) -> None:
    for step in (25, 35, 80):
        torch.save({"state_dict": {"w": torch.ones(1)}}, tmp_path / f"step-{step:08d}.ckpt")
    with pytest.raises(
        NumericsError, match=r"Found 20.0 for 'contrast' at step 80, above 12.5 since step 40, .* the last good checkpoint is|checkpoint is .*step-00000035"
    ):
        look(Explosion(3.0, 64, 0), [FINE, FINE, FINE, *[WRONG] * 5], tmp_path)


def test_a_few_bad_steps_a_warm_up_and_a_run_that_begins_high_are_let_off(tmp_path: Path) -> None:
    look(Explosion(3.0, 64, 0), [FINE, WRONG, WRONG, WRONG, WRONG, FINE, WRONG, WRONG], tmp_path)
    look(Explosion(3.0, 64, 100), [FINE, *[WRONG] * 9], tmp_path)
    look(Explosion(3.0, 64, 0), [10.0, *[29.0] * 9], tmp_path)  # words over a large vocabulary, weighted twice


def test_a_term_that_begins_near_zero_is_measured_by_the_batch(tmp_path: Path) -> None:
    look(Explosion(3.0, 64, 0), [0.01, *[12.0] * 9], tmp_path)
    with pytest.raises(NumericsError, match="there is no checkpoint from before"):
        look(Explosion(3.0, 64, 0), [0.01, *[13.0] * 5], tmp_path)
