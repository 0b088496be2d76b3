"""SemDeDup beyond the clusters: pairs that a border between clusters parts, and duplicates of kept pictures only.

The reference (`dedup.semdedup`) compares inside a cluster, and a row is a duplicate of any earlier one, even of one that goes itself. Here a row also
meets the members of the clusters whose centroids are next nearest to it, and with `greedy` only rows that stay make others go, so the far end of a
chain a~b~c stays.

N samples, D joint width, K centroids, M clusters that a row visits. Source: methods/data.md 13; arXiv 2303.09540.
"""

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vlm_core.data.filter.dedup import centroid_distance

Rows = NDArray[np.int64]


class Meeting(NamedTuple):
    """Rows that are compared with each other."""

    first: Rows
    second: Rows
    cosines: NDArray[np.float32]  # (first, second)


def nearest_clusters(images_ND: NDArray[Any], centroids_KD: NDArray[Any], count: int, block: int = 8192) -> Rows:
    """(N, count) clusters by falling dot product with their centroids; the first is the row's own."""
    count = min(count, len(centroids_KD))
    parts = [np.argsort(-(images_ND[i : i + block] @ centroids_KD.T), axis=1, kind="stable")[:, :count] for i in range(0, len(images_ND), block)]
    return np.concatenate(parts) if parts else np.zeros((0, count), np.int64)


def visiting_order(images_ND: NDArray[Any], centroids_KD: NDArray[Any], own_N: Rows, keep: Literal["hard", "easy"]) -> Rows:
    """Rows by distance from their own centroid, the farthest first (`hard`) or last: inside a cluster the order of `dedup.semdedup`."""
    distance = np.empty(len(own_N))
    for cluster in np.unique(own_N):
        rows = np.flatnonzero(own_N == cluster)
        distance[rows] = centroid_distance(images_ND[rows], centroids_KD[cluster])
    order = np.argsort(-distance, kind="stable")
    return order if keep == "hard" else order[::-1]


def meetings(images_ND: NDArray[Any], nearest_NM: Rows, inside: bool = True, block: int = 2048) -> Iterator[Meeting]:
    """Members of a cluster with each other (if `inside`) and with its guests, in blocks: memory is O(block x members)."""
    own = nearest_NM[:, 0]
    for cluster in np.unique(own):
        members = np.flatnonzero(own == cluster)
        guests = np.flatnonzero((nearest_NM[:, 1:] == cluster).any(axis=1))
        for rows in (*(_cut(members, block) if inside else ()), *_cut(guests, block)):
            yield Meeting(rows, members, images_ND[rows] @ images_ND[members].T)


def _cut(rows: Rows, block: int) -> list[Rows]:
    return [rows[start : start + block] for start in range(0, len(rows), block)]


def largest_earlier(images_ND: NDArray[Any], nearest_NM: Rows, order: Rows, inside: bool = True) -> NDArray[np.float32]:
    """Per row the largest cosine with a row earlier in `order` that it meets, at least 0."""
    place, largest = _places(order), np.zeros(len(order), np.float32)
    for first, second, cosines in meetings(images_ND, nearest_NM, inside):
        later = place[first][:, None] > place[second][None, :]
        earlier = place[first][:, None] < place[second][None, :]
        largest[first] = np.maximum(largest[first], np.where(later, cosines, 0).max(axis=1, initial=0))
        largest[second] = np.maximum(largest[second], np.where(earlier, cosines, 0).max(axis=0, initial=0))
    return largest


def greedy_survivors(images_ND: NDArray[Any], nearest_NM: Rows, order: Rows, least: float) -> Rows:
    """Per row the row that survives it (itself, if it stays): rows are visited in `order`, and one goes for the nearest that stays with a cosine above `least`."""
    near: dict[int, dict[int, float]] = {}
    for first, second, cosines in meetings(images_ND, nearest_NM):
        for a, b in np.argwhere(cosines > least).tolist():
            i, j = int(first[a]), int(second[b])
            if i != j:
                near.setdefault(i, {})[j] = near.setdefault(j, {})[i] = float(cosines[a, b])
    survivor, stays = np.arange(len(order)), set[int]()
    for row in order.tolist():
        kept = [(cosine, -other) for other, cosine in near.get(row, {}).items() if other in stays]
        if kept:
            survivor[row] = -max(kept)[1]
        else:
            stays.add(row)
    return survivor


def _places(order: Rows) -> Rows:
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    return place
