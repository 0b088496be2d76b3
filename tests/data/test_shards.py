"""Tars that trust nothing, shards whose bytes can be named, a split that no group crosses."""

import hashlib
import io
import json
import subprocess
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.small_world import make_shards, picture, stage_for, write_inputs
from vlm_core import stage as stages
from vlm_core.data.config import Shard
from vlm_core.data.shards.shards import read_index, read_samples, shard, split_of
from vlm_core.data.shards.tar import TarWriter, members, read_tar
from vlm_core.data.shards.verify import verify
from vlm_core.errors import BadManifest, MissingInput, NothingLeft, SchemaMismatch

FILES = {"000000.jpg": b"x" * 700, "000000.json": b"{}", "é" * 60 + "/한국.txt": b"", "a" * 180 + ".txt": b"q"}


def write(path: Path, files: dict[str, bytes]) -> TarWriter:
    with TarWriter(path) as tar:
        for name, data in files.items():
            tar.add(name, data)
    return tar


def test_equal_members_give_equal_bytes_that_other_tools_read(tmp_path: Path) -> None:
    one, two = write(tmp_path / "1.tar", FILES), write(tmp_path / "2.tar", FILES)
    data = (tmp_path / "1.tar").read_bytes()
    assert data == (tmp_path / "2.tar").read_bytes()
    assert (one.md5, one.sha256, one.bytes) == (hashlib.md5(data).hexdigest(), hashlib.sha256(data).hexdigest(), len(data)) == (two.md5, two.sha256, two.bytes)
    assert dict(read_tar(tmp_path / "1.tar")) == FILES
    with tarfile.open(tmp_path / "1.tar") as tar:
        assert {m.name: tar.extractfile(m).read() for m in tar} == FILES  # type: ignore[union-attr]
        assert {(m.mtime, m.uid, m.gid, m.uname, m.mode, m.type) for m in tar} == {(0, 0, 0, "", 0o644, tarfile.REGTYPE)}
    listed = subprocess.run(
        ["tar", "tf", tmp_path / "1.tar", "--quoting-style=literal"],
        capture_output=True,
        text=True,
        check=True,
        env={"LC_ALL": "C.UTF-8", "PATH": "/usr/bin:/bin"},
    )
    assert listed.stdout.split() == list(FILES)


def test_members_say_where_their_bytes_lie(tmp_path: Path) -> None:
    write(tmp_path / "x.tar", FILES)
    data = (tmp_path / "x.tar").read_bytes()
    assert {m.name: data[m.offset : m.offset + m.size] for m in members(tmp_path / "x.tar")} == FILES


@pytest.mark.fault("F8")
@pytest.mark.parametrize("cut", [0, 100, 512, 600, 1024, 1536, 2048, 2560, 3584])
def test_a_tar_cut_off_anywhere_is_refused_and_not_read_as_a_shorter_one(tmp_path: Path, cut: int) -> None:
    write(tmp_path / "x.tar", {"a.jpg": b"x" * 700, "a.json": b"{}"})  # members end at 512+1024+512+512 = 2560
    path = tmp_path / "cut.tar"
    path.write_bytes((tmp_path / "x.tar").read_bytes()[:cut])
    if cut >= 3584:
        assert len(list(read_tar(path))) == 2
    else:
        with pytest.raises(BadManifest, match=r"cut\.tar.*expected"):
            list(read_tar(path))


