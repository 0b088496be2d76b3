"""Pictures per second of one core: our loader against plain webdataset + PIL on the same tars and litdata on the same pictures, taking turns in one run.

    python -m benchmarks.loader [--shards DIR] [--rounds 5] [--out benchmarks/results/loader.txt]

Both give batches of 64 random resized crops (share 0.5 to 1, bicubic, antialiased) as uint8, in one process with one thread; CPU time is counted, not wall time.
Without --shards, 1,200 JPEGs of smooth noise with edges are made (quality 95, the size of what the download stores).
"""

import argparse
import importlib.metadata
import importlib.util
import io
import json
import math
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torchvision
import webdataset
from PIL import Image, ImageDraw
from torchvision.transforms import v2

from vlm_core.data.config import Loader, Shard
from vlm_core.data.sample import CAPTIONS, DOWNLOADS, PAIRS
from vlm_core.data.shards.augment import Transform
from vlm_core.data.shards.loader import TrainLoader, decode
from vlm_core.data.shards.samples import ShardSamples, training_samples
from vlm_core.data.shards.shards import read_manifest
from vlm_core.data.shards.tar import TarWriter
from vlm_core.run import run

BATCH, PICTURES = 64, 1200
LITDATA = importlib.util.find_spec("litdata") is not None


def make_shards(folder: Path, side: int, kind: str = "tar") -> None:
    """PICTURES samples in three shards, by the verb itself."""
    random, folders = np.random.default_rng(side), {name: folder.with_name(f"{folder.name}-{name}") for name in ("pairs", "images", "filtered", "captions")}
    for made in folders.values():
        made.mkdir()
    rows = [{"uid": f"{number:032x}", "url": f"http://made.test/{number}.jpg", "caption": "a picture of noise"} for number in range(PICTURES)]
    with TarWriter(folders["images"] / "00000.tar") as writer:
        for row in rows:
            writer.add(f"{row['uid']}.jpg", _jpeg(random, side))
    pairs = [{**row, "captions": [{"text": row["caption"], "origin": "alt", "lang": "en"}]} for row in rows]
    pq.write_table(pa.Table.from_pylist(pairs, PAIRS), folders["pairs"] / "pairs.parquet")
    pq.write_table(
        pa.Table.from_pylist([{**row, "status": "ok", "width": side, "height": side} for row in rows], DOWNLOADS), folders["images"] / "status.parquet"
    )
    kept = [{"uid": row["uid"], "caption": row["caption"], "lang": "en", "clip_score": 0.3, "group": row["uid"]} for row in rows]
    pq.write_table(pa.Table.from_pylist(kept), folders["filtered"] / "kept.parquet")
    pq.write_table(pa.Table.from_pylist([], CAPTIONS), folders["captions"] / "captions.parquet")
    with tempfile.TemporaryDirectory() as home:
        os.environ["VLM_HOME"] = home
        run("shard", Shard(held_out=0.01, samples_per_shard=PICTURES // 3, format=kind), folders, folder)


def _jpeg(random: np.random.Generator, side: int) -> bytes:
    image = Image.fromarray(random.integers(0, 255, (side // 16, side // 16, 3), dtype=np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        draw.rectangle(sorted(random.integers(0, side, 2).tolist()) * 2, outline=tuple(random.integers(0, 255, 3).tolist()), width=3)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=95)
    return stream.getvalue()


def ours(folder: Path, size: int) -> Iterator[torch.Tensor]:
    for batch in TrainLoader(ShardSamples(folder), Loader(batch_size=BATCH), Transform(size)):
        yield batch["images"]


def ours_verifying(folder: Path, size: int) -> Iterator[torch.Tensor]:
    config = Loader(batch_size=BATCH, verify=True)
    for batch in TrainLoader(training_samples(folder, config), config, Transform(size)):
        yield batch["images"]


def webdataset_pil(folder: Path, size: int) -> Iterator[torch.Tensor]:
    crop = v2.Compose([v2.RandomResizedCrop(size, scale=(0.5, 1.0), interpolation=v2.InterpolationMode.BICUBIC), v2.PILToTensor()])
    tars = [str(folder / entry["name"]) for entry in read_manifest(folder)["shards"] if entry["split"] == "train"]
    data = webdataset.WebDataset(tars, shardshuffle=len(tars)).shuffle(1000).decode("pil").to_tuple("jpg", "json")
    stacked = data.map(lambda sample: (crop(sample[0]), sample[1]["captions"][0]["text"])).batched(BATCH, partial=False)
    for images, _ in stacked:
        yield torch.as_tensor(images) if not isinstance(images, list) else torch.stack(images)


def make_litdata(folder: Path, out: Path) -> None:
    """The training pictures as litdata stores them: JPEG bytes in chunks, as its guide advises."""
    import litdata

    samples = ShardSamples(folder)
    rows = [{"image": Image.open(io.BytesIO(samples.jpeg(row))), "text": str(samples.record(row)["caption"])} for row in range(len(samples))]
    litdata.optimize(fn=_same, inputs=rows, output_dir=str(out), chunk_bytes="64MB", num_workers=0)


def _same(row: dict[str, object]) -> dict[str, object]:
    return row


def litdata_torchvision(out: Path, size: int) -> Iterator[torch.Tensor]:
    """litdata decodes with torchvision and hands over a tensor."""
    import litdata

    crop = v2.RandomResizedCrop(size, scale=(0.5, 1.0), interpolation=v2.InterpolationMode.BICUBIC, antialias=True)
    data = iter(litdata.StreamingDataset(str(out), shuffle=True, seed=0))
    while rows := [crop(row["image"]) for row in islice(data, BATCH)]:
        yield torch.stack(rows)


def simplejpeg_full(data: bytes) -> object:
    return decode(data)


def simplejpeg_scaled(side: int, data: bytes) -> object:
    """The ceiling: libjpeg-turbo at the scale that the crop needs, and nothing else."""
    return decode(data, side)


def crop_side(size: int) -> int:
    """The shorter side below which a crop would have to be enlarged, as the loader reckons."""
    transform = Transform(size)
    return math.ceil(size / math.sqrt(transform.crop_scale_min / transform.crop_ratio_max))


def torchvision_io(data: bytes) -> object:
    return torchvision.io.decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=torchvision.io.ImageReadMode.RGB)


def pil(data: bytes) -> object:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def decode_all(decoder: Callable[[bytes], object], jpegs: list[bytes]) -> int:
    return sum(decoder(data) is not None for data in jpegs)


def read_batches(loader: Callable[[Path, int], Iterator[torch.Tensor]], folder: Path, size: int) -> int:
    return sum(len(batch) for batch in islice(loader(folder, size), 15))


def rate(step: Callable[[], int]) -> float:
    begin = time.process_time()
    done = step()
    return done / (time.process_time() - begin)


def compare(ways: dict[str, Callable[[], int]], rounds: int) -> dict[str, list[float]]:
    """Rates of each way, taking turns; the first round only warms up."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, step in ways.items():
            found = rate(step)
            if turn:
                rates[name].append(found)
    return rates


def rows_of(title: str, rates: dict[str, list[float]]) -> list[str]:
    first = next(iter(rates))
    lines = []
    for name, values in rates.items():
        ratios = [a / b for a, b in zip(rates[first], values, strict=True)]
        lines.append(f"{title:28} {name:20} {statistics.median(values):8.0f} {min(values):8.0f} {max(values):8.0f}   {statistics.median(ratios):5.2f}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=Path, help="a folder made by 'vlm shard'")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "loader.txt")
    args = parser.parse_args()
    torch.set_num_threads(1)
    lines = [f"{'pictures per CPU second':28} {'':20} {'median':>8} {'min':>8} {'max':>8}   ratio (first / this, median over rounds)"]
    with tempfile.TemporaryDirectory() as tmp:
        for side in [0] if args.shards else [128, 256]:
            folder = args.shards or Path(tmp) / str(side)
            if side:
                make_shards(folder, side)
            samples = ShardSamples(folder)
            jpegs = [samples.jpeg(row) for row in range(min(200, len(samples)))]
            name = f"{side} px" if side else "given shards"
            parquet = folder.with_name("parquet-" + folder.name)
            if side:
                make_shards(parquet, side, "parquet")
            chunks = Path(tmp) / f"litdata-{folder.name}"
            if LITDATA:
                make_litdata(folder, chunks)
            decoders = {f.__name__: partial(decode_all, f, jpegs) for f in (simplejpeg_full, torchvision_io, pil)}
            lines += rows_of(f"decode only, {name}", compare(decoders, args.rounds))
            for size in (64, 224):
                ways = {f.__name__: partial(read_batches, f, folder, size) for f in (ours, webdataset_pil, ours_verifying)}
                if side:
                    ways["ours_parquet"] = partial(read_batches, ours, parquet, size)
                if LITDATA:
                    ways["litdata_torchvision"] = partial(read_batches, litdata_torchvision, chunks, size)
                ways["decode_scaled"] = partial(decode_all, partial(simplejpeg_scaled, crop_side(size)), jpegs)
                lines += rows_of(f"{name} -> batches of {size} px", compare(ways, args.rounds))
    text = "\n".join([conditions(args), "", *lines]) + "\n"
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(text)
    print(text)


def conditions(args: argparse.Namespace) -> str:
    cpu = next(
        (line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), platform.processor()
    )
    versions = {"python": platform.python_version(), "torch": torch.__version__, "torchvision": torchvision.__version__, "webdataset": webdataset.__version__}
    more = {"numpy": np.__version__, "pillow": Image.__version__}
    return (
        f"Loader benchmark: {', '.join(f'{name} {version}' for name, version in {**versions, **more}.items())}\n"
        f"CPU {cpu}, {os.cpu_count()} cores (load {os.getloadavg()[0]:.1f}), one process, one thread, CPU time, batches of {BATCH}, {args.rounds} interleaved rounds after one of warm-up\n"
        f"litdata {importlib.metadata.version('litdata') if LITDATA else 'is not installed (pip install -e .[bench] -c constraints.txt): not compared'}; decode_scaled is the ceiling: the decoder alone, at the scale that the crop needs\n"
        f"Shards: {json.dumps('given' if args.shards else f'{PICTURES} made JPEGs, quality 95')}"
    )


if __name__ == "__main__":
    main()
