"""What a site says about the use of its pages and pictures: pure decisions with their evidence. Deny if any channel denies.

Sources: RFC 9309 (robots.txt), X-Robots-Tag and <meta name=robots>, TDM Reservation Protocol, Spawning's ai.txt; `methods/data.md` 14.
"""

import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Literal, NamedTuple
from urllib.parse import unquote, urlsplit

from protego import Protego

from vlm_core.data.crawl.config import OptOuts

DISALLOWED = tuple(OptOuts().directives)
VALUED = frozenset({"max-snippet", "max-image-preview", "max-video-preview", "unavailable_after"})
ROBOTS_BYTES = 500 * 1024


class Rights(NamedTuple):
    """May it be used; which channel denies; what was said, also when it is allowed or when the channel does not bind."""

    allowed: bool
    rule: str = ""
    evidence: str = ""


ALLOWED = Rights(True)


def read_robots(text: str) -> Protego:
    text = text.removeprefix("\ufeff")  # Protego takes a byte order mark for a part of the first word
    return Protego.parse(text if len(text) <= ROBOTS_BYTES else text[:ROBOTS_BYTES].rpartition("\n")[0])


def robots_decision(robots: Protego, url: str, agent: str, text: str = "") -> Rights:
    """The group of our product token, else '*'; longest match wins, Allow wins ties. With the file's text, the evidence names the rule."""
    if robots.can_fetch(url, agent):
        return ALLOWED
    rule = _deciding_rule(text, url, agent)
    return Rights(False, "robots.txt", f"robots.txt disallows {url} for {agent}" + (f" ({rule})" if rule else ""))


def ai_txt_decision(rules: Protego, url: str, agent: str, text: str = "") -> Rights:
    """ai.txt is written as robots.txt is, about file types: `Disallow: *.jpg`; the longest match wins here too."""
    if rules.can_fetch(url, agent):
        return ALLOWED
    return Rights(False, "ai.txt", f"ai.txt disallows {url} ({_deciding_rule(text, url, agent) or 'for all'})")


def _deciding_rule(text: str, url: str, agent: str) -> str:
    """The longest Disallow line of our group that matches; '' when none can be told."""
    groups: dict[str, list[str]] = {}
    names: list[str] = []
    open_group = False
    for line in text[:ROBOTS_BYTES].splitlines():
        field, _, value = (part.strip() for part in line.partition("#")[0].partition(":"))
        if field.lower() == "user-agent":
            names = [*names, value.lower()] if open_group else [value.lower()]
            open_group = True
        elif field.lower() in {"disallow", "allow"}:
            open_group = False
            for name in names if field.lower() == "disallow" and value else ():
                groups.setdefault(name, []).append(value)
    lines, parts = groups.get(agent.lower()) or groups.get("*", []), urlsplit(url)
    asked = unquote((parts.path or "/") + (f"?{parts.query}" if parts.query else ""))
    return next((f"Disallow: {line}" for line in sorted(lines, key=len, reverse=True) if matches(unquote(line), asked)), "")


def matches(pattern: str, path: str) -> bool:
    """Whether a pattern of robots.txt or tdmrep.json fits: '*' stands for anything, '$' ends the path, and without it the rest is free.

    Every piece between two '*' is taken where it comes first, which loses no match, so that no pattern of a stranger makes this slow.
    """
    pieces, is_whole = pattern.removesuffix("$").split("*"), pattern.endswith("$")
    if len(pieces) == 1:
        return path == pieces[0] if is_whole else path.startswith(pieces[0])
    first, *middle, last = pieces
    if not path.startswith(first):
        return False
    at = len(first)
    for piece in middle:
        found = path.find(piece, at)
        if found < 0:
            return False
        at = found + len(piece)
    return path.endswith(last) and len(path) - len(last) >= at if is_whole else path.find(last, at) >= 0


