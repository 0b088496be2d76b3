"""Questions to the catalog: `vlm lineage why UID | samples MODEL | models --url|--domain|--sha256|--uid X | bytes MODEL --out DIR | diff A B`.

MODEL is a model folder, the first hex digits of its weights' SHA-256, a registered NAME@ALIAS or NAME:VERSION, or a model's name.
A snapshot is named by its DVC hash (first digits are enough). Answers are tables for people, or `--json`.
"""

import argparse
import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pyarrow as pa

from vlm_core import stage as stages
from vlm_core.data.lineage.catalog import Answer, Row, ask, open_catalog
from vlm_core.data.lineage.diff import diff
from vlm_core.data.lineage.exact_bytes import rebuild
from vlm_core.data.lineage.seen import seen_at
from vlm_core.errors import ConfigError, MissingInput

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

SELECTORS = ("url", "domain", "sha256", "uid")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message[:1].upper()}{message[1:]}; see '{self.prog} --help'.")


def main(argv: list[str]) -> int:
    """`vlm lineage ...`. Raises VlmError."""
    args = _parser().parse_args(argv)
    con = open_catalog(args.catalog)
    match args.question:
        case "why":
            answer = why(con, args.uid)
        case "samples":
            answer = samples(con, find_model(con, args.model), args.limit, args.csv)
        case "models":
            selectors = [(kind, value) for kind in SELECTORS if (value := getattr(args, kind))]
            if len(selectors) != 1:
                raise ConfigError(f"Found {len(selectors)} of --url, --domain, --sha256, --uid, expected exactly one; say which samples you ask about.")
            answer = models(con, *selectors[0])
        case "bytes":
            answer = rebuild(con, find_model(con, args.model), args.out, args.cache)
        case _:
            answer = diff(con, find_snapshot(con, args.a), find_snapshot(con, args.b))
    print(json.dumps(answer, indent=1, default=str, ensure_ascii=False) if args.json else show(answer))
    return 0


def why_main(argv: list[str]) -> int:
    """`vlm why UID`."""
    return main(["why", *argv])


def _parser() -> _Parser:
    parser = _Parser(prog="vlm lineage", description="from any sample to the models that saw it, and from any model to its exact bytes")
    parser.add_argument("--catalog", type=Path, default=stages.home() / "catalog", help="folder of the catalog")
    parser.add_argument("--json", action="store_true", help="answer for machines")
    questions = parser.add_subparsers(dest="question", required=True, metavar="QUESTION", parser_class=_Parser)
    one = questions.add_parser("why", help="what happened to a sample, from its page to the models")
    one.add_argument("uid")
    one = questions.add_parser("samples", help="which samples a model was trained on, directly or through another model")
    one.add_argument("model")
    one.add_argument("--limit", type=int, default=20, help="samples to list; 0 lists none")
    one.add_argument("--csv", type=Path, help="write all of them to this file")
    one = questions.add_parser("models", help="which models saw a sample, directly or through another model")
    for kind in SELECTORS:
        one.add_argument(f"--{kind}")
    one = questions.add_parser("bytes", help="rebuild the shards a model was trained on, byte by byte")
    one.add_argument("model")
    one.add_argument("--out", type=Path, required=True)
    one.add_argument("--cache", type=Path, help="the DVC cache; the default is that of this project")
    one = questions.add_parser("diff", help="what differs between two snapshots")
    one.add_argument("a")
    one.add_argument("b")
    for sub in questions.choices.values():
        sub.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    return parser


# ---------------------------------------------------------------- questions


