"""Which scored rows stay: fractions and clusters. Pure and deterministic: ties are broken by uid, chance is a hash of uid and seed.

N samples, D joint width, K centroids.
Sources: methods/data.md 5, 6. Checked by golden `data/{datacomp_basic,datacomp_image_based}`.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vlm_core.data import draws

Names: TypeAlias = NDArray[Any] | pa.DictionaryArray  # a text per row

# ---- fractions


def fraction_threshold(scores: NDArray[Any], fraction: float, mode: Literal["fixed", "reference"] = "fixed") -> float:
    """The lowest score that stays when the best `fraction` is kept. `reference` is DataComp's: rank int(N f) counted from 0, so one more and all ties stay."""
    ranked = np.sort(scores)[::-1]
    rank = int(len(scores) * fraction)
    index = rank if mode == "reference" else rank - 1
    return float(ranked[min(index, len(ranked) - 1)]) if index >= 0 else float("inf")


def keep_top(scores: NDArray[Any], uids: Sequence[str], fraction: float, mode: Literal["fixed", "reference"] = "fixed") -> NDArray[Any]:
    """Mask of the best fraction: exactly int(N f) rows, equal scores by uid; `reference` keeps everything at or above its threshold."""
    if mode == "reference":
        return scores >= np.asarray(fraction_threshold(scores, fraction, mode), scores.dtype)
    keep = np.zeros(len(scores), bool)
    keep[np.lexsort((np.asarray(uids), -scores))[: int(len(scores) * fraction)]] = True
    return keep


class Ranking:
    """The best share inside each name (a language, say), exactly, in two looks over blocks of rows; memory is a histogram and the rows of one bin per name.

    First `count` every block, then `collect` every block, then `decide` any. Bins are the leading bits of the scores. Rows rise with the uid, so that they
    break ties as `keep_top` does. A name with any row keeps at least one.
    """

    def __init__(self, fraction: float, mode: Literal["fixed", "reference"] = "fixed") -> None:
        self._fraction, self._mode = fraction, mode
        self._bins: dict[str, list[tuple[NDArray[np.int32], NDArray[np.int64]]]] = {}  # (bins, rows in each)
        self._inside: dict[str, list[tuple[NDArray[Any], NDArray[Any]]]] = {}
        self._edges: dict[str, tuple[int, int]] = {}
        self._cuts: dict[str, tuple[float, float]] = {}

    def count(self, names: Names, scores: NDArray[Any]) -> None:
        for name, at in rows_by_name(names):
            parts = self._bins.setdefault(name, [])
            parts.append(np.unique(_bins(scores[at]), return_counts=True))
            if len(parts) == FULL:
                parts[:] = [_added(parts)]

    def collect(self, names: Names, scores: NDArray[Any], rows: NDArray[Any]) -> None:
        for name, at in rows_by_name(names):
            if name not in self._edges:
                self._edges[name] = self._edge(name)
            own = scores[at]
            inside = _bins(own) == self._edges[name][0]
            self._inside.setdefault(name, []).append((own[inside], rows[at][inside]))

    def decide(self, names: Names, scores: NDArray[Any], rows: NDArray[Any]) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
        """(mask, threshold per row); a row without a score, which no name counted, does not stay and has no threshold."""
        keep, threshold, has = np.zeros(len(scores), bool), np.full(len(scores), np.nan), np.isfinite(scores)
        for name, at in rows_by_name(names):
            if name not in self._cuts and name in self._edges:
                self._cuts[name] = self._cut(name)
            least, last = self._cuts.get(name, (np.nan, 0.0))
            own = scores[at]
            keep[at], threshold[at] = (own > least) | ((own == least) & (rows[at] <= last)), least
        threshold[~has] = np.nan
        return keep & has, threshold

    def _edge(self, name: str) -> tuple[int, int]:
        """(bin of the last row that stays, how many of its rows stay before that one)."""
        bins, counts = _added(self._bins[name])
        total = int(counts.sum())
        rank = int(total * max(self._fraction, 1.0 / total + 1e-12))
        left = min(rank if self._mode == "reference" else rank - 1, total - 1)
        above = np.cumsum(counts[::-1])
        place = int(np.searchsorted(above, left, side="right"))
        return int(bins[::-1][place]), left - int(above[place] - counts[::-1][place])

    def _cut(self, name: str) -> tuple[float, float]:
        """(threshold, last row that stays of those that equal it)."""
        scores, rows = (np.concatenate(parts) for parts in zip(*self._inside[name], strict=True))
        last = np.lexsort((rows, -scores))[self._edges[name][1]]
        return float(scores[last]), float("inf") if self._mode == "reference" else float(rows[last])


