"""`vlm export-data --recipe FORMAT --in shards=DIR --out DIR`: a snapshot in the words of others.

    croissant   croissant.json (Croissant 1.0, JSON-LD) and metadata.parquet beside links to the shards: what search engines and mlcroissant read
    datasheet   datasheet.md (arXiv 1803.09010) with pictures, every number counted from the shards
    datacomp    metadata/NNNNNNNN.parquet and uids.npy, sorted (hi, lo) pairs of the 128-bit uids, as DataComp's tools read them
    hf          SPLIT/metadata.jsonl and SPLIT/<uid>.jpg: what `datasets.load_dataset("imagefolder")` reads

Equal shards give equal files. Captions are data: they are quoted wherever a format could take them for markup. A snapshot that was revoked is refused
unless `despite_takedowns` is set; what is made of it then says so.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vlm_core import stage as stages
from vlm_core.data.config import ExportData
from vlm_core.data.lineage import croissant, datasheet
from vlm_core.data.lineage.revoked import revoked
from vlm_core.data.lineage.values import UID_PAIR
from vlm_core.data.shards.shards import SPLITS, read_index, read_manifest, read_samples
from vlm_core.errors import BadManifest
from vlm_core.stage import Report, Stage

METADATA = pa.schema([
    ("uid", pa.string()), ("split", pa.string()), ("shard", pa.string()), ("key", pa.string()), ("url", pa.string()), ("page_url", pa.string()),
    ("caption", pa.string()), ("lang", pa.string()), ("captions", pa.list_(pa.string())), ("origins", pa.list_(pa.string())), ("sha256", pa.string()),
    ("width", pa.int32()), ("height", pa.int32()), ("source", pa.string()), ("licence", pa.string()), ("credit", pa.string()), ("clip_score", pa.float64()),
])  # fmt: skip


def export_data(config: ExportData, stage: Stage) -> Report:
    """The verb."""
    shards = stage.input("shards")
    held = revoked(stages.home(), "shards", shards, stage.versions.get("shards", ""))
    counts = WRITERS[config.format](shards, stage.out, config.name)
    if held is not None:
        (stage.out / "REVOKED.txt").write_text(f"Made of {held}.\n")
    mb = sum(path.stat().st_size for path in stage.out.rglob("*") if path.is_file()) / 1e6
    return Report(counts={"in": sum(read_manifest(shards)["totals"].values()), **counts}, metrics={"mb": mb})


def metadata(shards: Path) -> pa.Table:
    """One row per sample, in reading order."""
    places = {row["uid"]: row for row in read_index(shards).to_pylist()}
    rows = []
    for sample in read_samples(shards):
        record, place = sample.record, places[sample.uid]
        captions = record["captions"]
        rows.append({
            **{name: record.get(name) for name in METADATA.names}, **{name: place[name] for name in ("uid", "split", "shard", "key")},
            "captions": [caption["text"] for caption in captions], "origins": [caption["origin"] for caption in captions], "clip_score": captions[0]["score"],
        })  # fmt: skip
    return pa.Table.from_pylist(rows, METADATA)


# ---------------------------------------------------------------- formats


def write_croissant(shards: Path, out: Path, name: str) -> dict[str, int]:
    """Shards are linked, so that the folder is whole: hard links, or copies on another file system."""
    table = metadata(shards)
    pq.write_table(table, out / "metadata.parquet", compression="zstd")
    for entry in read_manifest(shards)["shards"]:
        link(shards / entry["name"], out / entry["name"])
    stages.write_json(out / "croissant.json", croissant.describe(shards, out, name, table))
    return {"samples": len(table), "shards": len(read_manifest(shards)["shards"])}


def write_datasheet(shards: Path, out: Path, name: str) -> dict[str, int]:
    table = metadata(shards)
    datasheet.write(shards, out, name, table)
    return {"samples": len(table)}


def write_datacomp(shards: Path, out: Path, name: str) -> dict[str, int]:
    """Training samples only: that is what a DataComp subset names."""
    table = metadata(shards)
    table = table.filter(pa.compute.equal(table["split"], "train"))
    (out / "metadata").mkdir()
    columns = {
        "uid": "uid",
        "url": "url",
        "caption": "text",
        "width": "original_width",
        "height": "original_height",
        "sha256": "sha256",
        "clip_score": "clip_score",
    }
    renamed = table.select(list(columns)).rename_columns(list(columns.values()))
    for number in range(0, len(renamed), 100_000):
        pq.write_table(renamed.slice(number, 100_000), out / "metadata" / f"{number // 100_000:08d}.parquet", compression="zstd")
    np.save(out / "uids.npy", pack_uids(table["uid"].to_pylist()))
    return {"samples": len(table)}


def write_hf(shards: Path, out: Path, name: str) -> dict[str, int]:
    table = metadata(shards).to_pylist()
    counts = dict.fromkeys(SPLITS, 0)
    for row, sample in zip(table, read_samples(shards), strict=True):
        folder = out / row["split"]
        folder.mkdir(exist_ok=True)
        (folder / f"{row['uid']}.jpg").write_bytes(sample.jpeg)
        with (folder / "metadata.jsonl").open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"file_name": f"{row['uid']}.jpg", "text": row["caption"], **row}, ensure_ascii=False, sort_keys=True) + "\n")
        counts[row["split"]] += 1
    return {"samples": len(table), **counts}


WRITERS: dict[str, Callable[[Path, Path, str], dict[str, int]]] = {
    "croissant": write_croissant, "datasheet": write_datasheet, "datacomp": write_datacomp, "hf": write_hf,
}  # fmt: skip


def link(old: Path, new: Path) -> None:
    try:
        os.link(old.resolve(), new)
    except OSError:
        new.write_bytes(old.read_bytes())


# ---------------------------------------------------------------- DataComp's lists of uids


def pack_uids(uids: list[str]) -> NDArray[Any]:
    """Sorted (hi, lo) pairs of 128-bit uids."""
    pairs = np.array([(int(uid[:16], 16), int(uid[16:], 16)) for uid in uids], UID_PAIR)
    return np.sort(pairs)


def unpack_uids(file: Path) -> list[str]:
    """The uids of such a list, in its order. Raises BadManifest."""
    try:
        pairs = np.load(file, allow_pickle=False)
        if pairs.dtype != UID_PAIR or pairs.ndim != 1:
            raise ValueError(f"it holds {pairs.dtype} of shape {pairs.shape}")
    except (OSError, ValueError) as error:
        raise BadManifest(
            f"Found {file}, which is no list of uids ({error}), expected pairs of 64-bit numbers as .npy; export it with DataComp's tools."
        ) from None
    return [f"{int(hi):016x}{int(lo):016x}" for hi, lo in pairs]
