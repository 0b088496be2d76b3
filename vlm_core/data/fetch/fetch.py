"""One hardened client: an address in, bytes on disk and exactly one status out.

Address guard, the origin's rules and politeness on every hop, opt-out headers before the body, a byte budget and a deadline for the whole exchange,
and the picture's header checked before anything decodes it. Source: `methods/data.md` 2, 14; PLATFORM 10.1 F12, 10.2 A1-A3, A11.
"""

import contextlib
import hashlib
import io
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

from vlm_core.data.crawl.config import Fetch, Network
from vlm_core.data.fetch.picture import Limits as PictureLimits
from vlm_core.data.fetch.picture import probe
from vlm_core.data.fetch.schedule import host_of
from vlm_core.data.web import rights
from vlm_core.data.web.address import FetchFailed, Guard, Target
from vlm_core.data.web.c2pa import c2pa_decision
from vlm_core.data.web.connection import Connections, Limits, Reply
from vlm_core.data.web.origins import Origins
from vlm_core.data.web.politeness import NotAsked, Politeness, Sites, retry_after_s
from vlm_core.data.web.rights import ALLOWED, Rights

REDIRECTS, HOPS = {301, 302, 303, 307, 308}, 5
SMALL, LARGE_MB = 2**20, 64  # bodies up to SMALL bytes wait for no room; larger ones share LARGE_MB of a process
Blocked = Callable[[str, io.BytesIO], str | None]  # (address, its bytes)
Keep = Callable[[memoryview], object]


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
    md5: str = ""  # only where a list of MD5 hashes asks for it
    mime: str = ""
    width: int = 0  # of the upright original
    height: int = 0
    rights_rule: str = ""
    rights_evidence: str = ""
    passing: bool = False  # a refusal for now: the origin's rules could not be read
    pause_s: float = 0.0  # what its host asked for (Retry-After), or what was left of it
    asked: bool = True  # False: its host wanted a pause, nothing was sent
    ms: int = 0
    attempts: int = 1
    fetched_at: str = ""

    def json(self) -> dict[str, Any]:
        return dict(vars(self))


class _Denied(FetchFailed):
    def __init__(self, status: Any, decision: Rights, passing: bool = False) -> None:
        super().__init__(status, decision.evidence)
        self.decision, self.passing = decision, passing


