"""Rules that compare samples with each other: copies, clusters, balance. Same form as in `rules`."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vlm_core.data.filter import dedup
from vlm_core.data.filter import duplicate_ranges
from vlm_core.data.filter import scores
from vlm_core.data.filter import select
from vlm_core.data.filter import semantic
from vlm_core.data.blocks import pieces
from vlm_core.data.filter.cuts import load_targets
from vlm_core.data.filter.decisions import Reason, Verdict, first_reason
from vlm_core.data.filter.entries import Entries, entry_prob, p_to_t, t_to_p
from vlm_core.data.filter.config import Balance, ExactDuplicates, NearDuplicates, SemanticDuplicates, Targets
from vlm_core.data.filter.grouping import EMPTY, usable_hashes
from vlm_core.data.filter.perceptual import parse_hex
from vlm_core.data.filter.pool import Column, Pool
from vlm_core.errors import MissingInput, SchemaMismatch


def by_preference(pool: Pool, rows: Column) -> Column:
    """Positions in `rows`, the copy that should stay first: rights known, larger picture, higher CLIP score, longer caption, lower uid."""
    area = pool.width[rows] * pool.height[rows]
    clip = np.nan_to_num(pool.clip[rows], nan=-2.0)
    length = np.array([len(text) for text in pool.caption[rows]])
    return dedup.preference((pool.licence[rows] != "", area, clip, length, pool.uid[rows].astype(str)))


def _copies(pool: Pool, rows: Column, survivor: Column, reason: Reason, detail: str) -> Verdict:
    """The verdict on copies: who goes, and for whom."""
    goes = survivor != np.arange(len(rows))
    stays = pool.uid[rows[survivor]]
    pool.copy_of.update({uid: other for uid, other, gone in zip(pool.uid[rows], stays, goes, strict=True) if gone})
    return Verdict(first_reason(len(rows), (reason, goes)), detail=[f"{detail} {other}" if gone else "" for other, gone in zip(stays, goes, strict=True)])


def exact_duplicates(section: ExactDuplicates, pool: Pool, rows: Column) -> Verdict:
    """Equal bytes as fetched, or equal stored pictures (the same pixels in another file format or with other metadata)."""
    sha, stored = dedup.coded(pool.sha256[part] for part in pieces(rows)), dedup.coded([pool.stored_hashes(rows)])
    same = dedup.components(len(rows), np.concatenate([dedup.key_edges(sha), dedup.key_edges(stored)]))
    langs = pool.lang[rows] if section.within == "language" else [""] * len(rows)
    keys = [f"{number} {lang}" for number, lang in zip(same, langs, strict=True)]
    verdict = _copies(pool, rows, dedup.first_of_each(keys, by_preference(pool, rows)), "exact_duplicate", "copy of")
    gone = rows[~verdict.keep]
    pool.same_picture.update(zip(pool.uid[gone].tolist(), gone.tolist(), strict=True))
    return verdict


def near_duplicates(section: NearDuplicates, pool: Pool, rows: Column) -> Verdict:
    """PDQ or pHash within the radius, and colours alike: both hashes see grey, so they take the flags of Hungary and the Netherlands for one."""
    indexes = []
    for codes, bits, radius in ((pool.pdq[rows], 256, section.pdq_bits), (pool.phash[rows], 64, section.phash_bits)):
        usable = usable_hashes(codes.tolist(), pool.pdq_quality[rows], section.min_quality)
        indexes.append(dedup.hash_index(parse_hex([code or EMPTY[bits] for code in codes], bits), radius, usable, duplicate_ranges.near_pairs(pool.scratch)))
    suspects = np.flatnonzero(dedup.involved(indexes[0]) | dedup.involved(indexes[1]))
    place = {int(row): position for position, row in zip(suspects, rows[suspects], strict=True)}
    colours = {place[row]: grid for row, grid in pool.colours(rows[suspects]).items()} if section.max_colour is not None else {}
    lang = pool.lang[rows]

    def alike(row: int, others: list[int]) -> NDArray[np.bool_]:
        same = np.array([section.within == "picture" or lang[row] == lang[other] for other in others], bool)
        if section.max_colour is not None:
            gap = np.array([np.abs(colours[row] - colours[other]).mean() for other in others])
            same &= gap <= section.max_colour
        return same

    return _copies(pool, rows, dedup.survivors(by_preference(pool, rows), indexes, alike), "near_duplicate", "looks like")


def _images(pool: Pool, rows: Column) -> tuple[Column, Column]:
    """(which rows have embeddings, unit image embeddings of those). Raises SchemaMismatch when none has."""
    has = pool.emb_row[rows] >= 0
    if not has.any():
        raise SchemaMismatch(f"Found no embedding for any of the {len(rows):,} samples that are left, expected one for each downloaded picture; embed again.")
    return has, scores.unit(pool.embeddings(rows[has])[0])


def semantic_duplicates(section: SemanticDuplicates, pool: Pool, rows: Column) -> Verdict:
    """SemDeDup; the score is the largest cosine with an earlier picture of the same cluster or of a neighbouring one."""
    has, images = _images(pool, rows)
    centroids = select.kmeans(images, section.clusters, section.iterations, section.seed, spherical=True)
    own = select.assign_centroids(images, centroids)
    nearest = semantic.nearest_clusters(images, centroids, section.neighbours)
    nearest[:, 0] = own
    order = semantic.visiting_order(images, centroids, own, section.keep)
    _, largest = duplicate_ranges.semdedup(pool.scratch, images, centroids, own, section.keep)
    if section.neighbours > 1:
        largest = np.maximum(largest, semantic.largest_earlier(images, nearest, order, inside=False))
    score = np.full(len(rows), np.nan)
    score[has] = largest
    goes, detail = score > 1 - section.eps, [""] * len(rows)
    if section.chains == "greedy":
        survivor, place = semantic.greedy_survivors(images, nearest, order, 1 - section.eps), np.flatnonzero(has)
        goes = np.zeros(len(rows), bool)
        goes[place] = survivor != np.arange(len(place))
        stays = pool.uid[rows[place[survivor]]]
        for position, uid in zip(place[goes[place]].tolist(), stays[goes[place]].tolist(), strict=True):
            detail[position] = f"means the same as {uid}"
    return Verdict(first_reason(len(rows), ("no_embedding", ~has), ("semantic_duplicate", goes)), score, 1 - section.eps, detail, pool.scorer)


def targets(section: Targets, pool: Pool, rows: Column) -> Verdict:
    """DataComp's image-based filter; the detail is the cluster."""
    wanted, digest = load_targets(section.targets, pool)
    has, images = _images(pool, rows)
    centroids = select.kmeans(images, section.clusters, section.iterations, section.seed, section.spherical)
    ids = np.full(len(rows), -1)
    ids[has] = select.assign_centroids(images, centroids)
    keep = select.cluster_filter(ids, np.unique(select.assign_centroids(scores.unit(wanted), centroids)))
    reason = first_reason(len(rows), ("no_embedding", ~has), ("off_target", ~keep))
    return Verdict(reason, detail=[f"cluster {number}" for number in ids], version=f"{pool.scorer} {digest}")


