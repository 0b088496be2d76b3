"""Two evaluations of the same protocol, sample by sample."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vlm_core.errors import DataError, Incompatible, MissingInput
from vlm_core.evaluate.card import ProtocolCard, read_cards, require_same
from vlm_core.evaluate.metrics import Array
from vlm_core.evaluate.statistics import BLOCK_CELLS, RESAMPLES, detectable_difference, holm, mcnemar


class Comparison(NamedTuple):
    """b minus a on one suite. `p_holm` accounts for all suites that were looked at together."""

    suite: str  # dataset/task/metric
    card_id: str
    n: int
    a: float
    b: float
    difference: float
    ci_low: float
    ci_high: float
    p: float
    p_holm: float
    detectable: float  # smallest gain that these samples, in their groups and with this discordance, find with 80 % power


Key = tuple[str, str, str]  # dataset, task, metric


def compare(a_dir: Path, b_dir: Path, resamples: int = RESAMPLES, seed: int = 0) -> list[Comparison]:
    """Paired differences of two evaluation folders, on every suite that both have.

    Raises Incompatible if a suite was measured under two protocol cards, or if the folders have no suite in common.
    """
    left, right = read_suites(a_dir), read_suites(b_dir)
    shared = sorted(set(left) & set(right))
    if not shared:
        raise Incompatible(f"Found no suite that both {a_dir} and {b_dir} measured, expected at least one; evaluate both models on the same test sets.")
    rows = [_pair(key, left[key], right[key], resamples, seed) for key in shared]
    return [row._replace(p_holm=float(p)) for row, p in zip(rows, holm(np.array([row.p for row in rows])), strict=True)]


class Suite(NamedTuple):
    card: ProtocolCard
    value: dict[str, float]  # sample -> mean over seeds
    group: dict[str, str]


def read_suites(folder: Path) -> dict[Key, Suite]:
    """What an evaluation says about every sample, by suite. Raises MissingInput or DataError."""
    if not (folder / "predictions.parquet").exists():
        raise MissingInput(f"Found no predictions.parquet in {folder}, expected an evaluation with per-sample results; run 'vlm evaluate' first.")
    cards = read_cards(folder / "cards")
    table = pq.read_table(folder / "predictions.parquet")
    keys = ["dataset", "task", "metric", "card_id"]
    suites: dict[Key, Suite] = {}
    for key in table.select(keys).group_by(keys).aggregate([]).to_pylist():
        part = table.filter(pc.and_(pc.equal(table["card_id"], key["card_id"]), pc.equal(table["metric"], key["metric"])))
        mean = part.group_by("sample_id").aggregate([("correct", "mean"), ("group", "min")])
        name = (key["dataset"], key["task"], key["metric"])
        if name in suites:
            raise DataError(f"Found two protocol cards for {'/'.join(name)} in {folder}, expected one; compare folders of one protocol.")
        ids = mean["sample_id"].to_pylist()
        suites[name] = Suite(
            cards[key["card_id"]], dict(zip(ids, mean["correct_mean"].to_pylist(), strict=True)), dict(zip(ids, mean["group_min"].to_pylist(), strict=True))
        )
    return suites


def _pair(key: Key, a: Suite, b: Suite, resamples: int, seed: int) -> Comparison:
    require_same(a.card, b.card)
    if a.value.keys() != b.value.keys():
        raise Incompatible(
            f"Found {len(a.value):,} and {len(b.value):,} samples of {'/'.join(key)} that are not the same, expected the same; an unpaired comparison is refused."
        )
    ids = sorted(a.value)
    x, y = (np.array([side.value[i] for i in ids]) for side in (a, b))
    groups = np.array([a.group[i] or i for i in ids])
    low, high, p = _gain(y - x, groups, resamples, seed)
    _, inverse = np.unique(groups, return_inverse=True)
    if inverse.max() + 1 == len(ids) and np.isin((x, y), (0, 1)).all():
        p = mcnemar(x == 1, y == 1).p  # exact; it takes samples for independent, so only where each is a group of its own
    discordance = float((np.bincount(inverse, y - x) ** 2).sum() / len(ids))  # of independent samples: the share on which the two differ
    return Comparison(
        "/".join(key),
        a.card.id,
        len(ids),
        float(x.mean()),
        float(y.mean()),
        float((y - x).mean()),
        low,
        high,
        p,
        p,
        detectable_difference(discordance, len(ids)),
    )


def _gain(gain_N: Array, group_N: Array, resamples: int, seed: int) -> tuple[float, float, float]:
    """95 % interval and two-sided p of the mean gain, from resampled groups (pictures of one group stay together)."""
    _, inverse = np.unique(group_N, return_inverse=True)
    total, size = np.bincount(inverse, gain_N), np.bincount(inverse)
    rng, means = np.random.default_rng(seed), []
    block = max(1, BLOCK_CELLS // len(total))
    for start in range(0, resamples, block):
        index = rng.integers(0, len(total), (min(block, resamples - start), len(total)), dtype=np.int32)
        means.append(total[index].sum(axis=1) / size[index].sum(axis=1))
    drawn = np.concatenate(means)
    low, high = np.percentile(drawn, [2.5, 97.5])
    tail = (1 + min((drawn <= 0).sum(), (drawn >= 0).sum())) / (1 + resamples)
    return float(low), float(high), float(min(1.0, 2 * tail))
