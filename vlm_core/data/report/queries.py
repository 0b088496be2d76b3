"""What the dataset page says, asked of the tables of six folders. DuckDB streams them, so memory does not grow with the rows.

Every answer has an order, and examples are drawn by a hash of their uid: equal tables give an equal page.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vlm_core.data.filter.withheld import INSTEAD, NO_PICTURE, NO_TEXT
from vlm_core.data.report.config import DatasetPage
from vlm_core.errors import BadManifest, MissingInput, SchemaMismatch

Row = dict[str, Any]

# View -> (input, file, columns that the page needs).
FILES: Mapping[str, tuple[str, str, tuple[str, ...]]] = {
    "pairs": ("pairs", "pairs.parquet", ("uid", "url", "caption", "lang", "licence", "source")),
    "status": ("images", "status.parquet", ("uid", "status", "width", "height")),
    "decisions": ("filtered", "decisions.parquet", ("seq", "uid", "rule", "score", "threshold", "keep", "reason", "detail")),
    "kept": ("filtered", "kept.parquet", ("uid", "caption", "lang", "clip_score", "copies")),
    "captions": ("captions", "captions.parquet", ("uid", "caption_id", "origin", "text", "lang", "generator", "image_score", "accepted", "reason")),
    "listed": ("shards", "index.parquet", ("uid", "split", "shard")),
}
HOST = r"lower(regexp_extract(url, '^[a-zA-Z][a-zA-Z0-9+.-]*://(?:[^/?#@]*@)?([^/?#:]+)', 1))"
BINS = 40
SHOWN = "left(caption, 300)"


class Tables:
    """The six folders as views of one connection, without the samples that were taken down."""

    def __init__(self, folders: Mapping[str, Path], taken_down: Collection[str] = ()) -> None:
        import duckdb

        self.con = duckdb.connect(config={"autoinstall_known_extensions": "false", "autoload_known_extensions": "false", "threads": "2"})
        self.con.register("taken_down", pa.table({"uid": pa.array(sorted(taken_down), pa.string())}))
        for view, (name, file, columns) in FILES.items():
            path = _checked(folders[name] / file, columns).as_posix().replace("'", "''")
            self.con.execute(f"CREATE VIEW {view} AS SELECT {', '.join(columns)} FROM read_parquet('{path}') WHERE uid NOT IN (SELECT uid FROM taken_down)")
        self.con.execute("CREATE VIEW dropped AS SELECT uid, rule, reason, detail FROM decisions WHERE NOT keep")

    def rows(self, query: str, *values: object) -> list[Row]:
        found: list[Row] = self.con.sql(query, params=list(values)).to_arrow_table().to_pylist()
        return found

    def number(self, query: str) -> int:
        return int(next(iter(self.rows(query)[0].values())))


def _checked(path: Path, columns: tuple[str, ...]) -> Path:
    if not path.is_file():
        raise MissingInput(f"Found no file {path}, expected a table with {', '.join(columns)}; run the stage that makes it first.")
    try:
        names = pq.read_schema(path).names
    except (pa.ArrowException, OSError) as error:
        raise BadManifest(f"Found a table that cannot be read at {path} ({error}), expected Parquet; run the stage that makes it again.") from None
    if missing := [name for name in columns if name not in names]:
        raise SchemaMismatch(f"Found no column {missing[0]!r} in {path} (it has {', '.join(names)}), expected it; run the stage that makes it again.")
    return path


# ---------------------------------------------------------------- numbers


def funnel(tables: Tables) -> list[Row]:
    """From candidates to shards: how many are left after each stage."""
    splits = {row["split"]: row["n"] for row in tables.rows("SELECT split, count(*) AS n FROM listed GROUP BY split ORDER BY split DESC")}
    steps = {
        "candidate pairs": tables.number("SELECT count(*) FROM pairs"),
        "pictures fetched": tables.number("SELECT count(*) FROM status WHERE status = 'ok'"),
        "kept by the filter": tables.number("SELECT count(*) FROM kept"),
        **{f"in shards, {split}": n for split, n in splits.items()},
    }
    return [{"name": name, "n": n} for name, n in steps.items()]


def reasons(tables: Tables) -> list[Row]:
    """Dropped samples by reason, in the order of the rules."""
    return tables.rows("SELECT reason, any_value(rule) AS rule, count(*) AS n FROM decisions WHERE NOT keep GROUP BY reason ORDER BY min(seq), reason")


def statuses(tables: Tables) -> list[Row]:
    return tables.rows("SELECT status AS name, count(*) AS n FROM status GROUP BY status ORDER BY n DESC, status")


def by_language(tables: Tables, most: int) -> list[Row]:
    return _shares(tables, "coalesce(nullif(lang, ''), '?')", most)


def by_domain(tables: Tables, most: int) -> list[Row]:
    return _shares(tables, f"left(coalesce(nullif({HOST}, ''), '?'), 100)", most)


def by_licence(tables: Tables, most: int) -> list[Row]:
    return _shares(tables, "left(coalesce(nullif(licence, ''), 'none stated'), 100)", most)


def _shares(tables: Tables, key: str, most: int) -> list[Row]:
    """Candidates, fetched and kept per key; the smallest ones in one last row."""
    rows = tables.rows(
        f"""SELECT {key} AS name, count(*) AS candidates, count(*) FILTER (s.status = 'ok') AS fetched, count(k.uid) AS kept
            FROM pairs p LEFT JOIN status s USING (uid) LEFT JOIN (SELECT uid FROM kept) k USING (uid) GROUP BY 1 ORDER BY kept DESC, candidates DESC, 1"""
    )
    rest = rows[most:]
    if not rest:
        return rows
    return [*rows[:most], {"name": f"{len(rest):,} more", **{name: sum(row[name] for row in rest) for name in ("candidates", "fetched", "kept")}}]


def histograms(tables: Tables) -> list[Row]:
    """Per rule that measures something: kept and dropped per bin, and where its cuts lie (per language, where they differ)."""
    spans = tables.rows(
        """SELECT rule, min(score) AS low, max(score) AS high, count(*) AS n FROM decisions WHERE isfinite(score)
           GROUP BY rule HAVING min(score) < max(score) ORDER BY min(seq)"""
    )
    return [{**span, "bins": _bins(tables, span), "cuts": _cuts(tables, span)} for span in spans]


def _bins(tables: Tables, span: Row) -> list[Row]:
    width = (span["high"] - span["low"]) / BINS
    found = tables.rows(
        """SELECT least(CAST(floor((score - ?) / ?) AS INTEGER), ?) AS bin, count(*) FILTER (keep) AS kept, count(*) FILTER (NOT keep) AS dropped
           FROM decisions WHERE rule = ? AND isfinite(score) GROUP BY 1 ORDER BY 1""",
        span["low"], width, BINS - 1, span["rule"],
    )  # fmt: skip
    counts = {row["bin"]: row for row in found}
    empty = {"kept": 0, "dropped": 0}
    return [{"low": span["low"] + place * width, "high": span["low"] + (place + 1) * width, **{**empty, **counts.get(place, {})}} for place in range(BINS)]


def _cuts(tables: Tables, span: Row) -> list[Row]:
    found = tables.rows(
        """SELECT round(d.threshold, 6) AS at, list(DISTINCT coalesce(nullif(p.lang, ''), '?') ORDER BY coalesce(nullif(p.lang, ''), '?')) AS langs
           FROM decisions d LEFT JOIN pairs p USING (uid) WHERE d.rule = ? AND isfinite(d.threshold) GROUP BY 1 ORDER BY count(*) DESC, 1 LIMIT 7""",
        span["rule"],
    )
    inside = [row for row in found if span["low"] <= row["at"] <= span["high"]]
    return [] if len(found) > 6 else [{"at": row["at"], "label": ", ".join(row["langs"][:4]) if len(found) > 1 else "cut"} for row in inside]


def origins(tables: Tables) -> list[Row]:
    """Where captions come from, and what they are like."""
    return tables.rows(
        r"""SELECT origin, count(*) AS captions, count(*) FILTER (accepted) AS accepted, count(DISTINCT uid) AS samples,
            round(avg(len(regexp_extract_all(text, '\S+'))), 1) AS words, round(avg(length(text)), 1) AS characters,
            count(DISTINCT lower(text)) AS distinct_texts, round(avg(image_score) FILTER (isfinite(image_score)), 3) AS image_score,
            string_agg(DISTINCT nullif(generator, ''), ', ' ORDER BY nullif(generator, '')) AS generators FROM captions GROUP BY origin ORDER BY captions DESC, origin"""
    )


def sizes(tables: Tables) -> list[Row]:
    """Stored pictures by their longest side."""
    return tables.rows(
        """SELECT CAST(CAST(pow(2, floor(log2(greatest(width, height, 1)))) AS INTEGER) AS VARCHAR) || ' px and more' AS name, count(*) AS n
           FROM status WHERE status = 'ok' AND width IS NOT NULL GROUP BY floor(log2(greatest(width, height, 1))), 1
           ORDER BY floor(log2(greatest(width, height, 1)))"""
    )


# ---------------------------------------------------------------- examples


def examples(tables: Tables, config: DatasetPage) -> dict[str, list[Row]]:
    """Samples to look at: name of the sheet -> rows with uid, caption, score, note."""
    kept = f"SELECT uid, {SHOWN} AS caption, lang, CASE WHEN isfinite(clip_score) THEN clip_score END AS score FROM kept"
    drawn = "ORDER BY md5(uid), uid"
    found = {
        "kept": tables.rows(f"{kept} {drawn} LIMIT {config.sheet:d}"),
        "best": tables.rows(f"{kept} WHERE isfinite(clip_score) ORDER BY clip_score DESC, uid LIMIT {config.sheet:d}"),
        "worst": tables.rows(f"{kept} WHERE isfinite(clip_score) ORDER BY clip_score, uid LIMIT {config.sheet:d}"),
    }
    for row in reasons(tables):
        found[f"dropped {row['reason']}"] = [_discreet(sample) for sample in tables.rows(
            f"""SELECT d.uid, {SHOWN} AS caption, p.lang, d.reason, left(d.detail, 200) AS note, s.status = 'ok' AS has_picture FROM dropped d JOIN pairs p USING (uid)
                LEFT JOIN status s USING (uid) WHERE d.reason = ? {drawn} LIMIT {config.per_reason:d}""", row["reason"])]  # fmt: skip
    return found


def _discreet(row: Row) -> Row:
    hidden = {"caption": INSTEAD, "note": ""} if row["reason"] in NO_TEXT else {}
    missing = "no picture" if not row["has_picture"] else "not shown" if row["reason"] in NO_PICTURE else ""
    return {**row, **hidden, "missing": missing}


def duplicates(tables: Tables, most: int) -> list[Row]:
    """Which sample stayed for which copy, both kinds of copies in turn."""
    return tables.rows(
        f"""WITH copies AS (SELECT uid AS stays, unnest(copies) AS goes FROM kept), told AS (
                SELECT c.stays, c.goes, d.reason, row_number() OVER (PARTITION BY d.reason ORDER BY md5(c.goes), c.goes) AS place
                FROM copies c JOIN dropped d ON d.uid = c.goes)
            SELECT t.reason, t.stays, t.goes, left(a.caption, 300) AS caption, left(b.caption, 300) AS other, a.lang, b.lang AS other_lang, {HOST.replace("url", "a.url")} AS host,
                {HOST.replace("url", "b.url")} AS other_host
            FROM told t JOIN pairs a ON a.uid = t.stays JOIN pairs b ON b.uid = t.goes ORDER BY t.place, t.reason LIMIT {most:d}"""
    )


def several_captions(tables: Tables, most: int) -> list[Row]:
    """Samples with captions of the most origins, each with all its captions."""
    chosen = tables.rows(f"SELECT uid FROM captions GROUP BY uid HAVING count(*) > 1 ORDER BY count(DISTINCT origin) DESC, md5(uid), uid LIMIT {most:d}")
    return [
        {
            "uid": row["uid"],
            "captions": tables.rows(
                """SELECT origin, left(text, 300) AS text, lang, accepted, reason, image_score FROM captions WHERE uid = ?
                   ORDER BY generator <> '', origin, caption_id LIMIT 8""",
                row["uid"],
            ),
        }
        for row in chosen
    ]
