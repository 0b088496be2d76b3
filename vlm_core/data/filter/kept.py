"""filtered/kept.parquet: what stays, with its group, and the copies that it stands for; written a block of samples at a time."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vlm_core.data.blocks import pieces
from vlm_core.data.filter.config import Filter
from vlm_core.data.filter.grouping import group_rows
from vlm_core.data.filter.pool import Column, Pool
from vlm_core.data.sample import CAPTION
from vlm_core.data.shards.records import read_table
from vlm_core.errors import DataError

# Sorted by uid. `faces` are boxes in shares of the picture, null when nobody looked. `copies` are the uids that went because this sample stayed for them: their captions describe it, too.
# `merged` are the raw captions of those copies that are the same picture, not just a similar one.
KEPT = pa.schema([
    ("uid", pa.string()), ("caption", pa.string()), ("lang", pa.string()), ("clip_score", pa.float64()), ("group", pa.string()), ("copies", pa.list_(pa.string())),
    ("merged", pa.list_(CAPTION)), ("faces", pa.list_(pa.list_(pa.float32()))),
])  # fmt: skip

# Rules on captions: only what they have seen is merged.
ON_CAPTIONS = frozenset({"text", "quality", "titles", "blocked_words", "personal", "language", "vocabulary"})


def groups_of(config: Filter, pool: Pool, rows: Column, other: Path | None = None) -> pa.Array:
    """Per sample the name of its group: the smallest uid in it.

    With `other`, another filtering of the same pairs, its groups, so that no sample is trained on in one and held out in the other. Raises DataError when it lacks one.
    """
    uids = pool.uid.arrow(rows)
    if other is None:
        return uids.take(pa.array(group_rows(pool, rows, config.group)))
    known = read_table(other / "kept.parquet", ("uid", "group"))
    place = pc.index_in(uids, value_set=known["uid"])
    if place.null_count:
        first = uids[place.is_null().index(True).as_py()]
        raise DataError(
            f"Found {place.null_count} samples without a group in {other} (the first is {first}), expected one that keeps all that this filter keeps; loosen it."
        )
    return known["group"].take(place).combine_chunks()


def write_kept(config: Filter, pool: Pool, rows: Column, groups: pa.Array, path: Path) -> None:
    with pq.ParquetWriter(path, KEPT, compression="zstd") as writer:
        for table in kept_tables(config, pool, rows, groups):
            writer.write_table(table)


def kept_tables(config: Filter, pool: Pool, rows: Column, groups: pa.Array) -> Iterator[pa.Table]:
    copies, merged, start = copies_of(pool), merged_captions(config, pool), 0
    for part in pieces(rows):
        uids = pool.uid[part].tolist()
        columns: dict[str, Any] = {
            "uid": uids, "caption": pool.raw[part].tolist(), "lang": pool.lang[part].tolist(),
            "clip_score": pa.array(np.round(pool.clip[part], 6), pa.float64(), from_pandas=True), "group": groups.slice(start, len(part)),
            "copies": [copies.get(uid, []) for uid in uids], "merged": [merged.get(uid, []) for uid in uids], "faces": [pool.faces.get(uid) for uid in uids],
        }  # fmt: skip
        yield pa.table(columns, schema=KEPT)
        start += len(part)


def copies_of(pool: Pool) -> dict[str, list[str]]:
    """uid that stays -> the uids that went for it, sorted; a survivor that went later, for another one, hands its copies on."""
    found: dict[str, list[str]] = {}
    for uid in sorted(pool.copy_of):
        stays = pool.copy_of[uid]
        while stays in pool.copy_of:
            stays = pool.copy_of[stays]
        found.setdefault(stays, []).append(uid)
    return found


def merged_captions(config: Filter, pool: Pool) -> dict[str, list[dict[str, str]]]:
    """uid that stays -> the captions of its exact copies, by uid, no text twice. None at all when a rule on captions ran after the copies were gone."""
    order = config.chosen()
    if "exact_duplicates" in order and ON_CAPTIONS.intersection(order[order.index("exact_duplicates") :]):
        return {}
    merged: dict[str, dict[str, dict[str, str]]] = {}
    for uid in sorted(pool.same_picture):
        stays = uid
        while stays in pool.same_picture:
            stays = pool.copy_of[stays]
        row = pool.same_picture[uid]
        merged.setdefault(stays, {}).setdefault(pool.raw[row], {"text": pool.raw[row], "origin": pool.origin[row], "lang": pool.lang[row]})
    return {uid: list(captions.values()) for uid, captions in merged.items()}
