"""Champion or challenger: the rule by which a model moves up (PLATFORM 9). A pure function of two stored evaluations."""

from pathlib import Path
from typing import Literal, NamedTuple

from vlm_core.errors import ConfigError, Incompatible, did_you_mean
from vlm_core.evaluate.compare import Comparison, compare
from vlm_core.evaluate.statistics import RESAMPLES

Outcome = Literal["promote", "keep", "cannot_tell", "refused"]


class Verdict(NamedTuple):
    outcome: Outcome
    reason: str  # one sentence
    rows: list[Comparison]

    @property
    def promotes(self) -> bool:
        return self.outcome == "promote"


def gate(
    challenger: Path, champion: Path | None, *, primary: str = "heldout/matching/auc", margin: float = 0.02, cheaper_by: float = 0.0,
    resamples: int = RESAMPLES, seed: int = 0,
) -> Verdict:  # fmt: skip
    """Whether the challenger becomes champion.

    Args:
        challenger: evaluation folder (`vlm evaluate`) of the new model.
        champion: that of the registered best; None where there is none yet.
        primary: the suite (dataset/task/metric) that decides; all others guard.
        margin: what may be lost on a guard, and on the primary by a cheaper model; in the units of the metrics.
        cheaper_by: share of cost, size or latency that the challenger saves (0.1 is 10 %).
        resamples: of the paired bootstrap.
        seed: of the resampling.
    """
    if champion is None:
        return Verdict("promote", "There is no champion yet, so the first model that was measured takes its place.", [])
    try:
        rows = compare(champion, challenger, resamples, seed)
    except Incompatible as error:
        return Verdict("refused", str(error), [])
    return decide(rows, primary=primary, margin=margin, cheaper_by=cheaper_by)


def decide(rows: list[Comparison], *, primary: str, margin: float, cheaper_by: float = 0.0) -> Verdict:
    """The rule itself, on paired differences (challenger minus champion)."""
    by_suite = {row.suite: row for row in rows}
    if primary not in by_suite:
        raise ConfigError(f"Found no suite {primary!r} in both evaluations, expected the one that decides; {did_you_mean(primary, by_suite)}")
    worse = [row for row in rows if row.suite != primary and row.ci_high < -margin]
    main = by_suite[primary]
    measured = f"{primary} {main.difference:+.4f} [{main.ci_low:+.4f}, {main.ci_high:+.4f}], n {main.n:,}, p {main.p_holm:.3g} after Holm"
    if worse:
        names = ", ".join(f"{row.suite} {row.difference:+.4f} (at most {row.ci_high:+.4f})" for row in worse)
        return Verdict("keep", f"The champion stays: guards lose more than {margin:g}: {names}; {measured}.", rows)
    if main.ci_low > 0:
        return Verdict("promote", f"The challenger is better: {measured}.", rows)
    if main.ci_low > -margin and cheaper_by >= 0.1:
        return Verdict("promote", f"The challenger is not worse by {margin:g} or more and saves {cheaper_by:.0%}: {measured}.", rows)
    if main.ci_high > 0 and main.detectable > margin:
        return Verdict("cannot_tell", f"The champion stays: {main.n:,} samples show gains of {main.detectable:.4f} or more only; {measured}.", rows)
    return Verdict("keep", f"The champion stays: no gain was shown; {measured}.", rows)
