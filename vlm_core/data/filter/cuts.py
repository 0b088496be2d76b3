"""Rules that rank samples or limit a score: the cut by a share or a threshold, limits on outside scores, most samples of a domain. Same form as in `rules`."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vlm_core.data.blocks import BLOCK, pieces
from vlm_core.data.filter import scores, select
from vlm_core.data.filter.config import DomainCap, Hook
from vlm_core.data.filter.cut_config import ClipScore, Cut, External, Hype, MaskedClipScore, NegClipLoss, NormSim, ScoreConfig
from vlm_core.data.filter.decisions import Reason, Verdict, first_reason, joined
from vlm_core.data.filter.pool import Column, Pool
from vlm_core.data.filter.rules import host_of
from vlm_core.data.web.politeness import domain_of
from vlm_core.errors import MissingInput, SchemaMismatch
from vlm_core.stage import file_sha256


def cut(section: Cut, pool: Pool, rows: Column) -> Verdict:
    """`survey` and its verdict on the same rows."""
    return survey(section, pool, rows)(rows)


def survey(section: Cut, pool: Pool, rows: Column) -> Callable[[Column], Verdict]:
    """The best share inside each language, source or domain, or what reaches a threshold: looks at all the rows, then judges any block of them.

    With over='pool' everything that has a score is ranked, also what other rules dropped, so two cuts in a row are the intersection of two filters.
    """
    ranked = rows if section.over == "remaining" else np.arange(len(pool))
    score_of, digest = scorer_of(section.score, pool, ranked)
    ranking = None if section.fraction is None else select.Ranking(section.fraction, section.mode)

    def scored(part: Column) -> tuple[pa.DictionaryArray, Column, Column]:
        score = score_of(part)
        has = np.isfinite(score)
        score, part = (score, part) if has.all() else (score[has], part[has])
        return names_within(section.within, pool, part), score, part

    if ranking:
        for part in pieces(ranked):
            ranking.count(*scored(part)[:2])
        for part in pieces(ranked):
            ranking.collect(*scored(part))

    def judge(part: Column) -> Verdict:
        score, names = score_of(part), names_within(section.within, pool, part)
        has, words = np.isfinite(score), names.dictionary.to_pylist()
        if ranking:
            keep, threshold = ranking.decide(names, score, part)
        else:
            threshold = np.array([section.thresholds.get(name, section.threshold) for name in words], np.float64)[names.indices.to_numpy()]
            keep = score >= threshold
        missing: Reason = "no_score" if isinstance(section.score, External) else "no_embedding"
        reason = first_reason(len(part), (missing, ~has), ("low_score", ~keep))
        shown = pa.DictionaryArray.from_arrays(names.indices, pa.array([name or "?" for name in words], pa.string()))
        detail = joined(f"{section.score.kind} in ", shown)
        return Verdict(reason, score, threshold, detail, f"{pool.scorer} {digest}".strip())

    return judge


def names_within(within: str, pool: Pool, rows: Column) -> pa.DictionaryArray:
    """What each row is ranked among."""
    match within:
        case "language":
            return pool.lang.arrow(rows)
        case "source":
            return pool.source.arrow(rows).dictionary_encode()
        case "domain":
            return pa.array(domains_of(pool, rows), pa.string()).dictionary_encode()
        case _:
            return pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(rows), np.int32)), pa.array(["all"]))


def domains_of(pool: Pool, rows: Column) -> Column:
    """Registrable domain of each picture's address."""
    hosts = [host_of(url) for url in pool.url[rows]]
    known = {host: domain_of(host) for host in set(hosts)}
    return np.array([known[host] for host in hosts], dtype=object)


def scorer_of(config: ScoreConfig, pool: Pool, rows: Column) -> tuple[Callable[[Column], Column], str]:
    """(score of any of these rows, NaN where there is none; digest of the files that went into it). Cosines stay in their blocks."""
    match config:
        case ClipScore():
            return pool.clip.__getitem__, ""
        case MaskedClipScore():
            if not any(np.isfinite(pool.masked_clip[part]).any() for part in pieces(rows)):
                raise SchemaMismatch("Found no scores of masked pictures in the embeddings, expected them for masked_clip_score; embed again with text_mask.")
            return pool.masked_clip.__getitem__, ""
    score = np.full(len(pool), np.nan)
    score[rows], digest = score_rows(config, pool, rows)
    return score.__getitem__, digest


def score_rows(config: External | NegClipLoss | NormSim | Hype, pool: Pool, rows: Column) -> tuple[Column, str]:
    """(score per row, NaN where there is none; digest of the files that went into it). Embeddings are read a batch or a block at a time."""
    if isinstance(config, External):
        return outside_scores(config.file, config.column, pool, rows)
    where = pool.emb_row[rows]
    has = np.flatnonzero(where >= 0)
    where, score = where[has], np.full(len(rows), np.nan)
    if isinstance(config, NegClipLoss):

        def vectors(some: Column) -> tuple[Column, Column]:
            return scores.unit(pool.image_emb[where[some]]), scores.unit(pool.text_emb[where[some]])

        score[has] = scores.neg_clip_loss_pool(vectors, len(has), config.temperature, config.batch, config.repeats, config.seed)
        return score, ""
    score_of, digest = _norm_sim(config, pool) if isinstance(config, NormSim) else _hype(config, pool)
    for start in range(0, len(has), BLOCK):
        score[has[start : start + BLOCK]] = score_of(where[start : start + BLOCK])
    return score, digest