@pytest.mark.fault("F8")
def test_a_damaged_header_is_refused_where_tarfile_would_stop_in_silence(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    write(path, {f"{n}.json": b"{}" for n in range(3)})
    data = bytearray(path.read_bytes())
    data[1024 + 3] ^= 255
    path.write_bytes(data)
    with tarfile.open(path) as tar:
        assert len(tar.getmembers()) == 1, "the trap"
    with pytest.raises(BadManifest, match="damaged or cut off at byte 1024"):
        list(read_tar(path))


def hostile(kind: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(
        {
            "absolute": "/etc/passwd",
            "parent": "a/../../b",
            "empty part": "a//b",
            "backslash": "..\\b",
            "drive": "c:b",
            "control": "a\nb",
            "long": "n" * 256,
        }.get(kind, "name")
    )
    info.type = {
        "symlink": tarfile.SYMTYPE,
        "hard link": tarfile.LNKTYPE,
        "device": tarfile.CHRTYPE,
        "fifo": tarfile.FIFOTYPE,
        "folder": tarfile.DIRTYPE,
        "sparse": tarfile.GNUTYPE_SPARSE,
    }.get(kind, tarfile.REGTYPE)
    info.linkname = "/etc/passwd" if "link" in kind else ""
    return info


@pytest.mark.abuse("A4")
@pytest.mark.parametrize(
    "kind",
    [
        "absolute",
        "parent",
        "empty part",
        "backslash",
        "drive",
        "control",
        "long",
        "symlink",
        "hard link",
        "device",
        "fifo",
        "folder",
        "sparse",
        "twice",
        "huge",
    ],
)
def test_a_hostile_tar_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "bad.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        tar.addfile(tarfile.TarInfo("good"))
        tar.addfile(hostile(kind))
        if kind == "twice":
            tar.addfile(tarfile.TarInfo("good"))
    if kind == "huge":
        info = tarfile.TarInfo("huge")
        info.size = 2**40
        path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(BadManifest, match=r"bad\.tar.*expected.*refuse this tar|bad\.tar.*cannot be read"):
        list(members(path))


@pytest.mark.abuse("A4")
def test_two_names_that_a_file_system_may_take_for_one_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("caf\u00e9.jpg", "cafe\u0301.jpg"):
            tar.addfile(tarfile.TarInfo(name))
    with pytest.raises(BadManifest, match="twice.*refuse this tar"):
        list(members(path))


def test_the_writer_refuses_what_the_reader_would_refuse(tmp_path: Path) -> None:
    for name in ("../x", "/x", "a//b", "n" * 256, ""):
        with pytest.raises(BadManifest, match="refuse"), TarWriter(tmp_path / "x.tar") as tar:
            tar.add(name, b"")
    with TarWriter(tmp_path / "x.tar") as tar:
        tar.add("a", b"")
        with pytest.raises(BadManifest, match="twice"):
            tar.add("a", b"")


# ---------------------------------------------------------------- the verb


def test_the_bytes_do_not_depend_on_row_order_input_tars_or_place(tmp_path: Path) -> None:
    out, _ = make_shards(tmp_path / "one")
    inputs = write_inputs(tmp_path / "two" / "deeper")
    for path in [*inputs["pairs"].glob("*"), *inputs["filtered"].glob("*"), *inputs["captions"].glob("*"), inputs["images"] / "status.parquet"]:
        table = pq.read_table(path)
        pq.write_table(table.take(list(range(len(table)))[::-1]), path)
    pictures = dict(part for tar in sorted(inputs["images"].glob("*.tar")) for part in read_tar(tar))
    for tar in inputs["images"].glob("*.tar"):
        tar.unlink()
    write(inputs["images"] / "all.tar", pictures)
    stage = stage_for(tmp_path / "two", inputs)
    shard(Shard(held_out=0.3, samples_per_shard=12), stage)
    assert stages.data_version(stage.out) == stages.data_version(out)


def test_the_manifest_names_every_tar_by_hashes_that_hashlib_confirms(tmp_path: Path) -> None:
    out, report = make_shards(tmp_path)
    manifest = json.loads((out / "manifest.json").read_text())
    assert [entry["samples"] for entry in manifest["shards"]] == [12, 12, 12, 3, 12, 9]
    for entry in manifest["shards"]:
        data = (out / entry["name"]).read_bytes()
        assert (entry["bytes"], entry["md5"], entry["sha256"]) == (len(data), hashlib.md5(data).hexdigest(), hashlib.sha256(data).hexdigest())
    assert manifest["totals"] == {"train": 39, "heldout": 21}
    assert report.counts == {"in": 60, "train": 39, "heldout": 21, "shards": 6, "captions.alt": 60, "captions.rewritten": 60}
    assert report.catalog["snapshots"]["snapshot_md5"].to_pylist() == [stages.data_version(out)]
    assert (tmp_path / "pictures" / report.pictures["training samples"]).is_file()


def test_every_kept_sample_is_in_exactly_one_split_with_its_own_picture(tmp_path: Path) -> None:
    out, _ = make_shards(tmp_path)
    kept = pq.read_table(tmp_path / "inputs" / "filtered" / "kept.parquet").to_pylist()
    stored = {sample.uid: sample for sample in read_samples(out)}
    assert sorted(stored) == sorted(row["uid"] for row in kept)
    for row in kept:
        sample = stored[row["uid"]]
        assert sample.jpeg == picture(int(sample.record["sha256"], 16))
        assert (sample.record["caption"], sample.record["lang"], sample.record["group"]) == (row["caption"], row["lang"], row["group"])
    record = next(sample.record for sample in stored.values() if sample.record["lang"] == "ko")
    assert sorted(record) == sorted(
        ["uid", "url", "page_url", "caption", "captions", "lang", "sha256", "width", "height", "source", "licence", "credit", "group", "blurred"]
    )
    assert [(c["text"], c["origin"], c["generator"]) for c in record["captions"]] == [
        (record["caption"], "alt", ""),
        (record["caption"] + ", said again", "rewritten", "smollm2"),
    ]


def test_the_index_gives_random_access_to_the_same_bytes(tmp_path: Path) -> None:
    out, _ = make_shards(tmp_path)
    in_order = list(read_samples(out))
    for row, sample in zip(read_index(out).to_pylist(), in_order, strict=True):
        data = (out / row["shard"]).read_bytes()
        assert row["uid"] == sample.uid
        assert data[row["jpg_offset"] :][: row["jpg_size"]] == sample.jpeg
        assert json.loads(data[row["json_offset"] :][: row["json_size"]]) == sample.record
    assert [s.uid for s in read_samples(out, "heldout")] == read_index(out, "heldout")["uid"].to_pylist()


def test_stock_webdataset_reads_the_shards(tmp_path: Path) -> None:
    import webdataset

    out, _ = make_shards(tmp_path)
    paths = [str(path) for path in sorted(out.glob("train-*.tar"))]
    read = [(json.loads(sample["json"])["uid"], sample["jpg"]) for sample in webdataset.WebDataset(paths, shardshuffle=False)]
    assert read == [(sample.uid, sample.jpeg) for sample in read_samples(out, "train")]


def test_groups_never_cross_the_split_and_new_data_moves_nobody(tmp_path: Path) -> None:
    small, large = make_shards(tmp_path / "small", n=60)[0], make_shards(tmp_path / "large", n=120)[0]
    rows = read_index(large).to_pylist()
    groups = {split: {row["group"] for row in rows if row["split"] == split} for split in ("train", "heldout")}
    assert not groups["train"] & groups["heldout"]
    split_of_uid = {row["uid"]: row["split"] for row in rows}
    before = {row["uid"]: row["split"] for row in read_index(small).to_pylist()}
    assert before == {uid: split_of_uid[uid] for uid in before}


def test_the_share_held_out_is_the_one_asked_for_and_the_seed_chooses_which() -> None:
    def chosen(seed: int, share: float) -> set[str]:
        return {f"g{n}" for n in range(10_000) if split_of(f"g{n}", Shard(seed=seed, held_out=share)) == "heldout"}

    assert abs(len(chosen(0, 0.15)) - 1500) < 4 * (10_000 * 0.15 * 0.85) ** 0.5
    assert chosen(0, 0.05) < chosen(0, 0.15), "a larger share keeps what was held out before"
    both = len(chosen(0, 0.15) & chosen(1, 0.15))
    assert abs(both - 225) < 4 * 15


def test_the_order_mixes_the_whole_set(tmp_path: Path) -> None:
    out, _ = make_shards(tmp_path, n=300)
    uids = read_index(out, "train")["uid"].to_pylist()
    assert uids == sorted(uids, key=lambda uid: hashlib.sha256(f"0/{uid}".encode()).hexdigest())
    assert uids != sorted(uids)


def test_a_shard_is_closed_at_its_size_too(tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path / "in", n=30)
    big = b"\xff\xd8" + bytes(600_000)
    for tar in sorted(inputs["images"].glob("*.tar")):
        write(tar, {name: data if name.endswith("json") else picture(1) + big for name, data in read_tar(tar)})
    stage = stage_for(tmp_path, inputs)
    shard(Shard(held_out=0.3, shard_mb=1), stage)
    assert {entry["samples"] for entry in json.loads((stage.out / "manifest.json").read_text())["shards"]} == {1}
    assert max(path.stat().st_size for path in stage.out.glob("*.tar")) < 1_000_000


# ---------------------------------------------------------------- trust, but verify


def test_verify_gives_the_data_version_of_good_shards(tmp_path: Path) -> None:
    out, _ = make_shards(tmp_path)
    assert verify(out) == stages.data_version(out)


def flip(out: Path) -> None:
    path = out / "train-00001.tar"
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)


def leak(out: Path) -> None:
    """A held-out sample whose group is one of the training split, with a manifest that agrees."""
    table = read_index(out)
    groups = table["group"].to_pylist()
    groups[-1] = groups[0]
    pq.write_table(table.set_column(table.column_names.index("group"), "group", pa.array(groups)), out / "index.parquet")
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["index"]["md5"] = stages.file_md5(out / "index.parquet")
    stages.write_json(out / "manifest.json", manifest)


def forge(out: Path) -> None:
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["shards"][0]["sha256"] = "0" * 64
    stages.write_json(out / "manifest.json", manifest)


@pytest.mark.fault("F8")
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (flip, "train-00001.tar with md5 .* expected"),
        (lambda out: (out / "heldout-00000.tar").unlink(), "heldout-00000.tar with md5 no file"),
        (lambda out: (out / "note.txt").write_text("x"), "Found 'note.txt'"),
        (lambda out: (out / "manifest.json").write_text("{"), "manifest that cannot be read"),
        (leak, "Found the group '.*' in both splits"),
        (forge, "another SHA-256"),
    ],
)
def test_verify_finds_damage(tmp_path: Path, damage, said: str) -> None:  # type: ignore[no-untyped-def]
    out, _ = make_shards(tmp_path)
    damage(out)
    with pytest.raises(BadManifest, match=said):
        verify(out)


