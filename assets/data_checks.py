"""What must be true of the data assets before the snapshot, asked of their tables; nothing here grows with the number of samples."""

import json
import math
import tarfile
from collections.abc import Iterator
from pathlib import Path

import dagster as dg

from assets.captions import captions
from assets.filtered import filtered
from assets.images import embeddings, images
from assets.sources import candidate_pairs, crawl_batches, pages
from assets.tables import count, rows
from pipelines.resources import Launcher

OK_FLOOR, SMALL_SOURCE = 0.5, 20  # share of pictures that should be ok in a source of at least so many pairs
TARS = 16  # of all, evenly spread, opened by a check
ROWS = 65_536
ROUNDED = 1e-2  # float16 vectors of unit length: their cosine may exceed 1 by rounding


@dg.asset_check(asset=filtered, blocking=True, description="Every candidate pair is either kept or dropped by a rule that is named, never both, never neither.")
def conservation_law(launcher: Launcher) -> dg.AssetCheckResult:
    folder = launcher.at(launcher.data("filtered"))
    found = count(
        """WITH dropped AS (SELECT DISTINCT uid FROM decisions WHERE NOT keep), decided AS (SELECT uid FROM kept UNION SELECT uid FROM dropped)
        SELECT (SELECT count(DISTINCT uid) FROM pairs) AS "in", (SELECT count(DISTINCT uid) FROM kept) AS kept, (SELECT count(*) FROM dropped) AS dropped,
          (SELECT count(DISTINCT uid) FROM pairs ANTI JOIN decided USING (uid)) AS "in neither", (SELECT count(DISTINCT uid) FROM kept SEMI JOIN dropped USING (uid)) AS "in both",
          (SELECT count(*) FROM decided ANTI JOIN pairs USING (uid)) AS strangers""",
        pairs=launcher.at(launcher.data("candidate_pairs")) / "pairs.parquet", kept=folder / "kept.parquet", decisions=folder / "decisions.parquet",
    )  # fmt: skip
    return dg.AssetCheckResult(passed=found["in neither"] == found["in both"] == found["strangers"] == 0, metadata=found)


@dg.asset_check(asset=pages, blocking=True, description="The crawl brought something: a page that was answered, a table, or a folder of pictures.")
def pages_not_empty(launcher: Launcher) -> dg.AssetCheckResult:
    found = _crawled(launcher.at(launcher.data("pages")))
    return dg.AssetCheckResult(passed=sum(found.values()) > 0, metadata=found)


@dg.asset_check(asset=crawl_batches, description="Every further source that was crawled brought something.")
def batches_not_empty(launcher: Launcher) -> dg.AssetCheckResult:
    folder = launcher.at(launcher.data("crawl_batches"))
    found = {path.name: sum(_crawled(path).values()) for path in sorted(folder.glob("*")) if path.is_dir() and "." not in path.name}
    return dg.AssetCheckResult(passed=bool(found) and min(found.values()) > 0, severity=dg.AssetCheckSeverity.WARN, metadata=found)


def _crawled(folder: Path) -> dict[str, int]:
    site, local = folder / "pages.parquet", folder / "local.parquet"
    return {
        "pages": count("SELECT count(*) AS n FROM pages WHERE octet_length(html) > 0", pages=site)["n"] if site.exists() else 0,
        "tables": len(list((folder / "tables").rglob("*.*"))) if (folder / "tables").exists() else 0,
        "pictures": count("SELECT count(*) AS n FROM local", local=local)["n"] if local.exists() else 0,
    }


@dg.asset_check(asset=candidate_pairs, blocking=True, description="Every pair has a uid of its own and an address.")
def uids_are_unique(launcher: Launcher) -> dg.AssetCheckResult:
    found = count(
        """SELECT count(*) AS pairs, count(*) - count(DISTINCT uid) AS "uids that repeat", count(*) FILTER (uid IS NULL OR length(uid) <> 32) AS "not a uid",
          count(*) FILTER (url IS NULL OR url = '') AS "without an address" FROM pairs""",
        pairs=launcher.at(launcher.data("candidate_pairs")) / "pairs.parquet",
    )
    return dg.AssetCheckResult(passed=found["pairs"] > 0 and not any(value for name, value in found.items() if name != "pairs"), metadata=found)


