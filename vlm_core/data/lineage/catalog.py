"""The lineage catalog: immutable Parquet fragments are the truth, DuckDB is the engine that answers over them.

    append(root, "decisions", table, run_id)      one fragment per table and run: root/decisions/<run_id>-0.parquet
    con = open_catalog(root)                      in-memory connection: every table of TABLES (empty if nothing was written yet) and the views

Any number of processes may append at once; a reader sees whole fragments only. Every row carries the `run_id` that wrote it.
"""

import contextlib
import json
import os
from collections.abc import Collection, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vlm_core.data.sample import CAPTIONS, DECISIONS, DOWNLOADS, PAIRS
from vlm_core.errors import SchemaMismatch, did_you_mean

if TYPE_CHECKING:
    import duckdb

Row = dict[str, Any]
Answer = dict[str, list[Row]]  # title -> table
ROW_GROUP = 131_072  # rows
REPLACES = ".replaces.json"  # ending of the list of fragments that a merged one stands for
_TEXT, _TIME = pa.string(), pa.timestamp("us", tz="UTC")


def _texts(*names: str) -> list[tuple[str, pa.DataType]]:
    return [(name, _TEXT) for name in names]


# The columns that views rely on. A fragment may lack some (they read as NULL) and may have more.
TABLES: dict[str, pa.Schema] = {
    # runs: written by run()
    "runs": pa.schema([*_texts("run_id", "dagster_run_id", "kind", "recipe", "git_rev", "config_hash"), ("started_at", _TIME), ("ended_at", _TIME), *_texts("status", "output", "path")]),
    "run_inputs": pa.schema(_texts("run_id", "name", "ref", "path")),
    # data: one row per candidate pair, fetch, decision, caption
    "pairs": PAIRS,
    "samples": pa.schema([*_texts("uid", "url", "page_url", "source", "licence", "credit", "caption", "lang", "sha256", "phash", "pdq"), ("width", pa.int32()), ("height", pa.int32())]),
    "downloads": pa.schema([*DOWNLOADS, ("fetched_at", _TIME)]),
    "decisions": DECISIONS,
    "captions": pa.schema([*CAPTIONS, ("seconds", pa.float64()), ("trace_id", _TEXT)]),
    "caption_weights": pa.schema([*_texts("uid", "caption_id"), *((f"weight_{name}", pa.float64()) for name in ("sample", "raw", "caption")), *_texts("model_id")]),
    # snapshots: a snapshot is a published shards folder, named by its DVC hash
    "shards": pa.schema([*_texts("shard_md5", "sha256", "relpath", "split"), ("bytes", pa.int64()), ("n_samples", pa.int64())]),
    "shard_samples": pa.schema([*_texts("shard_md5", "uid", "key"), ("pos", pa.int64()), *_texts("group", "jpg_md5", "json_md5", "captions_md5")]),
    "snapshots": pa.schema([*_texts("snapshot_md5", "name"), ("created_at", _TIME), ("n_samples", pa.int64()), *_texts("path")]),
    "snapshot_shards": pa.schema(_texts("snapshot_md5", "shard_md5", "relpath")),
    "revocations": pa.schema([*_texts("snapshot_md5", "takedown_id"), ("at", _TIME)]),
    "snapshot_generators": pa.schema([*_texts("snapshot_md5", "generator"), ("n_captions", pa.int64())]),
    # models: model_id is the SHA-256 of model.safetensors; snapshot_md5 is what it was trained on: '' for packaged weights, NULL for the `shards` input of its run
    "models": pa.schema([*_texts("model_id", "name", "role", "recipe", "snapshot_md5", "path"), ("seed", pa.int64()), ("epochs", pa.float64())]),
    "model_parents": pa.schema(_texts("model_id", "parent_model_id", "relation")),  # relation: initial | encoder | teacher | adapted; model_links adds captions, filtered by
    "model_data": pa.schema([*_texts("model_id", "snapshot_md5"), ("weight", pa.float64())]),  # further snapshots that were mixed in
    "scorers": pa.schema(_texts("model_id")),  # the model of ours that a run of `embed` scored with
    "metrics": pa.schema([*_texts("model_id", "card_id", "dataset", "metric"), ("value", pa.float64()), ("ci_low", pa.float64()), ("ci_high", pa.float64()), ("seed", pa.int64())]),
    "promotions": pa.schema([*_texts("model_id", "name", "version", "alias", "decision", "reason"), ("at", _TIME)]),
    # takedowns: what was asked for, and every uid that the catalog then knew it to be
    "takedowns": pa.schema([*_texts("takedown_id", "kind", "value"), ("radius", pa.int32()), *_texts("reason"), ("at", _TIME)]),
    "takedown_uids": pa.schema(_texts("takedown_id", "uid")),
    "withdrawals": pa.schema([*_texts("takedown_id", "reason"), ("at", _TIME)]),  # takedowns that hold no longer; nothing is ever erased
}  # fmt: skip



