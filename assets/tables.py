"""Counting over tables that need not fit in memory: DuckDB over the Parquet files, within half a gigabyte, the rest on disk."""

import tempfile
from pathlib import Path
from typing import Any


def count(query: str, **files: Path) -> dict[str, Any]:
    """The one row of a query over Parquet files, each a view under its name."""
    (row,) = rows(query, **files)
    return row


def rows(query: str, **files: Path) -> list[dict[str, Any]]:
    import duckdb  # late: the code location loads without it

    with tempfile.TemporaryDirectory() as spill, duckdb.connect() as con:
        con.execute(f"SET memory_limit = '512MB'; SET threads = 2; SET preserve_insertion_order = false; SET temp_directory = '{spill}'")
        for name, file in files.items():
            con.from_parquet(str(file)).create_view(name)
        found = con.sql(query)
        return [dict(zip(found.columns, values, strict=True)) for values in found.fetchall()]
