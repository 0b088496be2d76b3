"""Scrapy in a process of its own: `python -m vlm_core.data.spider JOB.json`. Breadth first, one level after the other, each in sorted order,
so that a page budget always keeps the same pages.

Scrapy brings politeness (delay, AutoThrottle), retries, redirects, size and time limits. Ours: the address guard and the rights, the same as for pictures.
Every answer is kept in the job's SQLite file, and Scrapy's HTTP cache reads it: a crawl that was killed replays what it knows without asking anyone again.
(Scrapy's own JOBDIR writes its queue only when it closes; after kill -9 the frontier is gone but the list of seen pages is not, and the crawl ends early.)
"""

import importlib
import json
import re
import sqlite3
import sys
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from scrapy import Request, Spider, signals
from scrapy.crawler import Crawler, CrawlerProcess
from scrapy.exceptions import (
    CannotResolveHostError,
    DontCloseSpider,
    DownloadCancelledError,
    DownloadConnectionRefusedError,
    DownloadTimeoutError,
    IgnoreRequest,
)
from scrapy.http import Headers, Response
from scrapy.resolver import CachingThreadedResolver
from scrapy.responsetypes import responsetypes
from scrapy.utils.defer import maybe_deferred_to_future
from scrapy.utils.sitemap import Sitemap, sitemap_urls_from_robots
from twisted.internet.defer import Deferred
from twisted.internet.error import DNSLookupError
from twisted.python.failure import Failure

from vlm_core.data import html, rights
from vlm_core.data.address import FetchFailed, Target, is_public, literal
from vlm_core.data.crawl_config import Crawl
from vlm_core.data.fetch import make_guard, user_agent
from vlm_core.data.politeness import retry_after_s
from vlm_core.data.rights import ALLOWED, Rights
from vlm_core.data.sample import Status, canonical_url
from vlm_core.stage import die_with_parent

TABLES = """
CREATE TABLE IF NOT EXISTS answers (url TEXT PRIMARY KEY, status INT, headers TEXT, body BLOB);
CREATE TABLE IF NOT EXISTS pages (url TEXT PRIMARY KEY, final_url TEXT, status TEXT, http_status INT, content_type TEXT, lang TEXT, x_robots TEXT, detail TEXT, html BLOB);
"""
FIELDS = ("url", "final_url", "status", "http_status", "content_type", "lang", "x_robots", "detail", "html")
_blocked_names: set[str] = set()


def open_store(path: str | Path) -> sqlite3.Connection:
    """The job's memory. Every statement is a transaction; whole after kill -9."""
    store = sqlite3.connect(path, isolation_level=None, timeout=30)
    store.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;" + TABLES)
    return store


class Refused(IgnoreRequest):
    """A request that must not be made."""

    def __init__(self, status: Status, detail: str) -> None:
        super().__init__(detail)
        self.status, self.detail = status, detail


class Answers:
    """Scrapy's HTTP cache in the job's store."""

    def __init__(self, settings: Any) -> None:
        self.path = settings["VLM_STORE"]

    def open_spider(self, spider: Spider) -> None:
        self.store = open_store(self.path)

    def close_spider(self, spider: Spider) -> None:
        self.store.close()

    def retrieve_response(self, spider: Spider, request: Request) -> Response | None:
        row = self.store.execute("SELECT status, headers, body FROM answers WHERE url = ?", (request.url,)).fetchone()
        if row is None:
            return None
        headers, body = Headers(json.loads(row[1])), zlib.decompress(row[2])
        return responsetypes.from_args(headers=headers, url=request.url, body=body)(request.url, status=row[0], headers=headers, body=body)

    def store_response(self, spider: Spider, request: Request, response: Response) -> None:
        headers = {name.decode("latin-1"): [value.decode("latin-1") for value in values] for name, values in response.headers.items()}
        values = (request.url, response.status, json.dumps(headers), zlib.compress(response.body, 1))
        self.store.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?)", values)


