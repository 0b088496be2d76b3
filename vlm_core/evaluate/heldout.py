"""The held-out pairs as a retrieval test: distinct pictures, distinct raw captions, and which belong together."""

import io
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from vlm_core.data.shards.shards import read_samples
from vlm_core.errors import NothingLeft
from vlm_core.evaluate.metrics import Ints


class HeldOut(NamedTuple):
    """Pair p: picture `image_index[p]` and text `text_index[p]` belong together; every pair comes from at least one sample."""

    uids: list[str]  # of the pairs (the smallest of equal ones)
    image_index: Ints
    text_index: Ints
    sha256s: list[str]  # distinct pictures
    pictures: Callable[[list[int]], Iterator[Image.Image]]  # of these rows
    image_groups: list[str]
    texts: list[str]  # distinct raw captions
    text_uids: list[str]
    text_groups: list[str]


def normalise_caption(text: str) -> str:
    """Two captions that differ in case, spacing or Unicode form only are one."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def read_heldout(shards_dir: Path) -> HeldOut:
    """Pictures with equal bytes are one picture, equal captions one text: whatever they belong to is a positive."""
    pictures: dict[str, tuple[bytes, str]] = {}
    texts: dict[str, tuple[str, str, str]] = {}
    pairs: dict[tuple[str, str], str] = {}
    for sample in sorted(read_samples(shards_dir, "heldout"), key=lambda sample: sample.uid):
        record: dict[str, Any] = sample.record
        caption = normalise_caption(record["caption"])
        pictures.setdefault(record["sha256"], (sample.jpeg, record["group"]))
        texts.setdefault(caption, (record["caption"], sample.uid, record["group"]))
        pairs.setdefault((record["sha256"], caption), sample.uid)
    if not pairs:
        raise NothingLeft(f"Found no held-out sample in {shards_dir}, expected some to measure retrieval on; raise held_out of 'vlm shard'.")
    image_row, text_row = ({key: row for row, key in enumerate(part)} for part in (pictures, texts))
    return HeldOut(
        list(pairs.values()), np.array([image_row[sha256] for sha256, _ in pairs]), np.array([text_row[text] for _, text in pairs]),
        list(pictures), _opener([data for data, _ in pictures.values()]), [group for _, group in pictures.values()],
        [raw for raw, _, _ in texts.values()], [uid for _, uid, _ in texts.values()], [group for _, _, group in texts.values()],
    )  # fmt: skip


def _opener(jpegs: list[bytes]) -> Callable[[list[int]], Iterator[Image.Image]]:
    return lambda rows: (Image.open(io.BytesIO(jpegs[row])).convert("RGB") for row in rows)
