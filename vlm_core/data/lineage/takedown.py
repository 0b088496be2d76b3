"""`vlm takedown --uid|--url|--domain|--sha256|--pdq VALUE`: a sample, address, site or picture leaves the platform and does not come back.

1. A tombstone in the catalog. From then on extract, download, shard and eval-sets refuse what it covers, and search stops showing it.
2. Every snapshot that holds it is marked as revoked.
3. What it means: which shards, which models (directly, through a teacher, first weights or captions), how often training showed it.
4. The next run of the data verbs rewrites the shards it was in and leaves the others as they are; index, embeddings and captions are made without it.
5. `--scan` looks through every live product and says where it still is; `--purge` also empties the DVC cache of files that hold it.
6. `--withdraw ID --reason TEXT` ends a takedown: one more row, nothing is erased, and the next run of the data verbs may let the samples in again.
"""

import argparse
import json
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlsplit

import pyarrow as pa

from vlm_core import stage as stages
from vlm_core.data.lineage import proof
from vlm_core.data.lineage.catalog import Answer, Row, append, ask, latest, open_catalog
from vlm_core.data.lineage.lineage import models_behind, show
from vlm_core.data.lineage.seen import seen_at
from vlm_core.data.lineage.tombstones import KINDS, PDQ_RADIUS, load, standard
from vlm_core.errors import ConfigError

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

CHOSEN = "(SELECT uid FROM chosen)"
EXAMPLES = 20


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message[:1].upper()}{message[1:]}; see '{self.prog} --help'.")


def main(argv: list[str]) -> int:
    """`vlm takedown ...`. Raises VlmError."""
    args = _parser().parse_args(argv)
    named = [(kind, value) for kind in KINDS if (value := getattr(args, kind))]
    if len(named) + bool(args.scan or args.purge) + bool(args.withdraw) != 1:
        raise ConfigError(
            f"Found {len(named)} of {', '.join(f'--{kind}' for kind in KINDS)}, expected exactly one, or --scan, --purge or --withdraw alone; say what is to be taken down."
        )
    if args.withdraw:
        print(show(withdraw(stages.home(), args.withdraw, args.reason)))
        return 0
    if not named:
        return proof.say(args.cache, args.also, purge=args.purge, as_json=args.json)
    answer = take_down(stages.home(), *named[0], reason=args.reason, radius=args.radius, dry_run=args.dry_run)
    print(json.dumps(answer, indent=1, default=str, ensure_ascii=False) if args.json else show(answer))
    return 0


def _parser() -> _Parser:
    parser = _Parser(prog="vlm takedown", description="take a sample, address, site or picture out of the platform")
    parser.add_argument("--uid", help="one pair of picture and caption")
    parser.add_argument("--url", help="an address of a picture or page")
    parser.add_argument("--domain", help="a site and everything below it: pictures that lie there or were found there")
    parser.add_argument("--sha256", help="the bytes of a picture as fetched")
    parser.add_argument("--pdq", help="everything that looks like the picture with this PDQ hash, 64 hex digits")
    parser.add_argument("--radius", type=int, default=PDQ_RADIUS, help=f"of --pdq, in bits of 256; {PDQ_RADIUS} unless said otherwise")
    parser.add_argument("--reason", default="", help="kept beside the takedown")
    parser.add_argument("--dry-run", action="store_true", help="say what it would mean and change nothing")
    parser.add_argument("--scan", action="store_true", help="look for everything that was taken down in every live product; exit code 20 if any is left")
    parser.add_argument("--purge", action="store_true", help="like --scan, and delete the files of the local DVC cache that hold it; remotes are never touched")
    parser.add_argument(
        "--also",
        type=Path,
        action="append",
        default=[],
        help="with --scan: a further file or folder to look through, such as web archives (.warc.gz); may be repeated",
    )
    parser.add_argument("--withdraw", metavar="ID", help="end a takedown; needs --reason. What was taken down stays on record")
    parser.add_argument("--cache", type=Path, help="the DVC cache; the default is that of this project")
    parser.add_argument("--json", action="store_true", help="answer for machines")
    return parser


# ---------------------------------------------------------------- the takedown