class Visits:
    """Downloader middleware: the address guard and robots.txt, before every request and every hop of a redirect."""

    def __init__(self, crawler: Crawler) -> None:
        self.crawler, self.config = crawler, Crawl.read(crawler.settings.getdict("VLM_CONFIG"))
        self.guard = make_guard(self.config.network)
        self.robots: dict[str, Any] = {}

    @classmethod
    def from_crawler(cls, crawler: Crawler) -> Self:
        visits = cls(crawler)
        crawler.signals.connect(visits.downloaded, signal=signals.response_downloaded)
        return visits

    def downloaded(self, response: Response, request: Request) -> None:
        """A host that asks for a pause gets it before its next request (Scrapy draws pauses from half of the delay on, hence twice)."""
        if response.status in {429, 503}:
            asked = retry_after_s((response.headers.get("Retry-After") or b"").decode("latin-1"))
            self._slow_down(urlsplit(request.url).hostname or "", 2 * (1.0 if asked is None else asked))

    async def process_request(self, request: Request) -> None:
        try:
            target = self.guard.parse(request.url)
        except FetchFailed as failed:
            raise Refused(failed.status, failed.detail) from None
        if target.pinned and target.scheme == "https":
            raise Refused("scheme_blocked", "an allowed private host is reached over http only")
        request.meta.pop("proxy", None)
        if target.pinned:
            request.meta["proxy"] = f"http://{target.address}:{target.port}"
        if not request.meta.get("robots"):
            decision = await self._decide(target)
            if not decision.allowed:
                raise Refused("robots_denied", decision.evidence)

    async def _decide(self, target: Target) -> Rights:
        rules = self.robots.get(target.origin)
        if rules is None:
            rules = self.robots[target.origin] = Deferred()
            self.robots[target.origin] = await self._ask(target)
            rules.callback(self.robots[target.origin])
        found = await maybe_deferred_to_future(rules) if isinstance(self.robots[target.origin], Deferred) else self.robots[target.origin]
        if isinstance(found, str):
            return Rights(False, "robots.txt", f"{target.origin}/robots.txt: {found}, which counts as a refusal for now") if found else ALLOWED
        self._slow_down(target.host, found.crawl_delay(self.config.network.agent))
        return rights.robots_decision(found, target.url, self.config.network.agent)

    async def _ask(self, target: Target) -> Any:
        """The rules of an origin; a text when it does not give any ('' = there are none)."""
        request = Request(f"{target.origin}/robots.txt", meta={"robots": True, "download_timeout": 20}, priority=1000)
        try:
            response = await self.crawler.engine.download_async(request)
        except (IgnoreRequest, CannotResolveHostError, DownloadConnectionRefusedError):
            return ""  # the page itself will say what is wrong
        except Exception as error:  # noqa: BLE001  whatever it was, silence is a refusal
            return type(error).__name__
        if response.status >= 500 or response.status == 429:
            return f"HTTP {response.status}"
        if response.status != 200:
            return ""
        if self.config.sitemaps:
            spider: Any = self.crawler.spider
            spider.sitemaps.update(sitemap_urls_from_robots(response.body, base_url=response.url))
        return rights.read_robots(response.body.decode("utf-8", "replace"))

    def _slow_down(self, host: str, delay: float | None) -> None:
        slot = self.crawler.engine.downloader.slots.get(host) if delay and self.crawler.engine else None
        if slot is not None and delay:
            slot.delay = max(slot.delay, min(float(delay), self.config.network.max_quiet_s))


class GuardedResolver(CachingThreadedResolver):
    """Gives public addresses only; what it gives is what Scrapy connects to."""

    def getHostByName(self, name: str, timeout: Any = ()) -> Deferred[str]:  # noqa: N802  Twisted's name
        return super().getHostByName(name, timeout).addCallback(_only_public, name)


def _only_public(address: str, name: str) -> str:
    if literal(name) is not None:
        return address  # spelt out: Visits has judged it, or pinned it
    found = literal(address)
    if found is None or not is_public(found):
        _blocked_names.add(name)
        raise DNSLookupError(f"{name} resolves to {address}, which is not a public address")
    return address


