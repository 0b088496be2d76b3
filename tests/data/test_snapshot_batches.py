"""A snapshot that is the union of batches: it grows batch by batch, holds each sample once, and no batch trains on what another holds out."""

import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.small_world import write_inputs
from tests.data.test_growth import shard_bytes
from vlm_core.data.config import Shard
from vlm_core.data.shards.shards import read_index, read_manifest, read_samples
from vlm_core.data.shards.verify import verify
from vlm_core.errors import ConfigError, MissingInput
from vlm_core.run import run
from vlm_core.stage import Report

CONFIG = Shard(held_out=0.3, samples_per_shard=12)
FIRST, BOTH = 60, 90  # samples of the first batch, of both


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLM_HOME", str(tmp_path / "home"))


def change(path: Path, edit) -> None:
    """Write a table again without the rows for which `edit` gives None."""
    table = pq.read_table(path)
    rows = [row for row in map(edit, table.to_pylist()) if row is not None]
    pq.write_table(pa.Table.from_pylist(rows, table.schema), path)


def write_batches(root: Path) -> dict[str, dict[str, Path]]:
    """b1 with the first 60 samples of the small world, b2 with 30 more; groups of three, each named by its smallest uid as the filter names them; all look different."""
    batches = {name: write_inputs(root / name, number) for name, number in (("b1", FIRST), ("b2", BOTH))}
    first = {row["uid"] for row in pq.read_table(batches["b1"]["filtered"] / "kept.parquet").to_pylist()}
    change(batches["b2"]["filtered"] / "kept.parquet", lambda row: row if row["uid"] not in first else None)
    for inputs in batches.values():
        rows = pq.read_table(inputs["filtered"] / "kept.parquet").to_pylist()
        smallest = {group: min(row["uid"] for row in rows if row["group"] == group) for group in {row["group"] for row in rows}}
        change(inputs["filtered"] / "kept.parquet", lambda row, smallest=smallest: row | {"group": smallest[row["group"]]})
        change(inputs["images"] / "status.parquet", lambda row: row | {"pdq": f"{random.Random(row['uid']).getrandbits(256):064x}", "pdq_quality": 100})
        change(inputs["pairs"] / "pairs.parquet", lambda row: row | {"credit": ""})
    return batches


def shard(batches: dict[str, dict[str, Path]], out: Path, **names: str) -> Report:
    """Shard the named batches: new name -> batch."""
    return run("shard", CONFIG, {f"{kind}.{name}": path for name, batch in names.items() for kind, path in batches[batch].items()}, out)


def uids_of(batch: dict[str, Path]) -> set[str]:
    return set(pq.read_table(batch["filtered"] / "kept.parquet")["uid"].to_pylist())


def test_a_second_batch_adds_shards_and_leaves_those_of_the_first_byte_for_byte(tmp_path: Path) -> None:
    batches = write_batches(tmp_path)
    first, before = shard(batches, tmp_path / "shards", b1="b1"), shard_bytes(tmp_path)
    second, after = shard(batches, tmp_path / "shards", b1="b1", b2="b2"), shard_bytes(tmp_path)
    assert {name: after[name] for name in before} == before
    assert len(after) > len(before) == second.counts["shards_kept"]
    assert (first.counts["in"], second.counts["in"], second.counts["batches"], second.counts["groups_tied"]) == (60, 90, 2, 0)
    assert read_manifest(tmp_path / "shards")["parent"] == first.data_version
    assert verify(tmp_path / "shards") == second.data_version
    samples = {sample.uid: sample for sample in read_samples(tmp_path / "shards")}
    assert samples.keys() == uids_of(batches["b1"]) | uids_of(batches["b2"])
    plain = run("shard", CONFIG, write_inputs(tmp_path / "plain", BOTH), tmp_path / "at_once")
    at_once = {sample.uid: sample.jpeg for sample in read_samples(tmp_path / "at_once")}
    assert plain.counts["in"] == 90
    assert {uid: sample.jpeg for uid, sample in samples.items()} == at_once  # each from the tars of its own batch


def test_batches_in_any_order_at_once_give_the_same_snapshot(tmp_path: Path) -> None:
    batches = write_batches(tmp_path)
    one = shard(batches, tmp_path / "one", a="b1", b="b2")
    other = shard(batches, tmp_path / "other", a="b2", b="b1")
    assert one.data_version == other.data_version


