"""`vlm serve`: read-only search over the filtered set, on loopback, with the request and reply of clip-retrieval's /knn-service.

    POST /knn-service    {"text": ..} | {"image": base64} | {"embedding_input": [..]}, "modality": "image" | "text", "num_images": 40
    GET  /indices-list   /health   /thumbnail/<uid>.jpg   /

`clip_retrieval.clip_client.ClipClient` works against it. Not offered, on purpose: fetching an `image_url`, reading a path, writing anything,
another address than 127.0.0.1, foreign Host or Origin headers. Only samples that the filter kept can be answered.
"""

import argparse
import base64
import binascii
import html
import io
import json
import os
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vlm_core.data.address import FetchFailed
from vlm_core.data.picture import Limits, decode
from vlm_core.errors import ConfigError, MissingInput, VlmError
from vlm_core.models.embed import Pictures
from vlm_core.models.scorer import load

HOST, INDEX = "127.0.0.1", "filtered"
BODY_BYTES, TEXT_CHARS, RESULTS, QUIET_S = 16 * 2**20, 2_000, 200, 30.0
LIMITS = Limits(max_pixels=40_000_000, max_decoded_mb=200, min_side=1, max_aspect=0)


class BadRequest(Exception):
    """One sentence for the client; status 400 unless said otherwise."""

    def __init__(self, sentence: str, status: int = 400) -> None:
        super().__init__(sentence)
        self.status = status


class Library:
    """The kept samples: their index, their pictures, and the scorer that embeds a question."""

    def __init__(self, data: Path) -> None:
        import faiss

        embeddings, kept_file = data / "embeddings", data / "filtered" / "kept.parquet"
        for path in (kept_file, embeddings / "index" / "image.index", embeddings / "index" / "text.index", data / "images"):
            if not path.exists():
                raise MissingInput(f"Found nothing at {path}, expected what search answers from; run the main job first, or give --data DIR.")
        self.scorer = load(embeddings)
        self.index = {name: faiss.read_index(str(embeddings / "index" / f"{name}.index")) for name in ("image", "text")}
        kept = set(pq.read_table(kept_file, columns=["uid"])["uid"].to_pylist())
        rows = pq.read_table(embeddings / "metadata" / "metadata_0.parquet", columns=["uid", "url", "caption", "lang", "sha256"]).to_pylist()
        self.rows = {number: row for number, row in enumerate(rows) if row["uid"] in kept}
        self.uids = {row["uid"] for row in self.rows.values()}
        self.pictures = Pictures(data / "images")
        self._one_at_a_time = threading.Lock()  # the towers use all cores already

    def embed(self, question: dict[str, Any]) -> NDArray[np.float32]:
        """The unit vector of a question. Raises BadRequest."""
        given = [name for name in ("text", "image", "image_url", "embedding_input") if question.get(name)]
        if len(given) != 1:
            raise BadRequest(f"Found {', '.join(given) or 'nothing'} to search for, expected exactly one of text, image, embedding_input.")
        match given[0]:
            case "text":
                return self._text(question["text"])
            case "image":
                return self._image(question["image"])
            case "embedding_input":
                return self._vector(question["embedding_input"])
        raise BadRequest("Found image_url, which is not fetched here; send the picture itself as base64 in 'image'.")

    def search(self, query_D: NDArray[np.float32], modality: str, count: int, distinct: bool) -> list[dict[str, Any]]:
        """The nearest kept samples, best first; of equal pictures only the nearest when `distinct`."""
        index, wanted = self.index[modality], min(len(self.rows), 4 * count)
        while True:  # the index also holds what the filter dropped: ask for more until enough is kept
            depth = min(index.ntotal, max(wanted, 1))
            with self._one_at_a_time:
                scores, places = index.search(query_D[None], depth)
            found = [(int(place), float(score)) for place, score in zip(places[0], scores[0], strict=True) if int(place) in self.rows]
            found = _distinct(found, self.rows) if distinct else found
            if len(found) >= count or depth == index.ntotal:
                return [self._answer(place, score) for place, score in found[:count]]
            wanted = 4 * depth

    def _answer(self, place: int, score: float) -> dict[str, Any]:
        row = self.rows[place]
        picture = f"/thumbnail/{row['uid']}.jpg"
        return {"id": place, "similarity": score, "url": row["url"], "caption": row["caption"], "uid": row["uid"], "lang": row["lang"], "image_path": picture}

    def _text(self, text: Any) -> NDArray[np.float32]:
        if not isinstance(text, str) or len(text) > TEXT_CHARS:
            raise BadRequest(f"Found a text of {len(str(text)):,} characters, expected a string of at most {TEXT_CHARS:,}.")
        with self._one_at_a_time:
            return self.scorer.encode_texts([text])[0]

    def _image(self, encoded: Any) -> NDArray[np.float32]:
        try:
            image, _ = decode(io.BytesIO(base64.b64decode(encoded, validate=True)), LIMITS, side=512)
        except (binascii.Error, TypeError, ValueError):
            raise BadRequest("Found an image that is not base64, expected the bytes of a picture in base64.") from None
        except FetchFailed as error:
            raise BadRequest(f"Found an image that is refused ({error}), expected a plain picture.") from None
        with self._one_at_a_time:
            return self.scorer.encode_images([image])[0]

    def _vector(self, values: Any) -> NDArray[np.float32]:
        try:
            vector = np.asarray(values, np.float32)
        except (TypeError, ValueError):
            vector = np.empty(0, np.float32)
        norm = float(np.linalg.norm(vector))
        if vector.shape != (self.scorer.dim,) or not np.isfinite(norm) or norm == 0:
            raise BadRequest(f"Found an embedding of shape {vector.shape}, expected {self.scorer.dim} finite numbers that are not all zero.")
        return vector / norm


