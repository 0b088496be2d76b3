"""Shards -> batches, in an order that is a pure function of (seed, epoch), whatever the number of ranks and reading processes.

    samples = ShardSamples(shards_dir, "train")                       random access through index.parquet; len(), .uids, .sample(row)
    loader = TrainLoader(samples, Loader(batch_size=128), transform, seed=0, rank=0, world=1, steps=None)
    for batch in loader: ...                                          one epoch; or `steps` steps across epochs, if given
    loader.state_dict() -> {"step": ..}; loader.load_state_dict(..)   exact resume, also with another number of ranks

Batch: images uint8 (B,3,S,S) after random resized crop, not normalised: call `transform.normalise(batch["images"])` where the model runs.
       texts, uids, origins: lists of B; rows: int64 (B,), the row of each sample in `samples` (to look up cached features).

Every step takes `batch_size` samples over all ranks; rank r takes its equal part, so all ranks see the same number of batches. The last samples of an
epoch that do not fill a step are left out (others in each epoch). Crops and caption choice depend on (seed, epoch, uid) only.
"""

import hashlib
import io
import json
import math
import os
from bisect import bisect
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import Any, TypedDict

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from vlm_core.data.augment import Transform
from vlm_core.data.config import Loader
from vlm_core.data.shards import Sample, read_index, read_manifest
from vlm_core.data.text_rules import count_words
from vlm_core.errors import BadManifest, CheckpointError, Incompatible, NothingLeft, VlmError

OPEN_FILES = 64


class Batch(TypedDict):
    images: Tensor
    texts: list[str]
    uids: list[str]
    origins: list[str]
    rows: Tensor


class ShardSamples:
    """Random access to the samples of one split. Rows are in stored order."""

    def __init__(self, shards_dir: Path, split: str = "train") -> None:
        self._open: dict[str, int] = {}
        self.shards_dir, self.split = shards_dir, split
        self.digest = read_manifest(shards_dir)["index"]["md5"]
        index = read_index(shards_dir, split)
        if not len(index):
            raise NothingLeft(f"Found no sample in the {split!r} split of {shards_dir}, expected some; choose train or heldout.")
        names = index["shard"].to_pylist()
        self.shards = list(dict.fromkeys(names))
        self.uids: list[str] = index["uid"].to_pylist()
        number = {name: place for place, name in enumerate(self.shards)}
        self.shard_of = np.array([number[name] for name in names], np.int32)
        self._places = np.stack([index[name].to_numpy() for name in ("jpg_offset", "jpg_size", "json_offset", "json_size")], 1)

    def __len__(self) -> int:
        return len(self.uids)

    def jpeg(self, row: int) -> bytes:
        return self._read(row, *self._places[row, :2])

    def record(self, row: int) -> dict[str, Any]:
        try:
            record: dict[str, Any] = json.loads(self._read(row, *self._places[row, 2:]))
            return record
        except ValueError as error:
            raise BadManifest(
                f"Found a record that cannot be read, sample {self.uids[row]} of {self.shards_dir} ({error}), expected JSON; make the shards again."
            ) from None

    def sample(self, row: int) -> Sample:
        return Sample(self.uids[row], self.jpeg(row), self.record(row))

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


# ---------------------------------------------------------------- pure rules


