"""The candidates of one filter run as columns: pairs joined with downloads and embeddings, rows sorted by uid.

The joined table lies in blocks (`vlm_core.data.blocks`), in a file when there is a folder for it: a column is read where a rule looks at it, so rows cost
no memory but what a rule itself holds. Embeddings stay in their files (memory-mapped); pictures are streamed from the tars.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from vlm_core.data.blocks import Blocks, ByUid, Stored
from vlm_core.data.filter.language import page_code
from vlm_core.data.filter.picture_places import PicturePlaces
from vlm_core.data.filter.scores import clip_score
from vlm_core.data.filter.text_rules import clean
from vlm_core.errors import MissingInput, SchemaMismatch

Column = NDArray[Any]
HALF_PRECISION = 4e-3  # how far vectors stored in float16 may move a cosine

_TEXTS = ("uid", "caption", "source", "url", "licence", "credit", "page_optout", "status", "sha256", "phash", "pdq", "mime")
_NUMBERS = ("bytes", "pdq_quality", "original_width", "original_height")
_PAIRS = ("uid", "caption", "captions", "lang", "source", "url", "licence", "credit", "page_optout")
_DOWNLOADS = ("uid", "status", "sha256", "phash", "pdq", "mime", "shard", *_NUMBERS)
_SCHEMA = pa.schema([
    *((name, pa.string()) for name in _TEXTS), *((name, pa.int64()) for name in _NUMBERS),
    ("origin", pa.string()), ("others", pa.list_(pa.string())), ("emb_row", pa.int64()), ("clip", pa.float64()), ("masked_clip", pa.float64()),
])  # fmt: skip


@dataclass
class Pool:
    """One row per candidate pair; a text that is not known is '', a number 0, a score NaN."""

    uid: Stored
    raw: Stored  # the caption as found
    origin: Stored  # where it was found: alt, title, ...
    caption: Stored  # cleaned
    texts: Stored  # all captions of the pair, cleaned, one per line
    lang: "Named"  # as the page says; the language rule replaces it
    source: Stored
    url: Stored
    licence: Stored
    credit: Stored
    page_optout: Stored
    status: Stored
    sha256: Stored
    phash: Stored
    pdq: Stored
    pdq_quality: Stored
    file_bytes: Stored  # of the file as fetched, as are its type and size
    mime: Stored
    width: Stored  # before any resizing
    height: Stored
    places: PicturePlaces  # of the stored pictures
    image_emb: "Column | Parts"  # (E, D) in its files
    text_emb: "Column | Parts"
    emb_row: Stored  # row of the sample in the two, -1 when it has none
    clip: Stored
    masked_clip: Stored  # of the picture with its text masked; NaN where nobody masked it
    scorer: str  # name and version of what made the embeddings
    tangent: bool = False  # the embeddings are tangent vectors of a hyperbolic space, not directions
    scratch: Path | None = None  # where rules may keep what they work on
    copy_of: dict[str, str] = field(default_factory=dict)  # uid that went -> uid that stayed for it
    same_picture: dict[str, int] = field(default_factory=dict)  # those of them that went as exact copies -> their rows
    faces: dict[str, Any] = field(default_factory=dict)  # uid -> boxes, in shares of the picture

    def __len__(self) -> int:
        return len(self.uid)

    def embeddings(self, rows: Column) -> tuple[Column, Column]:
        """(image, text) embeddings of rows that have them, float32."""
        where = self.emb_row[rows]
        return np.asarray(self.image_emb[where], np.float32), np.asarray(self.text_emb[where], np.float32)

    def pictures(self, rows: Column) -> Iterator[tuple[int, bytes]]:
        """(row, stored JPEG) of the rows, in the order of the tars. Raises BadManifest when one is not there."""
        return self.places.read(rows)

    def stored_hashes(self, rows: Column) -> list[str]:
        """SHA-256 of the stored pictures: equal when the decoded and resized pixels are, since one encoder wrote them all."""
        found = {row: hashlib.sha256(data).hexdigest() for row, data in self.pictures(rows)}
        return [found[row] for row in rows.tolist()]

    def colours(self, rows: Column, side: int = 8) -> dict[int, Column]:
        """row -> mean colours of an 8 x 8 grid, which tells apart what grey hashes cannot."""
        return {row: thumbnail(data, side) for row, data in self.pictures(rows)}


class Named:
    """A column of few different texts that may be replaced: two bytes a row. `column[rows]` are texts."""

    def __init__(self, turn: Callable[[str], str]) -> None:
        """`turn` makes a column's text of what is added."""
        self._turn, self._names, self._parts = turn, list[str](), list[NDArray[np.uint16]]()

    def add(self, texts: pa.ChunkedArray) -> None:
        """Further rows."""
        known = texts.dictionary_encode().unify_dictionaries().combine_chunks()
        self._parts.append(self._code([self._turn(text) for text in known.dictionary.to_pylist()])[known.indices.to_numpy()])

    @property
    def _codes(self) -> NDArray[np.uint16]:
        if len(self._parts) != 1:
            self._parts = [np.concatenate([np.zeros(0, np.uint16), *self._parts])]
        return self._parts[0]

    def _code(self, names: Sequence[str]) -> NDArray[np.uint16]:
        known = {name: code for code, name in enumerate(self._names)}
        codes = np.array([known.setdefault(name, len(known)) for name in names], np.uint16)
        self._names = list(known)
        return codes

    def __len__(self) -> int:
        return len(self._codes)

    def __getitem__(self, rows: Any) -> Any:
        return np.array(self._names, dtype=object)[self._codes[rows]]

    def __setitem__(self, rows: Column, texts: Sequence[str]) -> None:
        self._codes[rows] = self._code(texts)

    def arrow(self, rows: Column) -> pa.DictionaryArray:
        return pa.DictionaryArray.from_arrays(pa.array(self._codes[rows].astype(np.int32)), pa.array(self._names, pa.string()))

    def rows_of(self, name: str) -> Column:
        return np.flatnonzero(self._codes == self._names.index(name)) if name in self._names else np.zeros(0, np.int64)

    def isin(self, rows: Column, wanted: Sequence[str]) -> Column:
        found: Column = np.array([name in wanted for name in self._names], bool)[self._codes[rows]]
        return found


