"""How much of an evaluation set the filter keeps out, by what was done to the copies: real pictures, the real offline scorer, the real verbs.

    python -m benchmarks.decontamination [--pictures 200] [--copied 120] [--strangers 800] [--out benchmarks/results/decontamination.txt]

Evaluation pictures and strangers are drawn from the embedded corpus. The pool holds the strangers and, per augmentation, a copy of some evaluation pictures;
`vlm embed`, `vlm fingerprint` and `vlm filter` run over it as in the pipeline. The augmentations are not those that calibrate the cosine: crops lie off
the centre, and colours, blur and turns are others. Intervals are Wilson's, 95 %.
"""

import argparse
import hashlib
import io
import json
import os
import platform
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from vlm_core.data.config import Embed, Fingerprint, OfflineScorer
from vlm_core.data.crawl.corpus import PROJECT, Corpus
from vlm_core.data.draws import uniform
from vlm_core.data.filter.config import Decontaminate, Filter
from vlm_core.data.filter.perceptual import pdq, phash, to_hex
from vlm_core.data.sample import DOWNLOADS, PAIRS, make_uid
from vlm_core.data.shards.tar import TarWriter
from vlm_core.run import run


def cut(image: Image.Image, left: float, top: float, share: float) -> Image.Image:
    """`share` of either side, beginning at these shares."""
    width, height = image.size
    return image.crop((int(left * width), int(top * height), int((left + share) * width), int((top + share) * height)))


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    with io.BytesIO() as stream:
        image.save(stream, "JPEG", quality=quality)
        return Image.open(io.BytesIO(stream.getvalue())).convert("RGB")


