"""One HTTP exchange with a checked address: connect to exactly that address, never wait past the deadline, never read past the budget.

`http.client` underneath. Its timeouts are per socket operation, so every read goes through a stream that knows the deadline.
"""

import contextlib
import errno
import http.client
import io
import os
import socket
import ssl
import threading
import time
import zlib
from collections.abc import Iterator
from typing import Any

from vlm_core.data.web.address import FetchFailed, Target
from vlm_core.data.fetch.outage import NO_ROUTE

CHUNK = 64 * 1024
OURS = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOENT, errno.ENOMEM}
LEFTOVER = 64 * 1024  # read this much of an unwanted body to keep the connection, else drop it


class _Stream(io.RawIOBase):
    """Reads of a socket under the deadline of the exchange."""

    def __init__(self, owner: "_Socket") -> None:
        self.owner, self.limits = owner, owner.limits
        owner.streams += 1

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self.owner.sock.settimeout(self.limits.left())
        return self.owner.sock.recv_into(buffer)

    def close(self) -> None:
        if not self.closed:
            self.owner.streams -= 1
            self.owner.release()
        super().close()


class Limits:
    """Seconds: for connecting, for one read, and for all exchanges of a visit together."""

    def __init__(self, connect_s: float, read_s: float, total_s: float) -> None:
        self.connect_s, self.read_s, self.total_s, self.spent_s = connect_s, read_s, total_s, 0.0
        self.start()

    def start(self) -> None:
        self.end = time.monotonic() + self.total_s - self.spent_s

    def stop(self) -> None:
        """What follows until the next start does not count."""
        self.spent_s = self.total_s - (self.end - time.monotonic())

    def left(self, most: float | None = None) -> float:
        left = self.end - time.monotonic()
        if left <= 0:
            raise FetchFailed("deadline", f"not finished after {self.total_s:g} s")
        return min(left, self.read_s if most is None else most)


class _Socket:
    """What http.client needs of a socket."""

    def __init__(self, sock: socket.socket, limits: Limits) -> None:
        self.sock, self.limits, self.streams, self.closed = sock, limits, 0, False

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Stream(self), CHUNK)

    def sendall(self, data: bytes) -> None:
        self.sock.settimeout(self.limits.left())
        self.sock.sendall(data)

    def close(self) -> None:
        """As sockets do: http.client closes the socket of a last reply while its body is still to be read."""
        self.closed = True
        self.release()

    def release(self) -> None:
        if self.closed and not self.streams:
            self.sock.close()


class _Connection(http.client.HTTPConnection):
    used = False

    def __init__(self, target: Target, limits: Limits, context: ssl.SSLContext) -> None:
        super().__init__(target.host, target.port)
        self.target, self.limits, self.context = target, limits, context

    def connect(self) -> None:
        target = self.target
        try:
            sock = socket.create_connection((target.address, target.port), self.limits.left(self.limits.connect_s))
        except TimeoutError:
            raise FetchFailed("connect_timeout", "no connection in time") from None
        try:
            peer = str(sock.getpeername()[0]).partition("%")[0]
            if peer != target.address:
                raise FetchFailed("ssrf_blocked", f"connected to {peer}, not to the checked {target.address}")
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if target.scheme == "https":
                sock = self.context.wrap_socket(sock, server_hostname=target.host)
        except BaseException:
            sock.close()
            raise
        self.sock = _Socket(sock, self.limits)


