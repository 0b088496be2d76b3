"""What a scorer makes of a range of stored pictures: the part of `vlm embed` that looks at pixels, done wherever `vlm_core.ranges` puts it."""

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlm_core import ranges
from vlm_core.data.fetch.stored import Pictures
from vlm_core.models.scorer import Offline, device_of
from vlm_core.models.trained_scorer import Trained
from vlm_core.models.whole_batches import filled
from vlm_core.stage import Stage

RANGE = 512  # pictures whose outputs are kept together, so that a killed run goes on there


def offline(stage: Stage, scorer: Offline, uids: list[str]) -> dict[str, NDArray[np.float32]]:
    """`features` (N, 1280) and `bridge` (N, 384) of the pictures."""
    job = {"size_px": scorer.size_px, "names": scorer.names, "precision": scorer.precision, "device": scorer.device}
    return _all(stage, "trunk", "offline_worker", job, uids)


def trained(stage: Stage, folder: Path, device: str, uids: list[str]) -> NDArray[np.float32]:
    """Vectors (N, D) of the pictures."""
    return _all(stage, "trained", "trained_worker", {"model": str(folder.absolute()), "device": device}, uids)["image"]


def _all(stage: Stage, name: str, function: str, job: Mapping[str, Any], uids: list[str]) -> dict[str, NDArray[np.float32]]:
    job = {**job, "images": str(stage.input("images").absolute()), "uids": uids}
    folder = stage.state / f"{name}-{hashlib.sha256(json.dumps(uids).encode()).hexdigest()[:12]}"  # another list has other ranges
    files = ranges.work(folder, f"{__name__}:{function}", job, len(uids), RANGE, stage.progress)
    parts = [dict(np.load(file)) for file in files]
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


# ---------------------------------------------------------------- in the process that does a range


def offline_worker(job: Mapping[str, Any]) -> ranges.Worker:
    towers, images = Offline(job["size_px"], job["names"], job["precision"], device=device_of(job["device"])), _images(job)

    def work(begin: int, end: int) -> bytes:
        features, bridge = towers.trunk(filled(images(begin, end)))
        return _bytes(features=features.numpy()[: end - begin], bridge=bridge.numpy()[: end - begin])

    return work


def trained_worker(job: Mapping[str, Any]) -> ranges.Worker:
    scorer, images = Trained(Path(job["model"]), device_of(job["device"])), _images(job)
    return lambda begin, end: _bytes(image=scorer.encode_images(filled(images(begin, end)))[: end - begin])


def _images(job: Mapping[str, Any]) -> Callable[[int, int], list[Image.Image]]:
    store, uids = Pictures(Path(job["images"])), job["uids"]
    return lambda begin, end: [store.image(uid) for uid in uids[begin:end]]


def _bytes(**arrays: NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()
