"""What people see of a recaption run: origins side by side in numbers and as a picture, rejections by reason, what it cost."""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from vlm_core import charts
from vlm_core.data.captions.answers import Cost
from vlm_core.data.captions.gates import words
from vlm_core.data.captions.plan import Row, Task
from vlm_core.data.sample import ORIGINS
from vlm_core.data.filter.text_rules import count_words
from vlm_core.stage import Report, Stage

SHOWN = 30  # rows of the table that people see
COMPARED = 200  # captions per origin that are scored for the comparison
VOCABULARY_AT = 150  # running words over which vocabularies are compared: a larger set always has more words


class Spent(NamedTuple):
    """What this result cost in all, what of it this run paid, and how many captions the limits left unwritten."""

    total: Cost
    paid: Cost
    unwritten: int


class Measured(NamedTuple):
    """What the models say about some captions: image-text score, that of the raw caption of the same picture, share of added words."""

    image: Sequence[float]
    raw: Sequence[float]
    added: Sequence[float]


Measure = Callable[[Sequence[Row], Sequence[str]], Measured]


def report(
    stage: Stage, kept: Sequence[Row], table: pa.Table, written: Sequence[tuple[Task, Row]], spent: Spent, facts: Mapping[str, Row], weights: pa.Table | None,
    measure: Measure,
) -> Report:  # fmt: skip
    raw = {row["uid"]: row["caption"] for row in kept}
    origins = compare(table.to_pylist(), raw, measure)
    draw(origins, stage.pictures / "origins.png")
    by_origin = {origin: [row for _, row in written if row["origin"] == origin] for origin in ORIGINS}
    accepted = sum(row["accepted"] for _, row in written)
    reasons = Counter((row["origin"], row["reason"]) for _, row in written if not row["accepted"])
    total, paid = spent.total, spent.paid
    metrics = {"accepted_share": accepted / len(written)} if written else {}
    if total.money:
        metrics |= {"cost": total.money, "cost_paid_now": paid.money, **({"cost_per_accepted": total.money / accepted} if accepted else {})}
    tables = {
        "origins": [origin.row for origin in origins],
        "raw and written": [_shown(task, row) for rows in by_origin.values() for task, row in _some(written, rows)],
        "rejected by reason": [{"origin": origin, "reason": name, "captions": n} for (origin, name), n in reasons.most_common()],
    }
    by_reason = Counter(name for (_, name), n in reasons.items() for _ in range(n))
    counts = {
        "in": len(kept), "captions": len(table), **{origin: len(rows) for origin, rows in by_origin.items() if rows}, "accepted": accepted,
        "unwritten": spent.unwritten, "answers_asked_now": paid.answers, "tokens_in": total.tokens_in, "tokens_out": total.tokens_out,
        **{f"rejected.{name}": n for name, n in sorted(by_reason.items())},
    }  # fmt: skip
    more = pa.Table.from_pylist(
        [facts.get(name, {}) for name in table["caption_id"].to_pylist()], pa.schema([("seconds", pa.float64()), ("trace_id", pa.string())])
    )
    catalog = {"captions": pa.table([*table.columns, *more.columns], names=[*table.column_names, *more.column_names])}
    return Report(
        counts=counts, metrics=metrics, tables=tables, pictures={"caption origins": "origins.png"},
        catalog={**catalog, **({"caption_weights": weights} if weights is not None else {})},
    )  # fmt: skip


def _some(written: Sequence[tuple[Task, Row]], rows: Sequence[Row]) -> list[tuple[Task, Row]]:
    wanted = {row["caption_id"] + row["uid"] for row in rows[:SHOWN]}
    return [(task, row) for task, row in written if row["caption_id"] + row["uid"] in wanted]


def _shown(task: Task, row: Row) -> Row:
    scores = {name.replace("_", " "): None if row[name] is None else round(row[name], 3) for name in ("text_score", "image_score", "added")}
    return {
        "raw": task.caption,
        "origin": task.origin,
        "written": row["text"],
        "verdict": "accepted" if row["accepted"] else row["reason"],
        "style": task.style,
        **scores,
    }


# ---------------------------------------------------------------- origins side by side


class Origin(NamedTuple):
    """Accepted captions of one origin in numbers."""

    row: Row
    lengths: list[int]
    gains: list[float]  # image-text score minus that of the raw caption
    added: list[float]


def compare(captions: Sequence[Row], raw: Mapping[str, str], measure: Measure) -> list[Origin]:
    """Length, vocabulary, fit to the picture and added words of the accepted captions, by origin; scores over at most COMPARED of each."""
    found = []
    for origin in ORIGINS:
        every = [row for row in captions if row["origin"] == origin]
        rows = [row for row in every if row["accepted"]]
        if not every:
            continue
        some = sorted(rows, key=lambda row: hashlib.sha256(row["caption_id"].encode()).digest())[:COMPARED]
        lengths, scores = [count_words(row["text"]) for row in rows], measure(some, [raw[row["uid"]] for row in some])
        gains = [score - base for score, base in zip(scores.image, scores.raw, strict=True)]
        numbers = {
            "origin": origin, "captions": len(every), "accepted": len(rows), "languages": len({row["lang"] for row in rows}),
            "words": _mean(lengths), f"vocabulary per {VOCABULARY_AT:,} words": vocabulary([row["text"] for row in rows]),
            "image score": _mean(scores.image), "gain over raw": _mean(gains), "added words": _mean(scores.added),
            "captions that add": _mean([share > 0 for share in scores.added]),
        }  # fmt: skip
        found.append(Origin(numbers, lengths, gains, list(scores.added)))
    return found


def vocabulary(texts: Sequence[str], at: int = VOCABULARY_AT) -> float | None:
    """Distinct words among the first `at` running words, texts in the order of their hashes; None for fewer words."""
    running = [word for text in sorted(texts, key=lambda text: hashlib.sha256(text.encode()).digest()) for word in words(text)][:at]
    return float(len(set(running))) if len(running) == at else None


def _mean(values: Sequence[float]) -> float | None:
    return round(float(np.mean(values)), 4) if len(values) else None


def draw(origins: Sequence[Origin], path: Path) -> None:
    """Four panels: how long, how varied, how well they fit the picture, how much they add."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6.4), dpi=110, layout="constrained")
    (length, variety), (fit, adds) = figure.subplots(2, 2)
    names = [f"{origin.row['origin']} ({origin.row['accepted']:,})" for origin in origins]
    for axes, title, values in (
        (length, "words per caption", [o.lengths for o in origins]),
        (fit, "image-text score, minus the raw caption's", [o.gains for o in origins]),
    ):
        axes.boxplot([item or [np.nan] for item in values], vert=False, tick_labels=names, showfliers=False)
        axes.set_title(title)
        axes.invert_yaxis()
    fit.axvline(0, color="grey", linewidth=0.8)
    counted = [o.row[f"vocabulary per {VOCABULARY_AT:,} words"] for o in origins]
    shares = [o.row["captions that add"] for o in origins]
    for axes, title, values, form in (
        (variety, f"distinct words in {VOCABULARY_AT:,} running words", counted, "{:,.0f}"),
        (adds, "share of captions that add a word", shares, "{:.0%}"),
    ):
        bars = axes.barh(names, [value or 0.0 for value in values])
        axes.bar_label(bars, ["too few words" if value is None else form.format(value) for value in values], padding=3)
        axes.set_title(title)
        axes.margins(x=0.15)
        axes.invert_yaxis()
    charts.save(figure, path)
