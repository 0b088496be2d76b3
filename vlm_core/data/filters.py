"""`vlm filter`: which samples stay, with a decision per sample and rule.

Rules run in the order of `RULES`, which is the order of the fields of `Filter`; each sees only what the ones before it left. Decisions, kept samples and
their groups are the output; docs/filters.md lists what each rule drops and where it comes from.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vlm_core.data import filter_report, pool_rules, rules
from vlm_core.data.filter_config import Filter
from vlm_core.data.decisions import Trail, Verdict
from vlm_core.data.grouping import group_samples
from vlm_core.data.pool import Column, Pool, load_pool
from vlm_core.errors import ConfigError
from vlm_core.stage import Report, Stage

# Field of Filter -> rule; `downloaded` has no field, because it always runs.
RULES: dict[str, Callable[[Any, Pool, Column], Verdict]] = {
    "downloaded": rules.downloaded,
    "rights": rules.rights,
    "text": rules.text,
    "titles": rules.titles,
    "personal": rules.personal,
    "image": rules.image,
    "language": rules.languages,
    "exact_duplicates": pool_rules.exact_duplicates,
    "near_duplicates": pool_rules.near_duplicates,
    "semantic_duplicates": pool_rules.semantic_duplicates,
    "safety": rules.safety,
    "targets": pool_rules.targets,
    "cut": pool_rules.cut,
    "second_cut": pool_rules.cut,
    "balance": pool_rules.balance,
}

# filtered/kept.parquet, sorted by uid. `copies` are the uids that went because this sample stayed for them: their captions describe it, too.
KEPT = pa.schema([
    ("uid", pa.string()), ("caption", pa.string()), ("lang", pa.string()), ("clip_score", pa.float64()), ("group", pa.string()), ("copies", pa.list_(pa.string())),
])  # fmt: skip


def filter_samples(config: Filter, stage: Stage) -> Report:
    """The verb. Raises NothingLeft, naming the rule, when a rule leaves no sample."""
    pool = load_pool(stage.input("pairs"), stage.input("images"), stage.input("embeddings"))
    if not len(pool):
        raise ConfigError(f"Found no candidate pair in {stage.input('pairs')}, expected at least one; extract again.")
    trail = judge(config, pool, stage.progress)
    kept = kept_table(config, pool, trail.rows)
    decisions = trail.decisions()
    pq.write_table(decisions, stage.out / "decisions.parquet", compression="zstd")
    pq.write_table(kept, stage.out / "kept.parquet", compression="zstd")
    counts = trail.counts()
    return Report(
        counts=counts,
        metrics=filter_report.metrics(pool, trail, kept),
        tables=filter_report.tables(config, pool, trail, decisions),
        pictures=filter_report.pictures(pool, trail, decisions, stage.pictures),
        catalog={"decisions": decisions},
    )


def judge(config: Filter, pool: Pool, progress: Callable[..., None] = lambda *_, **__: None) -> Trail:
    """Run the rules that the settings name over all rows of the pool."""
    trail = Trail(pool.uid.tolist())
    for name, section in _chosen(config):
        progress(f"{name}: looking at", len(trail.rows), len(trail.rows))
        trail.add(name, RULES[name](section, pool, trail.rows))
    return trail


def _chosen(config: Filter) -> Iterator[tuple[str, Any]]:
    yield "downloaded", None
    for name in RULES:
        if getattr(config, name, None) is not None:
            yield name, getattr(config, name)


def kept_table(config: Filter, pool: Pool, rows: Column) -> pa.Table:
    """What stays, by uid, with its groups and the copies that it stands for."""
    columns = (pool.caption, pool.sha256, pool.phash, pool.pdq, pool.pdq_quality, pool.credit)
    caption, sha256, phash, pdq, quality, credit = ([*column[rows]] for column in columns)
    uids = pool.uid[rows].tolist()
    copies: dict[str, list[str]] = {uid: [] for uid in uids}
    for uid in sorted(pool.copy_of):
        stays = pool.copy_of[uid]
        while stays in pool.copy_of:  # its survivor went later, for another one
            stays = pool.copy_of[stays]
        if stays in copies:
            copies[stays].append(uid)
    return pa.table(
        {
            "uid": uids, "caption": pool.raw[rows].tolist(), "lang": pool.lang[rows].tolist(),
            "clip_score": pa.array(np.round(pool.clip[rows], 6), pa.float64(), from_pandas=True),
            "group": group_samples(uids, caption, sha256, phash, pdq, quality, credit, config.group), "copies": [copies[uid] for uid in uids],
        },
        schema=KEPT,
    )  # fmt: skip
