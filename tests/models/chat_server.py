"""A loopback server with the chat half of OpenAI's protocol, pictures included."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def caption_in(asked: dict[str, Any]) -> str:
    """The first text between marks of a request; '' where a picture is asked about."""
    content = asked["messages"][1]["content"]
    return content.split("\n")[1] if isinstance(content, str) and "\n" in content else ""


class ChatServer(ThreadingHTTPServer):
    """`answer(caption, number)` is what its model says, or `reply(request)` if that is set; `failures` come first."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.failures: list[int] = []
        self.refused = ""  # code of a refusal
        self.rejects: Callable[[str], int] | None = None  # status for a caption, 0 to answer
        self.wait_s = 0.0
        self.finish = "stop"
        self.usage: tuple[int, int] | None = (100, 10)
        self.answer = lambda caption, number: f"This shows {caption}."
        self.reply: Callable[[dict[str, Any]], str] | None = None
        self.busy, self.busiest, self.lock = 0, 0, threading.Lock()
        super().__init__(("127.0.0.1", 0), Chat)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Chat(BaseHTTPRequestHandler):
    server: ChatServer

    def do_POST(self) -> None:
        server = self.server
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.requests.append(asked)
            server.keys.append(self.headers.get("Authorization", ""))
            server.busy += 1
            server.busiest, number = max(server.busiest, server.busy), len(server.requests)
            status = server.failures.pop(0) if server.failures else 200
            if server.rejects and status == 200:
                status = server.rejects(caption_in(asked)) or 200
        time.sleep(server.wait_s)
        text = server.reply(asked) if server.reply else server.answer(caption_in(asked), number)
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": server.finish}
        reply: dict[str, Any] = {"id": "1", "object": "chat.completion", "created": 0, "model": asked["model"], "choices": [choice]}
        if server.usage:
            reply["usage"] = {"prompt_tokens": server.usage[0], "completion_tokens": server.usage[1], "total_tokens": sum(server.usage)}
        body = json.dumps(reply if status == 200 else {"error": {"message": "no", "code": server.refused}}).encode()
        with server.lock:
            server.busy -= 1
        self.send_response(status)
        for name, value in (("Content-Type", "application/json"), ("Content-Length", str(len(body))), ("retry-after-ms", "1")):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None: ...


@contextmanager
def serving() -> Iterator[ChatServer]:
    running = ChatServer()
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    yield running
    running.shutdown()
    running.server_close()
    thread.join()
