"""How often one site is asked: a token bucket per registrable domain, Retry-After, back-off, and no further calls to a dead host."""

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import tldextract

from vlm_core.data.address import FetchFailed
from vlm_core.data.sample import Status

DEAD_AFTER, DEAD_FOR_S, SLOWEST = 5, 60.0, 64
_DOMAINS = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)  # the list inside the package; nothing is fetched
DEAD: frozenset[str] = frozenset({"dns_nxdomain", "dns_timeout", "connect_refused", "connect_timeout", "tls_error"})


def domain_of(host: str) -> str:
    """The registrable domain: what one owner answers for."""
    return _DOMAINS.extract_str(host).top_domain_under_public_suffix or host


def retry_after_s(text: str | None) -> float | None:
    """Seconds that a Retry-After header asks for: a number or a date."""
    if not text:
        return None
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None


@dataclass
class _Site:
    slots: threading.Semaphore
    slower: float = 1.0  # 2 = half the rate
    min_gap_s: float = 0.0  # robots.txt Crawl-delay
    next_at: float = 0.0  # theoretical arrival time of the bucket
    quiet_until: float = 0.0
    quiet_status: Status = "http_429"
    lock: threading.Lock = field(default_factory=threading.Lock)


class Politeness:
    """Shared by all threads of a process.

    Args:
        rate_per_s, burst: token bucket of each domain.
        connections: how many may be open to a domain at once.
        max_quiet_s: a site that asks for more quiet than this is left alone; its addresses fail with the site's own answer.
    """

    def __init__(self, rate_per_s: float, burst: int, connections: int, max_quiet_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate_per_s, self.burst, self.connections, self.max_quiet_s, self.clock = rate_per_s, burst, connections, max_quiet_s, clock
        self._sites: dict[str, _Site] = {}
        self._dead: dict[str, tuple[int, float, FetchFailed]] = {}  # host -> failures in a row, asked again from, the last one
        self._lock = threading.Lock()

    def _site(self, host: str) -> _Site:
        domain = domain_of(host)
        with self._lock:
            return self._sites.setdefault(domain, _Site(threading.Semaphore(self.connections)))

    @contextlib.contextmanager
    def turn(self, host: str) -> Iterator[None]:
        """Wait for this host's turn and hold one of its connections.

        Raises FetchFailed when the host asked to be left alone, and its last failure again while it counts as dead.
        """
        failures, until, last = self._dead.get(host, (0, 0.0, None))
        if last is not None and failures >= DEAD_AFTER and self.clock() < until:
            raise FetchFailed(last.status, last.detail)
        site = self._site(host)
        with site.slots:
            self._wait(site)
            yield

    def _wait(self, site: _Site) -> None:
        with site.lock:
            now = self.clock()
            gap = max(site.slower / self.rate_per_s, site.min_gap_s)
            slack = 0.0 if site.min_gap_s else gap * (self.burst - 1)
            at = max(now, site.next_at - slack)
            site.next_at = max(site.next_at, now) + gap
        while True:
            quiet = site.quiet_until - self.clock()
            if quiet > self.max_quiet_s:
                raise FetchFailed(site.quiet_status, f"not asked: the host wants a pause of more than {self.max_quiet_s:g} s")
            wait = max(quiet, at - self.clock())
            if wait <= 0:
                return
            time.sleep(min(wait, 1.0))

    def crawl_delay(self, host: str, seconds: float) -> None:
        self._site(host).min_gap_s = min(seconds, self.max_quiet_s)

    def answered(self, host: str, http_status: int, retry_after: str | None) -> None:
        """Learn from a reply: 429 and 503 halve the rate and start a quiet time, anything else slowly restores it."""
        site = self._site(host)
        self._dead.pop(host, None)
        with site.lock:
            if http_status not in {429, 503}:
                site.slower = max(1.0, site.slower * 0.9)
                return
            site.slower = min(SLOWEST, site.slower * 2)
            asked = retry_after_s(retry_after)
            quiet = asked if asked is not None else random.uniform(0.5, 1.0) * site.slower
            site.quiet_until, site.quiet_status = self.clock() + quiet, "http_429" if http_status == 429 else "http_5xx"

    def failed(self, host: str, failure: FetchFailed) -> None:
        """Learn from a failure to connect: after five in a row the host is left alone for a minute."""
        if failure.status in DEAD:
            with self._lock:
                self._dead[host] = (self._dead.get(host, (0,))[0] + 1, self.clock() + DEAD_FOR_S, failure)
