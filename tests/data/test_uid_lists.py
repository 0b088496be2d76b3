"""Lists of uids as a rule: every form says the same, and a wrong one is one sentence."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.filter_world import World
from vlm_core.data.filter import filters
from vlm_core.data.filter.config import Filter, UidList
from vlm_core.data.filter.pool import load_pool
from vlm_core.data.filter.uid_lists import _holds, halves, read_uids
from vlm_core.data.lineage.exports import pack_uids
from vlm_core.errors import BadManifest, ConfigError, MissingInput


def written(uids: list[str], folder: Path) -> list[Path]:
    """One list in each of its forms, none of them sorted."""
    files = [folder / f"uids.{name}" for name in ("npy", "pairs.npy", "parquet", "txt")]
    pairs = pack_uids(uids)[::-1]
    np.save(files[0], pairs)
    np.save(files[1], np.stack([pairs["f0"], pairs["f1"]], 1))
    pq.write_table(pa.table({"uid": uids}), files[2])
    files[3].write_text("\n".join([uids[0].upper(), *uids[1:], ""]))
    return files


def test_every_form_of_a_list_keeps_or_drops_the_same_samples(tmp_path: Path) -> None:
    world = World()
    uids = [world.add(f"caption {number}", number) for number in range(8)]
    inputs = world.write(tmp_path / "pool")
    for file in written(uids[2:5], tmp_path):
        for name, stays, reason in (("keep", {*uids[2:5]}, "not_listed"), ("drop", {*uids[:2], *uids[5:]}, "listed")):
            pool = load_pool(*inputs.values())
            trail = filters.judge(Filter(uid_list=UidList.read({name: str(file)})), pool)
            assert {*pool.uid[trail.rows].tolist()} == stays, (file.name, name)
            assert trail.counts()[f"dropped.{reason}"] == 8 - len(stays)


def test_a_sample_on_both_lists_goes(tmp_path: Path) -> None:
    world = World()
    uids = [world.add(f"caption {number}", number) for number in range(4)]
    keep, drop = (tmp_path / name for name in ("keep.txt", "drop.txt"))
    keep.write_text("\n".join(uids[:3]))
    drop.write_text(uids[0])
    pool = load_pool(*world.write(tmp_path / "pool").values())
    trail = filters.judge(Filter(uid_list=UidList(keep=str(keep), drop=str(drop))), pool)
    assert trail.counts() | {"in": 4} == trail.counts()
    assert (trail.counts()["dropped.listed"], trail.counts()["dropped.not_listed"]) == (1, 1)


def test_uids_that_share_a_half_are_told_apart() -> None:
    known = np.sort(halves(["a" * 16 + tail * 16 for tail in "159"] + ["b" * 32]), order=["f0", "f1"])
    asked = halves(["a" * 16 + "5" * 16, "a" * 16 + "6" * 16, "b" * 16 + "5" * 16, "b" * 32, "c" * 32])
    assert _holds(known, asked).tolist() == [True, False, False, True, False]
    assert _holds(known[:0], asked).tolist() == [False] * 5


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"not a uid\n", "'not a uid' is not 32 hex digits"),
        ("a.npy", b"PK no array", "which is no list of uids"),
        ("a.parquet", b"PAR1", "which is no list of uids"),
    ],
)
def test_a_file_that_is_no_list_is_refused(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadManifest, match=said):
        read_uids(tmp_path / name)
    np.save(tmp_path / "b.npy", np.zeros(3))
    with pytest.raises(BadManifest, match="it holds float64 of shape"):
        read_uids(tmp_path / "b.npy")
    with pytest.raises(MissingInput, match="expected a list of uids"):
        read_uids(tmp_path / "nowhere.npy")
    with pytest.raises(ConfigError, match="Found uid_list without a file"):
        Filter.read({"uid_list": {}})