class Reply:
    """Status and headers of a reply whose body is still to be read."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status, self.headers, self._response = response.status, response.headers, response

    def all(self, name: str) -> list[str]:
        return [str(value) for value in self.headers.get_all(name, [])]

    def head(self, max_bytes: int) -> bytes:
        """The body, or its first `max_bytes`."""
        parts, size = list[bytes](), 0
        for piece in self._pieces(max_bytes):
            parts.append(piece)
            size += len(piece)
            if size >= max_bytes:
                break
        return b"".join(parts)[:max_bytes]

    def chunks(self, max_bytes: int) -> Iterator[bytes]:
        """The body, one layer of gzip or deflate undone. Raises FetchFailed when it is longer than `max_bytes`."""
        announced = self.headers.get("Content-Length", "")
        if announced.isdigit() and int(announced) > max_bytes:
            raise FetchFailed("too_large", f"{int(announced):,} bytes announced, at most {max_bytes:,} allowed", self.status)
        size = 0
        for piece in self._pieces(max_bytes):
            size += len(piece)
            if size > max_bytes:
                raise FetchFailed("too_large", f"more than {max_bytes:,} bytes", self.status)
            yield piece

    def _pieces(self, max_bytes: int) -> Iterator[bytes]:
        """The body as it comes; no piece that is unpacked grows beyond `max_bytes` + 1."""
        coding = self.headers.get("Content-Encoding", "identity").strip().lower()
        if coding not in {"", "identity", "gzip", "x-gzip", "deflate"}:
            raise FetchFailed("decode_error", f"content coding {coding[:30]!r} was not asked for", self.status)
        unpack = None if coding in {"", "identity"} else zlib.decompressobj(47 if "gzip" in coding else 15)
        while chunk := self._response.read1(CHUNK):
            try:
                piece = chunk if unpack is None else unpack.decompress(chunk, max_bytes + 1)
            except zlib.error:
                raise FetchFailed("decode_error", "damaged gzip body", self.status) from None
            yield piece
        if self._response.length:  # what read1 does not tell: the peer closed before the announced end
            raise FetchFailed("http_5xx", "the body broke off before its announced end", self.status)


class Connections:
    """Keep-alive connections of one process, and its one TLS context (building one costs 20 ms of CPU)."""

    def __init__(self, per_host: int) -> None:
        self.per_host, self.context = per_host, ssl.create_default_context()
        self._idle: dict[tuple[str, str, str, int], list[_Connection]] = {}
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def get(self, target: Target, headers: dict[str, str], limits: Limits, method: str = "GET") -> Iterator[Reply]:
        """Ask for a target. Raises FetchFailed for whatever goes wrong on the wire, also while the caller reads the body."""
        limits.start()
        connection: _Connection | None = None
        response: http.client.HTTPResponse | None = None
        try:
            connection, response = self._ask(target, headers, limits, method)
            reply = Reply(response)
            yield reply
            if not response.isclosed() and response.length is not None and response.length <= LEFTOVER:
                response.read()
            if response.isclosed() and not response.will_close:
                self._keep(connection)
                connection = None
        except (OSError, http.client.HTTPException, ValueError) as error:
            if isinstance(error, OSError) and error.errno in OURS:
                raise  # a full disk here is no failure of theirs
            raise _failure(error) from None
        finally:
            limits.stop()
            if response is not None:
                response.close()
            if connection is not None:
                connection.close()

    def _ask(self, target: Target, headers: dict[str, str], limits: Limits, method: str) -> tuple[_Connection, http.client.HTTPResponse]:
        for fresh in (False, True):
            connection = _Connection(target, limits, self.context) if fresh else self._take(target, limits)
            try:
                connection.putrequest(method, target.path or "/", skip_host=True, skip_accept_encoding=True)
                for name, value in {"Host": target.netloc, **headers}.items():
                    connection.putheader(name, value)
                connection.endheaders()
                return connection, connection.getresponse()
            except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
                connection.close()
                if fresh or not connection.used:  # a kept connection may have been closed meanwhile: try once more
                    raise
            except BaseException:
                connection.close()
                raise
        raise AssertionError("unreachable")

    def _take(self, target: Target, limits: Limits) -> _Connection:
        with self._lock:
            idle = self._idle.get((target.scheme, target.host, target.address, target.port), [])
            connection = idle.pop() if idle else None
        if connection is None:
            return _Connection(target, limits, self.context)
        connection.limits = limits
        kept: Any = connection.sock
        if kept is not None:
            kept.limits = limits
        return connection

    def _keep(self, connection: _Connection) -> None:
        target, connection.used = connection.target, True
        with self._lock:
            idle = self._idle.setdefault((target.scheme, target.host, target.address, target.port), [])
            if len(idle) < self.per_host:
                idle.append(connection)
                return
        connection.close()

    def close(self) -> None:
        with self._lock:
            for connection in (one for idle in self._idle.values() for one in idle):
                connection.close()
            self._idle.clear()


def _failure(error: Exception) -> FetchFailed:
    """The word of the closed list for an error on the wire; details name no address, so that reports repeat."""
    if isinstance(error, ssl.SSLError):
        return FetchFailed("tls_error", str(getattr(error, "verify_message", "") or error.reason or "TLS failed"))
    if isinstance(error, TimeoutError):
        return FetchFailed("deadline", "no bytes within the read timeout")
    if isinstance(error, ConnectionRefusedError):
        return FetchFailed("connect_refused", "connection refused")
    if isinstance(error, ConnectionError | http.client.HTTPException | ValueError):
        return FetchFailed("http_5xx", f"broken reply ({type(error).__name__})")
    if isinstance(error, OSError) and error.errno in {errno.ENETUNREACH, errno.ENETDOWN}:
        return FetchFailed("connect_refused", NO_ROUTE)
    return FetchFailed("connect_refused", os.strerror(error.errno) if isinstance(error, OSError) and error.errno else type(error).__name__)
