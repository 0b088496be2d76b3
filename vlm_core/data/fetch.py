"""One hardened client: an address in, bytes on disk and exactly one status out.

Address guard, robots.txt and politeness on every hop, opt-out headers before the body, a byte budget and a deadline for the whole exchange,
and the picture's header checked before anything decodes it. Source: `methods/data.md` 2, 14; PLATFORM 10.1 F12, 10.2 A1-A3, A11.
"""

import hashlib
import json
import random
import threading
import time
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

from vlm_core.data import rights
from vlm_core.data.address import FetchFailed, Guard, Target
from vlm_core.data.crawl_config import Fetch, Network
from vlm_core.data.connection import Connections, Limits, Reply
from vlm_core.data.picture import Limits as PictureLimits
from vlm_core.data.picture import probe
from vlm_core.data.politeness import Politeness
from vlm_core.data.rights import ALLOWED, Rights
from vlm_core.data.sample import RETRYABLE

REDIRECTS, HOPS = {301, 302, 303, 307, 308}, 5
TDMREP = "/.well-known/tdmrep.json"


@dataclass(frozen=True)
class Fetched:
    """How one address ended, and what was learnt on the way."""

    url: str
    status: str
    detail: str = ""
    final_url: str = ""
    http_status: int = 0
    bytes: int = 0
    sha256: str = ""
    mime: str = ""
    width: int = 0  # of the upright original
    height: int = 0
    rights_rule: str = ""
    rights_evidence: str = ""
    attempts: int = 1
    fetched_at: str = ""

    def json(self) -> dict[str, Any]:
        return asdict(self)


class _Denied(FetchFailed):
    def __init__(self, status: Any, decision: Rights) -> None:
        super().__init__(status, decision.evidence)
        self.decision = decision


def user_agent(network: Network) -> str:
    """Product token, version and a way to reach us; never a browser's name."""
    return f"{network.agent}/0.1" + (f" (+{network.contact})" if network.contact else "")


def make_guard(network: Network) -> Guard:
    return Guard(network.hosts, network.ports)


class Fetcher:
    """Shared by all threads of a process.

    Args:
        network: how we behave on other people's servers.
        fetch: budgets of one picture.
        processes: how many processes share the rate of a host.
        memory: folder in which robots.txt files are remembered for this run; None keeps them in the process.
        blocked: SHA-256 of bytes that must not be kept.
    """

    def __init__(self, network: Network, fetch: Fetch, processes: int = 1, memory: Path | None = None, blocked: Collection[str] = ()) -> None:
        self.network, self.settings, self.blocked = network, fetch, frozenset(blocked)
        self.guard = make_guard(network)
        self.connections = Connections(network.connections_per_host)
        self.politeness = Politeness(network.rate_per_s / processes, network.burst, network.connections_per_host, network.max_quiet_s)
        self.headers = {"User-Agent": user_agent(network), "Accept": "image/avif,image/webp,image/*,*/*;q=0.1", "Accept-Encoding": "identity"}
        self.picture_limits = PictureLimits(fetch.max_pixels, fetch.max_decoded_mb, fetch.min_side, fetch.max_aspect)
        self._robots = Robots(self, memory)

    def fetch(self, url: str, into: Path) -> Fetched:
        """Fetch a picture into a file. The file exists afterwards if and only if the status is ok."""
        into.unlink(missing_ok=True)
        result = Fetched(url, "deadline")
        for attempt in range(1, self.settings.retries + 2):
            result = replace(self._once(url, into), attempts=attempt)
            if result.status not in RETRYABLE or attempt > self.settings.retries:
                break
            time.sleep(random.uniform(0.5, 1.0) * min(8.0, self.settings.retry_wait_s * 2 ** (attempt - 1)))
        return replace(result, fetched_at=datetime.now(UTC).isoformat(timespec="milliseconds"))

    def _once(self, url: str, into: Path) -> Fetched:
        part, hops = into.with_name(into.name + ".part"), [url]
        try:
            return self._follow(url, part, into, hops)
        except FetchFailed as failed:
            decision = failed.decision if isinstance(failed, _Denied) else ALLOWED
            final = hops[-1] if len(hops) > 1 else ""
            return Fetched(url, failed.status, failed.detail, final, failed.http_status, rights_rule=decision.rule, rights_evidence=decision.evidence)
        finally:
            part.unlink(missing_ok=True)

    def _follow(self, url: str, part: Path, into: Path, hops: list[str]) -> Fetched:
        limits = self._limits()
        while True:
            target = self.guard.check(hops[-1], self.network.dns_timeout_s)
            decision = self._robots.decide(target)
            if not decision.allowed:
                raise _Denied("robots_denied", decision)
            with self.politeness.turn(target.host):
                moved = self._ask(target, limits, part)
            if moved is None:
                return self._accept(url, target, part, into, len(hops) > 1)
            if len(hops) > HOPS or moved in hops:
                raise FetchFailed("redirect_loop", f"{len(hops)} redirects")
            hops.append(moved)

    def _limits(self) -> Limits:
        return Limits(self.network.connect_timeout_s, self.network.read_timeout_s, self.settings.deadline_s)

    def _ask(self, target: Target, limits: Limits, part: Path) -> str | None:
        """Save the body of a 200 into `part`, or give the address of a redirect. Raises FetchFailed."""
        try:
            with self.connections.get(target, self.headers, limits) as reply:
                self.politeness.answered(target.host, reply.status, reply.headers.get("Retry-After"))
                decision = rights.headers_decision(reply.all("X-Robots-Tag"), reply.all("TDM-Reservation"), self.network.agent)
                if not decision.allowed:
                    raise _Denied("optout_header", decision)
                if reply.status in REDIRECTS and reply.headers.get("Location"):
                    return _join(target.url, str(reply.headers["Location"]))
                _refuse_other_than_200(reply)
                with part.open("wb") as stream:
                    for chunk in reply.chunks(self.settings.max_bytes):
                        stream.write(chunk)
                return None
        except FetchFailed as failed:
            self.politeness.failed(target.host, failed)
            raise

    def _accept(self, url: str, target: Target, part: Path, into: Path, moved: bool) -> Fetched:
        with part.open("rb") as stream:
            digest, size = hashlib.file_digest(stream, "sha256").hexdigest(), stream.tell()
            if digest in self.blocked:
                raise FetchFailed("blocked_hash", "its bytes are on the list of blocked hashes", 200)
            try:
                header = probe(stream, self.picture_limits)
            except FetchFailed as failed:
                failed.http_status = 200
                raise
        part.rename(into)
        return Fetched(url, "ok", "", target.url if moved else "", 200, size, digest, header.mime, header.width, header.height)

    def get_text(self, target: Target, path: str) -> tuple[int, str]:
        """(status, text) of a small file of an origin, redirects followed under the same guard. Raises FetchFailed."""
        limits, here = self._limits(), target._replace(url=target.origin + path, path=path)
        for _ in range(HOPS + 1):
            with self.connections.get(here, {**self.headers, "Accept": "*/*"}, limits) as reply:
                if reply.status not in REDIRECTS or not reply.headers.get("Location"):
                    return reply.status, reply.read(rights.ROBOTS_BYTES).decode("utf-8", "replace") if reply.status == 200 else ""
                moved = _join(here.url, str(reply.headers["Location"]))
            here = self.guard.check(moved, self.network.dns_timeout_s)
        raise FetchFailed("redirect_loop", f"{HOPS} redirects")

    def close(self) -> None:
        self.connections.close()


