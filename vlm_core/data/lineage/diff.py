"""`vlm lineage diff A B`: what a new snapshot has that the old one had not, and the other way round, each with its reason."""

from typing import TYPE_CHECKING

from vlm_core.data.lineage.catalog import Answer, ask

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

# The decisions of the filter run that a snapshot was made from, on the samples that came or went.
JUDGED = """SELECT d.uid, coalesce(arg_min(d.reason, d.seq) FILTER (NOT d.keep), 'ok') AS reason FROM decisions d
    WHERE d.uid IN (SELECT uid FROM change WHERE change IN ('added', 'removed')) AND d.run_id IN (
        SELECT r.run_id FROM snapshots s JOIN run_inputs i ON i.run_id = s.run_id AND i.name = 'filtered' JOIN runs r ON r.output = i.ref AND r.kind = 'filter'
        WHERE s.snapshot_md5 = ?) GROUP BY d.uid"""
SIDE = """SELECT m.uid, any_value(h.split) AS split, any_value(m.jpg_md5) AS jpg_md5, any_value(m.json_md5) AS json_md5, any_value(m.captions_md5) AS captions_md5
    FROM shard_samples m JOIN (SELECT DISTINCT shard_md5 FROM snapshot_shards WHERE snapshot_md5 = ?) USING (shard_md5)
    JOIN (SELECT DISTINCT shard_md5, split FROM shards) h USING (shard_md5) GROUP BY m.uid"""


def diff(con: "DuckDBPyConnection", a: str, b: str) -> Answer:
    """Samples by what became of them from A to B. The first change that holds counts: gone or new, moved, picture, captions, rest of the record.

    Why one is gone: the first rule that dropped it in the filter run behind B, else a takedown (which may have come after it was gone already). Why one is new: what had dropped it before A, if
    anything had.
    """
    con.execute(
        f"""CREATE OR REPLACE TEMP TABLE change AS WITH a AS ({SIDE}), b AS ({SIDE})
        SELECT coalesce(a.uid, b.uid) AS uid, CASE WHEN b.uid IS NULL THEN 'removed' WHEN a.uid IS NULL THEN 'added' WHEN a.split <> b.split THEN 'moved to ' || b.split
            WHEN a.jpg_md5 <> b.jpg_md5 THEN 'other picture' WHEN a.captions_md5 <> b.captions_md5 THEN 'other captions'
            WHEN a.json_md5 <> b.json_md5 THEN 'other record' ELSE 'unchanged' END AS change
        FROM a FULL JOIN b USING (uid)""",
        [a, b],
    )
    changes = ask(
        con,
        f"""WITH before AS ({JUDGED}), after AS ({JUDGED}), t AS (SELECT DISTINCT uid FROM takedown_uids_now)
        SELECT c.change, CASE c.change
            WHEN 'removed' THEN CASE WHEN after.reason <> 'ok' THEN after.reason WHEN t.uid IS NOT NULL THEN 'taken_down'
                ELSE coalesce(after.reason, 'no longer found') END
            WHEN 'added' THEN CASE WHEN before.reason IS NULL THEN 'not seen before' ELSE 'before: ' || before.reason END ELSE '' END AS reason,
            count(*) AS samples, min(c.uid) AS example
        FROM change c LEFT JOIN before USING (uid) LEFT JOIN after USING (uid) LEFT JOIN t USING (uid) GROUP BY ALL ORDER BY ALL""",
        a, b,
    )  # fmt: skip
    shards = ask(
        con,
        """WITH a AS (SELECT DISTINCT shard_md5 FROM snapshot_shards WHERE snapshot_md5 = ?), b AS (SELECT DISTINCT shard_md5 FROM snapshot_shards WHERE snapshot_md5 = ?)
        SELECT CASE WHEN b.shard_md5 IS NULL THEN 'only in a' WHEN a.shard_md5 IS NULL THEN 'only in b' ELSE 'in both' END AS bytes, count(*) AS shards,
            sum(s.bytes) / 1e6 AS mb FROM a FULL JOIN b USING (shard_md5) JOIN (SELECT shard_md5, any_value(bytes) AS bytes FROM shards GROUP BY shard_md5) s
            ON s.shard_md5 = coalesce(a.shard_md5, b.shard_md5) GROUP BY ALL ORDER BY ALL""",
        a, b,
    )  # fmt: skip
    return {"snapshots": [{"a": a, "b": b}], "changes": changes, "shards": shards}
