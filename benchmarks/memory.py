"""Memory that one row costs the process of a verb: `download`, when everything is fetched already, and `shard`; and what `recaption` holds of a caption.

    python -m benchmarks.memory [--sizes 800 2400] [--out benchmarks/results/memory.txt]

Pictures of noise in a WebDataset tar go through crawl, extract and download; then download runs once more with nothing to ask, so what it holds are its own
tables, and shard takes all of it. Each run is a process of its own; the cost of a row is the difference of the peaks of two sizes divided by their rows.
Captions have about 60 letters, addresses about 40.

    python -m benchmarks.memory --recaption 8192 16384

Of `recaption` only the lists are counted, by tracemalloc in this process: kept samples, page captions, tasks, answers, rows and the table, one rewrite of
every caption; both sizes should be whole blocks. Models, stored vectors and what judging needs for a moment are not in it.
"""

import argparse
import io
import json
import os
import platform
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from vlm_core.data.captions.answers import Answer, Answers, Price, Request
from vlm_core.data.captions.config import Recaption, Rewrite
from vlm_core.data.captions.plan import Row, Task, page_captions, plan_rewrites
from vlm_core.data.sample import CAPTIONS, make_uid
from vlm_core.data.shards.tar import TarWriter
from vlm_core.models.rewrite import Desk, Part
from vlm_core.stage import Report, Stage
from vlm_core.track import NullTracker

ROOT = Path(__file__).parent.parent


def run(folder: Path, verb: str, recipe: str, out: str, changes: tuple[str, ...] = (), **inputs: str) -> float:
    """Peak memory of the verb in MB."""
    words = [sys.executable, "-W", "ignore", "-m", "vlm_core", verb, "--recipe", recipe, "--force", "--out", str(folder / out)]
    words += [word for change in changes for word in ("--set", change)]
    words += [word for name, place in inputs.items() for word in ("--in", f"{name}={folder / place}")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "VLM_HOME": str(folder / "home")}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"vlm {verb} ended with {done.returncode}: {done.stderr[-2000:]}")
    return Report.model_validate_json((folder / f"{out}.run" / "result.json").read_text()).peak_memory_mb


def write_source(folder: Path, rows: int) -> None:
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    with TarWriter(folder / "00000.tar") as tar:
        for number in range(rows):
            stream = io.BytesIO()
            Image.fromarray(random.integers(0, 256, (72, 96, 3), dtype=np.uint8)).save(stream, "JPEG", quality=60)
            tar.add(f"{number:06d}.jpg", stream.getvalue())
            told = {
                "url": f"http://host{number % 97}.example/pictures/{number:08d}.jpg",
                "caption": f"a picture of noise with number {number} out of a long series of them",
            }
            tar.add(f"{number:06d}.json", json.dumps(told).encode())


def measure(folder: Path, rows: int) -> tuple[float, float, int]:
    """(peak of download in MB, peak of shard, rows that came through)."""
    write_source(folder / "source", rows)
    run(folder, "crawl", "webdataset_crawl", "pages", (f"source.path={folder / 'source'}",))
    run(folder, "extract", "demo_extract", "pairs", (), pages="pages")
    for _ in range(2):
        fetched = run(folder, "download", "web_download", "images", ("processes=1",), pairs="pairs", pages="pages")
    status = pq.read_table(folder / "images" / "status.parquet", columns=["uid", "status"]).to_pylist()
    uids = [row["uid"] for row in status if row["status"] == "ok"]
    (folder / "filtered").mkdir()
    (folder / "captions").mkdir()
    raw = {row["uid"]: row["caption"] for row in pq.read_table(folder / "pairs" / "pairs.parquet", columns=["uid", "caption"]).to_pylist()}
    kept = [{"uid": uid, "caption": raw[uid], "lang": "en", "clip_score": 0.3, "group": uid} for uid in uids]
    pq.write_table(pa.Table.from_pylist(kept), folder / "filtered" / "kept.parquet")
    pq.write_table(CAPTIONS.empty_table(), folder / "captions" / "captions.parquet")
    sharded = run(folder, "shard", "demo_shard", "shards", (), pairs="pairs", images="images", filtered="filtered", captions="captions")
    return fetched, sharded, len(uids)


class Echo(NamedTuple):
    """A writer and a judge that cost no memory of their own."""

    price: Price = Price()

    def answer(self, requests: Iterable[Request], proven: bool = False) -> Iterator[tuple[Request, Answer]]:
        return ((request, Answer(f"This shows {request.prompt.caption}", 100, 10)) for request in requests)

    def __call__(self, tasks: Sequence[Task], texts: Sequence[str]) -> list[Row]:
        return [{"text_score": 0.9, "image_score": 0.3, "added": 0.0, "accepted": True, "reason": ""} for _ in tasks]


def recaption_holds(rows: int) -> int:
    """Bytes of Python's memory, at most, while one rewrite of each of so many captions is planned, asked for, judged and put into a table."""
    config = Recaption(rewrite=Rewrite(captions=0), trace_share=0)
    with tempfile.TemporaryDirectory(prefix="vlm-memory-") as folder:
        stage, store = Stage("recaption", {}, *[Path(folder)] * 3, NullTracker(), ""), Answers(Path(folder) / "answers.sqlite")
        tracemalloc.start()
        texts = [f"a picture of noise with number {number} out of a long series of them" for number in range(rows)]
        kept = [{"uid": make_uid(f"http://host.example/{text}", text), "caption": text, "lang": "en", "merged": None} for text in texts]
        pairs = {row["uid"]: {"uid": row["uid"], "captions": [{"text": row["caption"], "origin": "alt", "lang": "en"}]} for row in kept}
        desk = Desk(config, stage, store, cast(Any, Echo()))
        desk.work(Part(plan_rewrites(config.rewrite, kept, 0), "openai:echo", "{}", Echo))
        table = pa.Table.from_pylist([*page_captions(kept, pairs), *(item.row for item in desk.written)], CAPTIONS)
        assert len(table) == 2 * rows
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        store.close()
    return peak + table.nbytes  # Arrow's memory is not Python's


def main() -> None:
    parser = argparse.ArgumentParser(description="Memory of a row in download and shard.")
    parser.add_argument("--sizes", type=int, nargs=2, default=(800, 2400))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--recaption", type=int, nargs=2, help="count what recaption holds for so many captions, and nothing else")
    args = parser.parse_args()
    if args.recaption:
        few, many = args.recaption
        print(f"recaption: {(recaption_holds(many) - recaption_holds(few)) / (many - few) / 1000:.1f} KB per rewritten caption, between {few:,} and {many:,}")
        return
    with tempfile.TemporaryDirectory(prefix="vlm-memory-") as folder:
        small, large = (measure(Path(folder) / str(rows), rows) for rows in args.sizes)
    lines = [
        f"# benchmarks/memory.py --sizes {args.sizes[0]} {args.sizes[1]}",
        f"# Python {platform.python_version()}, {platform.machine()}, one thread; rows that came through: {small[2]:,} and {large[2]:,}",
        "verb        peak, MB (two sizes)   KB of memory / row",
    ]
    for place, verb in enumerate(("download", "shard")):
        lines.append(f"{verb:10} {small[place]:8.1f} {large[place]:10.1f} {1000 * (large[place] - small[place]) / (large[2] - small[2]):15.1f}")
    text = "\n".join(lines) + "\n"
    print(text)
    if args.out:
        args.out.write_text(text)


if __name__ == "__main__":
    main()
