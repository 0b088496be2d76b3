"""A real Chromium without a window, driven over its debugging protocol: open a page, ask it, click, choose a file."""

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

NAMES = ("chromium", "chromium-browser", "google-chrome")
QUIET = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
         "--disable-sync", "--disable-dev-shm-usage", "--remote-debugging-port=0")  # fmt: skip


class Page:
    """One tab."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket, self.number, self.session = socket, 0, ""
        self.problems: list[str] = []  # what the console said: refused scripts, failed loads
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "DOM", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": params, **({"sessionId": self.session} if self.session else {})}))
        while True:
            said = json.loads(self.socket.recv(timeout=60))
            if said.get("method") == "Log.entryAdded":
                self.problems.append(said["params"]["entry"]["text"])
            if said.get("id") == self.number:
                assert "error" not in said, said
                result: dict[str, Any] = said["result"]
                return result

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.wait()

    def wait(self, for_s: float = 60) -> None:
        """Until the page and its pictures are there."""
        end = time.monotonic() + for_s
        time.sleep(0.3)
        while time.monotonic() < end:
            if self.ask("document.readyState == 'complete' && [...document.images].every(i => i.loading == 'lazy' || i.complete)"):
                return
            time.sleep(0.1)
        raise TimeoutError("the page was not complete in time")

    def ask(self, script: str) -> Any:
        return self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)["result"].get("value")

    def follow(self, selector: str) -> None:
        self.ask(f"document.querySelector({json.dumps(selector)}).click()")
        self.wait()

    def choose(self, selector: str, file: Path) -> None:
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(file)])

    def picture(self, file: Path) -> None:
        import base64

        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


@contextmanager
def browser(home: Path) -> Iterator[Page]:
    """Raises FileNotFoundError where there is no Chromium: these tests need one."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        raise FileNotFoundError(f"Found none of {', '.join(NAMES)}, expected a browser for these tests; install chromium.")
    with subprocess.Popen([program, *QUIET, f"--user-data-dir={home}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield Page(_connected(home / "DevToolsActivePort", process))
        finally:
            process.terminate()


def _connected(told: Path, process: "subprocess.Popen[bytes]") -> ClientConnection:
    for _ in range(600):
        if told.exists() and len(lines := told.read_text().split()) == 2:
            return connect(f"ws://127.0.0.1:{lines[0]}{lines[1]}", max_size=None, compression=None)
        assert process.poll() is None, "the browser ended at once"
        time.sleep(0.1)
    raise TimeoutError("the browser did not open its debugging port")
