"""The description of a snapshot in Croissant 1.0 (https://docs.mlcommons.org/croissant/docs/croissant-spec.html)."""

from pathlib import Path
from typing import Any

import pyarrow as pa

from vlm_core import stage as stages
from vlm_core.data.shards.shards import read_manifest

# The vocabulary of the specification: its terms by name, and what they stand for.
CONTEXT: dict[str, Any] = {
    "@language": "en", "@vocab": "https://schema.org/", "citeAs": "cr:citeAs", "column": "cr:column", "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/", "rai": "http://mlcommons.org/croissant/RAI/", "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"}, "dct": "http://purl.org/dc/terms/", "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract", "field": "cr:field", "fileProperty": "cr:fileProperty", "fileObject": "cr:fileObject", "fileSet": "cr:fileSet",
    "format": "cr:format", "includes": "cr:includes", "isLiveDataset": "cr:isLiveDataset", "jsonPath": "cr:jsonPath", "key": "cr:key", "md5": "cr:md5",
    "equivalentProperty": "cr:equivalentProperty", "parentField": "cr:parentField", "path": "cr:path", "recordSet": "cr:recordSet", "references": "cr:references", "regex": "cr:regex",
    "repeated": "cr:repeated", "replace": "cr:replace", "samplingRate": "cr:samplingRate", "sc": "https://schema.org/", "separator": "cr:separator", "source": "cr:source",
    "subField": "cr:subField", "transform": "cr:transform",
}  # fmt: skip
FIELDS = {
    "uid": ("sc:Text", "128-bit name of the pair of address and raw caption"), "split": ("sc:Text", "train or heldout"),
    "shard": ("sc:Text", "file that holds the picture"), "key": ("sc:Text", "name of the picture in its shard, without .jpg"),
    "url": ("sc:URL", "address of the picture"), "page_url": ("sc:URL", "page on which it was found"), "caption": ("sc:Text", "raw caption"),
    "lang": ("sc:Text", "language of the raw caption"), "sha256": ("sc:Text", "of the picture as fetched"), "width": ("sc:Integer", "in pixels"),
    "height": ("sc:Integer", "in pixels"), "source": ("sc:Text", "where the pair comes from"), "licence": ("sc:Text", "as the source states it"),
    "credit": ("sc:Text", "author as the source states it"), "clip_score": ("sc:Float", "image-text score of the scorer of the filter"),
}  # fmt: skip
TYPES = {".tar": "application/x-tar", ".parquet": "application/x-parquet"}


def describe(shards: Path, folder: Path, name: str, table: pa.Table) -> dict[str, Any]:
    """croissant.json of a folder that holds the shards and metadata.parquet. The version's build part (semver.org) is the snapshot's hash."""
    manifest = read_manifest(shards)
    licences = sorted({text for text in table["licence"].to_pylist() if text}) or ["unknown"]
    return {
        "@context": CONTEXT, "@type": "sc:Dataset", "conformsTo": "http://mlcommons.org/croissant/1.0", "name": name,
        "description": f"{len(table):,} pictures with captions: {manifest['totals']['train']:,} for training, {manifest['totals']['heldout']:,} held out; no group of "
        "equal captions, similar pictures or one author is in both.",
        "version": f"1.0.0+{stages.data_version(shards)}", "citeAs": f"{name}, snapshot {stages.data_version(shards)}", "license": licences, "url": f"urn:dvc:{stages.data_version(shards)}", "isLiveDataset": False,
        "distribution": [_file(folder / "metadata.parquet"), *(_shard(entry) for entry in manifest["shards"]), *_pictures(manifest)],
        "recordSet": [_samples(table), *_images(manifest)],
    }  # fmt: skip


def _file(path: Path) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject", "@id": path.name, "name": path.name, "contentUrl": path.name, "contentSize": f"{path.stat().st_size} B",
        "encodingFormat": TYPES[path.suffix], "sha256": stages.file_sha256(path),
    }  # fmt: skip


def _shard(entry: dict[str, Any]) -> dict[str, Any]:
    name = entry["name"]
    return {
        "@type": "cr:FileObject", "@id": name, "name": name, "contentUrl": name, "contentSize": f"{entry['bytes']} B",
        "encodingFormat": TYPES[Path(name).suffix], "sha256": entry["sha256"], "md5": entry["md5"],
    }  # fmt: skip


def _pictures(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """Pictures inside tars; those of Parquet shards are a column."""
    tars = [{"@id": entry["name"]} for entry in manifest["shards"] if entry["name"].endswith(".tar")]
    return (
        [{"@type": "cr:FileSet", "@id": "pictures", "name": "pictures", "containedIn": tars, "encodingFormat": "image/jpeg", "includes": "*.jpg"}]
        if tars
        else []
    )


def _samples(table: pa.Table) -> dict[str, Any]:
    fields = [_field(f"samples/{name}", kind, about, "metadata.parquet", name) for name, (kind, about) in FIELDS.items()]
    captions = {**_field("samples/captions", "sc:Text", "all captions, the raw one first", "metadata.parquet", "captions"), "repeated": True}
    return {"@type": "cr:RecordSet", "@id": "samples", "name": "samples", "key": {"@id": "samples/uid"}, "field": [*fields, captions]}


def _field(name: str, kind: str, about: str, file: str, column: str) -> dict[str, Any]:
    source = {"fileObject": {"@id": file}, "extract": {"column": column}}
    return {"@type": "cr:Field", "@id": name, "name": name.partition("/")[2], "description": about, "dataType": kind, "source": source}


def _images(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """The pictures as records of their own, joined to the samples by key."""
    if not any(entry["name"].endswith(".tar") for entry in manifest["shards"]):
        return []
    key = {
        "fileSet": {"@id": "pictures"},
        "extract": {"fileProperty": "filename"},
        "transform": {"regex": r"^(.*?)(?:\.jpg)?$"},
    }  # mlcroissant applies it twice
    picture = {"fileSet": {"@id": "pictures"}, "extract": {"fileProperty": "content"}}
    fields = [
        {"@type": "cr:Field", "@id": "images/key", "name": "key", "dataType": "sc:Text", "source": key, "references": {"field": {"@id": "samples/key"}}},
        {"@type": "cr:Field", "@id": "images/picture", "name": "picture", "dataType": "sc:ImageObject", "source": picture},
    ]
    return [{"@type": "cr:RecordSet", "@id": "images", "name": "images", "field": fields}]
