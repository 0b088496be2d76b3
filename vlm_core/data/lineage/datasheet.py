"""A datasheet (arXiv 1803.09010) of a snapshot in Markdown: every number is counted, every sentence of others is quoted."""

from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa

from vlm_core import stage as stages
from vlm_core.data.pictures import contact_sheet
from vlm_core.data.shards.shards import read_manifest, read_samples

SHOWN, DOMAINS = 48, 0.1  # pictures on the sheet; share of domains that are listed, as the EU's template for training data asks

Row = dict[str, Any]


def write(shards: Path, out: Path, name: str, table: pa.Table) -> None:
    """datasheet.md and pictures.png."""
    rows, manifest = table.to_pylist(), read_manifest(shards)
    some = {row["uid"] for row in rows[:: max(1, len(rows) // SHOWN)][:SHOWN]}
    contact_sheet(((s.jpeg, s.record["caption"]) for s in read_samples(shards) if s.uid in some), out / "pictures.png")
    parts = [
        f"# {quoted(name)}", _what(rows, manifest, stages.data_version(shards)), "![a look at the pictures](pictures.png)",
        "## Motivation\n\nPairs of pictures and captions to train and to test vision-language models.",
        "## Composition", _composition(rows), "## Collection", _collection(rows), "## Preprocessing", _preprocessing(manifest),
        "## Uses\n\nThe held-out split is for measuring only: no group of equal captions, similar pictures or one author is in both splits. Captions come from "
        "the web and from models; they are no facts about the people and things that are shown.",
        "## Distribution and licences", _count("licence", Counter(row["licence"] or "not stated" for row in rows), len(rows)),
        "## Maintenance\n\n`vlm takedown` takes a sample, address, site or picture out: later versions are made without it, this one is then marked as revoked.",
    ]  # fmt: skip
    (out / "datasheet.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def quoted(text: object, longest: int = 60) -> str:
    """Somebody else's words inside a table of Markdown: nothing in them is markup, a line end or a control character."""
    plain = "".join(letter if letter.isprintable() else " " for letter in str(text))[:longest]
    return "".join(f"&#{ord(letter)};" if letter in "\\`*_{}[]()<>#+!|~&$" else letter for letter in plain)


def _what(rows: list[Row], manifest: Row, version: str) -> str:
    totals = manifest["totals"]
    return (
        f"{len(rows):,} samples ({totals['train']:,} to train, {totals['heldout']:,} held out) in {len(manifest['shards'])} shards, "
        f"{sum(entry['bytes'] for entry in manifest['shards']) / 1e6:,.1f} MB. Version `{version}`"
        + (f", grown out of `{manifest['parent']}`." if manifest.get("parent") else ".")
    )


def _composition(rows: list[Row]) -> str:
    origins = Counter(origin for row in rows for origin in row["origins"])
    sides = sorted(min(row["width"] or 0, row["height"] or 0) for row in rows)
    words = sorted(len(row["caption"].split()) for row in rows)
    middle = len(rows) // 2
    facts = (
        f"Each sample is one picture (JPEG) with one raw caption and any number of others. Shorter side of the stored picture: {sides[0]} to {sides[-1]} px, "
        f"median {sides[middle]}. Words of the raw caption: {words[0]} to {words[-1]}, median {words[middle]}."
    )
    languages = Counter(row["lang"] or "unknown" for row in rows)
    return "\n\n".join([facts, _count("language", languages, len(rows)), _count("caption origin", origins, sum(origins.values()))])


def _collection(rows: list[Row]) -> str:
    domains = Counter(_host(row["url"]) for row in rows)
    top = max(10, round(len(domains) * DOMAINS))
    listed = Counter(dict(domains.most_common(top)))
    sources = Counter(row["source"] or "unknown" for row in rows)
    return "\n\n".join([
        f"Pictures come from {len(domains):,} hosts; the largest {len(listed):,} are listed. Addresses and pages of all samples are in the shards' records.",
        _count("host", listed, len(rows)), _count("source", Counter(dict(sources.most_common(50))), len(rows)),
    ])  # fmt: skip


def _preprocessing(manifest: Row) -> str:
    settings = "\n".join(f"- `{key}`: {quoted(value)}" for key, value in sorted((manifest.get("settings") or manifest["split"]).items()))
    return f"Rules, scores and thresholds of the filter are in the decisions of each sample (`vlm lineage why UID`). Settings of the shards:\n\n{settings}"


def _count(title: str, counts: Counter[str], total: int) -> str:
    lines = [f"| {title} | samples | share |", "|---|---:|---:|"]
    return "\n".join(
        [*lines, *(f"| {quoted(name)} | {number:,} | {number / total:.1%} |" for name, number in sorted(counts.items(), key=lambda item: (-item[1], item[0])))]
    )


def _host(url: str) -> str:
    try:
        return urlsplit(url or "").hostname or "unknown"
    except ValueError:
        return "unknown"
