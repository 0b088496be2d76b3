"""Words for a server: sent in order while it answers, kept while it does not, at last written to a file. Nobody who speaks waits long, or loses a word.

After an attempt there is a pause of at least twenty times what it took, whether it succeeded or not, so a slow or silent server costs a training at
most a twentieth of its time; while the server is away the pause also doubles, from four seconds to ten minutes.
"""

import json
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Word = dict[str, Any]
BETWEEN_S, FIRST_PAUSE_S, LAST_PAUSE_S, SHARE = 2.0, 4.0, 600.0, 20
VALUES = 1000  # metrics in one request
TEMPORARY = {408, 425, 429}


class Outbox:
    """What waits for one server, and what it refused."""

    def __init__(self, send: Callable[[Word], None], server: str) -> None:
        self._send, self.server = send, server
        self.waiting: list[Word] = []
        self.refused: list[Word] = []
        self._pause = 0.0  # > 0: the last attempt failed
        self._next = 0.0

    @property
    def is_away(self) -> bool:
        return self._pause > 0

    def put(self, word: Word) -> None:
        """Metrics join those that wait already."""
        last = self.waiting[-1] if self.waiting else {}
        if word["call"] == last.get("call") == "metrics" and last["run"] == word["run"] and len(last["values"]) + len(word["values"]) <= VALUES:
            last["values"] += word["values"]
        else:
            self.waiting.append(word)

    def send(self, *, now: bool = False) -> bool:
        """Send what waits, if it is time for that; whether nothing is left."""
        if not self.waiting or not (now or time.monotonic() >= self._next):
            return not self.waiting
        began = time.monotonic()
        try:
            while self.waiting:
                self._send_first()
                del self.waiting[0]
            self._pause, pause = 0.0, BETWEEN_S
        except Exception as error:  # whatever MLflow or its transport raises: numbers are not worth a training run
            if not self.is_away:
                print(f"{self.server} did not take {self.said()} ({type(error).__name__}); kept for later", file=sys.stderr, flush=True)
            self._pause = pause = min(2 * self._pause or FIRST_PAUSE_S, LAST_PAUSE_S)
        ended = time.monotonic()
        self._next = ended + max(pause, SHARE * (ended - began))
        return not self.waiting

    def _send_first(self) -> None:
        word = self.waiting[0]
        try:
            self._send(word)
        except Exception as error:
            if not is_refusal(error):
                raise
            self.refused.append({**word, "why": str(error)[:300]})  # asking again would not help, and must not hold up what comes after it
            print(f"{self.server} refused {word['call']}: {str(error)[:300]}", file=sys.stderr, flush=True)

    def said(self) -> str:
        """How much waits, in words."""
        values = sum(len(word["values"]) for word in self.waiting if word["call"] == "metrics")
        others = sum(word["call"] != "metrics" for word in self.waiting)
        return " and ".join(part for part in (f"{values:,} metrics" if values else "", f"{others} other words" if others else "") if part) or "nothing"

    def keep_files(self, folder: Path) -> None:
        """Copy the files that waiting words name: theirs may be moved or removed."""
        for word in (word for word in self.waiting if word["call"] == "file"):
            path = Path(word["path"])
            if path.parent.parent != folder and path.is_file():
                copy = folder / uuid.uuid4().hex[:8] / path.name
                copy.parent.mkdir(parents=True, exist_ok=True)
                word["path"] = str(shutil.copy(path, copy))

    def write(self, file: Path, copies: Path) -> None:
        """Leave what waits, and what was refused, in a file: a word per line. Nothing left: no file, and no copies of files."""
        words = [*self.refused, *self.waiting]
        if not words:
            file.unlink(missing_ok=True)
            shutil.rmtree(copies, ignore_errors=True)
            return
        self.keep_files(copies)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(word, ensure_ascii=False) + "\n" for word in words))


def read(file: Path) -> Iterator[Word]:
    """The words of a file that may be sent again."""
    for line in file.read_text().splitlines():
        word = json.loads(line)
        if "why" not in word:
            yield word


def is_refusal(error: Exception) -> bool:
    """Whether the server understood and said no (status 4xx), so that the same words later would fare no better."""
    status = getattr(error, "get_http_status_code", int)()
    return 400 <= status < 500 and status not in TEMPORARY
