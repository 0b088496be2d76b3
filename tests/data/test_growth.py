"""A snapshot grows out of the last one: what is the same stays byte for byte, in either format; groups stay on their side."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.small_world import picture, write_inputs
from vlm_core import stage as stages
from vlm_core.data.config import Shard
from vlm_core.data.shards.samples import ShardSamples
from vlm_core.data.shards.shards import read_index, read_manifest, read_samples
from vlm_core.data.shards.tar import TarWriter, read_tar
from vlm_core.data.shards.verify import verify
from vlm_core.errors import BadManifest
from vlm_core.run import run
from vlm_core.stage import Report

CONFIG = Shard(held_out=0.3, samples_per_shard=12)


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLM_HOME", str(tmp_path / "home"))


def make(root: Path, config: Shard = CONFIG, **changes: Any) -> Report:
    """Shard whatever lies in root/in into root/shards."""
    inputs = {name: root / "in" / name for name in ("pairs", "images", "filtered", "captions")}
    return run("shard", config.merged(changes), inputs, root / "shards")


def keep(root: Path, chosen: Any) -> None:
    """Leave only the kept samples for which `chosen(row number)` holds."""
    path = root / "in" / "filtered" / "kept.parquet"
    rows = pq.read_table(path).to_pylist()
    pq.write_table(pa.Table.from_pylist([row for number, row in enumerate(rows) if chosen(number)]), path)


def shard_bytes(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (root / "shards").iterdir() if path.name.startswith(("train", "heldout"))}


FORMATS = pytest.mark.parametrize("kind", ["tar", "parquet"])


@FORMATS
def test_new_samples_go_into_new_shards_and_no_old_byte_changes(tmp_path: Path, kind: str) -> None:
    write_inputs(tmp_path / "in", 60)
    first, before = make(tmp_path, format=kind), shard_bytes(tmp_path)
    write_inputs(tmp_path / "in", 90)
    second, after = make(tmp_path, format=kind), shard_bytes(tmp_path)
    assert {name: after[name] for name in before} == before
    assert second.counts["shards_kept"] == len(before) == 6
    new = {row["uid"] for row in read_index(tmp_path / "shards").to_pylist() if row["shard"] not in before}
    assert len(new) == 30
    assert verify(tmp_path / "shards") == second.data_version
    assert read_manifest(tmp_path / "shards")["parent"] == first.data_version
    changed = {row["samples"]: row["number"] for row in second.tables["since the last snapshot"]}
    assert changed == {"added": 30, "removed": 0, "moved": 0, "other picture": 0, "other record": 0, "unchanged": 60}


@FORMATS
def test_dropped_samples_rewrite_only_the_shards_they_were_in(tmp_path: Path, kind: str) -> None:
    write_inputs(tmp_path / "in", 60)
    make(tmp_path, format=kind)
    before, index = shard_bytes(tmp_path), read_index(tmp_path / "shards").to_pylist()
    gone = [row["uid"] for row in index if row["shard"].startswith("train-00001")][3:5]
    rows = pq.read_table(tmp_path / "in" / "filtered" / "kept.parquet").to_pylist()
    keep(tmp_path, lambda number: rows[number]["uid"] not in gone)
    report, after = make(tmp_path, format=kind), shard_bytes(tmp_path)
    assert [name for name in before if after.get(name) != before[name]] == [f"train-00001.{kind}"]
    stored = [sample.uid for sample in read_samples(tmp_path / "shards")]
    assert stored == [row["uid"] for row in index if row["uid"] not in gone], "the others keep their order"
    assert report.counts["shards_kept"] == 5
    assert not any(uid.encode() in data for data in after.values() for uid in gone)
    verify(tmp_path / "shards")


def test_a_shard_that_loses_all_its_samples_goes_and_its_number_is_not_used_again(tmp_path: Path) -> None:
    write_inputs(tmp_path / "in", 60)
    make(tmp_path)
    gone = {row["uid"] for row in read_index(tmp_path / "shards").to_pylist() if row["shard"] == "train-00003.tar"}
    rows = pq.read_table(tmp_path / "in" / "filtered" / "kept.parquet").to_pylist()
    keep(tmp_path, lambda number: rows[number]["uid"] not in gone)
    make(tmp_path)
    assert "train-00003.tar" not in shard_bytes(tmp_path)
    write_inputs(tmp_path / "in", 90)
    make(tmp_path)
    assert "train-00002.tar" in shard_bytes(tmp_path)
    verify(tmp_path / "shards")


def test_the_same_samples_give_the_same_snapshot_with_the_same_parent(tmp_path: Path) -> None:
    write_inputs(tmp_path / "in", 60)
    first = make(tmp_path)
    again = run("shard", CONFIG, {name: tmp_path / "in" / name for name in ("pairs", "images", "filtered", "captions")}, tmp_path / "shards", force=True)
    assert (again.reused, again.data_version) == (False, first.data_version)
    write_inputs(tmp_path / "in", 90)
    grown = make(tmp_path)
    once_more = run("shard", CONFIG, {name: tmp_path / "in" / name for name in ("pairs", "images", "filtered", "captions")}, tmp_path / "shards", force=True)
    assert once_more.data_version == grown.data_version
    assert once_more.counts["shards_kept"] == once_more.counts["shards"]


def test_other_captions_rewrite_the_shards_of_their_samples_under_the_same_names(tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path / "in", 60)
    make(tmp_path)
    before, row = shard_bytes(tmp_path), read_index(tmp_path / "shards", "heldout").to_pylist()[0]
    captions = pq.read_table(inputs["captions"] / "captions.parquet").to_pylist()
    for caption in captions:
        if caption["uid"] == row["uid"]:
            caption["text"] += ", and so on"
    pq.write_table(pa.Table.from_pylist(captions, pq.read_schema(inputs["captions"] / "captions.parquet")), inputs["captions"] / "captions.parquet")
    report, after = make(tmp_path), shard_bytes(tmp_path)
    assert [name for name in before if after[name] != before[name]] == [row["shard"]]
    changed = {found["samples"]: found["number"] for found in report.tables["since the last snapshot"]}
    assert (changed["other record"], changed["other picture"], changed["unchanged"]) == (1, 0, 59)


def test_another_picture_under_the_same_name_is_noticed(tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path / "in", 60)
    make(tmp_path)
    row = read_index(tmp_path / "shards", "train").to_pylist()[0]
    tar = next(path for path in inputs["images"].glob("*.tar") if any(name.startswith(row["uid"]) for name, _ in read_tar(path)))
    files = dict(read_tar(tar)) | {f"{row['uid']}.jpg": picture(99)}
    with TarWriter(tar) as writer:
        for name, data in files.items():
            writer.add(name, data)
    report = make(tmp_path)
    assert {found["samples"]: found["number"] for found in report.tables["since the last snapshot"]}["other picture"] == 1
    assert next(sample.jpeg for sample in read_samples(tmp_path / "shards") if sample.uid == row["uid"]) == picture(99)


def test_other_settings_or_grow_off_lay_everything_out_afresh(tmp_path: Path) -> None:
    write_inputs(tmp_path / "in", 60)
    make(tmp_path)
    write_inputs(tmp_path / "in", 90)
    afresh = make(tmp_path, grow=False)
    assert "shards_kept" not in afresh.counts
    write_inputs(tmp_path / "other" / "in", 90)
    assert afresh.data_version == make(tmp_path / "other").data_version, "as if nothing had been there"
    other = make(tmp_path, seed=1)
    assert "shards_kept" not in other.counts


def test_a_group_that_a_new_sample_renames_stays_on_its_side(tmp_path: Path) -> None:
    """The name of a group is its smallest uid: a newcomer with a smaller one must not move trained samples to the held-out side, nor the reverse."""
    inputs = write_inputs(tmp_path / "in", 60)
    make(tmp_path)
    before = {row["uid"]: row["split"] for row in read_index(tmp_path / "shards").to_pylist()}
    kept = pq.read_table(inputs["filtered"] / "kept.parquet").to_pylist()
    for row in kept:
        row["group"] = f"renamed-{row['group']}"
    pq.write_table(pa.Table.from_pylist(kept), inputs["filtered"] / "kept.parquet")
    report = make(tmp_path)
    assert {row["uid"]: row["split"] for row in read_index(tmp_path / "shards").to_pylist()} == before
    assert report.counts["shards_kept"] == report.counts["shards"], "the record keeps the name, too: no byte changes"


def test_a_held_out_group_that_is_tied_to_a_trained_one_is_trained_on_from_then_on(tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path / "in", 60)
    make(tmp_path)
    rows = read_index(tmp_path / "shards").to_pylist()
    held, trained = (next(row for row in rows if row["split"] == side) for side in ("heldout", "train"))
    kept = pq.read_table(inputs["filtered"] / "kept.parquet").to_pylist()
    for row in kept:
        row["group"] = "tied" if row["group"] in (held["group"], trained["group"]) else row["group"]
    pq.write_table(pa.Table.from_pylist(kept), inputs["filtered"] / "kept.parquet")
    report = make(tmp_path)
    after = {row["uid"]: row["split"] for row in read_index(tmp_path / "shards").to_pylist()}
    moved = {row["uid"] for row in rows if after[row["uid"]] != row["split"]}
    assert moved == {row["uid"] for row in rows if row["group"] == held["group"]}
    assert {after[uid] for uid in moved} == {"train"}
    assert {found["samples"]: found["number"] for found in report.tables["since the last snapshot"]}["moved"] == len(moved) == 3
    verify(tmp_path / "shards")


# ---------------------------------------------------------------- damage


@pytest.mark.fault("F8")
@FORMATS
def test_a_damaged_shard_is_named_by_verify_and_healed_by_the_next_run(tmp_path: Path, kind: str) -> None:
    write_inputs(tmp_path / "in", 60)
    first = make(tmp_path, format=kind)
    path = tmp_path / "shards" / f"train-00001.{kind}"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(BadManifest, match=f"train-00001.{kind} with md5"):
        verify(tmp_path / "shards")
    healed = make(tmp_path, format=kind)
    assert (healed.reused, healed.data_version) == (False, first.data_version)
    assert verify(tmp_path / "shards") == first.data_version


@pytest.mark.fault("F8")
@FORMATS
def test_a_reader_that_verifies_names_the_sample_whose_bytes_changed(tmp_path: Path, kind: str) -> None:
    write_inputs(tmp_path / "in", 60)
    make(tmp_path, format=kind)
    row = read_index(tmp_path / "shards", "train").to_pylist()[5]
    path = tmp_path / "shards" / row["shard"]
    data = bytearray(path.read_bytes())
    data[row["jpg_offset"] + 100] ^= 1
    path.write_bytes(data)
    ShardSamples(tmp_path / "shards").sample(5)
    checked = ShardSamples(tmp_path / "shards", verify=True)
    checked.sample(4)
    with pytest.raises(BadManifest, match=rf"Found sample {row['uid']} of .*{row['shard']} with the MD5"):
        checked.sample(5)


@pytest.mark.fault("F8")
@FORMATS
@pytest.mark.parametrize("how", ["cut", "empty", "gone", "zeros"])
def test_a_shard_that_cannot_be_read_is_refused_before_use(tmp_path: Path, kind: str, how: str) -> None:
    write_inputs(tmp_path / "in", 60)
    make(tmp_path, format=kind)
    path = tmp_path / "shards" / f"train-00000.{kind}"
    data = path.read_bytes()
    path.unlink()
    if how != "gone":
        path.write_bytes({"cut": data[: len(data) // 3], "empty": b"", "zeros": bytes(len(data))}[how])
    with pytest.raises(BadManifest, match="train-00000"):
        verify(tmp_path / "shards")
    if how != "zeros" or kind == "parquet":
        with pytest.raises((BadManifest, stages.MissingInput), match="train-00000"):
            list(read_samples(tmp_path / "shards"))


# ---------------------------------------------------------------- Parquet


def test_parquet_shards_hold_the_samples_of_tar_shards_at_the_places_the_index_says(tmp_path: Path) -> None:
    write_inputs(tmp_path / "in", 60)
    write_inputs(tmp_path / "tar" / "in", 60)
    make(tmp_path, format="parquet")
    make(tmp_path / "tar")
    one, two = list(read_samples(tmp_path / "shards")), list(read_samples(tmp_path / "tar" / "shards"))
    assert one == two
    for split in ("train", "heldout"):
        fast = ShardSamples(tmp_path / "shards", split)
        assert [fast.sample(row) for row in range(len(fast))] == [sample for sample in one if sample.uid in set(fast.uids)]


def test_parquet_shards_are_plain_tables_for_any_reader(tmp_path: Path) -> None:
    import duckdb

    write_inputs(tmp_path / "in", 60)
    make(tmp_path, format="parquet")
    [(count, size)] = duckdb.sql(f"SELECT count(*), sum(octet_length(jpg)) FROM read_parquet('{tmp_path}/shards/train-*.parquet')").fetchall()
    train = list(read_samples(tmp_path / "shards", "train"))
    assert (count, size) == (len(train), sum(len(sample.jpeg) for sample in train))
    meta = pq.ParquetFile(tmp_path / "shards" / "train-00000.parquet").metadata
    assert {meta.row_group(0).column(n).compression for n in range(3)} == {"UNCOMPRESSED"}


def test_large_parquet_shards_have_several_row_groups_and_still_right_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vlm_core.data.shards import files as shard_files

    monkeypatch.setattr(shard_files, "ROW_GROUP_BYTES", 40_000)
    random = np.random.default_rng(0)
    parts = [(f"{n:05d}", random.bytes(int(random.integers(1, 9_000))), json.dumps({"n": n}).encode()) for n in range(100)]
    parts[40:43] = [(f"{n:05d}", b"the same bytes", b"{}") for n in range(40, 43)]
    made = shard_files.write_shard(tmp_path / "x.parquet", parts)
    data = (tmp_path / "x.parquet").read_bytes()
    assert pq.ParquetFile(tmp_path / "x.parquet").num_row_groups > 5
    for (_, jpeg, text), place in zip(parts, made.places, strict=True):
        assert data[place.jpg_offset :][: place.jpg_size] == jpeg
        assert data[place.json_offset :][: place.json_size] == text
    assert list(shard_files.read_shard(tmp_path / "x.parquet")) == parts
    shutil.copy(tmp_path / "x.parquet", tmp_path / "y.parquet")
    assert shard_files.write_shard(tmp_path / "y.parquet", parts)[:3] == made[:3]
