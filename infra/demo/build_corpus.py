"""Make `corpus.tar` and `truth.jsonl` again from the packages: same packages and same Pillow, same bytes.

    python infra/demo/build_corpus.py --packages DIR [--out infra/demo]

DIR is filled with what is not there yet (`apt-get download`, `npm pack`); nothing is installed. Only redistributable
pictures go in (NOTICE.md). Twemoji pictures and a share of the others are linked from no page: they are for tests only.
"""

import argparse
import collections
import gzip
import hashlib
import io
import json
import re
import struct
import subprocess
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import sources
from PIL import Image, ImageOps
from sources import Found

from vlm_core.data.crawl import demo_site, demo_truth
from vlm_core.data.crawl.corpus import META, Corpus, Picture

APT = {
    "openclipart-png": "f07f1545a2970c2cf3fa339bc2405da1a95cf2b1827bfa05bf73eb1c20291c02",
    "openclipart-svg": "989712d90d57dfa3230049f553bb43b76c30ee4d4b8c5f6e106e33f7db5cbdc5",
    "gcompris-qt-data": "e9cf06ab2105529068df73085784e835d2ff03f870d2a8091f09125d40abac9f",
}
NPM = {
    "emoji-datasource-google@16.0.0": "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
    "emoji-datasource-twitter@16.0.0": "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
    "emojibase-data@17.0.0": "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
}
CONTENTS = {"noto": 1911, "twemoji": 1911, "openclipart": 8056, "gcompris": 223}  # pictures the readers must find, within 1 %
LANGUAGES = ("en", "ko", "ja", "fr")
CLIPART, CLIPART_SIDE, PHOTO_SIDE, TWEMOJI = 1665, 176, 224, 1150
USELESS_FROM = 9  # a title that this many pictures of the package share says nothing about any of them
MOST_PIXELS = 60_000_000
EMAIL = re.compile(r"[\w.+-]+@[\w-]+\.[\w.]+")


def share(name: str, salt: str) -> float:
    """A number in [0, 1) that depends on the name only: who is picked does not depend on who else is there."""
    return int.from_bytes(hashlib.sha256(f"{salt}:{name}".encode()).digest()[:6], "big") / 2**48


# ---------------------------------------------------------------- packages