def latest(table: str, where: str = "true") -> str:
    """A SELECT of rows of a table by several runs of one verb over the same uid: those of the run that ended last. The condition is asked before runs are compared."""
    return f"""SELECT t.* FROM (SELECT * FROM {table} WHERE {where}) t LEFT JOIN run_order r USING (run_id)
        QUALIFY dense_rank() OVER (PARTITION BY t.uid, r.kind ORDER BY r.ended_at DESC NULLS LAST, t.run_id) = 1"""


# Name -> SELECT, in the order in which they need each other. `x_now`: of several runs over the same uid, the one that ended last.
VIEWS: Mapping[str, str] = {
    **{f"{name}_now": f"SELECT * FROM {name} WHERE takedown_id NOT IN (SELECT takedown_id FROM withdrawals)" for name in ("takedowns", "takedown_uids", "revocations")},
    "run_order": "SELECT run_id, any_value(kind) AS kind, max(ended_at) AS ended_at FROM runs GROUP BY run_id",
    **{f"{name}_now": latest(name) for name in ("pairs", "samples", "downloads", "decisions", "captions")},
    # what a pair is and what came of its address, from whichever tables know it
    "sample_source": """SELECT uid, coalesce(p.url, s.url, d.url) AS url, coalesce(p.page_url, s.page_url) AS page_url, coalesce(p.source, s.source) AS source,
        coalesce(p.caption, s.caption) AS caption, coalesce(p.lang, s.lang) AS lang, coalesce(p.licence, s.licence) AS licence,
        coalesce(p.credit, s.credit) AS credit, d.status, d.detail, d.http_status, coalesce(d.sha256, s.sha256) AS sha256,
        coalesce(d.phash, s.phash) AS phash, coalesce(d.width, s.width) AS width, coalesce(d.height, s.height) AS height, d.fetched_at
        FROM pairs_now p FULL JOIN samples_now s USING (uid) FULL JOIN downloads_now d USING (uid)""",
    # every address and picture under which a sample was ever seen; rows repeat, so that a filter meets the files directly
    "sample_seen": """SELECT uid, url, sha256, lower(regexp_extract(url, '^[a-zA-Z][a-zA-Z0-9+.-]*://(?:[^/?#@]*@)?([^/?#:]+)', 1)) AS host
        FROM (SELECT uid, url, NULL AS sha256 FROM pairs UNION ALL SELECT uid, url, sha256 FROM samples
        UNION ALL SELECT uid, url, sha256 FROM downloads UNION ALL SELECT uid, NULL, NULL FROM shard_samples)""",
    "sample_fate": """SELECT uid, arg_max(rule, seq) AS last_rule, bool_and(keep) AS kept,
        coalesce(arg_min(reason, seq) FILTER (NOT keep), 'ok') AS reason,
        list({'rule': rule, 'keep': keep, 'reason': reason, 'score': score, 'threshold': threshold, 'detail': detail} ORDER BY seq) AS trail
        FROM decisions_now GROUP BY uid""",
    # the models of ours whose scores chose the samples of a snapshot
    "snapshot_scorers": """SELECT DISTINCT r.output AS snapshot_md5, m.model_id AS scorer_id
        FROM runs r JOIN run_inputs i ON i.run_id = r.run_id AND i.name = 'filtered' JOIN runs f ON f.output = i.ref AND f.kind = 'filter'
        JOIN run_inputs j ON j.run_id = f.run_id AND j.name = 'embeddings' JOIN runs e ON e.output = j.ref AND e.kind = 'embed'
        JOIN scorers m ON m.run_id = e.run_id WHERE r.kind = 'shard'""",
    # a model stands on its snapshot, its parents, the models that wrote captions of its snapshot, and those that filtered it
    "model_snapshot": """SELECT DISTINCT model_id, snapshot_md5 FROM models WHERE snapshot_md5 <> ''
        UNION SELECT m.model_id, i.ref FROM models m JOIN run_inputs i USING (run_id) WHERE i.ref IN (SELECT snapshot_md5 FROM snapshots)
            AND m.snapshot_md5 IS NULL AND i.name = 'shards'
        UNION SELECT model_id, snapshot_md5 FROM model_data""",
    "model_links": """SELECT DISTINCT model_id, parent_model_id, relation FROM model_parents
        UNION SELECT s.model_id, w.model_id, 'captions' FROM model_snapshot s JOIN snapshot_generators g USING (snapshot_md5)
            JOIN models w ON w.model_id = g.generator OR w.name = g.generator
        UNION SELECT model_id, scorer_id, 'filtered by' FROM snapshot_scorers JOIN model_snapshot USING (snapshot_md5)""",
    "model_ancestry": """WITH RECURSIVE a(model_id, ancestor, depth, how) AS (
            SELECT DISTINCT model_id, model_id, 0, 'direct' FROM models
            UNION SELECT a.model_id, p.parent_model_id, a.depth + 1, CASE a.depth WHEN 0 THEN p.relation ELSE a.how || ' > ' || p.relation END
                FROM a JOIN model_links p ON p.model_id = a.ancestor WHERE a.depth < 32 AND p.parent_model_id <> a.model_id)
        SELECT * FROM a""",
    "model_snapshots": """SELECT DISTINCT a.model_id, a.ancestor AS via_model, a.depth, a.how, s.snapshot_md5
        FROM model_ancestry a JOIN model_snapshot s ON s.model_id = a.ancestor""",
    "snapshot_samples": """SELECT ss.snapshot_md5, ss.relpath, s.shard_md5, s.uid, s.key, s.pos, s.jpg_md5, s.json_md5, s.captions_md5, h.split
        FROM (SELECT DISTINCT snapshot_md5, shard_md5, relpath FROM snapshot_shards) ss
        JOIN shard_samples s USING (shard_md5)
        JOIN (SELECT shard_md5, min(run_id) AS run_id FROM shard_samples GROUP BY shard_md5) once ON once.shard_md5 = s.shard_md5 AND once.run_id = s.run_id
        JOIN (SELECT DISTINCT shard_md5, split FROM shards) h ON h.shard_md5 = s.shard_md5""",
    # held-out samples are in the snapshot, but no model was trained on them
    "model_samples": """SELECT ms.model_id, ms.via_model, ms.depth, ms.how, s.* FROM model_snapshots ms JOIN snapshot_samples s USING (snapshot_md5)
        WHERE s.split = 'train'""",
    "model_names": """SELECT model_id, name, NULL AS version, NULL AS alias FROM models
        UNION SELECT model_id, name, version, alias FROM promotions""",
}  # fmt: skip


