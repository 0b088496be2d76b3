"""Verbs over small worlds, run where $VLM_ENGINE says: what several tests of `vlm_core.ranges` do."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.data.filter_world import World, picture
from tests.data.loopback import Web, body, png
from tests.small_set import SCORER
from vlm_core import run as seam
from vlm_core.data.captions.config import Gates, OfflineWriter, Recaption, Rewrite
from vlm_core.data.config import Embed
from vlm_core.data.crawl.config import Download, Fetch
from vlm_core.data.filter.config import Filter, NearDuplicates, SemanticDuplicates
from vlm_core.data.sample import PAIRS, make_uid
from vlm_core.stage import Report

SITES, PER_SITE = 3, 16


def embed(small_set: Path, out: Path) -> Report:
    return seam.run("embed", Embed(scorer=SCORER), {"images": small_set / "images", "pairs": small_set / "candidate_pairs"}, out)


def recaption(small_set: Path, out: Path) -> Report:
    inputs = {
        "filtered": small_set / "filtered",
        "pairs": small_set / "candidate_pairs",
        "embeddings": small_set / "embeddings",
        "images": small_set / "images",
    }
    settings = Recaption(writer=OfflineWriter(batch=4), rewrite=Rewrite(captions=16), temperature=0.0, max_tokens=12, gates=Gates(max_image_drop=0.2))
    return seam.run("recaption", settings, inputs, out)


def write_copies(folder: Path) -> dict[str, Path]:
    """Ninety pictures, ten of them again with a little noise."""
    world, rng = World(), np.random.default_rng(0)
    for number in range(90):
        world.add(f"a picture {number}", number)
    for number in range(10):
        noisy = np.clip(np.asarray(picture(number), np.int16) + rng.integers(-3, 4, (96, 96, 3)), 0, 255).astype(np.uint8)
        world.add(f"again {number}", Image.fromarray(noisy))
    return world.write(folder)


def deduplicate(inputs: dict[str, Path], out: Path) -> Report:
    settings = Filter(near_duplicates=NearDuplicates(), semantic_duplicates=SemanticDuplicates(clusters=2, eps=0.6))
    return seam.run("filter", settings, inputs, out)


def write_addresses(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Three sites with sixteen addresses each; one in eight is gone."""
    rows, routes = [], {}
    for number in range(SITES * PER_SITE):
        url = f"http://site{number % SITES}.test/{number}.png"
        rows.append(
            {
                "uid": make_uid(url, f"caption {number}"),
                "url": url,
                "caption": f"caption {number}",
                "lang": "en",
                "source": "test",
                "page_url": "",
                "page_optout": "",
                "captions": [],
            }
        )
        if number % 8:
            routes[f"/{number}.png"] = body(png(seed=number))
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(sorted(rows, key=lambda row: row["uid"]), PAIRS), folder / "pairs.parquet")
    return folder, routes


def fetch(pairs: Path, site: Web, out: Path) -> Report:
    network = site.network(*(f"site{number}.test" for number in range(SITES)))
    return seam.run(
        "download", Download(network=network, fetch=Fetch(retries=0, deadline_s=10.0), processes=1, threads=4, shard_size=10), {"pairs": pairs}, out
    )


def listing(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


@contextmanager
def killer(chooses: Callable[[psutil.Process], bool], after: Callable[[], bool]) -> Iterator[list[int]]:
    """Kills, with kill -9, one process that is chosen as soon as `after` holds; the list says which."""
    killed: list[int] = []
    over = threading.Event()

    def watch() -> None:
        while not over.is_set() and not killed:
            for process in psutil.process_iter() if after() else ():
                try:
                    if chooses(process):
                        process.kill()
                        killed.append(process.pid)
                        return
                except psutil.Error:
                    continue
            time.sleep(0.05)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join(10)