class Robots:
    """robots.txt and tdmrep.json of each origin, asked for once per run (also across processes) and remembered."""

    def __init__(self, fetcher: Fetcher, memory: Path | None) -> None:
        self.fetcher, self.memory = fetcher, memory
        self._known: dict[str, dict[str, Any]] = {}
        self._locks: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    def decide(self, target: Target) -> Rights:
        """May we ask for this target? Raises FetchFailed when its host cannot be reached at all."""
        network = self.fetcher.network
        rules = self._rules(target)
        if rules["unreachable"]:
            return Rights(False, "robots.txt", f"{target.origin}/robots.txt: {rules['unreachable']}, which counts as a refusal for now")
        decision = rights.robots_decision(rules["robots"], target.url, network.agent)
        if decision.allowed and rules["tdm"]:
            decision = rights.tdmrep_decision(rules["tdm"], urlsplit(target.url).path)
        return decision

    def _rules(self, target: Target) -> dict[str, Any]:
        with self._lock:
            lock = self._locks.setdefault(target.origin, threading.Lock())
        with lock:
            if target.origin not in self._known:
                texts = self._remembered(target)
                robots = rights.read_robots(texts["robots"])
                delay = robots.crawl_delay(self.fetcher.network.agent)
                if delay:
                    self.fetcher.politeness.crawl_delay(target.host, float(delay))
                self._known[target.origin] = {"robots": robots, "tdm": rights.read_tdmrep(texts["tdm"]), "unreachable": texts["unreachable"]}
            return self._known[target.origin]

    def _remembered(self, target: Target) -> dict[str, str]:
        file = self.memory / f"{hashlib.sha256(target.origin.encode()).hexdigest()[:32]}.json" if self.memory else None
        if file is not None and file.exists():
            texts: dict[str, str] = json.loads(file.read_text())
            return texts
        texts = self._ask(target)
        if file is not None and not texts["unreachable"]:
            part = file.with_name(f"{file.name}.{threading.get_ident()}.part")
            part.write_text(json.dumps(texts))
            part.rename(file)
        return texts

    def _ask(self, target: Target) -> dict[str, str]:
        """4xx allows everything; 5xx and silence forbid everything for now (RFC 9309 2.3.1)."""
        texts = {"robots": "", "tdm": "", "unreachable": ""}
        with self.fetcher.politeness.turn(target.host):
            try:
                status, texts["robots"] = self.fetcher.get_text(target, "/robots.txt")
                if status >= 500 or status == 429:
                    texts["unreachable"] = f"HTTP {status}"
                elif self.fetcher.network.tdmrep:
                    texts["tdm"] = self.fetcher.get_text(target, TDMREP)[1]
            except FetchFailed as failed:
                if failed.status in {"deadline", "http_5xx", "redirect_loop"}:
                    texts["unreachable"] = failed.detail
                elif failed.status not in {"too_large", "decode_error", "ssrf_blocked", "scheme_blocked"}:
                    self.fetcher.politeness.failed(target.host, failed)
                    raise
        return texts


def _join(base: str, location: str) -> str:
    try:
        return urljoin(base, location)
    except ValueError:
        raise FetchFailed("ssrf_blocked", "redirect to an invalid address") from None


def _refuse_other_than_200(reply: Reply) -> None:
    status = reply.status
    if status == 200:
        return
    if status == 429:
        raise FetchFailed("http_429", "HTTP 429", status)
    if status >= 500:
        raise FetchFailed("http_5xx", f"HTTP {status}", status)
    if status >= 300:
        raise FetchFailed("http_4xx", f"HTTP {status}", status)
    raise FetchFailed("not_image", f"HTTP {status} without a picture", status)
