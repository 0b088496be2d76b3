"""Groups of samples that a split must not part: equal captions, pictures that look alike, works of one author.

A random split of such data doubles retrieval scores (R@1 .459 against .218 on Open Clip Art with captions kept apart). Texts become numbers and hashes bits
block by block, so a million samples hold about 150 MB.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vlm_core.data.blocks import pieces
from vlm_core.data.filter.config import Grouping
from vlm_core.data.filter.dedup import coded, components, key_edges
from vlm_core.data.filter.near_hashes import near_pairs, twins
from vlm_core.data.filter.perceptual import parse_hex
from vlm_core.data.filter.pool import Pool
from vlm_core.data.filter.text_rules import caption_key, clean

EMPTY = {bits: "0" * (bits // 4) for bits in (64, 256)}


class Hashes(NamedTuple):
    """Packed hashes (N, bits / 16) of one kind, which of them say something, and up to how many bits they tie samples together."""

    codes_NP: NDArray[np.uint16]
    usable: NDArray[np.bool_]
    radius: int


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
    captions, sha256, phash, pdq, credits = ([values[row] for row in order] for values in (captions, sha256, phash, pdq, credits))
    quality = np.asarray(pdq_quality)[order]
    ties = [coded([map(caption_key, captions)]), coded([sha256]), _authors([credits], config)]
    hashes = [_hashes(phash, 64, quality, config.phash_bits), _hashes(pdq, 256, quality, config.pdq_bits)]
    smallest = smallest_of_group(ties, hashes)
    out = np.empty(len(order), dtype=object)
    out[order] = np.asarray(uids, dtype=object)[order[smallest]]
    return list(out)


def group_rows(pool: Pool, rows: NDArray[Any], config: Grouping) -> NDArray[np.int64]:
    """Place in `rows`, which rise with the uid, of the first sample of each one's group: what `group_samples` finds, a block of the pool at a time."""
    parts = list(pieces(rows))
    ties = [coded(map(caption_key, pool.caption[part]) for part in parts), coded(pool.sha256[part] for part in parts),
            _authors((pool.credit[part] for part in parts), config)]  # fmt: skip
    hashes = []
    for column, bits, radius in ((pool.phash, 64, config.phash_bits), (pool.pdq, 256, config.pdq_bits)):
        found = [_hashes(column[part].tolist(), bits, pool.pdq_quality[part], radius) for part in parts]
        hashes.append(Hashes(np.concatenate([one.codes_NP for one in found]), np.concatenate([one.usable for one in found]), radius))
    return smallest_of_group(ties, hashes)


def smallest_of_group(ties: Sequence[NDArray[np.int64]], hashes: Sequence[Hashes]) -> NDArray[np.int64]:
    """Per row the first row of its group; `ties` are numbers of texts, -1 for none."""
    edges = [key_edges(numbers) for numbers in ties]
    for codes, usable, radius in hashes:
        rows = np.flatnonzero(usable)
        first = twins(codes[rows])
        edges += [rows[near_pairs(codes[rows], radius)], np.stack([rows[first], rows], axis=1)]
    return components(len(ties[0]), np.concatenate(edges))


def usable_hashes(codes: Sequence[str], quality: NDArray[Any], least: int = 50) -> NDArray[np.bool_]:
    """Hashes that exist, of pictures with enough structure for a hash to mean something."""
    return np.array([bool(code) for code in codes], bool) & (quality >= least)


def _hashes(codes: Sequence[str], bits: int, quality: NDArray[Any], radius: int) -> Hashes:
    return Hashes(parse_hex([code or EMPTY[bits] for code in codes], bits), usable_hashes(codes, quality), radius)


def _authors(credits: Iterable[Iterable[str]], config: Grouping) -> NDArray[np.int64]:
    """A number per author; -1 for a name on so many samples that it is that of a collection."""
    numbers = coded((clean(credit).casefold() for credit in part) for part in credits)
    counts = np.bincount(numbers[numbers >= 0], minlength=1)
    most = max(config.max_credit_share * len(numbers), 2 if config.max_credit_share else 0)
    return np.where((numbers >= 0) & (counts[numbers] <= most), numbers, -1)