class Pages(Spider):
    """Visits pages and writes each one's fate into the store."""

    name = "pages"

    def __init__(self, config: Crawl, starts: list[str], stay_on: list[str], store: str, **more: Any) -> None:
        super().__init__(**more)
        self.config, self.starts, self.hosts, self.store = config, starts, set(stay_on), open_store(store)
        self.seen: set[str] = set()
        self.found: set[str] = set()
        self.sitemaps: set[str] = set()
        self.depth = 0

    @classmethod
    def from_crawler(cls, crawler: Crawler, *args: Any, **more: Any) -> Self:
        spider = super().from_crawler(crawler, *args, **more)
        crawler.signals.connect(spider.idle, signal=signals.spider_idle)
        return spider

    async def start(self) -> AsyncIterator[Any]:
        self.store.execute("DELETE FROM pages")  # refilled from what is known
        for request in self._level(self.starts):
            yield request

    def idle(self) -> None:
        """A level is done: go on with the next one."""
        new_maps = sorted(url for url in self.sitemaps - self.seen if self._wanted(url))
        self.seen.update(new_maps)
        requests = [Request(url, callback=self.read_sitemap, errback=self.no_sitemap, dont_filter=True) for url in new_maps]
        if not requests and self.depth < self.config.max_depth:
            self.depth += 1
            requests = self._level(sorted(self.found))
            self.found.clear()
        for request in requests:
            self.crawler.engine.crawl(request)
        if requests:
            raise DontCloseSpider

    def _level(self, urls: list[str]) -> list[Request]:
        new = [url for url in dict.fromkeys(urls) if url not in self.seen]
        left = self.config.max_pages - self.store.execute("SELECT count(*) FROM pages").fetchone()[0]
        self.seen.update(new[:left])
        return [Request(url, callback=self.parse, errback=self.failed, dont_filter=True, cb_kwargs={"url": url}) for url in new[:left]]

    def _wanted(self, url: str) -> bool:
        return (urlsplit(url).hostname or "") in self.hosts

    def _remember(self, **values: Any) -> None:
        row = tuple(values.get(name, 0 if name == "http_status" else b"" if name == "html" else "") for name in FIELDS)
        self.store.execute(f"INSERT OR REPLACE INTO pages VALUES ({','.join('?' * len(FIELDS))})", row)

    def parse(self, response: Response, url: str) -> None:
        kind = (response.headers.get("Content-Type") or b"").decode("latin-1")
        x_robots = "\n".join(value.decode("latin-1") for value in response.headers.getlist("X-Robots-Tag"))
        known = {"url": url, "final_url": response.url, "http_status": response.status, "content_type": kind, "x_robots": x_robots}
        if response.status != 200:
            return self._remember(**known, **_refusal(response))
        if not re.match(r"\s*(text/html|application/xhtml\+xml)", kind or "text/html", re.I):
            return self._remember(**known, status="not_html", detail=f"content type {kind[:60]}")
        page = html.read_page(html.decode_html(response.body, kind), response.url)
        self._remember(**known, status="ok", lang=page.lang, html=zlib.compress(response.body, 1))
        if not re.search(r"\bnofollow\b", x_robots, re.I):
            self.found.update(link for link in map(_canonical, page.links) if link and self._wanted(link))
        return None

    def failed(self, failure: Failure) -> None:
        request: Request = failure.request  # type: ignore[attr-defined]
        status, detail = _word(failure.value, urlsplit(request.url).hostname or "")
        final = request.url if "redirect_urls" in request.meta else ""
        self._remember(url=request.cb_kwargs["url"], final_url=final, status=status, detail=detail)

    def read_sitemap(self, response: Response) -> None:
        if response.status != 200 or len(response.body) > self.config.max_page_kb * 1024:
            return
        try:
            sitemap = Sitemap(response.body)
            places = [entry["loc"] for entry in sitemap if entry.get("loc")]
        except (ValueError, SyntaxError, TypeError, KeyError, AttributeError):
            return
        if sitemap.type == "sitemapindex":
            self.sitemaps.update(places)
        else:
            self.found.update(link for link in map(_canonical, places) if link and self._wanted(link))

    def no_sitemap(self, failure: Failure) -> None:
        """A sitemap is a help, not a page: its absence is no news."""