def take_down(home: Path, kind: str, value: str, *, reason: str = "", radius: int = PDQ_RADIUS, dry_run: bool = False) -> Answer:
    """Write the tombstone and say what it means. Doing it twice adds what became known since, and no second tombstone."""
    catalog, value = home / "catalog", _checked(kind, value, radius)
    con = open_catalog(catalog)
    known = ask(con, "SELECT takedown_id FROM takedowns_now WHERE kind = ? AND value = ? AND radius >= ? LIMIT 1", kind, value, radius if kind == "pdq" else 0)
    takedown = known[0]["takedown_id"] if known else uuid.uuid4().hex
    uids = find(con, kind, value, radius)
    con.register("chosen", pa.table({"uid": pa.array(sorted(uids), pa.string())}))
    answer = impact(con)
    stone = {"takedown_id": takedown, "kind": kind, "value": value, "radius": radius if kind == "pdq" else 0, "reason": reason, "at": datetime.now(UTC)}
    answer = {"takedown": [{**stone, "new": not known, "samples": len(uids), "written": not dry_run}], **answer}
    if not dry_run:
        _write(con, catalog, stone, known=bool(known), snapshots=[row["snapshot_md5"] for row in answer["snapshots"]])
        folder = home / "takedowns"
        folder.mkdir(parents=True, exist_ok=True)
        stages.write_json(folder / f"{takedown}.json", json.loads(json.dumps(answer, default=str)))
    return answer


def withdraw(home: Path, takedown: str, reason: str) -> Answer:
    """End a takedown, with the reason on record; doing it twice changes nothing. Raises ConfigError."""
    if not reason.strip():
        raise ConfigError("Found no --reason, expected why the takedown no longer holds; it is kept beside it.")
    con = open_catalog(home / "catalog")
    rows = ask(con, "SELECT takedown_id, kind, value FROM takedowns WHERE starts_with(takedown_id, ?) LIMIT 2", takedown)
    if len(rows) != 1 or len(takedown) < 6:
        known = ", ".join(
            f"{row['takedown_id'][:12]} ({row['kind']} {row['value'][:40]})" for row in ask(con, "SELECT * FROM takedowns_now t ORDER BY t.at DESC LIMIT 10")
        )
        raise ConfigError(
            f"Found {len(rows) or 'no'} takedowns for {takedown!r}, expected one, named by 6 letters of its id at least; these hold: {known or 'none'}."
        )
    stone = rows[0]
    earlier = ask(con, "SELECT w.at, w.reason FROM withdrawals w WHERE takedown_id = ?", stone["takedown_id"])
    row = {"takedown_id": stone["takedown_id"], "reason": reason, "at": datetime.now(UTC)}
    if not earlier:
        append(home / "catalog", "withdrawals", pa.Table.from_pylist([row]).cast(_schema(row)), stone["takedown_id"])
    freed = ask(con, "SELECT count(DISTINCT uid) AS samples FROM takedown_uids WHERE takedown_id = ?", stone["takedown_id"])[0]["samples"]
    return {"withdrawn": [{**stone, "samples": freed, **(earlier[0] if earlier else {"at": row["at"], "reason": reason}), "new": not earlier}]}


def behind(home: Path, model_id: str) -> list[Row]:
    """What was taken down and a model stands on: takedown, way (direct, teacher, initial, captions ...) and number of training samples."""
    if not load(home):
        return []
    con = open_catalog(home / "catalog")
    return ask(
        con,
        """SELECT t.takedown_id, t.kind, t.value, m.how, count(DISTINCT s.uid) AS samples
            FROM (SELECT DISTINCT takedown_id, uid FROM takedown_uids_now) u JOIN snapshot_samples s USING (uid)
            JOIN (SELECT DISTINCT snapshot_md5, how FROM model_snapshots WHERE model_id = ?) m USING (snapshot_md5)
            JOIN takedowns_now t ON t.takedown_id = u.takedown_id WHERE s.split = 'train' GROUP BY ALL ORDER BY ALL""",
        model_id,
    )


def _checked(kind: str, value: str, radius: int) -> str:
    value = standard(kind, value)
    digits = {"uid": 32, "sha256": 64, "pdq": 64}.get(kind, 0)
    if digits and not (len(value) == digits and set(value) <= set("0123456789abcdef")):
        raise ConfigError(f"Found --{kind} {value!r}, expected {digits} hex digits; 'vlm lineage why' and images/status.parquet show them.")
    if kind == "url" and not urlsplit(value).hostname:
        raise ConfigError(f"Found --url {value!r}, expected a whole address such as https://example.org/a.jpg; give that.")
    if kind == "domain" and (not value or any(letter in value for letter in "/ :@*")):
        raise ConfigError(f"Found --domain {value!r}, expected a name such as example.org; leave out scheme, port and path.")
    if not 0 <= radius <= 64:
        raise ConfigError(f"Found --radius {radius}, expected 0 to 64 bits of 256; more covers pictures that have nothing in common.")
    return value


