"""What a mix of snapshots must not train on: whatever resembles what any of them holds out.

The split of a snapshot parts no group of its own (`shards.py`), but knows nothing of other snapshots. Of a mix a sample is kept out if it has the uid or the
bytes of a held-out sample of any part, looks like it (pHash or PDQ within the radii of `Grouping`), or one of its captions is the other's (letters and
digits only, case folded). Equal credits keep nobody out.

Shards hold no hashes of looks. They are made once for a snapshot, from all its pictures, and kept as arrays without names in $VLM_HOME/looks, under the MD5
of the snapshot's index and in its order.
"""

import io
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlm_core.data.filter.config import Grouping
from vlm_core.data.filter.near_hashes import NearTo
from vlm_core.data.filter.perceptual import pdq, phash
from vlm_core.data.filter.text_rules import caption_key
from vlm_core.errors import BadManifest
from vlm_core.stage import home

if TYPE_CHECKING:
    from vlm_core.data.shards.samples import ShardSamples

MIN_QUALITY = 50  # of PDQ, from which hashes say something, as for groups
KINDS = ("phash", "pdq")


class Looks(NamedTuple):
    """Hashes of N pictures."""

    phash: NDArray[np.uint8]  # (N, 8)
    pdq: NDArray[np.uint8]  # (N, 32)
    quality: NDArray[np.int32]  # (N,), 0 .. 100

    def codes(self, kind: str) -> tuple[NDArray[np.uint16], NDArray[np.int64]]:
        """(hashes packed in words of 16 bits, rows) of those that say something."""
        rows = np.flatnonzero(self.quality >= MIN_QUALITY)
        packed: NDArray[np.uint8] = getattr(self, kind)[rows]
        return np.ascontiguousarray(packed).view(">u2").astype(np.uint16), rows


def kept_out(trained: Sequence["ShardSamples"], held_out: Sequence["ShardSamples"], config: Grouping | None = None) -> dict[str, str]:
    """uid -> uid | bytes | looks | caption: training samples that resemble a held-out one, by what gave them away first."""
    config = config or Grouping()
    uids, shas, captions = set[str](), set[str](), set[str]()
    for part in held_out:
        for record in map(part.record, range(len(part))):
            uids.add(record["uid"])
            shas.add(record["sha256"])
            captions.add(caption_key(record["caption"]))
    shas.discard("")
    captions.discard("")
    index, found = _index([looks_of(part) for part in held_out], config), dict[str, str]()
    for part in trained:
        near = _alike(looks_of(part), index)
        for row, uid in enumerate(part.uids):
            record = part.record(row)
            said = {caption_key(text) for text in (record["caption"], *(caption["text"] for caption in record["captions"]))}
            signs = {"uid": uid in uids, "bytes": record["sha256"] in shas, "looks": bool(near[row]), "caption": bool(said & captions)}
            if why := next((name for name, holds in signs.items() if holds), ""):
                found.setdefault(uid, why)
    return found


def count(parts: Sequence["ShardSamples"], found: Mapping[str, str]) -> dict[str, int]:
    """How many training samples of the parts are kept out, by what gave them away; one that several parts hold counts in each."""
    reasons = [found[uid] for part in parts for uid in part.uids if uid in found]
    return {f"kept_out.same_{name}": reasons.count(name) for name in ("uid", "bytes", "looks", "caption") if name in reasons}


def _index(held_out: Sequence[Looks], config: Grouping) -> dict[str, NearTo]:
    radii = {"phash": config.phash_bits, "pdq": config.pdq_bits}
    return {kind: NearTo(np.concatenate([looks.codes(kind)[0] for looks in held_out]), radii[kind]) for kind in KINDS}


def _alike(looks: Looks, held_out: Mapping[str, NearTo]) -> NDArray[np.bool_]:
    near = np.zeros(len(looks.quality), bool)
    for kind, index in held_out.items():
        codes, rows = looks.codes(kind)
        near[rows] |= index.first(codes) >= 0
    return near


def looks_of(samples: "ShardSamples") -> Looks:
    """Hashes of all pictures of one split, in the order of its rows; read back where they were made before."""
    file = home() / "looks" / f"{samples.digest}-{samples.split}.npz"
    if (known := _read(file, len(samples))) is not None:
        return known
    made = Looks(np.empty((len(samples), 8), np.uint8), np.empty((len(samples), 32), np.uint8), np.empty(len(samples), np.int32))
    for row, (look, bits, quality) in enumerate(_hashes(samples)):
        made.phash[row], made.pdq[row], made.quality[row] = look, bits, quality
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.stem}.{os.getpid()}.npz")  # every rank may be at it: each writes its own, and the last name wins
    np.savez(part, **made._asdict())
    part.replace(file)
    return made


def _hashes(samples: "ShardSamples") -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8], int]]:
    for row in range(len(samples)):
        try:
            with Image.open(io.BytesIO(samples.jpeg(row))) as picture:
                pixels = np.asarray(picture.convert("RGB"))
        except (OSError, ValueError) as error:
            raise BadManifest(
                f"Found a picture that cannot be decoded, sample {samples.uids[row]} of {samples.shards_dir} ({error}), expected a JPEG; make the shards again."
            ) from None
        bits, quality = pdq(pixels)
        yield np.packbits(phash(pixels)), np.packbits(bits), quality


def _read(file: Path, n: int) -> Looks | None:
    try:
        with np.load(file) as stored:
            looks = Looks(**{name: stored[name] for name in Looks._fields})
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):  # none yet, or cut off: made again
        return None
    return looks if looks.phash.shape == (n, 8) and looks.pdq.shape == (n, 32) and looks.quality.shape == (n,) else None