def _distinct(found: list[tuple[int, float]], rows: dict[int, dict[str, Any]]) -> list[tuple[int, float]]:
    nearest: dict[str, tuple[int, float]] = {}
    for place, score in found:
        nearest.setdefault(rows[place]["sha256"], (place, score))
    return list(nearest.values())


class Handler(BaseHTTPRequestHandler):
    """One request. Every answer forbids scripts, frames and guessing of types."""

    library: Library
    server: ThreadingHTTPServer
    protocol_version, timeout, server_version, sys_version = "HTTP/1.1", QUIET_S, "vlm-search", ""

    def do_GET(self) -> None:
        self._reply(self._get)

    def do_POST(self) -> None:
        self._reply(self._post)

    def _get(self) -> tuple[str, bytes]:
        target = urlsplit(self.path)
        match target.path:
            case "/health":
                return _json({"status": "ok", "samples": len(self.library.rows), "scorer": self.library.scorer.name, "version": self.library.scorer.version})
            case "/indices-list":
                return _json([INDEX])
            case "/":
                return "text/html; charset=utf-8", self._page(parse_qs(target.query, max_num_fields=10)).encode()
        name = re.fullmatch(r"/thumbnail/([0-9a-f]{32})\.jpg", target.path)
        if name and name[1] in self.library.uids:
            return "image/jpeg", self.library.pictures.read(name[1])
        raise BadRequest("Found no such page, expected /, /health, /indices-list, /thumbnail/UID.jpg or POST /knn-service.", 404)

    def _post(self) -> tuple[str, bytes]:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > BODY_BYTES:
            self.close_connection = True
            raise BadRequest(
                f"Found a body of {length or 'unknown'} bytes, expected at most {BODY_BYTES:,} and a Content-Length.", 413 if length.isdecimal() else 411
            )
        body = self.rfile.read(int(length))
        if urlsplit(self.path).path != "/knn-service":
            raise BadRequest("Found a POST to another address than /knn-service, expected that one.", 404)
        try:
            question = json.loads(body)
        except (ValueError, RecursionError):
            raise BadRequest("Found a body that is not JSON, expected an object with text, image or embedding_input.") from None
        if not isinstance(question, dict):
            raise BadRequest("Found JSON that is not an object, expected one with text, image or embedding_input.")
        return _json(self._answers(question))

    def _answers(self, question: dict[str, Any]) -> list[dict[str, Any]]:
        index, modality, count = question.get("indice_name", INDEX), question.get("modality", "image"), question.get("num_images", 40)
        if index != INDEX or modality not in {"image", "text"}:
            raise BadRequest(f"Found the index {str(index)[:80]!r} and modality {str(modality)[:80]!r}, expected {INDEX!r} and image or text.")
        if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= RESULTS:
            raise BadRequest(f"Found num_images {str(count)[:80]!r}, expected a whole number from 1 to {RESULTS}.")
        return self.library.search(self.library.embed(question), modality, count, bool(question.get("deduplicate", True)))

    def _page(self, query: dict[str, list[str]]) -> str:
        text = query.get("q", [""])[0]
        found = self._answers({"text": text, "num_images": 48}) if text else []
        figures = "".join(
            f'<figure><a href="{html.escape(row["url"])}" rel="noreferrer"><img src="{row["image_path"]}" alt="{html.escape(row["caption"])}"></a>'
            f"<figcaption>{row['similarity']:.2f} {html.escape(row['caption'])}</figcaption></figure>"
            for row in found
        )
        return PAGE.format(
            text=html.escape(text),
            figures=figures,
            count=len(self.library.rows),
            scorer=html.escape(self.library.scorer.name),
            example=urlencode({"q": "red fruit"}),
        )

    def _reply(self, work: Any) -> None:
        try:
            self._check_caller()
            status, (kind, body) = 200, work()
        except BadRequest as error:
            status, (kind, body) = error.status, _json({"error": str(error)})
        except VlmError as error:
            status, (kind, body) = 500, _json({"error": str(error)})
        self.send_response(status)
        headers = {
            "Content-Type": kind, "Content-Length": str(len(body)), "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store", "Referrer-Policy": "no-referrer",
            "Content-Security-Policy": "default-src 'none'; img-src 'self'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'",
        }  # fmt: skip
        for name, value in headers.items():
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
        if origin is not None and origin.lower() not in {f"http://{name}" for name in known}:
            raise BadRequest(f"Found the Origin {origin[:80]!r}, expected none or this service.", 403)

    def log_message(self, format: str, *args: Any) -> None:
        """Questions may be personal: nothing is written down."""


