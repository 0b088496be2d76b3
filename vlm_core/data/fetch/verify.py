"""Is it the picture that the pair means? Placeholders ("image removed") come under many captions; a table may bring the hash of what its author saw.

Sources: methods/data.md 2: 14 to 15 % of hashes differ on a later download (mlfoundations/datacomp#67), most by recompression, some by another picture.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlm_core.data.filter import near_hashes, perceptual

RADIUS, LEAST_QUALITY = 31, 50  # PDQ: bits that near copies may differ in; below this quality a hash says little
Row = dict[str, Any]


def mark_placeholders(pairs: Sequence[Row], fetched: Mapping[str, Row], most: int) -> None:
    """Set the status of pictures that, with their near copies, come under at least `most` captions, over all sites."""
    captions: dict[str, set[str]] = defaultdict(set)
    looks: dict[str, str] = {}  # sha256 -> PDQ
    for pair in pairs:
        record = fetched[pair["url"]]
        if record["status"] == "ok":
            captions[record["sha256"]].add(pair["caption"])
            if (record.get("pdq_quality") or 0) >= LEAST_QUALITY:
                looks[record["sha256"]] = record["pdq"]
    near = _near_copies(looks)
    for record in fetched.values():
        if record["status"] == "ok":
            copies = near.get(record["sha256"], ())
            many = len(captions[record["sha256"]].union(*(captions[name] for name in copies)))
            if many >= most:
                what = f"one picture and {len(copies)} near copies" if copies else "one picture"
                record.update(status="placeholder", detail=f"{what} under {many} captions")


def _near_copies(looks: Mapping[str, str]) -> dict[str, set[str]]:
    """sha256 -> the other pictures within RADIUS."""
    names = sorted(looks)
    near: dict[str, set[str]] = defaultdict(set)
    if not names:
        return near
    codes = perceptual.parse_hex([looks[name] for name in names], 256)
    twins: dict[int, list[int]] = defaultdict(list)
    for row, first in enumerate(near_hashes.twins(codes).tolist()):
        twins[first].append(row)
    pairs = [(a, b) for rows in twins.values() for a in rows for b in rows if a != b]
    for i, j in near_hashes.near_pairs(codes, RADIUS).tolist():
        pairs += [(a, b) for a in twins[i] for b in twins[j]] + [(b, a) for a in twins[i] for b in twins[j]]
    for a, b in pairs:
        near[names[a]].add(names[b])
    return near


def check_hash(pair: Row, record: Row, mode: str) -> Row:
    """The record as it counts for this pair, whose table may bring `sha256` and `pdq` of the picture."""
    expected = (pair.get("sha256") or "").lower()
    if record["status"] != "ok" or not expected or expected == record["sha256"]:
        return record
    if mode == "flag":
        return {**record, "detail": f"sha256 differs from {expected}"}
    bits = _bits_apart(pair.get("pdq") or "", record)
    if mode == "accept_if_pdq_near" and bits is not None and bits <= RADIUS:
        return {**record, "detail": f"sha256 differs from {expected}, PDQ by {bits} of 256 bits"}
    looks = "" if bits is None else f", PDQ by {bits} of 256 bits"
    return {**record, "status": "hash_mismatch", "detail": f"sha256 differs from {expected}{looks}"}


def _bits_apart(code: str, record: Row) -> int | None:
    if not code or not record.get("pdq") or min(record["pdq_quality"], 100) < LEAST_QUALITY:
        return None
    a, b = perceptual.parse_hex([code.lower(), record["pdq"]], 256)
    return int(perceptual.distance(np.asarray(a), np.asarray(b)))