def append(root: Path, table: str, rows: pa.Table | pa.RecordBatchReader, run_id: str) -> Path:
    """Write a fragment: whole or absent, never changed again. Raises SchemaMismatch for an unknown table or one without its key."""
    if table not in TABLES:
        raise SchemaMismatch(f"Found the catalog table {table!r}, expected a known one; {did_you_mean(table, TABLES)}")
    key, names = TABLES[table].names[0], rows.schema.names
    if key not in names:
        raise SchemaMismatch(f"Found no column {key!r} in rows for the catalog table {table!r} ({', '.join(names)}), expected it; add it.")
    parts = [_by_uid(rows)] if isinstance(rows, pa.Table) else (pa.Table.from_batches([batch]) for batch in rows)
    schema = rows.schema if "run_id" in names else rows.schema.append(pa.field("run_id", _TEXT))
    folder = root / table
    folder.mkdir(parents=True, exist_ok=True)
    taken = {path.name for path in folder.glob(f"{run_id}-*.parquet")} | _replaced(folder)  # the name of a merged fragment would be hidden
    path = next(path for part in count() if (path := folder / f"{run_id}-{part}.parquet").name not in taken)
    tmp = folder / f".{path.name}.tmp"  # the dot keeps it out of every *.parquet
    with tmp.open("wb") as stream:
        with pq.ParquetWriter(stream, schema, compression="zstd") as writer:
            for some in parts:
                writer.write_table(some if "run_id" in names else some.append_column("run_id", pa.repeat(run_id, len(some))), ROW_GROUP)
        stream.flush()
        os.fsync(stream.fileno())
    tmp.rename(path)
    return path


