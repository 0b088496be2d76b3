"""`vlm catalog-compact`: many small fragments of a catalog table become one, sorted, and every question has the same answer as before.

    <table>/compact-<id>.replaces.json     the names of the fragments that were merged: written first, without effect
    <table>/compact-<id>.parquet           renamed into place: from this moment on it counts and those named do not (`catalog.fragments`)

Nothing changes at any other moment, so a crash leaves the table before or after. Merged fragments stay on disk for `keep_s`, for those who read them just
then; the next run removes them. Fragments that come while this runs are left for the next run. Nothing is dropped: superseded rows are history.
"""

import json
import os
import time
import uuid
from pathlib import Path
from typing import Any

from vlm_core import stage as stages
from vlm_core.data.config import CatalogCompact
from vlm_core.data.lineage.catalog import REPLACES, ROW_GROUP, TABLES, connect, fragments, rows_of
from vlm_core.stage import Report, Stage


def catalog_compact(config: CatalogCompact, stage: Stage) -> Report:
    """The verb. One run at a time over a catalog. Raises OutputBusy."""
    root, table = stages.home() / "catalog", list[dict[str, Any]]()
    with stages.lease(root / ".compact"):
        for number, name in enumerate(TABLES, 1):
            folder = root / name
            before, removed = len(fragments(folder)), sweep(folder, config.keep_s)
            merged = merge(folder, config)
            if merged or removed:
                table.append({"table": name, "before": before, "after": len(fragments(folder)), "merged": merged, "removed": removed})
            stage.progress("tables", number, len(TABLES))
    stages.write_json(stage.out / "compacted.json", table)
    counts = {"fragments": sum(len(fragments(root / name)) for name in TABLES), **{what: sum(row[what] for row in table) for what in ("merged", "removed")}}
    return Report(counts=counts, tables={"tables": table})


def merge(folder: Path, config: CatalogCompact) -> int:
    """Make one fragment of the small ones; gives how many there were, or 0 if they were too few."""
    small = [path for path in fragments(folder) if path.stat().st_size < config.small_mb * 10**6]
    if len(small) < config.min_fragments:
        return 0
    name = f"compact-{uuid.uuid4().hex}"
    tmp, key = folder / f".{name}.tmp", "uid" if "uid" in TABLES[folder.name].names else TABLES[folder.name].names[0]
    with connect() as con:
        con.execute(f"SET temp_directory = '{str(folder / '.spill').replace(chr(39), chr(39) * 2)}'")
        target = str(tmp).replace("'", "''")
        con.execute(f"COPY ({rows_of(con, folder.name, small)} ORDER BY {key}, run_id) TO '{target}' (FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE {ROW_GROUP})")
    with tmp.open("rb") as stream:
        os.fsync(stream.fileno())
    # with those that were merged before and still lie there: the list that hid them may go before they do
    hidden = {path.name for path in folder.glob("*.parquet")} - {path.name for path in fragments(folder)}
    stages.write_json(folder / f"{name}{REPLACES}", sorted({path.name for path in small} | hidden))
    tmp.rename(folder / f"{name}.parquet")
    return len(small)


def sweep(folder: Path, keep_s: float) -> int:
    """Remove what a crash left, and merged fragments that have lain long enough; gives how many fragments went."""
    removed = 0
    for leftover in folder.glob(".compact-*.tmp"):
        leftover.unlink()
    for listing in sorted(folder.glob(f"*{REPLACES}")):
        merged = folder / f"{listing.name.removesuffix(REPLACES)}.parquet"
        if not merged.exists():  # a crash before it came to be, or it was merged again and is gone: the list hides nothing
            listing.unlink()
        elif time.time() - merged.stat().st_mtime >= keep_s:
            for name in json.loads(listing.read_bytes()):
                removed += (folder / name).exists()
                (folder / name).unlink(missing_ok=True)
    return removed
