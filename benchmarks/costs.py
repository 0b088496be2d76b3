"""What one item costs in each verb of the data half: CPU-seconds, bytes kept, peak memory. The numbers behind docs/scale.md.

    python -m benchmarks.costs [--sizes 600 1800] [--rewrites 48] [--out benchmarks/results/costs.txt]

The verbs run on two samples of the embedded web, one after the other, each in a process of its own with one thread; CPU time is that of the process and all
its children, as the kernel counted it. What a process costs before its first item (imports, models, fits) is the same for both sizes, so
the cost of an item is the difference of the two runs divided by the difference of their items.

    python -m benchmarks.costs --plan benchmarks/results/costs.txt

reads such a result and multiplies it: core-hours and terabytes for 100 million and for 5 billion candidate pairs.
"""

import argparse
import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq

from vlm_core.data.filter.near_hashes import near_pairs
from vlm_core.stage import Report

ROOT = Path(__file__).parent.parent


class Cost(NamedTuple):
    """Of one run of a verb."""

    items: int
    cpu_s: float
    wall_s: float
    memory_mb: float
    kept_bytes: int


class Step(NamedTuple):
    """A verb of the chain: where its output goes, what it reads, what is an item, how many of them."""

    out: str
    inputs: tuple[str, ...]
    item: str
    count: Callable[[Report], int]
    changes: tuple[str, ...] = ()


PLACES = {"pairs": "candidate_pairs"}


def chain(rewrites: int) -> dict[str, Step]:
    four = ("pairs", "images", "filtered", "captions")
    return {
        "download": Step("images", ("pairs",), "address", lambda report: report.counts["in"]),
        "embed": Step("embeddings", ("images", "pairs"), "picture and text", lambda report: report.counts["embedded"], ("scorer.fit_pairs=400",)),
        "filter": Step("filtered", ("pairs", "images", "embeddings"), "candidate pair", lambda report: report.counts["in"], ("truth=\"\"",)),
        "recaption": Step("captions", ("filtered", "pairs", "embeddings", "images"), "rewrite", lambda report: report.counts["rewritten"], (f"rewrite.captions={rewrites}",)),
        "shard": Step("shards", four, "kept sample", lambda report: report.counts["in"]),
        "report": Step("report", (*four, "embeddings", "shards"), "candidate pair", lambda report: report.counts["in"]),
    }  # fmt: skip


def run(verb: str, folder: Path, step: Step) -> Cost:
    """One verb in a process of its own."""
    inputs = [word for name in step.inputs for word in ("--in", f"{name}={folder / PLACES.get(name, name)}")]
    changes = [word for change in step.changes for word in ("--set", change)]
    words = [sys.executable, "-W", "ignore", "-m", "vlm_core", verb, "--params", "params.yaml", *inputs, *changes, "--out", str(folder / step.out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "VLM_HOME": str(folder / "home")}
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"vlm {verb} ended with {done.returncode}: {done.stderr[-2000:]}")
    after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic() - begin
    report = Report.model_validate_json((folder / f"{step.out}.run" / "result.json").read_text())
    kept = sum(file.stat().st_size for file in (folder / step.out).rglob("*") if file.is_file())
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(step.count(report), cpu, wall, report.peak_memory_mb, kept)


def sources(folder: Path) -> tuple[Cost, Cost]:
    """Crawl and extract, over the whole embedded web: one size, so the start is in their cost."""
    pages = Step("pages", (), "page", lambda report: report.counts["pages"])
    pairs = Step("candidate_pairs", ("pages",), "candidate pair", lambda report: report.counts["pairs"])
    return run("crawl", folder, pages), run("extract", folder, pairs)


def cut(whole: Path, folder: Path, size: int) -> None:
    """The first pairs by uid, which is a hash: a fair sample."""
    folder.mkdir(parents=True)
    pq.write_table(pq.read_table(whole / "pairs.parquet").slice(0, size), folder / "pairs.parquet")


def line(verb: str, step: Step, small: Cost, large: Cost) -> str:
    more = max(1, large.items - small.items)
    cpu, kept = (large.cpu_s - small.cpu_s) / more, (large.kept_bytes - small.kept_bytes) / more
    start = max(0.0, small.cpu_s - cpu * small.items)
    return f"{verb:10} {step.item:17} {1000 * cpu:13.2f} {start:10.1f} {kept:12,.0f} {large.memory_mb:10,.0f}   {small.items:,} and {large.items:,}"