def fetch(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, sha in APT.items():
        _one(folder, f"{name}_*.deb", ["apt-get", "download", name], sha)
    for name, sha in NPM.items():
        _one(folder, name.replace("@", "-") + ".tgz", ["npm", "pack", name], sha)


def _one(folder: Path, pattern: str, command: list[str], sha: str) -> None:
    if not list(folder.glob(pattern)):
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    file = next(iter(folder.glob(pattern)))
    target = folder / "unpacked" / file.name.split("_")[0]
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != sha:
        print(f"Found {file.name} with sha256 {found[:12]}.., built last from {sha[:12]}..: another release; going on, since the contents are counted below.")
    if not target.exists():
        target.mkdir(parents=True)
        subprocess.run(["dpkg-deb", "-x", file, target] if file.suffix == ".deb" else ["tar", "xzf", file, "-C", target], check=True)


def read_all(unpacked: Path) -> dict[str, list[Found]]:
    cldr = unpacked / "emojibase-data-17.0.0.tgz/package"
    found = {
        "noto": list(sources.emoji(unpacked / "emoji-datasource-google-16.0.0.tgz/package", "google", cldr, LANGUAGES)),
        "twemoji": list(sources.emoji(unpacked / "emoji-datasource-twitter-16.0.0.tgz/package", "twitter", cldr, LANGUAGES)),
        "gcompris": list(sources.gcompris(unpacked / "gcompris-qt-data/usr/share/gcompris-qt/rcc")),
        "openclipart": _with_drawings(unpacked),
    }
    for name, rows in found.items():
        if abs(len(rows) - CONTENTS[name]) > CONTENTS[name] / 100:
            raise SystemExit(
                f"Found {len(rows)} pictures of {name}, expected {CONTENTS[name]} within 1 %; the package has changed, look at its reader in sources.py."
            )
    return found


def _with_drawings(unpacked: Path) -> list[Found]:
    return list(sources.open_clip_art(unpacked / "openclipart-png/usr/share/openclipart", unpacked / "openclipart-svg/usr/share/openclipart"))


# ---------------------------------------------------------------- which clip art, and what is dirty about it


def title_dirt(found: Found, titles: collections.Counter[str]) -> dict[str, str]:
    title, dirt = found.captions["en"], {}
    if titles[title] >= USELESS_FROM or not re.search(r"[^\W\d_]{2}", title):
        dirt["useless_title"] = ""
    if EMAIL.search(title + " " + found.description):
        dirt["email"] = ""
    return dirt


def choose_clipart(rows: list[Found]) -> list[tuple[Found, dict[str, str]]]:
    """Mostly pictures that are worth having, with the package's dirt in about the share in which a web crawl has it."""
    titles = collections.Counter(row.captions["en"] for row in rows)
    rows = [row for row in rows if _pixels(row.picture) <= MOST_PIXELS]
    ranked = sorted(rows, key=lambda row: share(row.name, "clipart"))
    limits = collections.Counter(clean=CLIPART - 285, duplicate=110, useless_title=130, email=45)
    folders, seen, kept = collections.Counter[str](), set[str](), []
    for row in ranked:
        content, dirt = hashlib.sha256(row.picture.read_bytes()).hexdigest(), title_dirt(row, titles)
        kind = "duplicate" if content in seen else next(iter(dirt), "clean")
        top = row.labels["clipart_folder"]
        if limits[kind] <= 0 or (kind == "clean" and (folders[top] >= 200 or row.name.startswith("shapes/stars"))):
            continue
        limits[kind] -= 1
        folders[top] += kind == "clean"
        seen.add(content)
        untitled = not row.captions["en"] or (kind == "clean" and share(row.name, "untitled") < 0.025)  # a page whose author wrote no text at all
        kept.append((row._replace(captions={"en": ""}, description="", tags=()), {"empty_title": ""}) if untitled else (row, dirt))
    return sorted(kept, key=lambda pair: pair[0].name)


def _pixels(path: Path) -> int:
    width, height = struct.unpack(">2I", path.read_bytes()[16:24])  # of the PNG header: nothing is decoded
    return width * height


# ---------------------------------------------------------------- bytes


def on_white(picture: Image.Image, side: int) -> Image.Image:
    picture = picture.convert("RGBA")
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    white = Image.new("RGBA", picture.size, "white")
    white.alpha_composite(picture)
    return white.convert("RGB")


def small_png(picture: Image.Image, colours: int) -> bytes:
    out = io.BytesIO()
    method = Image.Quantize.FASTOCTREE if picture.mode == "RGBA" else Image.Quantize.MEDIANCUT
    picture.quantize(colours, method=method, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return out.getvalue()


def jpeg(picture: Image.Image, quality: int = 78, orientation: int = 1) -> bytes:
    exif, out = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    picture.save(out, "JPEG", quality=quality, optimize=True, **({"exif": exif} if orientation != 1 else {}))
    return out.getvalue()


def opened(picture: Path | bytes) -> Image.Image:
    return Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else picture)


# ---------------------------------------------------------------- rows


Made = tuple[Picture, bytes]
PLAIN = {"description": "", "labels": {}, "author": "", "dirt": {}, "serve": "", "url": "", "pages": []}


def _row(found: Found, source: str, style: str, file: str, **more: object) -> Picture:
    values = {"captions": found.captions, "description": found.description, "tags": list(found.tags), "labels": found.labels, "author": found.author}
    return Picture.read({"key": file.rsplit(".", 1)[0], "file": file, "source": source, "style": style, "licence": found.licence, **values, **more})


def noto(rows: list[Found]) -> Iterator[Made]:
    """15 % are linked from nowhere; of the others most are on English pages only, some on Korean, Japanese or French ones, a few on two."""
    for found in rows:
        group, where = demo_site.slug(found.labels["emoji_group"]), share(found.name, "language")
        langs = ["ko"] if where < 0.09 else ["ja"] if where < 0.18 else ["fr"] if where < 0.24 else ["en", "ko"] if where < 0.26 else ["en"]
        more: dict[str, object] = {"licence": "Apache-2.0", "credit": "Noto Emoji, Google"}
        if share(found.name, "reserve") >= 0.15:
            private = share(found.name, "robots") < 0.03
            hotlinked = ["en/elsewhere"] if share(found.name, "hotlink") < 0.3 else []  # an allowed page that shows forbidden pictures
            folder, pages = ("private", ["en/private", *hotlinked]) if private else ("img", [f"{lang}/{group}" for lang in langs])
            more |= {"url": f"http://{demo_site.EMOJI}/{folder}/{found.name}.png", "pages": [f"{demo_site.EMOJI}/{page}" for page in pages]}
            more |= {"dirt": {"robots": ""}} if private else {}
        yield _row(found, "noto", "noto", f"noto/{found.name}.png", **more), found.picture.read_bytes()


def twemoji(rows: list[Found]) -> Iterator[Made]:
    """First those whose Noto twin is linked from nowhere, then others; never on a page."""
    ranked = sorted(rows, key=lambda found: (share(found.name, "reserve") >= 0.15, share(found.name, "twemoji")))[:TWEMOJI]
    for found in sorted(ranked):
        with opened(found.picture) as picture:
            content = small_png(picture.convert("RGBA"), 128)
        yield _row(found, "twemoji", "twemoji", f"twemoji/{found.name}.png", licence="CC-BY-4.0", credit="Twemoji, Twitter and contributors"), content


def clipart(rows: list[Found]) -> Iterator[Made]:
    """Every eighth author's pictures are linked from nowhere."""
    for found, dirt in choose_clipart(rows):
        with opened(found.picture) as picture:
            content = small_png(on_white(picture, CLIPART_SIDE), 64)
        more: dict[str, object] = {"dirt": dirt, "credit": "Open Clip Art Library" + (f", {found.author}" if found.author else "")}
        if share(found.author or found.name, "reserve") >= 0.13:
            more |= {
                "url": f"http://{demo_site.CLIPART}/files/{demo_site.quoted(found.name)}.png",
                "pages": [f"{demo_site.CLIPART}/en/{demo_site.slug(found.name.split('/')[0])}"],
            }
        yield _row(found, "openclipart", "clipart", f"openclipart/{found.name}.png", **more), content


def photos(rows: list[Found]) -> Iterator[Made]:
    served = dict(enumerate(demo_site.SERVED))  # the first photographs show what a server may do
    for place, found in enumerate(sorted(rows, key=lambda row: share(row.name, "photo"))):
        serve, topic = served.get(place, ""), demo_site.slug(found.labels["photo_topic"])
        with opened(found.picture) as picture:
            small = on_white(picture, PHOTO_SIDE)
        content = jpeg(small.transpose(Image.Transpose.ROTATE_90), orientation=6) if serve == "exif_rotated" else jpeg(small)
        url = f"http://{demo_site.PHOTOS}/p/{demo_site.quoted(found.name)}.jpg"
        credit = ", ".join(filter(None, (found.author, found.origin, "from GCompris")))
        yield (
            _row(found, "gcompris", "photo", f"gcompris/{found.name}.jpg", url=url, pages=[f"{demo_site.PHOTOS}/en/{topic}"], serve=serve, credit=credit),
            content,
        )


def mirrored(made: list[Made]) -> Iterator[Made]:
    """A second site that copies: the same bytes under another address, and re-encoded smaller copies."""
    linked = sorted((m for m in made if m[0].url and not m[0].serve and not m[0].dirt), key=lambda m: share(m[0].key, "mirror"))
    for place, (row, original) in enumerate(linked[:80]):
        near, name = place % 2, row.key.replace("/", "-")
        content = _smaller(original) if near else original
        yield row.model_copy(update={
            "key": f"mirror/{name}", "file": f"mirror/{name}.jpg" if near else row.file, "source": "mirror", "labels": {}, "pages": [f"{demo_site.MIRROR}/en/copies"],
            "url": f"http://{demo_site.MIRROR}/c/{name}{'.jpg' if near else Path(row.file).suffix}", "dirt": {"near_duplicate": row.url} if near else {},
        }), content  # fmt: skip


def _smaller(content: bytes) -> bytes:
    with opened(content) as picture:
        size = max(72, int(max(picture.size) * 0.8))
        return jpeg(ImageOps.contain(on_white(picture, 512), (size, size), Image.Resampling.BICUBIC), 70)


# ---------------------------------------------------------------- files


def write_tar(path: Path, made: Iterable[Made]) -> None:
    """Members in a fixed order, without owner or time."""
    made = list(made)
    lines = [json.dumps(row.model_dump(exclude_defaults=True), ensure_ascii=False, sort_keys=True) for row, _ in made]
    files = {META: gzip.compress("\n".join(lines).encode(), 9, mtime=0)} | {row.file: content for row, content in made}
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o644
            tar.addfile(member, io.BytesIO(content))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, required=True, help="folder for the packages, 0.35 GB")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    args = parser.parse_args()
    fetch(args.packages)
    found = read_all(args.packages / "unpacked")
    made = [*noto(found["noto"]), *twemoji(found["twemoji"]), *clipart(found["openclipart"]), *photos(found["gcompris"])]
    made += list(mirrored(made))
    write_tar(args.out / "corpus.tar", made)
    with Corpus(args.out / "corpus.tar") as corpus:
        truth = demo_truth.truth(corpus)
    (args.out / "truth.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in truth))
    sizes = collections.Counter(row.source for row, _ in made)
    print(f"{len(made):,} pictures ({', '.join(f'{name} {n:,}' for name, n in sizes.items())}), {(args.out / 'corpus.tar').stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
