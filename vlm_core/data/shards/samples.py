"""Random access to the samples of shards, through index.parquet. One snapshot, or several as one."""

import hashlib
import itertools
import json
import os
from collections.abc import Collection
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vlm_core.data.config import Loader
from vlm_core.data.shards import apart
from vlm_core.data.shards.order import DebiasedOrder, LanguageOrder, MixedOrder, Order, by_source, shares
from vlm_core.data.shards.shards import Sample, read_index, read_manifest
from vlm_core.errors import BadManifest, Incompatible, NothingLeft

OPEN_FILES = 64
AnyOrder = Order | MixedOrder | DebiasedOrder | LanguageOrder


class ShardSamples:
    """Random access to the samples of one split. Rows are in stored order."""

    def __init__(self, shards_dir: Path, split: str = "train", *, verify: bool = False, without: Collection[str] = ()) -> None:
        self._open: dict[str, int] = {}
        self.shards_dir, self.split = shards_dir, split
        self.kept_out: dict[str, int] = {}  # as of a mix
        self.digest: str = read_manifest(shards_dir)["index"]["md5"]
        index = read_index(shards_dir, split, verify=verify)
        if without:
            index = index.filter(pc.invert(pc.is_in(index["uid"], pa.array(sorted(without), pa.string()))))
        if not len(index):
            raise NothingLeft(f"Found no sample in the {split!r} split of {shards_dir}, expected some; choose train or heldout.")
        names = index["shard"].to_pylist()
        self.shards = list(dict.fromkeys(names))
        self.uids: list[str] = index["uid"].to_pylist()
        number = {name: place for place, name in enumerate(self.shards)}
        self.shard_of = np.array([number[name] for name in names], np.int32)
        self._places = np.stack([index[name].to_numpy() for name in ("jpg_offset", "jpg_size", "json_offset", "json_size")], 1)
        self._md5s = [index[name].to_pylist() for name in ("jpg_md5", "json_md5")] if verify else []

    def __len__(self) -> int:
        return len(self.uids)

    def order(self, config: Loader, seed: int) -> AnyOrder:
        batch_size, window = config.batch_size, config.shuffle_window
        if config.language_power is not None:
            languages = [str(self.record(row)["lang"] or "").partition("-")[0] for row in range(len(self))]
            return LanguageOrder(languages, config.language_power, self.shard_of, batch_size, seed, window)
        if config.debiased is None:
            return Order(self.shard_of, batch_size, seed, window)
        rows_of = by_source([str(self.record(row)["source"]) for row in range(len(self))], batch_size)
        return DebiasedOrder(rows_of, [len(rows) // batch_size for rows in rows_of], self.shard_of, batch_size, seed, window)

    def jpeg(self, row: int) -> bytes:
        return self._checked(row, 0, self._read(row, *self._places[row, :2]))

    def record(self, row: int) -> dict[str, Any]:
        try:
            record: dict[str, Any] = json.loads(self._checked(row, 1, self._read(row, *self._places[row, 2:])))
            return record
        except ValueError as error:
            raise BadManifest(
                f"Found a record that cannot be read, sample {self.uids[row]} of {self.shards_dir} ({error}), expected JSON; make the shards again."
            ) from None

    def sample(self, row: int) -> Sample:
        return Sample(self.uids[row], self.jpeg(row), self.record(row))

    def _checked(self, row: int, column: int, data: bytes) -> bytes:
        if self._md5s and (md5 := hashlib.md5(data, usedforsecurity=False).hexdigest()) != self._md5s[column][row]:
            raise BadManifest(
                f"Found sample {self.uids[row]} of {self.shards_dir / self.shards[self.shard_of[row]]} with the MD5 {md5}, expected {self._md5s[column][row]} "
                "as its index says; the file is damaged: run 'vlm shard' again."
            )
        return data

    def _read(self, row: int, offset: int, size: int) -> bytes:
        name = self.shards[self.shard_of[row]]
        if name not in self._open:
            if len(self._open) >= OPEN_FILES:
                os.close(self._open.pop(next(iter(self._open))))
            try:
                self._open[name] = os.open(self.shards_dir / name, os.O_RDONLY)
            except OSError as error:
                raise BadManifest(
                    f"Found a shard that cannot be opened at {self.shards_dir / name} ({error.strerror}), expected it to be there; make the shards again."
                ) from None
        data = os.pread(self._open[name], size, offset)  # no shared position: forked processes may use the same descriptor
        if len(data) != size:
            raise BadManifest(
                f"Found {self.shards_dir / name} cut off at sample {self.uids[row]} ({len(data)} of {size} bytes), expected a whole tar; make the shards again."
            )
        return data

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])

    def __del__(self) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # a spawned process opens its own


