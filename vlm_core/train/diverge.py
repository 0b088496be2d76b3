"""When a run has gone wrong for good: a number that is none, or a loss that stays far above where it began."""

import math
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from vlm_core.checkpoint import newest_valid
from vlm_core.errors import NumericsError

IN_A_ROW = 5  # logged steps; a single bad batch is none


def check_finite(terms: Mapping[str, Tensor], step: int, saved: Path | None) -> None:
    """Raises NumericsError that names the step, the term and the last good checkpoint among those in `saved`."""
    for name, value in sorted(terms.items(), key=lambda item: item[0] == "loss"):  # a term says more than the sum
        if not bool(value.isfinite().all()):
            raise NumericsError(
                f"Found {float(value)} for {name.removeprefix('term.')!r} at step {step + 1}, expected a finite number; lower optim.lr or raise warmup_steps ({_last(saved)})."
            )


class Explosion:
    """A term that is `factor` times as large as chance behind the warm-up, several logged steps in a row.

    Chance: what the term was at the first logged step, when towers knew nothing, or ln(pairs of a batch), which is that of a contrastive loss, if that is more
    (the terms of ALIP and of a filling queue begin low).
    """

    def __init__(self, factor: float, batch_size: int, warmup: int) -> None:
        self.factor, self.chance, self.warmup = factor, math.log(batch_size), warmup
        self._first, self._since = dict[str, float](), dict[str, list[int]]()  # term -> its first value, the steps at which it was too large in a row

    def look(self, row: Mapping[str, float], saved: Path) -> None:
        """One logged row after the other. Raises NumericsError that names step, term and the last checkpoint from before."""
        for name, value in row.items():
            if not name.startswith("term."):
                continue
            bound = self.factor * max(self._first.setdefault(name, value), self.chance)
            wrong = self._since.setdefault(name, [])
            if value <= bound or row["step"] <= self.warmup:
                wrong.clear()
                continue
            wrong.append(int(row["step"]))
            if len(wrong) == IN_A_ROW:
                raise NumericsError(
                    f"Found {value:,.1f} for {name.removeprefix('term.')!r} at step {wrong[-1]}, above {bound:,.1f} since step {wrong[0]}, expected a loss that falls from "
                    f"{self._first[name]:,.1f}; lower optim.lr or raise warmup_steps, or set fit.explodes=null ({_last(saved, wrong[0])})."
                )


def _last(saved: Path | None, before: int | None = None) -> str:
    found = newest_valid(saved, before) if saved is not None else None
    return f"the last good checkpoint is {found}" if found else "there is no checkpoint from before" if before else "there is no checkpoint yet"
