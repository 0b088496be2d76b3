"""A name that points to a public server first and to a private one the second time: real sockets on two addresses of this machine."""

import ipaddress
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.data.loopback import QUICK, png
from vlm_core.data.crawl.config import Network
from vlm_core.data.fetch.fetch import Fetcher
from vlm_core.data.web import address

PUBLIC, PRIVATE = "127.0.0.2", "127.0.0.1"


@pytest.fixture(autouse=True)
def one_public_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no public address on this machine, so one of its own stands for them; all others are judged as always."""
    judged = address.is_public
    monkeypatch.setattr(address, "is_public", lambda found: found == ipaddress.ip_address(PUBLIC) or judged(found))


@contextmanager
def server(place: str, port: int, asked: list[str], redirect: str = "") -> Iterator[int]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(f"{place}{self.path}")
            moved = bool(redirect) and self.path == "/first.png"
            missing = self.path == "/robots.txt"
            self.send_response(302 if moved else 404 if missing else 200)
            if moved:
                self.send_header("Location", redirect)
            body = b"" if moved or missing else png()
            self.send_header("Content-Type", "image/png")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None: ...

    made = ThreadingHTTPServer((place, port), Handler)
    threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield made.server_address[1]
    finally:
        made.shutdown()
        made.server_close()


def fetcher(port: int) -> Fetcher:
    return Fetcher(Network(ports=[port], rate_per_s=1000.0, optouts={"tdmrep": False, "ai_txt": False}), QUICK)


def answers(monkeypatch: pytest.MonkeyPatch, *turns: str) -> list[str]:
    """The operating system's resolver gives these addresses, one after the other, then the last for ever."""
    given, real = list[str](), socket.getaddrinfo

    def resolve(host: str, *more: object, **named: object) -> object:
        if host != "rebind.test":
            return real(host, *more, **named)  # type: ignore[arg-type]
        given.append(turns[min(len(given), len(turns) - 1)])
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (given[-1], 0))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return given


@pytest.mark.abuse("A1")
@pytest.mark.fault("F12")
def test_a_name_that_turns_private_between_two_questions_is_refused_and_never_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address, "KEEP_S", 0.0)  # every look-up asks again, as after five minutes
    asked: list[str] = []
    with server(PUBLIC, 0, asked, redirect="/second.png") as port, server(PRIVATE, port, asked):
        given = answers(monkeypatch, PUBLIC, PRIVATE)
        fetched = fetcher(port).fetch(f"http://rebind.test:{port}/first.png", lambda _: None)
    assert given[:2] == [PUBLIC, PRIVATE]
    assert fetched.status == "ssrf_blocked"
    assert "rebind.test resolves to 127.0.0.1, which is not a public address" in fetched.detail
    assert f"{PUBLIC}/first.png" in asked
    assert not [place for place in asked if place.startswith(PRIVATE)]


@pytest.mark.abuse("A1")
def test_the_address_that_was_checked_is_the_one_that_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, kept = list[str](), list[int]()
    with server(PUBLIC, 0, asked, redirect="/second.png") as port, server(PRIVATE, port, asked):
        given = answers(monkeypatch, PUBLIC, PRIVATE)
        fetched = fetcher(port).fetch(f"http://rebind.test:{port}/first.png", lambda data: kept.append(len(data)))
    assert (fetched.status, len(kept)) == ("ok", 1)
    assert given == [PUBLIC]  # looked up once for robots.txt, picture and redirect: nothing between check and connection can change it
    assert {place.split("/")[0] for place in asked} == {PUBLIC}


@pytest.mark.abuse("A1")
def test_one_private_address_among_public_ones_is_enough_to_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    with server(PUBLIC, 0, asked) as port, server(PRIVATE, port, asked):
        both = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (place, 0)) for place in (PUBLIC, PRIVATE)]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: both)
        fetched = fetcher(port).fetch(f"http://rebind.test:{port}/x.png", lambda _: None)
    assert fetched.status == "ssrf_blocked"
    assert asked == []
