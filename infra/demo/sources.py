"""Readers of the packages that the embedded corpus is cut from. Each yields `Found` rows; nothing is downloaded here.

What lies where inside the packages, and what their licences ask, is written in NOTICE.md.
"""

import html
import json
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

PHOTO_ARCHIVES = ("categorization", "explore_farm_animals", "explore_world_animals", "explore_world_music", "explore_monuments", "solar_system", "details")
PUBLIC_DOMAIN = {"public domain": "Public domain", "cc0-1.0": "CC0-1.0"}
OCA_PUBLIC_DOMAIN = ("http://web.resource.org/cc/PublicDomain", "http://creativecommons.org/licenses/publicdomain/")


class Found(NamedTuple):
    """One picture of a package, with everything that the package says about it."""

    name: str  # unique within its source
    picture: Path | bytes
    captions: dict[str, str]  # language -> text; the English one may be empty or useless, as it was found
    description: str = ""
    tags: tuple[str, ...] = ()
    labels: dict[str, str] = {}
    licence: str = ""
    author: str = ""
    origin: str = ""  # address the package names as the source


# ---------------------------------------------------------------- emoji


def emoji(folder: Path, style: str, cldr: Path, languages: tuple[str, ...]) -> Iterator[Found]:
    """Pictures of `emoji-datasource-<style>` joined with the labels of `emojibase-data`."""
    words = {lang: _by_hexcode(cldr / lang / "data.json") for lang in languages}
    for entry in sorted(json.loads((folder / "emoji.json").read_text()), key=lambda row: row["unified"]):
        path = folder / "img" / style / "64" / entry["image"]
        code = entry["unified"]
        known = {lang: table.get(code) or table.get(code.replace("-FE0F", "")) for lang, table in words.items()}
        if not path.exists() or not entry[f"has_img_{style}"] or known["en"] is None:
            continue
        captions = {lang: str(row["label"]) for lang, row in known.items() if row}
        labels = {"emoji_group": entry["category"], "emoji_subgroup": entry["subcategory"]}
        yield Found(code.lower(), path, captions, tags=tuple(known["en"].get("tags", ())), labels=labels)


def _by_hexcode(path: Path) -> dict[str, dict]:
    rows = json.loads(path.read_text())
    return {skin["hexcode"]: skin for row in rows for skin in (row, *row.get("skins", ()))}


# ---------------------------------------------------------------- Open Clip Art


def open_clip_art(pictures: Path, drawings: Path) -> Iterator[Found]:
    """Pictures of `openclipart-png` with the RDF of `openclipart-svg`; only those whose own record says public domain."""
    for path in sorted((pictures / "png").rglob("*.png")):
        name = path.relative_to(pictures / "png").with_suffix("").as_posix()
        drawing = drawings / "svg" / f"{name}.svg"
        if not drawing.exists():
            continue
        text = drawing.read_text("utf-8", "replace")  # some records are not well-formed XML: read them as text
        record = text[text.find("<metadata") : text.find("</metadata>")]
        licence = re.search(r'<(?:cc:)?license\s+rdf:resource="([^"]*)"', record)
        if licence is None or licence.group(1) not in OCA_PUBLIC_DOMAIN:
            continue
        creator = re.search(r"<(?:dc:)?creator>.*?<(?:dc:)?title[^>]*>(.*?)</", record, re.S)
        tags = tuple(filter(None, (_plain(tag) for tag in re.findall(r"<rdf:li[^>]*>(.*?)</rdf:li>", record, re.S))))
        yield Found(
            name, path, {"en": _field("title", record)}, _field("description", record), tags,
            {"clipart_folder": name.split("/")[0]}, "Public domain", _plain(creator.group(1)) if creator else "",
        )  # fmt: skip


def _field(tag: str, record: str) -> str:
    found = re.search(rf"<(?:dc:)?{tag}[^>]*>(.*?)</(?:dc:)?{tag}>", record, re.S)
    return _plain(found.group(1)) if found else ""


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", "", html.unescape(html.unescape(text)))).strip()


