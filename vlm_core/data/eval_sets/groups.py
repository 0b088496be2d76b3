"""Which labelled pictures resemble something that was trained on, and which must stay together in a split."""

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vlm_core.data.crawl.corpus import Corpus, Picture
from vlm_core.data.fetch.picture import Limits, decode
from vlm_core.data.filter.config import Grouping
from vlm_core.data.filter.grouping import group_samples
from vlm_core.data.filter.perceptual import pdq, phash, to_hex
from vlm_core.data.filter.text_rules import caption_key
from vlm_core.data.lineage import tombstones
from vlm_core.data.shards.shards import read_samples
from vlm_core.stage import Stage, home

ANY_SIZE = Limits(max_pixels=10**8, max_decoded_mb=512, min_side=1, max_aspect=0)


class Look(NamedTuple):
    """What `group_samples` compares."""

    uid: str
    caption: str
    sha256: str
    phash: str
    pdq: str
    quality: int
    author: str = ""


class Item(NamedTuple):
    """A picture that may become part of a dataset."""

    picture: Picture
    look: Look
    seen: bool  # it, something like it or a work of its author was trained on, by a model or by its scorer


def look_at(uid: str, content: bytes, caption: str, sha256: str = "", author: str = "") -> Look:
    pixels = np.asarray(decode(io.BytesIO(content), ANY_SIZE)[0].convert("RGB"))
    bits, quality = pdq(pixels)
    return Look(uid, joined(caption), sha256 or hashlib.sha256(content).hexdigest(), to_hex(phash(pixels)), to_hex(bits), quality, author)


def joined(caption: str) -> str:
    """Letters and digits only: "palm tree" and "palmtree" are one caption."""
    return caption_key(caption).replace(" ", "")


def group(looks: Sequence[Look], config: Grouping) -> dict[str, str]:
    """uid -> name of its group."""
    uids, captions, sha256, phashes, pdqs, quality, authors = zip(*looks, strict=True)
    return dict(zip(uids, group_samples(uids, captions, sha256, phashes, pdqs, quality, authors, config), strict=True))


def pool(corpus: Corpus, snapshots: Sequence[Path], known: list[Look], config: Grouping, stage: Stage) -> list[Item]:
    """Every labelled picture of the corpus, sorted by key. `known`: pictures that count as trained on beside those of the snapshots."""
    pictures = sorted((picture for picture in corpus.pictures if picture.labels), key=lambda picture: picture.key)
    looks, trained, stones = [], list(known), tombstones.load(home())
    for done, picture in enumerate(pictures, 1):
        author = picture.author if picture.style == "clipart" else ""  # a photographer or a font is no style
        looks.append(look_at(picture.key, corpus.read(picture.file), picture.captions.get("en", ""), author=author))
        stage.progress("corpus pictures", done, len(pictures))
    for done, (place, sample) in enumerate(((place, sample) for place, shards in enumerate(snapshots) for sample in read_samples(shards, "train")), 1):
        first = look_at(f"~{place}/{sample.uid}", sample.jpeg, sample.record["caption"], sample.record["sha256"])
        others = {joined(caption["text"]) for caption in sample.record["captions"]} - {first.caption}
        trained += [first, *(first._replace(uid=f"{first.uid}#{number}", caption=text) for number, text in enumerate(sorted(others)))]
        stage.progress("training samples", done)
    seen = _seen(looks, trained, config)
    shown = [not stones.hit({"sha256": look.sha256, "pdq": look.pdq}) for look in looks]
    return [Item(picture, look, look.uid in seen) for picture, look, stays in zip(pictures, looks, shown, strict=True) if stays]


def _seen(looks: list[Look], trained: list[Look], config: Grouping) -> set[str]:
    """Keys of pictures in a group with a training sample (equal bytes, equal captions, look-alikes), or of an author with one."""
    groups = group([look._replace(author="") for look in looks] + trained, config)
    used = {groups[look.uid] for look in trained}
    content = {look.sha256 for look in trained}
    authors = {look.author for look in looks if look.sha256 in content} - {""}
    return {look.uid for look in looks if groups[look.uid] in used or look.author in authors}
