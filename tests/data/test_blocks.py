"""Tables in blocks: what is read back is what was written, wherever the blocks end."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_core.data import blocks
from vlm_core.data.blocks import Blocks, ByUid, Stored, pieces
from vlm_core.data.filter.decisions import Trail, Verdict, first_reason
from vlm_core.data.filter.pool import clean_all
from vlm_core.data.filter.text_rules import clean, plain_counts
from vlm_core.errors import SchemaMismatch

SCHEMA = pa.schema([("uid", pa.string()), ("n", pa.int64())])
ODD = st.text(st.sampled_from("ab &;amp\t\n\r\x0b\x0c\x1c\x1f\x85\xa0\u2003\u2028\u3000é\u0301한"), max_size=14)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("vlm_core.data.blocks", "vlm_core.data.filter.decisions"):
        monkeypatch.setattr(f"{module}.BLOCK", 7)


def table(rows: np.ndarray) -> pa.Table:
    return pa.table({"uid": [f"{row:04}" for row in rows], "n": rows}, schema=SCHEMA)


@pytest.mark.parametrize("on_disk", [False, True])
def test_any_rows_in_any_order_are_read_from_the_blocks_in_which_they_lie(tmp_path: Path, on_disk: bool) -> None:
    rng, at = np.random.default_rng(0), 0
    with Blocks(SCHEMA, tmp_path / "x.arrow" if on_disk else None) as store:
        while at < 100:
            size = int(rng.integers(0, 20))
            store.add(table(np.arange(at, min(at + size, 100))))
            at += size
    uid, n = Stored(store, "uid"), Stored(store, "n")
    rows = rng.permutation(100)[:60]
    assert n[rows].tolist() == rows.tolist()
    assert uid[rows].tolist() == [f"{row:04}" for row in rows]
    assert (n[41], uid[41], len(n), n[rows[:0]].tolist()) == (41, "0041", 100, [])
    assert n[np.arange(100) % 9 == 0].tolist() == list(range(0, 100, 9))
    assert np.sort(rows).tolist() == [int(row) for part in pieces(np.sort(rows)) for row in n.arrow(part).to_pylist()]
    assert all(len(set(part // blocks.BLOCK)) == 1 for part in pieces(np.sort(rows)))
    assert Stored(store, "uid", "n", derive=lambda a, b: [f"{x} {y}" for x, y in zip(a.to_pylist(), b.to_pylist(), strict=True)])[8] == "0008 8"


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_rows_are_matched_by_uid_in_whatever_order_the_files_have_them(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    rng, folder = np.random.default_rng(seed), tmp_path_factory.mktemp("uids")
    have = rng.permutation(60)[: rng.integers(1, 60)]
    have = np.sort(have) if seed % 2 else have
    for part, rows in enumerate(np.array_split(have, 3)):
        pq.write_table(table(rows), folder / f"{part}.parquet")
    source, found = ByUid(sorted(folder.glob("*.parquet")), ("uid", "n"), "things"), []
    for part in np.array_split(np.arange(60), 9):
        found += source.match(pa.array([f"{row:04}" for row in part])).select(["n", "row"]).to_pylist()
    assert [item["n"] for item in found] == [row if row in have else None for row in range(60)]
    assert all(item["row"] is None or have[item["row"]] == item["n"] for item in found)


def test_a_uid_that_comes_twice_is_refused_even_across_files(tmp_path: Path) -> None:
    for part, rows in enumerate(([1, 2, 3], [3, 4])):
        pq.write_table(table(np.array(rows)), tmp_path / f"{part}.parquet")
    with pytest.raises(SchemaMismatch, match="Found 1 uids twice"):
        ByUid(sorted(tmp_path.glob("*.parquet")), ("uid",), "things")


@pytest.mark.parametrize("scratch", [False, True])
def test_the_trail_is_the_same_whether_rules_saw_all_rows_or_block_after_block(tmp_path: Path, scratch: bool) -> None:
    uids = [f"{row:04}" for row in range(40)]

    def verdict(rows: np.ndarray, modulus: int) -> Verdict:
        return Verdict(first_reason(len(rows), ("email", rows % modulus == 0)), rows.astype(float), 0.5, [f"row {row}" for row in rows])

    whole, parts = Trail(uids), Trail(uids, tmp_path if scratch else None)
    for name, modulus in (("one", 5), ("two", 3), ("three", 7)):
        whole.add(name, verdict(whole.rows, modulus))
    with parts.segment():
        for rows in pieces(parts.rows):
            for name, modulus in (("one", 5), ("two", 3)):
                rows = parts.look(name, rows, verdict(rows, modulus))  # noqa: PLW2901
    parts.add("three", verdict(parts.rows, 7))
    assert parts.decisions().equals(whole.decisions())
    assert parts.counts() == whole.counts()
    assert parts.rows.tolist() == [row for row in range(40) if row % 5 and row % 3 and row % 7]
    decisions = whole.decisions().to_pylist()
    assert [row["uid"] for row in decisions] == sorted(row["uid"] for row in decisions)
    assert [row["seq"] for row in decisions] == sorted({row["seq"] for row in decisions})


@settings(max_examples=200, deadline=None)
@given(st.lists(ODD, max_size=6))
def test_vectorised_cleaning_and_counting_are_those_of_single_captions(texts: list[str]) -> None:
    column = pa.array(texts, pa.string())
    assert clean_all(column) == [clean(text) for text in texts]
    words, chars = plain_counts(column)
    assert words.tolist() == [len(text.split()) for text in texts]
    assert chars.tolist() == [len(text) for text in texts]
