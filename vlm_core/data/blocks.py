"""Tables that need not fit in memory: written once in blocks of equal size, read a column and a block at a time; and tables met in the order of their uids.

with Blocks(schema, path) as blocks: blocks.add(table)           any number of rows at a time; without a path it stays in memory
Stored(blocks, "caption")[rows]                                  numpy, from the blocks in which the rows lie
for table in ByUid(files, columns, "downloads"): ...             rows by uid, a block at a time
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vlm_core.errors import MissingInput, SchemaMismatch

BLOCK = 65_536  # rows
FEW = 8  # fewer rows of a block than this share of it are read one by one


class Blocks:
    """An Arrow file of blocks of `BLOCK` rows; only the last one may be shorter."""

    def __init__(self, schema: pa.Schema, path: Path | None = None) -> None:
        self.schema, self.rows, self._path = schema, 0, path
        self._sink = pa.BufferOutputStream() if path is None else pa.OSFile(str(path), "wb")
        self._writer = pa.ipc.new_file(self._sink, schema, options=pa.ipc.IpcWriteOptions(compression=None if path is None else "lz4"))
        self._pending: list[pa.Table] = []
        self._readers: dict[str, Any] = {}

    def add(self, table: pa.Table) -> None:
        self._pending.append(table)
        self.rows += len(table)
        if sum(map(len, self._pending)) >= BLOCK:
            whole = pa.concat_tables(self._pending)
            full = len(whole) // BLOCK * BLOCK
            self._write(whole.slice(0, full))
            self._pending = [whole.slice(full)]

    def _write(self, table: pa.Table) -> None:
        for start in range(0, len(table), BLOCK):
            for batch in table.slice(start, BLOCK).combine_chunks().to_batches():
                self._writer.write_batch(batch)

    def close(self) -> None:
        if self._pending:
            self._write(pa.concat_tables(self._pending))
            self._pending = []
        self._writer.close()
        self._source = self._sink.getvalue() if self._path is None else None
        self._sink.close()

    def read(self, block: int, *names: str) -> pa.RecordBatch:
        """These columns (all, without names) of a block."""
        in_memory = self._source is not None  # whole blocks cost nothing there; a selection of columns would be copied
        key = "" if in_memory else " ".join(names)
        if key not in self._readers:
            fields = [self.schema.get_field_index(name) for name in names] if key else None
            source = self._source if in_memory else pa.OSFile(str(self._path), "rb")
            self._readers[key] = pa.ipc.open_file(source, options=pa.ipc.IpcReadOptions(included_fields=fields))
        batch = self._readers[key].get_batch(block)
        return batch.select(list(names)) if in_memory and names else batch

    def tables(self) -> Iterator[pa.Table]:
        for block in range(-(-self.rows // BLOCK)):
            yield pa.Table.from_batches([self.read(block)])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


Derive = Callable[..., Sequence[Any]]


class Stored:
    """A column of blocks: `column[rows]` is a numpy array (objects for text), `column[row]` one value. With `derive`, a function of several columns."""

    def __init__(self, blocks: Blocks, *names: str, derive: Derive | None = None) -> None:
        self._blocks, self._names, self._derive = blocks, names, derive
        self._held: tuple[int, NDArray[Any]] = (-1, np.zeros(0))  # the last block that was read

    def __len__(self) -> int:
        return self._blocks.rows

    def __getitem__(self, rows: Any) -> Any:
        if isinstance(rows, int | np.integer):
            return self._block(int(rows) // BLOCK)[int(rows) % BLOCK]
        rows = np.asarray(rows)
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows.astype(np.int64, copy=False)
        if not len(rows):
            return self._block(0)[:0] if len(self) else np.zeros(0, object)
        number = rows // BLOCK
        if number[0] == number[-1] and (number == number[0]).all():
            return self._values(int(number[0]), rows % BLOCK)
        order = np.argsort(number, kind="stable")
        parts = np.split(order, np.flatnonzero(np.diff(number[order])) + 1)
        found = [self._values(int(number[part[0]]), rows[part] % BLOCK) for part in parts]
        out = np.empty(len(rows), found[0].dtype)
        out[order] = np.concatenate(found)
        return out

    def __array__(self, dtype: Any = None) -> NDArray[Any]:
        return np.asarray(self[np.arange(len(self))], dtype)

    def tolist(self) -> list[Any]:
        found: list[Any] = self.__array__().tolist()
        return found

    def arrow(self, rows: NDArray[Any]) -> pa.Array:
        """The same as Arrow; not for a derived column."""
        parts = [self._part(part) for part in pieces(rows)]
        return parts[0] if len(parts) == 1 else pa.concat_arrays(parts or [pa.array([], self._blocks.schema.field(self._names[0]).type)])

    def _part(self, rows: NDArray[Any]) -> pa.Array:
        block = int(rows[0]) // BLOCK
        column = self._blocks.read(block, *self._names).column(0)
        return column if len(rows) == len(column) else column.take(pa.array(rows - block * BLOCK))

    def _values(self, number: int, places: NDArray[Any]) -> Any:
        """Of a block; a few texts are not worth making objects of all of them."""
        if self._derive is None and self._held[0] != number and len(places) < BLOCK // FEW:
            return self._blocks.read(number, *self._names).column(0).take(pa.array(places)).to_numpy(zero_copy_only=False)
        return self._block(number)[places]

    def _block(self, number: int) -> NDArray[Any]:
        if self._held[0] != number:
            columns = self._blocks.read(number, *self._names).columns
            if self._derive is None:
                values = columns[0].to_numpy(zero_copy_only=False)
            else:
                values = np.empty(len(columns[0]), dtype=object)
                values[:] = self._derive(*columns)
            self._held = number, values
        return self._held[1]


def pieces(rows: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Ascending rows, cut where a block ends."""
    yield from (part for part in np.split(rows, np.flatnonzero(np.diff(rows // BLOCK)) + 1) if len(part))


class ByUid:
    """Some columns of Parquet files in the order of their uids, and `row`, where each was. Files in that order are streamed, others sorted in memory."""

    def __init__(self, files: Sequence[Path], columns: Sequence[str], what: str, optional: Sequence[str] = ()) -> None:
        """Optional columns are null where no file has them. Raises MissingInput, SchemaMismatch: no such file or column, a uid twice."""
        self._files, self._columns, self._lacking = files, list(columns), list(optional)
        for file in files:
            if not file.exists():
                raise MissingInput(f"Found no file {file}, expected the table of {what}; run the stage that makes it first.")
            names = pq.read_schema(file).names
            if missing := [name for name in columns if name not in names]:
                raise SchemaMismatch(f"Found no column {missing[0]!r} in {file} ({', '.join(names)}), expected {', '.join(columns)}; make the table again.")
            self._lacking = [name for name in self._lacking if name not in names]
        self._columns += [name for name in optional if name not in self._lacking]
        self._table = None if self._rises() else self._sorted(what)
        self._stream, self._rest = iter(self), pa.table({})

    def __iter__(self) -> Iterator[pa.Table]:
        if self._table is not None:
            yield from (self._table.slice(start, BLOCK) for start in range(0, len(self._table), BLOCK))
            return
        row = 0
        for file in self._files:
            for batch in pq.ParquetFile(file).iter_batches(BLOCK, columns=self._columns):
                if len(batch):
                    yield pa.Table.from_batches([batch]).append_column("row", pa.array(np.arange(row, row + len(batch))))
                    row += len(batch)

    def match(self, uids: pa.Array) -> pa.Table:
        """The rows of these uids, which rise from call to call; nulls for a uid that is not there."""
        found = self._match(uids)
        for name in self._lacking:
            found = found.append_column(name, pa.nulls(len(uids)))
        return found

    def _match(self, uids: pa.Array) -> pa.Table:
        last = uids[-1]
        while not len(self._rest) or self._rest["uid"][-1].as_py() < last.as_py():
            more = next(self._stream, None)
            if more is None:
                break
            self._rest = pa.concat_tables([self._rest, more]).combine_chunks() if len(self._rest) else more.combine_chunks()
        if not len(self._rest):
            empty = {name: pa.nulls(len(uids)) for name in (*self._columns, "row")}
            return pa.table(empty)
        window = self._rest
        passed = int(pc.sum(pc.less_equal(window["uid"], last)).as_py())
        self._rest = window.slice(passed)
        if passed == len(uids) and window["uid"].slice(0, passed).combine_chunks().equals(uids):
            return window.slice(0, passed)
        return window.take(pc.index_in(uids, value_set=window["uid"].slice(0, passed).combine_chunks()))

    def _rises(self) -> bool:
        last = ""
        for file in self._files:
            for batch in pq.ParquetFile(file).iter_batches(BLOCK, columns=["uid"]):
                uids = batch.column(0)
                if len(uids) and not (last < uids[0].as_py() and pc.all(pc.less(uids[:-1], uids[1:]), min_count=0).as_py()):
                    return False
                last = uids[-1].as_py() if len(uids) else last
        return True

    def _sorted(self, what: str) -> pa.Table:
        table = pa.concat_tables([pq.read_table(file, columns=self._columns) for file in self._files])
        table = table.append_column("row", pa.array(np.arange(len(table)))).sort_by("uid").combine_chunks()
        uids = table["uid"].combine_chunks()
        twice = pc.sum(pc.equal(uids[:-1], uids[1:])).as_py() or 0
        if twice:
            named = ", ".join(str(file) for file in self._files[:1])
            raise SchemaMismatch(f"Found {twice:,} uids twice in {named} ({what}), expected every uid once; make the table again.")
        return table