class MixedSamples:
    """Training samples of several snapshots as one. What resembles what any of them holds out (`apart.py`) is left out of all; `kept_out` counts it."""

    def __init__(self, shards_dir: Path, config: Loader) -> None:
        folders = [shards_dir, *(Path(more.shards) for more in config.mix.values())]
        left_out, self.kept_out = _kept_out(tuple(folders), tuple(read_manifest(folder)["index"]["md5"] for folder in folders))
        self.parts = [ShardSamples(folder, "train", verify=config.verify, without=left_out) for folder in folders]
        self.weights = [1.0, *(more.weight for more in config.mix.values())]
        self.shards_dir = shards_dir
        self.digest = hashlib.md5(repr([(part.digest, len(part), weight) for part, weight in zip(self.parts, self.weights, strict=True)]).encode()).hexdigest()
        self.uids = [uid for part in self.parts for uid in part.uids]
        self._first = np.cumsum([0, *map(len, self.parts)])

    def __len__(self) -> int:
        return len(self.uids)

    def order(self, config: Loader, seed: int) -> AnyOrder:
        batch_size, window = config.batch_size, config.shuffle_window
        if config.debiased is None:
            return MixedOrder([part.shard_of for part in self.parts], self.weights, batch_size, seed, window)
        small = next((part for part in self.parts if len(part) < batch_size), None)
        if small is not None:
            raise Incompatible(f"Found {len(small)} training samples in {small.shards_dir} for batches of {batch_size} from one snapshot alone; lower batch_size.")
        rows_of = [np.arange(begin, end) for begin, end in itertools.pairwise(self._first.tolist())]
        shard_of = np.concatenate([part.shard_of for part in self.parts])
        return DebiasedOrder(rows_of, shares(self.weights).tolist(), shard_of, batch_size, seed, window, len(self) // batch_size)

    def jpeg(self, row: int) -> bytes:
        part, place = self._find(row)
        return part.jpeg(place)

    def record(self, row: int) -> dict[str, Any]:
        part, place = self._find(row)
        return part.record(place)

    def sample(self, row: int) -> Sample:
        return Sample(self.uids[row], self.jpeg(row), self.record(row))

    def _find(self, row: int) -> tuple[ShardSamples, int]:
        part = int(np.searchsorted(self._first, row, "right")) - 1
        return self.parts[part], row - int(self._first[part])


Samples = ShardSamples | MixedSamples


@lru_cache(maxsize=4)
def _kept_out(folders: tuple[Path, ...], digests: tuple[str, ...]) -> tuple[frozenset[str], dict[str, int]]:
    """(uids, counts by reason); the digests make it once for the same data, as a run asks for its samples more than once."""
    trained, held_out = ([ShardSamples(folder, split) for folder in folders] for split in ("train", "heldout"))
    found = apart.kept_out(trained, held_out)
    return frozenset(found), apart.count(trained, found)


def training_samples(shards_dir: Path, config: Loader, without: Collection[str] = ()) -> Samples:
    """What a training run reads: one snapshot but for some uids, or several mixed by weight."""
    return MixedSamples(shards_dir, config) if config.mix else ShardSamples(shards_dir, "train", verify=config.verify, without=without)
