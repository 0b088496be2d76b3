"""Is it the web that fails, or our own way to it? A run that goes on without name servers or a network would write off every address."""

from collections import Counter, deque

WINDOW, ENOUGH, SHARE, DOMAINS = 50, 20, 0.9, 5
OURS: frozenset[str] = frozenset({"dns_timeout", "connect_timeout"})
NO_ROUTE = "no route to the network"  # detail of a connect_refused that is not the host's doing


def of_our_side(status: str, detail: str) -> bool:
    """A failure that a broken resolver, route or firewall on our side gives to every address alike."""
    return status in OURS or (status == "connect_refused" and detail == NO_ROUTE)


class Outage:
    """Watches the last answers of a process. Not thread-safe by need: one answer more or less does not matter."""

    def __init__(self) -> None:
        self._last: deque[tuple[str, str]] = deque(maxlen=WINDOW)  # (domain, status or "" for an answer from outside)

    def sees(self, domain: str, status: str, detail: str) -> str:
        """What dominates, in words, once nearly all of the last answers over several domains are of our side; else ''."""
        self._last.append((domain, status if of_our_side(status, detail) else ""))
        last = list(self._last)
        ours = [(name, word) for name, word in last if word]
        if len(last) < ENOUGH or len(ours) < SHARE * len(last) or len({name for name, _ in ours}) < DOMAINS:
            return ""
        words = ", ".join(f"{word} {count}" for word, count in Counter(word for _, word in ours).most_common())
        return f"{words} among the last {len(last)} answers, over {len({name for name, _ in ours})} domains"


def our_fault(why: str) -> str:
    """The sentence with which a run ends."""
    return (
        f"Found our own network at fault ({why}), expected answers from the sites; what was fetched is kept: run the same command again "
        f"once name servers and network work (a proxy is not used)."
    )
