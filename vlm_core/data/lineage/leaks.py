"""Which samples of a product are covered by a takedown, by any of its columns: uid, address, site, page, bytes or look.

The uids that a takedown named when it came are not enough: a picture may come back under a uid that nobody knew then. So every row is asked again, with
what its pair (all pages), its fetch (final address, bytes, PDQ) and its record in the shards say.
"""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from vlm_core.data.lineage.tombstones import ADDRESSES, Tombstones
from vlm_core.data.shards.samples import ShardSamples
from vlm_core.data.shards.shards import SPLITS, read_index

ASKED = ("uid", *ADDRESSES, "pages", "sha256", "pdq", "status")
ROWS = 65_536


def in_pictures(stones: Tombstones, folders: Mapping[str, Path]) -> dict[str, str]:
    """uid -> takedown of the pictures that `vlm download` keeps."""
    stored = {row["uid"] for row in _rows(folders["images"] / "status.parquet") if row.get("status") == "ok"} if stones else set()
    return _covered(stones, stored, folders)


def in_kept(stones: Tombstones, folders: Mapping[str, Path]) -> dict[str, str]:
    """uid -> takedown of the samples that the filter keeps."""
    kept = {row["uid"] for row in _rows(folders["filtered"] / "kept.parquet")} if stones else set()
    return _covered(stones, kept, folders)


def in_shards(stones: Tombstones, folders: Mapping[str, Path]) -> dict[str, str]:
    """uid -> takedown of the samples of a snapshot."""
    if not stones:
        return {}
    shards = folders["shards"]
    uids = set(read_index(shards)["uid"].to_pylist())
    found = _covered(stones, uids, folders)
    for split in {*read_index(shards)["split"].to_pylist()} & {*SPLITS}:
        samples = ShardSamples(shards, split)
        found |= {uid: takedown for row, uid in enumerate(samples.uids) if (takedown := stones.hit({**samples.record(row), "uid": uid}))}
        samples.close()
    return found


def _covered(stones: Tombstones, uids: Collection[str], folders: Mapping[str, Path]) -> dict[str, str]:
    """Those of some uids that a takedown covers by itself, by its pair or by its fetch."""
    found = {uid: stones.uids[uid] for uid in uids if uid in stones.uids}
    for path in (folders["pairs"] / "pairs.parquet", folders["images"] / "status.parquet"):
        found |= {row["uid"]: takedown for row in (_rows(path) if uids else ()) if row["uid"] in uids and (takedown := stones.hit(row))}
    return found


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a table, block by block, with those columns that a takedown is compared with; of no table none."""
    if path.is_file():
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(ROWS, columns=[name for name in ASKED if name in file.schema_arrow.names]):
                yield from batch.to_pylist()
