"""Fingerprints of evaluation pictures: what `vlm fingerprint` writes once and the rule `decontaminate` compares every sample with.

prints.parquet, one row per picture: its set, key, bytes, the hashes of its eight turns and reflections and of altered versions, its vector by the scorer of the pool, its captions.
The file's own metadata name the scorer and the cosine from which a picture counts as a copy, as it was calibrated on augmented copies.
Source: methods/data.md 13.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from vlm_core.data.eval_sets.eval_sets import datasets_in, read_dataset
from vlm_core.data.filter.perceptual import pdq, phash, to_hex
from vlm_core.errors import BadManifest, MissingInput, NothingLeft, SchemaMismatch

PRINTS = pa.schema([
    ("set", pa.string()), ("key", pa.string()), ("sha256", pa.string()), ("pdq", pa.list_(pa.string())), ("phash", pa.list_(pa.string())), ("altered", pa.list_(pa.string())),
    ("quality", pa.int32()), ("vector", pa.list_(pa.float32())), ("captions", pa.list_(pa.string())),
])  # fmt: skip
PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp"}


class EvalPicture(NamedTuple):
    """A picture that no model may be trained on."""

    dataset: str
    key: str
    sha256: str
    image: Image.Image  # upright RGB
    captions: tuple[str, ...]


def eval_pictures(folder: Path, splits: list[str]) -> Iterator[EvalPicture]:
    """Pictures of datasets made by `vlm eval-sets`, or of plain folders: DATASET/../picture.jpg, its captions in picture.txt, one per line. Raises NothingLeft, BadManifest."""
    made = datasets_in(folder)
    for name in made:
        dataset = read_dataset(folder / name)
        rows = np.flatnonzero(np.isin(dataset.splits, splits))
        for row, image in zip(rows.tolist(), dataset.images(rows), strict=True):
            yield EvalPicture(name, dataset.keys[row], dataset.sha256[row], image, ())
    files = [] if made else sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES)
    if not made and not files:
        raise NothingLeft(f"Found neither a dataset.json nor a picture below {folder}, expected evaluation sets; give the folder that holds them.")
    for file in files:
        yield _plain(folder, file)


def _plain(folder: Path, file: Path) -> EvalPicture:
    content, texts = file.read_bytes(), file.with_suffix(".txt")
    captions = tuple(line.strip() for line in texts.read_text(encoding="utf-8").splitlines() if line.strip()) if texts.exists() else ()
    name = file.relative_to(folder)
    try:
        with Image.open(BytesIO(content)) as image:
            return EvalPicture(name.parts[0] if len(name.parts) > 1 else folder.name, name.as_posix(), hashlib.sha256(content).hexdigest(), image.convert("RGB"), captions)
    except (OSError, SyntaxError, ValueError) as error:
        raise BadManifest(f"Found {file} unreadable ({error}), expected a picture of an evaluation set; repair or remove it.") from None


def turns(rgb: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """The picture, turned by 0, 90, 180, 270 degrees, and the same of its mirror image."""
    return [np.ascontiguousarray(np.rot90(side, k)) for side in (rgb, rgb[:, ::-1]) for k in range(4)]


def hashes(image: Image.Image, smallest_crop: float = 0.78) -> dict[str, Any]:
    """PDQ and pHash of all turns, PDQ of altered versions, and the quality of the first."""
    found = [(pdq(turn), phash(turn)) for turn in turns(np.asarray(image))]
    versions = [pdq(np.ascontiguousarray(side)) for rgb in altered(image, smallest_crop) for side in (rgb, rgb[:, ::-1])]
    useful = [to_hex(bits) for bits, quality in versions if quality >= FLAT]
    return {"pdq": [to_hex(bits) for (bits, _), _ in found], "phash": [to_hex(bits) for _, bits in found], "altered": useful, "quality": found[0][0][1]}


FLAT = 50  # PDQ quality below which a hash says little: many crops of a picture are mostly ground
LARGEST_CROP, SHRINK, STEP = 0.97, 0.95, 0.03  # a hash bears a shift of half a step and half a shrinking (`Decontaminate.altered_bits`)


def altered(image: Image.Image, smallest_crop: float) -> Iterator[NDArray[np.uint8]]:
    """What hashes do not see through: crops on a grid of sizes and places, turns of a few degrees on white, and the negative."""
    rgb, share = np.asarray(image), LARGEST_CROP
    height, width = rgb.shape[:2]
    while share >= smallest_crop:
        places = np.arange(0, 1 - share + 1e-6, STEP * share)
        for top, left in ((top, left) for top in places for left in places):
            crop = rgb[int(top * height) : int((top + share) * height), int(left * width) : int((left + share) * width)]
            if crop.size:
                yield crop
        share *= SHRINK
    for degrees in (-6, -3, 3, 6):
        yield np.asarray(image.rotate(degrees, Image.Resampling.BICUBIC, fillcolor="white"))
    yield np.bitwise_not(rgb)


# ---- copies as the web makes them


def _jpeg(image: Image.Image, quality: int) -> Image.Image:
    with BytesIO() as stream:
        image.save(stream, "JPEG", quality=quality)
        return Image.open(BytesIO(stream.getvalue())).convert("RGB")


def _crop(image: Image.Image, share: float) -> Image.Image:
    """The middle, `share` of either side."""
    width, height = (max(8, round(side * share)) for side in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "jpeg 40": lambda image: _jpeg(image, 40),
    "half the size": lambda image: image.resize((max(8, image.width // 2), max(8, image.height // 2)), Image.Resampling.BICUBIC),
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "crop 90 %": lambda image: _crop(image, 0.9),
    "crop 75 %": lambda image: _crop(image, 0.75),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
    "crop 85 %, jpeg 60": lambda image: _jpeg(_crop(image, 0.85), 60),
}


def calibrate(cosine: NDArray[np.float64], hashed: NDArray[np.bool_], recall: float) -> float:
    """The largest cosine from which on, together with the hashes, at least `recall` of the copies are found; at most 1."""
    missed = np.sort(cosine[~hashed])[::-1]
    needed = int(np.ceil(recall * len(cosine) - 1e-9)) - int(hashed.sum())
    return 1.0 if needed <= 0 else float(missed[needed - 1])


# ---- the file


class Prints(NamedTuple):
    """A read prints.parquet."""

    table: pa.Table
    scorer: str
    min_cosine: float


def write_prints(path: Path, rows: list[dict[str, Any]], scorer: str, min_cosine: float) -> None:
    about = {"scorer": scorer, "min_cosine": min_cosine}
    pq.write_table(pa.Table.from_pylist(rows, PRINTS.with_metadata({"fingerprints": json.dumps(about, sort_keys=True)})), path, compression="zstd")


def read_prints(path: Path) -> Prints:
    """Raises MissingInput, SchemaMismatch."""
    if not path.is_file():
        raise MissingInput(f"Found no file {path}, expected the fingerprints of the evaluation sets; run 'vlm fingerprint' and give its prints.parquet.")
    try:
        table = pq.read_table(path)
        about = json.loads((table.schema.metadata or {})[b"fingerprints"])
        return Prints(table.select(PRINTS.names), str(about["scorer"]), float(about["min_cosine"]))
    except (pa.ArrowException, KeyError, ValueError) as error:
        raise SchemaMismatch(f"Found {path} without the columns of fingerprints ({str(error)[:100]}), expected the file of 'vlm fingerprint'; make it again.") from None
