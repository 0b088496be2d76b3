"""A small web on loopback for the tests of crawling and downloading: routes are functions, and every request is remembered."""

import contextlib
import io
import socket
import ssl
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from vlm_core.data.crawl.config import Fetch, Network

Answer = Callable[[BaseHTTPRequestHandler], None]


def body(data: bytes, kind: str = "image/png", status: int = 200, **headers: str) -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **{k.replace("_", "-"): v for k, v in headers.items()}}.items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(b"" if request.command == "HEAD" else data)

    return answer


def moved(where: str) -> Answer:
    return body(b"", status=302, Location=where)


def png(width: int = 48, height: int = 40, seed: int = 0, mode: str = "RGB") -> bytes:
    channels = {"L": 1, "RGB": 3, "RGBA": 4}[mode]
    values = np.random.default_rng(seed).integers(0, 256, (height // 8 + 1, width // 8 + 1, channels), dtype=np.uint8)
    picture = Image.fromarray(values.squeeze(), mode).resize((width, height))
    return encoded(picture, "PNG")


def encoded(picture: Image.Image, form: str, **options: object) -> bytes:
    out = io.BytesIO()
    picture.save(out, form, **options)
    return out.getvalue()


def bomb(side: int) -> bytes:
    """A PNG of side x side black pixels in a few kilobytes."""
    packer, row = zlib.compressobj(9), bytes(side + 1)
    data = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    parts = [(b"IHDR", struct.pack(">2I5B", side, side, 8, 0, 0, 0, 0)), (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(struct.pack(">I", len(b)) + n + b + struct.pack(">I", zlib.crc32(n + b)) for n, b in parts)


class Web:
    """`routes`: path -> answer, the same for every host; `asked`: (host, path) of every GET, `heads`: path of every HEAD, `agents`: their User-Agents."""

    def __init__(self, routes: dict[str, Answer]) -> None:
        self.routes, self.asked, self.heads, self.agents, self.address = routes, [], [], set(), ""  # type: ignore[var-annotated]

    def count(self, path: str) -> int:
        return sum(asked == path for _, asked in self.asked)

    def network(self, *names: str, **more: object) -> Network:
        settings = {"rate_per_s": 5000.0, "burst": 100, "connections_per_host": 8, "optouts": {"tdmrep": False, "ai_txt": False}, "contact": "mailto:t@example.org", **more}
        return Network(hosts=dict.fromkeys(names or ("a.test",), self.address), **settings)


@contextlib.contextmanager
def web(routes: dict[str, Answer]) -> Iterator[Web]:
    made = Web(routes)

    class Handler(BaseHTTPRequestHandler):
        protocol_version, disable_nagle_algorithm, wbufsize, timeout = "HTTP/1.1", True, -1, 20

        def do_GET(self) -> None:
            target = urlsplit(self.path)
            path = target.path + (f"?{target.query}" if target.query else "")
            made.asked.append((target.netloc or self.headers.get("Host", ""), path))
            made.agents.add(self.headers.get("User-Agent"))
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                made.routes.get(path, body(b"gone", "text/plain", 404))(self)

        def do_HEAD(self) -> None:
            made.heads.append(self.path)
            made.routes.get(self.path, body(b"gone", "text/plain", 404))(self)

        def log_message(self, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads, block_on_close, request_queue_size = True, False, 256

        def handle_error(self, *args: object) -> None:
            pass

    server = Server(("127.0.0.1", 0), Handler)
    made.address = f"127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def tls_front(address: str, context: ssl.SSLContext) -> Iterator[str]:
    """The same web by https: each connection is passed on to the server at `address`."""
    host, _, port = address.partition(":")
    listener = socket.create_server(("127.0.0.1", 0))

    def pump(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                client = context.wrap_socket(listener.accept()[0], server_side=True)
                server = socket.create_connection((host, int(port)))
                for pair in ((client, server), (server, client)):
                    threading.Thread(target=pump, args=pair, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.close()


QUICK = Fetch(retries=0, deadline_s=10.0)
