"""Kept samples -> shards with reproducible bytes, a manifest, an index, and a split that no group crosses. And the way back.

    OUT/train-00000.tar ..      <key>.jpg + <key>.json, in one seeded random order; or train-00000.parquet with the same (`format`)
    OUT/heldout-00000.tar ..
    OUT/index.parquet           uid, split, shard, key, pos, group, where the bytes of each sample lie, and their MD5
    OUT/manifest.json           name, md5, sha256, bytes, samples of every shard; settings; totals; the snapshot that this one grew out of

The bytes of a first snapshot depend on the samples and the settings only. A later one grows out of what lies in OUT (`growth.py`): shards whose samples
are the same stay as they are, so that a small change makes a small difference; `grow: false` lays everything out afresh.
"""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vlm_core import stage as stages
from vlm_core.config import canonical_json
from vlm_core.data.shards import growth
from vlm_core.data.shards.batches import Batch, Pooled, Stored, batches_of, looks_of, regroup
from vlm_core.data.lineage import tombstones
from vlm_core.data.config import Shard
from vlm_core.data.filter.faces import BlurredPictures, Box
from vlm_core.data.shards.growth import Last, Payload
from vlm_core.data.pictures import contact_sheet
from vlm_core.data.shards.records import RECORD, Row, join_records, read_table
from vlm_core.data.sample import ORIGINS
from vlm_core.data.shards.files import read_shard, stored_bytes, write_shard
from vlm_core.data.fetch.stored import Pictures
from vlm_core.errors import BadManifest, MissingInput, NothingLeft, SchemaMismatch
from vlm_core.stage import Report, Stage, home

SPLITS = ("train", "heldout")
INDEX = pa.schema([
    ("uid", pa.string()), ("split", pa.string()), ("shard", pa.string()), ("key", pa.string()), ("pos", pa.int64()), ("group", pa.string()),
    ("jpg_offset", pa.int64()), ("jpg_size", pa.int64()), ("json_offset", pa.int64()), ("json_size", pa.int64()),
    ("jpg_md5", pa.string()), ("json_md5", pa.string()),
])  # fmt: skip


class Sample(NamedTuple):
    uid: str
    jpeg: bytes
    record: dict[str, Any]


# ---------------------------------------------------------------- the verb


def shard(config: Shard, stage: Stage) -> Report:
    """`vlm shard`: join what the stages before said about the kept samples, and write it."""
    records, pictures, about = _joined(config, list(batches_of(stage)))
    settings = config.model_dump(mode="json", exclude={"grow", "group"})
    last = growth.last_snapshot(stage.final, settings) if config.grow else None
    placed = growth.settle(list(records.values()), last, lambda group: split_of(group, config))
    _check_splits(placed, records, config)
    payloads, sizes = _payloads(records, pictures, stage)
    plan = growth.plan(payloads, placed, last)
    done = _Shards(stage, config, records, pictures, payloads, last)
    for name in plan.stays:
        done.take_over(name)
    for name, uids in plan.again.items():
        done.write(name, uids)
    for split, uids in plan.fresh.items():
        for name, part in _cut(split, uids, sizes, config, last):
            done.write(name, part)
    done.finish()
    contact_sheet(((pictures.read(row["uid"]), records[row["uid"]]["caption"]) for row in done.rows[:24]), stage.pictures / "samples.png")
    return _report(done, growth.changes(payloads, placed, last) if last else {}, plan, about)


def _joined(config: Shard, batches: list[Batch]) -> tuple[dict[str, Row], Stored, dict[str, int]]:
    """Records of all batches by uid, in its order; their pictures; and how many samples were refused, lay in several batches or in tied groups."""
    records, stores, looks, refused, known = dict[str, Row](), dict[str, Stored](), dict[str, tuple[str, str, int]](), 0, 0
    for batch in batches:
        own, held_back = _allowed(join_records(*batch[1:]), batch.images)
        refused, known = refused + held_back, known + len(own.keys() & records.keys())
        own = {uid: record for uid, record in own.items() if uid not in records}
        store = _pictures(batch.images, own.keys(), faces_in(batch.filtered, own) if config.blur_faces else {})
        records, stores = records | own, stores | dict.fromkeys(own, store)
        if len(batches) > 1:
            looks |= looks_of(batch.images)
    records = {uid: records[uid] for uid in sorted(records)}
    about = {"dropped.taken_down": refused} if refused else {}
    if len(batches) > 1 and records:
        about |= {"batches": len(batches), "in_several_batches": known, "groups_tied": regroup(records, looks, config.group)}
    return records, Pooled(stores), about


