"""Groups of samples that a split must not part: equal captions, pictures that look alike, works of one author.

A random split of such data doubles retrieval scores (R@1 .459 against .218 on Open Clip Art with captions kept apart).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlm_core.data.filter.config import Grouping
from vlm_core.data.filter.dedup import components, hash_index, key_edges
from vlm_core.data.filter.perceptual import parse_hex
from vlm_core.data.filter.text_rules import caption_key, clean

EMPTY = {bits: "0" * (bits // 4) for bits in (64, 256)}


def group_samples(
    uids: Sequence[str], captions: Sequence[str], sha256: Sequence[str], phash: Sequence[str], pdq: Sequence[str],
    pdq_quality: Sequence[int], credits: Sequence[str], config: Grouping | None = None,
) -> list[str]:  # fmt: skip
    """Per sample the smallest uid of its group.

    Union-find over equal captions (letters and digits only, case folded), equal bytes, near hashes and equal credits. Texts may be empty: an empty one
    connects nothing. A credit on more than `max_credit_share` of the samples names a collection and connects nothing either.
    """
    config = config or Grouping()
    order = np.argsort(np.asarray(uids, dtype=object))
    quality = np.asarray(pdq_quality)[order]

    def by_uid(values: Sequence[str]) -> list[str]:
        return [values[row] for row in order]

    edges = [key_edges([caption_key(text) for text in by_uid(captions)]), key_edges(by_uid(sha256)), key_edges(_authors(by_uid(credits), config))]
    for codes, bits, radius in ((by_uid(phash), 64, config.phash_bits), (by_uid(pdq), 256, config.pdq_bits)):
        index = hash_index(parse_hex([code or EMPTY[bits] for code in codes], bits), radius, usable_hashes(codes, quality))
        rows = np.flatnonzero(index.first >= 0)
        edges += [index.edges, np.stack([index.first[rows], rows], axis=1)]
    smallest = components(len(order), np.concatenate(edges))
    out = np.empty(len(order), dtype=object)
    sorted_uids = by_uid(uids)
    out[order] = [sorted_uids[row] for row in smallest]
    return list(out)


def usable_hashes(codes: Sequence[str], quality: NDArray[Any], least: int = 50) -> NDArray[np.bool_]:
    """Hashes that exist, of pictures with enough structure for a hash to mean something."""
    return np.array([bool(code) for code in codes], bool) & (quality >= least)


def _authors(credits: list[str], config: Grouping) -> list[str]:
    keys = [clean(credit).casefold() for credit in credits]
    names, counts = np.unique(np.asarray(keys, dtype=str), return_counts=True)
    most = max(config.max_credit_share * len(keys), 2 if config.max_credit_share else 0)
    collections = {str(name) for name, count in zip(names, counts, strict=True) if count > most}
    return ["" if key in collections else key for key in keys]