def balance(section: Balance, pool: Pool, rows: Column) -> Verdict:
    """MetaCLIP; the score is the probability to stay, the threshold the number drawn for the uid."""
    path = Path(section.entries)
    if not path.is_file():
        raise MissingInput(f"Found no file {path}, expected the entries of balance.entries, one per line; give its path.")
    entries = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    finder = Entries(entries, section.match)
    hits = [finder.find(caption) for part in pieces(rows) for caption in pool.caption[part]]
    langs = pool.lang[rows].astype(str) if section.per_language else np.full(len(rows), ENGLISH)
    keep_prob = balanced(hits, langs, len(entries), section.t)
    draw = select.uniform(pool.uid[rows].tolist(), section.seed)
    reason = first_reason(len(rows), ("no_entry", np.array([not row for row in hits], bool)), ("thinned", draw >= keep_prob))
    return Verdict(reason, keep_prob, draw, version=hashlib.sha256(path.read_bytes()).hexdigest()[:12])


ENGLISH = "en"


def balanced(hits: Sequence[Sequence[int]], langs: Column, entries: int, t: int) -> NDArray[np.float64]:
    """Chance of every caption to stay: its entries are counted, and thinned, inside its language. Raises SchemaMismatch when no English caption says what share is rare."""
    counts = {
        lang: np.bincount([entry for row, own in zip(hits, langs == lang, strict=True) if own for entry in row], minlength=entries) for lang in np.unique(langs)
    }
    if not counts.get(ENGLISH, np.zeros(1)).any():
        raise SchemaMismatch(f"Found no entry in any English caption of {len(hits):,}, expected some, since t is that of English; give other entries.")
    share = t_to_p(counts[ENGLISH], t)
    prob = {lang: entry_prob(own, t if lang == ENGLISH else max(1, p_to_t(own, share)) if own.any() else t) for lang, own in counts.items()}
    return np.array([1 - np.prod(1 - prob[lang][row]) if row else 0.0 for row, lang in zip(hits, langs, strict=True)])
