"""WAT records per CPU second: our reader against the plain loop (parse every record with json, then look for pictures), taking turns in one run.

    python -m benchmarks.wat [--file CC-MAIN-....warc.wat.gz] [--records 9000] [--rounds 5] [--out benchmarks/results/wat.txt]

Without --file, a file of Common Crawl's shape is made: of three records of a page one is of its answer and carries its links (90, one in nine a picture,
one page in four without any). Both loops read the archive with warcio; both must give the same links (`strict=False`, as cc2dataset gives them).
"""

import argparse
import gzip
import io
import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

from warcio.archiveiterator import ArchiveIterator

from vlm_core.data.crawl.wat import extract_links

WORDS = [
    "the",
    "red",
    "fox",
    "in",
    "snow",
    "over",
    "a",
    "river",
    "near",
    "old",
    "town",
    "hall",
    "with",
    "three",
    "people",
    "and",
    "their",
    "dog",
    "on",
    "sunny",
    "morning",
]


def make_wat(records: int) -> bytes:
    """Gzip members of one metadata record each."""
    draw, out = random.Random(7), io.BytesIO()
    for number in range(records):
        host = f"http://www.site{draw.randrange(5_000)}.example.org"
        answer: dict[str, Any] = {"Headers": {"Server": "nginx", "Content-Type": "text/html; charset=utf-8", "Date": "Mon, 05 Jan 2026 10:00:00 GMT"}}
        if number % 3 == 1:
            answer["HTML-Metadata"] = {
                "Head": {"Title": text(draw, 6), "Metas": [{"name": "description", "content": text(draw, 20)}]},
                "Links": links(draw, number % 4 == 0),
            }
        envelope = {
            "WARC-Header-Metadata": {"WARC-Target-URI": f"{host}/{number}.html", "WARC-Type": "response"},
            "Payload-Metadata": {"HTTP-Response-Metadata": answer},
        }
        body = json.dumps({"Container": {"Filename": "CC-MAIN.warc.gz", "Compressed": True}, "Envelope": envelope}).encode()
        head = (
            f"WARC/1.0\r\nWARC-Type: metadata\r\nWARC-Target-URI: {host}/{number}.html\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        out.write(gzip.compress(head.encode() + body + b"\r\n\r\n", 6))
    return out.getvalue()


def links(draw: random.Random, is_bare: bool) -> Iterator[Any] | list[Any]:
    found = []
    for n in range(90):
        if n % 9 == 0 and not is_bare:
            found.append({"path": "IMG@/src", "url": f"/images/{draw.randrange(10**9)}.jpg", "alt": text(draw, 5) if n % 2 else ""})
        else:
            found.append({"path": "A@/href", "url": f"/{'/'.join(draw.choices(WORDS, k=4))}?id={draw.randrange(10**6)}", "text": text(draw, 4)})
    return found


def text(draw: random.Random, words: int) -> str:
    return " ".join(draw.choices(WORDS, k=words))


def ours(data: bytes) -> list[tuple[str, str]]:
    return [(link.url, link.alt) for link in extract_links(io.BytesIO(data), strict=False)]


def plain(data: bytes) -> list[tuple[str, str]]:
    """Every record is parsed."""
    found = []
    for record in ArchiveIterator(io.BytesIO(data)):
        if record.rec_type != "metadata":
            continue
        try:
            envelope = json.loads(record.content_stream().read())["Envelope"]
            page = envelope["Payload-Metadata"]["HTTP-Response-Metadata"]["HTML-Metadata"]
        except (ValueError, KeyError):
            continue
        base = urljoin(envelope["WARC-Header-Metadata"]["WARC-Target-URI"], page["Head"].get("Base", ""))
        for link in page["Links"]:
            if link.get("path") == "IMG@/src" and link.get("alt"):
                url = link["url"] if link["url"].startswith(("http://", "https://")) else urljoin(base, link["url"])
                if url.startswith(("http://", "https://")):
                    found.append((url, link["alt"]))
    return found


def archive_only(data: bytes) -> list[tuple[str, str]]:
    """What gunzip and warcio alone cost: the ceiling of any loop over them."""
    for record in ArchiveIterator(io.BytesIO(data)):
        record.content_stream().read()
    return []


def rate(loop: Callable[[bytes], object], data: bytes, records: int) -> float:
    begin = time.process_time()
    loop(data)
    return records / (time.process_time() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--file", type=Path)
    parser.add_argument("--records", type=int, default=9_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "wat.txt")
    args = parser.parse_args()
    data = args.file.read_bytes() if args.file else make_wat(args.records)
    records = sum(1 for _ in ArchiveIterator(io.BytesIO(data)))
    found = ours(data)
    assert found == plain(data), "the two loops must give the same links"
    loops = (ours, plain, archive_only)
    rates: dict[str, list[float]] = {loop.__name__: [] for loop in loops}
    for turn in range(args.rounds + 1):  # the first only warms up
        for loop in loops:
            value = rate(loop, data, records)
            if turn:
                rates[loop.__name__].append(value)
    cpu = next(
        (line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), platform.processor()
    )
    lines = [
        f"WAT benchmark: python {platform.python_version()}, warcio {version('warcio')}, orjson {version('orjson')}",
        f"CPU {cpu}, {os.cpu_count()} cores (load {os.getloadavg()[0]:.1f}), one process, CPU time, {args.rounds} interleaved rounds after one of warm-up",
        f"{'the given file' if args.file else 'made file'}: {records:,} records, {len(data) / 1e6:.1f} MB, {len(found):,} links, equal in both loops",
        "",
        f"{'records per CPU second':24} {'median':>8} {'min':>8} {'max':>8}   ratio (ours / this, median over rounds)",
    ]
    for name, values in rates.items():
        ratio = statistics.median(a / b for a, b in zip(rates["ours"], values, strict=True))
        lines.append(f"{name:24} {statistics.median(values):8.0f} {min(values):8.0f} {max(values):8.0f}   {ratio:5.2f}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