def _norm_sim(config: NormSim, pool: Pool) -> tuple[Callable[[Column], Column], str]:
    """(score of rows of the embeddings, digest of the targets)."""
    wanted, digest = load_targets(config.targets, pool)
    wanted, p = scores.unit(wanted), np.inf if config.p == "inf" else 2
    return lambda where: scores.norm_sim(scores.unit(pool.image_emb[where]), wanted, p), digest


def _hype(config: Hype, pool: Pool) -> tuple[Callable[[Column], Column], str]:
    if not pool.tangent:
        raise SchemaMismatch(
            f"Found embeddings by {pool.scorer}, directions without a length, expected a hyperbolic model's tangent vectors for hype; "
            'none of the platform\'s scorers makes them, so bring embeddings whose scorer.json says "vectors": "tangent", or cut by another score.'
        )
    (image_ref, one), (text_ref, two) = (load_targets(file, pool) for file in (config.image_references, config.text_references))

    def score_of(where: Column) -> Column:
        image, text = (np.asarray(vectors[where], np.float32) for vectors in (pool.image_emb, pool.text_emb))
        return scores.hype_score(image, text, image_ref, text_ref, config.curvature)

    return score_of, f"{one} {two}"


def outside_scores(file: str, column: str, pool: Pool, rows: Column) -> tuple[Column, str]:
    """(score per row, NaN where the file has none; digest of the file). Raises MissingInput, SchemaMismatch."""
    path = Path(file)
    if not path.is_file():
        raise MissingInput(f"Found no file {path}, expected outside scores as Parquet with uid and {column}; give its path.")
    try:
        table = pq.read_table(path, columns=["uid", column])
        uids, values = table["uid"].to_pylist(), np.asarray(table[column].cast(pa.float64()).to_numpy(), np.float64)
    except (pa.ArrowException, KeyError) as error:
        raise SchemaMismatch(
            f"Found {path} without usable columns uid and {column} ({str(error)[:120]}), expected texts and numbers; correct the file."
        ) from None
    where = {uid: row for row, uid in enumerate(uids)}
    if len(where) != len(uids):
        raise SchemaMismatch(f"Found {len(uids) - len(where):,} uids twice in {path}, expected every uid once; correct the file.")
    place = np.array([where.get(uid, -1) for uid in pool.uid[rows].tolist()], np.int64)
    return np.where(place >= 0, np.append(values, np.nan)[place], np.nan), file_sha256(path)[:12]


def watermark(section: Hook, pool: Pool, rows: Column) -> Verdict:
    return _limits(section, pool, rows, "watermark")


def aesthetic(section: Hook, pool: Pool, rows: Column) -> Verdict:
    return _limits(section, pool, rows, "aesthetic")


def _limits(section: Hook, pool: Pool, rows: Column, reason: Reason) -> Verdict:
    """Drops what an outside score puts outside its limits."""
    score, digest = outside_scores(section.file, section.column, pool, rows)
    low = score < section.min_score if section.min_score is not None else np.zeros(len(rows), bool)
    high = score > section.max_score if section.max_score is not None else np.zeros(len(rows), bool)
    missing = np.isnan(score) & (section.missing == "drop")
    threshold = section.max_score if section.max_score is not None else section.min_score
    return Verdict(first_reason(len(rows), ("no_score", missing), (reason, low | high)), score, threshold, version=digest)


def domain_cap(section: DomainCap, pool: Pool, rows: Column) -> Verdict:
    """At most so many samples of a registrable domain, those with the smallest draw; the score is the rank in its domain."""
    names = domains_of(pool, rows)
    draw = select.uniform(pool.uid[rows].tolist(), section.seed)
    rank, seen = np.zeros(len(rows), np.int64), dict[str, int]()
    for place in np.lexsort((pool.uid[rows].astype(str), draw)):
        seen[names[place]] = rank[place] = seen.get(names[place], 0) + 1
    return Verdict(first_reason(len(rows), ("domain_cap", rank > section.max_samples)), rank, section.max_samples, names.tolist())


def load_targets(file: str, pool: Pool) -> tuple[Column, str]:
    """(embeddings of a file, digest of its bytes). Raises MissingInput, SchemaMismatch."""
    path = Path(file)
    if not path.is_file():
        raise MissingInput(f"Found no file {path}, expected embeddings in .npy; give the path of an array (rows, {pool.image_emb.shape[1]}).")
    rows = np.asarray(np.load(path), np.float32)
    if rows.ndim != 2 or rows.shape[1] != pool.image_emb.shape[1]:
        raise SchemaMismatch(
            f"Found an array of shape {rows.shape} in {path}, expected (rows, {pool.image_emb.shape[1]}) as {pool.scorer} makes them; embed the targets with the same scorer."
        )
    return rows, file_sha256(path)[:12]
