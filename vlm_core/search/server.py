"""`vlm serve`: read-only search over the filtered set, on loopback, with the request and reply of clip-retrieval's /knn-service.

    POST /knn-service    {"text": ..} | {"image": base64} | {"uid": ..} | {"embedding_input": [..]}, "modality": "image" | "text", "num_images": 40,
                         "lang": "en", "domain": "example.org", "split": "train" | "heldout" | "none", "snapshot": hash
    GET  /indices-list   /health   /thumbnail/<uid>.jpg
    GET  /?q=..&uid=..&lang=..   POST / (a form with a picture)   /why/<uid>      pages for people

`clip_retrieval.clip_client.ClipClient` works against it. Not offered, on purpose: fetching an `image_url`, reading a path, writing anything,
another address than 127.0.0.1, foreign Host headers, pages of another origin unless `--origin` names it (clip-retrieval's front does need that). Only samples that the filter kept and nobody took down can be answered.
"""

import argparse
import io
import json
import os
import re
import socket
import sys
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from vlm_core.data.lineage import lineage
from vlm_core.errors import ConfigError, MissingInput, VlmError
from vlm_core.search import page
from vlm_core.search.library import FILTERS, INDEX, LOOK_EVERY_S, BadRequest, Library
from vlm_core.stage import home

HOST = "127.0.0.1"
BODY_BYTES, QUIET_S, ON_A_PAGE = 16 * 2**20, 30.0, 48
ASKED = ("q", "uid", *FILTERS)
MENU = 50  # domains and snapshots that the page offers
UID = "[0-9a-f]{32}"
ORIGIN = r"https?://([a-z0-9.-]+|\[[0-9a-f:]+\])(:[0-9]{1,5})?"
Body = tuple[int, str, bytes]  # status, content type, bytes


