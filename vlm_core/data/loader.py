"""Shards -> batches, in an order that is a pure function of (seed, epoch), whatever the number of ranks and reading processes.

    samples = ShardSamples(shards_dir, "train")                       random access through index.parquet; len(), .uids, .sample(row)
    samples = training_samples(shards_dir, Loader(mix=..))            the same over several snapshots, mixed by weight
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
import math
from bisect import bisect
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import accumulate
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
from vlm_core.data.samples import Samples
from vlm_core.data.text_rules import count_words
from vlm_core.errors import BadManifest, CheckpointError, Incompatible, VlmError


class Batch(TypedDict):
    images: Tensor
    texts: list[str]
    uids: list[str]
    origins: list[str]
    rows: Tensor


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

    def __init__(self, samples: Samples, config: Loader, transform: Transform, seed: int) -> None:
        self.samples, self.config, self.transform, self.seed = samples, config, transform, seed
        # a crop takes at least this share of the shorter side, so that a picture decoded at min_side is never enlarged
        self.min_side = math.ceil(transform.size_px / math.sqrt(transform.crop_scale_min / transform.crop_ratio_max))
        self.cache: dict[int, Tensor] = {}
        self.free = config.cache_mb * 10**6

    def __getitem__(self, part: tuple[NDArray[np.int64], NDArray[np.int64]]) -> Batch | VlmError:
        try:
            return self.batch(*part)
        except VlmError as error:
            return error

    def batch(self, rows: NDArray[np.int64], epochs: NDArray[np.int64]) -> Batch:
        images, texts, origins = [], [], []
        for row, epoch in zip(rows.tolist(), epochs.tolist(), strict=True):
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
        self, samples: Samples, config: Loader, transform: Transform, *, seed: int = 0, rank: int = 0, world: int = 1, steps: int | None = None
    ) -> None:
        if config.batch_size % world:
            raise Incompatible(f"Found batch_size {config.batch_size} for {world} ranks, expected a multiple of {world}; change batch_size.")
        self.order = samples.order(config.batch_size, seed, config.shuffle_window)
        self.steps_per_epoch = self.order.steps_per_epoch
        if not self.steps_per_epoch:
            raise Incompatible(
                f"Found {len(samples)} training samples for batch_size {config.batch_size} ({config.batch_size // world} on each of {world} ranks), expected at least one batch on every rank; lower batch_size."
            )
        self.samples, self.config, self.transform, self.seed = samples, config, transform, seed
        self.rank, self.world, self.steps, self.step = rank, world, steps, 0
        self.mixture: Counter[str] = Counter()  # captions seen so far on this rank, by origin
        self._reader = _Reader(samples, config, transform, seed)

    @property
    def epoch(self) -> int:
        return self.step // self.steps_per_epoch

    def __len__(self) -> int:
        return self.steps_per_epoch if self.steps is None else self.steps

    def part_of(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The rows that this rank reads at a global step, and the pass of each over its snapshot."""
        mine = slice(self.rank * self.config.batch_size // self.world, (self.rank + 1) * self.config.batch_size // self.world)
        rows, epochs = self.order.part(step)
        return rows[mine], epochs[mine]

    def __iter__(self) -> Iterator[Batch]:
        end = (self.epoch + 1) * self.steps_per_epoch if self.steps is None else self.steps
        parts = (self.part_of(step) for step in range(self.step, end))
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