def _allowed(records: list[Row], images: Path) -> tuple[dict[str, Row], int]:
    """Records by uid, without what was taken down: the last gate, for inputs that were made before; and how many it held back."""
    stones = tombstones.load(home())
    pdqs: dict[str, str] = {}
    if stones.pdqs:
        status = read_table(images / "status.parquet", ("uid", "pdq"))
        pdqs = dict(zip(status["uid"].to_pylist(), status["pdq"].to_pylist(), strict=True))
    allowed = {record["uid"]: record for record in records if not stones.hit({**record, "pdq": pdqs.get(record["uid"])})}
    return allowed, len(records) - len(allowed)


def faces_in(filtered: Path, records: dict[str, Row]) -> dict[str, list[Box]]:
    """Boxes of the faces of each sample; their number goes into its record. Raises SchemaMismatch when the filter did not look for faces."""
    table = read_table(filtered / "kept.parquet", ("uid", "faces"))
    found = dict(zip(table["uid"].to_pylist(), table["faces"].to_pylist(), strict=True))
    if unseen := sum(found[uid] is None for uid in records):
        raise SchemaMismatch(
            f"Found {unseen} samples in {filtered} whose faces nobody looked for, expected none with blur_faces; filter with the rule faces, or set blur_faces=false."
        )
    for uid, record in records.items():
        record["blurred"] = len(found[uid])
    return {uid: [(left, top, right, bottom) for left, top, right, bottom in found[uid]] for uid in records if found[uid]}


def split_of(group: str, config: Shard) -> str:
    """train or heldout: a pure function of the group and the seed, for a group that no snapshot knows yet."""
    return "heldout" if int(_hash(config.seed, f"split {group}")[:13], 16) / 16**13 < config.held_out else "train"


# ---------------------------------------------------------------- writing


def _pictures(images: Path, wanted: Collection[str], faces: Mapping[str, Sequence[Box]]) -> Pictures:
    """Stored pictures, with these faces blurred. Raises BadManifest for a tar that cannot be read, naming it, and for a kept sample without picture."""
    pictures = BlurredPictures(images, faces)
    if missing := sorted(set(wanted) - pictures.places.keys()):
        raise BadManifest(f"Found no picture of {len(missing)} kept samples in {images} (the first is {missing[0]}), expected all; run the download again.")
    return pictures


def _check_splits(placed: dict[str, str], records: dict[str, Row], config: Shard) -> None:
    for split in SPLITS:
        if split not in placed.values():
            groups = len({record["group"] for record in records.values()})
            raise NothingLeft(
                f"Found no sample for the {split} split ({len(records)} samples in {groups} groups, held_out {config.held_out}), expected some in each; change held_out or seed."
            )


def _payloads(records: dict[str, Row], pictures: Stored, stage: Stage) -> tuple[dict[str, Payload], dict[str, tuple[int, int]]]:
    """Digests and sizes of what is going to be stored of each sample."""
    payloads, sizes = dict[str, Payload](), dict[str, tuple[int, int]]()
    for done, (uid, record) in enumerate(records.items(), 1):
        jpeg, text = pictures.read(uid), canonical_json(record).encode()
        payloads[uid], sizes[uid] = Payload(md5_of(jpeg), md5_of(text)), (len(jpeg), len(text))
        stage.progress("samples looked at", done, len(records))
    return payloads, sizes


