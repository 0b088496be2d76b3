"""`vlm filter`: which samples stay, with a decision per sample and rule.

Rules run in the order of the fields of `Filter`, or in that of its setting `order`; each sees only what the ones before it left. Decisions, kept samples and
their groups are the output; docs/filters.md lists what each rule drops and where it comes from.
"""

from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vlm_core.data.blocks import pieces
from vlm_core.data.filter import cuts, decontaminate, look_rules, pool_rules, rules, uid_lists
from vlm_core.data.filter import report as filter_report
from vlm_core.data.filter.config import Filter
from vlm_core.data.filter.decisions import Trail, Verdict
from vlm_core.data.filter.kept import groups_of, write_kept
from vlm_core.data.filter.pool import Column, Pool, load_pool
from vlm_core.data.lineage import tombstones
from vlm_core.data.lineage.tombstones import Tombstones
from vlm_core.data.sample import DECISIONS
from vlm_core.errors import ConfigError
from vlm_core.stage import Report, Stage, home

NOTHING = Tombstones()

# Field of Filter -> rule (of `cuts`, for each of them); `downloaded` and `taken_down` have no field, because they always run, the second where anything was taken down.
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
    "cuts": cuts.cut,
    "domain_cap": cuts.domain_cap,
    "balance": pool_rules.balance,
}

# Rules whose verdict on a sample depends on that sample only: they run block by block, so that any number of rows passes through.
ROW_WISE = frozenset({"downloaded", "taken_down", "uid_list", "rights", "domains", "text", "quality", "blocked_words", "personal", "image", "language", "vocabulary"})

# Rules that look at all rows first, and then judge block by block.
SURVEYS: dict[str, Callable[[Any, Pool, Column], Callable[[Column], Verdict]]] = {
    "decontaminate": decontaminate.survey, "cuts": cuts.survey,
}  # fmt: skip


def filter_samples(config: Filter, stage: Stage) -> Report:
    """The verb. Raises NothingLeft, naming the rule, when a rule leaves no sample."""
    pool = load_pool(stage.input("pairs"), stage.input("images"), stage.input("embeddings"), stage.state)
    if not len(pool):
        raise ConfigError(f"Found no candidate pair in {stage.input('pairs')}, expected at least one; extract again.")
    trail = judge(config, pool, stage.progress, stage.state, tombstones.load(home()))
    path = stage.out / "decisions.parquet"
    write_decisions(trail, path)
    groups = groups_of(config, pool, trail.rows, stage.input("groups") if "groups" in stage.inputs else None)
    write_kept(config, pool, trail.rows, groups, stage.out / "kept.parquet")
    decisions = pq.ParquetFile(path)
    return Report(
        counts=trail.counts(),
        metrics=filter_report.metrics(pool, trail, groups),
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
            kind = name.partition(".")[0]
            if kind not in SURVEYS:
                trail.add(name, RULES[kind](section, pool, trail.rows))
                continue
            verdict_on = SURVEYS[kind](section, pool, trail.rows)
            with trail.segment():
                for rows in pieces(trail.rows):
                    trail.look(name, rows, verdict_on(rows))
    return trail


def _chosen(config: Filter, stones: Tombstones) -> Iterator[tuple[str, Any]]:
    yield "downloaded", None
    if stones:
        yield "taken_down", stones
    for name in config.chosen():
        yield name, config.section(name)
