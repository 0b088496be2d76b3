"""Per-sample results and the metrics made of them: the tables that an evaluation stores.

predictions.parquet  one row per sample and metric, so that any two models can be compared on the same samples
metrics.parquet      one row per metric, with its interval and the id of its protocol card
cards/<id>.json      the cards
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vlm_core.evaluate.card import ProtocolCard
from vlm_core.evaluate.metrics import Array
from vlm_core.evaluate.statistics import RESAMPLES, Interval, bootstrap_mean

PREDICTIONS = pa.schema([
    ("card_id", pa.string()), ("dataset", pa.string()), ("task", pa.string()), ("metric", pa.string()), ("seed", pa.int64()),
    ("sample_id", pa.string()), ("label", pa.string()), ("prediction", pa.string()), ("score", pa.float64()),
    ("correct", pa.float64()), ("group", pa.string()),
])  # fmt: skip
METRICS = pa.schema([
    ("model", pa.string()), ("method", pa.string()), ("card_id", pa.string()), ("dataset", pa.string()), ("task", pa.string()), ("metric", pa.string()),
    ("shots", pa.int64()), ("seed", pa.int64()), ("value", pa.float64()), ("ci_low", pa.float64()), ("ci_high", pa.float64()),
    ("seed_ci_low", pa.float64()), ("seed_ci_high", pa.float64()), ("n", pa.int64()),
])  # fmt: skip


@dataclass
class Results:
    """Collects what one run measured. `model` is the digest of the weights, `method` how they were adapted ('' for not at all)."""

    model: str
    method: str = ""
    resamples: int = RESAMPLES
    seed: int = 0
    predictions: list[pa.Table] = field(default_factory=list)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    cards: dict[str, ProtocolCard] = field(default_factory=dict)

    def per_sample(
        self, card: ProtocolCard, metric: str, sample_ids: Sequence[str], correct: Array, *, label: Sequence[str] | None = None,
        prediction: Sequence[str] | None = None, score: Array | None = None, group: Sequence[str] | None = None, seed: int | None = None,
        shots: int | None = None, clustered: bool = False,
    ) -> Interval:  # fmt: skip
        """Store a number per sample (1 and 0 for right and wrong) and its mean with an interval; `clustered` keeps a group together."""
        n, clusters = len(sample_ids), np.asarray(group) if clustered and group is not None else None
        interval = bootstrap_mean(np.asarray(correct, float), self.resamples, self.seed, clusters)
        columns = {
            "card_id": [card.id] * n, "dataset": [card.dataset] * n, "task": [card.task] * n, "metric": [metric] * n, "seed": [seed] * n,
            "sample_id": list(sample_ids), "label": _texts(label, n), "prediction": _texts(prediction, n),
            "score": [None] * n if score is None else np.asarray(score, float), "correct": np.asarray(correct, float), "group": _texts(group, n),
        }  # fmt: skip
        self.predictions.append(pa.table({name: pa.array(columns[name], PREDICTIONS.field(name).type) for name in PREDICTIONS.names}))
        self.whole(card, metric, interval, n, seed=seed, shots=shots)
        return interval

    def whole(
        self, card: ProtocolCard, metric: str, interval: Interval, n: int, *, seed: int | None = None, shots: int | None = None,
        seed_interval: tuple[float, float] | None = None,
    ) -> None:  # fmt: skip
        """Store one metric."""
        self.cards[card.id] = card
        low, high = seed_interval or (None, None)
        self.metrics.append(
            {
                "model": self.model, "method": self.method, "card_id": card.id, "dataset": card.dataset, "task": card.task, "metric": metric,
                "shots": shots, "seed": seed, "value": interval.value, "ci_low": interval.low, "ci_high": interval.high,
                "seed_ci_low": low, "seed_ci_high": high, "n": n,
            }
        )  # fmt: skip

    def table(self) -> pa.Table:
        return pa.Table.from_pylist(self.metrics, METRICS)

    def write(self, out: Path) -> None:
        pq.write_table(pa.concat_tables(self.predictions) if self.predictions else PREDICTIONS.empty_table(), out / "predictions.parquet")
        pq.write_table(self.table(), out / "metrics.parquet")
        for card in self.cards.values():
            card.write(out / "cards")


def _texts(values: Sequence[str] | None, n: int) -> list[str | None]:
    return [None] * n if values is None else [str(value) for value in values]


def flat_metrics(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """`dataset/task/metric` -> value, for trackers and one-line reports."""
    return {f"{row['dataset']}/{row['task']}/{row['metric']}": float(row["value"]) for row in rows}
