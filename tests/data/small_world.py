"""A small, wholly known set of inputs for `vlm shard`: real JPEGs, three languages, rewritten captions, groups of several samples."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from vlm_core.data.config import Shard
from vlm_core.data.sample import CAPTIONS, DOWNLOADS, PAIRS, make_uid
from vlm_core.data.shards.shards import shard
from vlm_core.data.shards.tar import TarWriter
from vlm_core.stage import Report, Stage
from vlm_core.track import NullTracker

WORDS = {"en": "a red ball number {}", "ko": "빨간 공 {}", "ja": "赤いボール {}"}


def picture(number: int, width: int = 40, height: int = 32) -> bytes:
    """A JPEG whose mean colour tells its number."""
    pixels = np.full((height, width, 3), (number * 7 % 256, number * 13 % 256, number * 29 % 256), np.uint8)
    pixels[height // 2 :, : width // 2] //= 2
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=95)
    return stream.getvalue()


def write_inputs(root: Path, n: int = 60, group_size: int = 3) -> dict[str, Path]:
    """The four input folders of `vlm shard` for n samples, all kept, in groups of `group_size`."""
    pairs, status, kept, captions = [], [], [], []
    for number in range(n):
        lang = list(WORDS)[number % 3]
        text, url = WORDS[lang].format(number), f"http://photos.demo.test/{number:04d}.png"
        uid = make_uid(url, text)
        page = f"http://photos.demo.test/page{number // 10}.html"
        pairs.append({"uid": uid, "url": url, "page_url": page, "source": "demo", "caption": text, "lang": lang, "licence": "CC0", "credit": "nobody",
                      "captions": [{"text": text, "origin": "alt", "lang": lang}]})  # fmt: skip
        status.append({"uid": uid, "url": url, "status": "ok", "shard": "00000.tar", "sha256": f"{number:064x}", "width": 40, "height": 32})
        kept.append({"uid": uid, "caption": text, "lang": lang, "clip_score": 0.25 + number / 1000, "group": f"g{number // group_size}"})
        for variant, accepted in (("again", True), ("differently", False)):
            captions.append({"uid": uid, "caption_id": f"{uid}-{variant}", "origin": "rewritten", "text": f"{text}, said {variant}", "lang": lang,
                             "generator": "smollm2", "image_score": 0.3, "accepted": accepted})  # fmt: skip
    for rows in (pairs, status, kept, captions):
        rows.sort(key=lambda row: row["uid"])
    folders = {name: root / name for name in ("pairs", "images", "filtered", "captions")}
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(pairs, PAIRS), folders["pairs"] / "pairs.parquet")
    pq.write_table(pa.Table.from_pylist(status, DOWNLOADS), folders["images"] / "status.parquet")
    pq.write_table(pa.Table.from_pylist(kept), folders["filtered"] / "kept.parquet")
    pq.write_table(pa.Table.from_pylist(captions, CAPTIONS), folders["captions"] / "captions.parquet")
    for part in range(2):
        with TarWriter(folders["images"] / f"{part:05d}.tar") as tar:
            for row in status[part::2]:
                tar.add(f"{row['uid']}.jpg", picture(int(row["sha256"], 16)))
                tar.add(f"{row['uid']}.json", b"{}")
    return folders


def stage_for(root: Path, inputs: dict[str, Path], verb: str = "shard") -> Stage:
    folders = [root / name for name in ("out", "state", "pictures")]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    return Stage(verb, inputs, *folders, NullTracker(), "run0")


def make_shards(root: Path, n: int = 60, config: Shard | None = None) -> tuple[Path, Report]:
    """A shards folder and the report of the verb that made it."""
    stage = stage_for(root, write_inputs(root / "inputs", n))
    report = shard(config or Shard(held_out=0.3, samples_per_shard=12), stage)
    return stage.out, report