# ---------------------------------------------------------------- GCompris


def gcompris(rcc: Path) -> Iterator[Found]:
    """Public-domain and CC0 photographs of `gcompris-qt-data`, with the entry of the README beside them."""
    for archive in PHOTO_ARCHIVES:
        files = dict(_qt_archive(rcc / f"{archive}.rcc"))
        for readme in sorted(name for name in files if name.endswith("/README")):
            folder = readme.removesuffix("/README")
            for entry in _entries(files[readme].decode("utf-8", "replace")):
                for path in sorted(entry["files"]):
                    full = f"{folder}/{path}"
                    if entry["licence"] and full in files and path.endswith(".webp") and not re.search(r"_\d+\.webp$", path):
                        yield _photo(archive, folder, path, files[full], entry)


def _photo(archive: str, folder: str, path: str, picture: bytes, entry: dict) -> Found:
    parts = path.removesuffix(".webp").split("/")
    topic = parts[0] if len(parts) > 1 else folder.rsplit("/", 1)[-1]
    topic = {"resource": archive, "image": "paintings"}.get(topic, topic)
    stem = re.sub(r"_background$|\d+$", "", parts[-1])
    words = re.sub(r"(?<=[a-z])(?=[A-Z])|_", " ", stem).strip().lower()
    title = re.search(r"File:([^\s]+?)\.\w+$", entry["source"])
    described = re.sub(r"[_\s]+", " ", unquote(title.group(1))).strip() if title else ""
    return Found(
        f"{topic}/{parts[-1]}", picture, {"en": words}, described, (topic,), {"photo_topic": topic}, entry["licence"], entry["author"], entry["source"]
    )


def _entries(readme: str) -> Iterator[dict]:
    """Blocks of `Copyright: .. Source: .. License: .. Files: ..`; licence is empty unless it is public domain or CC0."""
    for block in re.split(r"\n\s*\n", readme):
        source = re.search(r"^(?:Source:|Comment:.*?source at) *(\S+)", block, re.M)
        licence = re.search(r"^Licen[sc]e: *(.+)$", block, re.M)
        author = re.search(r"^Copyright: *\n? *(.+)$", block, re.M)
        files = re.search(r"^Files: *\n((?:\s*\S+ *\n?)+?)(?:Comment|\Z)", block, re.M)
        yield {
            "files": files.group(1).split() if files else [],
            "licence": PUBLIC_DOMAIN.get(licence.group(1).strip().lower(), "") if licence else "",
            "author": author.group(1).strip() if author else "",
            "source": source.group(1) if source else "",
        }


def _qt_archive(path: Path) -> Iterator[tuple[str, bytes]]:
    """Files of a Qt binary resource archive (header `qres`; tree nodes of 14 bytes in version 1 and 22 later)."""
    raw = path.read_bytes()
    if raw[:4] != b"qres":
        raise SystemExit(f"Found {raw[:4]!r} at the start of {path.name}, expected a Qt resource archive ('qres'); the package has changed its layout.")
    version, tree, data, names = struct.unpack(">4I", raw[4:20])

    def walk(index: int, prefix: str) -> Iterator[tuple[str, bytes]]:
        node = tree + index * (14 if version == 1 else 22)
        name_at, flags = struct.unpack_from(">IH", raw, node)
        (letters,) = struct.unpack_from(">H", raw, names + name_at)
        name = raw[names + name_at + 6 :][: 2 * letters].decode("utf-16-be") if index else ""
        path = f"{prefix}/{name}" if name else prefix
        if flags & 2:  # a directory
            count, first = struct.unpack_from(">2I", raw, node + 6)
            for child in range(first, first + count):
                yield from walk(child, path)
            return
        (at,) = struct.unpack_from(">I", raw, node + 10)
        (size,) = struct.unpack_from(">I", raw, data + at)
        content = raw[data + at + 4 :][:size]
        if not flags & 4:  # 4 is zstd: none of the archives that we read uses it for pictures
            yield path, zlib.decompress(content[4:]) if flags & 1 else content

    return walk(0, "")
