"""A small world for features, transfer and evaluate: a tiny model with real towers, and labelled sets on disk as `vlm eval-sets` writes them."""

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from vlm_core.data.eval_sets.eval_sets import TABLE
from vlm_core.data.shards.tar import TarWriter
from vlm_core.models import config as menu
from vlm_core.models.pixels import pixels_of
from vlm_core.models.pretrained import Vlm, load, save
from vlm_core.models.towers import TwoTower
from vlm_core.stage import Stage
from vlm_core.track import NullTracker

COLOURS = {"red thing": (220, 30, 30), "green_thing": (30, 200, 40), "blue thing": (40, 60, 230)}
TEMPLATES = ["a photo of a {}.", "a {}."]
TINY = menu.TwoTower(
    image=menu.Vit(image_size=16, patch_size=8, width=16, layers=1, heads=2),
    text=menu.ClipTransformer(context_length=16, width=16, layers=1, heads=2),
    width=12,
)


def tiny_model(folder: Path, seed: int = 0) -> Vlm:
    folder.mkdir(parents=True)
    torch.manual_seed(seed)
    save(folder, TwoTower(TINY), pixels_of(TINY.image), {"recipe": "tiny", "seed": seed})
    return load(folder)


def picture(colour: tuple[int, int, int], random: np.random.Generator) -> bytes:
    noise = random.integers(-25, 25, (20, 20, 3))
    stream = io.BytesIO()
    Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def labelled_set(root: Path, name: str = "colours", per_class: tuple[int, int, int] = (6, 4, 5), seed: int = 0) -> Path:
    """Three colours, drawn with noise; `per_class` pictures in train, val and test."""
    folder, random, rows = root / name, np.random.default_rng(seed), []
    folder.mkdir(parents=True)
    with TarWriter(folder / "images.tar") as tar:
        for label, (classname, colour) in enumerate(COLOURS.items()):
            for split, count in zip(("train", "val", "test"), per_class, strict=True):
                for number in range(count):
                    key, content = f"{label}-{split}-{number}", picture(colour, random)
                    tar.add(f"{key}.png", content)
                    rows.append({"key": key, "split": split, "label": label, "classname": classname, "group": key, "style": "noise",
                                 "sha256": hashlib.sha256(content).hexdigest()})  # fmt: skip
    pq.write_table(pa.Table.from_pylist(sorted(rows, key=lambda row: row["key"]), TABLE), folder / "table.parquet")
    (folder / "dataset.json").write_text(json.dumps({"name": name, "classnames": list(COLOURS), "templates": TEMPLATES, "metric": "acc1"}))
    return folder


def stage_for(root: Path, verb: str, **inputs: Path) -> Stage:
    folders = [root / name for name in ("out", "state", "pictures")]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    return Stage(verb, inputs, *folders, NullTracker(), "run0")
