"""CPU per picture of `vlm download` against stock img2dataset, on the same list and machine, taking turns in one run.

    python -m benchmarks.fetch [--addresses 480] [--rounds 1] [--out benchmarks/results/fetch.txt]

A server of its own process answers under 50 host names on loopback, by http and by https: 80 % pictures, 10 % 404, 5 % slow (0.5 s), 5 % 429 with
Retry-After for the first second. CPU time of all processes of a run is counted, not wall time; the server's is not. The cost of a picture is the
difference between the long list and one of a fifth of it, so that the start of processes cancels out; the cost with the start stands beside it.
(img2dataset starts a process anew after five shards. The lists have fewer per process, so that this does not count against it.)
Ours is the whole verb: robots.txt, ai.txt and tdmrep.json, guard, opt-outs, checks before decoding, three hashes, status table, report.
Our own side runs twice: as the platform is set, and with `full_decode`, which decodes and averages every pixel as img2dataset does.
Stock img2dataset takes no perceptual hashes. What PDQ and pHash of the stored pictures cost is measured in the same run and shown apart.
So is what decoding, averaging and encoding cost by themselves, with nothing fetched or written: no tool that stores the same pixels goes below it.
The largest process is also measured with answers in the list that are made to fill a memory (`HOSTILE`); only ours is asked for these.
"""

import argparse
import asyncio
import io
import json
import multiprocessing
import os
import platform
import resource
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import certifi
import cv2
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from PIL import Image, ImageDraw

from vlm_core.data.crawl.config import Download, Fetch, Network
from vlm_core.data.filter import perceptual
from vlm_core.data.sample import PAIRS, make_uid
from vlm_core.data.shards.tar import read_tar

HOSTS = [f"pics.site{n:02d}.test" for n in range(50)]
PICTURES, SIDE, SHORTER, SHARD = 42, 256, 5, 60
SIZES = ((480, 360), (800, 600), (1600, 1200))
HOSTILE = ("bomb", "wide-bomb", "endless", "large", "gzip-bomb", "frames", "cut", "page", "drawing", "dot")
SHIM = """import socket
_ask = socket.getaddrinfo
socket.getaddrinfo = lambda host, *more, **named: _ask("127.0.0.1" if str(host).endswith(".test") else host, *more, **named)
"""  # stock img2dataset has no allow-list, and no name server knows our hosts
STOCK = """import json, sys
from img2dataset import download
if __name__ == "__main__":
    download(**json.loads(sys.argv[1]))
"""


class Run(NamedTuple):
    """One side's run over one list."""

    cpu_s: float
    wall_s: float
    peak_mb: float  # of the largest process
    pictures: dict[str, tuple[bytes, str]]  # address -> (jpg, caption)


# ---------------------------------------------------------------- the web


def kind_of(number: int) -> str:
    place = number % 20
    return "gone" if place < 2 else "slow" if place == 2 else "busy" if place == 3 else "ok"


