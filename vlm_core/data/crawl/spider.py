"""Scrapy in a process of its own: `python -m vlm_core.data.crawl.spider JOB.json`. Breadth first, one level after the other, each in sorted order,
so that a page budget always keeps the same pages.

Scrapy brings politeness (delay, AutoThrottle), retries, redirects, size and time limits. Ours: the address guard and the rights, the same as for pictures.
Every answer is kept in the job's SQLite file, and Scrapy's HTTP cache reads it: a crawl that was killed replays what it knows without asking anyone again.
(Scrapy's own JOBDIR writes its queue only when it closes; after kill -9 the frontier is gone but the list of seen pages is not, and the crawl ends early.)
"""

import importlib
import json
import re
import sys
import zlib
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from scrapy import Request, Spider, signals
from scrapy.crawler import Crawler, CrawlerProcess
from scrapy.exceptions import DontCloseSpider, DownloadCancelledError
from scrapy.http import Response
from scrapy.utils.sitemap import Sitemap
from twisted.python.failure import Failure

from vlm_core.data.crawl import html
from vlm_core.data.crawl.config import Crawl, Site
from vlm_core.data.fetch.fetch import user_agent
from vlm_core.data.crawl.page_store import canonical_of, open_store, remember
from vlm_core.data.sample import canonical_url
from vlm_core.data.crawl.visits import word_of
from vlm_core.stage import die_with_parent


SITEMAP_BYTES = 50 * 2**20  # what sitemaps.org allows, unpacked


