"""Shards -> batches, in an order that is a pure function of (seed, epoch), whatever the number of ranks and reading processes.

    samples = ShardSamples(shards_dir, "train")                       random access through index.parquet; len(), .uids, .sample(row)
    samples = training_samples(shards_dir, Loader(mix=..))            the same over several snapshots, mixed by weight
    loader = TrainLoader(samples, Loader(batch_size=128), transform, seed=0, rank=0, world=1, steps=None)
    for batch in loader: ...                                          one epoch; or `steps` steps across epochs, if given
    loader.state_dict() -> {"step": ..}; loader.load_state_dict(..)   exact resume, also with another number of ranks

Batch: images uint8 (B,3,S,S) after random resized crop, not normalised: call `transform.normalise(batch["images"])` where the model runs.
       texts, uids, origins, pictures (SHA-256 as fetched): lists of B; step: of the whole run, from 0; rows: int64 (B,), the row of each sample in `samples` (to look up cached features);
       epochs: int64 (B,), the pass of each over its snapshot.
       With `beside` also views, augmented_texts and superpixels (`vlm_core/data/shards/views.py`).
       With `second_caption` texts are the raw captions, and captions (lists of B, too) the second ones, whose origins are counted.

Every step takes `batch_size` samples over all ranks; rank r takes its equal part, so all ranks see the same number of batches. The last samples of an
epoch that do not fill a step are left out (others in each epoch). Crops and caption choice depend on (seed, epoch, uid) only.
"""

import io
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from random import Random
from typing import Any, NotRequired, TypedDict, cast

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from vlm_core.data.config import Loader
from vlm_core.data.shards.augment import Transform
from vlm_core.data.shards.mixture import read_caption, read_two
from vlm_core.data.shards.order import LanguageOrder
from vlm_core.data.shards.samples import Samples
from vlm_core.data.shards.views import Beside
from vlm_core.errors import BadManifest, CheckpointError, Incompatible, VlmError


class Batch(TypedDict):
    images: Tensor
    texts: list[str]
    uids: list[str]
    origins: list[str]
    pictures: list[str]
    rows: Tensor
    epochs: NotRequired[Tensor]
    step: NotRequired[int]
    captions: NotRequired[list[str]]
    views: NotRequired[list[Tensor]]
    augmented_texts: NotRequired[list[str]]
    superpixels: NotRequired[Tensor]