AUGMENTED: dict[str, Callable[[Image.Image], Image.Image]] = {
    "as it is, JPEG 90": lambda image: jpeg(image, 90),
    "JPEG 20": lambda image: jpeg(image, 20),
    "a third of the size": lambda image: image.resize((max(16, image.width // 3), max(16, image.height // 3)), Image.Resampling.BILINEAR),
    "stretched by 1.2": lambda image: image.resize((round(image.width * 1.2), image.height), Image.Resampling.BICUBIC),
    "mirrored": ImageOps.mirror,
    "turned by 90 degrees": lambda image: image.rotate(90, expand=True),
    "turned by 5 degrees": lambda image: image.rotate(5, Image.Resampling.BICUBIC, fillcolor="white"),
    "crop 90 %, corner": lambda image: cut(image, 0, 0, 0.9),
    "crop 80 %, off centre": lambda image: cut(image, 0.15, 0.05, 0.8),
    "crop 60 %, centre": lambda image: cut(image, 0.2, 0.2, 0.6),
    "darker and stronger colours": lambda image: ImageEnhance.Color(ImageEnhance.Brightness(image).enhance(0.75)).enhance(1.5),
    "grey": lambda image: image.convert("L").convert("RGB"),
    "crop 91 %, off the grid": lambda image: cut(image, 0.037, 0.061, 0.91),
    "crop 83 %, off the grid": lambda image: cut(image, 0.113, 0.029, 0.83),
    "colours inverted": ImageOps.invert,
    "blurred": lambda image: image.filter(ImageFilter.GaussianBlur(2)),
    "crop 85 %, mirrored, JPEG 40": lambda image: jpeg(ImageOps.mirror(cut(image, 0.1, 0.1, 0.85)), 40),
}


def drawn(count: int) -> list[tuple[Image.Image, str]]:
    """(picture on white, English caption) of the embedded corpus, by lot."""
    with Corpus(PROJECT / "infra/demo/corpus.tar") as corpus:
        found = [picture for picture in corpus.pictures if picture.url and not picture.dirt and picture.captions.get("en")]
        chosen = sorted(found, key=lambda picture: uniform(0, picture.url))[:count]
        return [(on_white(corpus.read(picture.file)), picture.captions["en"]) for picture in chosen]


def on_white(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as picture:
        rgba = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def encoded(image: Image.Image, form: str) -> bytes:
    with io.BytesIO() as stream:
        image.save(stream, form, **({"quality": 95} if form == "JPEG" else {}))
        return stream.getvalue()


def write_pool(folder: Path, samples: Sequence[tuple[str, Image.Image, str]]) -> dict[str, str]:
    """candidate_pairs/ and images/ of (name, picture, caption); gives uid -> name."""
    pairs, status, pictures, names = list[dict[str, Any]](), list[dict[str, Any]](), dict[str, bytes](), dict[str, str]()
    for number, (name, image, caption) in enumerate(samples):
        url = f"http://pool.test/{number}.png"
        uid, data, rgb = make_uid(url, caption), encoded(image, "JPEG"), np.asarray(image)
        bits, quality = pdq(rgb)
        names[uid], pictures[uid] = name, data
        captions = [{"text": caption, "origin": "alt", "lang": "en"}]
        pairs.append({"uid": uid, "url": url, "page_url": "", "source": "pool", "caption": caption, "lang": "en", "captions": captions})
        status.append(
            {"uid": uid, "url": url, "status": "ok", "shard": "00000.tar", "sha256": hashlib.sha256(data).hexdigest(), "phash": to_hex(phash(rgb)), "pdq": to_hex(bits), "pdq_quality": quality,
             "original_width": image.width, "original_height": image.height, "bytes": len(data), "mime": "image/jpeg"}
        )  # fmt: skip
    for part, rows, schema in (("candidate_pairs/pairs", pairs, PAIRS), ("images/status", status, DOWNLOADS)):
        (folder / part).parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(sorted(rows, key=lambda row: row["uid"]), schema), folder / f"{part}.parquet")
    with TarWriter(folder / "images" / "00000.tar") as tar:
        for uid in sorted(pictures):
            tar.add(f"{uid}.jpg", pictures[uid])
            tar.add(f"{uid}.json", json.dumps({"uid": uid}).encode())
    return names


def wilson(found: int, of: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share (Wilson, 1927)."""
    share, scale = found / of, 1 + z * z / of
    middle, half = share + z * z / (2 * of), z * np.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    return max(0.0, float((middle - half) / scale)), min(1.0, float((middle + half) / scale))


def measure(folder: Path, pictures: int, copied: int, strangers: int) -> list[str]:
    """The table, line by line."""
    all_of_them = drawn(pictures + strangers)
    evaluation, others = all_of_them[:pictures], all_of_them[pictures:]
    for number, (image, _) in enumerate(evaluation):
        file = folder / "eval_sets" / "drawn" / f"{number:04d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded(image, "PNG"))
    copies = [(name, made(image), f"{caption}, once more") for name, made in AUGMENTED.items() for image, caption in evaluation[:copied]]
    names = write_pool(folder, [*copies, *(("stranger", image, caption) for image, caption in others)])
    inputs = {"images": folder / "images", "pairs": folder / "candidate_pairs"}
    run("embed", Embed(scorer=OfflineScorer()), inputs, folder / "embeddings")
    seen = run("fingerprint", Fingerprint(), {"eval_sets": folder / "eval_sets", "embeddings": folder / "embeddings"}, folder / "fingerprints")
    config = Filter(decontaminate=Decontaminate(prints=str(folder / "fingerprints" / "prints.parquet")))
    run("filter", config, {**inputs, "embeddings": folder / "embeddings"}, folder / "filtered")
    trail = pq.read_table(folder / "filtered" / "decisions.parquet", filters=[("rule", "=", "decontaminate")]).to_pylist()
    return table(trail, names, seen.metrics["min_cosine"])


def table(trail: Sequence[dict[str, Any]], names: dict[str, str], least: float) -> list[str]:
    asked, found, ways = Counter[str](), Counter[str](), dict[str, Counter[str]]()
    for row in trail:
        name = names[row["uid"]]
        asked[name] += 1
        if not row["keep"]:
            found[name] += 1
            ways.setdefault(name, Counter())[row["detail"].rpartition(": ")[2]] += 1
    lines = [f"a cosine of {least:.3f} counts as a copy", f"{'copy':30} {'copies':>6} {'found':>6}  {'95 % interval':15}  found first by"]
    for name in [*AUGMENTED, "stranger"]:
        low, high = wilson(found[name], asked[name])
        by = ", ".join(f"{way} {count}" for way, count in ways.get(name, Counter()).most_common())
        lines.append(f"{name:30} {asked[name]:6} {found[name] / asked[name]:6.1%}  {low:6.1%} to {high:6.1%}  {by}")
    total, right = sum(asked[name] for name in AUGMENTED), sum(found[name] for name in AUGMENTED)
    low, high = wilson(right, total)
    return [*lines, f"{'all copies':30} {total:6} {right / total:6.1%}  {low:6.1%} to {high:6.1%}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=200, help="of the evaluation set")
    parser.add_argument("--copied", type=int, default=120, help="of them that are copied into the pool, once per augmentation")
    parser.add_argument("--strangers", type=int, default=800, help="other pictures of the pool")
    parser.add_argument("--out", type=Path, help="file for the table")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as tmp:
        os.environ["VLM_HOME"] = str(Path(tmp) / "home")
        lines = measure(Path(tmp), args.pictures, args.copied, args.strangers)
    said = f"{args.pictures} evaluation pictures of the embedded corpus, {args.copied} of them copied, {args.strangers} strangers; offline scorer"
    text = "\n".join(["Decontamination: recall by augmentation", said, f"{platform.machine()}, Python {platform.python_version()}", "", *lines, ""])
    print(text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text)


if __name__ == "__main__":
    main()