class Handler(BaseHTTPRequestHandler):
    """One request. Every answer forbids scripts, frames and guessing of types."""

    library: Library
    origins: frozenset[str]  # pages of other origins that may ask and read the answer
    server: ThreadingHTTPServer
    protocol_version, timeout, server_version, sys_version = "HTTP/1.1", QUIET_S, "vlm-search", ""

    def do_GET(self) -> None:
        self._reply(self._get)

    def do_POST(self) -> None:
        self._reply(self._post)

    def do_OPTIONS(self) -> None:
        self._reply(self._preflight)

    def _preflight(self) -> Body:
        """A browser asks before a page of another origin may send JSON; what it may do stands in the headers."""
        if self._guest() is None:
            raise BadRequest("Found OPTIONS without the Origin of a page that may ask, expected GET or POST.", 403)
        return 200, "text/plain", b""

    def _get(self) -> Body:
        target, shelf = urlsplit(self.path), self.library.shelf
        match target.path:
            case "/health":
                scorer = shelf.embedded.scorer
                return _json({"status": "ok", "samples": int(shelf.alive.sum()), "taken_down": shelf.removed, "scorer": scorer.name, "version": scorer.version})
            case "/icon.svg":
                return 200, "image/svg+xml", page.ICON.encode()
            case "/indices-list":
                return _json([INDEX])
            case "/":
                return self._page(_asked(target.query))
        if name := re.fullmatch(rf"/thumbnail/({UID})\.jpg", target.path):
            if shelf.row(name[1]) is not None:
                return 200, "image/jpeg", shelf.pictures.read(name[1])
        elif name := re.fullmatch(rf"/why/({UID})", target.path):
            return self._why(name[1])
        raise BadRequest("Found no such page, expected /, /health, /indices-list, /thumbnail/UID.jpg, /why/UID or POST /knn-service.", 404)

    def _post(self) -> Body:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > BODY_BYTES:
            self.close_connection = True
            raise BadRequest(
                f"Found a body of {length or 'unknown'} bytes, expected at most {BODY_BYTES:,} and a Content-Length.", 413 if length.isdecimal() else 411
            )
        body = self.rfile.read(int(length))
        match urlsplit(self.path).path:
            case "/knn-service":
                return _json(self.library.answer(_question(body)))
            case "/":
                return self._page(*self._form(body))
        raise BadRequest("Found a POST to another address than /knn-service and /, expected one of them.", 404)

    def _form(self, body: bytes) -> tuple[dict[str, str], bytes]:
        """(filters, picture) of an uploaded form."""
        from werkzeug.exceptions import HTTPException
        from werkzeug.formparser import parse_form_data

        around = {
            "wsgi.input": io.BytesIO(body),
            "CONTENT_LENGTH": str(len(body)),
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "REQUEST_METHOD": "POST",
        }
        try:
            _, fields, files = parse_form_data(around)
        except (HTTPException, ValueError):
            raise BadRequest("Found a form that cannot be read, expected multipart/form-data with a file named 'image'.") from None
        picture = files["image"].read() if "image" in files else b""
        return {name: fields[name] for name in FILTERS if fields.get(name)}, picture

    def _page(self, asked: dict[str, str], picture: bytes | None = None) -> Body:
        """The search page; what cannot be answered is said on it."""
        ways = {"text": asked.get("q"), "uid": asked.get("uid"), "image": picture}
        question = {name: value for name, value in ways.items() if value} | {name: asked[name] for name in FILTERS if asked.get(name)}
        found, said, status = None, "", 200
        if any(ways.values()) or picture is not None:
            try:
                found = self.library.answer({**question, "num_images": ON_A_PAGE})
            except BadRequest as error:
                said, status = str(error), error.status
        return status, "text/html; charset=utf-8", page.search(asked, found, said, self._menus()).encode()

    def _menus(self) -> dict[str, Any]:
        shelf = self.library.shelf
        counts = {
            name: facet.counts(shelf.alive) for name, facet in (("langs", shelf.embedded.lang), ("domains", shelf.embedded.host), ("splits", shelf.split))
        }
        return {
            "samples": int(shelf.alive.sum()), "scorer": shelf.embedded.scorer.name, "langs": {name: n for name, n in counts["langs"].items() if name},
            "domains": dict(list(counts["domains"].items())[:MENU]), "splits": {name or "none": n for name, n in counts["splits"].items()},
            "snapshots": dict.fromkeys(self.library.snapshots()[:MENU], 0),
        }  # fmt: skip

    def _why(self, uid: str) -> Body:
        try:
            if self.library.shelf.row(uid) is None:
                raise MissingInput("Found no such sample among those that may be answered, expected one that the filter kept.")
            with self.library.catalog() as con:
                return 200, "text/html; charset=utf-8", page.why(uid, lineage.why(con, uid)).encode()
        except MissingInput as error:
            return 404, "text/html; charset=utf-8", page.why(uid, {}, str(error)).encode()

    def _reply(self, work: Callable[[], Body]) -> None:
        try:
            self._check_caller()
            status, kind, body = work()
        except BadRequest as error:
            status, kind, body = _json({"error": str(error)}, error.status)
        except VlmError as error:
            status, kind, body = _json({"error": str(error)}, 500)
        except FileNotFoundError:  # a folder between its old name and its new one
            status, kind, body = _json({"error": "Found the data being replaced, expected it to be there; ask again in a second."}, 503)
        self.send_response(status)
        headers = {
            "Content-Type": kind, "Content-Length": str(len(body)), "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store", "Referrer-Policy": "same-origin",
            "Content-Security-Policy": "default-src 'none'; img-src 'self'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
        }  # fmt: skip
        for name, value in (headers | self._shared()).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _check_caller(self) -> None:
        """A page of another site in the same browser may reach loopback: its Origin, or its rebound name in Host, gives it away."""
        port = self.server.server_port
        known = {f"{name}:{port}" for name in (HOST, "localhost")}
        if self.headers.get("Host", "").lower() not in known:
            raise BadRequest(f"Found the Host {self.headers.get('Host', '')[:80]!r}, expected {HOST}:{port}.", 403)
        origin = self.headers.get("Origin")
        if origin is not None and self._guest() is None and origin.lower() not in {f"http://{name}" for name in known}:
            raise BadRequest(f"Found the Origin {origin[:80]!r}, expected none, this service or one that 'vlm serve --origin' names.", 403)

    def _guest(self) -> str | None:
        """The origin of the asking page, if it is another one that may ask."""
        origin = self.headers.get("Origin", "")
        return origin if origin.lower() in self.origins else None

    def _shared(self) -> dict[str, str]:
        """Headers that let a browser hand the answer to the page of a guest. Never a star, never with cookies."""
        guest = self._guest()
        if guest is None:
            return {"Vary": "Origin"} if self.origins else {}
        shared = {"Access-Control-Allow-Origin": guest, "Vary": "Origin"}
        if self.command == "OPTIONS":
            shared |= {"Access-Control-Allow-Methods": "GET, POST", "Access-Control-Allow-Headers": "Content-Type", "Access-Control-Max-Age": "600"}
            if self.headers.get("Access-Control-Request-Private-Network") == "true":
                shared["Access-Control-Allow-Private-Network"] = "true"
        return shared

    def log_message(self, format: str, *args: Any) -> None:
        """Questions may be personal: nothing is written down."""