def thumbnail(jpeg: bytes, side: int) -> Column:
    with Image.open(BytesIO(jpeg)) as picture:
        return np.asarray(picture.convert("RGB").resize((side, side), Image.Resampling.BOX), np.float32)


def load_pool(pairs: Path, images: Path, embeddings: Path, scratch: Path | None = None) -> Pool:
    """Read and join the three inputs. With a scratch folder the join lies there, else in memory. Raises MissingInput, SchemaMismatch, BadManifest."""
    candidates = ByUid([pairs / "pairs.parquet" if pairs.is_dir() else pairs], _PAIRS, "candidate pairs")
    downloads = ByUid([images / "status.parquet"], _DOWNLOADS, "downloads")
    image_emb, text_emb, metadata, scorer, kind = _open_embeddings(embeddings)
    embedded = ByUid(metadata, ("uid",), "embeddings", optional=("score", "masked_score"))
    lang, tar_of = Named(page_code), Named(str)
    with Blocks(_SCHEMA, scratch / "pool.arrow" if scratch else None) as blocks:
        for table in candidates:
            uids = table["uid"].combine_chunks()
            vectors = embedded.match(uids)
            where = pc.fill_null(vectors["row"].cast(pa.int64()), -1).to_numpy()
            exact, masked = (pc.fill_null(vectors[name].cast(pa.float64()), np.nan) for name in ("score", "masked_score"))
            scores = {"emb_row": where, "clip": _exact(_clip_scores(image_emb, text_emb, where), exact.to_numpy(), uids), "masked_clip": masked}
            lang.add(pc.fill_null(table["lang"].cast(pa.string()), ""))
            pictures = downloads.match(uids)
            tar_of.add(pc.fill_null(pictures["shard"].cast(pa.string()), ""))
            blocks.add(_joined(table, pictures, scores))
    columns: dict[str, Any] = {
        name: Stored(blocks, name) for name in _SCHEMA.names if name not in {"caption", "others", "original_width", "original_height", "bytes"}
    }
    places = PicturePlaces(images, blocks.rows, columns["uid"].__getitem__, tar_of.__getitem__, tar_of.rows_of)
    return Pool(
        raw=Stored(blocks, "caption"), caption=Stored(blocks, "caption", derive=clean_all), texts=Stored(blocks, "caption", "others", derive=_all_texts),
        width=Stored(blocks, "original_width"), height=Stored(blocks, "original_height"), lang=lang, places=places, file_bytes=Stored(blocks, "bytes"),
        image_emb=image_emb, text_emb=text_emb, scorer=scorer, tangent=kind == "tangent", scratch=scratch, **columns,
    )  # fmt: skip


def _joined(pairs: pa.Table, downloads: pa.Table, scores: dict[str, Any]) -> pa.Table:
    origin, others = _other_texts(pairs["captions"].combine_chunks())
    columns: dict[str, Any] = {"origin": origin, "others": others, **scores}
    for name in (*_TEXTS, *_NUMBERS):
        kind, source = _SCHEMA.field(name).type, pairs if name in _PAIRS else downloads
        columns[name] = pc.fill_null(source[name].cast(kind), "" if pa.types.is_string(kind) else 0)
    return pa.table({name: columns[name] for name in _SCHEMA.names}, schema=_SCHEMA)


def _other_texts(captions: pa.Array) -> tuple[pa.Array, pa.Array]:
    """list<struct<text, origin, ..>> -> (origin of the first, list<string>)."""
    lengths = pc.fill_null(pc.list_value_length(captions), 0).to_numpy()
    flat, ends = captions.flatten(), np.concatenate([[0], np.cumsum(lengths)])
    first = pc.struct_field(flat, "origin").take(pa.array(ends[:-1], mask=lengths == 0))
    return pc.fill_null(first, "alt"), pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pc.fill_null(pc.struct_field(flat, "text"), ""))