def epoch_order(shard_of: NDArray[np.int32], seed: int, epoch: int, window: int) -> NDArray[np.int64]:
    """Every row once: shards in random order, samples mixed within each run of `window` shards."""
    random = np.random.default_rng([seed, epoch])
    place = random.permutation(int(shard_of.max()) + 1)
    return np.lexsort((random.random(len(shard_of)), place[shard_of] // window)).astype(np.int64)


def choose_caption(record: dict[str, Any], weights: Mapping[str, float], seed: int, epoch: int) -> tuple[str, str]:
    """(text, origin) for one pass over a sample: one of its captions, drawn by the weight of its origin; a choice of fewer than two words gives the raw one.

    Source: LaCLIP, arXiv 2305.20088, section 3.2 (uniform over raw and rewrites; the two-word rule is its released data.py). Words are counted by script.
    """
    captions = record["captions"]
    odds = list(accumulate(weights.get(caption["origin"], 1.0) for caption in captions))
    chosen = captions[0]
    if odds[-1] > 0:
        chosen = captions[bisect(odds, _uniform(f"caption/{seed}/{epoch}/{record['uid']}") * odds[-1], hi=len(odds) - 1)]
    if count_words(chosen["text"]) < 2:
        chosen = captions[0]
    return chosen["text"], chosen["origin"]


def decode(jpeg: bytes, min_side: int = 0) -> Tensor:
    """uint8 (3,H,W), RGB. JPEG is decoded at the smallest of its own scales whose shorter side is at least min_side (0: full size).

    simplejpeg was the fastest of three (`benchmarks/results/loader.txt`); PIL takes what it refuses, such as CMYK.
    """
    try:
        if jpeg[:2] == b"\xff\xd8":
            pixels = simplejpeg.decode_jpeg(jpeg, min_height=min_side, min_width=min_side)
            return torch.from_numpy(pixels).permute(2, 0, 1)
    except ValueError:
        pass  # an unusual JPEG: PIL decides
    with Image.open(io.BytesIO(jpeg)) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def _uniform(text: str) -> float:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest()) / 2**56


# ---------------------------------------------------------------- the loader


class _Reader(Dataset[Batch | VlmError]):
    """What a reading process does: (rows, epoch) -> one batch, or the error that its parent shall raise (torch would wrap it in a traceback)."""

    def __init__(self, samples: ShardSamples, config: Loader, transform: Transform, seed: int) -> None:
        self.samples, self.config, self.transform, self.seed = samples, config, transform, seed
        # a crop takes at least this share of the shorter side, so that a picture decoded at min_side is never enlarged
        self.min_side = math.ceil(transform.size_px / math.sqrt(transform.crop_scale_min / transform.crop_ratio_max))
        self.cache: dict[int, Tensor] = {}
        self.free = config.cache_mb * 10**6

    def __getitem__(self, part: tuple[NDArray[np.int64], int]) -> Batch | VlmError:
        try:
            return self.batch(*part)
        except VlmError as error:
            return error

    def batch(self, rows: NDArray[np.int64], epoch: int) -> Batch:
        images, texts, origins = [], [], []
        for row in rows.tolist():
            uid, record = self.samples.uids[row], self.samples.record(row)
            images.append(self.transform.train_square(self.picture(row), Random(f"crop/{self.seed}/{epoch}/{uid}")))
            text, origin = choose_caption(record, self.config.caption_weights, self.seed, epoch)
            texts.append(text)
            origins.append(origin)
        return Batch(
            images=torch.stack(images), texts=texts, uids=[self.samples.uids[row] for row in rows], origins=origins, rows=torch.from_numpy(rows.copy())
        )

    def picture(self, row: int) -> Tensor:
        if row in self.cache:
            return self.cache[row]
        try:
            image = decode(self.samples.jpeg(row), self.min_side)
        except (OSError, ValueError) as error:
            raise BadManifest(
                f"Found a picture that cannot be decoded, sample {self.samples.uids[row]} of {self.samples.shards_dir} ({error}), expected a JPEG; make the shards again."
            ) from None
        if image.nbytes <= self.free:
            self.cache[row] = image
            self.free -= image.nbytes
        return image


class TrainLoader:
    """See the top of this file. Lightning keeps its place in checkpoints, as it has state_dict and load_state_dict."""

    def __init__(
        self, samples: ShardSamples, config: Loader, transform: Transform, *, seed: int = 0, rank: int = 0, world: int = 1, steps: int | None = None
    ) -> None:
        if config.batch_size % world:
            raise Incompatible(f"Found batch_size {config.batch_size} for {world} ranks, expected a multiple of {world}; change batch_size.")
        self.steps_per_epoch = len(samples) // config.batch_size
        if not self.steps_per_epoch:
            raise Incompatible(
                f"Found {len(samples)} training samples for batch_size {config.batch_size} ({config.batch_size // world} on each of {world} ranks), expected at least one batch on every rank; lower batch_size."
            )
        self.samples, self.config, self.transform, self.seed = samples, config, transform, seed
        self.rank, self.world, self.steps, self.step = rank, world, steps, 0
        self.mixture: Counter[str] = Counter()  # captions seen so far on this rank, by origin
        self._reader = _Reader(samples, config, transform, seed)
        self._order = (-1, np.empty(0, np.int64))  # of the epoch last asked for

    @property
    def epoch(self) -> int:
        return self.step // self.steps_per_epoch

    def __len__(self) -> int:
        return self.steps_per_epoch if self.steps is None else self.steps

    def rows_of(self, step: int) -> NDArray[np.int64]:
        """The rows that this rank reads at a global step."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._order[0] != epoch:
            self._order = (epoch, epoch_order(self.samples.shard_of, self.seed, epoch, self.config.shuffle_window))
        mine = self.config.batch_size // self.world
        begin = place * self.config.batch_size + self.rank * mine
        return self._order[1][begin : begin + mine]

    def __iter__(self) -> Iterator[Batch]:
        end = (self.epoch + 1) * self.steps_per_epoch if self.steps is None else self.steps
        parts = ((self.rows_of(step), step // self.steps_per_epoch) for step in range(self.step, end))
        generator = torch.Generator()  # its own: drawing from the global one would change dropout on resume
        workers = self.config.workers
        for batch in DataLoader(
            self._reader, batch_size=None, sampler=_Once(parts), num_workers=workers, generator=generator, prefetch_factor=4 if workers else None
        ):
            if isinstance(batch, VlmError):
                raise batch
            self.step += 1  # before the yield: a checkpoint taken during the step counts it
            self.mixture.update(batch["origins"])
            yield batch

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "seed": self.seed, "batch_size": self.config.batch_size, "data": self.samples.digest}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after the last batch that was handed out. Raises CheckpointError if the order would be another one."""
        here = self.state_dict()
        for name in ("seed", "batch_size", "data"):
            if state[name] != here[name]:
                raise CheckpointError(
                    f"Found a checkpoint whose loader had {name} {state[name]!r}, expected {here[name]!r} as now; start afresh or restore that setting."
                )
        self.step = int(state["step"])


class _Once(Sampler[Any]):
    """Hands a generator to DataLoader as its order."""

    def __init__(self, parts: Iterator[Any]) -> None:
        self.parts = parts

    def __iter__(self) -> Iterator[Any]:
        return self.parts
