"""What one run of a verb has in hand, and how its result becomes visible: lease, atomic publication, data version, reuse.

For an output folder OUT there are two folders. OUT itself holds data only: its DVC directory hash is the data version.
OUT.run beside it holds the record of the run: spec.json, result.json, pictures/, state/ (what a crashed run may resume from).
"""

import ast
import contextlib
import ctypes
import fcntl
import functools
import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from pydantic import BaseModel, ConfigDict, Field

from vlm_core.errors import MissingInput, OutputBusy
from vlm_core.reading import NAME as READERS
from vlm_core.reading import unread
from vlm_core.track import Tracker

PACKAGE = Path(__file__).parent


class Report(BaseModel):
    """What a verb says about its run (`result.json`). A verb fills the first block, `run` the second."""

    model_config = ConfigDict(extra="forbid")

    counts: dict[str, int] = {}  # e.g. in, kept, dropped.too_small
    metrics: dict[str, float] = {}
    tables: dict[str, list[dict[str, Any]]] = {}  # small ones, shown in the UI
    pictures: dict[str, str] = {}  # title -> file name in OUT.run/pictures
    links: dict[str, str] = {}
    catalog: dict[str, Any] = Field(default={}, exclude=True)  # table name -> pyarrow.Table, appended to the catalog

    verb: str = ""
    recipe: str = ""
    run_id: str = ""
    data_version: str = ""
    spec_hash: str = ""
    reused: bool = False
    seconds: float = 0.0
    peak_memory_mb: float = 0.0
    out: str = ""
    provenance: dict[str, Any] = {}
    warnings: list[str] = []  # what went wrong beside the work, a sentence each


@dataclass
class Stage:
    """Handed to every verb: `def shard(config: Shard, stage: Stage) -> Report`."""

    verb: str
    inputs: Mapping[str, Path]
    out: Path  # fill it; it is published as a whole when the verb returns
    state: Path  # survives a crash; emptied when the spec changes
    pictures: Path  # PNG files for people
    tracker: Tracker
    run_id: str
    versions: Mapping[str, str] = field(default_factory=dict)  # input name -> data version
    recipe: str = ""  # name of the settings, for people
    _last: float = 0.0
    _said: str = ""

    @property
    def final(self) -> Path:
        """Where `out` will be once it is published."""
        return self.state.parent.with_name(self.state.parent.name.removesuffix(".run"))

    @property
    def kept(self) -> Path:
        """What a later run for the same output may take over, whatever has changed; the verb itself says how much it keeps."""
        return self.state.parent / "kept"

    def input(self, name: str) -> Path:
        """The folder or file given as `--in name=PATH`. Raises MissingInput."""
        path = self.inputs.get(name)
        if path is None:
            given = ", ".join(self.inputs) or "none"
            raise MissingInput(f"Found no input {name!r} for 'vlm {self.verb}' (given: {given}), expected a path; add --in {name}=PATH.")
        if not path.exists():
            raise MissingInput(f"Found nothing at {path}, expected the input {name!r} of 'vlm {self.verb}'; run the stage that makes it first.")
        return path

    def progress(self, what: str, done: int | None = None, total: int | None = None, every_s: float = 2.0) -> None:
        """One line on stderr, at most every `every_s` seconds (always for the last), and never the same line twice."""
        now = time.monotonic()
        line = f"[{self.verb}] {what}" + ("" if done is None else f" {done:,}" + (f"/{total:,}" if total else ""))
        if line == self._said or (done not in (None, total) and now - self._last < every_s):
            return
        self._last, self._said = now, line
        print(line, file=sys.stderr, flush=True)


def home() -> Path:
    """Where the platform keeps its catalog, services and caches: $VLM_HOME or ./.platform."""
    return Path(os.environ.get("VLM_HOME", ".platform")).absolute()


def record_of(out: Path) -> Path:
    return out.with_name(out.name + ".run")


# ---------------------------------------------------------------- data versions


