"""Rules that look at the stored pictures. Same form as in `rules`; equal pictures are looked at once."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vlm_core.data.filter.decisions import Verdict, first_reason
from vlm_core.data.filter.faces import FaceDetector, HaarFaces
from vlm_core.data.filter.config import Faces, Safety
from vlm_core.data.filter.pool import Column, Pool
from vlm_core.data.filter.safety import OpenNsfw, SafetyScorer

BATCH = 32


def safety(section: Safety, pool: Pool, rows: Column, scorer: SafetyScorer | None = None) -> Verdict:
    """Score of the safety model on the stored picture."""
    scorer = scorer or OpenNsfw()
    score = np.array(seen_once(pool, rows, lambda pictures: scorer.score(pictures).tolist()), np.float64)
    return Verdict(first_reason(len(rows), ("unsafe", score > section.max_score)), score, section.max_score, version=scorer.version)


def faces(section: Faces, pool: Pool, rows: Column, detector: FaceDetector | None = None) -> Verdict:
    """Number of faces in the stored picture; where they are goes to the column `faces` of kept.parquet."""
    detector = detector or HaarFaces(section.min_share, section.neighbours)
    found = seen_once(pool, rows, lambda pictures: [detector.faces(picture) for picture in pictures])
    pool.faces.update(zip(pool.uid[rows].tolist(), found, strict=True))
    count = np.array([len(boxes) for boxes in found])
    many = count > section.max_faces if section.max_faces is not None else np.zeros(len(rows), bool)
    return Verdict(first_reason(len(rows), ("faces", many)), count, section.max_faces, version=detector.version)


def seen_once(pool: Pool, rows: Column, look: Callable[[Sequence[bytes]], Sequence[Any]]) -> list[Any]:
    """What `look` says about the picture of every row."""
    keys = [str(sha or uid) for sha, uid in zip(pool.sha256[rows], pool.uid[rows], strict=True)]
    first = dict(zip(reversed(keys), reversed(rows.tolist()), strict=True))
    key_of = {row: key for key, row in first.items()}
    known: dict[str, Any] = {}
    batch: list[tuple[int, bytes]] = []

    def flush() -> None:
        if batch:
            known.update(zip((key_of[row] for row, _ in batch), look([data for _, data in batch]), strict=True))
            batch.clear()

    for item in pool.pictures(np.array(sorted(key_of), np.int64)):
        batch.append(item)
        if len(batch) == BATCH:
            flush()
    flush()
    return [known[key] for key in keys]
