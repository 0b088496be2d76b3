"""What towers said, kept beside the output for its next run: of a crawl that grew, only new pictures and texts are embedded.

    OUT.run/kept/NAME/keys.parquet    key: SHA-256 of a picture's bytes, of a text, or of both
    OUT.run/kept/NAME/<array>.npy     float32; row i belongs to key i
    OUT.run/kept/NAME/about.json      who made them: towers, code, libraries, device

It holds what the last run used and nothing else: so it is no larger than that run's pictures and texts, and what was taken down leaves it with the first run
whose inputs are without it (the scan of takedowns reads the keys). Outputs of other towers or other code are not taken over.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from vlm_core.stage import code_version, publish, recover, write_json

# N keys, M of them new

Arrays = dict[str, NDArray[np.float32]]
Make = Callable[[NDArray[np.int64]], Mapping[str, NDArray[np.float32]]]


class Kept:
    """The outputs that lie in a folder.

    Args:
        folder: `Stage.kept`.
        version: of the towers, and whatever else changes an output.
        module: whose source, with what it imports, counts among it.
    """

    def __init__(self, folder: Path, version: str, module: str) -> None:
        self.folder = folder
        self.maker = hashlib.sha256(" ".join([version, code_version(module), torch.__version__]).encode()).hexdigest()
        self.counts: dict[str, int] = {}

    def of(self, name: str, keys: Sequence[str], make: Make) -> Arrays:
        """Row i of every array belongs to key i. `make` is asked for the rows (M,) whose outputs are not there; keys are distinct."""
        folder = self.folder / name
        recover(folder)
        keys_N = pa.array(keys, pa.string())
        old_keys, old = self._read(folder)
        place_N = pc.fill_null(pc.index_in(keys_N, value_set=old_keys), -1).to_numpy(zero_copy_only=False)
        new_M = np.flatnonzero(place_N < 0)
        self.counts |= {f"{name}.new": len(new_M), f"{name}.reused": len(keys) - len(new_M)}
        made = make(new_M) if len(new_M) else {}
        found = {array: _merged(old.get(array), made.get(array), place_N, new_M) for array in made or old}
        if len(new_M) or len(keys) != len(old_keys):
            self._write(folder, keys_N, found)
        return found

    def _read(self, folder: Path) -> tuple[pa.Array, Arrays]:
        about = folder / "about.json"
        if not (about.exists() and json.loads(about.read_text())["maker"] == self.maker):
            return pa.array([], pa.string()), {}
        keys = pq.read_table(folder / "keys.parquet")["key"].combine_chunks()
        return keys, {file.stem: np.load(file, mmap_mode="r") for file in sorted(folder.glob("*.npy"))}

    def _write(self, folder: Path, keys_N: pa.Array, arrays: Arrays) -> None:
        tmp = folder.with_name(f"{folder.name}.tmp-{os.getpid()}")
        tmp.mkdir(parents=True)
        pq.write_table(pa.table({"key": keys_N}), tmp / "keys.parquet")
        for name, rows in arrays.items():
            np.save(tmp / f"{name}.npy", rows)
        write_json(tmp / "about.json", {"maker": self.maker})
        publish(tmp, folder)


def digest_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _merged(old: NDArray[np.float32] | None, made: NDArray[np.float32] | None, place_N: NDArray[np.int64], new_M: NDArray[np.int64]) -> NDArray[np.float32]:
    some = made if made is not None else old
    assert some is not None
    out = np.empty((len(place_N), *some.shape[1:]), np.float32)
    if made is not None:
        out[new_M] = made
    known = np.flatnonzero(place_N >= 0)
    if old is not None and len(known):
        out[known] = old[place_N[known]]
    return out