def _cut(split: str, uids: list[str], sizes: dict[str, tuple[int, int]], config: Shard, last: Last | None) -> Iterator[tuple[str, list[str]]]:
    """New shards, numbered behind the old ones; each is closed when it is full by number or by size."""
    old = [entry["name"] for entry in last.manifest["shards"]] if last else []
    number = 1 + max((int(name.partition("-")[2].partition(".")[0]) for name in old if name.startswith(f"{split}-")), default=-1)
    part, size = list[str](), 0
    for uid in sorted(uids, key=lambda uid: _hash(config.seed, uid)):
        if part and (len(part) >= config.samples_per_shard or size + sizes[uid][0] > config.shard_mb * 10**6):
            yield f"{split}-{number:05d}.{config.format}", part
            number, part, size = number + 1, [], 0
        part.append(uid)
        size += stored_bytes(*sizes[uid])
    if part:
        yield f"{split}-{number:05d}.{config.format}", part


class _Shards:
    """The folder being filled."""

    def __init__(self, stage: Stage, config: Shard, records: dict[str, Row], pictures: Stored, payloads: dict[str, Payload], last: Last | None) -> None:
        self.stage, self.config, self.records, self.pictures, self.payloads, self.last = stage, config, records, pictures, payloads, last
        self.entries, self.rows, self.bytes_written = list[Row](), list[Row](), 0

    def take_over(self, name: str) -> None:
        """A shard of the last snapshot as it is: one more name for the same bytes."""
        assert self.last is not None
        _same_file(self.last.folder / name, self.stage.out / name)
        self.entries.append(next(entry for entry in self.last.manifest["shards"] if entry["name"] == name))
        self.rows += [row for row in self.last.rows if row["shard"] == name]

    def write(self, name: str, uids: list[str]) -> None:
        split, _, number = name.partition(".")[0].partition("-")
        keys = [f"{split[0]}{number}{pos:07d}" for pos in range(len(uids))]
        parts = ((key, self.pictures.read(uid), canonical_json(self.records[uid]).encode()) for key, uid in zip(keys, uids, strict=True))
        made = write_shard(self.stage.out / name, parts)
        self.entries.append({"name": name, "split": split, "samples": len(uids), "bytes": made.bytes, "md5": made.md5, "sha256": made.sha256})
        for pos, (uid, key, place) in enumerate(zip(uids, keys, made.places, strict=True)):
            where = {"uid": uid, "split": split, "shard": name, "key": key, "pos": pos, "group": self.records[uid]["group"]}
            self.rows.append({**where, **place._asdict(), **self.payloads[uid]._asdict()})
        self.bytes_written += made.bytes
        self.stage.progress(f"{name}: samples written", len(uids), len(uids))

    def finish(self) -> None:
        """Index and manifest, in reading order: training first, shards by name."""
        self.entries.sort(key=lambda entry: (SPLITS.index(entry["split"]), entry["name"]))
        order = {entry["name"]: place for place, entry in enumerate(self.entries)}
        self.rows.sort(key=lambda row: (order[row["shard"]], row["pos"]))
        pq.write_table(pa.Table.from_pylist(self.rows, INDEX), self.stage.out / "index.parquet", compression="zstd")
        same = self.last is not None and self.last.manifest["shards"] == self.entries
        manifest = {
            "format": 1,
            "members": ["<key>.jpg", "<key>.json"] if self.config.format == "tar" else ["key", "jpg", "json"],
            "record": list(RECORD),
            "settings": self.config.model_dump(mode="json", exclude={"grow", "group"}),
            "split": {"by": "group", "seed": self.config.seed, "held_out": self.config.held_out},
            "parent": "" if self.last is None else self.last.manifest["parent"] if same else self.last.version,
            "shards": self.entries,
            "index": {"name": "index.parquet", "md5": stages.file_md5(self.stage.out / "index.parquet")},
            "captions": self._origins(),
            "totals": {split: sum(entry["samples"] for entry in self.entries if entry["split"] == split) for split in SPLITS},
        }
        stages.write_json(self.stage.out / "manifest.json", manifest)


    def _origins(self) -> dict[str, int]:
        """How many captions of each origin training samples have."""
        training = (self.records[row["uid"]] for row in self.rows if row["split"] == "train")
        return dict(sorted(Counter(caption["origin"] for record in training for caption in record["captions"]).items()))


