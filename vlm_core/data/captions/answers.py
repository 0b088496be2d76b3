"""Answers of language models that were paid for, on disk: nothing is asked twice, whatever happens to the run that asked.

One SQLite file beside the captions (`OUT.run/answers.sqlite`); an answer is committed as it comes. Its name is a hash of everything that decides it: the
model, the prompt, the sampling, the seed. So a run that was killed goes on where it was, and a run with other gates or a larger budget asks only what is new.
"""

import hashlib
import sqlite3
from collections.abc import Container, Iterable
from pathlib import Path
from typing import NamedTuple

from vlm_core.data.captions.config import Limits
from vlm_core.data.captions.recaption import Prompt


class Answer(NamedTuple):
    """What a model said, and what it cost."""

    text: str  # one line; '' where it said nothing, did not come to an end, or refused
    tokens_in: int
    tokens_out: int
    seconds: float = 0.0
    trace_id: str = ""
    refused: str = ""  # why the server would not take this request ("refused_413"); '' for an answer


class Request(NamedTuple):
    """One answer that is wanted."""

    uid: str
    prompt: Prompt
    seed: int
    generator: str
    sampling: str  # canonical JSON

    @property
    def key(self) -> str:
        return hashlib.sha256("\0".join((self.generator, self.sampling, str(self.seed), self.prompt.sha256)).encode()).hexdigest()

    @property
    def shape(self) -> str:
        """What a server may refuse as such, whatever the caption: model, sampling, whether a picture comes along."""
        return hashlib.sha256("\0".join((self.generator, self.sampling, str(bool(self.prompt.picture)))).encode()).hexdigest()


class Answers:
    """The store. One process writes; a reader may look at any time."""

    def __init__(self, file: Path) -> None:
        self.connection = sqlite3.connect(file, isolation_level=None)
        self.connection.execute("PRAGMA journal_mode = WAL")
        self.connection.execute(
            "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, uid TEXT, text TEXT, tokens_in INTEGER, tokens_out INTEGER, seconds REAL, trace_id TEXT)"
        )
        self.connection.execute("CREATE INDEX IF NOT EXISTS by_uid ON answers (uid)")
        self.connection.execute("CREATE TABLE IF NOT EXISTS refusals (key TEXT PRIMARY KEY, uid TEXT, reason TEXT, seconds REAL)")
        self.connection.execute("CREATE TABLE IF NOT EXISTS proven (shape TEXT PRIMARY KEY)")

    def find(self, key: str) -> Answer | None:
        refused = self.connection.execute("SELECT reason, seconds FROM refusals WHERE key = ?", (key,)).fetchone()
        if refused is not None:
            return Answer("", 0, 0, refused[1], refused=refused[0])
        row = self.connection.execute("SELECT text, tokens_in, tokens_out, seconds, trace_id FROM answers WHERE key = ?", (key,)).fetchone()
        return None if row is None else Answer(*row)

    def keep(self, request: Request, answer: Answer) -> None:
        if answer.refused:
            self.connection.execute("INSERT OR REPLACE INTO refusals VALUES (?, ?, ?, ?)", (request.key, request.uid, answer.refused, answer.seconds))
            return
        self.connection.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?)", (request.key, request.uid, *answer[:5]))
        self.connection.execute("INSERT OR IGNORE INTO proven VALUES (?)", (request.shape,))

    def proven(self, request: Request) -> bool:
        """Whether a request of this shape was answered before: what a server refuses then is the caption's fault."""
        return self.connection.execute("SELECT 1 FROM proven WHERE shape = ?", (request.shape,)).fetchone() is not None

    def forget(self, uids: Iterable[str]) -> int:
        """Remove every answer about these samples (takedown); how many there were."""
        before = self.connection.total_changes
        self.connection.execute("PRAGMA secure_delete = ON")
        gone = [(uid,) for uid in uids]
        for table in ("answers", "refusals"):
            self.connection.executemany(f"DELETE FROM {table} WHERE uid = ?", gone)
        self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return self.connection.total_changes - before

    def keep_only(self, uids: Container[str]) -> int:
        """Remove the answers about all other samples: those that were taken down, or are in no source any more."""
        known = [uid for (uid,) in self.connection.execute("SELECT uid FROM answers UNION SELECT uid FROM refusals")]
        return self.forget([uid for uid in known if uid not in uids])

    def __len__(self) -> int:
        count: int = self.connection.execute("SELECT count(*) FROM answers").fetchone()[0]
        return count

    def close(self) -> None:
        self.connection.close()


# ---------------------------------------------------------------- what it may cost


class Cost(NamedTuple):
    """Answers, tokens and money, of what was written or at most of what will be."""

    answers: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    money: float = 0.0

    def plus(self, other: "Cost") -> "Cost":
        return Cost(self.answers + other.answers, self.tokens_in + other.tokens_in, self.tokens_out + other.tokens_out, self.money + other.money)

    @property
    def tokens(self) -> int:
        return self.tokens_in + self.tokens_out


class Price(NamedTuple):
    """Of 1,000 tokens, and how many tokens a picture may take."""

    tokens_in: float = 0.0
    tokens_out: float = 0.0
    picture_tokens: int = 0

    def of(self, answer: Answer) -> Cost:
        return Cost(1, answer.tokens_in, answer.tokens_out, (answer.tokens_in * self.tokens_in + answer.tokens_out * self.tokens_out) / 1_000)

    def at_most(self, request: Request, max_tokens: int) -> Cost:
        """An upper bound that is known before asking: no token of a byte-level vocabulary is shorter than a byte."""
        prompt = request.prompt
        return self.of(Answer("", tokens_bound(prompt) + (self.picture_tokens if prompt.picture else 0), max_tokens))


CHAT_TOKENS = 64  # what a chat format adds around the messages, at most


def tokens_bound(prompt: Prompt) -> int:
    return max(len((prompt.system + prompt.user).encode()), len(prompt.text.encode())) + CHAT_TOKENS


def fits(cost: Cost, limits: Limits) -> bool:
    return not (
        (limits.answers and cost.answers > limits.answers)
        or (limits.tokens and cost.tokens > limits.tokens)
        or (limits.money and cost.money > limits.money * (1 + 1e-12))
    )


def affordable(bounds: Iterable[Cost], spent: Cost, limits: Limits) -> int:
    """How many from the beginning of a list certainly fit what is left, whatever the answers will be."""
    count = 0
    for bound in bounds:
        spent = spent.plus(bound)
        if not fits(spent, limits):
            break
        count += 1
    return count
