"""Questions and their answers: text, picture, vector or uid; by language, domain, split and snapshot. No HTTP here."""

import base64
import binascii
import io
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vlm_core.data.fetch.picture import Limits, decode
from vlm_core.data.web.address import FetchFailed
from vlm_core.errors import VlmError
from vlm_core.search.shelf import MODALITIES, Facet, Mask, Shelf, signature

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

INDEX = "filtered"
TEXT_CHARS, RESULTS, LOOK_EVERY_S = 2_000, 10_000, 1.0
FEW = 1 / 8  # below this share of the rows a filter leaves so little that the vectors are compared one by one, exactly
BLOCK = 65_536
LIMITS = Limits(max_pixels=40_000_000, max_decoded_mb=200, min_side=1, max_aspect=0)
WAYS, FILTERS = ("text", "image", "image_url", "embedding_input", "uid"), ("lang", "domain", "split", "snapshot")
SPLITS = ("train", "heldout", "none")
Found = list[tuple[int, float]]


class BadRequest(Exception):
    """One sentence for the client; status 400 unless said otherwise."""

    def __init__(self, sentence: str, status: int = 400) -> None:
        super().__init__(sentence)
        self.status = status


class Library:
    """The samples that may be answered. Notices within `look_every_s` when a data folder was published anew or something was taken down."""

    def __init__(self, data: Path, home: Path, look_every_s: float = LOOK_EVERY_S) -> None:
        self.data, self.home, self.look_every_s = data, home, look_every_s
        self._shelf = Shelf.read(data, home, signature(data, home))
        self._looked = time.monotonic()
        self._looking = threading.Lock()
        self._one_at_a_time = threading.Lock()  # the towers use all cores already

    @property
    def shelf(self) -> Shelf:
        """The newest shelf that could be read; while one thread reads, the others answer from the one before."""
        if time.monotonic() - self._looked >= self.look_every_s and self._looking.acquire(blocking=False):
            try:
                now = signature(self.data, self.home)
                if now != self._shelf.signature:
                    self._shelf = Shelf.read(self.data, self.home, now, self._shelf)
                self._looked = time.monotonic()
            except (VlmError, OSError) as error:  # a folder between its old name and its new one, or damaged: what was read before still holds
                print(f"[serve] still answering from before: {error}", file=sys.stderr, flush=True)
            finally:
                self._looking.release()
        return self._shelf

    def answer(self, question: dict[str, Any]) -> list[dict[str, Any]]:
        """The nearest samples, best first. Raises BadRequest."""
        index, modality, count = question.get("indice_name", INDEX), question.get("modality", "image"), question.get("num_images", 40)
        if index != INDEX or modality not in MODALITIES:
            raise BadRequest(f"Found the index {str(index)[:80]!r} and modality {str(modality)[:80]!r}, expected {INDEX!r} and image or text.")
        if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= RESULTS:
            raise BadRequest(f"Found num_images {str(count)[:80]!r}, expected a whole number from 1 to {RESULTS:,}.")
        shelf, distinct = self.shelf, bool(question.get("deduplicate", True))
        query_D, allowed = self._embed(shelf, question), self._allowed(shelf, question)
        own = shelf.row(question["uid"]) if question.get("uid") else None
        if own is not None:
            allowed = allowed & (shelf.embedded.table["sha256"].to_numpy() != shelf.record(own)["sha256"]) if distinct else allowed.copy()
            allowed[own] = False
        found = self._nearest(shelf, query_D, modality, allowed, count, distinct)
        return [_told(record, row, score) for record, (row, score) in zip(shelf.records([row for row, _ in found]), found, strict=True)]

    def snapshots(self) -> list[str]:
        """Hashes that the catalog knows, the newest first."""
        rows = self.ask("SELECT snapshot_md5, max(created_at) AS made FROM snapshots GROUP BY 1 ORDER BY made DESC NULLS LAST, 1")
        return [row["snapshot_md5"] for row in rows]

    def ask(self, query: str, *values: object) -> list[dict[str, Any]]:
        """Rows of the catalog."""
        with self.catalog() as con:
            rows: list[dict[str, Any]] = con.sql(query, params=list(values)).to_arrow_table().to_pylist()
        return rows

    def catalog(self) -> "DuckDBPyConnection":
        """A connection of this thread's own over the catalog as it is now; close it."""
        from vlm_core.data.lineage.catalog import open_catalog

        return open_catalog(self.home / "catalog")

    # ------------------------------------------------------------ what is meant

    def _embed(self, shelf: Shelf, question: dict[str, Any]) -> NDArray[np.float32]:
        """The unit vector of a question."""
        given = [name for name in WAYS if question.get(name)]
        if len(given) != 1:
            raise BadRequest(f"Found {', '.join(given) or 'nothing'} to search for, expected exactly one of text, image, uid, embedding_input.")
        match given[0]:
            case "text":
                return self._text(shelf, question["text"])
            case "image":
                return self._image(shelf, question["image"])
            case "uid":
                return _like(shelf, question["uid"])
            case "embedding_input":
                return _vector(question["embedding_input"], shelf.embedded.scorer.dim)
        raise BadRequest("Found image_url, which is not fetched here; send the picture itself as base64 in 'image'.")

    def _text(self, shelf: Shelf, text: Any) -> NDArray[np.float32]:
        if not isinstance(text, str) or len(text) > TEXT_CHARS:
            raise BadRequest(f"Found a text of {len(str(text)):,} characters, expected a string of at most {TEXT_CHARS:,}.")
        with self._one_at_a_time:
            return shelf.embedded.scorer.encode_texts([text])[0]

    def _image(self, shelf: Shelf, encoded: Any) -> NDArray[np.float32]:
        try:
            data = encoded if isinstance(encoded, bytes) else base64.b64decode(encoded, validate=True)
            image, _ = decode(io.BytesIO(data), LIMITS, side=512)
        except (binascii.Error, TypeError, ValueError):
            raise BadRequest("Found an image that is not base64, expected the bytes of a picture in base64.") from None
        except FetchFailed as error:
            raise BadRequest(f"Found an image that is refused ({error}), expected a plain picture.") from None
        with self._one_at_a_time:
            return shelf.embedded.scorer.encode_images([image])[0]

    # ------------------------------------------------------------ filters

    def _allowed(self, shelf: Shelf, question: dict[str, Any]) -> Mask:
        """Rows that the filters of a question leave."""
        wanted = {name: question[name] for name in FILTERS if question.get(name)}
        for name, value in wanted.items():
            if not isinstance(value, str) or len(value) > 200:
                raise BadRequest(f"Found {str(value)[:80]!r} for {name}, expected a short string.")
        mask, embedded = shelf.alive, shelf.embedded
        if lang := wanted.get("lang", "").lower():
            mask = mask & embedded.lang.where(name for name in embedded.lang.names if name.lower() == lang or name.lower().startswith(f"{lang}-"))
        if domain := wanted.get("domain", "").lower().strip("."):
            mask = mask & embedded.host.where(name for name in embedded.host.names if name == domain or name.endswith(f".{domain}"))
        split = self._of_snapshot(shelf, wanted["snapshot"]) if "snapshot" in wanted else shelf.split
        if "snapshot" in wanted:
            mask = mask & split.where(SPLITS[:2])
        if side := wanted.get("split"):
            if side not in SPLITS:
                raise BadRequest(f"Found the split {side[:80]!r}, expected one of {', '.join(SPLITS)}.")
            mask = mask & split.where(["" if side == "none" else side])
        return mask

    def _of_snapshot(self, shelf: Shelf, prefix: str) -> Facet:
        known = [name for name in self.snapshots() if name.startswith(prefix)]
        if len(known) != 1:
            raise BadRequest(f"Found {len(known) or 'no'} snapshots for {prefix[:80]!r}, expected one that the catalog knows; give more of its hash.")
        splits = {row["uid"]: row["split"] for row in self.ask("SELECT DISTINCT uid, split FROM snapshot_samples WHERE snapshot_md5 = ?", known[0])}
        return Facet.of(splits.get(uid, "") for uid in shelf.embedded.row_of)

    # ------------------------------------------------------------ the nearest

    def _nearest(self, shelf: Shelf, query_D: NDArray[np.float32], modality: str, allowed: Mask, count: int, distinct: bool) -> Found:
        """The index answers where a good part of its rows is allowed; where few are, their vectors are compared one by one, exactly."""
        if allowed.sum() < FEW * len(allowed):
            return _exactly(shelf, query_D, modality, allowed, count, distinct)
        index, wanted = shelf.embedded.index[modality], 4 * count
        while True:  # the index also holds what is not allowed: ask for more until there is enough
            depth = min(index.ntotal, wanted)
            with self._one_at_a_time:
                scores_1K, places_1K = index.search(query_D[None], depth)
            found = [(int(row), float(score)) for row, score in zip(places_1K[0], scores_1K[0], strict=True) if row >= 0 and allowed[row]]
            told = _distinct(found, shelf) if distinct else found
            if len(told) >= count or len(found) == allowed.sum():
                return told[:count]
            if depth == index.ntotal:  # an index that looks into some of its cells only has not seen all
                return _exactly(shelf, query_D, modality, allowed, count, distinct)
            wanted = 4 * depth


