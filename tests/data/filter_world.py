"""A small world in the layout that the stages before the filter write: pairs, pictures, embeddings, all made up and seeded."""

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageFilter

from vlm_core.data.filter import perceptual
from vlm_core.data.sample import DOWNLOADS, PAIRS, make_uid
from vlm_core.data.shards.tar import TarWriter

WIDTH = 16


def picture(seed: int, size: int = 96) -> Image.Image:
    """Coloured blobs with enough structure for a hash."""
    rng = np.random.default_rng(seed)
    grid = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8))
    return grid.resize((size, size), Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(1))


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    with io.BytesIO() as stream:
        image.save(stream, kind, **options)
        return stream.getvalue()


class World:
    """Add samples, then write the three input folders."""

    def __init__(self) -> None:
        self.samples: list[dict[str, Any]] = []

    def add(self, caption: str, image: Image.Image | int, *, raw: bytes | None = None, cosine: float | None = 0.5, status: str = "ok", **more: Any) -> str:
        """A sample; `image` is a picture or its seed, `raw` its bytes as fetched, `cosine` that of its embeddings (None: no embedding)."""
        image = picture(image) if isinstance(image, int) else image
        url = str(more.pop("url", f"http://host.test/{len(self.samples):03}.png"))
        uid = make_uid(url, caption)
        sample = {"uid": uid, "url": url, "caption": caption, "image": image, "raw": raw or encoded(image), "cosine": cosine, "status": status, **more}
        self.samples.append(sample)
        return uid

    def write(self, folder: Path, order: list[int] | None = None) -> dict[str, Path]:
        """Inputs of the verb. `order` permutes the rows of every table, which must not matter."""
        samples = [self.samples[i] for i in (order or range(len(self.samples)))]
        inputs = {name: folder / name for name in ("pairs", "images", "embeddings")}
        for path in (*inputs.values(), *(inputs["embeddings"] / part for part in ("img_emb", "text_emb", "metadata"))):
            path.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist([_pair(sample) for sample in samples], PAIRS), inputs["pairs"] / "pairs.parquet")
        pq.write_table(pa.Table.from_pylist([_download(sample) for sample in samples], DOWNLOADS), inputs["images"] / "status.parquet")
        with TarWriter(inputs["images"] / "00000.tar") as tar:
            for sample in sorted((s for s in samples if s["status"] == "ok"), key=lambda s: s["uid"]):
                tar.add(f"{sample['uid']}.jpg", encoded(sample["image"], "JPEG", quality=95))
                tar.add(f"{sample['uid']}.json", b"{}")
        _write_embeddings([s for s in samples if s["cosine"] is not None and s["status"] == "ok"], inputs["embeddings"])
        return inputs


def _pair(sample: dict[str, Any]) -> dict[str, Any]:
    lang = sample.get("lang", "en")
    captions = [
        {"text": sample["caption"], "origin": "alt", "lang": lang},
        *({"text": text, "origin": "figcaption", "lang": lang} for text in sample.get("others", [])),
    ]
    more = {name: sample.get(name, "") for name in ("page_optout", "credit")}
    base = {name: sample[name] for name in ("uid", "url", "caption")}
    return {**base, **more, "page_url": "http://host.test/", "source": sample.get("source", "test"), "lang": lang, "captions": captions, "licence": sample.get("licence", "CC0-1.0")}


def _download(sample: dict[str, Any]) -> dict[str, Any]:
    if sample["status"] != "ok":
        return {"uid": sample["uid"], "url": sample["url"], "status": sample["status"]}
    rgb = np.asarray(sample["image"].convert("RGB"))
    bits, quality = perceptual.pdq(rgb)
    width, height = sample.get("original", sample["image"].size)
    return {
        "uid": sample["uid"], "url": sample["url"], "status": "ok", "shard": "00000.tar", "sha256": hashlib.sha256(sample["raw"]).hexdigest(), "original_width": width, "original_height": height,
        "bytes": sample.get("size", len(sample["raw"])), "mime": sample.get("mime", "image/png"),
        "phash": perceptual.to_hex(perceptual.phash(rgb)), "pdq": perceptual.to_hex(bits), "pdq_quality": quality,
    }  # fmt: skip


def _write_embeddings(samples: list[dict[str, Any]], folder: Path) -> None:
    image, text = np.zeros((len(samples), WIDTH)), np.zeros((len(samples), WIDTH))
    for row, sample in enumerate(samples):
        rng = np.random.default_rng(int(sample["uid"][:8], 16))
        image[row], other = np.linalg.qr(rng.normal(size=(WIDTH, 2)))[0].T
        text[row] = sample["cosine"] * image[row] + np.sqrt(1 - sample["cosine"] ** 2) * other
    for name, rows in (("img", image), ("text", text)):
        np.save(folder / f"{name}_emb" / f"{name}_emb_0.npy", rows.astype(np.float16))
    pq.write_table(pa.table({"uid": [sample["uid"] for sample in samples]}), folder / "metadata" / "metadata_0.parquet")
    (folder / "scorer.json").write_text(json.dumps({"scorer": "made_up", "version": "1" * 64, "dim": WIDTH}))
