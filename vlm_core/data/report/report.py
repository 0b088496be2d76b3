"""The verb `report`: one HTML file that shows a snapshot to a person, complete in itself: opens without a server, loads nothing, runs no script.

    OUT/index.html     the page; equal inputs and settings give equal bytes

The page is for looking; numbers for machines are in the tables and reports that it is made from.
"""

import base64
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from vlm_core import stage as stages
from vlm_core.data.report import queries
from vlm_core.data.lineage import tombstones
from vlm_core.data.report.config import DatasetPage
from vlm_core.data.report.page import render
from vlm_core.data.fetch.stored import Pictures
from vlm_core.errors import MissingInput
from vlm_core.stage import Report, Stage

Row = dict[str, Any]
INPUTS = ("pairs", "images", "embeddings", "filtered", "captions", "shards")
TAG = 64  # bytes of an <img> around its picture
SETTINGS = 20_000  # characters of settings shown per input


def report(config: DatasetPage, stage: Stage) -> Report:
    """Writes index.html. Raises MissingInput, SchemaMismatch."""
    tables = queries.Tables({name: stage.input(name) for name in INPUTS}, tombstones.load(stages.home()).uids)
    found = ask(tables, config)
    versions = {name: stage.versions.get(name) or stages.data_version(stage.input(name)) for name in INPUTS}
    found |= {
        "title": config.title or "Dataset report", "snapshot": versions["shards"], "scorer": _scorer(stage.input("embeddings")),
        "made": [_made(name, stage.input(name), version) for name, version in versions.items()],
    }  # fmt: skip
    uses = Counter(_shown(found))
    room = int(config.max_mb * 1e6) - len(render({**found, "pictures": {}, "left_out": len(uses)}).encode())
    pictures = thumbnails(Pictures(stage.input("images")), uses, room, config.thumbnail_px)
    left_out = len(uses) - len(pictures)
    page = render({**found, "pictures": pictures, "left_out": left_out})
    (stage.out / "index.html").write_text(page, encoding="utf-8")
    stage.tracker.artefact(stage.out / "index.html", "report")
    return _report(found, len(page.encode()), len(pictures), left_out, stage)


def ask(tables: queries.Tables, config: DatasetPage) -> dict[str, Any]:
    """Everything that the page shows but pictures."""
    histograms = queries.histograms(tables)
    return {
        "funnel": queries.funnel(tables),
        "reasons": [{"name": row["reason"], **row} for row in queries.reasons(tables)],
        "examples": queries.examples(tables, config),
        "histograms": [{**found, "tallest": max(row["kept"] + row["dropped"] for row in found["bins"])} for found in histograms],
        "languages": queries.by_language(tables, config.rows),
        "domains": queries.by_domain(tables, config.rows),
        "licences": queries.by_licence(tables, config.rows),
        "duplicates": queries.duplicates(tables, config.side_by_side),
        "origins": queries.origins(tables),
        "beside": queries.several_captions(tables, config.side_by_side),
        "statuses": queries.statuses(tables),
        "sizes": queries.sizes(tables),
    }


def _shown(found: Mapping[str, Any]) -> Iterator[str]:
    """Uids whose pictures the page shows, the most telling first."""
    sheets = found["examples"]
    duplicates = chain.from_iterable((row["stays"], row["goes"]) for row in found["duplicates"])
    dropped = (row["uid"] for name, rows in sheets.items() if name.startswith("dropped ") for row in rows if not row["missing"])
    return chain((row["uid"] for row in sheets["kept"]), duplicates, (row["uid"] for row in found["beside"]), dropped,
                 (row["uid"] for name in ("best", "worst") for row in sheets[name]))  # fmt: skip


def thumbnails(store: Pictures, uses: Mapping[str, int], room: int, side_px: int) -> dict[str, str]:
    """uid -> data address of its small picture, for as many as fit into `room` bytes; `uses` says how often the page shows each."""
    found = dict[str, str]()
    for uid, times in uses.items():
        small = store.image(uid)
        small.thumbnail((side_px, side_px), Image.Resampling.LANCZOS)
        stream = io.BytesIO()
        small.save(stream, "JPEG", quality=72, optimize=True)
        address = f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
        room -= times * (len(address) + TAG)
        if room < 0:
            break
        found[uid] = address
    return found


def _made(name: str, folder: Path, version: str) -> Row:
    """Verb, recipe and settings that made a folder, if the record beside it is the one of these bytes."""
    file = stages.record_of(folder) / "result.json"
    record = json.loads(file.read_text()) if file.is_file() else {}
    if record.get("data_version") != version:
        return {"name": name, "version": version, "by": "", "settings": ""}
    settings = yaml.safe_dump(record["provenance"]["config"], sort_keys=False, allow_unicode=True)
    return {
        "name": name,
        "version": version,
        "by": f"vlm {record['verb']} --recipe {record['recipe']}".removesuffix(" --recipe "),
        "settings": settings[:SETTINGS],
    }


def _scorer(embeddings: Path) -> str:
    file = embeddings / "scorer.json"
    if not file.is_file():
        raise MissingInput(f"Found no file {file}, expected what 'vlm embed' writes; run it first.")
    told = json.loads(file.read_text())
    return f"{told['scorer']}, version {told['version'][:12]}"


def _report(found: Mapping[str, Any], size: int, pictures: int, left_out: int, stage: Stage) -> Report:
    from vlm_core.charts import bar_chart

    funnel = {row["name"]: row["n"] for row in found["funnel"]}
    bar_chart({**funnel, **{f"dropped: {row['name']}": row["n"] for row in found["reasons"]}}, "from candidates to shards", stage.pictures / "funnel.png")
    return Report(
        counts={"in": funnel["candidate pairs"], "kept": funnel["kept by the filter"], "pictures": pictures, "left_out": left_out},
        metrics={"page_mb": round(size / 1e6, 3)},
        tables={"domains": found["domains"], "languages": found["languages"], "licences": found["licences"]},
        pictures={"from candidates to shards": "funnel.png"},
    )
