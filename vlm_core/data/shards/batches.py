"""A snapshot is the union of batches: each was fetched, filtered and captioned alone, and `vlm shard` takes them all.

    vlm shard --in pairs.b1=.. --in images.b1=.. --in filtered.b1=.. --in captions.b1=.. --in pairs.b2=.. ...     a plain name is a batch, too

A sample that several batches hold is the one of the first, in the order of their names. What ties a sample of one batch to a group of another (an equal caption,
a picture that looks alike, one author) puts both on one side of the split; with `growth.py`, on the side on which the older snapshot has it.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from vlm_core.data.filter.config import Grouping
from vlm_core.data.filter.dedup import components, key_edges
from vlm_core.data.filter.grouping import group_samples
from vlm_core.data.shards.records import Row, read_table
from vlm_core.errors import MissingInput
from vlm_core.stage import Stage

INPUTS = ("pairs", "images", "filtered", "captions")
LOOKS = ("phash", "pdq", "pdq_quality")


class Batch(NamedTuple):
    """The folders of one batch."""

    name: str  # '' of plain inputs
    pairs: Path
    images: Path
    filtered: Path
    captions: Path


class Stored(Protocol):
    """Pictures by uid."""

    def read(self, uid: str) -> bytes: ...


class Pooled:
    """Pictures of several download folders, each sample's from its own."""

    def __init__(self, stores: Mapping[str, Stored]) -> None:
        self._stores = stores

    def read(self, uid: str) -> bytes:
        return self._stores[uid].read(uid)


def batches_of(stage: Stage) -> Iterator[Batch]:
    """The batches that were given, in the order of their names. Raises MissingInput for one that is not whole."""
    names = {name.partition(".")[2] for name in stage.inputs}
    for name in sorted(names):
        ending = f".{name}" if name else ""
        if missing := [kind for kind in INPUTS if kind + ending not in stage.inputs]:
            there = ", ".join(kind + ending for kind in INPUTS if kind + ending in stage.inputs)
            raise MissingInput(f"Found no input {missing[0] + ending!r} beside {there}, expected all four of a batch; add --in {missing[0] + ending}=PATH.")
        yield Batch(name, *(stage.input(kind + ending) for kind in INPUTS))


def looks_of(images: Path) -> dict[str, tuple[str, str, int]]:
    """uid -> pHash, PDQ hash and its quality, as the download found them."""
    table = read_table(images / "status.parquet", ("uid", *LOOKS))
    uid, phash, pdq, quality = (table[name].to_pylist() for name in ("uid", *LOOKS))
    return {name: (one or "", two or "", good or 0) for name, one, two, good in zip(uid, phash, pdq, quality, strict=True)}


def regroup(records: Mapping[str, Row], looks: Mapping[str, tuple[str, str, int]], config: Grouping) -> int:
    """Join the groups of different batches that something ties together, under the smaller name. Gives the number of groups that were joined to others."""
    uids, rows = list(records), list(records.values())
    phash, pdq, quality = zip(*(looks[uid] for uid in uids), strict=True)
    captions, contents, credits = ([row[name] for row in rows] for name in ("caption", "sha256", "credit"))
    across = group_samples(uids, captions, contents, phash, pdq, quality, credits, config)
    own = [row["group"] for row in rows]
    first_of = components(len(rows), np.concatenate([key_edges(np.unique(names, return_inverse=True)[1]) for names in (own, across)]))
    name_of: dict[int, str] = {}
    for place, name in zip(first_of.tolist(), own, strict=True):
        name_of[place] = min(name_of.get(place, name), name)
    for place, row in zip(first_of.tolist(), rows, strict=True):
        row["group"] = name_of[place]
    return len(set(own)) - len(name_of)
