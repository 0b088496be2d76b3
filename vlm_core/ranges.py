"""The work of a verb cut into ranges, so that it may be done elsewhere: in this process, in several of this machine, or on a Ray cluster.

    files = ranges.work(stage.state / "trunk", "vlm_core.models.picture_ranges:offline_worker", job, total, size, stage.progress)

The function named is called once per process with the job (plain JSON) and gives a worker; the worker is called as `worker(begin, end)` and gives the bytes
of its range, which become one file of the folder, whole or not at all. The verb reads the files in their order. So where a range was done changes
nothing in the result, a killed run goes on where it was, and a range whose process died is done again by another one.

$VLM_ENGINE says where ranges are done; it is no setting, because it must not change a result:

    (unset)          in the process of the verb
    processes:4      in four processes of this machine
    ray              on the Ray cluster of $RAY_ADDRESS, or else on one that is started on this machine (extra `ray`)
    ray:HOST:PORT    on that cluster. Its machines must see code and data under the same paths

$VLM_RANGE_GPUS is what each range asks Ray for: 1, or 0.25 where four share one. Unset, none, and Ray's processes see no GPU.
"""

import functools
import importlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from vlm_core.errors import ConfigError, LaunchError
from vlm_core.stage import PACKAGE, die_with_parent, write_json
from vlm_core.switches import switch_off

TRIES = 4  # processes that one range may take down
Range = tuple[int, int]
Worker = Callable[[int, int], bytes]
Progress = Callable[[str, int, int], None]
Engine = Callable[[Path, list[Range]], Iterator[Range]]


def work(folder: Path, function: str, job: Mapping[str, Any], total: int, size: int, progress: Progress | None = None) -> list[Path]:
    """The files of all ranges of 0 .. total, `size` each, in order; those that are there already are not made again."""
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "job.json", {"function": function, "job": dict(job)})
    ranges = [(begin, min(begin + size, total)) for begin in range(0, total, size)]
    missing = [span for span in ranges if not file_of(folder, span).exists()]
    done = total - sum(end - begin for begin, end in missing)
    for begin, end in engine()(folder, missing) if missing else ():
        done += end - begin
        if progress is not None:
            progress(f"{folder.name}: done", done, total)
    return [file_of(folder, span) for span in ranges]


def elsewhere() -> bool:
    """Whether ranges are done in other processes than this one."""
    return bool(os.environ.get("VLM_ENGINE"))


def file_of(folder: Path, span: Range) -> Path:
    return folder / f"{span[0]:012d}"


def engine() -> Engine:
    """What $VLM_ENGINE names. Raises ConfigError."""
    said = os.environ.get("VLM_ENGINE", "")
    if not said:
        return _here
    if (found := re.fullmatch(r"processes:(\d{1,3})", said)) and int(found[1]):
        return functools.partial(_processes, count=int(found[1]))
    if said == "ray" or said.startswith("ray:"):
        return functools.partial(_ray, address=said.removeprefix("ray").removeprefix(":"))
    raise ConfigError(f"Found {said!r} in VLM_ENGINE, expected nothing, processes:N, ray or ray:HOST:PORT; correct it or unset it.")


def do(folder: str, begin: int, end: int) -> Range:
    """One range: ask the worker, and publish what it gives. Runs wherever the engine put it."""
    file = file_of(Path(folder), (begin, end))
    part = file.with_name(f".{file.name}.{os.uname().nodename}-{os.getpid()}")  # another process may be doing the same range
    with part.open("wb") as stream:
        stream.write(_worker(Path(folder))(begin, end))
        stream.flush()
        os.fsync(stream.fileno())
    part.rename(file)
    return begin, end


def _worker(folder: Path) -> Worker:
    file = folder / "job.json"
    return _prepared(file, file.stat().st_mtime_ns)


@functools.lru_cache(maxsize=1)
def _prepared(file: Path, stamp: int) -> Worker:
    """The worker of a job: what it loads, it loads once per process."""
    told = json.loads(file.read_text())
    module, _, name = told["function"].partition(":")
    worker: Worker = getattr(importlib.import_module(module), name)(told["job"])
    return worker


# ---------------------------------------------------------------- engines


def _here(folder: Path, missing: list[Range]) -> Iterator[Range]:
    try:
        for span in missing:
            yield do(str(folder), *span)
    finally:
        _prepared.cache_clear()


def _processes(folder: Path, missing: list[Range], count: int) -> Iterator[Range]:
    """A process that dies takes the pool down; what is not there then goes to a new one."""
    for _ in range(TRIES):
        missing = [span for span in missing if not file_of(folder, span).exists()]
        if not missing:
            return
        try:
            with ProcessPoolExecutor(count, get_context("spawn"), _begin, (os.getpid(),)) as pool:
                futures = [pool.submit(do, str(folder), *span) for span in missing]
                try:
                    yield from (future.result() for future in as_completed(futures))
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
        except BrokenProcessPool:
            continue
    raise _given_up(folder, (span for span in missing if not file_of(folder, span).exists()))


def _begin(parent: int) -> None:
    os.environ["VLM_PARENT_PID"] = str(parent)
    os.environ.pop("VLM_ENGINE", None)  # a range is not cut again
    die_with_parent()
    switch_off()


def _ray(folder: Path, missing: list[Range], address: str) -> Iterator[Range]:
    """Ray gives a range whose worker or node died to another one."""
    ray = _start_ray(address)
    remote = ray.remote(num_cpus=1, num_gpus=_gpus(), max_retries=TRIES - 1)(do)
    waiting = {remote.remote(str(folder), *span): span for span in missing}
    try:
        while waiting:
            ready, _ = ray.wait(list(waiting), num_returns=1)
            for reference in ready:
                span = waiting.pop(reference)
                try:
                    yield ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    raise error.cause if isinstance(error.cause, Exception) else error from None
                except ray.exceptions.RayError as error:
                    raise _given_up(folder, [span], f" ({type(error).__name__})") from None
    finally:
        for reference in waiting:
            ray.cancel(reference)


def _start_ray(address: str) -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise ConfigError("Found no package ray, expected it for VLM_ENGINE=ray; install the extra: pip install -e '.[ray]' -c constraints.txt.") from None
    if not ray.is_initialized():
        paths = os.pathsep.join(path for path in (str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")) if path)
        workers = {"env_vars": {"PYTHONPATH": paths, "VLM_ENGINE": "", **_threads()}}
        ray.init(address=address or os.environ.get("RAY_ADDRESS"), runtime_env=workers, include_dashboard=False, log_to_driver=False, configure_logging=False)
    return ray


def _gpus() -> float:
    """What a range asks Ray for. Raises ConfigError."""
    said = os.environ.get("VLM_RANGE_GPUS", "0")
    try:
        if (share := float(said)) >= 0:
            return share
    except ValueError:
        pass
    raise ConfigError(f"Found {said!r} in VLM_RANGE_GPUS, expected a number of GPUs per range, or a share of one, such as 1 or 0.25; correct it or unset it.")


def _threads() -> dict[str, str]:
    """Ray gives each worker one thread per CPU it asked for, unless the user said otherwise."""
    return {name: os.environ[name] for name in ("OMP_NUM_THREADS", "VLM_HOME") if name in os.environ}


def _given_up(folder: Path, spans: Iterable[Range], why: str = "") -> LaunchError:
    begin, end = next(iter(spans))
    return LaunchError(
        f"Found that the range {begin}..{end} of {folder} took down {TRIES} processes{why}, expected it to end; too little memory does that: use fewer at once."
    )
