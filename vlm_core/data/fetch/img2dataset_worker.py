"""img2dataset with our fetch and decode under it, in a process of its own: `python -m vlm_core.data.fetch.img2dataset_worker JOB.json`.

Its reader, sharding, resizing, encoding, tar writing, statistics and resume by shard are used as they are. Ours: the fetch function, the decoding
before the resizer, and the process pool (theirs waits forever for a worker that was killed). Below its shards we keep the state of each address,
so that a restart after kill -9 asks only for what is still missing.
"""

import contextlib
import functools
import gc
import importlib
import io
import os
import resource
import sys
import time
import types
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import imagehash  # noqa: F401  `perceptual` imports both at their first use, which would count as the time of the first picture
import numpy as np
import pdqhash  # noqa: F401
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg
from numpy.typing import NDArray

from vlm_core.data.child import CRASHED
from vlm_core.data.fetch.client import Job, client_of
from vlm_core.data.fetch.fetch import Fetched
from vlm_core.data.fetch.picture import Header, Limits, decode, plain_jpeg
from vlm_core.data.fetch.schedule import passing
from vlm_core.data.fetch.spool import Place
from vlm_core.data.filter import perceptual
from vlm_core.data.web.address import FetchFailed
from vlm_core.data.web.politeness import Later
from vlm_core.stage import die_with_parent, own_peak_mb


@contextlib.contextmanager
def _without(*names: str) -> Iterator[None]:
    """Let a package be imported without parts that it imports and we do not use: 650 MB become 160 MB per process."""
    absent = [name for name in names if name not in sys.modules]
    sys.modules.update({name: types.ModuleType(name) if name == "wandb" else None for name in absent})  # type: ignore[misc]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name in absent:
            del sys.modules[name]


with _without("torch", "wandb"):
    import img2dataset.downloader
    import img2dataset.resizer

    ENGINE: Any = importlib.import_module("img2dataset.main")  # `img2dataset.main` is a function of that name

ADDRESS_SPACE = 6 * 2**30  # bytes, far above what stays resident
COLLECT_AFTER = (20_000, 20, 20)  # instead of Python's (700, 10, 10)
NEARLY = 1.5  # up to so many times its size a picture is made smaller by linear interpolation, which still looks at every pixel and is faster
FLAT = 1.0  # standard deviation of every channel below which a picture shows nothing


class Stream(io.RawIOBase):
    """The fetched file as img2dataset wants it; read only when its turn to be decoded comes, so that waiting pictures take no memory."""

    def __init__(self, place: Place, record: Fetched) -> None:
        self.place, self.record = place, record

    def seek(self, offset: int, whence: int = 0) -> int:
        return 0

    def read(self, size: int = -1) -> bytes:
        return self.place.read()


class _Cv2:
    """cv2 as img2dataset's resizer sees it: decoding gives the picture that we have decoded, and what it encodes is kept for the hashes."""

    def __init__(self) -> None:
        self.decoded: NDArray[Any] | None = None
        self.encoded: NDArray[Any] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(cv2, name)

    def imdecode(self, data: NDArray[Any], flags: int) -> NDArray[Any] | None:
        return self.decoded

    def imencode(self, form: str, picture: NDArray[Any], params: list[int]) -> Any:
        self.encoded = picture
        return cv2.imencode(form, picture, params)


_cv2 = img2dataset.resizer.cv2 = _Cv2()
img2dataset.resizer.SuppressStdoutStderr = contextlib.nullcontext  # what libraries print goes to our log
for _name in ("SmallestMaxSize", "LongestMaxSize", "CenterCrop"):  # making one costs as much as resizing
    setattr(img2dataset.resizer.A, _name, functools.cache(getattr(img2dataset.resizer.A, _name)))


