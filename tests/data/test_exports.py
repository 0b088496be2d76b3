"""A snapshot in the words of others: every name resolves, every checksum is right, captions stay data."""

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import mlcroissant
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.data.small_world import make_shards, stage_for, write_inputs
from vlm_core.cli import main
from vlm_core.data.config import Shard
from vlm_core.data.lineage.exports import pack_uids, unpack_uids
from vlm_core.data.shards.shards import read_samples, shard
from vlm_core.errors import BadManifest
from vlm_core.stage import data_version

HOSTILE = "a [red](javascript:alert(1)) ball | <script>alert(1)</script> \x1b[31m $x$ | `rm`\n# heading"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("exports"))[0]


def export(shards: Path, kind: str, out: Path) -> Path:
    assert main(["export-data", "--recipe", kind, "--in", f"shards={shards}", "--out", str(out), "--set", "name=small world"]) == 0
    return out


def nodes(value: Any) -> list[dict[str, Any]]:
    """Every object of a JSON document."""
    inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    return ([value] if isinstance(value, dict) else []) + [node for item in inner for node in nodes(item)]


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_croissant_names_files_by_their_right_checksums_and_refers_to_nothing_that_is_not_there(tmp_path: Path, kind: str) -> None:
    made, _ = make_shards(tmp_path / "made", config=Shard(held_out=0.3, samples_per_shard=12, format=kind))  # type: ignore[arg-type]
    out = export(made, "croissant", tmp_path / "out")
    about = json.loads((out / "croissant.json").read_text())
    assert (about["@type"], about["conformsTo"], about["version"]) == ("sc:Dataset", "http://mlcommons.org/croissant/1.0", f"1.0.0+{data_version(made)}")
    for file in (node for node in about["distribution"] if node["@type"] == "cr:FileObject"):
        data = (out / file["contentUrl"]).read_bytes()
        assert (file["sha256"], file["contentSize"]) == (hashlib.sha256(data).hexdigest(), f"{len(data)} B")
    body = nodes([about["distribution"], about["recordSet"]])
    names = [node["@id"] for node in body if "@id" in node and "@type" in node]
    assert len(names) == len(set(names))
    assert {node["@id"] for node in body if "@id" in node and "@type" not in node} <= set(names)
    for field in (node for node in body if node.get("@type") == "cr:Field" and "column" in node["source"]["extract"]):
        assert field["source"]["extract"]["column"] in pq.read_schema(out / field["source"]["fileObject"]["@id"]).names
        assert field["@id"].startswith("samples/")
    assert any(node.get("@type") == "cr:FileSet" for node in body) == (kind == "tar")


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_mlcroissant_reads_every_sample_and_every_picture(tmp_path: Path, kind: str) -> None:
    made, _ = make_shards(tmp_path / "made", config=Shard(held_out=0.3, samples_per_shard=12, format=kind))  # type: ignore[arg-type]
    found = mlcroissant.Dataset(jsonld=str(export(made, "croissant", tmp_path / "out") / "croissant.json"))
    issues = found.metadata.ctx.issues
    assert not issues.errors
    assert len(issues.warnings) == 1, issues.report()  # the date of publication, which would make equal snapshots different
    samples = {sample.uid: sample for sample in read_samples(made)}
    records = list(found.records(record_set="samples"))
    assert {record["samples/uid"].decode(): record["samples/caption"].decode() for record in records} == {
        uid: s.record["caption"] for uid, s in samples.items()
    }
    if kind == "tar":
        uid_of = {record["samples/key"]: record["samples/uid"].decode() for record in records}
        pictures = {uid_of[record["images/key"]]: np.asarray(record["images/picture"]) for record in found.records(record_set="images")}
        assert set(pictures) == set(samples)
        assert all(np.array_equal(picture, np.asarray(Image.open(io.BytesIO(samples[uid].jpeg)))) for uid, picture in pictures.items())


def test_the_metadata_beside_a_croissant_leads_to_every_picture_by_a_key_that_is_its_alone(shards: Path, tmp_path: Path) -> None:
    rows = pq.read_table(export(shards, "croissant", tmp_path / "out") / "metadata.parquet").to_pylist()
    stored = {sample.uid: sample for sample in read_samples(shards)}
    assert [row["uid"] for row in rows] == list(stored)
    assert len({row["key"] for row in rows}) == len(rows), "also between the splits"
    for row in rows:
        record = stored[row["uid"]].record
        assert (row["caption"], row["url"], row["lang"]) == (record["caption"], record["url"], record["lang"])
        assert row["captions"] == [caption["text"] for caption in record["captions"]]


def test_equal_shards_give_equal_exports(shards: Path, tmp_path: Path) -> None:
    for kind in ("croissant", "datasheet", "datacomp", "hf"):
        one, two = export(shards, kind, tmp_path / "one" / kind), export(shards, kind, tmp_path / "two" / kind)
        assert data_version(one) == data_version(two)