def file_sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def file_md5(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def dir_hash(entries: Mapping[str, str]) -> str:
    """DVC's hash of a directory, from {posix path: md5 of the bytes}: 32 hex digits and '.dir'."""
    rows = sorted(({"md5": md5, "relpath": name} for name, md5 in entries.items()), key=lambda row: row["relpath"])
    return hashlib.md5(json.dumps(rows, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"


def data_version(path: Path) -> str:
    """The DVC hash of a file or folder. Files whose size and time have not changed since the last look are not read again."""
    if path.is_file():
        return file_md5(path)
    cache_file = record_of(path) / "files.json"
    cache: dict[str, list[Any]] = json.loads(cache_file.read_text()) if cache_file.exists() else {}
    seen: dict[str, list[Any]] = {}
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        name, stat = file.relative_to(path).as_posix(), file.stat()
        known = cache.get(name)
        fresh = known is not None and known[:2] == [stat.st_size, stat.st_mtime_ns]
        seen[name] = known if fresh and known else [stat.st_size, stat.st_mtime_ns, file_md5(file)]
    if seen != cache and cache_file.parent.exists():
        write_json(cache_file, seen)
    return dir_hash({name: row[2] for name, row in seen.items()})


@functools.cache
def code_version(*modules: str) -> str:
    """Digest of the source of these modules and of every vlm_core module they import, directly or not."""
    todo, seen = list(modules), dict[str, str]()
    while todo:
        name = todo.pop()
        source = PACKAGE.parent / Path(*name.split("."))
        file = source.with_suffix(".py") if source.with_suffix(".py").exists() else source / "__init__.py"
        if name in seen or not file.exists() or name in {"vlm_core.stage", "vlm_core.track", "vlm_core.errors"}:
            continue
        seen[name] = hashlib.sha256(file.read_bytes()).hexdigest()
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vlm_core"):
                todo += [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Import):
                todo += [alias.name for alias in node.names if alias.name.startswith("vlm_core")]
    return hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()


@functools.cache
def git_revision() -> str:
    """The commit of the code, with '+' when the work tree differs from it; '' outside a checkout."""
    git = ["git", "-C", str(PACKAGE.parent)]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
        dirty = subprocess.run([*git, "status", "--porcelain", "-uno"], check=True, capture_output=True, text=True).stdout
        return head + ("+" if dirty else "")
    return ""


# ---------------------------------------------------------------- one owner, atomic publication


@contextlib.contextmanager
def lease(record: Path) -> Iterator[None]:
    """Own an output folder until the process ends; the kernel drops the lock even after kill -9. Raises OutputBusy."""
    record.mkdir(parents=True, exist_ok=True)
    with (record / ".lease").open("a+") as stream:
        (record / READERS).touch()
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise OutputBusy(f"Found {record} in use by {_owner(stream)}, expected it to be free; wait for that run or end it.") from None
        stream.truncate(0)
        stream.write(f"process {os.getpid()}")
        stream.flush()
        yield


def _owner(stream: TextIO, patience_s: float = 2.0) -> str:
    """Who holds a lease. Between taking the lock and signing it there is a moment without a name: wait for it."""
    until = time.monotonic() + patience_s
    while time.monotonic() < until:
        stream.seek(0)
        if name := stream.read().strip():
            return name
        time.sleep(0.01)
    return "another process"


def publish(tmp: Path, out: Path) -> None:
    """Make a filled folder visible under its final name; readers see the old folder or the new one, never a mix.

    Waits for those who read the old one. Raises OutputBusy if that takes too long.
    """
    for file in tmp.rglob("*"):
        if file.is_file():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
    old = out.with_name(f"{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    with unread(record_of(out)):
        if out.exists():
            out.rename(old)
        tmp.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def recover(out: Path) -> None:
    """Undo what a crash inside `publish` or before it left behind."""
    old = out.with_name(f"{out.name}.old")
    if old.exists() and not out.exists():
        old.rename(out)
    shutil.rmtree(old, ignore_errors=True)
    for leftover in out.parent.glob(f"{out.name}.tmp-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Write, fsync, rename: the file is whole or absent."""
    tmp = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # two processes may look at one input for the first time
    with tmp.open("w") as stream:
        json.dump(value, stream, indent=1, sort_keys=True, ensure_ascii=False)
        stream.flush()
        os.fsync(stream.fileno())
    tmp.rename(path)


def own_peak_mb() -> float:
    """Largest resident size of this process, in MB. Not getrusage's on Linux: that one begins with the size of the process that started us."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def die_with_parent() -> None:
    """Ask the kernel to kill this process when the one that launched it dies (Linux); launchers set $VLM_PARENT_PID."""
    parent = os.environ.get("VLM_PARENT_PID")
    if parent and sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != int(parent) and os.getppid() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
