"""Copies: who is a copy of whom, which copy stays, and what must never be split between training and test. Pure functions over hashes and embeddings.

N samples, D joint width, K centroids. Sources: methods/data.md 13; SemDeDup arXiv 2303.09540. Checked by golden `data/semdedup`.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
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
    """Per row the smallest row that it is connected with."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    if not len(edges):
        return np.arange(n)
    graph = coo_matrix((np.ones(len(edges), np.bool_), (edges[:, 0], edges[:, 1])), shape=(n, n))
    labels = connected_components(graph, directed=False)[1]
    return np.asarray(np.unique(labels, return_index=True)[1][labels], np.int64)


def coded(parts: Iterable[Iterable[str]]) -> NDArray[np.int64]:
    """A number per text, equal for equal ones; -1 for an empty one. Texts come in blocks, and each is held once."""
    texts = pa.chunked_array([pa.array(list(part), pa.large_string()) for part in parts], pa.large_string())
    known = pa.DictionaryArray.from_arrays(pa.array([], pa.int32()), pa.array([], pa.large_string())) if not len(texts) else _whole(texts.dictionary_encode())
    numbers = known.indices.to_numpy().astype(np.int64)
    numbers[numbers == pc.index(known.dictionary, "").as_py()] = -1
    return numbers


def _whole(column: pa.ChunkedArray) -> pa.DictionaryArray:
    found = column.unify_dictionaries().combine_chunks()
    return found.chunk(0) if isinstance(found, pa.ChunkedArray) else found


def key_edges(numbers: NDArray[np.int64]) -> Edges:
    """Edges that connect every row with the first of the same number; a negative one connects nothing."""
    rows = np.flatnonzero(numbers >= 0)
    rows = rows[np.argsort(numbers[rows], kind="stable")]
    begins = np.flatnonzero(np.diff(numbers[rows], prepend=-1))
    first = np.repeat(rows[begins], np.diff(begins, append=len(rows)))
    return np.stack([first, rows], axis=1)[first != rows]


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
