"""Copies: who is a copy of whom, which copy stays, and what must never be split between training and test. Pure functions over hashes and embeddings.

N samples, D joint width, K centroids. Sources: methods/data.md 13; SemDeDup arXiv 2303.09540. Checked by golden `data/semdedup`.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vlm_core.data.filter.near_hashes import near_pairs, twins

Edges = NDArray[Any]  # (E, 2) rows


def preference(columns: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Rows from the copy that should stay to the one that should go; columns by importance, larger is better, and the last breaks ties (a uid: smaller is better)."""
    *values, uid = columns
    return np.lexsort((uid, *(-np.asarray(value, np.float64) for value in reversed(values))))


def first_of_each(keys: Sequence[Any], order: NDArray[Any]) -> NDArray[Any]:
    """Per row the row that survives it: the first one in `order` with the same key (itself, if it stays). An empty key is like no other."""
    survivor, seen = np.arange(len(keys)), dict[Any, int]()
    for row in order:
        if keys[row]:
            survivor[row] = seen.setdefault(keys[row], row)
    return survivor


class HashIndex(NamedTuple):
    """Which rows have equal, and which have near hashes. Equal rows are represented by one of them."""

    first: NDArray[Any]  # per row the representative of its hash, -1 for a hash that says nothing
    near: dict[int, list[int]]  # representative -> representatives within the radius
    edges: Edges  # the same as pairs


def hash_index(codes_NP: NDArray[Any], radius: int, usable: NDArray[Any], find: Callable[[NDArray[Any], int], NDArray[Any]] = near_pairs) -> HashIndex:
    """Index of packed hashes; rows that are not usable match nothing. `find` does the work of `near_pairs`, here or elsewhere."""
    rows = np.flatnonzero(usable)
    first, near = np.full(len(codes_NP), -1), dict[int, list[int]]()
    first[rows] = rows[twins(codes_NP[rows])] if len(rows) else rows
    edges = rows[find(codes_NP[rows], radius)] if len(rows) else np.zeros((0, 2), np.int64)
    for i, j in edges.tolist():
        near.setdefault(i, []).append(j)
        near.setdefault(j, []).append(i)
    return HashIndex(first, near, edges)


def involved(index: HashIndex) -> NDArray[np.bool_]:
    """Rows that have an equal or a near one."""
    used = index.first[index.first >= 0]
    many, counts = np.unique(used, return_counts=True)
    busy = np.union1d(many[counts > 1], np.fromiter(index.near, np.int64, len(index.near)))
    return np.isin(index.first, busy)


def survivors(order: NDArray[Any], indexes: Sequence[HashIndex], alike: Callable[[int, list[int]], NDArray[Any]]) -> NDArray[Any]:
    """Per row the row that survives it (itself, if it stays): rows are visited in `order`, and one goes when it is near to one that stays.

    Comparing with survivors only keeps a chain a~b~c from taking c away with a, to which it is not near (union-find would).

    Args:
        order: rows by preference, best first.
        indexes: a row is near another one by any of them ...
        alike: ... and if this second look at (row, survivors near to it) agrees.
    """
    survivor = np.arange(len(order))
    kept: list[dict[int, list[int]]] = [{} for _ in indexes]  # representative -> survivors with that hash
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    for row in order.tolist():
        places = [(held, index, int(index.first[row])) for held, index in zip(kept, indexes, strict=True) if index.first[row] >= 0]
        near = {other for held, index, code in places for at in (code, *index.near.get(code, ())) for other in held.get(at, ())}
        found = sorted(near, key=lambda other: rank[other])
        found = [other for other, same in zip(found, alike(row, found), strict=True) if same] if found else []
        if found:
            survivor[row] = found[0]
            continue
        for held, _, code in places:
            held.setdefault(code, []).append(row)
    return survivor


def components(n: int, edges: Edges) -> NDArray[Any]:
    """Union-find: per row the smallest row that it is connected with."""
    parent = list(range(n))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    for i, j in edges.tolist():
        a, b = root(i), root(j)
        parent[max(a, b)] = min(a, b)
    return np.array([root(row) for row in range(n)], np.int64)


def key_edges(keys: Sequence[Any]) -> Edges:
    """Edges that connect every row with the first of the same key; an empty key connects nothing."""
    first: dict[Any, int] = {}
    pairs = [(first.setdefault(key, row), row) for row, key in enumerate(keys) if key]
    return np.array([pair for pair in pairs if pair[0] != pair[1]], np.int64).reshape(-1, 2)


# ---- SemDeDup


def semdedup(
    embeddings_ND: NDArray[Any], centroids_KD: NDArray[Any], cluster_N: NDArray[Any], keep: Literal["hard", "easy"] = "hard", block: int = 2048
) -> tuple[NDArray[Any], NDArray[Any]]:
    """(rank in its cluster, largest cosine with any earlier row of it, at least 0).

    Inside a cluster rows are sorted by cosine distance to the centroid, the farthest first (`hard`) or last (`easy`). A row is a duplicate when its
    largest cosine exceeds 1 - eps; earlier rows count even if they are themselves duplicates, as in the reference.
    """
    rank, largest = np.zeros(len(cluster_N), np.int64), np.zeros(len(cluster_N), np.float32)
    for cluster in np.unique(cluster_N):
        rows = np.flatnonzero(cluster_N == cluster)
        order = rows[np.argsort(-centroid_distance(embeddings_ND[rows], centroids_KD[cluster]), kind="stable")]
        order = order if keep == "hard" else order[::-1]
        rank[order] = np.arange(len(order))
        largest[order] = _largest_before(embeddings_ND[order].astype(np.float32), block)
    return rank, largest


def centroid_distance(rows_ND: NDArray[Any], centroid_D: NDArray[Any]) -> NDArray[Any]:
    """Cosine distance of unit rows to a centroid of any length."""
    return 1 - rows_ND @ (centroid_D / max(float(np.linalg.norm(centroid_D)), 1e-12))


def _largest_before(rows: NDArray[Any], block: int) -> NDArray[Any]:
    """Per row the largest cosine with the rows above it, block by block: memory is O(block x rows of the cluster)."""
    out = np.zeros(len(rows), np.float32)
    for start in range(0, len(rows), block):
        stop = min(start + block, len(rows))
        sims = rows[start:stop] @ rows[:stop].T
        sims[np.arange(stop)[None, :] >= np.arange(start, stop)[:, None]] = 0
        out[start:stop] = np.maximum(sims.max(axis=1), 0)
    return out


def semantic_duplicates(max_sim: NDArray[Any], eps: float) -> NDArray[Any]:
    return max_sim > 1 - eps
