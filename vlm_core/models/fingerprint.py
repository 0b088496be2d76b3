"""The verb `fingerprint`: evaluation sets -> prints.parquet, with the cosine from which on a picture counts as a copy, calibrated on augmented copies.

Copies of every second picture calibrate, those of the others measure: the recall in the report was not fitted. How often a copy is as near to another picture
of the sets bounds the cosine from below: a scorer that cannot tell crops from strangers would otherwise drop nearly everything. The pool's vectors of the offline scorer are
cross-fitted, so a copy is encoded as a sample of either half would be, the evaluation picture as a question.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from vlm_core.data.config import Fingerprint
from vlm_core.data.filter.fingerprints import COPIES, EvalPicture, calibrate, eval_pictures, hashes, write_prints
from vlm_core.data.filter.perceptual import distance, parse_hex, pdq, phash, to_hex
from vlm_core.errors import NothingLeft
from vlm_core.models import scorer as scorers
from vlm_core.models.scorer import Offline, Scorer, Vectors
from vlm_core.stage import Report, Stage

Arrays = dict[str, NDArray[Any]]


def fingerprint(config: Fingerprint, stage: Stage) -> Report:
    """Raises NothingLeft when there are fewer than two pictures to calibrate with."""
    scorer = scorers.load(stage.input("embeddings"))
    pictures, rows = list[EvalPicture](), list[dict[str, Any]]()
    for picture in eval_pictures(stage.input("eval_sets"), config.splits):
        rows.append(
            {
                "set": picture.dataset,
                "key": picture.key,
                "sha256": picture.sha256,
                "captions": list(picture.captions),
                **hashes(picture.image, config.smallest_crop),
            }
        )
        pictures.append(picture)
        stage.progress("pictures of evaluation sets", len(rows))
    first = {row["sha256"]: place for place, row in reversed(list(enumerate(rows)))}  # datasets share pictures
    once, vectors = sorted(first.values()), dict[str, NDArray[np.float32]]()
    for begin in range(0, len(once), config.batch):
        some = once[begin : begin + config.batch]
        for place, vector in zip(some, scorer.encode_images([pictures[place].image for place in some]), strict=True):
            vectors[rows[place]["sha256"]] = vector.astype(np.float16).astype(np.float32)
        stage.progress("vectors", begin + len(some), len(once))
    for row in rows:
        row["vector"] = vectors[row["sha256"]]
    found = copies(config, scorer, pictures, rows, stage)
    if len(found["fit"]) and not (found["fit"].any() and (~found["fit"]).any()):
        raise NothingLeft(f"Found {len(rows)} pictures in {stage.input('eval_sets')}, expected at least two to calibrate with; give more of them.")
    fit = found["fit"]
    least = calibrate(found["cosine"][fit], found["hashed"][fit], config.recall)
    least = max(least, float(np.quantile(found["stranger"][fit], 1 - config.false_alarms)) if len(fit) else least)
    name = stage.input("embeddings") / "scorer.json"
    write_prints(stage.out / "prints.parquet", rows, scorer_name(name), least)
    table = recall_table(found, least)
    return Report(
        counts={"in": len(rows), "pictures": len(rows), "copies": len(fit)},
        metrics={
            "min_cosine": least,
            "recall": table[-1]["recall"],
            "recall_by_hashes": table[-1]["by hashes"],
            "false_alarms": round(float((found["stranger"][~fit] >= least).mean()), 4),
        },  # fmt: skip
        tables={"recall on copies that were not fitted": table},
    )


def scorer_name(card: Path) -> str:
    """As the pool names it."""
    about = json.loads(card.read_text())
    return f"{about['scorer']}@{str(about['version'])[:12]}"


def copies(config: Fingerprint, scorer: Scorer, pictures: Sequence[EvalPicture], rows: list[dict[str, Any]], stage: Stage) -> Arrays:
    """Every kind of copy of some pictures: is it found by a hash, its cosine with its original and with the nearest other picture (of other bytes), and whether it
    calibrates or measures.
    """
    chosen = sorted(range(len(rows)), key=lambda row: hashlib.sha256(f"{rows[row]['set']}/{rows[row]['key']}".encode()).digest())[: config.calibrate_on]
    out: dict[str, list[Any]] = {"kind": [], "hashed": [], "cosine": [], "stranger": [], "fit": []}
    known = {row["sha256"]: row["vector"] for row in rows}
    names, all_ND = np.array(list(known)), np.stack(list(known.values())) if known else np.zeros((0, 0), np.float32)
    for done, kind in enumerate(COPIES, 1):
        made = [COPIES[kind](pictures[row].image) for row in chosen]
        vectors = as_samples(scorer, made)
        for place, row in enumerate(chosen):
            out["kind"].append(kind)
            out["hashed"].append(_near(config, made[place], rows[row]))
            out["cosine"].append(float(vectors[place] @ rows[row]["vector"]))
            out["stranger"].append(float(np.max((all_ND @ vectors[place])[names != rows[row]["sha256"]], initial=-1)))
            out["fit"].append(place % 4 < 2)  # halves; either half holds both folds of `as_samples`
        stage.progress("kinds of copies", done, len(COPIES))
    return {name: np.array(values) for name, values in out.items()}


def as_samples(scorer: Scorer, images: Sequence[Image.Image]) -> Vectors:
    """Vectors as the pool has them: with cross-fitted heads, those of one half or the other by turns."""
    if not (isinstance(scorer, Offline) and scorer.heads):
        return scorer.encode_images(images)
    return scorer.images_of(*scorer.trunk(images), torch.arange(len(images)) % len(scorer.heads))


def _near(config: Fingerprint, copy: Image.Image, row: dict[str, Any]) -> bool:
    rgb = np.asarray(copy)
    bits, quality = pdq(rgb)
    if min(quality, row["quality"]) < config.min_quality:
        return False
    ways = ((bits, row["pdq"], config.pdq_bits), (phash(rgb), row["phash"], config.phash_bits), (bits, row["altered"], config.altered_bits))
    return any(distance(parse_hex([to_hex(mine)], mine.size), parse_hex(known, mine.size)).min(initial=mine.size) <= radius for mine, known, radius in ways)


def recall_table(found: Arrays, least: float) -> list[dict[str, Any]]:
    """Per kind of copy and in all, on the pictures that measure."""
    rows = []
    for kind in [*COPIES, "all"]:
        mine = ~found["fit"] & ((found["kind"] == kind) | (kind == "all"))
        hashed, near = found["hashed"][mine], found["cosine"][mine] >= least
        rows.append(
            {"copy": kind, "copies": int(mine.sum()), "by hashes": round(float(hashed.mean()), 4), "by cosine": round(float(near.mean()), 4),
             "recall": round(float((hashed | near).mean()), 4)}
        )  # fmt: skip
    return rows