def decode(jpeg: bytes, min_side: int = 0) -> Tensor:
    """uint8 (3,H,W), RGB. JPEG is decoded at the smallest scale of 1, 1/2, 1/4 and 1/8 whose shorter side is at least min_side (0: full size).

    The scales between have no fast transform: 7/8 of a picture takes twice as long as the whole. simplejpeg was the fastest of three
    (`benchmarks/results/loader.txt`); PIL takes what it refuses, such as CMYK.
    """
    try:
        if jpeg[:2] == b"\xff\xd8":
            side = _fast_side(jpeg, min_side) if min_side else 0
            pixels = simplejpeg.decode_jpeg(jpeg, min_height=side, min_width=side)
            return torch.from_numpy(pixels).permute(2, 0, 1)
    except ValueError:
        pass  # an unusual JPEG: PIL decides
    with Image.open(io.BytesIO(jpeg)) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def _fast_side(jpeg: bytes, min_side: int) -> int:
    """The shorter side at the smallest fast scale that leaves min_side; 0 for full size."""
    short = min(simplejpeg.decode_jpeg_header(jpeg)[:2])
    return next((-(-short // part) for part in (8, 4, 2) if -(-short // part) >= min_side), 0)


def side_for(size_px: int, share: float, ratio_max: float) -> int:
    """Shorter side of a decoded picture from which no crop of at least this share of its area has to be enlarged to size_px."""
    return math.ceil(size_px / math.sqrt(share / ratio_max))


def crop_dice(seed: int, epoch: int, uid: str) -> Random:
    """What decides the crop of a sample in an epoch."""
    return Random(f"crop/{seed}/{epoch}/{uid}")


# ---------------------------------------------------------------- the loader


class _Reader(Dataset[Batch | VlmError]):
    """What a reading process does: (rows, epoch) -> one batch, or the error that its parent shall raise (torch would wrap it in a traceback)."""

    def __init__(self, samples: Samples, config: Loader, transform: Transform, seed: int, beside: Beside | None) -> None:
        self.samples, self.config, self.transform, self.seed, self.beside = samples, config, transform, seed, beside
        # a crop takes at least this share of the shorter side, so that a picture decoded at min_side is never enlarged
        share = min(transform.crop_scale_min, beside.crop_scale_min) if beside else transform.crop_scale_min
        self.min_side = side_for(transform.size_px, share, transform.crop_ratio_max)
        self.cache: dict[int, Tensor] = {}
        self.free = config.cache_mb * 10**6

    def __getitem__(self, part: tuple[NDArray[np.int64], NDArray[np.int64]]) -> Batch | VlmError:
        try:
            return self.batch(*part)
        except VlmError as error:
            return error

    def batch(self, rows: NDArray[np.int64], epochs: NDArray[np.int64]) -> Batch:
        images, chosen, pictures, more, two = [], [], [], [], bool(self.config.second_caption)
        for row, epoch in zip(rows.tolist(), epochs.tolist(), strict=True):
            uid, record, picture = self.samples.uids[row], self.samples.record(row), self.picture(row)
            images.append(self.transform.train_square(picture, crop_dice(self.seed, epoch, uid)))
            chosen.append((read_two if two else read_caption)(record, self.config, self.seed, epoch))
            pictures.append(str(record["sha256"]))
            more += [self.beside.of(picture, chosen[-1][0], f"{self.seed}/{epoch}/{uid}")] if self.beside else []
        texts, *second, origins = map(list, zip(*chosen, strict=True))
        batch = Batch(
            images=torch.stack(images),
            texts=texts,
            uids=[self.samples.uids[row] for row in rows],
            origins=origins,
            pictures=pictures,
            rows=torch.from_numpy(rows.copy()),
            epochs=torch.from_numpy(epochs.copy()),
        )
        seconds: dict[str, Any] = {"captions": second[0]} if two else {}
        return cast(Batch, {**batch, **seconds, **(self.beside.batch(more) if self.beside else {})})

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
        self, samples: Samples, config: Loader, transform: Transform, *, seed: int = 0, rank: int = 0, world: int = 1, steps: int | None = None,
        beside: Beside | None = None,
    ) -> None:  # fmt: skip
        if config.batch_size % world:
            raise Incompatible(f"Found batch_size {config.batch_size} for {world} ranks, expected a multiple of {world}; change batch_size.")
        self.order = samples.order(config, seed)
        self.steps_per_epoch = self.order.steps_per_epoch
        if not self.steps_per_epoch:
            raise Incompatible(
                f"Found {len(samples)} training samples for batch_size {config.batch_size} ({config.batch_size // world} on each of {world} ranks), expected at least one batch on every rank; lower batch_size."
            )
        self.samples, self.config, self.transform, self.seed = samples, config, transform, seed
        self.rank, self.world, self.steps, self.step = rank, world, steps, 0
        self.mixtures: dict[int, Counter[str]] = {}  # captions read so far on this rank: epoch -> origin -> how often
        self.languages: dict[int, Counter[str]] = {}  # samples so far on this rank by language, likewise, if languages are drawn by weight
        self._reader = _Reader(samples, config, transform, seed, beside)

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
            self._reader,
            batch_size=None,
            sampler=_Once(parts),
            num_workers=workers,
            generator=generator,
            prefetch_factor=4 if workers else None,
            collate_fn=_as_it_is,
        ):
            if isinstance(batch, VlmError):
                raise batch
            batch["step"] = self.step
            self.count(batch["origins"], batch["rows"].numpy())  # before the yield: a checkpoint taken during the step counts it
            yield batch

    def count(self, origins: Iterable[str], rows: NDArray[np.int64]) -> None:
        """A step was read: these rows, with captions of these origins."""
        self.mixtures.setdefault(self.epoch, Counter()).update(origins)
        if isinstance(self.order, LanguageOrder):
            self.languages.setdefault(self.epoch, Counter()).update(self.order.languages[row] for row in rows.tolist())
        self.step += 1

    @property
    def mixture(self) -> dict[str, Counter[str]]:
        """What was read so far on this rank: captions by origin, and samples by language where languages are drawn by weight."""
        return {name: sum(counted.values(), Counter()) for name, counted in self.counted.items()}

    @property
    def counted(self) -> dict[str, dict[int, Counter[str]]]:
        return {"captions": self.mixtures, **({"languages": self.languages} if self.languages else {})}

    def state_dict(self) -> dict[str, Any]:
        mixtures, languages = ({str(epoch): dict(seen) for epoch, seen in counted.items()} for counted in (self.mixtures, self.languages))
        return {"mixtures": mixtures, "languages": languages, "step": self.step, **self._order()}

    def _order(self) -> dict[str, Any]:
        """All that the order of samples depends on."""
        named = ("batch_size", "shuffle_window", "debiased", "language_power")
        return {"seed": self.seed, "data": self.samples.digest, **{name: getattr(self.config, name) for name in named}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after the last batch that was handed out. Raises CheckpointError if the order would be another one."""
        for name, now in self._order().items():
            if state.get(name) != now:
                raise CheckpointError(
                    f"Found a checkpoint whose loader had {name} {state.get(name)!r}, expected {now!r} as now; start afresh or restore that setting."
                )
        self.step = int(state["step"])
        self.mixtures, self.languages = ({int(epoch): Counter(seen) for epoch, seen in state.get(name, {}).items()} for name in ("mixtures", "languages"))


def _as_it_is(batch: Any) -> Any:
    """DataLoader's own conversion would look at every string of a batch, a tenth of the whole time."""
    return batch


class _Once(Sampler[Any]):
    """Hands a generator to DataLoader as its order."""

    def __init__(self, parts: Iterator[Any]) -> None:
        self.parts = parts

    def __iter__(self) -> Iterator[Any]:
        return self.parts