def make_jpegs() -> list[bytes]:
    """Smooth noise with edges, of the sizes that photographs on the web have."""
    made = []
    for seed in range(PICTURES):
        random, (width, height) = np.random.default_rng(seed), SIZES[seed % len(SIZES)]
        image = Image.fromarray(random.integers(0, 255, (height // 12, width // 12, 3), dtype=np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
        draw = ImageDraw.Draw(image)
        for _ in range(20):
            draw.rectangle(sorted(random.integers(0, height, 2).tolist()) * 2, outline=tuple(random.integers(0, 255, 3).tolist()), width=4)
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=85)
        made.append(stream.getvalue())
    return made


def make_hostile(jpeg: bytes) -> dict[str, tuple[str, bytes]]:
    """name -> (headers, body) of HOSTILE; the endless body is sent by the server."""
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    zeros = b"".join(packer.compress(bytes(10**6)) for _ in range(200)) + packer.flush()
    first, *others = (Image.new("P", (200, 200), n % 7) for n in range(1000))
    pictures = {
        "bomb": (Image.new("1", (9_000, 9_000)), "PNG", {}), "wide-bomb": (Image.new("1", (20_000, 20_000)), "PNG", {}),
        "dot": (Image.new("RGB", (1, 1)), "PNG", {}), "frames": (first, "GIF", {"save_all": True, "append_images": others}),
    }  # fmt: skip
    made = {"cut": ("", jpeg[:-400]), "page": ("", b"<html>"), "drawing": ("", b"<svg/>"), "large": ("", bytes(60_000_000))}
    made |= {"gzip-bomb": ("Content-Encoding: gzip\r\n", zeros), "endless": ("", b"\xff\xd8\xff")}
    for name, (image, form, more) in pictures.items():
        image.save(stream := io.BytesIO(), form, **more)
        made[name] = ("", stream.getvalue())
    return made


def make_certificate(folder: Path) -> None:
    """A key and a certificate for all hosts, and a bundle of the usual authorities that also trusts it."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "bench")])
    names = x509.SubjectAlternativeName([x509.DNSName(host) for host in HOSTS])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now - timedelta(days=1), now + timedelta(days=2))
    certificate = builder.add_extension(names, False).add_extension(x509.BasicConstraints(True, None), True).sign(key, hashes.SHA256())
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    secret = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "server.pem").write_bytes(secret + pem)
    (folder / "bundle.pem").write_bytes(Path(certifi.where()).read_bytes() + pem)


class Server:
    """Both listeners; runs until it is killed."""

    def __init__(self, folder: str) -> None:
        self.folder, self.jpegs, self.first = folder, make_jpegs(), dict[str, float]()
        self.hostile = make_hostile(self.jpegs[0])

    async def run(self, ports: Any) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(f"{self.folder}/server.pem")
        plain = await asyncio.start_server(self.answer, "127.0.0.1", 0, backlog=1024)
        secure = await asyncio.start_server(self.answer, "127.0.0.1", 0, ssl=context, backlog=1024)
        ports.send([server.sockets[0].getsockname()[1] for server in (plain, secure)])
        await asyncio.gather(plain.serve_forever(), secure.serve_forever())

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                headers = []
                while header := (await reader.readline()).strip().lower():
                    headers.append(header)
                if line.endswith(b"/endless HTTP/1.1\r\n"):
                    await send_endless(writer)
                host = next((header for header in headers if header.startswith(b"host:")), b"")
                status, more, body = await self.reply(line.split()[1].decode(), host.decode())
                writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\nContent-Type: image/jpeg\r\n{more}\r\n".encode() + body)
                await writer.drain()
                if b"connection: close" in headers:
                    break
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            pass
        finally:
            writer.close()

    async def reply(self, path: str, host: str) -> tuple[int, str, bytes]:
        number = path.strip("/").removesuffix(".jpg")
        if number in self.hostile:
            return 200, *self.hostile[number]
        kind = kind_of(int(number)) if number.isdigit() else "gone"  # robots.txt and its kin
        if kind == "slow":
            await asyncio.sleep(0.5)
        elif kind == "busy" and time.monotonic() - self.first.setdefault(host + path, time.monotonic()) < 1:
            return 429, "Retry-After: 1\r\n", b""
        return (404, "", b"") if kind == "gone" else (200, "", self.jpegs[int(number) % PICTURES])


async def send_endless(writer: asyncio.StreamWriter) -> None:
    """A picture of 256 MB that says of itself that it has no end. (asyncio does not say over TLS that the other side is gone, so this has an end.)"""
    writer.write(b"HTTP/1.1 200 X\r\nConnection: close\r\n\r\n\xff\xd8\xff")
    for _ in range(4096):
        writer.write(bytes(65_536))
        await writer.drain()
        await asyncio.sleep(0)  # the others' turn
    raise ConnectionError


def serve(folder: str, ports: Any) -> None:
    asyncio.run(Server(folder).run(ports))


@contextmanager
def served(folder: Path) -> Iterator[dict[str, int]]:
    """A fresh server: every 429 is there again."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(str(folder), theirs), daemon=True)
    process.start()
    try:
        http, https = ours.recv()
        yield {"http": http, "https": https}
    finally:
        process.kill()
        process.join()


def addresses(scheme: str, port: int, count: int) -> list[tuple[str, str]]:
    return [(f"{scheme}://{HOSTS[n % len(HOSTS)]}:{port}/{n}.jpg", f"caption number {n}") for n in range(count)]


# ---------------------------------------------------------------- the two sides


def measured(words: list[str], folder: Path) -> tuple[float, float, float]:
    """(CPU seconds, wall seconds, MB of the largest process) of a command and all its children."""
    env = {
        **os.environ,
        "SSL_CERT_FILE": str(folder / "bundle.pem"),
        "VLM_HOME": str(folder / "home"),
        "PYTHONPATH": os.pathsep.join([str(folder / "shim"), os.getcwd()]),
    }
    begin, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    peak, over = [0.0], threading.Event()
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(words, env=env, stdout=log, stderr=log)
        watcher = threading.Thread(target=watch, args=(process.pid, peak, over))
        watcher.start()
        status = process.wait()
        over.set()
        watcher.join()
    if status:
        raise SystemExit(f"{words[:4]} ended with {status}:\n{(folder / 'log').read_text()[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, time.monotonic() - begin, peak[0]


def watch(pid: int, peak: list[float], over: threading.Event) -> None:
    while not over.wait(0.2):
        try:
            family = psutil.Process(pid).children(recursive=True)
            peak[0] = max([peak[0], *(process.memory_info().rss / 1e6 for process in family)])
        except psutil.Error:
            continue


def ours(folder: Path, pairs: list[tuple[str, str]], full_decode: bool = False) -> Run:
    blank = {
        "page_url": "",
        "source": "bench",
        "lang": "en",
        "captions": [],
        "licence": "",
        "credit": "",
        "page_optout": "",
        "pages": [],
        "sha256": "",
        "pdq": "",
    }
    rows = sorted(({**blank, "uid": make_uid(url, text), "url": url, "caption": text} for url, text in pairs), key=lambda row: str(row["uid"]))
    given = folder / "pairs"
    given.mkdir()
    pq.write_table(pa.Table.from_pylist(rows, schema=PAIRS), given / "pairs.parquet")
    port = pairs[0][0].split(":")[2].split("/")[0]
    network = Network(hosts=dict.fromkeys(HOSTS, f"127.0.0.1:{port}"), rate_per_s=5000.0, burst=5000, connections_per_host=32)
    config = Download(
        network=network, fetch=Fetch(retries=2), image_size=SIDE, full_decode=full_decode, placeholder_captions=10**6, processes=2, threads=16, shard_size=SHARD
    )
    spec = folder / "spec.json"
    spec.write_text(json.dumps({"verb": "download", "config": config.model_dump(mode="json"), "inputs": {"pairs": str(given)}}))
    cost = measured([sys.executable, "-m", "vlm_core", "download", "--spec", str(spec), "--out", str(folder / "images")], folder)
    peak = json.loads((folder / "images.run/result.json").read_text())["metrics"]["worker_peak_mb"]
    found: dict[str, dict[str, bytes]] = {}
    for tar in sorted((folder / "images").glob("*.tar")):
        for name, data in read_tar(tar):
            found.setdefault(name.partition(".")[0], {})[name.partition(".")[2]] = data
    pictures = {(side := json.loads(parts["json"]))["url"]: (parts["jpg"], side["caption"]) for parts in found.values()}
    return Run(cost[0], cost[1], peak, pictures)


def stock(folder: Path, pairs: list[tuple[str, str]]) -> Run:
    table = folder / "list.parquet"
    pq.write_table(pa.table({"url": [url for url, _ in pairs], "caption": [text for _, text in pairs]}), table)
    script = folder / "stock.py"
    script.write_text(STOCK)
    settings = {
        "url_list": str(table), "input_format": "parquet", "caption_col": "caption", "output_folder": str(folder / "images"), "output_format": "webdataset",
        "image_size": SIDE, "resize_mode": "keep_ratio", "resize_only_if_bigger": True, "processes_count": 2, "thread_count": 16,
        "number_sample_per_shard": SHARD, "retries": 2, "enable_wandb": False,
    }  # fmt: skip
    cost = measured([sys.executable, str(script), json.dumps(settings)], folder)
    pictures: dict[str, tuple[bytes, str]] = {}
    for tar in sorted((folder / "images").glob("*.tar")):
        parts: dict[str, dict[str, bytes]] = {}
        for name, data in read_tar(tar):
            parts.setdefault(name.partition(".")[0], {})[name.partition(".")[2]] = data
        pictures |= {json.loads(one["json"])["url"]: (one["jpg"], one["txt"].decode()) for one in parts.values()}
    return Run(*cost, pictures)


OURS: dict[str, Callable[..., Run]] = {"ours": ours, "ours, full_decode": partial(ours, full_decode=True)}
STOCK_NAME = "img2dataset"
SIDES = {**OURS, STOCK_NAME: stock}


def compare_pictures(a: Run, b: Run) -> str:
    """Whether what both have is the same picture and caption; each run had a port of its own."""
    left, right = ({url.rpartition("/")[2]: found for url, found in run.pictures.items()} for run in (a, b))
    worst, more, less = 0.0, len(left.keys() - right.keys()), len(right.keys() - left.keys())
    both = sorted(left.keys() & right.keys())
    for url in both:
        (jpg, text), (other, caption) = left[url], right[url]
        one, two = np.asarray(Image.open(io.BytesIO(jpg)).convert("RGB")).astype(int), np.asarray(Image.open(io.BytesIO(other)).convert("RGB")).astype(int)
        if one.shape != two.shape or text != caption:
            return f"{url} differs: {one.shape} {two.shape}, {text!r} {caption!r}"
        worst = max(worst, float(abs(one - two).mean()))
    return f"pictures only ours has {more}, only img2dataset has {less}; the {len(both)} of both: equal sizes and captions, pixels differ by {worst:.2f} of 255 on average at most"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--addresses", type=int, default=480)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--schemes", nargs="+", default=["http", "https"])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "fetch.txt")
    args = parser.parse_args()
    lines = [f"{'':6} {'':17} {'CPU ms / picture':>18} {'with the start':>15} {'wall s':>7} {'pictures':>9} {'peak MB':>8}"]
    for scheme in args.schemes:
        lines += measure(scheme, args.addresses, args.rounds)
        print("\n".join(lines[-11:]), flush=True)
    text = "\n".join([conditions(args), "", *lines]) + "\n"
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(text)


def measure(scheme: str, count: int, rounds: int) -> list[str]:
    found: dict[str, list[tuple[Run, Run]]] = {name: [] for name in SIDES}
    for _ in range(rounds):
        for name, side in SIDES.items():
            found[name].append((one_run(side, scheme, count // SHORTER), one_run(side, scheme, count)))
    lines, costs = [], {}
    for name, runs in found.items():
        costs[name] = [1000 * (long.cpu_s - short.cpu_s) / (len(long.pictures) - len(short.pictures)) for short, long in runs]
        whole = statistics.median(1000 * long.cpu_s / len(long.pictures) for _, long in runs)
        last, peak = runs[-1][1], max(long.peak_mb for _, long in runs)
        lines.append(f"{scheme:6} {name:17} {statistics.median(costs[name]):18.2f} {whole:15.2f} {last.wall_s:7.1f} {len(last.pictures):9} {peak:8.0f}")
    looks = [hashing_ms(long) for _, long in found["ours"]]
    for name in OURS:
        for title, less in (("", [0.0] * rounds), (" without perceptual hashes", looks)):
            ratios = [b / (a - c) for a, b, c in zip(costs[name], costs[STOCK_NAME], less, strict=True)]
            lines.append(f"{scheme:6} {STOCK_NAME} / {name}{title} {statistics.median(ratios):.2f} (rounds: {', '.join(f'{ratio:.2f}' for ratio in ratios)})")
        lines.append(f"{scheme:6} {name}: {compare_pictures(found[name][-1][1], found[STOCK_NAME][-1][1])}")
    hostile = one_run(ours, scheme, count // SHORTER, HOSTILE)
    lines.append(f"{scheme:6} ours with {len(HOSTILE)} hostile addresses in the shorter list: {len(hostile.pictures)} pictures, peak {hostile.peak_mb:.0f} MB")
    lines.append(f"{scheme:6} PDQ and pHash take {statistics.median(looks):.2f} ms of a picture; img2dataset's pixels take {pixels_ms():.2f} ms by themselves")
    return lines


def pixels_ms() -> float:
    """CPU milliseconds of a picture in which nothing is fetched or written: every pixel decoded and averaged as img2dataset does, and encoded."""
    jpegs = [np.frombuffer(jpeg, np.uint8) for jpeg in make_jpegs()]
    begin = time.process_time()
    for jpeg in jpegs:
        pixels = cv2.imdecode(jpeg, cv2.IMREAD_UNCHANGED)
        scale = SIDE / min(pixels.shape[:2])
        small = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 95])
    return 1000 * (time.process_time() - begin) / len(jpegs)


def hashing_ms(run: Run) -> float:
    """CPU milliseconds that the two perceptual hashes of a stored picture take."""
    pixels = [np.asarray(Image.open(io.BytesIO(jpg)).convert("RGB")) for jpg, _ in run.pictures.values()]
    perceptual.phash(pixels[0])  # imports
    begin = time.process_time()
    for rgb in pixels:
        perceptual.pdq(rgb)
        perceptual.phash(rgb)
    return 1000 * (time.process_time() - begin) / len(pixels)


def one_run(side: Any, scheme: str, count: int, hostile: tuple[str, ...] = ()) -> Run:
    with tempfile.TemporaryDirectory() as tmp:
        folder = Path(tmp)
        make_certificate(folder)
        (folder / "shim").mkdir()
        (folder / "shim/sitecustomize.py").write_text(SHIM)
        with served(folder) as ports:
            more = [(f"{scheme}://{HOSTS[n % len(HOSTS)]}:{ports[scheme]}/{name}", name) for n, name in enumerate(hostile)]
            run: Run = side(folder, addresses(scheme, ports[scheme], count) + more)
    return run


def conditions(args: argparse.Namespace) -> str:
    cpu = next(
        (line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), platform.processor()
    )
    size = statistics.mean(map(len, make_jpegs())) / 1e3
    return (
        f"Fetch benchmark: python {platform.python_version()}, img2dataset {version('img2dataset')}, opencv {version('opencv-python-headless')}, pillow {version('pillow')}\n"
        f"CPU {cpu}, {os.cpu_count()} cores (load {os.getloadavg()[0]:.1f}); {args.rounds} rounds, the sides taking turns; 2 processes of 16 threads, 2 retries, shards of {SHARD}\n"
        f"{args.addresses} addresses on {len(HOSTS)} hosts of loopback: 10 % 404, 5 % slow (0.5 s), 5 % 429 (Retry-After: 1); JPEGs of {', '.join(f'{w} x {h}' for w, h in SIZES)}, {size:.0f} kB on average, stored at {SIDE} px, quality 95\n"
        f"CPU time of all processes of a run; per picture: long list minus one of 1/{SHORTER}; peak: resident, of the largest downloading process"
    )


if __name__ == "__main__":
    main()