def why(con: "DuckDBPyConnection", uid: str) -> Answer:
    """The trail of a sample: address, fetch, decisions in order, captions, snapshots, models."""
    found = ask(con, "SELECT DISTINCT uid FROM sample_seen WHERE starts_with(uid, ?) LIMIT 2", uid.lower())
    if len(found) != 1 or not uid:
        what = "no sample" if not found else "several samples"
        raise MissingInput(f"Found {what} of the catalog whose uid begins with {uid!r}, expected one; give the 32 hex digits of a uid.")
    uid = found[0]["uid"]
    fate = ask(con, "SELECT kept, reason, last_rule, trail FROM sample_fate WHERE uid = ?", uid)
    return {
        "sample": ask(con, "SELECT * FROM sample_source WHERE uid = ?", uid),
        "fate": [{name: row[name] for name in ("kept", "reason", "last_rule")} for row in fate],
        "decisions": fate[0]["trail"] if fate else [],
        "captions": ask(
            con, "SELECT DISTINCT origin, text, lang, generator, image_score, accepted, reason FROM captions_now WHERE uid = ? ORDER BY origin, text", uid
        ),
        "snapshots": ask(
            con,
            """SELECT snapshot_md5, relpath AS shard, key, split, shard_md5, snapshot_md5 IN (SELECT snapshot_md5 FROM revocations_now) AS revoked
                FROM snapshot_samples WHERE uid = ? ORDER BY ALL""",
            uid,
        ),
        "models": models(con, "uid", uid)["models"],
        "taken down": ask(
            con,
            """SELECT DISTINCT t.at, t.kind, t.value, t.reason, t.takedown_id, w.at AS withdrawn, w.reason AS withdrawn_because
                FROM takedown_uids u JOIN takedowns t USING (takedown_id) LEFT JOIN withdrawals w USING (takedown_id) WHERE u.uid = ? ORDER BY ALL""",
            uid,
        ),
    }


def samples(con: "DuckDBPyConnection", model_id: str, limit: int = 20, csv_file: Path | None = None) -> Answer:
    """How many samples a model stands on, by way; and some or all of them. Held-out samples do not count."""
    ways = ask(
        con,
        "SELECT how, via_model, snapshot_md5, count(DISTINCT uid) AS samples FROM model_samples WHERE model_id = ? GROUP BY ALL ORDER BY min(depth), how, via_model",
        model_id,
    )
    listed = """SELECT DISTINCT m.uid, s.url, s.page_url, s.caption, s.lang, s.licence, s.sha256, m.relpath AS shard, m.key, m.snapshot_md5
        FROM (SELECT uid, any_value(relpath) AS relpath, any_value(key) AS key, min(snapshot_md5) AS snapshot_md5 FROM model_samples WHERE model_id = ? GROUP BY uid) m
        LEFT JOIN sample_source s USING (uid) ORDER BY m.uid"""
    if csv_file is not None:
        rows = ask(con, listed, model_id)
        with csv_file.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, fieldnames=list(rows[0]) if rows else ["uid"])
            writer.writeheader()
            writer.writerows({name: _no_formula(value) for name, value in row.items()} for row in rows)
    total = ask(con, "SELECT count(DISTINCT uid) AS samples FROM model_samples WHERE model_id = ?", model_id)
    return {"model": [{"model_id": model_id, **total[0]}], "ways": ways, "samples": ask(con, f"{listed} LIMIT {limit:d}", model_id)}


def models(con: "DuckDBPyConnection", selector: str, value: str) -> Answer:
    """The models that saw the samples of an address or domain (of the picture or of any page that shows it), of a picture's bytes or of a uid: how (direct, initial, ...) and how many."""
    if selector in ("url", "domain"):
        uids = seen_at(con, selector, value)
    else:
        uids = {row["uid"] for row in ask(con, f"SELECT DISTINCT uid FROM sample_seen WHERE {selector} = lower(?)", value)}
    if not uids:
        raise MissingInput(f"Found no sample with {selector} {value!r} in the catalog, expected one; compare with 'vlm lineage samples MODEL --csv FILE'.")
    con.register("asked", pa.table({"uid": pa.array(sorted(uids), pa.string())}))
    rows = models_behind(con, "(SELECT s.* FROM snapshot_samples s JOIN asked USING (uid) WHERE s.split = 'train')")
    return {"selected": [{selector: value, "samples": len(uids), "models": len({row["model_id"] for row in rows})}], "models": rows}


