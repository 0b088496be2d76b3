"""The heavy part of finding duplicates, cut into ranges (`vlm_core.ranges`): near hashes by the parts of the hash, SemDeDup by its clusters.

Without another engine the same functions run as they are, so nothing is written for a single machine.
"""

import functools
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlm_core import ranges
from vlm_core.data.filter import dedup
from vlm_core.data.filter import near_hashes

CLUSTERS = 16  # in one range


def near_pairs(scratch: Path | None) -> Callable[[NDArray[Any], int], NDArray[Any]]:
    """`near_hashes.near_pairs`, one range per part of the hash where there is another engine and a folder for them."""
    return near_hashes.near_pairs if scratch is None or not ranges.elsewhere() else functools.partial(_near_pairs, scratch)


def _near_pairs(scratch: Path, codes_NP: NDArray[Any], radius: int) -> NDArray[Any]:
    folder = scratch / f"near_{16 * codes_NP.shape[1]}_bits"
    job = {"codes": _kept(folder, "codes", codes_NP), "radius": radius}
    files = ranges.work(folder, f"{__name__}:near_worker", job, near_hashes.parts_of(codes_NP, radius), 1)
    return np.unique(np.concatenate([np.load(file) for file in files]), axis=0)


def semdedup(
    scratch: Path | None, images_ND: NDArray[Any], centroids_KD: NDArray[Any], cluster_N: NDArray[Any], keep: str
) -> tuple[NDArray[Any], NDArray[Any]]:
    """`dedup.semdedup`, a range of clusters at a time where there is another engine."""
    if scratch is None or not ranges.elsewhere():
        return dedup.semdedup(images_ND, centroids_KD, cluster_N, keep)  # type: ignore[arg-type]
    folder = scratch / "semdedup"
    arrays = {"images": images_ND, "centroids": centroids_KD, "clusters": cluster_N}
    job = {"keep": keep, **{name: _kept(folder, name, array) for name, array in arrays.items()}}
    rank, largest = np.zeros(len(cluster_N), np.int64), np.zeros(len(cluster_N), np.float32)
    for file in ranges.work(folder, f"{__name__}:semdedup_worker", job, len(centroids_KD), CLUSTERS):
        with np.load(file) as found:
            rank[found["rows"]], largest[found["rows"]] = found["rank"], found["largest"]
    return rank, largest


def _kept(folder: Path, name: str, array: NDArray[Any]) -> str:
    """The file of an array that every worker reads."""
    folder.mkdir(parents=True, exist_ok=True)
    part, file = folder / f".{name}.part.npy", (folder / f"{name}.npy").absolute()
    np.save(part, array)
    part.rename(file)
    return str(file)


# ---------------------------------------------------------------- in the process that does a range


def near_worker(job: Mapping[str, Any]) -> ranges.Worker:
    codes_NP = np.load(job["codes"])
    return lambda begin, end: _bytes(np.save, near_hashes.near_pairs(codes_NP, job["radius"], slice(begin, end)))


def semdedup_worker(job: Mapping[str, Any]) -> ranges.Worker:
    images_ND, centroids_KD, cluster_N = (np.load(job[name], mmap_mode="r") for name in ("images", "centroids", "clusters"))

    def work(begin: int, end: int) -> bytes:
        rows = np.flatnonzero((cluster_N >= begin) & (cluster_N < end))
        rank, largest = dedup.semdedup(images_ND[rows], centroids_KD, cluster_N[rows], job["keep"])
        return _bytes(np.savez, rows=rows, rank=rank, largest=largest)

    return work


def _bytes(save: Callable[..., None], *arrays: NDArray[Any], **named: NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    save(stream, *arrays, **named)
    return stream.getvalue()