def _refusal(response: Response) -> dict[str, str]:
    status, where = response.status, (response.headers.get("Location") or b"").decode("latin-1")
    if 300 <= status < 400 and where:  # Scrapy follows only http and https
        return {"status": "scheme_blocked", "detail": f"redirect to scheme {where.partition(':')[0][:20]!r}"}
    return {"status": "http_429" if status == 429 else "http_5xx" if status >= 500 else "http_4xx", "detail": f"HTTP {status}"}


def _canonical(url: str) -> str:
    try:
        return canonical_url(url)
    except ValueError:
        return ""


def _word(error: BaseException | None, host: str) -> tuple[str, str]:
    """The word of the closed list, and the detail, for what Scrapy raised."""
    if isinstance(error, Refused):
        return error.status, error.detail
    if host in _blocked_names:
        return "ssrf_blocked", f"{host} resolves to an address that is not public"
    for kind, word, detail in (
        (CannotResolveHostError, "dns_nxdomain", f"no address for {host}"),
        (DownloadConnectionRefusedError, "connect_refused", "connection refused"),
        (DownloadTimeoutError, "deadline", "not finished in time"),
        (DownloadCancelledError, "too_large", "larger than a page may be"),
        (IgnoreRequest, "redirect_loop", "too many redirects"),
    ):
        if isinstance(error, kind):
            return word, detail
    text = f"{type(error).__name__}: {error}"
    return ("tls_error" if "ssl" in text.lower() or "certificate" in text.lower() else "http_5xx"), f"broken reply ({type(error).__name__})"


def settings(config: Crawl, store: str) -> dict[str, Any]:
    network = config.network
    return {
        "VLM_CONFIG": config.model_dump(mode="json"), "VLM_STORE": store,
        "USER_AGENT": user_agent(network), "ROBOTSTXT_OBEY": False,  # Visits does it, with our rules
        "DOWNLOADER_MIDDLEWARES": {"vlm_core.data.spider.Visits": 50}, "HTTPPROXY_ENABLED": False,
        "TWISTED_DNS_RESOLVER": "vlm_core.data.spider.GuardedResolver", "DNS_TIMEOUT": network.dns_timeout_s,
        "HTTPCACHE_ENABLED": True, "HTTPCACHE_STORAGE": "vlm_core.data.spider.Answers", "HTTPCACHE_IGNORE_HTTP_CODES": [408, 429, 500, 502, 503, 504],
        "CONCURRENT_REQUESTS_PER_DOMAIN": network.connections_per_host, "DOWNLOAD_DELAY": config.delay_s,
        "AUTOTHROTTLE_ENABLED": config.delay_s > 0, "AUTOTHROTTLE_START_DELAY": config.delay_s, "AUTOTHROTTLE_MAX_DELAY": network.max_quiet_s,
        "DOWNLOAD_TIMEOUT": network.connect_timeout_s + 3 * network.read_timeout_s, "DOWNLOAD_MAXSIZE": config.max_page_kb * 1024, "DOWNLOAD_WARNSIZE": 0,
        "CLOSESPIDER_TIMEOUT": config.max_minutes * 60, "REDIRECT_MAX_TIMES": 5, "RETRY_TIMES": 2, "HTTPERROR_ALLOW_ALL": True,
        "COOKIES_ENABLED": False, "TELNETCONSOLE_ENABLED": False, "REMOTE_CONTROL_ENABLED": False, "LOG_LEVEL": "INFO", "EXTENSIONS": {"scrapy.extensions.logstats.LogStats": None},
    }  # fmt: skip


def main(file: str) -> None:
    die_with_parent()
    job = json.loads(Path(file).read_text())
    config = Crawl.read(job["config"])
    process = CrawlerProcess(settings(config, job["store"]))
    process.crawl(Pages, config=config, starts=job["starts"], stay_on=job["stay_on"], store=job["store"])
    process.start()


if __name__ == "__main__":
    importlib.import_module("vlm_core.data.spider").main(sys.argv[1])  # the module that Scrapy loads by name must be this one
