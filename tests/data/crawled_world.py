"""Training shards as a crawl of the embedded corpus would give them: real pictures, real captions, made by the real `vlm shard`."""

import gzip
import hashlib
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.data.small_world import stage_for
from vlm_core.data.config import Shard
from vlm_core.data.crawl.corpus import META, Corpus, Picture
from vlm_core.data.sample import CAPTIONS, DOWNLOADS, PAIRS, make_uid
from vlm_core.data.shards.shards import shard
from vlm_core.data.shards.tar import TarWriter

CORPUS = Path(__file__).parents[2] / "infra/demo/corpus.tar"


def as_stored(content: bytes) -> bytes:
    """What the downloader keeps: a JPEG on white."""
    with Image.open(io.BytesIO(content)) as picture:
        rgba = picture.convert("RGBA")
    white = Image.new("RGBA", rgba.size, "white")
    white.alpha_composite(rgba)
    out = io.BytesIO()
    white.convert("RGB").save(out, "JPEG", quality=95)
    return out.getvalue()


def part_of(corpus: Corpus, pictures: list[Picture], path: Path) -> Path:
    """A corpus of these pictures only."""
    lines = [json.dumps(picture.model_dump()) for picture in pictures]
    with TarWriter(path) as tar:
        tar.add(META, gzip.compress("\n".join(lines).encode(), mtime=0))
        for picture in pictures:
            tar.add(picture.file, corpus.read(picture.file))
    return path


def shards_of(corpus: Corpus, pictures: list[Picture], root: Path) -> Path:
    """A shards folder of these pictures, one caption each."""
    pairs, status, kept = [], [], []
    folders = {name: root / name for name in ("pairs", "images", "filtered", "captions")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    for picture in pictures:
        lang = picture.pages[0].split("/")[1]
        caption, content = picture.captions[lang], corpus.read(picture.file)
        uid = make_uid(picture.url, caption)
        pairs.append(
            {
                "uid": uid,
                "url": picture.url,
                "caption": caption,
                "lang": lang,
                "source": picture.url.split("/")[2],
                "captions": [{"text": caption, "origin": "alt", "lang": lang}],
            }
        )
        status.append({"uid": uid, "url": picture.url, "status": "ok", "shard": "00000.tar", "sha256": hashlib.sha256(content).hexdigest(), "width": 64, "height": 64})
        kept.append({"uid": uid, "caption": caption, "lang": lang, "clip_score": 0.3, "group": uid})
    with TarWriter(folders["images"] / "00000.tar") as tar:
        for row, picture in sorted(zip(status, pictures, strict=True), key=lambda pair: pair[0]["uid"]):
            tar.add(f"{row['uid']}.jpg", as_stored(corpus.read(picture.file)))
            tar.add(f"{row['uid']}.json", b"{}")
    pq.write_table(pa.Table.from_pylist(sorted(pairs, key=lambda row: row["uid"]), PAIRS), folders["pairs"] / "pairs.parquet")
    pq.write_table(pa.Table.from_pylist(sorted(status, key=lambda row: row["uid"]), DOWNLOADS), folders["images"] / "status.parquet")
    pq.write_table(pa.Table.from_pylist(sorted(kept, key=lambda row: row["uid"])), folders["filtered"] / "kept.parquet")
    pq.write_table(pa.Table.from_pylist([], CAPTIONS), folders["captions"] / "captions.parquet")
    stage = stage_for(root / "made", folders)
    shard(Shard(held_out=0.1), stage)
    return stage.out
