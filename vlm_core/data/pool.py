"""The candidates of one filter run as columns: pairs joined with downloads and embeddings, rows sorted by uid.

Embeddings stay in their files (memory-mapped); pictures are streamed from the tars when a rule wants to look at them.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from vlm_core.data.language import page_code
from vlm_core.data.scores import clip_score
from vlm_core.data.tar import read_tar
from vlm_core.data.text_rules import clean
from vlm_core.errors import BadManifest, MissingInput, SchemaMismatch

Column = NDArray[Any]
BLOCK = 65_536


@dataclass
class Pool:
    """One row per candidate pair; a text that is not known is '', a number 0, a score NaN."""

    uid: Column
    raw: Column  # the caption as found
    caption: Column  # cleaned
    texts: Column  # all captions of the pair, one per line
    lang: Column  # as the page says; the language rule replaces it
    url: Column
    licence: Column
    credit: Column
    page_optout: Column
    status: Column
    sha256: Column
    phash: Column
    pdq: Column
    pdq_quality: Column
    width: Column  # as fetched, before any resizing
    height: Column
    images: Path
    image_emb: Column  # (E, D) in its file
    text_emb: Column
    emb_row: Column  # row of the sample in the two, -1 when it has none
    scorer: str  # name and version of what made the embeddings
    clip: Column = field(default_factory=lambda: np.zeros(0))
    copy_of: dict[str, str] = field(default_factory=dict)  # uid that went -> uid that stayed for it

    def __len__(self) -> int:
        return len(self.uid)

    def embeddings(self, rows: Column) -> tuple[Column, Column]:
        """(image, text) embeddings of rows that have them, float32."""
        where = self.emb_row[rows]
        return np.asarray(self.image_emb[where], np.float32), np.asarray(self.text_emb[where], np.float32)

    def pictures(self, rows: Column) -> Iterator[tuple[int, bytes]]:
        """(row, stored JPEG) of the rows, in the order of the tars. Raises BadManifest when one is not there."""
        wanted = {f"{uid}.jpg": row for uid, row in zip(self.uid[rows].tolist(), rows.tolist(), strict=True)}
        for path in sorted(self.images.glob("*.tar")):
            for name, data in read_tar(path):
                row = wanted.pop(name, None)
                if row is not None:
                    yield row, data
        if wanted:
            raise BadManifest(
                f"Found no picture {min(wanted)} in {self.images}/*.tar ({len(wanted):,} are missing), expected one for every row with status ok; download again."
            )

    def stored_hashes(self, rows: Column) -> list[str]:
        """SHA-256 of the stored pictures: equal when the decoded and resized pixels are, since one encoder wrote them all."""
        found = {row: hashlib.sha256(data).hexdigest() for row, data in self.pictures(rows)}
        return [found[row] for row in rows.tolist()]

    def colours(self, rows: Column, side: int = 8) -> dict[int, Column]:
        """row -> mean colours of an 8 x 8 grid, which tells apart what grey hashes cannot."""
        return {row: thumbnail(data, side) for row, data in self.pictures(rows)}


def thumbnail(jpeg: bytes, side: int) -> Column:
    with Image.open(BytesIO(jpeg)) as picture:
        return np.asarray(picture.convert("RGB").resize((side, side), Image.Resampling.BOX), np.float32)


def load_pool(pairs: Path, images: Path, embeddings: Path) -> Pool:
    """Read and join the three inputs. Raises MissingInput, SchemaMismatch, BadManifest."""
    table = _read(
        pairs / "pairs.parquet" if pairs.is_dir() else pairs,
        ("uid", "caption", "captions", "lang", "url", "licence", "credit", "page_optout"),
        "candidate pairs",
    )
    wanted = ("uid", "status", "sha256", "phash", "pdq", "pdq_quality", "original_width", "original_height")
    status = _read(images / "status.parquet", wanted, "downloads")
    data = table.to_pandas().merge(status.to_pandas(), on="uid", how="left", validate="one_to_one").sort_values("uid", ignore_index=True)
    text = {name: data[name].fillna("").to_numpy(object) for name in ("uid", "url", "licence", "credit", "page_optout", "status", "sha256", "phash", "pdq")}
    number = {name: data[name].fillna(0).to_numpy(np.int64) for name in ("pdq_quality", "original_width", "original_height")}
    raw = data["caption"].fillna("").to_numpy(object)
    image_emb, text_emb, emb_uids, scorer = load_embeddings(embeddings)
    where = {uid: row for row, uid in enumerate(emb_uids)}
    pool = Pool(
        raw=raw, caption=_object([clean(t) for t in raw]), texts=_object([_all_texts(*pair) for pair in zip(raw, data["captions"], strict=True)]), lang=_object([page_code(t) for t in data["lang"].fillna("")]), images=images,
        width=number["original_width"], height=number["original_height"], pdq_quality=number["pdq_quality"],
        image_emb=image_emb, text_emb=text_emb, emb_row=np.array([where.get(uid, -1) for uid in text["uid"]], np.int64), scorer=scorer, **text,
    )  # fmt: skip
    pool.clip = _clip_scores(pool)
    return pool


def load_embeddings(folder: Path) -> tuple[Column, Column, list[str], str]:
    """(image, text, uid per row, scorer) of a folder in clip-retrieval's layout. Raises MissingInput, SchemaMismatch."""
    image, text = (_stack(folder / part, part) for part in ("img_emb", "text_emb"))
    files = _numbered(folder / "metadata", "parquet")
    uids = [uid for file in files for uid in _read(file, ("uid",), "embeddings")["uid"].to_pylist()]
    if not len(image) == len(text) == len(uids):
        raise SchemaMismatch(
            f"Found {len(image):,} image and {len(text):,} text embeddings for {len(uids):,} rows of metadata in {folder}, expected equal numbers; embed again."
        )
    try:
        card = json.loads((folder / "scorer.json").read_text())
    except FileNotFoundError:
        raise MissingInput(f"Found no {folder / 'scorer.json'}, expected the name and version of the scorer; embed again.") from None
    return image, text, uids, f"{card['scorer']}@{str(card['version'])[:12]}"


