"""img2dataset with our fetch and decode under it, in a process of its own: `python -m vlm_core.data.img2dataset_worker JOB.json`.

Its reader, sharding, resizing, encoding, tar writing, statistics and resume by shard are used as they are. Ours: the fetch function, the decoding
before the resizer, and the process pool (theirs waits forever for a worker that was killed). Below its shards we keep the state of each address,
so that a restart after kill -9 asks only for what is still missing.
"""

import contextlib
import importlib
import io
import json
import os
import resource
import sys
import types
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from vlm_core.data import perceptual
from vlm_core.data.address import FetchFailed
from vlm_core.data.child import CRASHED
from vlm_core.data.crawl_config import Download
from vlm_core.data.fetch import Fetched, Fetcher
from vlm_core.data.ledger import Ledger
from vlm_core.data.picture import Limits, decode
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

FLAT = 1.0  # standard deviation of grey levels below which a picture shows nothing


class Job:
    """What every process of a job shares. Pickles as the name of its file."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.config = Download.read(json.loads(Path(file).read_text()))
        self.ledger = Ledger(Path(file).parent)
        self.limits = Limits(self.config.fetch.max_pixels, self.config.fetch.max_decoded_mb, self.config.fetch.min_side, self.config.fetch.max_aspect)

    def __reduce__(self) -> tuple[type["Job"], tuple[str]]:
        return Job, (self.file,)

    def fetcher(self) -> Fetcher:
        config = self.config
        blocked = Path(config.blocked_hashes).read_text().split() if config.blocked_hashes else []
        return Fetcher(config.network, config.fetch, config.processes, self.ledger.robots, blocked)


class Stream(io.RawIOBase):
    """The fetched file as img2dataset wants it; opened only when its turn to be decoded comes, so that waiting pictures take no memory."""

    def __init__(self, path: Path, record: Fetched) -> None:
        self.path, self.record = path, record

    def seek(self, offset: int, whence: int = 0) -> int:
        return 0

    def read(self, size: int = -1) -> bytes:
        return self.path.read_bytes()


class Upright(img2dataset.resizer.Resizer):
    """img2dataset's resizer, fed with an upright picture without alpha that was checked before it was decoded; it also takes the hashes."""

    job: Job

    def __call__(self, img_stream: Any, blurring_bbox_list: Any = None) -> tuple[Any, ...]:
        if not isinstance(img_stream, Stream):
            return self.resize(img_stream)
        self.job.ledger.mark(img_stream.record.url)
        with img_stream.path.open("rb") as file:
            result = self.resize(file)
        self.job.ledger.finish(img_stream.record, _record(img_stream.record, *result))
        self.job.ledger.mark("")
        return result

    def resize(self, stream: BinaryIO) -> tuple[Any, ...]:
        """(bytes, width, height, original width, original height, error), error being a word of the closed list and what it found."""
        side = 0 if self.resize_mode == img2dataset.resizer.ResizeMode.no else self.image_size
        limits = self.job.limits if hasattr(self, "job") else Limits(64_000_000, 512, 1, 0.0)
        try:
            image, header = decode(stream, limits, side)
        except FetchFailed as failed:
            return None, None, None, None, None, f"{failed.status}: {failed.detail}"
        plain = io.BytesIO()
        image.save(plain, "PPM")
        encoded, width, height, *_, error = super().__call__(plain)
        return encoded, width, height, header.width, header.height, None if error is None else f"decode_error: {error}"


def _record(fetched: Fetched, encoded: bytes | None, width: int, height: int, original_width: int, original_height: int, error: str | None) -> dict[str, Any]:
    """The record of an address after its picture was resized."""
    if encoded is None:
        status, _, detail = str(error).partition(": ")
        return replace(fetched, status=status, detail=detail).json()
    rgb = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
    if rgb.mean(axis=2).std() < FLAT and rgb.std(axis=(0, 1)).max() < FLAT:
        return replace(fetched, status="placeholder", detail="one colour").json()
    bits, quality = perceptual.pdq(rgb)
    looks = {"phash": perceptual.to_hex(perceptual.phash(rgb)), "pdq": perceptual.to_hex(bits), "pdq_quality": quality}
    return {**fetched.json(), "stored_width": width, "stored_height": height, **looks}


