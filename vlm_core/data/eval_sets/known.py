"""What a scorer knows: hashes of the pictures that it was trained on, kept with its weights, so that test sets stay clear of them wherever the model goes.

    MODEL/trained_on.parquet, EMBEDDINGS/trained_on.parquet    sha256, phash, pdq (bytes) and quality (of PDQ) of one training picture a row, sorted

No names, addresses or pixels: what a takedown removes from the products cannot be told from these rows, and the model that learnt it still has to be
kept apart from it. The shards that it was trained on may be replaced meanwhile; with a selection by its own scores they always are.
"""

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from vlm_core.data.eval_sets.groups import Look
from vlm_core.data.filter.perceptual import pdq, phash
from vlm_core.data.shards.samples import Samples
from vlm_core.errors import BadManifest

FILE = "trained_on.parquet"
KNOWN = pa.schema([("sha256", pa.binary(32)), ("phash", pa.binary(8)), ("pdq", pa.binary(32)), ("quality", pa.int32())])
Row = tuple[bytes, bytes, bytes, int]


def write_known(folder: Path, samples: Samples, parent: Path | None, progress: Callable[[str, int, int], None]) -> None:
    """Hashes of these samples' pictures and of those that the model it starts from knows."""
    rows = set[Row]() if parent is None else {_row(look) for look in read_known(parent)}
    for number in range(len(samples)):
        with Image.open(io.BytesIO(samples.jpeg(number))) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        bits, quality = pdq(pixels)
        rows.add((bytes.fromhex(samples.record(number)["sha256"]), np.packbits(phash(pixels)).tobytes(), np.packbits(bits).tobytes(), quality))
        progress("training pictures hashed", number + 1, len(samples))
    columns = [list(column) for column in zip(*sorted(rows), strict=True)]
    pq.write_table(pa.table(dict(zip(KNOWN.names, columns, strict=True)), KNOWN), folder / FILE, compression="zstd")


def read_known(folder: Path) -> list[Look]:
    """One entry per training picture; none where the folder has no such file. Raises BadManifest."""
    if not (folder / FILE).exists():
        return []
    try:
        rows = pq.read_table(folder / FILE, schema=KNOWN).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise BadManifest(f"Found {folder / FILE} unreadable ({str(error)[:100]}), expected the hashes of a scorer's training pictures; train it again.") from None
    hexed = ([row[name].hex() for name in ("sha256", "phash", "pdq")] + [row["quality"]] for row in rows)
    return [Look(f"~known/{number}", "", *codes) for number, codes in enumerate(hexed)]


def copy_known(source: Path, folder: Path) -> None:
    """Let what the scorer made say what it knows."""
    if (source / FILE).exists():
        shutil.copyfile(source / FILE, folder / FILE)


def _row(look: Look) -> Row:
    return bytes.fromhex(look.sha256), bytes.fromhex(look.phash), bytes.fromhex(look.pdq), look.quality
