"""What the origin of a page says about it (robots.txt, tdmrep.json, ai.txt), for pages that nobody of ours has visited: those of tables, WAT and archives.

A page that may not be read may not show us a picture either, wherever that lies. Pages of a crawled site were asked for under these rules. Source:
`methods/data.md` 14. What was decided is kept beside the ledger with its time, so that equal answers give equal runs.
"""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vlm_core.data.crawl.config import Download
from vlm_core.data.fetch.fetch import Fetcher
from vlm_core.data.fetch.ledger import Ledger
from vlm_core.data.fetch.outage import Outage, our_fault
from vlm_core.data.fetch.schedule import host_of
from vlm_core.data.web.address import FetchFailed
from vlm_core.data.web.origins import Origins
from vlm_core.data.web.politeness import Sites, domain_of
from vlm_core.data.web.rights import ALLOWED, Rights
from vlm_core.errors import ServiceError

DECISIONS = pa.schema([("page", pa.string()), ("rule", pa.string()), ("evidence", pa.string()), ("passing", pa.bool_()), ("checked_at", pa.string())])
NO_OBJECTION = {"ssrf_blocked", "scheme_blocked", "dns_nxdomain"}  # nobody is there who could have said something
_CRAWLED = re.compile(r"(?:[^/:]*/)?page:")  # BATCH/page:HOST, the source of pages that `vlm crawl` asked for
Row = dict[str, Any]


def unvisited(pairs: Iterable[Row], copies: Collection[str]) -> dict[str, set[str]]:
    """Picture address -> the web pages that show it and that nobody of ours asked for. Pictures of this machine (`copies`) open no connection."""
    found: dict[str, set[str]] = defaultdict(set)
    for pair in pairs:
        if pair["url"] in copies:
            continue
        places = pair["pages"] or [{"page_url": pair["page_url"], "source": pair["source"]}]
        for place in places:
            page = place["page_url"] or ""
            if page.lower().startswith(("http://", "https://")) and not _CRAWLED.match(place["source"] or ""):
                found[pair["url"]].add(page)
    return dict(found)


class PageRules:
    """The decisions about pages, on disk in `page_rules.parquet` of a ledger.

    Args:
        ledger: its origins are the memory of their files, its quiet hosts are left alone.
        recheck: a page that was decided about is asked about again after this time; None: never.
    """

    def __init__(self, ledger: Ledger, recheck: timedelta | None = None) -> None:
        self.ledger, self.recheck = ledger, recheck
        self.file = ledger.root / "page_rules.parquet"
        self.known: dict[str, Row] = {row["page"]: row for row in pq.read_table(self.file).to_pylist()} if self.file.exists() else {}

    def due(self, pages: Iterable[str]) -> list[str]:
        """Those never decided, refused for now, or decided too long ago."""
        return sorted(page for page in pages if (row := self.known.get(page)) is None or row["passing"] or self._is_old(row))

    def _is_old(self, row: Row) -> bool:
        return self.recheck is not None and datetime.fromisoformat(row["checked_at"]) + self.recheck <= datetime.now(UTC)

    def ask(self, pages: Collection[str], config: Download, progress: Callable[[int, int], None]) -> None:
        """Decide about these pages, an origin at a time, several origins at once; the network of `config` must be reachable.

        Raises ServiceError when our own network is at fault.
        """
        groups: dict[str, list[str]] = defaultdict(list)
        for page in pages:
            groups[_origin(page)].append(page)
        fetcher = Fetcher(config.network, config.fetch, None, None, Sites(slots=4 * len(groups) + 4096))
        origins = Origins(fetcher, self.ledger.origins)
        for host, until in self.ledger.quiet().items():
            fetcher.politeness.keep_quiet(host, until - datetime.now(UTC).timestamp())
        pool, outage = ThreadPoolExecutor(min(config.threads, len(groups)) or 1, thread_name_prefix="pages"), Outage()
        try:
            for done, (rows, failure) in enumerate(pool.map(lambda group: _decide(group, fetcher, origins), groups.values()), 1):
                if why := outage.sees(domain_of(host_of(rows[0]["page"])), *failure):
                    raise ServiceError(our_fault(why))
                self._learn(rows)
                progress(done, len(groups))
            self._pass_on_pauses(fetcher)
        finally:
            pool.shutdown(cancel_futures=True)
            fetcher.close()
            self._write()

    def _learn(self, rows: list[Row]) -> None:
        """A refusal for now takes nothing back that an origin has said."""
        self.known |= {row["page"]: row for row in rows if not row["passing"] or self.known.get(row["page"], row)["passing"]}

    def _pass_on_pauses(self, fetcher: Fetcher) -> None:
        now, quiet = datetime.now(UTC).timestamp(), self.ledger.quiet()
        for host in {host_of(page) for page, row in self.known.items() if row["passing"]}:
            if rest := fetcher.politeness.quiet_s(host):
                quiet[host] = max(quiet.get(host, 0.0), now + rest)
        self.ledger.keep_quiet(quiet)

    def _write(self) -> None:
        part: Path = self.file.with_suffix(".part")
        pq.write_table(pa.Table.from_pylist([self.known[page] for page in sorted(self.known)], schema=DECISIONS), part, compression="zstd")
        part.rename(self.file)

    def refused(self, pages_of: Mapping[str, Collection[str]]) -> dict[str, Row]:
        """Record of each picture address that one of its pages denies; a denial for good before one for now."""
        found: dict[str, Row] = {}
        for url, pages in pages_of.items():
            denials = sorted((row["passing"], row["page"]) for page in pages if (row := self.known.get(page)) is not None and row["rule"])
            if denials:
                row = self.known[denials[0][1]]
                found[url] = {
                    "url": url, "status": "robots_denied", "detail": "its page may not be read", "rights_rule": f"page {row['rule']}",
                    "rights_evidence": row["evidence"], "passing": row["passing"], "fetched_at": row["checked_at"],
                }  # fmt: skip
        return found

    def forget(self, is_taken_down: Callable[[str], bool]) -> None:
        """Forget pages that a takedown covers."""
        kept = {page: row for page, row in self.known.items() if not is_taken_down(json.dumps(row))}
        if len(kept) < len(self.known):
            self.known = kept
            self._write()


def _origin(page: str) -> str:
    return "/".join(page.split("/", 3)[:3]).lower()


def _decide(pages: list[str], fetcher: Fetcher, origins: Origins) -> tuple[list[Row], tuple[str, str]]:
    """Decisions about pages of one origin; status and detail of what failed last, for an eye on our own network."""
    rows, failure = [], ("ok", "")
    for page in pages:
        try:
            rows.append(_row(page, *origins.decide(fetcher.guard.check(page, fetcher.network.dns_timeout_s))))
        except FetchFailed as failed:
            rows.append(_row(page, *_unheard(page, failed)))
            failure = failed.status, failed.detail
    return rows, failure


def _unheard(page: str, failed: FetchFailed) -> tuple[Rights, bool]:
    """(the decision, whether it is one for now). Silence refuses for now (RFC 9309 2.3.1.4); a host that does not exist objects to nothing."""
    if failed.status in NO_OBJECTION:
        return ALLOWED._replace(evidence=f"{failed.status}: {failed.detail}"), False
    return Rights(False, "robots.txt", f"{_origin(page)}/robots.txt: {failed.detail}, which counts as a refusal for now"), True


def _row(page: str, decision: Rights, passing: bool) -> Row:
    at = datetime.now(UTC).isoformat(timespec="milliseconds")
    return {"page": page, "rule": decision.rule, "evidence": decision.evidence, "passing": passing, "checked_at": at}
