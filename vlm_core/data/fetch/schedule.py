"""In which order addresses are asked, and when one that failed is asked again."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

from vlm_core.data.web.politeness import domain_of


def name_of(url: str) -> str:
    return hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def host_of(url: str) -> str:
    try:
        return (urlsplit(url).hostname or "").rstrip(".").lower()
    except ValueError:
        return ""


def mixed(urls: Iterable[str]) -> list[str]:
    """Every site spread evenly over the whole list, each starting at a place of its own; the same order every time."""
    sites: dict[str, list[str]] = defaultdict(list)
    for url in urls:
        sites[domain_of(host_of(url))].append(url)
    places = []
    for site, members in sites.items():
        start = int(name_of(site)[:8], 16) / 2**32
        places += [((rank + start) / len(members), name_of(url), url) for rank, url in enumerate(sorted(members, key=name_of))]
    return [url for _, _, url in sorted(places)]


def passing(record: Mapping[str, Any], retry: Mapping[str, float]) -> bool:
    """A failure that may pass."""
    return record["status"] in retry or bool(record.get("passing"))


def pauses(records: Iterable[Mapping[str, Any]], now: datetime) -> dict[str, float]:
    """Host -> what is left of the pause that it asked for, in seconds; of hosts that asked for none nothing."""
    left: dict[str, float] = {}
    for record in records:
        if pause := float(record.get("pause_s") or 0.0):
            rest = (datetime.fromisoformat(record["fetched_at"]) - now).total_seconds() + pause
            host = host_of(record.get("final_url") or record["url"])
            if rest > left.get(host, 0.0):
                left[host] = rest
    return left


def due_at(record: Mapping[str, Any], retry: Mapping[str, float], give_up_after: int) -> datetime | None:
    """When a later run asks for this address again; None: never.

    After its first failed run at once, then after the hours of its error class, doubled with each further run; never before the pause that its
    host asked for.
    """
    runs = int(record.get("runs", 0))
    if not passing(record, retry) or runs >= give_up_after:
        return None
    hours = retry.get(record["status"], retry.get("http_5xx", 1.0)) * (2.0 ** max(0, runs - 1) - 1.0)
    wait = max(timedelta(hours=hours), timedelta(seconds=float(record.get("pause_s") or 0.0)))
    return datetime.fromisoformat(record["fetched_at"]) + wait