class _Visit:
    """What was learnt on the way to one address."""

    def __init__(self, url: str, limits: Limits) -> None:
        self.hops, self.limits, self.said, self.pause_s = [url], limits, "", 0.0
        self.room = contextlib.ExitStack()  # memory that a large body was given


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
        memory: folder in which the rules of origins are remembered; None keeps them in the process.
        blocked: the name of a list that these bytes are on, or None; asked before anything is written to disk.
        sites: what all processes know about the sites; None: this process alone.
    """

    def __init__(self, network: Network, fetch: Fetch, memory: Path | None = None, blocked: Blocked | None = None, sites: Sites | None = None) -> None:
        self.network, self.settings, self.blocked = network, fetch, blocked
        self.guard = make_guard(network)
        self.connections = Connections(network.connections_per_host)
        self.politeness = Politeness(network.rate_per_s, network.burst, network.connections_per_host, network.max_quiet_s, sites)
        self.headers = {"User-Agent": user_agent(network), "Accept": "image/avif,image/webp,image/*,*/*;q=0.1", "Accept-Encoding": "identity"}
        self.picture_limits = PictureLimits(fetch.max_pixels, fetch.max_decoded_mb, fetch.min_side, fetch.max_aspect)
        self.keeps_md5 = False
        self.patience_s = float("inf")  # wait so long for a site's turn
        self._room = threading.BoundedSemaphore(max(1, LARGE_MB * 2**20 // fetch.max_bytes))
        self._origins = Origins(self, memory)

    def fetch(self, url: str, keep: Keep) -> Fetched:
        """Ask once for a picture. Its bytes are given to `keep` if and only if the status is ok. Raises Later when nothing was asked."""
        visit, begin = _Visit(url, self.limits()), time.monotonic()
        try:
            with visit.room:
                result = self._follow(visit, keep)
        except FetchFailed as failed:
            denied = failed if isinstance(failed, _Denied) else None
            rule, said = (denied.decision.rule, denied.decision.evidence) if denied else ("", visit.said)
            final = visit.hops[-1] if len(visit.hops) > 1 else ""
            result = Fetched(url, failed.status, failed.detail, final, failed.http_status, rights_rule=rule, rights_evidence=said)
            result = replace(result, passing=bool(denied and denied.passing), asked=not isinstance(failed, NotAsked))
            visit.pause_s = self._pause_s(failed, visit)
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        return replace(result, pause_s=visit.pause_s, ms=round(1000 * (time.monotonic() - begin)), fetched_at=at)

    def _pause_s(self, failed: FetchFailed, visit: _Visit) -> float:
        """For how long this address must not be asked, as far as its host has said so."""
        if isinstance(failed, NotAsked):
            return failed.pause_s
        if isinstance(failed, _Denied) and failed.passing:  # robots.txt itself may have asked for quiet
            return self.politeness.quiet_s(host_of(visit.hops[-1]))
        return visit.pause_s

    def _follow(self, visit: _Visit, keep: Keep) -> Fetched:
        hops = visit.hops
        while True:
            target = self.guard.check(hops[-1], self.network.dns_timeout_s)
            decision, passing = self._origins.decide(target)
            if not decision.allowed:
                raise _Denied("robots_denied", decision, passing)
            with self.politeness.turn(target.host, self.patience_s):
                answer = self._ask(target, visit)
            if not isinstance(answer, str):
                return self._accept(visit, target, answer, keep)
            if len(hops) > HOPS or answer in hops:
                raise FetchFailed("redirect_loop", f"{len(hops)} redirects")
            if self.network.https_to_http == "refuse" and target.scheme == "https" and answer[:5].lower() == "http:":
                raise FetchFailed("scheme_blocked", "redirect from https to http")
            hops.append(answer)

    def limits(self) -> Limits:
        """The time that one exchange may take, with all its redirects; waiting for turns does not count."""
        return Limits(self.network.connect_timeout_s, self.network.read_timeout_s, self.settings.deadline_s)

    def _ask(self, target: Target, visit: _Visit) -> io.BytesIO | str:
        """The body of a 200, or the address of a redirect. Raises FetchFailed."""
        try:
            with self.connections.get(target, self.headers, visit.limits) as reply:
                asked = reply.headers.get("Retry-After")
                self.politeness.answered(target.host, reply.status, asked)
                visit.pause_s = (retry_after_s(asked) or 0.0) if reply.status in {429, 503} else 0.0
                decision = rights.headers_decision(reply.all("X-Robots-Tag"), reply.all("TDM-Reservation"), self.network.agent, self.network.optouts)
                if not decision.allowed:
                    raise _Denied("optout_header", decision)
                visit.said = decision.evidence
                moved = reply.headers.get("Location") if reply.status in REDIRECTS else None
                if not moved:
                    _refuse_other_than_200(reply)
                answer = _join(target.url, str(moved)) if moved else self._read(reply, visit)
        except FetchFailed as failed:
            self.politeness.failed(target.host, failed)
            raise
        self.politeness.settled(target.host)
        return answer

    def _read(self, reply: Reply, visit: _Visit) -> io.BytesIO:
        body, small = io.BytesIO(), True
        for chunk in reply.chunks(self.settings.max_bytes):
            body.write(chunk)
            if small and body.tell() > SMALL:
                visit.room.enter_context(self._room)
                small = False
        return body

    def _accept(self, visit: _Visit, target: Target, body: io.BytesIO, keep: Keep) -> Fetched:
        listed = self.blocked(visit.hops[0], body) if self.blocked else None
        if listed is not None:
            raise FetchFailed("blocked_hash", f"its bytes are on the list {listed!r}", 200)
        try:
            header = probe(body, self.picture_limits)
        except FetchFailed as failed:
            failed.http_status = 200
            raise
        decision = c2pa_decision(body) if self.network.optouts.c2pa else ALLOWED
        if not decision.allowed:
            raise _Denied("optout_header", decision)
        data, final = body.getbuffer(), target.url if len(visit.hops) > 1 else ""
        keep(data)
        digest, md5 = hashlib.sha256(data).hexdigest(), hashlib.md5(data, usedforsecurity=False).hexdigest() if self.keeps_md5 else ""
        return Fetched(visit.hops[0], "ok", "", final, 200, len(data), digest, md5, header.mime, header.width, header.height, rights_evidence=visit.said)

    def get_text(self, target: Target, path: str) -> tuple[int, str]:
        """(status, text) of a small file of an origin, redirects followed under the same guard; of a large one the first 500 KiB, in whole lines.

        Raises FetchFailed.
        """
        limits, here = self.limits(), target._replace(url=target.origin + path, path=path)
        for _ in range(HOPS + 1):
            with self.connections.get(here, {**self.headers, "Accept": "*/*"}, limits) as reply:
                self.politeness.answered(here.host, reply.status, reply.headers.get("Retry-After"))
                if reply.status not in REDIRECTS or not reply.headers.get("Location"):
                    return reply.status, _lines(reply.head(rights.ROBOTS_BYTES + 1)) if reply.status == 200 else ""
                moved = _join(here.url, str(reply.headers["Location"]))
            here = self.guard.check(moved, self.network.dns_timeout_s)
        raise FetchFailed("redirect_loop", f"{HOPS} redirects")

    def close(self) -> None:
        self.connections.close()


def _lines(data: bytes) -> str:
    """RFC 9309 2.5: what lies beyond the limit is not read; half a rule would be another rule."""
    whole = data if len(data) <= rights.ROBOTS_BYTES else data[: rights.ROBOTS_BYTES].rpartition(b"\n")[0]
    return whole.decode("utf-8", "replace")


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
