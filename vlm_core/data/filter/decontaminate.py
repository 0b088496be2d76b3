"""The rule `decontaminate`: drops what an evaluation set holds, however it was cropped, turned or compressed, and captions that retrieval sets ask for.

A sample goes for equal bytes, a near PDQ or pHash of any turn, a cosine as high as that of augmented copies, or a run of words of a caption.
Source: methods/data.md 13.
"""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlm_core.data.filter.decisions import Verdict, first_reason
from vlm_core.data.filter.config import Decontaminate
from vlm_core.data.filter.fingerprints import Prints, read_prints
from vlm_core.data.filter.grouping import EMPTY, usable_hashes
from vlm_core.data.filter.near_hashes import NearTo
from vlm_core.data.filter.perceptual import parse_hex
from vlm_core.data.filter.pool import Column, Pool
from vlm_core.data.filter.scores import unit
from vlm_core.data.filter.text_rules import caption_key
from vlm_core.errors import SchemaMismatch

SHORT = 6  # words from which a caption shorter than a run counts as a whole
VECTORS = 4096  # compared at once


def survey(section: Decontaminate, pool: Pool, rows: Column) -> Callable[[Column], Verdict]:
    """Read the fingerprints; then judge any block. Raises MissingInput, SchemaMismatch."""
    path = Path(section.prints)
    prints = read_prints(path)
    if section.use_vectors and prints.scorer != pool.scorer:
        raise SchemaMismatch(
            f"Found fingerprints by the scorer {prints.scorer} in {path} and embeddings by {pool.scorer}, expected one scorer; run 'vlm fingerprint' with these embeddings, or set use_vectors=false."
        )
    names = [f"{item['set']}/{item['key']}" for item in prints.table.select(["set", "key"]).to_pylist()]
    least = prints.min_cosine if section.min_cosine is None else section.min_cosine
    ways = [_bytes(prints), *(_hashes(section, prints, kind) for kind in ("pdq", "phash", "altered")), _texts(section, prints)]
    vectors = unit(np.array(prints.table["vector"].to_pylist(), np.float32)) if section.use_vectors else None
    version = hashlib.sha256(path.read_bytes()).hexdigest()[:12]

    def judge(part: Column) -> Verdict:
        of, how = np.full(len(part), -1), np.full(len(part), "", dtype=object)
        cosine, nearest = (np.full(len(part), np.nan), of) if vectors is None else _nearest(pool, part, vectors)
        for name, found in (*((name, way(pool, part)) for name, way in ways), ("vector", np.where(cosine >= least, nearest, -1))):
            new = (of < 0) & (found >= 0)
            of[new], how[new] = found[new], name
        detail = [f"{names[item]}: {name}" if item >= 0 else "" for item, name in zip(of.tolist(), how, strict=True)]
        return Verdict(first_reason(len(part), ("contaminated", of >= 0)), cosine, least, detail, version)

    return judge


def decontaminate(section: Decontaminate, pool: Pool, rows: Column) -> Verdict:
    return survey(section, pool, rows)(rows)


Way = tuple[str, Callable[[Pool, Column], NDArray[np.int64]]]  # its name; row -> the evaluation picture that it matches, or -1


def _bytes(prints: Prints) -> Way:
    known = {sha: row for row, sha in enumerate(prints.table["sha256"].to_pylist()) if sha}
    return "bytes", lambda pool, part: np.array([known.get(sha, -1) for sha in pool.sha256[part].tolist()], np.int64)


def _hashes(section: Decontaminate, prints: Prints, kind: str) -> Way:
    """Every turn, or altered version, of an evaluation picture is one code of the index."""
    bits, radius = {"pdq": (256, section.pdq_bits), "phash": (64, section.phash_bits), "altered": (256, section.altered_bits)}[kind]
    codes, owner = list[str](), list[int]()
    for row, (quality, turns) in enumerate(zip(prints.table["quality"].to_pylist(), prints.table[kind].to_pylist(), strict=True)):
        if quality >= section.min_quality:
            codes += turns
            owner += [row] * len(turns)
    near, owners = NearTo(parse_hex(codes, bits), radius), np.array(owner, np.int64)

    def find(pool: Pool, part: Column) -> NDArray[np.int64]:
        mine = (pool.phash if kind == "phash" else pool.pdq)[part]
        out, usable = np.full(len(part), -1), np.flatnonzero(usable_hashes(mine.tolist(), pool.pdq_quality[part], section.min_quality))
        found = near.first(parse_hex([mine[row] or EMPTY[bits] for row in usable], bits))
        out[usable[found >= 0]] = owners[found[found >= 0]]
        return out

    return kind, find


def _texts(section: Decontaminate, prints: Prints) -> Way:
    known: dict[str, int] = {}
    for row, captions in enumerate(prints.table["captions"].to_pylist()):
        for run in (run for caption in captions or () for run in runs(caption, section.ngram)):
            known.setdefault(run, row)

    def find(pool: Pool, part: Column) -> NDArray[np.int64]:
        if not known:
            return np.full(len(part), -1)
        texts = pool.texts[part]
        return np.array([next((known[run] for line in text.split("\n") for run in runs(line, section.ngram) if run in known), -1) for text in texts], np.int64)

    return "text", find


def runs(caption: str, n: int) -> Iterator[str]:
    """All runs of n words, letters and digits only; of a shorter caption itself, if it has at least six words."""
    words = caption_key(caption).split()
    if SHORT <= len(words) < n:
        yield " ".join(words)
    yield from (" ".join(words[start : start + n]) for start in range(len(words) - n + 1))


def _nearest(pool: Pool, part: Column, vectors_MD: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """(largest cosine with an evaluation picture, which one); NaN and -1 without embedding."""
    best, which = np.full(len(part), np.nan), np.full(len(part), -1)
    has = np.flatnonzero(pool.emb_row[part] >= 0)
    for start in range(0, len(has), VECTORS):
        some = has[start : start + VECTORS]
        cosines = unit(pool.embeddings(part[some])[0]) @ vectors_MD.T
        which[some] = cosines.argmax(axis=1)
        best[some] = cosines.max(axis=1)
    return best, which