def _numbered(folder: Path, suffix: str) -> list[Path]:
    files = sorted(folder.glob(f"*.{suffix}"), key=lambda file: int(file.stem.rpartition("_")[2]))
    if not files:
        raise MissingInput(f"Found no {folder}/*.{suffix}, expected the embeddings; run 'vlm embed' first.")
    return files


def _stack(folder: Path, stem: str) -> Column:
    parts = [np.load(file, mmap_mode="r") for file in _numbered(folder, "npy")]
    if any(part.ndim != 2 or part.shape[1] != parts[0].shape[1] for part in parts):
        raise SchemaMismatch(f"Found arrays of shapes {[part.shape for part in parts]} in {folder}, expected (rows, width) of one width; embed again.")
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _read(path: Path, columns: tuple[str, ...], what: str) -> pa.Table:
    if not path.exists():
        raise MissingInput(f"Found no file {path}, expected the table of {what}; run the stage that makes it first.")
    schema = pq.read_schema(path)
    missing = [name for name in columns if name not in schema.names]
    if missing:
        raise SchemaMismatch(f"Found no column {missing[0]!r} in {path} ({', '.join(schema.names)}), expected {', '.join(columns)}; make the table again.")
    table = pq.read_table(path, columns=list(columns))
    uids = table["uid"].to_pylist()
    if len(set(uids)) != len(uids):
        raise SchemaMismatch(f"Found {len(uids) - len(set(uids)):,} uids twice in {path}, expected every uid once; make the table again.")
    return table


def _all_texts(raw: str, captions: Any) -> str:
    """Raw caption and the others; pandas gives a list column as arrays, and None for an empty cell."""
    others = [caption["text"] or "" for caption in (captions if captions is not None else ())]
    return "\n".join(dict.fromkeys(clean(text) for text in (raw, *others)))


def _object(values: list[str]) -> Column:
    return np.array(values, dtype=object)


def _clip_scores(pool: Pool) -> Column:
    scores = np.full(len(pool), np.nan)
    rows = np.flatnonzero(pool.emb_row >= 0)
    for start in range(0, len(rows), BLOCK):
        part = rows[start : start + BLOCK]
        scores[part] = clip_score(*pool.embeddings(part))
    return scores