class Upright(img2dataset.resizer.Resizer):
    """img2dataset's resizer, fed with an upright picture without alpha that was checked before it was decoded; it also takes the hashes."""

    job: Job
    records: dict[str, dict[str, Any]]
    full = False  # decode and average every pixel

    def __call__(self, img_stream: Any, blurring_bbox_list: Any = None) -> tuple[Any, ...]:
        if not isinstance(img_stream, Stream):
            return self.resize(img_stream)
        url = img_stream.record.url
        with client_of(self.job).decoding(url):
            result = self.resize(io.BytesIO(img_stream.place.read()))
            self.records[url] = _record(img_stream.record, *result)
        return result

    def resize(self, stream: BinaryIO) -> tuple[Any, ...]:
        """(bytes, width, height, original width, original height, error), error being a word of the closed list and what it found."""
        side = 0 if self.full or self.resize_mode == img2dataset.resizer.ResizeMode.no else self.image_size
        limits = self.job.limits if hasattr(self, "job") else Limits(64_000_000, 512, 1, 0.0)
        try:
            _cv2.decoded, header = _pixels(stream, limits, side)
        except FetchFailed as failed:
            return None, None, None, None, None, f"{failed.status}: {failed.detail}"
        self.downscale_interpolation = cv2.INTER_LINEAR if not self.full and self._leading(_cv2.decoded) < NEARLY * self.image_size else cv2.INTER_AREA
        encoded, width, height, *_, error = super().__call__(io.BytesIO(b"-"))
        return encoded, width, height, header.width, header.height, None if error is None else f"decode_error: {error}"

    def _leading(self, pixels: NDArray[Any]) -> int:
        """The side of a picture that is made as long as the settings say."""
        shorter = self.resize_mode in {img2dataset.resizer.ResizeMode.keep_ratio, img2dataset.resizer.ResizeMode.center_crop}
        return int((min if shorter else max)(pixels.shape[:2]))


_REDUCED = {2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8}


def _pixels(stream: BinaryIO, limits: Limits, side: int) -> tuple[NDArray[Any], Header]:
    """The upright picture, grey or BGR. Plain JPEGs, which is most of the web, take the short way through OpenCV. Raises FetchFailed."""
    if (plain := plain_jpeg(stream, limits, side)) is not None:
        header, reduction = plain
        stream.seek(0)
        data = stream.read()
        if reduction == 1:
            with contextlib.suppress(ValueError):  # not quite in order: OpenCV may take it all the same
                if simplejpeg.decode_jpeg_header(data)[2] != "Gray":
                    return simplejpeg.decode_jpeg(data, colorspace="BGR"), header  # the same pixels as OpenCV's, sooner
        found = cv2.imdecode(np.frombuffer(data, np.uint8), _REDUCED.get(reduction, cv2.IMREAD_UNCHANGED))
        if found is not None and found.ndim in {2, 3}:
            return found, header
    image, header = decode(stream, limits, side)
    pixels = np.asarray(image)
    return (pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)), header


def _record(fetched: Fetched, encoded: bytes | None, width: int, height: int, original_width: int, original_height: int, error: str | None) -> dict[str, Any]:
    """The record of an address after its picture was resized. The hashes are those of the stored picture before it was compressed."""
    picture, _cv2.decoded, _cv2.encoded = _cv2.encoded, None, None
    if encoded is None or picture is None:
        status, _, detail = str(error).partition(": ")
        return replace(fetched, status=status, detail=detail).json()
    rgb = cv2.cvtColor(picture, cv2.COLOR_GRAY2RGB if picture.ndim == 2 else cv2.COLOR_BGR2RGB)
    bits, quality = perceptual.pdq(rgb)
    if quality == 0 and cv2.meanStdDev(rgb)[1].max() < FLAT:
        return replace(fetched, status="placeholder", detail="one colour").json()
    looks = {"phash": perceptual.to_hex(perceptual.phash(rgb)), "pdq": perceptual.to_hex(bits), "pdq_quality": quality}
    return {**fetched.json(), "stored_width": width, "stored_height": height, "stored_bytes": len(encoded), **looks}


class Shards(img2dataset.downloader.Downloader):
    """img2dataset's downloader of one shard; its fetch function looks into the ledger first, and what it finds goes there."""

    job: Job

    def download_shard(self, row: tuple[int, str]) -> None:
        warnings.simplefilter("ignore")
        client, ledger, resizer = client_of(self.job), self.job.ledger, self.resizer
        client.unfinished = client.unfinished if self.job.first else {}  # all of it was given back in the first pass
        client.fetcher.patience_s = self.job.config.network.patience_s if self.job.first else float("inf")
        records: dict[str, dict[str, Any]] = {}
        resizer.job, resizer.records, resizer.full = self.job, records, self.job.config.full_decode

        def fetch(row: tuple[int, str], **_: Any) -> tuple[int, Stream | None, str | None]:
            key, url = row
            try:
                record, place = client.fetch(url)
            except Later:
                return key, None, "later"
            if place is None:
                records[url] = record.json()
                return key, None, record.status
            return key, Stream(place, record), None

        img2dataset.downloader.download_image_with_retry = fetch
        super().download_shard(row)
        ledger.shard_done(Path(self.output_folder), row[0], records)
        ledger.note_memory(own_peak_mb())