class Shards(img2dataset.downloader.Downloader):
    """img2dataset's downloader of one shard; its fetch function looks into the ledger first."""

    job: Job
    fetcher: Fetcher | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "fetcher": None}

    def download_shard(self, row: tuple[int, str]) -> None:
        warnings.simplefilter("ignore")
        shared = _shared_fetcher(self.job)
        ledger, resizer = self.job.ledger, self.resizer
        resizer.job = self.job

        def fetch(row: tuple[int, str], **_: Any) -> tuple[int, Stream | None, str | None]:
            key, url = row
            record = ledger.known(url)
            if record is None:
                record = shared.fetch(url, ledger.body(url))
                ledger.finish(record, record.json())
            if record.status != "ok":
                return key, None, record.status
            return key, Stream(ledger.body(url), record), None

        img2dataset.downloader.download_image_with_retry = fetch
        super().download_shard(row)
        ledger.shard_done(row[0])
        ledger.note_memory(own_peak_mb())


_fetchers: dict[str, Fetcher] = {}


def _shared_fetcher(job: Job) -> Fetcher:
    """One client, one TLS context and one set of connections per process."""
    if job.file not in _fetchers:
        _fetchers[job.file] = job.fetcher()
    return _fetchers[job.file]


class _NoLogger:
    """In place of img2dataset's logging process, which outlives a kill -9; the statistics files are written all the same."""

    done_shards: set[int] = set()

    def __init__(self, *args: Any) -> None: ...
    def start(self) -> None: ...
    def join(self) -> None: ...
    def terminate(self) -> None: ...


def _distribute(processes: int, downloader: Shards, reader: Iterable[tuple[int, str]], subjob_size: int, max_shard_retry: int) -> None:
    """img2dataset's place for a distributor. A worker that dies ends the job with CRASHED instead of being waited for."""
    if processes == 1:
        for row in reader:
            _insist(*downloader(row))
        return
    pool = ProcessPoolExecutor(processes, get_context("spawn"), initializer=_limit_memory, initargs=(os.getpid(),))
    try:
        for done in as_completed([pool.submit(downloader, row) for row in reader]):
            _insist(*done.result())
    except BrokenProcessPool:
        raise SystemExit(CRASHED) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _insist(success: bool, row: tuple[int, str]) -> None:
    if not success:
        raise SystemExit(f"shard {row[0]} failed, see above")


def _limit_memory(parent: int) -> None:
    os.environ["VLM_PARENT_PID"] = str(parent)
    die_with_parent()
    resource.setrlimit(resource.RLIMIT_AS, (6 * 2**30, 6 * 2**30))  # address space, far above what stays resident


def _downloader(job: Job) -> Any:
    def make(**parts: Any) -> Shards:
        made = Shards(**parts)
        made.job = job
        return made

    return make


def main(file: str) -> None:
    die_with_parent()
    job = Job(file)
    job.ledger.prepare()
    config = job.config
    ENGINE.LoggerProcess = _NoLogger
    ENGINE.Resizer = Upright
    ENGINE.Downloader = _downloader(job)
    ENGINE.multiprocessing_distributor = _distribute
    ENGINE.download(
        url_list=str(job.ledger.todo), input_format="parquet", output_folder=str(job.ledger.shards), output_format="webdataset",
        image_size=config.image_size, resize_mode=config.resize_mode, resize_only_if_bigger=config.only_if_bigger, encode_quality=config.jpeg_quality,
        processes_count=config.processes, thread_count=config.threads, number_sample_per_shard=config.shard_size,
        extract_exif=False, compute_hash=None, disallowed_header_directives=[], incremental_mode="incremental",
    )  # fmt: skip


if __name__ == "__main__":
    importlib.import_module("vlm_core.data.img2dataset_worker").main(sys.argv[1])  # classes must pickle under their own module, not under __main__