FULL = 64  # blocks whose histograms wait before they are added up


def _added(parts: list[tuple[NDArray[np.int32], NDArray[np.int64]]]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """The sum of histograms; bins rise."""
    bins, where = np.unique(np.concatenate([bins for bins, _ in parts]), return_inverse=True)
    counts = np.zeros(len(bins), np.int64)
    np.add.at(counts, where, np.concatenate([counts for _, counts in parts]))
    return bins, counts


def _bins(scores: NDArray[Any]) -> NDArray[np.int32]:
    """Sign, exponent and 10 bits of the fraction, as integers in the order of the scores."""
    bits = (np.asarray(scores, np.float64) + 0.0).view(np.int64)  # + 0: minus zero is zero
    return ((bits ^ ((bits >> 63) & np.int64(2**63 - 1))) >> 42).astype(np.int32)


def rows_by_name(names: Names) -> Iterator[tuple[str, NDArray[np.int64] | slice]]:
    """(name, its positions), by name."""
    known = names if isinstance(names, pa.DictionaryArray) else pa.array(names, pa.string()).dictionary_encode()
    codes, values = known.indices.to_numpy(), known.dictionary.to_pylist()
    found = np.bincount(codes, minlength=len(values))
    for code in sorted(np.flatnonzero(found).tolist(), key=values.__getitem__):
        yield values[code], slice(None) if found[code] == len(codes) else np.flatnonzero(codes == code)


def uid_pairs(uids: Sequence[str]) -> NDArray[Any]:
    """Sorted (hi, lo) halves of 128-bit uids, DataComp's subset file format: uint64 (N, 2)."""
    halves = np.frombuffer(bytes.fromhex("".join(uids)), ">u8").astype(np.uint64).reshape(-1, 2)
    return halves[np.lexsort((halves[:, 1], halves[:, 0]))]


# ---- clusters


def assign_centroids(features_ND: NDArray[Any], centroids_KD: NDArray[Any], block: int = 8192) -> NDArray[Any]:
    """Index of the centroid with the largest dot product; centroids are not normalised, as in DataComp (long ones attract more)."""
    parts = [np.argmax(features_ND[i : i + block] @ centroids_KD.T, axis=1) for i in range(0, len(features_ND), block)]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def cluster_filter(ids: NDArray[Any], target_ids: NDArray[Any]) -> NDArray[Any]:
    """Mask of the rows whose cluster also holds a target image."""
    return np.isin(ids, target_ids)


def kmeans(rows_ND: NDArray[Any], clusters: int, iterations: int, seed: int, spherical: bool) -> NDArray[Any]:
    """Centroids (K, D) by faiss, on all rows; at most one cluster per 39 rows (faiss's own advice), whatever was asked."""
    import faiss

    k = max(1, min(clusters, len(rows_ND) // 39))
    index = faiss.Kmeans(rows_ND.shape[1], k, niter=iterations, seed=seed, spherical=spherical, max_points_per_centroid=10**9, verbose=False)
    index.train(np.ascontiguousarray(rows_ND, np.float32))
    return np.asarray(index.centroids)


# ---- chance


def uniform(uids: Sequence[str], seed: int) -> NDArray[Any]:
    """A number in [0, 1) per uid, equal on every machine and in every order."""
    return np.array([draws.uniform(seed, uid) for uid in uids], np.float64)
