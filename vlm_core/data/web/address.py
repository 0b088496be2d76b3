"""Which addresses may be visited: one guard for the crawler and for the picture fetcher.

http and https only, no credentials, listed ports, and every resolved address global unicast; the address that was checked is the one to connect to.
A host named in the explicit allow-list (`hosts: {"demo.test": "127.0.0.1:8000"}`) is reached at that address and nowhere else.
"""

import concurrent.futures
import ipaddress
import re
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from vlm_core.data.sample import Status, canonical_url
from vlm_core.errors import ConfigError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
PORTS = {"http": 80, "https": 443}
_NOT_GLOBAL = tuple(
    ipaddress.ip_network(net) for net in ("64:ff9b:1::/48", "3fff::/20", "5f00::/16", "fec0::/10", "192.88.99.0/24")
)  # newer than Python 3.11's list
_NAT64, _COMPATIBLE = ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("::/96")
_IPV4 = re.compile(r"[0-9a-fx]+(\.[0-9a-fx]*){0,3}")
_HOST = re.compile(r"[a-z0-9_]([a-z0-9_.-]{0,252}[a-z0-9_])?")


class FetchFailed(Exception):  # one sample's fate, not the run's
    """How the fetching of one address ended, in a word of the closed list."""

    def __init__(self, status: Status, detail: str, http_status: int = 0) -> None:
        super().__init__(detail)
        self.status, self.detail, self.http_status = status, detail, http_status


