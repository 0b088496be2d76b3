"""What stands between Scrapy and other people's servers: the address guard, robots.txt with its crawl-delay, and the memory of answers."""

import json
import zlib
from typing import Any, Self, cast
from urllib.parse import urlsplit

from scrapy import Request, Spider, signals
from scrapy.core.downloader.handlers.http11 import HTTP11DownloadHandler
from scrapy.crawler import Crawler
from scrapy.exceptions import CannotResolveHostError, DownloadCancelledError, DownloadConnectionRefusedError, DownloadTimeoutError, IgnoreRequest
from scrapy.http import Headers, Response
from scrapy.resolver import CachingThreadedResolver
from scrapy.responsetypes import responsetypes
from scrapy.utils.defer import maybe_deferred_to_future
from scrapy.utils.sitemap import sitemap_urls_from_robots
from twisted.internet.defer import Deferred, DeferredSemaphore
from twisted.internet.error import DNSLookupError

from vlm_core.data.web import rights
from vlm_core.data.web.address import FetchFailed, Target, is_public, literal
from vlm_core.data.crawl.config import Crawl
from vlm_core.data.fetch.fetch import make_guard
from vlm_core.data.crawl.page_store import open_store
from vlm_core.data.web.politeness import Politeness, domain_of, retry_after_s
from vlm_core.data.web.rights import ALLOWED, Rights
from vlm_core.data.sample import Status

blocked_names: set[str] = set()
ROBOTS_MOST = 16 * 2**20  # bytes of a robots.txt; of those the first 500 KiB are read, and a longer one is a refusal


class Refused(IgnoreRequest):
    """A request that must not be made."""

    def __init__(self, status: Status, detail: str) -> None:
        super().__init__(detail)
        self.status, self.detail = status, detail


def word_of(error: BaseException | None, host: str) -> tuple[Status, str]:
    """The word of the closed list, and the detail, for what Scrapy raised."""
    if isinstance(error, Refused):
        return error.status, error.detail
    if host in blocked_names:
        return "ssrf_blocked", f"{host} resolves to an address that is not public"
    known: tuple[tuple[type[BaseException], Status, str], ...] = (
        (CannotResolveHostError, "dns_nxdomain", f"no address for {host}"),
        (DownloadConnectionRefusedError, "connect_refused", "connection refused"),
        (DownloadTimeoutError, "deadline", "not finished in time"),
        (DownloadCancelledError, "too_large", "larger than a page may be"),
        (IgnoreRequest, "redirect_loop", "too many redirects"),
    )
    for kind, word, detail in known:
        if isinstance(error, kind) and (kind is not IgnoreRequest or "redirect" in str(error)):
            return word, detail
    text = f"{type(error).__name__}: {error}"
    return ("tls_error" if "ssl" in text.lower() or "certificate" in text.lower() else "http_5xx"), f"broken reply ({type(error).__name__})"


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
    """Downloader middleware: the address guard, robots.txt and the quiet that a host needs, before every request and every hop of a redirect."""

    def __init__(self, crawler: Crawler) -> None:
        self.crawler, self.config = crawler, Crawl.read(crawler.settings.getdict("VLM_CONFIG"))
        self.guard, network = make_guard(self.config.network), self.config.network
        self.politeness = Politeness(network.rate_per_s, network.burst, network.connections_per_host, network.max_quiet_s)  # its memory of hosts: Scrapy keeps the pace
        self.robots: dict[str, Any] = {}  # origin -> its rules, why there are none, or who waits for them

    @classmethod
    def from_crawler(cls, crawler: Crawler) -> Self:
        visits = cls(crawler)
        crawler.signals.connect(visits.downloaded, signal=signals.response_downloaded)
        return visits

    def downloaded(self, response: Response, request: Request) -> None:
        """A host that asks for a pause gets it before its next request (Scrapy draws pauses from half of the delay on, hence twice)."""
        host, said = urlsplit(request.url).hostname or "", (response.headers.get("Retry-After") or b"").decode("latin-1")
        self.politeness.settled(host)
        if said or response.status not in {429, 503}:
            self.politeness.answered(host, response.status, said)
        slot = self.crawler.engine.downloader.slots.get(host) if self.crawler.engine else None
        if slot is not None and response.status in {429, 503}:
            asked = retry_after_s(said)
            slot.delay = max(slot.delay, min(2 * (1.0 if asked is None else asked), self.config.network.max_quiet_s))

    async def process_request(self, request: Request) -> None:
        try:
            target = self.guard.parse(request.url)
            self.politeness.refuse_long_quiet(target.host)
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
            settled = self.crawler.engine.downloader.per_slot_settings if self.crawler.engine else {}
            request.meta["autothrottle_dont_adjust_delay"] = target.host in settled  # it would shorten the pause that the site asks for

    async def _decide(self, target: Target) -> Rights:
        found: Any = self.robots.get(target.origin)
        if found is None:
            waiting: list[Deferred[Any]] = []
            self.robots[target.origin] = waiting
            found = self.robots[target.origin] = await self._ask(target)
            for other in waiting:
                other.callback(found)
        elif isinstance(found, list):  # somebody asks at this moment; each waits for a result of its own, because awaiting one takes it away
            mine: Deferred[Any] = Deferred()
            found.append(mine)
            found = await maybe_deferred_to_future(mine)
        if isinstance(found, Refused):
            self.robots.pop(target.origin, None)  # the next page asks again
            raise found
        if isinstance(found, str):
            return Rights(False, "robots.txt", f"{target.origin}/robots.txt: {found}, which counts as a refusal for now") if found else ALLOWED
        if delay := found.crawl_delay(self.config.network.agent):
            self._keep_pause(target.host, float(delay))
        return rights.robots_decision(found, target.url, self.config.network.agent)

    async def _ask(self, target: Target) -> Any:
        """The rules of an origin; a text when it does not give any ('' = there are none); what keeps the page itself from being asked."""
        request = Request(f"{target.origin}/robots.txt", meta={"robots": True, "download_timeout": 20, "download_maxsize": ROBOTS_MOST}, priority=1000)
        try:
            response = await self.crawler.engine.download_async(request)
        except Refused as error:
            return "" if error.status in {"ssrf_blocked", "scheme_blocked"} else error  # robots.txt was sent to where nobody may look: there is none
        except (CannotResolveHostError, DownloadConnectionRefusedError) as error:
            return Refused(*word_of(error, target.host))
        except IgnoreRequest:
            return ""
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

    def _keep_pause(self, host: str, pause_s: float) -> None:
        """Crawl-delay: one request at a time, and never less than this between two; for the host's queue as it is, and when Scrapy makes it anew.

        Of several origins of a host the one that asks for most is obeyed.
        """
        downloader: Any = self.crawler.engine.downloader if self.crawler.engine else None
        before = downloader.per_slot_settings.get(host, {}).get("delay", 0.0) if downloader is not None else 0.0
        settled = {"delay": max(pause_s, self.config.delay_s, before), "concurrency": 1, "jitter": 0.0}
        if downloader is not None and downloader.per_slot_settings.get(host) != settled:
            downloader.per_slot_settings[host] = settled
            if slot := downloader.slots.get(host):
                slot.delay, slot.concurrency, slot.jitter = settled["delay"], 1, 0.0