def _json(value: Any) -> tuple[str, bytes]:
    return "application/json", json.dumps(value, ensure_ascii=False).encode()


def make_server(data: Path, port: int) -> ThreadingHTTPServer:
    """A server that listens but does not answer yet. Raises ConfigError when the port is taken, MissingInput when there is nothing to serve."""
    try:
        server = ThreadingHTTPServer((HOST, port), Handler, bind_and_activate=False)
        server.daemon_threads = True
        server.server_bind()
        server.server_activate()
    except (OSError, OverflowError) as error:
        server.server_close()
        raise ConfigError(
            f"Found port {port} of {HOST} not free ({os.strerror(getattr(error, 'errno', None) or 22)}), expected a free one; give another --port."
        ) from None
    try:
        server.RequestHandlerClass = type("BoundHandler", (Handler,), {"library": Library(data)})
    except BaseException:
        server.server_close()
        raise
    return server


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="vlm serve", description="Read-only search over the filtered set, on loopback.")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder that holds embeddings/, filtered/ and images/")
    parser.add_argument("--port", type=int, default=7600)
    args = parser.parse_args(argv)
    server = make_server(args.data, args.port)
    print(f"[serve] {len(server.RequestHandlerClass.library.rows):,} samples at http://{HOST}:{server.server_port}/ (Ctrl-C ends it)", flush=True)  # type: ignore[attr-defined]
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print("[serve] ended", flush=True)
    finally:
        server.server_close()
    return 0


PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Search the filtered set</title><style>
body{{font:16px system-ui,sans-serif;margin:2rem auto;max-width:75rem;padding:0 1rem;color:#1b1f24;background:#fff}}
form{{display:flex;gap:.5rem}}input{{flex:1;font:inherit;padding:.5rem}}button{{font:inherit;padding:.5rem 1rem}}
main{{display:grid;grid-template-columns:repeat(auto-fill,minmax(9rem,1fr));gap:1rem;margin-top:1.5rem}}
figure{{margin:0}}img{{width:100%;aspect-ratio:1;object-fit:contain;background:#f3f4f6;border-radius:.3rem}}
figcaption{{font-size:.8rem;overflow-wrap:anywhere}}small{{color:#57606a}}</style></head><body>
<form action="/" method="get"><input name="q" value="{text}" placeholder="what should be in the picture?" aria-label="search" autofocus><button>Search</button></form>
<small>{count:,} samples that passed the filter; scores by {scorer}; try <a href="/?{example}">red fruit</a></small><main>{figures}</main></body></html>
"""