def _same_file(old: Path, new: Path) -> None:
    try:
        os.link(old.resolve(), new)  # no bytes are copied; a shard is never changed in place
    except OSError:
        shutil.copy2(old, new)


def _report(done: _Shards, changed: dict[str, int], plan: growth.Plan, about: dict[str, int]) -> Report:
    captions = [caption for record in done.records.values() for caption in record["captions"]]
    origins, sources = Counter(c["origin"] for c in captions), Counter((r["source"], r["lang"]) for r in done.records.values())
    splits, total = Counter(row["split"] for row in done.rows), len(done.rows)
    mb = sum(entry["bytes"] for entry in done.entries) / 1e6
    return Report(
        counts={
            "in": total + about.get("dropped.taken_down", 0), **about, **{split: splits[split] for split in SPLITS}, "shards": len(done.entries), **({"shards_kept": len(plan.stays)} if changed else {}),
            **{f"captions.{o}": origins[o] for o in ORIGINS if o in origins},
        },
        metrics={"held_out_share": splits["heldout"] / total, "captions_per_sample": len(captions) / total, "mb": mb, "mb_written": done.bytes_written / 1e6},
        tables={
            "since the last snapshot": [{"samples": name, "number": number} for name, number in changed.items()],
            "shards": [{"shard": e["name"], "samples": e["samples"], "mb": round(e["bytes"] / 1e6, 2), "md5": e["md5"], "kept": e["name"] in plan.stays} for e in done.entries],
            "sources": [{"source": source, "lang": lang, "samples": n} for (source, lang), n in sorted(sources.items(), key=lambda item: str(item[0]))],
        },
        pictures={"training samples": "samples.png"},
        catalog=_catalog(done, Counter(c["generator"] for c in captions if c["generator"])),
    )  # fmt: skip


def _catalog(done: _Shards, generators: Counter[str]) -> dict[str, pa.Table]:
    out, entries = done.stage.out, done.entries
    md5s = {entry["name"]: entry["md5"] for entry in entries}
    snapshot = stages.dir_hash(md5s | {name: stages.file_md5(out / name) for name in ("index.parquet", "manifest.json")})  # what run() will find
    captions = {uid: md5_of(canonical_json(record["captions"]).encode()) for uid, record in done.records.items()}
    names = ("uid", "key", "pos", "group", "jpg_md5", "json_md5")
    tables: dict[str, list[Row]] = {
        "shards": [
            {"shard_md5": e["md5"], "sha256": e["sha256"], "relpath": e["name"], "split": e["split"], "bytes": e["bytes"], "n_samples": e["samples"]}
            for e in entries
        ],
        "shard_samples": [{"shard_md5": md5s[row["shard"]], **{name: row[name] for name in names}, "captions_md5": captions[row["uid"]]} for row in done.rows],
        "snapshots": [{"snapshot_md5": snapshot, "name": f"shards-{snapshot[:8]}", "created_at": datetime.now(UTC), "n_samples": len(done.rows)}],
        "snapshot_shards": [{"snapshot_md5": snapshot, "shard_md5": e["md5"], "relpath": e["name"]} for e in entries],
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


def read_index(shards_dir: Path, split: str | None = None, *, verify: bool = False) -> pa.Table:
    """index.parquet in reading order; of one split if asked, with the MD5s if they are wanted."""
    table = read_table(shards_dir / "index.parquet", tuple(name for name in INDEX.names if verify or not name.endswith("_md5")))
    return table if split is None else table.filter(pc.equal(table["split"], split))


def read_samples(shards_dir: Path, split: str | None = None) -> Iterator[Sample]:
    """Every sample of a split (or of all) in stored order, straight from the shards. Raises BadManifest."""
    for entry in read_manifest(shards_dir)["shards"]:
        if split in (None, entry["split"]):
            for _, jpeg, text in read_shard(shards_dir / entry["name"]):
                record = json.loads(text)
                yield Sample(record["uid"], jpeg, record)


def _hash(seed: int, text: str) -> str:
    return hashlib.sha256(f"{seed}/{text}".encode()).hexdigest()


def md5_of(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()
