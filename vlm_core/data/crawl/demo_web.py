"""The demo web on loopback: one port, several named hosts, threads, keep-alive.

    with serve(Path("infra/demo/corpus.tar")) as hosts:   # {"emoji.demo.test": "127.0.0.1:40123", ...}
        ...                                               # addresses stay http://emoji.demo.test/..., whatever the port

A client reaches a host through the allow-list (connect to 127.0.0.1:PORT and send `Host: emoji.demo.test`), or uses the
port as an HTTP proxy for these hosts (`GET http://emoji.demo.test/ HTTP/1.1`). For people: `python -m vlm_core.data.crawl.demo_web`.
"""

import argparse
import contextlib
import io
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

from vlm_core.data.crawl.corpus import Corpus
from vlm_core.data.crawl.demo_site import FORBIDDEN, HOSTS, START_URLS, Reply, Site, build_site
from vlm_core.errors import ServiceError

__all__ = ["CORPUS", "HOSTS", "START_URLS", "serve", "write_warc"]
CORPUS = Path("infra/demo/corpus.tar")
FIXED_DATE = "2020-01-01T00:00:00Z"  # of every WARC record, so that the file is reproducible
LONGEST_ENDLESS = 1 << 30  # bytes after which even the endless picture ends


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "demo", ""
    disable_nagle_algorithm = True
    wbufsize = -1  # headers and body leave in one packet
    timeout = 30

    def __init__(self, site: Site, corpus: Corpus, *args: object) -> None:
        self.site, self.corpus = site, corpus
        super().__init__(*args)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._answer()

    do_HEAD = do_GET

    def _answer(self) -> None:
        target = urlsplit(self.path)
        host = (target.netloc or self.headers.get("Host", "")).partition(":")[0].lower()
        reply = self.site.get(host, {}).get(target.path or "/", Reply(404, {"Content-Type": "text/html"}, b"<title>not found</title>"))
        time.sleep(reply.delay_s)
        if reply.endless:
            self._pour()
            return
        body = self.corpus.read(reply.member) if reply.member else reply.body
        if target.path.startswith("/t/") and reply.member:
            body = _thumbnail(body)
        self.send_response(reply.status)
        for name, value in {**reply.headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _pour(self) -> None:
        """A picture that never ends; only a client with a limit of its own gets away."""
        self.send_response(200)
        self.send_header("Content-Type", "image/jpeg")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        self.wfile.write(b"\xff\xd8\xff\xe0\0\x10JFIF\0")
        for _ in range(LONGEST_ENDLESS >> 16 if self.command != "HEAD" else 0):
            self.wfile.write(bytes(1 << 16))

    def date_time_string(self, timestamp: float | None = None) -> str:
        return "Wed, 01 Jan 2020 00:00:00 GMT"

    def log_message(self, format: str, *args: object) -> None:
        pass


def _thumbnail(picture: bytes) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    with Image.open(io.BytesIO(picture)) as image:
        image.resize((max(1, image.width // 2), max(1, image.height // 2))).save(out, "JPEG", quality=70)
    return out.getvalue()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a client that goes away is no news


@contextlib.contextmanager
def serve(corpus_path: Path = CORPUS, port: int = 0) -> Iterator[dict[str, str]]:
    """Serve until the block ends; yields the allow-list host -> "127.0.0.1:port".

    Raises MissingInput or BadManifest for the corpus, ServiceError for a busy port.
    """
    with Corpus(corpus_path) as corpus:
        try:
            server = _Server(("127.0.0.1", port), partial(_Handler, build_site(corpus), corpus))
        except OSError as error:
            raise ServiceError(f"Found port {port} busy on 127.0.0.1 ({error.strerror}), expected a free one; give another, or 0 for any.") from None
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, name="demo-web", daemon=True)
        thread.start()
        try:
            yield {host: f"127.0.0.1:{server.server_address[1]}" for host in HOSTS}
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


def write_warc(path: Path, corpus_path: Path = CORPUS) -> int:
    """Write every HTML page of the demo web that robots.txt allows as a WARC response record (gzip if the name ends in .gz); returns how many."""
    from warcio.statusandheaders import StatusAndHeaders
    from warcio.warcwriter import WARCWriter

    count = 0
    with Corpus(corpus_path) as corpus, path.open("wb") as stream:
        writer = WARCWriter(stream, gzip=path.suffix == ".gz", warc_version="WARC/1.1")
        for host, replies in sorted(build_site(corpus).items()):
            for place, reply in sorted(replies.items()):
                is_page = reply.status == 200 and reply.headers.get("Content-Type", "").startswith("text/html") and not place.startswith("/odd/")
                if not is_page or place.startswith(FORBIDDEN.get(host, "\n")):
                    continue
                headers = StatusAndHeaders("200 OK", [*reply.headers.items(), ("Content-Length", str(len(reply.body)))], protocol="HTTP/1.1")
                identity = {"WARC-Date": FIXED_DATE, "WARC-Record-ID": f"<urn:vlm-demo:{count:06d}>"}
                record = writer.create_warc_record(
                    f"http://{host}{place}", "response", io.BytesIO(reply.body), http_headers=headers, warc_headers_dict=identity
                )
                writer.write_record(record)
                count += 1
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve the embedded corpus as a small web on loopback.")
    parser.add_argument("--corpus", type=Path, default=CORPUS)
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--warc", type=Path, help="write the pages as a WARC and stop")
    args = parser.parse_args()
    if args.warc:
        print(f"{write_warc(args.warc, args.corpus)} pages in {args.warc}")
        return
    with serve(args.corpus, args.port) as hosts:
        print("\n".join(f"http://{host}/  through the proxy http://{address}" for host, address in hosts.items()), flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
