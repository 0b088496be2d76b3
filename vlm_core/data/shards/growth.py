"""How a snapshot grows out of the one that lies in the output folder: shards whose samples are the same stay byte for byte.

A shard that lost samples, or whose samples have other bytes now, is written again under its name; new samples go into new shards behind the old ones.
A group that was trained on before stays in training and one that was held out stays held out, whatever its name has become: a sample that joins or leaves
a group must not move the others. When a new sample ties a held-out group to a trained one, both are training from then on.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq

from vlm_core import stage as stages
from vlm_core.data.shards.records import Row


class Last(NamedTuple):
    """The snapshot before this one."""

    folder: Path
    version: str
    manifest: dict[str, Any]
    rows: list[Row]  # of its index, in reading order


class Payload(NamedTuple):
    """The digests of what a sample's bytes are going to be."""

    jpg_md5: str
    json_md5: str


class Plan(NamedTuple):
    """Shard by shard what is to be done."""

    stays: list[str]  # names of shards whose bytes are taken over
    again: dict[str, list[str]]  # name -> uids, fewer or with other bytes
    fresh: dict[str, list[str]]  # split -> uids that no shard has yet


def last_snapshot(folder: Path, settings: Mapping[str, Any]) -> Last | None:
    """What lies in the output folder, if it was laid out by the same settings; anything else is laid out afresh."""
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        if manifest.get("settings") != settings:
            return None
        rows = pq.read_table(folder / manifest["index"]["name"]).to_pylist()
    except (OSError, ValueError, KeyError, AttributeError):  # no snapshot, or one that is not whole: nothing to build on
        return None
    return Last(folder, stages.data_version(folder), manifest, rows)


def settle(records: list[Row], last: Last | None, split_of: Callable[[str], str]) -> dict[str, str]:
    """uid -> split. Gives each group the name and the side that it had before."""
    known = {row["uid"]: row for row in last.rows} if last else {}
    sides = {row["group"]: row["split"] for row in known.values()}
    groups: dict[str, list[Row]] = defaultdict(list)
    for record in records:
        groups[record["group"]].append(record)
    placed: dict[str, str] = {}
    for name, members in sorted(groups.items()):
        before = [known[member["uid"]] for member in members if member["uid"] in known]
        first = min([row for row in before if row["split"] == "train"] or before, key=lambda row: row["uid"], default=None)
        side = first["split"] if first else sides.get(name) or split_of(name)
        for member in members:
            member["group"] = first["group"] if first else name
            placed[member["uid"]] = side
    return placed


def plan(payloads: Mapping[str, Payload], placed: Mapping[str, str], last: Last | None) -> Plan:
    """What becomes of every shard of the last snapshot, and which samples are new."""
    stays, again, seen = list[str](), dict[str, list[str]](), set[str]()
    rows: dict[str, list[Row]] = defaultdict(list)
    for row in last.rows if last else ():
        rows[row["shard"]].append(row)
    for entry in last.manifest["shards"] if last else ():
        name, mine = entry["name"], rows[entry["name"]]
        left = [row["uid"] for row in mine if placed.get(row["uid"]) == entry["split"]]
        seen.update(left)
        same = len(left) == len(mine) and all(payloads[row["uid"]] == (row.get("jpg_md5"), row.get("json_md5")) for row in mine)
        if same and last and _whole(last.folder / name, entry["md5"]):
            stays.append(name)
        elif left:
            again[name] = left
    fresh: dict[str, list[str]] = defaultdict(list)
    for uid, split in placed.items():
        if uid not in seen:
            fresh[split].append(uid)
    return Plan(stays, again, fresh)


def changes(payloads: Mapping[str, Payload], placed: Mapping[str, str], last: Last) -> dict[str, int]:
    """How many samples came, went, moved or changed since the last snapshot."""
    known = {row["uid"]: row for row in last.rows}
    both = [known[uid] for uid in payloads.keys() & known.keys()]
    return {
        "added": len(payloads.keys() - known.keys()),
        "removed": len(known.keys() - payloads.keys()),
        "moved": sum(row["split"] != placed[row["uid"]] for row in both),
        "other picture": sum(row.get("jpg_md5") != payloads[row["uid"]].jpg_md5 for row in both),
        "other record": sum(row.get("json_md5") != payloads[row["uid"]].json_md5 for row in both),
        "unchanged": sum(payloads[row["uid"]] == (row.get("jpg_md5"), row.get("json_md5")) and row["split"] == placed[row["uid"]] for row in both),
    }


def _whole(path: Path, md5: str) -> bool:
    """A shard that was damaged on disk is written again instead of being taken over."""
    return path.is_file() and stages.file_md5(path) == md5