def clean_all(texts: pa.Array) -> list[str]:
    """`clean` of every text; most are clean already, and a few vectorised looks find the others."""
    dirty = pc.or_(pc.or_(pc.match_substring(texts, "&"), pc.invert(pc.string_is_ascii(texts))), pc.match_substring_regex(texts, r"^\s|\s$|\s\s|[^\x20-\x7e]"))
    out: list[str] = texts.to_pylist()
    for row in np.flatnonzero(dirty.to_numpy(zero_copy_only=False)).tolist():
        out[row] = clean(out[row])
    return out


def _all_texts(raw: pa.Array, others: pa.Array) -> list[str]:
    """Cleaned caption and the others of the pair, each once."""
    return ["\n".join(dict.fromkeys(clean(text) for text in (first, *more))) for first, more in zip(raw.to_pylist(), others.to_pylist(), strict=True)]


# ---------------------------------------------------------------- embeddings


def load_embeddings(folder: Path) -> tuple[Column, Column, list[str], str]:
    """(image, text, uid per row, scorer) of a folder in clip-retrieval's layout. Raises MissingInput, SchemaMismatch."""
    *vectors, metadata, scorer, _ = _open_embeddings(folder)
    image, text = (rows[np.arange(len(rows))] if isinstance(rows, Parts) else rows for rows in vectors)
    return image, text, [uid for file in metadata for uid in pq.read_table(file, columns=["uid"])["uid"].to_pylist()], scorer


def _open_embeddings(folder: Path) -> "tuple[Column | Parts, Column | Parts, list[Path], str, str]":
    """(image, text, files of metadata, scorer, what the vectors are: "unit" or "tangent")."""
    image, text = (_stack(folder / part, part) for part in ("img_emb", "text_emb"))
    metadata = _numbered(folder / "metadata", "parquet")
    rows = sum(pq.read_metadata(file).num_rows for file in metadata)
    if not len(image) == len(text) == rows:
        raise SchemaMismatch(
            f"Found {len(image):,} image and {len(text):,} text embeddings for {rows:,} rows of metadata in {folder}, expected equal numbers; embed again."
        )
    try:
        card = json.loads((folder / "scorer.json").read_text())
    except FileNotFoundError:
        raise MissingInput(f"Found no {folder / 'scorer.json'}, expected the name and version of the scorer; embed again.") from None
    return image, text, metadata, f"{card['scorer']}@{str(card['version'])[:12]}", str(card.get("vectors", "unit"))


def _numbered(folder: Path, suffix: str) -> list[Path]:
    files = sorted(folder.glob(f"*.{suffix}"), key=lambda file: int(file.stem.rpartition("_")[2]))
    if not files:
        raise MissingInput(f"Found no {folder}/*.{suffix}, expected the embeddings; run 'vlm embed' first.")
    return files


def _stack(folder: Path, stem: str) -> "Column | Parts":
    parts = [np.load(file, mmap_mode="r") for file in _numbered(folder, "npy")]
    if any(part.ndim != 2 or part.shape[1] != parts[0].shape[1] for part in parts):
        raise SchemaMismatch(f"Found arrays of shapes {[part.shape for part in parts]} in {folder}, expected (rows, width) of one width; embed again.")
    return parts[0] if len(parts) == 1 else Parts(parts)


class Parts:
    """Memory-mapped arrays one below the other; `parts[rows]` reads those rows."""

    def __init__(self, parts: Sequence[Column]) -> None:
        self._parts, self._ends = parts, np.cumsum([len(part) for part in parts])
        self.shape = (int(self._ends[-1]), parts[0].shape[1])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Column) -> Column:
        which = np.searchsorted(self._ends, rows, side="right")
        out = np.empty((len(rows), self.shape[1]), np.result_type(*self._parts))
        for number in np.unique(which):
            part, own = self._parts[number], which == number
            out[own] = part[rows[own] - (self._ends[number] - len(part))]
        return out


def _clip_scores(image_emb: "Column | Parts", text_emb: "Column | Parts", emb_row: Column) -> Column:
    """Cosine per row, NaN without embeddings."""
    scores, has = np.full(len(emb_row), np.nan), emb_row >= 0
    scores[has] = clip_score(image_emb[emb_row[has]], text_emb[emb_row[has]])
    return scores


def _exact(rounded: Column, exact: Column, uids: pa.Array) -> Column:
    """The scores that the scorer computed in float32, where they are stored: vectors in float16 move a cosine by up to 1e-3, and a sample across a cut."""
    wrong = np.abs(exact - rounded) > HALF_PRECISION
    if wrong.any():
        row = int(wrong.argmax())
        raise SchemaMismatch(
            f"Found {int(wrong.sum()):,} scores that differ from their embeddings by more than {HALF_PRECISION} (first {exact[row]:.4f} and {rounded[row]:.4f} of {uids[row]}), "
            "expected equal ones; embed again, columns or rows were shifted."
        )
    return np.where(np.isfinite(exact), exact, rounded)