def test_a_sample_of_two_batches_is_there_once_as_the_first_batch_has_it(tmp_path: Path) -> None:
    batches = write_batches(tmp_path)
    twice = sorted(uids_of(batches["b1"]))[:5]
    kept = pq.read_table(batches["b2"]["filtered"] / "kept.parquet")
    again = [row | {"caption": "said otherwise"} for row in pq.read_table(batches["b1"]["filtered"] / "kept.parquet").to_pylist() if row["uid"] in twice]
    pq.write_table(pa.concat_tables([kept, pa.Table.from_pylist(again, kept.schema)]), batches["b2"]["filtered"] / "kept.parquet")
    shard(batches, tmp_path / "shards", b1="b1")
    before = shard_bytes(tmp_path)
    report, after = shard(batches, tmp_path / "shards", b1="b1", b2="b2"), shard_bytes(tmp_path)
    assert (report.counts["in"], report.counts["in_several_batches"]) == (90, 5)
    assert {name: after[name] for name in before} == before


def test_what_looks_like_a_held_out_picture_of_an_earlier_batch_is_held_out_too(tmp_path: Path) -> None:
    batches = write_batches(tmp_path)
    shard(batches, tmp_path / "shards", b1="b1")
    before = shard_bytes(tmp_path)
    split = {row["uid"]: row["split"] for row in read_index(tmp_path / "shards").to_pylist()}
    held, trained = (sorted(uid for uid in split if split[uid] == side) for side in ("heldout", "train"))
    new = sorted(uids_of(batches["b2"]))
    pdq = {row["uid"]: row["pdq"] for row in pq.read_table(batches["b1"]["images"] / "status.parquet").to_pylist()}
    # every new sample is 12 bits off a held-out picture, but for three that are off a trained one
    twin = {uid: (trained if place < 3 else held)[place % len(held)] for place, uid in enumerate(new)}
    off = (1 << 12) - 1
    change(
        batches["b2"]["images"] / "status.parquet",
        lambda row: row | {"pdq": f"{int(pdq[twin[row['uid']]], 16) ^ off:064x}"} if row["uid"] in twin else row,
    )
    change(batches["b2"]["filtered"] / "kept.parquet", lambda row: row | {"group": row["uid"]})  # the filter saw nothing alike inside the batch
    report = shard(batches, tmp_path / "shards", b1="b1", b2="b2")
    after = {row["uid"]: row for row in read_index(tmp_path / "shards").to_pylist()}
    assert report.counts["groups_tied"] == 30
    for uid in new:
        assert after[uid]["split"] == split[twin[uid]], uid
        assert after[uid]["group"] == after[twin[uid]]["group"]
    assert {name: data for name, data in shard_bytes(tmp_path).items() if name in before} == before
    untied = run(
        "shard", CONFIG.but("group.pdq_bits=8"), {f"{kind}.{name}": path for name in batches for kind, path in batches[name].items()}, tmp_path / "untied"
    )
    assert untied.counts["groups_tied"] == 30 - len(set(twin.values()))  # new ones with one twin are alike among themselves


def test_a_batch_that_is_not_whole_and_a_family_that_is_not_known_are_refused(tmp_path: Path) -> None:
    batches = write_batches(tmp_path)
    given = {f"{kind}.{name}": path for name in batches for kind, path in batches[name].items()}
    missing = r"Found no input 'images.b1' beside pairs.b1, filtered.b1, captions.b1, expected all four of a batch; add --in images.b1=PATH"
    with pytest.raises(MissingInput, match=missing):
        run("shard", CONFIG, {name: path for name, path in given.items() if name != "images.b1"}, tmp_path / "out")
    with pytest.raises(MissingInput, match=r"Found nothing at .*nowhere, expected the input 'images.b1'"):
        run("shard", CONFIG, {**given, "images.b1": tmp_path / "nowhere"}, tmp_path / "out")
    with pytest.raises(ConfigError, match=r"Found the input 'pictures.b1' for 'vlm shard', expected a known one"):
        run("shard", CONFIG, {**given, "pictures.b1": tmp_path}, tmp_path / "out")