class Wire(HTTP11DownloadHandler):
    """The last step before a request leaves: no more connections to a domain than allowed, and a host that five in a row could not reach is left alone for a minute.

    Scrapy counts requests on their way when their task begins, so without a pause between two it lets a whole queue go at once (2.19).
    """

    def __init__(self, crawler: Crawler) -> None:
        super().__init__(crawler)
        self.most = crawler.settings.getint("CONCURRENT_REQUESTS_PER_DOMAIN")
        self.open: dict[str, DeferredSemaphore] = {}  # of the domains that are asked at this moment

    async def download_request(self, request: Request) -> Response:
        host = urlsplit(request.url).hostname or ""
        domain = domain_of(host)
        connections = self.open.setdefault(domain, DeferredSemaphore(self.most))
        await maybe_deferred_to_future(connections.acquire())
        try:
            return await self._ask(host, request)
        finally:
            connections.release()
            if connections.tokens == connections.limit:
                self.open.pop(domain, None)

    async def _ask(self, host: str, request: Request) -> Response:
        politeness = cast(Visits, self._crawler.get_downloader_middleware(Visits)).politeness
        try:
            politeness.refuse_dead(host)
        except FetchFailed as failed:
            raise Refused(failed.status, failed.detail) from None
        try:
            return await super().download_request(request)
        except Exception as error:
            politeness.failed(host, FetchFailed(*word_of(error, host)))
            raise


class GuardedResolver(CachingThreadedResolver):
    """Gives public addresses only; what it gives is what Scrapy connects to."""

    def getHostByName(self, name: str, timeout: Any = ()) -> Deferred[str]:  # noqa: N802  Twisted's name
        return super().getHostByName(name, timeout).addCallback(_only_public, name)


def _only_public(address: str, name: str) -> str:
    if literal(name) is not None:
        return address  # spelt out: Visits has judged it, or pinned it
    found = literal(address)
    if found is None or not is_public(found):
        blocked_names.add(name)
        raise DNSLookupError(f"{name} resolves to {address}, which is not a public address")
    return address