class Target(NamedTuple):
    """An address that may be visited: connect to `address`:`port`, ask for `path` of `host`."""

    url: str
    scheme: str
    host: str
    url_port: int
    path: str
    address: str
    port: int
    pinned: bool  # by the allow-list

    @property
    def origin(self) -> str:
        return f"{self.scheme}://{self.netloc}"

    @property
    def netloc(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.url_port == PORTS[self.scheme] else f"{host}:{self.url_port}"


def is_public(address: Address) -> bool:
    """Global unicast, also after unwrapping IPv4-mapped, IPv4-compatible, 6to4, Teredo and NAT64 forms."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
        if address in _NAT64 or address in _COMPATIBLE:
            inner.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        wrapped = [found for found in inner if found is not None]
        if wrapped:
            return all(is_public(found) for found in wrapped)
    outside = address.is_multicast or address.is_reserved or address.is_unspecified or address.is_loopback or address.is_link_local
    return address.is_global and not outside and not any(address.version == net.version and address in net for net in _NOT_GLOBAL)


def literal(host: str) -> Address | None:
    """The address that a host name spells, in any of the forms that C libraries understand (decimal, octal, hex, short), or None for a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        pass
    if _IPV4.fullmatch(host):
        try:
            return ipaddress.IPv4Address(socket.inet_aton(host))
        except OSError:
            return None
    return None


def canonical_host(host: str) -> str:
    """Percent-decoded, IDNA, lower case, without a trailing dot; numeric hosts in their plain form. Raises FetchFailed."""
    text = unquote(host).strip().rstrip(".").lower()
    try:
        text = text if ":" in text else text.encode("idna").decode().lower()
    except UnicodeError:
        raise FetchFailed("ssrf_blocked", f"the host {host!r} is not a valid name") from None
    address = literal(text)
    if address is not None:
        return str(address)
    if not _HOST.fullmatch(text):
        raise FetchFailed("ssrf_blocked", f"the host {host!r} is not a valid name")
    return text


Resolver = Callable[[str, float], list[str]]
KEEP_S, KEEP_SILENCE_S = 300.0, 30.0  # an answer of the name servers, also "no such name"; their silence


def resolve_names() -> Resolver:
    """A resolver with a time limit, at most 16 questions at once, and a cache for this process."""
    pool = concurrent.futures.ThreadPoolExecutor(16, thread_name_prefix="dns")
    cache: dict[str, tuple[float, list[str] | FetchFailed]] = {}
    lock = threading.Lock()

    def resolve(host: str, timeout_s: float) -> list[str]:
        with lock:
            until, known = cache.get(host, (0.0, []))
        if until < time.monotonic():
            known = _look_up(pool, host, timeout_s)
            with lock:
                silent = isinstance(known, FetchFailed) and known.status == "dns_timeout"
                cache[host] = (time.monotonic() + (KEEP_SILENCE_S if silent else KEEP_S), known)
        if isinstance(known, FetchFailed):
            raise FetchFailed(known.status, known.detail)
        return known

    return resolve


def _look_up(pool: concurrent.futures.ThreadPoolExecutor, host: str, timeout_s: float) -> list[str] | FetchFailed:
    try:
        rows = pool.submit(socket.getaddrinfo, host, None, 0, socket.SOCK_STREAM).result(timeout_s)
    except concurrent.futures.TimeoutError:
        return FetchFailed("dns_timeout", f"no answer for {host} in {timeout_s:g} s")
    except socket.gaierror as error:
        if error.errno == socket.EAI_AGAIN:
            return FetchFailed("dns_timeout", f"no name server answered for {host}")
        return FetchFailed("dns_nxdomain", f"no address for {host}")
    except (OSError, UnicodeError):
        return FetchFailed("dns_nxdomain", f"no address for {host}")
    return list(dict.fromkeys(str(row[4][0]) for row in rows))


class Guard:
    """Decides about every URL before a connection is made, on every hop.

    Args:
        hosts: names that may be reached at a private address: {name: "address:port"}; empty in production.
        ports: ports that a URL may name.
        resolve: name, seconds -> addresses.
    """

    def __init__(self, hosts: Mapping[str, str], ports: Sequence[int], resolve: Resolver | None = None) -> None:
        self.hosts = {canonical_host(name): _pin(name, place) for name, place in hosts.items()}
        self.ports, self.resolve = frozenset(ports), resolve or resolve_names()

    def parse(self, url: str) -> Target:
        """The URL's parts if it may be visited; `address` is "" for a name that must still be resolved. Raises FetchFailed."""
        scheme = url.strip().partition(":")[0].lower()
        if scheme not in PORTS:
            raise FetchFailed("scheme_blocked", f"scheme {scheme[:20]!r} is neither http nor https")
        try:
            parts, given = urlsplit(url.strip()), urlsplit(canonical_url(url))
            url_port = parts.port or PORTS[scheme]
        except ValueError as error:
            raise FetchFailed("ssrf_blocked", f"not a valid address ({error})") from None
        if parts.username is not None or parts.password is not None:
            raise FetchFailed("ssrf_blocked", "credentials in the address")
        if not parts.hostname:
            raise FetchFailed("ssrf_blocked", "no host in the address")
        host = canonical_host(parts.hostname)
        pin = self.hosts.get(host)
        if url_port not in self.ports and not (pin and url_port == pin[1]):
            raise FetchFailed("ssrf_blocked", f"port {url_port} is not in the list")
        path = given.path + (f"?{given.query}" if given.query else "")
        netloc = (f"[{host}]" if ":" in host else host) + ("" if url_port == PORTS[scheme] else f":{url_port}")
        clean = f"{scheme}://{netloc}{path}"
        if pin:
            return Target(clean, scheme, host, url_port, path, pin[0], pin[1], True)
        spelt = literal(host)
        if spelt is not None and not is_public(spelt):
            raise FetchFailed("ssrf_blocked", f"{spelt} is not a public address")
        return Target(clean, scheme, host, url_port, path, "" if spelt is None else str(spelt), url_port, False)

    def check(self, url: str, timeout_s: float = 5.0) -> Target:
        """Where to connect for this URL. Raises FetchFailed when any of the host's addresses is not public."""
        target = self.parse(url)
        if target.address:
            return target
        addresses = self.resolve(target.host, timeout_s)
        for address in addresses:
            if not is_public(ipaddress.ip_address(address.partition("%")[0])):
                raise FetchFailed("ssrf_blocked", f"{target.host} resolves to {address}, which is not a public address")
        if not addresses:
            raise FetchFailed("dns_nxdomain", f"no address for {target.host}")
        return target._replace(address=addresses[0])


def _pin(name: str, place: str) -> tuple[str, int]:
    address, _, port = place.rpartition(":")
    try:
        return str(ipaddress.ip_address(address.strip("[]"))), int(port)
    except ValueError:
        raise ConfigError(f"Found {place!r} for the allowed host {name!r}, expected ADDRESS:PORT; write for instance 127.0.0.1:8000.") from None
