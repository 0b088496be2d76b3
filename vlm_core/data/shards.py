"""Kept samples -> WebDataset tars with reproducible bytes, a manifest, an index, and a split that no group crosses. And the way back.

    OUT/train-00000.tar ..      <key>.jpg + <key>.json, in one seeded random order
    OUT/heldout-00000.tar ..
    OUT/index.parquet           uid, split, shard, key, pos, group, and where the bytes of each sample lie
    OUT/manifest.json           name, md5, sha256, bytes, samples of every tar; split; totals

The bytes depend on the samples and on the settings only. Which split a sample is in depends on its group and the seed only, so it survives
new data; the order depends on its uid and the seed only.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vlm_core import stage as stages
from vlm_core.config import canonical_json
from vlm_core.data.config import Shard
from vlm_core.data.pictures import contact_sheet
from vlm_core.data.records import RECORD, Row, join_records, read_table
from vlm_core.data.sample import ORIGINS
from vlm_core.data.tar import Member, TarWriter, members, read_member
from vlm_core.errors import BadManifest, MissingInput, NothingLeft
from vlm_core.stage import Report, Stage

SPLITS = ("train", "heldout")
INDEX = pa.schema([
    ("uid", pa.string()), ("split", pa.string()), ("shard", pa.string()), ("key", pa.string()), ("pos", pa.int64()), ("group", pa.string()),
    ("jpg_offset", pa.int64()), ("jpg_size", pa.int64()), ("json_offset", pa.int64()), ("json_size", pa.int64()),
])  # fmt: skip


class Sample(NamedTuple):
    uid: str
    jpeg: bytes
    record: dict[str, Any]


# ---------------------------------------------------------------- the verb


def shard(config: Shard, stage: Stage) -> Report:
    """`vlm shard`: join what the stages before said about the kept samples, and write it."""
    records = join_records(stage)
    where = _find_pictures(stage.input("images"), {record["uid"] for record in records})
    tars, rows = list[_Tar](), list[Row]()
    for split in SPLITS:
        chosen = [record for record in records if split_of(record["group"], config) == split]
        if not chosen:
            groups = len({record["group"] for record in records})
            raise NothingLeft(
                f"Found no sample for the {split} split ({len(records)} samples in {groups} groups, held_out {config.held_out}), expected some in each; change held_out or seed."
            )
        chosen.sort(key=lambda record: _hash(config.seed, record["uid"]))
        tars += _write_split(split, chosen, where, config, stage, rows)
    _write_tables(config, stage.out, rows, tars)
    stage.progress("published bytes", sum(tar.writer.bytes for tar in tars))
    with ExitStack() as files:
        stream = files.enter_context((stage.out / tars[0].name).open("rb"))
        captions = {record["uid"]: record["caption"] for record in records}
        first = [row for row in rows[:24] if row["shard"] == tars[0].name]
        contact_sheet(
            ((read_member(stream, Member("", row["jpg_offset"], row["jpg_size"])), captions[row["uid"]]) for row in first), stage.pictures / "samples.png"
        )
    return _report(stage.out, records, rows, tars)


def split_of(group: str, config: Shard) -> str:
    """train or heldout: a pure function of the group and the seed."""
    return "heldout" if int(_hash(config.seed, f"split {group}")[:13], 16) / 16**13 < config.held_out else "train"


# ---------------------------------------------------------------- writing


@dataclass
class _Tar:
    """A tar being filled."""

    split: str
    writer: TarWriter
    uids: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.writer.path.name


def _write_split(split: str, records: list[Row], where: dict[str, tuple[Path, Member]], config: Shard, stage: Stage, rows: list[Row]) -> list[_Tar]:
    tars = list[_Tar]()
    with ExitStack() as files:
        open_tar = cache(lambda path: files.enter_context(path.open("rb")))
        for done, record in enumerate(records, 1):
            path, member = where[record["uid"]]
            if not tars or len(tars[-1].uids) >= config.samples_per_shard or tars[-1].writer.bytes + member.size > config.shard_mb * 10**6:
                if tars:
                    tars[-1].writer.close()
                tars.append(_Tar(split, files.enter_context(TarWriter(stage.out / f"{split}-{len(tars):05d}.tar"))))
            tar, pos = tars[-1], len(tars[-1].uids)
            key = f"{len(tars) - 1:05d}{pos:07d}"
            jpg = tar.writer.add(f"{key}.jpg", read_member(open_tar(path), member))
            text = tar.writer.add(f"{key}.json", canonical_json(record).encode())
            rows.append({
                "uid": record["uid"], "split": split, "shard": tar.name, "key": key, "pos": pos, "group": record["group"],
                "jpg_offset": jpg.offset, "jpg_size": jpg.size, "json_offset": text.offset, "json_size": text.size,
            })  # fmt: skip
            tar.uids.append(record["uid"])
            stage.progress(f"{split} samples", done, len(records))
    return tars


def _find_pictures(images: Path, wanted: set[str]) -> dict[str, tuple[Path, Member]]:
    """uid -> tar and place of its picture. Raises BadManifest for a tar that cannot be read, naming it."""
    where: dict[str, tuple[Path, Member]] = {}
    for path in sorted(images.glob("*.tar")):
        for member in members(path):
            uid, _, ending = member.name.rpartition(".")
            if ending == "jpg" and uid in wanted:
                where[uid] = (path, member)
    if missing := sorted(wanted - where.keys()):
        raise BadManifest(f"Found no picture of {len(missing)} kept samples in {images} (the first is {missing[0]}), expected all; run the download again.")
    return where


def _write_tables(config: Shard, out: Path, rows: list[Row], tars: list[_Tar]) -> None:
    pq.write_table(pa.Table.from_pylist(rows, INDEX), out / "index.parquet", compression="zstd")
    manifest = {
        "format": 1,
        "members": ["<key>.jpg", "<key>.json"],
        "record": list(RECORD),
        "split": {"by": "group", "seed": config.seed, "held_out": config.held_out},
        "shards": [
            {"name": t.name, "split": t.split, "samples": len(t.uids), "bytes": t.writer.bytes, "md5": t.writer.md5, "sha256": t.writer.sha256} for t in tars
        ],
        "index": {"name": "index.parquet", "md5": stages.file_md5(out / "index.parquet")},
        "totals": {split: sum(len(t.uids) for t in tars if t.split == split) for split in SPLITS},
    }
    stages.write_json(out / "manifest.json", manifest)


def _report(out: Path, records: list[Row], rows: list[Row], tars: list[_Tar]) -> Report:
    captions = [caption for record in records for caption in record["captions"]]
    origins, sources = Counter(c["origin"] for c in captions), Counter((r["source"], r["lang"]) for r in records)
    splits = Counter(row["split"] for row in rows)
    mb = sum(t.writer.bytes for t in tars) / 1e6
    return Report(
        counts={"in": len(records), **splits, "shards": len(tars), **{f"captions.{o}": origins[o] for o in ORIGINS if o in origins}},
        metrics={"held_out_share": splits["heldout"] / len(rows), "captions_per_sample": len(captions) / len(rows), "mb": mb},
        tables={
            "shards": [{"shard": t.name, "samples": len(t.uids), "mb": round(t.writer.bytes / 1e6, 2), "md5": t.writer.md5} for t in tars],
            "sources": [{"source": source, "lang": lang, "samples": n} for (source, lang), n in sorted(sources.items(), key=lambda item: str(item[0]))],
        },
        pictures={"training samples": "samples.png"},
        catalog=_catalog(out, rows, tars, Counter(c["generator"] for c in captions if c["generator"])),
    )


def _catalog(out: Path, rows: list[Row], tars: list[_Tar], generators: Counter[str]) -> dict[str, pa.Table]:
    md5s = {t.name: t.writer.md5 for t in tars}
    snapshot = stages.dir_hash(md5s | {name: stages.file_md5(out / name) for name in ("index.parquet", "manifest.json")})  # what run() will find
    tables: dict[str, list[Row]] = {
        "shards": [
            {"shard_md5": t.writer.md5, "sha256": t.writer.sha256, "relpath": t.name, "split": t.split, "bytes": t.writer.bytes, "n_samples": len(t.uids)}
            for t in tars
        ],
        "shard_samples": [{"shard_md5": md5s[row["shard"]], **{name: row[name] for name in ("uid", "key", "pos", "group")}} for row in rows],
        "snapshots": [{"snapshot_md5": snapshot, "name": f"shards-{snapshot[:8]}", "created_at": datetime.now(UTC), "n_samples": len(rows)}],
        "snapshot_shards": [{"snapshot_md5": snapshot, "shard_md5": t.writer.md5, "relpath": t.name} for t in tars],
        "snapshot_generators": [{"snapshot_md5": snapshot, "generator": name, "n_captions": count} for name, count in sorted(generators.items())],
    }
    return {name: pa.Table.from_pylist(table) for name, table in tables.items() if table}


# ---------------------------------------------------------------- the way back


def read_manifest(shards_dir: Path) -> dict[str, Any]:
    """manifest.json of a shards folder. Raises MissingInput, BadManifest."""
    path = shards_dir / "manifest.json"
    if not path.is_file():
        raise MissingInput(f"Found no manifest.json in {shards_dir}, expected a folder made by 'vlm shard'; give that folder.")
    try:
        manifest: dict[str, Any] = json.loads(path.read_bytes())
        if manifest["format"] != 1:
            raise BadManifest(f"Found manifest format {manifest['format']!r} in {path}, expected 1; make the shards again with this version.")
        return manifest
    except (ValueError, KeyError, TypeError) as error:
        raise BadManifest(f"Found a manifest that cannot be read at {path} ({error!r}), expected JSON made by 'vlm shard'; make the shards again.") from None


def read_index(shards_dir: Path, split: str | None = None) -> pa.Table:
    """index.parquet, in reading order; of one split if asked."""
    table = read_table(shards_dir / "index.parquet", tuple(INDEX.names))
    return table if split is None else table.filter(pc.equal(table["split"], split))


def read_samples(shards_dir: Path, split: str | None = None) -> Iterator[Sample]:
    """Every sample of a split (or of all) in stored order, straight from the tars. Raises BadManifest."""
    for entry in read_manifest(shards_dir)["shards"]:
        if split not in (None, entry["split"]):
            continue
        path = shards_dir / entry["name"]
        picture: tuple[str, Member] | None = None
        listed = members(path)
        first = next(listed, None)
        with path.open("rb") as stream:
            for member in [] if first is None else [first, *listed]:
                key, _, ending = member.name.rpartition(".")
                if ending == "jpg":
                    picture = (key, member)
                elif ending == "json" and picture is not None and picture[0] == key:
                    record = json.loads(read_member(stream, member))
                    yield Sample(record["uid"], read_member(stream, picture[1]), record)
                else:
                    raise BadManifest(f"Found {member.name!r} out of place in {path}, expected KEY.jpg, then KEY.json; make the shards again.")


def verify(shards_dir: Path) -> str:
    """Recompute every checksum and the promises of the split; gives the data version. Raises BadManifest."""
    manifest = read_manifest(shards_dir)
    for entry in [*manifest["shards"], manifest["index"]]:
        path = shards_dir / entry["name"]
        md5 = stages.file_md5(path) if path.is_file() else "no file"
        if md5 != entry["md5"]:
            raise BadManifest(f"Found {path} with md5 {md5}, expected {entry['md5']} as its manifest says; restore it or make the shards again.")
        if "sha256" in entry and _sha256(path) != entry["sha256"]:
            raise BadManifest(f"Found {path} with the right md5 and another SHA-256, expected {entry['sha256']}; somebody forged it, do not use it.")
    named = {entry["name"] for entry in manifest["shards"]} | {"index.parquet", "manifest.json"}
    if extra := sorted({path.relative_to(shards_dir).as_posix() for path in shards_dir.rglob("*") if path.is_file()} - named):
        raise BadManifest(f"Found {extra[0]!r} in {shards_dir}, which its manifest does not name, expected {len(named)} files; remove it.")
    index = read_index(shards_dir).to_pylist()
    groups = {split: {row["group"] for row in index if row["split"] == split} for split in SPLITS}
    if shared := sorted(groups["train"] & groups["heldout"]):
        raise BadManifest(f"Found the group {shared[0]!r} in both splits of {shards_dir}, expected it in one; make the shards again.")
    stored = [(s.uid, s.record["group"]) for s in read_samples(shards_dir)]
    if stored != [(row["uid"], row["group"]) for row in index] or len({uid for uid, _ in stored}) != len(stored):
        raise BadManifest(f"Found an index that does not list the samples of {shards_dir} one by one, expected each once and in order; make the shards again.")
    return stages.data_version(shards_dir)


def _hash(seed: int, text: str) -> str:
    return hashlib.sha256(f"{seed}/{text}".encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