class Server(ThreadingHTTPServer):
    """A caller that hangs up early is no event."""

    daemon_threads = True

    def handle_error(self, request: socket.socket | tuple[bytes, socket.socket], client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


def _json(value: Any, status: int = 200) -> Body:
    return status, "application/json", json.dumps(value, ensure_ascii=False).encode()


def _asked(query: str) -> dict[str, str]:
    try:
        found = parse_qs(query, max_num_fields=20)
    except ValueError:
        raise BadRequest("Found more than 20 fields in the address, expected the few that the page asks with.") from None
    return {name: found[name][0] for name in ASKED if name in found}


def _question(body: bytes) -> dict[str, Any]:
    try:
        question = json.loads(body)
    except (ValueError, RecursionError):
        raise BadRequest("Found a body that is not JSON, expected an object with text, image, uid or embedding_input.") from None
    if not isinstance(question, dict):
        raise BadRequest("Found JSON that is not an object, expected one with text, image, uid or embedding_input.")
    return question


def allowed_origins(names: Iterable[str]) -> frozenset[str]:
    """Origins as browsers send them. Raises ConfigError for anything but scheme, host and port."""
    for name in names:
        if not re.fullmatch(ORIGIN, name.lower()):
            raise ConfigError(
                f"Found the origin {name[:80]!r}, expected scheme, host and perhaps port, such as http://127.0.0.1:3005; give that, without path or star."
            )
    return frozenset(name.lower() for name in names)


def make_server(data: Path, port: int, look_every_s: float = LOOK_EVERY_S, origins: Iterable[str] = ()) -> Server:
    """A server that listens but does not answer yet. Raises ConfigError when the port is taken, MissingInput when there is nothing to serve."""
    allowed = allowed_origins(list(origins))
    server = Server((HOST, port), Handler, bind_and_activate=False)
    try:
        server.server_bind()
        server.server_activate()
    except (OSError, OverflowError) as error:
        server.server_close()
        raise ConfigError(
            f"Found port {port} of {HOST} not free ({os.strerror(getattr(error, 'errno', None) or 22)}), expected a free one; give another --port."
        ) from None
    try:
        server.RequestHandlerClass = type("BoundHandler", (Handler,), {"library": Library(data, home(), look_every_s), "origins": allowed})
    except BaseException:
        server.server_close()
        raise
    return server


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="vlm serve", description="Read-only search over the filtered set, on loopback.")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder that holds embeddings/, filtered/, images/ and shards/")
    parser.add_argument("--port", type=int, default=7600)
    parser.add_argument(
        "--origin",
        action="append",
        default=None,
        help="origin of pages elsewhere that may ask, such as http://127.0.0.1:3005; may be repeated; else those of $VLM_SEARCH_ORIGINS, by commas",
    )
    args = parser.parse_args(argv)
    named = os.environ.get("VLM_SEARCH_ORIGINS", "").split(",") if args.origin is None else args.origin
    server = make_server(args.data, args.port, origins=[name.strip() for name in named if name.strip()])
    samples = int(server.RequestHandlerClass.library.shelf.alive.sum())  # type: ignore[attr-defined]
    print(f"[serve] {samples:,} samples at http://{HOST}:{server.server_port}/ (Ctrl-C ends it)", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print("[serve] ended", flush=True)
    finally:
        server.server_close()
    return 0
