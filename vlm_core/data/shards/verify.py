"""`vlm verify DIR`: every byte of a shards folder read again."""

import argparse
import json
from itertools import zip_longest
from pathlib import Path

from vlm_core import stage as stages
from vlm_core.data.lineage.revoked import revoked
from vlm_core.data.shards.files import read_shard
from vlm_core.data.shards.shards import SPLITS, md5_of, read_index, read_manifest
from vlm_core.errors import BadManifest


def main(argv: list[str]) -> int:
    """Raises BadManifest, naming the first file or sample that is not what its manifest says."""
    parser = argparse.ArgumentParser(prog="vlm verify", description="Read every byte of a shards folder again and check it.")
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args(argv).folder
    version, manifest = verify(folder), read_manifest(folder)
    sizes = f"{sum(manifest['totals'].values()):,} samples in {len(manifest['shards']):,} shards, {sum(e['bytes'] for e in manifest['shards']) / 1e6:,.1f} MB"
    held = revoked(stages.home(), "shards", folder, version)
    print(f"{folder}: whole; {sizes}; version {version}; grown out of {manifest.get('parent') or 'nothing'}")
    if held is not None:
        print(f"revoked: {held}; run the job 'data' before anything is trained on it")
    return 0


def verify(shards_dir: Path) -> str:
    """Read every byte again and check every checksum and the promises of the split; gives the data version. Raises BadManifest."""
    manifest = read_manifest(shards_dir)
    md5s = {"manifest.json": stages.file_md5(shards_dir / "manifest.json")}
    for entry in [*manifest["shards"], manifest["index"]]:
        path = shards_dir / entry["name"]
        md5s[entry["name"]] = md5 = stages.file_md5(path) if path.is_file() else "no file"
        if md5 != entry["md5"]:
            raise BadManifest(f"Found {path} with md5 {md5}, expected {entry['md5']} as its manifest says; run 'vlm shard' again, or restore it.")
        if "sha256" in entry and stages.file_sha256(path) != entry["sha256"]:
            raise BadManifest(f"Found {path} with the right md5 and another SHA-256, expected {entry['sha256']}; somebody forged it, do not use it.")
    if extra := sorted({path.relative_to(shards_dir).as_posix() for path in shards_dir.rglob("*") if path.is_file()} - md5s.keys()):
        raise BadManifest(f"Found {extra[0]!r} in {shards_dir}, which its manifest does not name, expected {len(md5s)} files; remove it.")
    groups = {split: set(read_index(shards_dir, split)["group"].to_pylist()) for split in SPLITS}
    if shared := sorted(groups["train"] & groups["heldout"]):
        raise BadManifest(f"Found the group {shared[0]!r} in both splits of {shards_dir}, expected it in one; make the shards again.")
    index = read_index(shards_dir, verify=True).to_pylist()
    named = ((row["uid"], row["group"], row["jpg_md5"], row["json_md5"]) for row in index)
    stored = (
        (record["uid"], record["group"], md5_of(jpeg), md5_of(text))
        for entry in manifest["shards"] for _, jpeg, text in read_shard(shards_dir / entry["name"]) for record in [json.loads(text)]
    )  # fmt: skip
    if any(a != b for a, b in zip_longest(named, stored)) or len({row["uid"] for row in index}) != len(index):
        raise BadManifest(f"Found an index that does not list the samples of {shards_dir} one by one, expected each once and in order; make the shards again.")
    return stages.dir_hash(md5s)