class _NoLogger:
    """In place of img2dataset's logging process, which outlives a kill -9; the statistics files are written all the same."""

    done_shards: set[int] = set()

    def __init__(self, *args: Any) -> None: ...
    def start(self) -> None: ...
    def join(self) -> None: ...
    def terminate(self) -> None: ...


class Workers:
    """img2dataset's place for a distributor. The processes outlive a pass; one that dies ends the job with CRASHED instead of being waited for."""

    def __init__(self, processes: int) -> None:
        self.pool: ProcessPoolExecutor | None = None
        if processes > 1:
            self.pool = ProcessPoolExecutor(processes, get_context("spawn"), initializer=_follow, initargs=(os.getpid(),))

    def __call__(self, processes: int, downloader: Shards, reader: Iterable[tuple[int, str]], subjob_size: int, max_shard_retry: int) -> None:
        if self.pool is None:
            for row in reader:
                _insist(*downloader(row))
            return
        try:
            for done in as_completed([self.pool.submit(downloader, row) for row in reader]):
                _insist(*done.result())
        except BrokenProcessPool:
            raise SystemExit(CRASHED) from None

    def close(self) -> None:
        if self.pool is not None:
            self.pool.shutdown(wait=True, cancel_futures=True)


def _insist(success: bool, row: tuple[int, str]) -> None:
    if not success:
        raise SystemExit(f"shard {row[0]} failed, see above")


def _follow(parent: int) -> None:
    os.environ["VLM_PARENT_PID"] = str(parent)
    die_with_parent()
    _collect_seldom()


def _collect_seldom() -> None:
    """What was imported stays, so the garbage collector need not look through it again and again; a picture leaves next to no cycles behind."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)


def _downloader(job: Job) -> Any:
    def make(**parts: Any) -> Shards:
        made = Shards(**parts)
        made.job = job
        return made

    return make


def main(file: str) -> None:
    """Pass after pass, until every address has an answer and what failed in a way that may pass has been asked as often as the settings say."""
    die_with_parent()
    _collect_seldom()
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))  # of this process and of all that it starts
    job, failures = Job(file), Counter[str]()
    config, ledger = job.config, job.ledger
    ENGINE.LoggerProcess, ENGINE.Resizer = _NoLogger, Upright
    ENGINE.multiprocessing_distributor = workers = Workers(config.processes)
    todo = ledger.read_todo()
    try:
        while todo:
            folder = ledger.new_pass()
            _run_pass(job, folder, todo)
            if ledger.stopped():
                return
            events = {event["url"]: event for event in ledger.events([folder])}
            failures.update(url for url, event in events.items() if passing(event, config.retry))
            todo = [url for url in todo if url not in events or 0 < failures[url] <= config.fetch.retries and passing(events[url], config.retry)]
            if todo and any(url in events for url in todo):
                time.sleep(min(config.network.max_quiet_s, config.fetch.retry_wait_s * 2 ** (max(failures.values()) - 1)))
            job = Job(file, first=False)
    finally:
        workers.close()


def _run_pass(job: Job, folder: Path, todo: list[str]) -> None:
    config, table = job.config, folder / "todo.parquet"
    pq.write_table(pa.table({"url": pa.array(todo, pa.string())}), table)
    ENGINE.Downloader = _downloader(job)
    ENGINE.download(
        url_list=str(table), input_format="parquet", output_folder=str(folder), output_format="webdataset",
        image_size=config.image_size, resize_mode=config.resize_mode, resize_only_if_bigger=config.only_if_bigger, encode_quality=config.jpeg_quality,
        processes_count=config.processes, thread_count=config.threads, number_sample_per_shard=config.shard_size,
        extract_exif=False, compute_hash=None, disallowed_header_directives=[], incremental_mode="incremental",
    )  # fmt: skip


if __name__ == "__main__":
    importlib.import_module("vlm_core.data.fetch.img2dataset_worker").main(sys.argv[1])  # classes must pickle under their own module, not under __main__
