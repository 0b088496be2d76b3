"""Tables as a stream of rows, in memory that does not grow with the file. What cannot be read is counted by reason, never fatal and never silent:

`wrong_number_of_fields`, `unreadable_row`, `not_an_object` (one each, for csv one per line that is lost), `damaged_file` (its rest was not read).
"""

import bz2
import csv
import gzip
import io
import itertools
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

Row = dict[str, Any]  # our field -> its value
Choose = Callable[[list[str]], dict[str, str]]  # the names of a table's columns -> our field: column
FORMATS = ("parquet", "csv", "tsv", "jsonl", "ndjson", "json", "wat")
PACKED = (".gz", ".bz2", ".zst")
DAMAGED = "damaged_file"
LINE_BYTES, CHUNK, FIRST = 16 * 2**20, 2**16, 100
_DAMAGE = (EOFError, OSError, zlib.error, pa.ArrowException)
_START = re.compile(r'\s*\[|.*?"annotations"\s*:\s*\[', re.S)
_BETWEEN = re.compile(r"[\s,]*")


def format_of(name: str) -> str | None:
    """The format that a file's name tells, whatever it is packed with."""
    plain = name.lower()
    plain = next((plain.removesuffix(end) for end in PACKED if plain.endswith(end)), plain)
    return next((form for form in FORMATS if plain.endswith(f".{form}")), None)


def read(file: Path, header: bool, choose: Choose, trouble: Counter[str]) -> Iterator[tuple[int, Row]]:
    """(number of the row or line, its values) of every row that can be read. What `choose` raises goes up."""
    form = format_of(file.name)
    try:
        if form == "parquet":
            yield from _parquet(file, choose)
            return
        with _open(file) as stream:
            if form in {"csv", "tsv"}:
                yield from _delimited(stream, "," if form == "csv" else "\t", header, choose, trouble)
            else:
                yield from _chosen(_lines(stream, trouble) if form in {"jsonl", "ndjson"} else _elements(stream, trouble), choose, trouble)
    except _DAMAGE:
        trouble[DAMAGED] += 1


def _open(file: Path) -> BinaryIO:
    match file.suffix.lower():
        case ".gz":
            return cast(BinaryIO, gzip.open(file))
        case ".bz2":
            return cast(BinaryIO, bz2.open(file))
        case ".zst":
            return io.BufferedReader(cast(io.RawIOBase, pa.input_stream(str(file), compression="zstd")))
        case _:
            return file.open("rb")


def _parquet(file: Path, choose: Choose) -> Iterator[tuple[int, Row]]:
    with pq.ParquetFile(file) as table:
        columns = choose(table.schema_arrow.names)
        number = 0
        for batch in table.iter_batches(8_192, columns=sorted(set(columns.values()))):
            for values in batch.to_pylist():
                yield number, {field: values[name] for field, name in columns.items()}
                number += 1


def _delimited(stream: BinaryIO, separator: str, header: bool, choose: Choose, trouble: Counter[str]) -> Iterator[tuple[int, Row]]:
    text = io.TextIOWrapper(stream, "utf-8-sig", errors="replace", newline="")
    # the headless tsv of CC3M and CC12M is not quoted, and its captions hold single quotation marks
    lines = csv.reader(text, delimiter=separator, quoting=csv.QUOTE_MINIMAL if header or separator == "," else csv.QUOTE_NONE)
    names, columns, before = list[str](), dict[str, int](), 0
    while True:
        before = lines.line_num
        try:
            values = next(lines)
        except StopIteration:
            return
        except csv.Error:  # an open quotation mark, usually: the field has grown beyond all measure
            trouble["unreadable_row"] += lines.line_num - before
            continue
        if not names:
            names = values if header else [str(number) for number in range(len(values))]
            columns = {field: names.index(name) for field, name in choose(names).items()} if names else {}
            if header:
                continue
        if len(values) == len(names):
            yield before, {field: values[place] for field, place in columns.items()}
        elif values:
            trouble["wrong_number_of_fields"] += lines.line_num - before


def _lines(stream: BinaryIO, trouble: Counter[str]) -> Iterator[tuple[int, Any]]:
    """The values of JSON lines."""
    for number in itertools.count():
        line = stream.readline(LINE_BYTES)
        if not line:
            return
        if not line.strip():
            continue
        try:
            yield number, orjson.loads(line)
        except ValueError:
            trouble["unreadable_row"] += 1


def _elements(stream: BinaryIO, trouble: Counter[str]) -> Iterator[tuple[int, Any]]:
    """The elements of a JSON list, or of the list `annotations` of an object, one after the other."""
    text = io.TextIOWrapper(stream, "utf-8-sig", errors="replace")
    decoder, buffer = json.JSONDecoder(), text.read(2**20)
    start = _START.match(buffer)
    if start is None:
        trouble[DAMAGED] += 1
        return
    at = start.end()
    for number in itertools.count():
        while True:
            between = _BETWEEN.match(buffer, at)
            at = between.end() if between else at
            if buffer[at : at + 1] == "]":
                return
            try:
                value, at = decoder.raw_decode(buffer, at)
                break
            except ValueError:
                more = text.read(max(CHUNK, len(buffer) - at))
                if not more or len(buffer) - at > LINE_BYTES:
                    trouble[DAMAGED] += 1
                    return
                buffer, at = buffer[at:] + more, 0
        yield number, value


def _chosen(values: Iterator[tuple[int, Any]], choose: Choose, trouble: Counter[str]) -> Iterator[tuple[int, Row]]:
    """Objects as rows. The columns are those of the first objects: not every one has every key."""
    first = list(itertools.islice(values, FIRST))
    names = list(dict.fromkeys(name for _, value in first if isinstance(value, dict) for name in value))
    columns = choose(names) if names else {}
    for number, value in itertools.chain(first, values):
        if isinstance(value, dict) and columns:
            yield number, {field: value.get(name) for field, name in columns.items()}
        else:
            trouble["not_an_object"] += 1