@dg.asset_check(
    asset=images, blocking=True, description="Every pair has exactly one status, and the pictures in the tars are those of the table, by uid and hash."
)
def one_status_per_pair(launcher: Launcher) -> dg.AssetCheckResult:
    folder = launcher.at(launcher.data("images"))
    found = count(
        """SELECT (SELECT count(*) FROM status) AS statuses, (SELECT count(*) - count(DISTINCT uid) FROM status) AS "uids that repeat",
          (SELECT count(*) FROM pairs ANTI JOIN status USING (uid)) AS "pairs without a status", (SELECT count(*) FROM status ANTI JOIN pairs USING (uid)) AS strangers,
          (SELECT count(*) FROM status WHERE status = 'ok' AND coalesce(sha256, '') = '') AS "ok without a hash" """,
        pairs=launcher.at(launcher.data("candidate_pairs")) / "pairs.parquet", status=folder / "status.parquet",
    )  # fmt: skip
    tars = sorted(folder.glob("*.tar"))
    looked = tars[:: max(len(tars) // TARS, 1)]
    wrong = sum(_strangers(tar, folder / "status.parquet") for tar in looked)
    bad = wrong or any(value for name, value in found.items() if name != "statuses")
    return dg.AssetCheckResult(passed=not bad, metadata={**found, "tars looked at": len(looked), "tars": len(tars), "pictures unlike the table": wrong})


def _strangers(tar: Path, status: Path) -> int:
    """Pictures of a tar whose record names other bytes than the table, or that the table does not call ok."""
    with tarfile.open(tar) as stream:
        said = [json.load(member) for info in stream if info.name.endswith(".json") and (member := stream.extractfile(info)) is not None]
    if not said:
        return 0
    values = ", ".join("('{}', '{}')".format(*(str(row.get(name, "")).replace("'", "") for name in ("uid", "sha256"))) for row in said)
    query = f"SELECT count(*) AS n FROM (VALUES {values}) AS said(uid, sha256) ANTI JOIN (SELECT * FROM status WHERE status = 'ok') USING (uid, sha256)"
    return int(count(query, status=status)["n"])


@dg.asset_check(asset=images, description="In every source of some size at least half of the pictures are there.")
def sources_answer(launcher: Launcher) -> dg.AssetCheckResult:
    found = rows(
        f"""SELECT regexp_extract(source, '^[^/:]*') AS source, count(*) AS pairs, avg((status = 'ok')::INT) AS ok, mode(status) FILTER (status <> 'ok') AS "mostly"
          FROM status JOIN pairs USING (uid) GROUP BY 1 HAVING count(*) >= {SMALL_SOURCE} AND ok < {OK_FLOOR} ORDER BY pairs DESC LIMIT 20""",
        pairs=launcher.at(launcher.data("candidate_pairs")) / "pairs.parquet", status=launcher.at(launcher.data("images")) / "status.parquet",
    )  # fmt: skip
    said = {row["source"] or "(none)": f"{row['ok']:.0%} of {row['pairs']:,} pairs are ok; mostly {row['mostly']}" for row in found}
    return dg.AssetCheckResult(passed=not said, severity=dg.AssetCheckSeverity.WARN, metadata=said)


@dg.asset_check(asset=embeddings, blocking=True, description="One row per picture that is there; every vector is finite, and no cosine is beyond 1.")
def embeddings_are_whole(launcher: Launcher) -> dg.AssetCheckResult:
    folder = launcher.at(launcher.data("embeddings"))
    found = count(
        """WITH ok AS (SELECT uid FROM status WHERE status = 'ok') SELECT (SELECT count(*) FROM vectors) AS rows, (SELECT count(*) - count(DISTINCT uid) FROM vectors) AS "uids that repeat",
          (SELECT count(*) FROM ok ANTI JOIN vectors USING (uid)) AS "pictures without a row", (SELECT count(*) FROM vectors ANTI JOIN ok USING (uid)) AS "rows without a picture" """,
        vectors=folder / "metadata" / "metadata_0.parquet", status=launcher.at(launcher.data("images")) / "status.parquet",
    )  # fmt: skip
    found |= {"not finite": 0, "cosine beyond 1": 0, "rows of vectors": 0}
    for cosines in _cosines(folder):
        found["rows of vectors"] += len(cosines)
        found["not finite"] += sum(map(math.isnan, cosines))
        found["cosine beyond 1"] += int((abs(cosines) > 1 + ROUNDED).sum())
    bad = found["rows of vectors"] != found["rows"] or any(value for name, value in found.items() if not name.startswith("rows of") and name != "rows")
    return dg.AssetCheckResult(passed=not bad, metadata=found)


def _cosines(folder: Path) -> Iterator["np.ndarray"]:  # type: ignore[name-defined]  # noqa: F821
    """Scalar products of pictures and captions, a block at a time; not a number where either vector is not finite."""
    import numpy as np

    image_ND, text_ND = (np.load(folder / name / f"{name}_0.npy", mmap_mode="r") for name in ("img_emb", "text_emb"))
    for start in range(0, len(image_ND), ROWS):
        image_BD, text_BD = (vectors[start : start + ROWS].astype(np.float32) for vectors in (image_ND, text_ND))
        finite_B = np.isfinite(image_BD).all(1) & np.isfinite(text_BD).all(1)
        with np.errstate(invalid="ignore", over="ignore"):
            yield np.where(finite_B, (image_BD * text_BD).sum(1), np.nan)


@dg.asset_check(
    asset=captions, blocking=True, description="Captions belong to kept samples, and none that a model wrote and the gates accepted looks like an attack."
)
def captions_are_safe(launcher: Launcher) -> dg.AssetCheckResult:
    import pyarrow.parquet as pq

    from vlm_core.data.captions.gates import suspicious

    table = launcher.at(launcher.data("captions")) / "captions.parquet"
    found = count(
        """SELECT count(*) AS captions, count(*) FILTER (accepted) AS accepted, (SELECT count(*) FROM captions ANTI JOIN kept USING (uid)) AS "not of a kept sample" FROM captions""",
        captions=table, kept=launcher.at(launcher.data("filtered")) / "kept.parquet",
    )  # fmt: skip
    bad: list[str] = []
    for batch in pq.ParquetFile(table).iter_batches(ROWS, columns=["uid", "text", "origin", "accepted"]):
        bad += [f"{row['uid']}: {why}" for row in batch.to_pylist() if row["accepted"] and row["origin"] in WRITTEN and (why := suspicious(row["text"] or ""))]
    said = {**found, "suspicious": len(bad), "such as": "; ".join(bad[:5])}
    return dg.AssetCheckResult(passed=not bad and not found["not of a kept sample"], metadata=said)


WRITTEN = {"rewritten", "translated", "synthetic", "fused"}  # what a page says itself is judged by the filter
DATA_CHECKS = [
    pages_not_empty, batches_not_empty, uids_are_unique, one_status_per_pair, sources_answer, embeddings_are_whole, conservation_law, captions_are_safe,
]  # fmt: skip
