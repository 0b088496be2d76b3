"""The rules that an origin keeps in files: robots.txt, tdmrep.json and ai.txt, asked for once a day, remembered across processes and runs."""

import hashlib
import json
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from protego import Protego

from vlm_core.data.web import rights
from vlm_core.data.web.address import FetchFailed, Target
from vlm_core.data.web.politeness import Later
from vlm_core.data.web.rights import ALLOWED, Rights, TdmRules

if TYPE_CHECKING:
    from vlm_core.data.fetch.fetch import Fetcher

TDMREP, AI_TXT = "/.well-known/tdmrep.json", "/ai.txt"
KEPT_S, KEPT_SILENCE_S = 24 * 3600.0, 60.0
_UNREADABLE = {"deadline", "http_5xx", "redirect_loop", "decode_error"}  # of robots.txt: a refusal for now
_NONE = {"ssrf_blocked", "scheme_blocked"}  # it lies where nobody may look: as good as no robots.txt


class _Rules(NamedTuple):
    texts: dict[str, str]  # robots, tdm, ai; unreachable: why robots.txt could not be read
    robots: Protego
    ai: Protego
    tdm: TdmRules
    until: float  # ask again then


class Origins:
    """Decides by the files of an origin whether a picture may be asked for. Shared by all threads of a process.

    Args:
        fetcher: the client, which asks for the files under the same guard and politeness.
        memory: folder of remembered files, shared with other processes; None: this process alone.
    """

    def __init__(self, fetcher: "Fetcher", memory: Path | None) -> None:
        self.fetcher, self.memory = fetcher, memory
        self._known: dict[str, _Rules] = {}
        self._locks: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    def decide(self, target: Target) -> tuple[Rights, bool]:
        """(the decision, whether it is one for now). Raises FetchFailed when its host cannot be reached at all, Later when it has no turn."""
        network, binds = self.fetcher.network, self.fetcher.network.optouts
        rules = self._rules(target)
        if rules.texts["unreachable"]:
            said = f"{target.origin}/robots.txt: {rules.texts['unreachable']}, which counts as a refusal for now"
            return Rights(False, "robots.txt", said), True
        decision = rights.robots_decision(rules.robots, target.url, network.agent, rules.texts["robots"]) if binds.robots_txt else ALLOWED
        if decision.allowed and rules.texts["ai"]:
            decision = rights.ai_txt_decision(rules.ai, target.url, network.agent, rules.texts["ai"])
        if decision.allowed and rules.tdm:
            decision = rights.tdmrep_decision(rules.tdm, urlsplit(target.url).path)
        return decision, False

    def _rules(self, target: Target) -> _Rules:
        with self._lock:
            lock = self._locks.setdefault(target.origin, threading.Lock())
        # The files of an origin may take long to come: whoever wants another one of it now gives its thread to other origins and comes later.
        if not lock.acquire(timeout=min(self.fetcher.patience_s, threading.TIMEOUT_MAX)):
            raise Later(target.origin)
        try:
            known = self._known.get(target.origin)
            if known is None or known.until < time.monotonic():
                texts = self._remembered(target)
                robots = rights.read_robots(texts["robots"])
                delay = robots.crawl_delay(self.fetcher.network.agent)
                if delay:
                    self.fetcher.politeness.crawl_delay(target.host, float(delay))
                until = time.monotonic() + (KEPT_SILENCE_S if texts["unreachable"] else KEPT_S)
                self._known[target.origin] = _Rules(texts, robots, rights.read_robots(texts["ai"]), rights.read_tdmrep(texts["tdm"]), until)
            return self._known[target.origin]
        finally:
            lock.release()

    def _remembered(self, target: Target) -> dict[str, str]:
        file = self.memory / f"{hashlib.sha256(target.origin.encode()).hexdigest()[:32]}.json" if self.memory else None
        if file is not None and file.exists() and time.time() - file.stat().st_mtime < KEPT_S:
            texts: dict[str, str] = json.loads(file.read_text())
            return texts
        texts = self._ask(target)
        if file is not None and not texts["unreachable"]:
            part = file.with_name(f"{file.name}.{threading.get_ident()}.part")
            part.write_text(json.dumps({"origin": target.origin, **texts}))
            part.rename(file)
        return texts

    def _ask(self, target: Target) -> dict[str, str]:
        """4xx allows everything; 5xx and silence forbid everything for now (RFC 9309 2.3.1). The other two files are voluntary."""
        binds, texts = self.fetcher.network.optouts, {"robots": "", "tdm": "", "ai": "", "unreachable": ""}
        if binds.robots_txt:
            try:
                status, texts["robots"] = self._get(target, "/robots.txt")
                if status >= 500 or status == 429:
                    texts["unreachable"] = f"HTTP {status}"
            except FetchFailed as failed:
                if failed.status in _UNREADABLE:
                    texts["unreachable"] = failed.detail
                elif failed.status not in _NONE:
                    raise
        for name, path, wanted in (("tdm", TDMREP, binds.tdmrep), ("ai", AI_TXT, binds.ai_txt)):
            if wanted and not texts["unreachable"]:
                try:
                    texts[name] = self._get(target, path)[1]
                except FetchFailed:
                    texts[name] = ""
        return texts

    def _get(self, target: Target, path: str) -> tuple[int, str]:
        fetcher = self.fetcher
        with fetcher.politeness.turn(target.host, fetcher.patience_s):
            try:
                found = fetcher.get_text(target, path)
            except FetchFailed as failed:
                fetcher.politeness.failed(target.host, failed)
                raise
        fetcher.politeness.settled(target.host)
        return found
