"""Selection at scale: rules against DataComp's logic, rows that stream, the entry automaton, indexes of copies.

    python -m benchmarks.filters [--rows 1000000 3000000 10000000] [--out benchmarks/results/filters.txt]

The made-up candidates have captions of real words in several scripts, sizes, language tags and two-dimensional embeddings; every size runs in a process of
its own, so that its peak memory is its own.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from vlm_core.data import filters
from vlm_core.data.cut_config import Cut
from vlm_core.data.filter_config import Filter, ImageRules, LanguageRule, TextRules
from vlm_core.data.pool import load_pool
from vlm_core.data.sample import DOWNLOADS, PAIRS
from vlm_core.data.scores import clip_score
from vlm_core.data.select import uid_pairs

CHUNK = 250_000
FRACTION = 0.3
BASIC = Filter(
    text=TextRules(min_words=3, min_chars=6, max_words=10**9, by_script=False), image=ImageRules(min_side=200, max_aspect=3.0),
    language=LanguageRule(who="page", wanted=["en"]), cut=Cut(fraction=FRACTION, within="all", over="pool", mode="reference"),
)  # fmt: skip


# ---------------------------------------------------------------- made-up candidates


def generate(folder: Path, rows: int) -> None:
    """The three inputs of the verb, and the same columns as metadata in DataComp's layout."""
    for name in ("images", "embeddings/img_emb", "embeddings/text_emb", "embeddings/metadata", "datacomp"):
        (folder / name).mkdir(parents=True)
    captions, rng = phrases(200_000), np.random.default_rng(0)
    step = 2**64 // rows
    angles = []
    with pq.ParquetWriter(folder / "pairs.parquet", PAIRS) as pairs, pq.ParquetWriter(folder / "images" / "status.parquet", DOWNLOADS) as status:
        for start in range(0, rows, CHUNK):
            n = min(CHUNK, rows - start)
            uid = uids(np.arange(start, start + n, dtype=np.uint64) * np.uint64(step), rng)
            caption = captions.take(rng.integers(0, len(captions), n))
            lang = pa.array(["en", "de", "ja", ""]).take(pa.array(rng.choice(4, n, p=[0.5, 0.25, 0.15, 0.1])))
            width, height = (rng.integers(60, 1500, n) for _ in range(2))
            angle = rng.normal(1.25, 0.1, n)
            image, text = np.tile(np.float16([1, 0]), (n, 1)), np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float16)
            angles.append(text)
            pairs.write_table(table_of(PAIRS, n, uid=uid, url=pa.repeat("http://a.test/b.jpg", n), caption=caption, lang=lang))
            status.write_table(table_of(DOWNLOADS, n, uid=uid, status=pa.repeat("ok", n), original_width=width, original_height=height))
            score = clip_score(image, text).astype(np.float64)
            meta = {"uid": uid, "text": caption, "lang": lang, "original_width": width, "original_height": height, "clip_l14_similarity_score": score}
            pq.write_table(pa.table(meta), folder / "datacomp" / f"{start:09}.parquet")
    for name, value in (("img_emb", None), ("text_emb", np.concatenate(angles))):
        np.save(folder / "embeddings" / name / f"{name}_0.npy", np.tile(np.float16([1, 0]), (rows, 1)) if value is None else value)
    uid_column = pq.ParquetFile(folder / "pairs.parquet")
    with pq.ParquetWriter(folder / "embeddings" / "metadata" / "metadata_0.parquet", pa.schema([("uid", pa.string())])) as metadata:
        for batch in uid_column.iter_batches(CHUNK, columns=["uid"]):
            metadata.write_batch(batch)
    (folder / "embeddings" / "scorer.json").write_text(json.dumps({"scorer": "made_up", "version": "1" * 64, "dim": 2}))


def phrases(n: int) -> pa.Array:
    """Captions of 0 to 14 words; some with entities, odd white space or other scripts."""
    rng = np.random.default_rng(1)
    words = np.array(["".join(rng.choice(list("abcdefghiklmnoprstuvwy"), rng.integers(1, 10))) for _ in range(3000)] + ["&amp;", "犬と猫", "café", "고양이", "IMG_2034.jpg", "$5"])
    gaps = np.array([" "] * 60 + ["  ", "\t", "\n", "\xa0"])
    return pa.array(["".join(w + g for w, g in zip(rng.choice(words, k), rng.choice(gaps, k), strict=True)) for k in rng.integers(0, 15, n)])


def uids(high: np.ndarray, rng: np.random.Generator) -> pa.Array:
    """128-bit hex names that rise with `high`."""
    raw = np.stack([high, rng.integers(0, 2**63, len(high), dtype=np.uint64)], axis=1).astype(">u8").tobytes()
    return pa.StringArray.from_buffers(len(high), pa.py_buffer(np.arange(0, 32 * len(high) + 1, 32, dtype=np.int32)), pa.py_buffer(raw.hex().encode()))


def table_of(schema: pa.Schema, n: int, **columns: Any) -> pa.Table:
    return pa.table({field.name: pa.array(columns[field.name], field.type) if field.name in columns else pa.nulls(n, field.type) for field in schema}, schema=schema)


# ---------------------------------------------------------------- DataComp's logic


def datacomp(folder: Path) -> np.ndarray:
    """Basic filter and CLIP score, as baselines/apply_filter.py goes about it, row by row; language tags stand for its fastText model. Sorted pairs of uint64."""
    files = sorted((folder / "datacomp").glob("*.parquet"))
    scores = np.concatenate([pd.read_parquet(file, columns=["clip_l14_similarity_score"]).to_numpy().ravel() for file in files])
    threshold = -np.sort(-scores)[int(len(scores) * FRACTION)]
    basic, fitting = [], []
    for file in files:
        df = pd.read_parquet(file, columns=["uid", "text", "lang", "original_width", "original_height"])
        words, chars = df.text.apply(lambda text: len(text.split())), df.text.apply(len)
        number = df.uid.apply(int, base=16)
        halves = np.array(list(zip((number // 2**64).astype("uint64"), (number % 2**64).astype("uint64"), strict=True)), "u8,u8")
        short, long = np.minimum(df.original_width, df.original_height), np.maximum(df.original_width, df.original_height)
        basic.append(halves[(df.lang == "en") & (words > 2) & (chars > 5) & (short >= 200) & (long / short <= 3.0)])
        scored = pd.read_parquet(file, columns=["uid", "clip_l14_similarity_score"])
        kept = scored[scored.clip_l14_similarity_score >= threshold].uid
        fitting.append(np.array([(int(uid[:16], 16), int(uid[16:32], 16)) for uid in kept], "u8,u8"))
    both = np.intersect1d(np.concatenate(basic), np.concatenate(fitting))
    return both.view(np.uint64).reshape(-1, 2)


# ---------------------------------------------------------------- ours


def ours(folder: Path, scratch: Path) -> tuple[np.ndarray, dict[str, float]]:
    """(sorted halves of the uids that stay, seconds of each step)."""
    clock = Clock()
    pool = load_pool(folder / "pairs.parquet", folder / "images", folder / "embeddings", scratch)
    clock("join")
    trail = filters.judge(BASIC, pool, scratch=scratch)
    clock("rules")
    kept = uid_pairs(pool.uid[trail.rows].tolist())
    clock("uids")
    filters.write_decisions(trail, scratch / "decisions.parquet")
    clock("trail")
    return kept, clock.seconds


class Clock:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def __call__(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = now - self._last
        self._last = now
