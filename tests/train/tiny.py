"""Coloured shapes with a sentence each: pairs that a model of two thin blocks can learn in seconds, held out by whole sentences."""

import hashlib
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

from tests.data.small_world import stage_for
from vlm_core.data.config import Shard
from vlm_core.data.sample import CAPTIONS, DOWNLOADS, PAIRS, make_uid
from vlm_core.data.shards.shards import shard
from vlm_core.data.shards.tar import TarWriter
from vlm_core.train.config import Pretrain

COLOURS = {"red": (220, 30, 30), "green": (30, 160, 30), "blue": (40, 60, 220), "yellow": (230, 210, 40), "black": (10, 10, 10), "purple": (140, 40, 160)}
SHAPES = ("circle", "square", "bar", "cross")
PLACES = {"left": 0, "right": 20}
SIDE = 32


def picture(colour: str, shape: str, place: str, random: np.random.Generator) -> bytes:
    image = Image.new("RGB", (SIDE, SIDE), tuple(int(value) for value in random.integers(200, 256, 3)))
    draw, x, y = ImageDraw.Draw(image), PLACES[place], int(random.integers(2, 18))
    box = (x, y, x + 11, y + 11)
    match shape:
        case "circle":
            draw.ellipse(box, fill=COLOURS[colour])
        case "square":
            draw.rectangle(box, fill=COLOURS[colour])
        case "bar":
            draw.rectangle((x, y + 4, x + 11, y + 7), fill=COLOURS[colour])
        case "cross":
            draw.line(box, fill=COLOURS[colour], width=3)
            draw.line((x, y + 11, x + 11, y), fill=COLOURS[colour], width=3)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=95)
    return stream.getvalue()


def make_shards(root: Path, copies: int = 8, held_out: float = 0.2) -> Path:
    """A shards folder with `copies` pictures of each of 48 sentences."""
    random = np.random.default_rng(0)
    pairs, status, kept, jpegs = [], [], [], dict[str, bytes]()
    for colour in COLOURS:
        for shape in SHAPES:
            for place in PLACES:
                for copy in range(copies):
                    text, url = f"a {colour} {shape} on the {place}", f"http://shapes.demo.test/{colour}/{shape}/{place}/{copy}.png"
                    uid = make_uid(url, text)
                    jpegs[uid] = picture(colour, shape, place, random)
                    pairs.append({"uid": uid, "url": url, "page_url": "", "source": "shapes", "caption": text, "lang": "en", "licence": "CC0",
                                  "credit": "", "captions": [{"text": text, "origin": "alt", "lang": "en"}]})  # fmt: skip
                    status.append(
                        {
                            "uid": uid,
                            "url": url,
                            "status": "ok",
                            "shard": "00000.tar",
                            "sha256": hashlib.sha256(jpegs[uid]).hexdigest(),
                            "width": SIDE,
                            "height": SIDE,
                        }
                    )
                    kept.append({"uid": uid, "caption": text, "lang": "en", "clip_score": 0.3, "group": text})
    folders = {name: root / name for name in ("pairs", "images", "filtered", "captions")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(pairs, PAIRS), folders["pairs"] / "pairs.parquet")
    pq.write_table(pa.Table.from_pylist(status, DOWNLOADS), folders["images"] / "status.parquet")
    pq.write_table(pa.Table.from_pylist(kept), folders["filtered"] / "kept.parquet")
    pq.write_table(pa.Table.from_pylist([], CAPTIONS), folders["captions"] / "captions.parquet")
    with TarWriter(folders["images"] / "00000.tar") as tar:
        for uid in sorted(jpegs):
            tar.add(f"{uid}.jpg", jpegs[uid])
            tar.add(f"{uid}.json", b"{}")
    stage = stage_for(root, folders)
    shard(Shard(held_out=held_out), stage)
    return stage.out


# The smallest model that learns them; as --set values, so that processes get the same.
SMALL = (
    "model.image={kind: vit, image_size: 32, patch_size: 8, width: 32, layers: 1, heads: 2}",
    "model.text={kind: clip_transformer, context_length: 12, width: 32, layers: 1, heads: 2}",
    "model.width=32", "loader.batch_size=64", "fit.epochs=6", "fit.log_every=1", "fit.checkpoint_every=7", "optim.lr=0.005", "crop_scale_min=0.9",
)  # fmt: skip


def small(*changes: str) -> Pretrain:
    from vlm_core.recipes.pretrain.base import clip_tiny

    return clip_tiny().but(*SMALL, *changes)