def xrobots_denied(values: Sequence[str], agents: Sequence[str], disallowed: Iterable[str] = DISALLOWED, mode: Literal["fixed", "reference"] = "fixed") -> bool:
    """Whether X-Robots-Tag headers (one string each) forbid the use of a picture.

    Args:
        values: header values; each may begin with `agent:` and holds directives between commas.
        agents: our product tokens; directives for other agents do not concern us.
        disallowed: directives that deny.
        mode: `reference` repeats img2dataset 1.47, which takes everything before the first colon for an agent, so that
            `noarchive, noai, max-snippet:-1` passes; `fixed` denies everything that it denies, and those.

    Checked by golden `data/xrobots_img2dataset`.
    """
    words, ours = {word.lower() for word in disallowed}, {agent.lower() for agent in agents}
    if any(_reference(value, words, ours) for value in values):
        return True
    return mode == "fixed" and any(_fixed(value, words, ours) for value in values)


def _reference(value: str, words: set[str], ours: set[str]) -> bool:
    agent, colon, rest = value.partition(":")
    if colon and agent.lower() not in ours:
        return False
    return any(part.strip().lower() in words for part in (rest if colon else value).split(","))


def _fixed(value: str, words: set[str], ours: set[str]) -> bool:
    mine = True
    for part in value.split(","):
        name, colon, rest = (text.strip().lower() for text in part.partition(":"))
        directive = name
        if colon and name not in VALUED:
            mine, directive = name in ours or name == "*", rest
        if mine and (directive in words or (colon and name == "unavailable_after" and _past(rest))):
            return True
    return False


def _past(text: str) -> bool:
    try:
        when = parsedate_to_datetime(text)
    except (ValueError, IndexError):
        try:
            when = datetime.fromisoformat(text)
        except ValueError:
            return False
    return (when if when.tzinfo else when.replace(tzinfo=UTC)) < datetime.now(UTC)


def headers_decision(xrobots: Sequence[str], tdm_reservation: Sequence[str], agent: str, optouts: OptOuts | None = None) -> Rights:
    """What the headers of a reply say about its use. What does not bind, or does not deny, stays as evidence."""
    binds = optouts or OptOuts()
    said = " | ".join([*(f"X-Robots-Tag: {value}" for value in xrobots if value), *(f"TDM-Reservation: {value}" for value in tdm_reservation)])
    if binds.x_robots_tag and xrobots_denied(xrobots, [agent], binds.directives):
        return Rights(False, "x-robots-tag", said)
    if binds.tdm_header and any(value.strip() == "1" for value in tdm_reservation):
        return Rights(False, "tdm-reservation", said)
    return Rights(True, "", said)


def meta_decision(metas: Iterable[tuple[str, str]], agent: str, directives: Iterable[str] = DISALLOWED) -> Rights:
    """What `<meta name=... content=...>` of a page says about its pictures: robots, our product token, tdm-reservation."""
    for name, content in metas:
        channel = name.strip().lower()
        if channel in {"robots", agent.lower()} and xrobots_denied([content], [agent], directives):
            return Rights(False, "meta-robots", f'<meta name="{channel}" content="{content}">')
        if channel == "tdm-reservation" and content.strip() == "1":
            return Rights(False, "tdm-reservation", '<meta name="tdm-reservation" content="1">')
    return ALLOWED


TdmRules = list[tuple[str, bool]]


def read_tdmrep(text: str) -> TdmRules:
    """(location pattern, reserved) of a /.well-known/tdmrep.json; anything that is not such a file reserves nothing."""
    try:
        rows = json.loads(text) if text.strip() else []
    except ValueError:
        return []
    found = (
        [(str(row.get("location", "/")), str(row.get("tdm-reservation", 0)) == "1") for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    )
    return sorted(found, key=lambda row: -len(row[0]))


def tdmrep_decision(rules: TdmRules, path: str) -> Rights:
    """The longest matching location decides; '*' stands for anything and '$' ends the path, as in robots.txt."""
    for location, reserved in rules:
        if matches(location, path or "/"):
            return Rights(False, "tdm-reservation", f"tdmrep.json reserves {location}") if reserved else ALLOWED
    return ALLOWED