def _by_uid(rows: pa.Table) -> pa.Table:
    """In the order of their uids: a question about one of them then opens one row group of a fragment, by the least and the largest uid of each."""
    return rows.take(pc.sort_indices(rows, sort_keys=[("uid", "ascending")])) if "uid" in rows.column_names else rows


def fragments(folder: Path) -> list[Path]:
    """The fragments of a table that count: of merged ones only what they were merged into (`compact.py`)."""
    names = {path.name for path in folder.glob("*.parquet")}  # listed before the lists of what they replace, which are written before them
    return sorted(folder / name for name in names - _replaced(folder, names))


def _replaced(folder: Path, names: Collection[str] | None = None) -> set[str]:
    """The names of merged fragments; only of merges whose result is among `names`, if given."""
    found = set[str]()
    for listing in folder.glob(f"*{REPLACES}"):
        if names is None or f"{listing.name.removesuffix(REPLACES)}.parquet" in names:
            with contextlib.suppress(FileNotFoundError):
                found |= set(json.loads(listing.read_bytes()))
    return found


def connect() -> "duckdb.DuckDBPyConnection":
    """An in-memory connection of two threads that never fetches an extension."""
    import duckdb

    return duckdb.connect(config={"autoinstall_known_extensions": "false", "autoload_known_extensions": "false", "threads": "2"})


def rows_of(con: "duckdb.DuckDBPyConnection", table: str, files: Sequence[Path]) -> str:
    """A SELECT of the rows of some fragments of a table, with the columns that views rely on in their types."""
    schema = TABLES[table]
    fields = [*schema, *([] if "run_id" in schema.names else [pa.field("run_id", _TEXT)])]
    con.register(f"no_{table}", pa.schema(fields).empty_table())
    listed = ", ".join("'" + str(file).replace("'", "''") + "'" for file in files)
    more = f" UNION ALL BY NAME SELECT * FROM read_parquet([{listed}], union_by_name=true)" if files else ""
    return f"SELECT * FROM no_{table}{more}"


def open_catalog(root: Path) -> "duckdb.DuckDBPyConnection":
    """An in-memory connection with all tables and views; it never writes."""
    con = connect()
    for name in TABLES:
        con.execute(f"CREATE VIEW {name} AS {rows_of(con, name, fragments(root / name))}")
    for name, select in VIEWS.items():
        con.execute(f"CREATE VIEW {name} AS {select}")
    con.execute("SET lock_configuration = true")
    return con


def ask(con: "duckdb.DuckDBPyConnection", query: str, *values: object) -> list[Row]:
    """The rows of an answer as dictionaries; `?` in the query are the values, which are never read as SQL."""
    rows: list[Row] = con.sql(query, params=list(values) or None).to_arrow_table().to_pylist()
    return rows