class Pages(Spider):
    """Visits pages and writes each one's fate into the store. `budgets`: limits of single hosts."""

    name = "pages"

    def __init__(self, config: Crawl, starts: list[str], stay_on: list[str], store: str, **more: Any) -> None:
        super().__init__(**more)
        self.config, self.starts, self.hosts, self.store = config, starts, set(stay_on), open_store(store)
        self.budgets = config.source.budgets if isinstance(config.source, Site) else {}
        self.seen: set[str] = set()
        self.asked = Counter[str]()  # pages of each host, those left out that turned out to be doubles
        self.found: dict[str, tuple[str, set[str]]] = {}  # page of this level -> what stands for it, what it links to
        self.originals: set[str] = set()
        self.listed: set[str] = set()  # by sitemaps
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
        most = {"download_maxsize": SITEMAP_BYTES}
        requests = [Request(url, callback=self.read_sitemap, errback=self.no_sitemap, dont_filter=True, meta=dict(most)) for url in new_maps]
        if not requests and self.depth < self.config.max_depth:
            self.depth += 1
            requests = self._level(self._links())
        for request in requests:
            self.crawler.engine.crawl(request)
        if requests:
            raise DontCloseSpider

    def _links(self) -> list[str]:
        """What the pages of this level lead to, sorted. One that only doubles another (its canonical address is known) leads nowhere and counts for nothing."""
        links = set(self.listed)
        for url in sorted(self.found):
            original, found = self.found[url]
            if original in self.originals:
                self.asked[urlsplit(url).hostname or ""] -= 1
                continue
            self.originals.add(original)
            links |= found | ({original} if self._wanted(original) else set())
        self.found.clear()
        self.listed.clear()
        return sorted(links)

    def _level(self, urls: list[str]) -> list[Request]:
        requests = []
        for url in dict.fromkeys(urls):
            host = urlsplit(url).hostname or ""
            budget = self.budgets.get(host) or self.budgets.get("*")
            if self.asked.total() >= self.config.max_pages:
                break
            if url in self.seen or (budget is not None and (self.asked[host] >= budget.max_pages or self.depth > budget.max_depth)):
                continue
            self.seen.add(url)
            self.asked[host] += 1
            requests.append(Request(url, callback=self.parse, errback=self.failed, dont_filter=True, cb_kwargs={"url": url}))
        return requests

    def _wanted(self, url: str) -> bool:
        return (urlsplit(url).hostname or "") in self.hosts

    def parse(self, response: Response, url: str) -> None:
        kind = (response.headers.get("Content-Type") or b"").decode("latin-1")
        x_robots, tdm = ("\n".join(value.decode("latin-1") for value in response.headers.getlist(name)) for name in ("X-Robots-Tag", "TDM-Reservation"))
        known = {
            "url": url, "final_url": response.url, "http_status": response.status, "content_type": kind, "x_robots": x_robots, "tdm_reservation": tdm,
        }  # fmt: skip
        if response.status != 200:
            return remember(self.store, **known, **_refusal(response))
        if not re.match(r"\s*(text/html|application/xhtml\+xml)", kind or "text/html", re.I):
            return remember(self.store, **known, status="not_html", detail=f"content type {kind[:60]}")
        page = html.read_page(html.decode_html(response.body, kind), response.url)
        canonical = canonical_of(page.canonical, response.url)
        remember(self.store, **known, status="ok", lang=page.lang, html=response.body, canonical=canonical)
        links = () if re.search(r"\bnofollow\b", x_robots, re.I) else page.links
        self.found[url] = (canonical or url, {link for link in map(_canonical, links) if link and self._wanted(link)})
        return None

    def failed(self, failure: Failure) -> None:
        request: Request = failure.request  # type: ignore[attr-defined]
        status, detail = word_of(failure.value, urlsplit(request.url).hostname or "")
        final = request.url if "redirect_urls" in request.meta else ""
        remember(self.store, url=request.cb_kwargs["url"], final_url=final, status=status, detail=detail)

    def read_sitemap(self, response: Response) -> None:
        try:
            body = response.body
            if body.startswith(b"\x1f\x8b"):  # sitemap.xml.gz
                body = zlib.decompressobj(31).decompress(body, SITEMAP_BYTES + 1)
            if response.status != 200:
                return
            if len(body) > SITEMAP_BYTES:
                return self._large_sitemap(response.url)
            sitemap = Sitemap(body)
            places = [entry["loc"] for entry in sitemap if entry.get("loc")]
        except (ValueError, SyntaxError, TypeError, KeyError, AttributeError, zlib.error):
            return
        if sitemap.type == "sitemapindex":
            self.sitemaps.update(places)
        else:
            self.listed.update(link for link in map(_canonical, places) if link and self._wanted(link))

    def no_sitemap(self, failure: Failure) -> None:
        """A sitemap is a help, not a page: its absence is no news. One that is too large is."""
        if isinstance(failure.value, DownloadCancelledError):
            self._large_sitemap(failure.request.url)  # type: ignore[attr-defined]

    def _large_sitemap(self, url: str) -> None:
        remember(self.store, url=url, final_url=url, status="too_large", detail="a sitemap of more than 50 MB, which the standard does not allow")


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


def settings(config: Crawl, store: str) -> dict[str, Any]:
    network = config.network
    return {
        "VLM_CONFIG": config.model_dump(mode="json"), "VLM_STORE": store,
        "USER_AGENT": user_agent(network), "ROBOTSTXT_OBEY": False,  # Visits does it, with our rules
        "DOWNLOADER_MIDDLEWARES": {"vlm_core.data.crawl.visits.Visits": 50}, "HTTPPROXY_ENABLED": False,
        "DOWNLOAD_HANDLERS": dict.fromkeys(("http", "https"), "vlm_core.data.crawl.visits.Wire"),
        "TWISTED_DNS_RESOLVER": "vlm_core.data.crawl.visits.GuardedResolver", "DNS_TIMEOUT": network.dns_timeout_s,
        "HTTPCACHE_ENABLED": True, "HTTPCACHE_STORAGE": "vlm_core.data.crawl.visits.Answers", "HTTPCACHE_IGNORE_HTTP_CODES": [408, 429, 500, 502, 503, 504],
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
    importlib.import_module("vlm_core.data.crawl.spider").main(sys.argv[1])  # the module that Scrapy loads by name must be this one
