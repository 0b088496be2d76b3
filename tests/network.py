"""No test of this process reaches beyond loopback: a foreign name is not looked up, a foreign address is not called (HOUSE 10).

An audit hook sees every way into the C library's sockets, also those of libraries; what it raises is an OSError, as without a network. Once set it stays.
"""

import ipaddress
import socket
import sys
from typing import Any


class NetworkBlocked(socket.gaierror):
    """A test tried to leave this machine."""


def block() -> None:
    own = {"", "localhost", "localhost.localdomain", socket.gethostname(), socket.getfqdn()}
    addresses = {str(found[4][0]) for found in _own_addresses()}

    def guard(event: str, args: tuple[Any, ...]) -> None:
        if event in {"socket.getaddrinfo", "socket.gethostbyname"}:
            _refuse_unless(_is_here(args[0], own, addresses) or _is_address(args[0]), args[0])
        elif event in {"socket.connect", "socket.sendto", "socket.sendmsg"} and isinstance(args[1], tuple):
            _refuse_unless(_is_here(args[1][0], own, addresses), args[1][0])

    sys.addaudithook(guard)


def _own_addresses() -> list[Any]:
    try:
        return list(socket.getaddrinfo(socket.gethostname(), None))
    except OSError:
        return []


def _refuse_unless(allowed: bool, place: Any) -> None:
    if not allowed:
        raise NetworkBlocked(socket.EAI_NONAME, f"Found a call to {place!r} in a test, expected loopback; serve what the test needs on 127.0.0.1.")


def _is_here(host: Any, names: set[str], addresses: set[str]) -> bool:
    text = host.decode() if isinstance(host, bytes) else host
    if text is None or text in names or text in addresses or text.endswith(".localhost"):
        return True
    return _is_address(text) and _is_local(ipaddress.ip_address(text.partition("%")[0]))


def _is_local(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    return (
        address.is_loopback
        or address.is_unspecified
        or bool(isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped and address.ipv4_mapped.is_loopback)
    )


def _is_address(host: Any) -> bool:
    """Numbers need no look-up."""
    try:
        ipaddress.ip_address((host.decode() if isinstance(host, bytes) else str(host)).partition("%")[0])
    except ValueError:
        return False
    return True
