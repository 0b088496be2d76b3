"""The rule `uid_list`: samples that somebody listed, as DataComp publishes subsets. A list costs 16 bytes a uid, whatever form it comes in.

uids.npy of `vlm export-data --recipe datacomp` is such a list: another snapshot's samples, chosen again or kept out.
"""

import functools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vlm_core.data.filter.config import UidList
from vlm_core.data.filter.decisions import Verdict, first_reason
from vlm_core.data.filter.pool import Column, Pool
from vlm_core.errors import BadManifest, MissingInput
from vlm_core.stage import file_sha256

PAIR = np.dtype("u8,u8")  # high and low half of 128 bits
UID = re.compile(r"[0-9a-f]{32}")
Halves = NDArray[Any]


def uid_list(section: UidList, pool: Pool, rows: Column) -> Verdict:
    """Whether a sample's uid is listed; the version is the digest of the lists."""
    uids, lists = halves(pool.uid[rows].tolist()), {name: _read_once(file, *_stamp(Path(file))) for name, file in section if file}
    listed = {name: _holds(known, uids) for name, (known, _) in lists.items()}
    none = np.zeros(len(rows), bool)
    reason = first_reason(len(rows), ("listed", listed.get("drop", none)), ("not_listed", ~listed["keep"] if "keep" in listed else none))
    return Verdict(reason, version=" ".join(digest[:12] for _, digest in lists.values()))


def _stamp(file: Path) -> tuple[int, int]:
    return (file.stat().st_mtime_ns, file.stat().st_size) if file.is_file() else (0, 0)


@functools.lru_cache(maxsize=2)
def _read_once(file: str, *stamp: int) -> tuple[Halves, str]:
    """The uids of a list and its digest, for all blocks of rows; read again when the file has changed."""
    return read_uids(Path(file)), file_sha256(Path(file))


def read_uids(file: Path) -> Halves:
    """Sorted halves of the uids in a file. Raises MissingInput, BadManifest."""
    if not file.is_file():
        raise MissingInput(f"Found no file {file}, expected a list of uids (.npy, .parquet or one a line); give its path.")
    try:
        if file.suffix == ".npy":
            found = np.load(file, allow_pickle=False)
            if found.dtype == np.uint64 and found.ndim == 2 and found.shape[1] == 2:
                found = np.ascontiguousarray(found).view(PAIR)[:, 0]
            if found.dtype != PAIR or found.ndim != 1:
                raise ValueError(f"it holds {found.dtype} of shape {found.shape}")
        elif file.suffix == ".parquet":
            found = halves(pq.read_table(file, columns=["uid"])["uid"].to_pylist())
        else:
            found = halves([line.strip().lower() for line in file.read_text().splitlines() if line.strip()])
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise BadManifest(
            f"Found {file}, which is no list of uids ({str(error)[:100]}), expected pairs of uint64 (.npy), a column uid of 32 hex digits (.parquet), or one a line."
        ) from None
    return np.sort(found, order=["f0", "f1"])


def halves(uids: list[str]) -> Halves:
    """(high, low) 64 bits of each uid."""
    if wrong := next((uid for uid in uids if not UID.fullmatch(uid)), ""):
        raise ValueError(f"{wrong[:40]!r} is not 32 hex digits")
    words = np.frombuffer(bytes.fromhex("".join(uids)), ">u8").reshape(-1, 2)
    return np.ascontiguousarray(words.astype("u8")).view(PAIR)[:, 0]


def _holds(known: Halves, uids: Halves) -> NDArray[np.bool_]:
    """Per uid whether it is known: looked up by its high half, then compared whole."""
    high, low = np.ascontiguousarray(known["f0"]), np.ascontiguousarray(known["f1"])
    first, behind = (np.searchsorted(high, uids["f0"], side) for side in ("left", "right"))
    found = np.zeros(len(uids), bool)
    for step in range(int((behind - first).max(initial=0))):
        at = first + step
        inside = at < behind
        found[inside] |= low[at[inside]] == uids["f1"][inside]
    return found
