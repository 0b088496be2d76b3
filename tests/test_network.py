"""The guard that keeps tests on this machine."""

import socket
import threading
import urllib.request

import pytest

from tests.network import NetworkBlocked


@pytest.mark.parametrize("address", ["192.0.2.1", "10.1.2.3", "169.254.169.254", "2001:db8::1"])
def test_an_address_beyond_loopback_is_never_called(address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(family, kind) as one, pytest.raises(NetworkBlocked, match=f"Found a call to '{address}' in a test, expected loopback"):
            one.connect((address, 80))


def test_a_foreign_name_is_never_looked_up() -> None:
    for look_up in (
        lambda: socket.getaddrinfo("example.org", 80),
        lambda: socket.gethostbyname("example.org"),
        lambda: socket.create_connection(("a.example", 80)),
    ):
        with pytest.raises(NetworkBlocked, match="in a test, expected loopback"):
            look_up()
    with pytest.raises(OSError, match="expected loopback"):
        urllib.request.urlopen("http://example.org/", timeout=1)


def test_loopback_is_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=lambda: server.accept()[0].sendall(b"here"), daemon=True).start()
        with socket.create_connection(("localhost", server.getsockname()[1]), timeout=5) as one:
            assert one.recv(4) == b"here"
