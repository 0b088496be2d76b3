"""`vlm compare-models`: evaluations of several models -> who beats the base, suite by suite, with intervals over test samples and training seeds.

Input `evaluations.MODEL@SEED` is a folder of 'vlm evaluate'. Nothing ranks across protocol cards: a suite that a model was measured on under another card
has its value and no difference. In a race of recipes (`pairs_on: data`) the model's own input is part of what is compared, and only the cards' data must be equal.

OUT/leaderboard.parquet  one row per suite and model        OUT/leaderboard.md, leaderboard.png  the same for people
"""
# S seeds, N samples, C groups of samples

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.stats import t as student

from vlm_core.errors import ConfigError, Incompatible, did_you_mean
from vlm_core.evaluate import board
from vlm_core.evaluate.compare import Key, Suite, read_suites
from vlm_core.evaluate.config import CompareModels
from vlm_core.evaluate.metrics import Array
from vlm_core.evaluate.statistics import holm
from vlm_core.stage import Report, Stage

SUMMARIES = ("mean_recall", "mean_per_class_recall")  # of metrics that have rows of their own
Runs = dict[str, dict[Key, Suite]]  # seed -> what that run measured


class Estimate(NamedTuple):
    """A mean over seeds and samples."""

    value: float
    low: float
    high: float
    p: float  # two-sided, of being 0


def compare_models(config: CompareModels, stage: Stage) -> Report:
    """The verb. Raises ConfigError when the base is not among the models."""
    models = read_models(stage.inputs)
    if config.base not in models:
        raise ConfigError(f"Found no evaluation of the base {config.base!r}, expected one; {did_you_mean(config.base, models)}")
    rows = rank(models, config.base, config.candidates, config.pairs_on)
    rows += wholes(stage.inputs, config.base, {row["suite"] for row in rows})
    if not any(row["suite"] == config.primary for row in rows):
        raise ConfigError(
            f"Found no suite {config.primary!r} in these evaluations, expected the one that orders the table; {did_you_mean(config.primary, {row['suite'] for row in rows})}"
        )
    rows.sort(key=lambda row: (row["suite"] != config.primary, row["suite"], -row["value"], row["model"]))
    pq.write_table(pa.Table.from_pylist(rows, board.SCHEMA), stage.out / "leaderboard.parquet")
    (stage.out / "leaderboard.md").write_text(board.markdown(config, rows))
    for folder in (stage.out, stage.pictures):  # the page shows it, and so does the UI
        board.draw(folder / "leaderboard.png", config, rows)
    stage.tracker.artefact(stage.out / "leaderboard.md")
    return _report(config, rows, models)


def _report(config: CompareModels, rows: list[dict[str, Any]], models: Mapping[str, Runs]) -> Report:
    first = [row for row in rows if row["suite"] == config.primary]
    said = {f"{row['suite']}/{row['model']}": row["value"] for row in rows if board.is_shown(row["suite"], config.primary)}
    gains = {
        f"gain/{row['suite']}/{row['model']}": row["difference"]
        for row in rows
        if row["difference"] is not None and board.is_shown(row["suite"], config.primary)
    }
    shown = list(dict.fromkeys(row["suite"] for row in rows if board.is_shown(row["suite"], config.primary)))
    return Report(
        counts={"models": len(models), "runs": sum(len(runs) for runs in models.values()), **{f"verdict.{name}": sum(row["verdict"] == name for row in first) for name in board.VERDICTS}},
        metrics={**said, **gains},
        tables={suite.replace("/", " "): [board.plain(row) for row in rows if row["suite"] == suite] for suite in shown},
        pictures={"Differences from the base with 95 % intervals": "leaderboard.png"},
    )  # fmt: skip


def wholes(inputs: Mapping[str, Path], base: str, paired: Collection[str]) -> list[dict[str, Any]]:
    """Rows of metrics that are no mean over samples (mIoU, AP): means over seeds of values and of the ends of their intervals, without a difference."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for name, folder in inputs.items():
        model = name.partition(".")[2].rpartition("@")[0]
        for row in pq.read_table(folder / "metrics.parquet").to_pylist():
            suite = f"{row['dataset']}/{row['task']}/{row['metric']}"
            if suite not in paired and row["metric"] not in SUMMARIES:
                found[suite, model].append(row)
    return [
        {**_empty(suite, model, rows[0]["card_id"], len(rows), rows[0]["n"]), "verdict": "base" if model == base else "not_paired",
         **{name: float(np.mean([row[name] for row in rows])) for name in ("value", "ci_low", "ci_high")}}
        for (suite, model), rows in sorted(found.items())
    ]  # fmt: skip


def _empty(suite: str, model: str, card_id: str, seeds: int, n: int) -> dict[str, Any]:
    return {"suite": suite, "model": model, "card_id": card_id, "seeds": seeds, "n": n, "difference": None, "difference_low": None, "difference_high": None,
            "by_seed": [], "p": None, "p_holm": None, "own_input": False}  # fmt: skip


def read_models(inputs: Mapping[str, Path]) -> dict[str, Runs]:
    """model -> seed -> suites, from inputs named evaluations.MODEL@SEED. Raises ConfigError for another name."""
    models: dict[str, Runs] = defaultdict(dict)
    for name, folder in inputs.items():
        model, sign, seed = name.partition(".")[2].rpartition("@")
        if not (sign and model and seed.isdecimal()):
            raise ConfigError(f"Found the input {name!r}, expected evaluations.MODEL@SEED; write for instance --in evaluations.clip_tiny@0=DIR.")
        models[model][seed] = read_suites(folder)
    return dict(models)


def rank(models: Mapping[str, Runs], base: str, candidates: int = 0, pairs_on: str = "card") -> list[dict[str, Any]]:
    """One row per suite and model. Seeds that model and base share are paired; p values are Holm's over the models of a suite."""
    rows = [
        row for key in sorted({key for runs in models.values() for suites in runs.values() for key in suites}) for row in _suite(key, models, base, pairs_on)
    ]
    by_suite: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        if row["p"] is not None:
            by_suite[row["suite"]].append(row)
    for tested in by_suite.values():
        padding = [1.0] * max(candidates - 1 - len(tested), 0)  # those that a search left behind were tested, too
        for row, p in zip(tested, holm(np.array([row["p"] for row in tested] + padding)), strict=False):
            row["p_holm"] = float(p)
    return rows