def _exactly(shelf: Shelf, query_D: NDArray[np.float32], modality: str, allowed: Mask, count: int, distinct: bool) -> Found:
    rows = np.flatnonzero(allowed)
    parts = [shelf.embedded.vectors[modality][rows[at : at + BLOCK]].astype(np.float32) @ query_D for at in range(0, len(rows), BLOCK)]
    scores = np.concatenate(parts) if parts else np.zeros(0, np.float32)
    found = [(int(rows[place]), float(scores[place])) for place in np.argsort(-scores, kind="stable")]
    return (_distinct(found, shelf) if distinct else found)[:count]


def _told(record: dict[str, Any], row: int, score: float) -> dict[str, Any]:
    told = {name: record[name] for name in ("url", "page_url", "caption", "uid", "lang", "split")}
    return {"id": row, "similarity": score, **told, "image_path": f"/thumbnail/{record['uid']}.jpg", "why_path": f"/why/{record['uid']}"}


def _like(shelf: Shelf, uid: Any) -> NDArray[np.float32]:
    row = shelf.row(uid) if isinstance(uid, str) else None
    if row is None:
        raise BadRequest(f"Found no sample {str(uid)[:80]!r} among those that may be answered, expected the 32 hex digits of one.")
    return np.asarray(shelf.embedded.vectors["image"][row], np.float32)


def _vector(values: Any, dim: int) -> NDArray[np.float32]:
    try:
        vector_D = np.asarray(values, np.float32)
    except (TypeError, ValueError):
        vector_D = np.empty(0, np.float32)
    norm = float(np.linalg.norm(vector_D))
    if vector_D.shape != (dim,) or not np.isfinite(norm) or norm == 0:
        raise BadRequest(f"Found an embedding of shape {vector_D.shape}, expected {dim} finite numbers that are not all zero.")
    return vector_D / norm


def _distinct(found: Found, shelf: Shelf) -> Found:
    """Of equal pictures the nearest."""
    shas, nearest = shelf.embedded.table["sha256"], dict[str, tuple[int, float]]()
    for row, score in found:
        nearest.setdefault(shas[row].as_py(), (row, score))
    return list(nearest.values())