def _write(con: "DuckDBPyConnection", catalog: Path, stone: Row, *, known: bool, snapshots: list[str]) -> None:
    """The tombstone first: from here on it holds, even if this process dies now."""
    takedown = stone["takedown_id"]
    if not known:
        append(catalog, "takedowns", pa.Table.from_pylist([stone]).cast(_schema(stone)), takedown)
    fresh = ask(con, "SELECT uid FROM chosen WHERE uid NOT IN (SELECT uid FROM takedown_uids WHERE takedown_id = ?) ORDER BY uid", takedown)
    if fresh:
        append(catalog, "takedown_uids", pa.table({"takedown_id": [takedown] * len(fresh), "uid": [row["uid"] for row in fresh]}), takedown)
    old = {row["snapshot_md5"] for row in ask(con, "SELECT snapshot_md5 FROM revocations WHERE takedown_id = ?", takedown)}
    if revoked := sorted(set(snapshots) - old):
        rows = [{"snapshot_md5": name, "takedown_id": takedown, "at": stone["at"]} for name in revoked]
        append(catalog, "revocations", pa.Table.from_pylist(rows), takedown)


def _schema(stone: Row) -> pa.Schema:
    types = {"radius": pa.int32(), "at": pa.timestamp("us", tz="UTC")}
    return pa.schema([(name, types.get(name, pa.string())) for name in stone])


# ---------------------------------------------------------------- whom it concerns


def find(con: "DuckDBPyConnection", kind: str, value: str, radius: int = PDQ_RADIUS) -> set[str]:
    """The uids that the catalog knows for a value."""
    match kind:
        case "uid":
            return {value}
        case "sha256":
            return {row["uid"] for row in ask(con, "SELECT DISTINCT uid FROM sample_seen WHERE sha256 = ?", value)}
        case "pdq":
            return _near(con, value, radius)
    return seen_at(con, kind, value)


def _near(con: "DuckDBPyConnection", pdq: str, radius: int) -> set[str]:
    """uids whose PDQ lies within the radius: of those of which no more hex digits differ than bits may, the bits are counted."""
    seen = "(SELECT uid, pdq FROM downloads UNION ALL SELECT uid, pdq FROM samples)"
    rows = ask(con, f"SELECT DISTINCT uid, pdq FROM {seen} WHERE length(pdq) = 64 AND hamming(pdq, ?) <= ?", pdq, radius)
    return {row["uid"] for row in rows if (int(row["pdq"], 16) ^ int(pdq, 16)).bit_count() <= radius}


def impact(con: "DuckDBPyConnection") -> Answer:
    """What the uids of the relation `chosen` are in. Each large table is read once."""
    con.execute(f"""CREATE OR REPLACE TEMP TABLE held AS SELECT s.snapshot_md5, s.relpath, m.shard_md5, m.uid, h.split
        FROM (SELECT DISTINCT shard_md5, uid FROM shard_samples WHERE uid IN {CHOSEN}) m
        JOIN (SELECT DISTINCT snapshot_md5, shard_md5, relpath FROM snapshot_shards) s USING (shard_md5)
        JOIN (SELECT DISTINCT shard_md5, split FROM shards) h USING (shard_md5)""")
    con.execute(f"CREATE OR REPLACE TEMP TABLE pictures AS SELECT DISTINCT sha256 FROM downloads WHERE uid IN {CHOSEN} AND sha256 <> ''")
    return {
        "models": models_behind(con, "(SELECT * FROM held WHERE split = 'train')"),
        "snapshots": ask(con, "SELECT snapshot_md5, count(DISTINCT uid) AS samples, count(DISTINCT shard_md5) AS shards FROM held GROUP BY ALL ORDER BY ALL"),
        "shards": ask(con, "SELECT DISTINCT snapshot_md5, relpath AS shard, shard_md5 FROM held ORDER BY ALL LIMIT 1000"),
        "captions": ask(
            con, f"SELECT origin, generator, count(*) AS captions FROM ({latest('captions', f'uid IN {CHOSEN}')}) GROUP BY ALL ORDER BY ALL"
        ),
        "the same picture under other names": ask(
            con,
            f"""SELECT DISTINCT sha256, uid, url FROM downloads WHERE sha256 IN (SELECT sha256 FROM pictures) AND uid NOT IN {CHOSEN}
                ORDER BY ALL LIMIT {EXAMPLES}""",
        ),
    }