def _suite(key: Key, models: Mapping[str, Runs], base: str, pairs_on: str) -> list[dict[str, Any]]:
    rows = []
    against = {seed: suites[key] for seed, suites in models[base].items() if key in suites}
    for model, runs in models.items():
        mine = {seed: suites[key] for seed, suites in runs.items() if key in suites}
        if not mine:
            continue
        cards = {suite.card.id for suite in mine.values()}
        if len(cards) > 1:
            raise Incompatible(f"Found {len(cards)} protocol cards for {'/'.join(key)} of {model} over its seeds, expected one; evaluate all its seeds alike.")
        own = _estimate(list(mine.values()))
        row = _empty("/".join(key), model, cards.pop(), len(mine), len(next(iter(mine.values())).value))
        row |= {"value": own.value, "ci_low": own.low, "ci_high": own.high, "verdict": "base" if model == base else "other_protocol" if against else "no_base"}
        rows.append({**row, **(_difference(mine, against, pairs_on) if model != base else {})})
    return rows


def _difference(mine: Mapping[str, Suite], against: Mapping[str, Suite], pairs_on: str) -> dict[str, Any]:
    """Paired by sample, and by seed where both have the same; {} under different cards (or data of cards) or samples."""
    seeds = sorted(set(mine) & set(against), key=int)
    if not seeds or any(_protocol(mine[s], pairs_on) != _protocol(against[s], pairs_on) or mine[s].value.keys() != against[s].value.keys() for s in seeds):
        return {}
    gains = [_minus(mine[seed], against[seed]) for seed in seeds]
    found = _estimate(gains)
    verdict = "better" if found.low > 0 else "worse" if found.high < 0 else "cannot_tell"
    return {"difference": found.value, "difference_low": found.low, "difference_high": found.high, "p": found.p, "verdict": verdict,
            "by_seed": [float(np.mean(list(gain.value.values()))) for gain in gains],
            "own_input": any(mine[seed].card.id != against[seed].card.id for seed in seeds)}  # fmt: skip


def _protocol(suite: Suite, pairs_on: str) -> str:
    return suite.card.data_id if pairs_on == "data" else suite.card.id


def _minus(a: Suite, b: Suite) -> Suite:
    return a._replace(value={name: value - b.value[name] for name, value in a.value.items()})


def _estimate(runs: Sequence[Suite]) -> Estimate:
    names = sorted(runs[0].value)
    return estimate(np.array([[run.value[name] for name in names] for run in runs]), [runs[0].group[name] or name for name in names])


def estimate(value_SN: Array, groups: Sequence[str]) -> Estimate:
    """Mean with a 95 % interval over test samples (groups stay together) and over training seeds.

    Both variances are added; degrees of freedom by Welch and Satterthwaite, so that three seeds that disagree give the wide interval that they deserve.
    """
    seeds = len(value_SN)
    mean = float(value_SN.mean())
    rest_N = value_SN.mean(0) - mean
    _, inverse = np.unique(list(groups), return_inverse=True)
    rest_C = np.bincount(inverse, rest_N)
    count = len(rest_C)
    parts = [(float((rest_C**2).sum()) / len(rest_N) ** 2 * count / max(count - 1, 1), count - 1)]
    if seeds > 1:
        parts.append((float(value_SN.mean(1).var(ddof=1)) / seeds, seeds - 1))
    variance = sum(part for part, _ in parts)
    if variance < 1e-24:
        return Estimate(mean, mean, mean, 1.0 if abs(mean) < 1e-12 else 0.0)
    freedom = variance**2 / sum(part**2 / max(free, 1) for part, free in parts)
    half = float(student.ppf(0.975, freedom)) * variance**0.5
    return Estimate(mean, mean - half, mean + half, float(2 * student.sf(abs(mean) / variance**0.5, freedom)))