def models_behind(con: "DuckDBPyConnection", held: str, *values: object) -> list[Row]:
    """The models that stand on samples, by way; `held` names them as rows (snapshot_md5, uid) of training shards.

    Exposures: how often training showed them, occurrences times epochs of the model on the way.
    """
    named = "(SELECT model_id, any_value(name) AS name, max(epochs) AS epochs FROM models GROUP BY model_id)"
    return ask(
        con,
        f"""SELECT m.model_id, any_value(n.name) AS name, m.how, m.via_model, m.snapshot_md5, count(DISTINCT h.uid) AS samples,
                round(count(*) * any_value(v.epochs)) AS exposures
            FROM model_snapshots m JOIN {held} h USING (snapshot_md5) LEFT JOIN {named} n ON n.model_id = m.model_id LEFT JOIN {named} v ON v.model_id = m.via_model
            GROUP BY m.model_id, m.how, m.via_model, m.snapshot_md5 ORDER BY min(m.depth), m.model_id, m.how""",
        *values,
    )


# ---------------------------------------------------------------- names


def find_model(con: "DuckDBPyConnection", name: str) -> str:
    """The id of the model somebody means. Raises MissingInput."""
    if (weights := Path(name) / "model.safetensors").is_file():
        name = stages.file_sha256(weights)
    base, mark, tail = next((parts for mark in "@:" if (parts := name.partition(mark))[1]), (name, "", ""))
    if mark:
        column = "alias" if mark == "@" else "version"
        rows = ask(
            con, f"SELECT model_id FROM promotions WHERE name = ? AND CAST({column} AS VARCHAR) = ? ORDER BY promotions.at DESC NULLS LAST LIMIT 1", base, tail
        )
    elif re.fullmatch("[0-9a-f]{6,64}", name):
        rows = ask(con, "SELECT DISTINCT model_id FROM models WHERE starts_with(model_id, ?) LIMIT 2", name)
    else:
        rows = ask(
            con,
            "SELECT model_id FROM models m LEFT JOIN run_order r USING (run_id) WHERE m.name = ? OR m.recipe = ? ORDER BY r.ended_at DESC NULLS LAST LIMIT 1",
            name,
            name,
        )
    if len(rows) != 1:
        known = ask(con, "SELECT DISTINCT name, left(model_id, 12) AS id FROM models ORDER BY ALL LIMIT 20")
        menu = ", ".join(f"{row['name']} ({row['id']})" for row in known) or "none yet"
        raise MissingInput(
            f"Found {len(rows) or 'no'} models for {name!r}, expected a model folder, a SHA-256, NAME@ALIAS, NAME:VERSION or a name; the catalog knows: {menu}."
        )
    return str(rows[0]["model_id"])


def find_snapshot(con: "DuckDBPyConnection", name: str) -> str:
    """The full hash of the snapshot that begins so, or that a model stands on. Raises MissingInput."""
    rows = ask(con, "SELECT DISTINCT snapshot_md5 FROM snapshots WHERE starts_with(snapshot_md5, ?) LIMIT 2", name)
    if not rows:
        rows = ask(con, "SELECT DISTINCT snapshot_md5 FROM model_snapshot WHERE model_id = ?", find_model(con, name))
    if len(rows) != 1:
        raise MissingInput(f"Found {len(rows) or 'no'} snapshots for {name!r}, expected one; give the 36 characters of its hash.")
    return str(rows[0]["snapshot_md5"])


# ---------------------------------------------------------------- output


def show(answer: Answer) -> str:
    """Tables for people."""
    return "\n\n".join(f"{title}\n{_table(rows)}" for title, rows in answer.items())


def _table(rows: Sequence[Row]) -> str:
    if not rows:
        return "  none"
    if len(rows) == 1:
        width = max(len(name) for name in rows[0])
        return "\n".join(f"  {name:{width}}  {_cell(value, 400)}" for name, value in rows[0].items() if value is not None)
    names = list(rows[0])
    cells = [names, *([_cell(row[name]) for name in names] for row in rows)]
    widths = [max(len(line[place]) for line in cells) for place in range(len(names))]
    return "\n".join("  " + "  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells)


def _no_formula(value: object) -> object:
    """A text that a spreadsheet would calculate gets a quote before it; `--json` gives it as it is."""
    return f"'{value}" if isinstance(value, str) and value[:1] in {"=", "+", "-", "@", "\t", "\r"} else value


def _cell(value: object, longest: int = 60) -> str:
    text = "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
    text = "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)  # a caption may try to steer the terminal
    return text if len(text) <= longest else text[: longest - 2] + ".."
