"""`vlm filter`: which samples stay, with a decision per sample and rule.

Rules run in the order of the fields of `Filter`, or in that of its setting `order`; each sees only what the ones before it left. Decisions, kept samples and
their groups are the output; docs/filters.md lists what each rule drops and where it comes from.
"""

from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vlm_core.data.blocks import pieces
from vlm_core.data.filter import cuts, decontaminate, look_rules, pool_rules, rules, uid_lists
from vlm_core.data.filter import report as filter_report
from vlm_core.data.filter.config import Filter
from vlm_core.data.filter.decisions import Trail, Verdict
from vlm_core.data.filter.grouping import group_samples
from vlm_core.data.filter.pool import Column, Pool, load_pool
from vlm_core.data.lineage import tombstones
from vlm_core.data.lineage.tombstones import Tombstones
from vlm_core.data.sample import CAPTION, DECISIONS
from vlm_core.data.shards.records import read_table
from vlm_core.errors import ConfigError, DataError
from vlm_core.stage import Report, Stage, home

NOTHING = Tombstones()

# Field of Filter -> rule; `downloaded` and `taken_down` have no field, because they always run, the second where anything was taken down.
RULES: dict[str, Callable[[Any, Pool, Column], Verdict]] = {
    "downloaded": rules.downloaded,
    "taken_down": rules.taken_down,
    "uid_list": uid_lists.uid_list,
    "rights": rules.rights,
    "domains": rules.domains,
    "text": rules.text,
    "quality": rules.quality,
    "titles": rules.titles,
    "blocked_words": rules.blocked_words,
    "personal": rules.personal,
    "image": rules.image,
    "language": rules.languages,
    "vocabulary": rules.vocabulary,
    "decontaminate": decontaminate.decontaminate,
    "exact_duplicates": pool_rules.exact_duplicates,
    "near_duplicates": pool_rules.near_duplicates,
    "semantic_duplicates": pool_rules.semantic_duplicates,
    "safety": look_rules.safety,
    "faces": look_rules.faces,
    "watermark": cuts.watermark,
    "aesthetic": cuts.aesthetic,
    "targets": pool_rules.targets,
    "cut": cuts.cut,
    "second_cut": cuts.cut,
    "domain_cap": cuts.domain_cap,
    "balance": pool_rules.balance,
}

# filtered/kept.parquet, sorted by uid. `faces` are boxes in shares of the picture, null when nobody looked. `copies` are the uids that went because this sample stayed for them: their captions describe it, too.
# `merged` are the raw captions of those copies that are the same picture, not just a similar one.
KEPT = pa.schema([
    ("uid", pa.string()), ("caption", pa.string()), ("lang", pa.string()), ("clip_score", pa.float64()), ("group", pa.string()), ("copies", pa.list_(pa.string())),
    ("merged", pa.list_(CAPTION)), ("faces", pa.list_(pa.list_(pa.float32()))),
])  # fmt: skip


# Rules whose verdict on a sample depends on that sample only: they run block by block, so that any number of rows passes through.
ROW_WISE = frozenset({"downloaded", "taken_down", "uid_list", "rights", "domains", "text", "quality", "blocked_words", "personal", "image", "language", "vocabulary"})

# Rules that look at all rows first, and then judge block by block.
SURVEYS: dict[str, Callable[[Any, Pool, Column], Callable[[Column], Verdict]]] = {
    "decontaminate": decontaminate.survey, "cut": cuts.survey, "second_cut": cuts.survey,
}  # fmt: skip


def filter_samples(config: Filter, stage: Stage) -> Report:
    """The verb. Raises NothingLeft, naming the rule, when a rule leaves no sample."""
    pool = load_pool(stage.input("pairs"), stage.input("images"), stage.input("embeddings"), stage.state)
    if not len(pool):
        raise ConfigError(f"Found no candidate pair in {stage.input('pairs')}, expected at least one; extract again.")
    trail = judge(config, pool, stage.progress, stage.state, tombstones.load(home()))
    path = stage.out / "decisions.parquet"
    write_decisions(trail, path)
    kept = kept_table(config, pool, trail.rows)
    if "groups" in stage.inputs:
        kept = same_groups(kept, stage.input("groups"))
    pq.write_table(kept, stage.out / "kept.parquet", compression="zstd")
    decisions = pq.ParquetFile(path)
    return Report(
        counts=trail.counts(),
        metrics=filter_report.metrics(pool, trail, kept),
        tables=filter_report.tables(config, pool, trail, path),
        pictures=filter_report.pictures(pool, trail, path, stage.pictures),
        catalog={"decisions": pa.RecordBatchReader.from_batches(decisions.schema_arrow, decisions.iter_batches())},
    )


