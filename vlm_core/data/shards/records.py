"""What the stages before said about each kept sample, joined into the record that lies beside its picture in a shard."""

import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vlm_core.data.sample import ORIGINS
from vlm_core.errors import BadManifest, MissingInput, NothingLeft, SchemaMismatch

RECORD = ("uid", "url", "page_url", "caption", "captions", "lang", "sha256", "width", "height", "source", "licence", "credit", "group", "blurred")
Row = dict[str, Any]


def join_records(pairs_dir: Path, images: Path, filtered: Path, captions: Path) -> list[Row]:
    """One record per kept sample, sorted by uid. Raises NothingLeft, BadManifest, SchemaMismatch."""
    kept = read_table(filtered / "kept.parquet", ("uid", "caption", "lang", "clip_score", "group")).sort_by("uid").to_pylist()
    wanted = {row["uid"] for row in kept}
    if not kept:
        raise NothingLeft(f"Found no kept sample in {filtered}, expected at least two groups; loosen the filter.")
    if len(wanted) != len(kept):
        raise BadManifest(
            f"Found {len(kept)} rows for {len(wanted)} samples in {filtered / 'kept.parquet'}, expected one each; run the filter again."
        )
    pairs = _by_uid(pairs_dir / "pairs.parquet", ("url", "page_url", "source", "captions", "licence", "credit"), wanted)
    pictures = _by_uid(images / "status.parquet", ("sha256", "width", "height"), wanted)
    accepted = _accepted(captions / "captions.parquet", wanted)
    records = []
    for row in kept:
        uid = row["uid"]
        joined = {**pairs[uid], **pictures[uid], **row, "captions": _captions(row, pairs[uid], accepted.get(uid, [])), "blurred": 0}
        records.append({name: joined[name] for name in RECORD})
    return records


def read_table(path: Path, columns: tuple[str, ...], optional: tuple[str, ...] = ()) -> pa.Table:
    """Some columns of a Parquet file, the optional ones if it has them. Raises MissingInput, SchemaMismatch, BadManifest."""
    if not path.is_file():
        raise MissingInput(f"Found no file {path}, expected a table with {', '.join(columns)}; run the stage that makes it first.")
    try:
        names = pq.read_schema(path).names
        if missing := [name for name in columns if name not in names]:
            raise SchemaMismatch(f"Found no column {missing[0]!r} in {path} (it has {', '.join(names)}), expected it; run the stage that makes it again.")
        return pq.read_table(path, columns=[*columns, *(name for name in optional if name in names)])
    except (pa.ArrowException, OSError) as error:
        raise BadManifest(f"Found a table that cannot be read at {path} ({error}), expected Parquet; run the stage that makes it again.") from None


def _by_uid(path: Path, columns: tuple[str, ...], wanted: Collection[str]) -> dict[str, Row]:
    rows = {row["uid"]: row for row in _wanted_rows(path, columns, wanted)}
    if missing := sorted(set(wanted) - rows.keys()):
        raise BadManifest(
            f"Found no row for {len(missing)} kept samples in {path} (the first is {missing[0]}), expected all; run the stages from extract on again."
        )
    return rows


def _wanted_rows(path: Path, columns: tuple[str, ...], wanted: Collection[str]) -> list[Row]:
    table = read_table(path, ("uid", *columns))
    rows: list[Row] = table.filter(pc.is_in(table["uid"], pa.array(list(wanted), pa.string()))).to_pylist()
    return rows


def _accepted(path: Path, wanted: Collection[str]) -> dict[str, list[Row]]:
    accepted: dict[str, list[Row]] = {}
    for row in _wanted_rows(path, ("caption_id", "origin", "text", "lang", "generator", "image_score", "accepted"), wanted):
        if row["origin"] not in ORIGINS:
            raise BadManifest(f"Found the caption origin {row['origin']!r} in {path}, expected one of {', '.join(ORIGINS)}; run the stage that makes it again.")
        if row["accepted"]:
            accepted.setdefault(row["uid"], []).append(row)
    return accepted


def _captions(kept: Row, pair: Row, accepted: list[Row]) -> list[Row]:
    """The raw caption first, then every accepted other one, in a fixed order, no text twice."""
    origin = (pair["captions"] or [{"origin": "alt"}])[0]["origin"]
    captions = [{"text": kept["caption"], "origin": origin, "lang": kept["lang"], "generator": "", "score": _rounded(kept["clip_score"])}]
    for row in sorted(accepted, key=lambda row: (ORIGINS.index(row["origin"]), row["caption_id"])):
        if row["text"] not in {caption["text"] for caption in captions}:
            more = {
                "text": row["text"],
                "origin": row["origin"],
                "lang": row["lang"],
                "generator": row["generator"] or "",
                "score": _rounded(row["image_score"]),
            }
            captions.append(more)
    return captions


def _rounded(score: float | None) -> float | None:
    """Four digits: two machines whose scores differ in the last bit still write the same shard."""
    return None if score is None or math.isnan(score) else round(score, 4)