# ---------------------------------------------------------------- bad input


def shard_with(root: Path, inputs: dict[str, Path], config: Shard | None = None) -> None:
    shard(config or Shard(held_out=0.3), stage_for(root, inputs))


def test_bad_input_is_named_in_one_sentence(tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path / "in")
    kept = pq.read_table(inputs["filtered"] / "kept.parquet")

    def put(table: pa.Table) -> None:
        pq.write_table(table, inputs["filtered"] / "kept.parquet")

    put(kept.slice(0, 0))
    with pytest.raises(NothingLeft, match="Found no kept sample in .*filtered.*loosen the filter"):
        shard_with(tmp_path, inputs)
    put(kept.drop(["group"]))
    with pytest.raises(SchemaMismatch, match="Found no column 'group' in .*kept.parquet .it has uid, caption, lang, clip_score."):
        shard_with(tmp_path, inputs)
    put(pa.concat_tables([kept, kept.slice(0, 1)]))
    with pytest.raises(BadManifest, match="Found 61 rows for 60 samples"):
        shard_with(tmp_path, inputs)
    put(kept.set_column(4, "group", pa.array(["one"] * 60)))
    with pytest.raises(NothingLeft, match=r"Found no sample for the (train|heldout) split \(60 samples in 1 groups, held_out 0.3\)"):
        shard_with(tmp_path, inputs)
    (inputs["filtered"] / "kept.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(BadManifest, match="kept.parquet.*expected Parquet"):
        shard_with(tmp_path, inputs)
    put(kept)
    (inputs["captions"] / "captions.parquet").unlink()
    with pytest.raises(MissingInput, match="Found no file .*captions.parquet"):
        shard_with(tmp_path, inputs)


def test_a_kept_sample_without_picture_is_refused(tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path / "in")
    (inputs["images"] / "00001.tar").unlink()
    with pytest.raises(BadManifest, match="Found no picture of 30 kept samples"):
        shard_with(tmp_path, inputs)


def test_a_picture_is_stored_as_it_came(tmp_path: Path) -> None:
    from PIL import Image

    out, _ = make_shards(tmp_path)
    for sample in read_samples(out, "heldout"):
        assert Image.open(io.BytesIO(sample.jpeg)).size == (sample.record["width"], sample.record["height"])