def write_decisions(trail: Trail, path: Path) -> None:
    repeated = ["rule", "version", "threshold", "reason"]
    with pq.ParquetWriter(path, DECISIONS, compression="zstd", use_dictionary=repeated, column_encoding={"seq": "DELTA_BINARY_PACKED"}) as writer:
        for table in trail.tables():
            writer.write_table(table)


def judge(config: Filter, pool: Pool, progress: Callable[..., None] = lambda *_, **__: None, scratch: Path | None = None, stones: Tombstones = NOTHING) -> Trail:
    """Run the rules that the settings name over all rows of the pool; row-wise ones that follow each other look at one block after the other."""
    trail = Trail(pool.uid, scratch)
    for alone, named in groupby(_chosen(config, stones), lambda item: item[0] in ROW_WISE):
        group = list(named)
        if alone:
            with trail.segment():
                for rows in pieces(trail.rows):
                    progress(", ".join(name for name, _ in group) + ": looking at", int(rows[-1]) + 1, len(pool))
                    for name, section in group:
                        rows = trail.look(name, rows, RULES[name](section, pool, rows)) if len(rows) else rows
            continue
        for name, section in group:
            progress(f"{name}: looking at", len(trail.rows), len(trail.rows))
            if name not in SURVEYS:
                trail.add(name, RULES[name](section, pool, trail.rows))
                continue
            verdict_on = SURVEYS[name](section, pool, trail.rows)
            with trail.segment():
                for rows in pieces(trail.rows):
                    trail.look(name, rows, verdict_on(rows))
    return trail


def _chosen(config: Filter, stones: Tombstones) -> Iterator[tuple[str, Any]]:
    yield "downloaded", None
    if stones:
        yield "taken_down", stones
    for name in config.chosen():
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
            "merged": merged_captions(config, pool, uids), "faces": [pool.faces.get(uid) for uid in uids],
        },
        schema=KEPT,
    )  # fmt: skip


def same_groups(kept: pa.Table, other: Path) -> pa.Table:
    """The table with the groups of another filtering of the same pairs, so that no sample is trained on in one and held out in the other. Raises DataError."""
    known = read_table(other / "kept.parquet", ("uid", "group"))
    group = dict(zip(known["uid"].to_pylist(), known["group"].to_pylist(), strict=True))
    uids = kept["uid"].to_pylist()
    if missing := [uid for uid in uids if uid not in group]:
        raise DataError(
            f"Found {len(missing)} samples without a group in {other} (the first is {missing[0]}), expected one that keeps all that this filter keeps; loosen it."
        )
    return kept.set_column(KEPT.get_field_index("group"), KEPT.field("group"), pa.array([group[uid] for uid in uids], pa.string()))


# Rules on captions: only what they have seen is merged.
ON_CAPTIONS = frozenset({"text", "quality", "titles", "blocked_words", "personal", "language", "vocabulary"})


def merged_captions(config: Filter, pool: Pool, uids: list[str]) -> list[list[dict[str, str]]]:
    """Per kept sample the captions of its exact copies, by uid, no text twice. None at all when a rule on captions ran after the copies were gone."""
    order = config.chosen()
    merged: dict[str, dict[str, dict[str, str]]] = {uid: {} for uid in uids}
    late = "exact_duplicates" in order and ON_CAPTIONS.intersection(order[order.index("exact_duplicates") :])
    for uid in [] if late else sorted(pool.same_picture):
        stays = uid
        while stays in pool.same_picture:
            stays = pool.copy_of[stays]
        row = pool.same_picture[uid]
        if stays in merged:
            merged[stays].setdefault(pool.raw[row], {"text": pool.raw[row], "origin": pool.origin[row], "lang": pool.lang[row]})
    return [list(merged[uid].values()) for uid in uids]
