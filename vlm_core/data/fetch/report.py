"""What people see of a download: statuses, sites, pictures; and its rows for the catalog, with the times that OUT does not hold."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa

from vlm_core.charts import bar_chart
from vlm_core.data.fetch.schedule import host_of, name_of
from vlm_core.data.pictures import contact_sheet
from vlm_core.data.sample import DOWNLOADS, STATUSES
from vlm_core.data.shards.tar import members, read_member
from vlm_core.data.web.politeness import domain_of
from vlm_core.stage import Report, Stage

SHEET, SITES = 64, 200
Row = dict[str, Any]


def make_report(rows: Sequence[Row], fetched: Mapping[str, Row], asked: int, stage: Stage) -> Report:
    """`asked`: addresses for which this run went to the network."""
    counts = Counter(row["status"] for row in rows)
    order = [status for status in STATUSES if counts[status]]
    bar_chart({status: counts[status] for status in order}, "pairs by status", stage.pictures / "statuses.png")
    contact_sheet(_sample(rows, stage.out), stage.pictures / "downloaded.png")
    return Report(
        counts={"in": len(rows), "ok": counts["ok"], **{f"failed.{status}": counts[status] for status in order if status != "ok"}},
        metrics={
            "ok_share": counts["ok"] / len(rows), "asked": float(asked), "https_to_http": float(sum(_left_https(record) for record in fetched.values())), "fetched_mb": sum(record.get("bytes") or 0 for record in fetched.values()) / 1e6,
        },
        tables={"addresses per site": by_site(fetched)},
        pictures={"downloaded": "downloaded.png", "statuses": "statuses.png"},
        catalog={"downloads": _catalog_rows(rows, fetched)},
    )  # fmt: skip


def _left_https(record: Row) -> bool:
    """Redirected from https to an address that anybody on the way can change."""
    return record["url"].startswith("https:") and (record.get("final_url") or "").startswith("http:")


def by_site(fetched: Mapping[str, Row]) -> list[Row]:
    """One row per registrable domain, the largest first: addresses, how they ended, MB, median ms."""
    sites: dict[str, list[Row]] = defaultdict(list)
    for url, record in fetched.items():
        sites[domain_of(host_of(url))].append(record)
    statuses = [status for status in STATUSES if any(record["status"] == status for record in fetched.values())]
    largest = sorted(sites.items(), key=lambda item: (-len(item[1]), item[0]))[:SITES]
    return [_site(name, records, statuses) for name, records in largest]


def _site(name: str, records: list[Row], statuses: list[str]) -> Row:
    found = Counter(record["status"] for record in records)
    times = [record["ms"] for record in records if record.get("ms")]
    return {
        "site": name, "addresses": len(records), **{status: found[status] for status in statuses},
        "MB": round(sum(record.get("bytes") or 0 for record in records) / 1e6, 3), "median ms": round(median(times)) if times else 0,
    }  # fmt: skip


def _catalog_rows(rows: Sequence[Row], fetched: Mapping[str, Row]) -> pa.Table:
    table = pa.Table.from_pylist(list(rows), schema=DOWNLOADS)
    records = [fetched[row["url"]] for row in rows]
    times = [record.get("fetched_at") for record in records]
    stamps = pa.array([datetime.fromisoformat(text) if text else None for text in times], pa.timestamp("us", tz="UTC"))
    table = table.append_column("fetched_at", stamps).append_column("site", pa.array([domain_of(host_of(row["url"])) for row in rows], pa.string()))
    for name in ("attempts", "runs", "ms"):
        table = table.append_column(name, pa.array([record.get(name) for record in records], pa.int32()))
    return table


def _sample(rows: Sequence[Row], out: Path) -> list[tuple[bytes, str]]:
    """Pictures for the contact sheet: the same ones every time, spread over hosts."""
    chosen = sorted((row for row in rows if row["status"] == "ok"), key=lambda row: name_of(row["url"]))[:SHEET]
    wanted = {f"{row['uid']}.jpg": row for row in chosen}
    found = []
    for shard in sorted({row["shard"] for row in chosen}):
        with (out / shard).open("rb") as stream:
            found += [(read_member(stream, member), host_of(wanted[member.name]["url"])) for member in members(out / shard) if member.name in wanted]
    return found