def near_hashes(sizes: tuple[int, int] = (50_000, 100_000)) -> str:
    """The one cost that grows faster than the rows: rows meet in buckets of 16 bits, so their meetings grow with the square."""
    seconds = []
    for size in sizes:
        codes = np.random.default_rng(0).integers(0, 65_536, (size, 16)).astype(np.uint16)
        begin = time.process_time()
        near_pairs(codes, 31)
        seconds.append(time.process_time() - begin)
    (m, n), (s, t) = sizes, seconds
    square = (t - s * n / m) / (n * n - n * m)
    return f"# near hashes (PDQ, 31 of 256 bits): {1e6 * (s / m - square * m):.1f} us per row and {1e9 * square:.3f} ns per square of rows, from {m:,} and {n:,} random rows"


PLANNED = (100_000_000, 5_000_000_000)


def plan(file: Path) -> list[str]:
    """Core-hours and terabytes per verb, with as many items per candidate pair as the measured sample had, and one rewrite per kept sample."""
    measured = {}
    for words in (text.split() for text in file.read_text().splitlines() if text and not text.startswith(("#", "verb"))):
        name, items = words[0], int(words[-1].replace(",", ""))
        at = next(place for place, word in enumerate(words) if "." in word)
        kept = next(float(word.replace(",", "")) for word in words[at + 1 :] if word.replace(",", "").isdigit())
        measured[name] = (max(0.0, float(words[at])), kept, items)  # below zero is noise
    pairs, whole = measured["filter"][2], measured["extract"][2]
    share = {name: items / (whole if name in {"crawl", "extract"} else pairs) for name, (_, _, items) in measured.items()}
    share["recaption"] = share["shard"]
    lines = [f"{'verb':10} {'items / pair':>12}" + "".join(f" {f'core-h, {n / 1e6:,.0f} M':>16} {f'TB, {n / 1e6:,.0f} M':>14}" for n in PLANNED)]
    for name, (cpu_ms, kept, _) in measured.items():
        cells = "".join(f" {n * share[name] * cpu_ms / 3.6e6:16,.0f} {n * share[name] * kept / 1e12:14,.2f}" for n in PLANNED)
        lines.append(f"{name:10} {share[name]:12.2f}{cells}")
    found = re.search(r"near hashes .*: ([\d.]+) us per row and ([\d.]+) ns", file.read_text())
    if found:
        row, square = float(found[1]) / 1e6, float(found[2]) / 1e9
        lines.append(f"{'(near hashes, of filter)':23}" + "".join(f" {(row * n + square * n * n) / 3600:16,.0f} {'':14}" for n in PLANNED).rstrip())
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs=2, default=[600, 1800])
    parser.add_argument("--rewrites", type=int, nargs=2, default=[16, 64])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plan", type=Path)
    args = parser.parse_args()
    if args.plan:
        print("\n".join(plan(args.plan)))
        return
    lines = [
        f"# benchmarks/costs.py --sizes {args.sizes[0]} {args.sizes[1]} --rewrites {args.rewrites[0]} {args.rewrites[1]}",
        f"# Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores (load {os.getloadavg()[0]:.1f}), one thread, the recipes of params.yaml",
        f"{'verb':10} {'item':17} {'CPU ms / item':>13} {'start, s':>10} {'bytes / item':>12} {'peak, MB':>10}   items of the two runs",
    ]
    with tempfile.TemporaryDirectory() as tmp:
        whole = Path(tmp) / "whole"
        whole.mkdir()
        for verb, cost, item in zip(("crawl", "extract"), sources(whole), ("page", "candidate pair"), strict=True):
            lines.append(
                f"{verb:10} {item:17} {1000 * cost.cpu_s / cost.items:13.2f} {'(in it)':>10} {cost.kept_bytes / cost.items:12,.0f} {cost.memory_mb:10,.0f}   {cost.items:,}"
            )
            print(lines[-1], flush=True)
        costs: dict[str, list[Cost]] = {}
        for size, rewrites in zip(args.sizes, args.rewrites, strict=True):
            folder = Path(tmp) / str(size)
            cut(whole / "candidate_pairs", folder / "candidate_pairs", size)
            for verb, step in chain(rewrites).items():
                costs.setdefault(verb, []).append(run(verb, folder, step))
                print(size, verb, costs[verb][-1], flush=True)
        lines += [line(verb, step, *costs[verb]) for verb, step in chain(0).items()]
    lines.append(near_hashes())
    print("\n".join(lines))
    if args.out:
        args.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
