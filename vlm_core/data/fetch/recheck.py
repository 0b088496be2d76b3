"""Addresses that gave a picture, asked again after a time: may it still be used, and is it still there? HEAD and the rules of the origin; no picture moves.

An opt-out, 404, 410 or 451 becomes the address's status, and its samples leave the next output and snapshot. Everything else, silence and 5xx among it, takes
nothing back: the address stays as it was and is asked again in the next run. Source: `methods/data.md` 14.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from urllib.parse import urljoin

from vlm_core.data.crawl.config import Download
from vlm_core.data.fetch.fetch import HOPS, REDIRECTS, Fetched, Fetcher
from vlm_core.data.fetch.ledger import Ledger
from vlm_core.data.fetch.outage import Outage, our_fault
from vlm_core.data.fetch.schedule import host_of, mixed
from vlm_core.data.web import rights
from vlm_core.data.web.address import FetchFailed, Target
from vlm_core.data.web.connection import Reply
from vlm_core.data.web.origins import Origins
from vlm_core.data.web.politeness import Sites, domain_of
from vlm_core.errors import ServiceError

GONE = {404, 410, 451}
Row = dict[str, Any]


class Seen(NamedTuple):
    """How an address was found: `ok`, a status that its record takes on, or, as `unheard`, what stood in the way of asking."""

    url: str
    outcome: Fetched
    unheard: str = ""


def due(state: Mapping[str, Row], urls: Iterable[str], after: timedelta) -> list[str]:
    """Those addresses with a picture that were last asked before that time, in an order that mixes sites."""
    before = datetime.now(UTC) - after
    return mixed(url for url in urls if (row := state[url])["status"] == "ok" and datetime.fromisoformat(row.get("checked_at") or row["fetched_at"]) <= before)


def ask(urls: Iterable[str], config: Download, ledger: Ledger, progress: Callable[[int, int], None]) -> int:
    """Look at these addresses and write down how they were found; returns how many are to be used no more. Raises ServiceError."""
    todo = list(urls)
    fetcher = Fetcher(config.network, config.fetch, None, None, Sites(slots=4 * len(todo) + 4096))
    origins, outage, lost = Origins(fetcher, ledger.origins), Outage(), 0
    for host, until in ledger.quiet().items():
        fetcher.politeness.keep_quiet(host, until - datetime.now(UTC).timestamp())
    pool = ThreadPoolExecutor(config.threads, thread_name_prefix="recheck")
    try:
        for done, seen in enumerate(pool.map(lambda url: look(url, fetcher, origins), todo), 1):
            outcome = seen.outcome
            if why := outage.sees(domain_of(host_of(seen.url)), seen.unheard or outcome.status, outcome.detail):
                raise ServiceError(our_fault(why))
            if not seen.unheard:
                ledger.note_recheck(seen.url, outcome.fetched_at, {} if outcome.status == "ok" else outcome.json())
                lost += outcome.status != "ok"
            progress(done, len(todo))
    finally:
        pool.shutdown(cancel_futures=True)
        fetcher.close()
    return lost


def look(url: str, fetcher: Fetcher, origins: Origins) -> Seen:
    """Ask about one address, redirects followed under the same rules."""
    found = Fetched(url, "ok", fetched_at=datetime.now(UTC).isoformat(timespec="milliseconds"))
    here = url
    try:
        for _ in range(HOPS + 1):
            target = fetcher.guard.check(here, fetcher.network.dns_timeout_s)
            decision, passing = origins.decide(target)
            if not decision.allowed:
                denied = dataclasses.replace(found, status="robots_denied", detail=decision.evidence, rights_rule=decision.rule, rights_evidence=decision.evidence)
                return Seen(url, denied, "http_5xx" if passing else "")
            status, moved, said = _head(target, fetcher)
            if not said.allowed:
                return Seen(url, dataclasses.replace(found, status="optout_header", detail=said.evidence, rights_rule=said.rule, rights_evidence=said.evidence))
            if status in GONE:
                return Seen(url, dataclasses.replace(found, status="http_4xx", detail=f"HTTP {status}", http_status=status))
            if not moved:
                return Seen(url, found, "" if status == 200 else "http_5xx")
            here = urljoin(target.url, moved)
    except FetchFailed as failed:
        return Seen(url, dataclasses.replace(found, detail=failed.detail), failed.status)
    except ValueError:
        return Seen(url, found, "ssrf_blocked")  # redirected to an address that is none
    return Seen(url, found, "redirect_loop")


def _head(target: Target, fetcher: Fetcher) -> tuple[int, str, rights.Rights]:
    """Status, where it moved to, and what the headers say. A refusal of HEAD is believed only if GET is answered in the same way."""
    for method in ("HEAD", "GET"):
        with fetcher.politeness.turn(target.host, fetcher.patience_s):
            try:
                with fetcher.connections.get(target, fetcher.headers, fetcher.limits(), method) as reply:
                    answer = _read(reply, target, fetcher)
            except FetchFailed as failed:
                fetcher.politeness.failed(target.host, failed)
                raise
        fetcher.politeness.settled(target.host)
        if answer[0] != 501 and (not 400 <= answer[0] < 500 or answer[0] == 429):
            break
    return answer


def _read(reply: Reply, target: Target, fetcher: Fetcher) -> tuple[int, str, rights.Rights]:
    fetcher.politeness.answered(target.host, reply.status, reply.headers.get("Retry-After"))
    said = rights.headers_decision(reply.all("X-Robots-Tag"), reply.all("TDM-Reservation"), fetcher.network.agent, fetcher.network.optouts)
    return reply.status, str(reply.headers.get("Location") or "") if reply.status in REDIRECTS else "", said
