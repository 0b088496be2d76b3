"""Where in the tars of a download the picture of each row lies, so that a few pictures cost a few reads.

The status table names the tar of every picture. The headers of a tar are read when one of its pictures is first asked for, and remembered: 12 bytes a row.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlm_core.data.shards.tar import Member, members, read_member
from vlm_core.errors import BadManifest

Rows = NDArray[np.int64]


class PicturePlaces:
    """Pictures by row: `uid_of` and `tar_of` say what rows are called and in which tar of the folder they lie, `rows_in` which rows lie in a tar."""

    def __init__(self, folder: Path, n: int, uid_of: Callable[[Rows], Any], tar_of: Callable[[Rows], Any], rows_in: Callable[[str], Rows]) -> None:
        self._folder, self._n, self._uid_of, self._tar_of, self._rows_in = folder, n, uid_of, tar_of, rows_in
        self._offset, self._size = np.zeros(0, np.int64), np.zeros(0, np.int32)
        self._known = set[str]()  # tars whose headers were read

    def read(self, rows: Rows) -> Iterator[tuple[int, bytes]]:
        """(row, stored JPEG) in the order of the tars. Raises BadManifest when one is not there."""
        tars = np.asarray(self._tar_of(rows), dtype=str)
        for name in np.unique(tars).tolist():
            path, own = self._folder / name, rows[tars == name]
            self._look_in(path)
            missing = own[self._offset[own] == 0]
            if len(missing):
                first = min(self._uid_of(missing).tolist())
                raise BadManifest(
                    f"Found no picture {first}.jpg in {path} ({len(missing):,} are missing), expected one for every row with status ok; download again."
                )
            with path.open("rb") as stream:
                for row in own[np.argsort(self._offset[own], kind="stable")].tolist():
                    yield row, read_member(stream, Member(path.name, int(self._offset[row]), int(self._size[row])))

    def _look_in(self, path: Path) -> None:
        """Read the headers of a tar, once."""
        if not len(self._offset):
            self._offset, self._size = np.zeros(self._n, np.int64), np.zeros(self._n, np.int32)
        if path.name in self._known or not path.is_file():
            return
        rows = self._rows_in(path.name)
        row_of = dict(zip(self._uid_of(rows).tolist(), rows.tolist(), strict=True))
        for member in members(path):
            row = row_of.get(member.name.removesuffix(".jpg"))
            if row is not None:
                self._offset[row], self._size[row] = member.offset, member.size
        self._known.add(path.name)