def test_the_datasheet_counts_what_is_there(shards: Path, tmp_path: Path) -> None:
    out = export(shards, "datasheet", tmp_path / "out")
    text = (out / "datasheet.md").read_text()
    assert "60 samples (39 to train, 21 held out) in 6 shards" in text
    assert data_version(shards) in text
    for line in (
        "| en | 20 | 33.3% |",
        "| ko | 20 | 33.3% |",
        "| alt | 60 | 50.0% |",
        "| rewritten | 60 | 50.0% |",
        "| photos.demo.test | 60 | 100.0% |",
        "| CC0 | 60 | 100.0% |",
    ):
        assert line in text
    assert Image.open(out / "pictures.png").size[0] == 8 * 128


def test_datacomp_files_hold_the_training_samples_and_uids_sorted_as_its_tools_want_them(shards: Path, tmp_path: Path) -> None:
    out = export(shards, "datacomp", tmp_path / "out")
    train = {sample.uid: sample for sample in read_samples(shards, "train")}
    table = pq.read_table(out / "metadata").to_pylist()
    assert {row["uid"]: (row["url"], row["text"]) for row in table} == {uid: (s.record["url"], s.record["caption"]) for uid, s in train.items()}
    assert list(table[0]) == ["uid", "url", "text", "original_width", "original_height", "sha256", "clip_score"]
    pairs = np.load(out / "uids.npy")
    assert pairs.dtype == np.dtype("u8,u8")
    assert [f"{hi:016x}{lo:016x}" for hi, lo in pairs.tolist()] == sorted(train)


def test_lists_of_uids_come_back_and_the_golden_list_is_packed_alike(tmp_path: Path) -> None:
    golden = np.load(Path(__file__).parent.parent / "golden" / "data" / "datacomp_basic.npz")
    kept = [str(uid) for uid, keep in zip(golden["uid"], golden["keep_basic"], strict=True) if keep]
    packed = pack_uids(kept)
    assert np.array_equal(np.stack([packed["f0"], packed["f1"]], 1), golden["kept_uids_sorted"])
    np.save(tmp_path / "x.npy", packed)
    assert unpack_uids(tmp_path / "x.npy") == sorted(kept)
    np.save(tmp_path / "y.npy", np.array([object()]), allow_pickle=True)
    np.save(tmp_path / "z.npy", np.arange(3))
    for name in ("y.npy", "z.npy", "absent.npy"):
        with pytest.raises(BadManifest, match="which is no list of uids"):
            unpack_uids(tmp_path / name)


def test_a_folder_for_hugging_face_holds_a_line_for_each_picture_of_each_split(shards: Path, tmp_path: Path) -> None:
    out = export(shards, "hf", tmp_path / "out")
    for split in ("train", "heldout"):
        rows = [json.loads(line) for line in (out / split / "metadata.jsonl").read_text().splitlines()]
        stored = {sample.uid: sample for sample in read_samples(shards, split)}
        assert {row["file_name"].removesuffix(".jpg"): row["text"] for row in rows} == {uid: s.record["caption"] for uid, s in stored.items()}
        assert {path.stem: path.read_bytes() for path in (out / split).glob("*.jpg")} == {uid: s.jpeg for uid, s in stored.items()}


def test_hostile_captions_and_licences_stay_data_in_every_format(tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path / "in")
    for name, column in (("pairs", "licence"), ("filtered", "caption")):
        path = next(inputs[name].glob("*.parquet"))
        table = pq.read_table(path)
        pq.write_table(table.set_column(table.column_names.index(column), column, pa.array([HOSTILE] * len(table))), path)
    stage = stage_for(tmp_path, inputs)
    shard(Shard(held_out=0.3), stage)
    text = (export(stage.out, "datasheet", tmp_path / "sheet") / "datasheet.md").read_text()
    for markup in ("](javascript", "<script", "\x1b", "\n# heading", "| <", "`rm`"):
        assert markup not in text
    lines = (export(stage.out, "hf", tmp_path / "hf") / "train" / "metadata.jsonl").read_text().splitlines()
    assert {json.loads(line)["text"] for line in lines} == {HOSTILE}, "stored as it is"
    assert HOSTILE in json.loads((export(stage.out, "croissant", tmp_path / "croissant") / "croissant.json").read_text())["license"]


def test_a_format_that_does_not_exist_is_refused(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export-data", "--in", f"shards={shards}", "--set", "format=coco", "--out", str(tmp_path / "x")]) == 20
    assert capsys.readouterr().err.startswith("ConfigError: Found 'coco' for 'format'")
    assert not (tmp_path / "x").exists()
