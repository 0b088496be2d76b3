"""Copies: hashes that lie close, who survives, SemDeDup, groups."""

import numpy as np
import pdqhash
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vlm_core.data.filter import dedup
from vlm_core.data.filter import near_hashes, perceptual
from vlm_core.data.filter.config import Grouping
from vlm_core.data.filter.grouping import group_samples
from vlm_core.errors import SchemaMismatch


def flipped(code: np.ndarray, bits: list[int]) -> np.ndarray:
    out = code.copy()
    for bit in bits:
        out[bit // 16] ^= np.uint16(1 << bit % 16)
    return out


def planted(seed: int, n: int, parts: int, most: int) -> np.ndarray:
    """Random hashes, half of them a few flips away from another one."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 1 << 16, (n, parts)).astype(np.uint16)
    for row in range(n // 2, n):
        codes[row] = flipped(codes[rng.integers(0, row)], rng.choice(16 * parts, rng.integers(0, most + 1), replace=False).tolist())
    return codes


@given(st.integers(0, 2**32 - 1), st.integers(16, 500), st.integers(16, 500), st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_pdq_of_any_shape_of_picture_is_that_of_the_library(seed: int, height: int, width: int, grain: int) -> None:
    noise = np.random.default_rng(seed).integers(0, 256, (grain, grain, 3), dtype=np.uint8)
    rgb = np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))
    (bits, quality), (expected, expected_quality) = perceptual.pdq(rgb), pdqhash.compute(np.ascontiguousarray(rgb))
    assert np.array_equal(bits, expected)
    assert abs(quality - expected_quality) <= 1


@pytest.mark.parametrize(("parts", "radius"), [(16, 31), (16, 40), (16, 0), (4, 2), (4, 6), (4, 10)])
def test_multi_index_hashing_finds_exactly_what_comparing_all_with_all_finds(parts: int, radius: int) -> None:
    codes = planted(seed=radius, n=400, parts=parts, most=2 * radius + 3)
    first = near_hashes.twins(codes)
    expected = [
        (i, j)
        for i in range(400)
        for j in range(i + 1, 400)
        if first[i] == i and first[j] == j and bin(_as_int(codes[i]) ^ _as_int(codes[j])).count("1") <= radius
    ]
    assert [tuple(pair) for pair in near_hashes.near_pairs(codes, radius).tolist()] == expected
    assert len(expected) > 20 or radius == 0


@pytest.mark.parametrize(("parts", "radius"), [(16, 31), (16, 40), (4, 4)])
@pytest.mark.parametrize("rows", [50, 5_000, 10**6, 10**9])
def test_every_cut_of_a_hash_finds_every_pair_however_many_rows_it_is_made_for(monkeypatch: pytest.MonkeyPatch, parts: int, radius: int, rows: int) -> None:
    codes = planted(seed=rows % 97, n=300, parts=parts, most=radius + 5)
    cut = near_hashes.cuts_of(rows, 16 * parts, radius)
    assert sum(part.flips + 1 for part in cut) == radius + 1
    assert all(one.first + one.width <= two.first for one, two in zip(cut, cut[1:], strict=False))
    monkeypatch.setattr(near_hashes, "cuts_of", lambda *_: cut)
    monkeypatch.setattr(near_hashes, "BLOCK", 50)
    gaps = perceptual.distance(codes[:, None], codes[None, :])
    first = near_hashes.twins(codes)
    alone = (first == np.arange(300))[:, None] & (first == np.arange(300))[None, :]
    assert np.array_equal(near_hashes.near_pairs(codes, radius), np.argwhere(np.triu((gaps <= radius) & alone, 1)))
    near = gaps[:, :120] <= radius
    assert np.array_equal(near_hashes.NearTo(codes[:120], radius).first(codes), np.where(near.any(1), near.argmax(1), -1))


def test_no_rows_have_no_near_ones() -> None:
    nothing = np.zeros((0, 16), np.uint16)
    assert near_hashes.near_pairs(nothing, 31).shape == (0, 2)
    assert near_hashes.NearTo(nothing, 31).first(planted(0, 3, 16, 0)).tolist() == [-1, -1, -1]
    assert near_hashes.NearTo(planted(0, 3, 16, 0), 31).first(nothing).tolist() == []


def _as_int(code: np.ndarray) -> int:
    return int.from_bytes(code.astype(">u2").tobytes(), "big")


def test_equal_hashes_are_represented_by_the_first_and_do_not_make_a_clique() -> None:
    codes = np.repeat(planted(0, 2, 4, 0)[:1], 3000, axis=0)
    assert len(near_hashes.near_pairs(codes, 6)) == 0
    assert (near_hashes.twins(codes) == 0).all()


def test_hex_keeps_every_bit_and_a_cut_hash_is_refused() -> None:
    bits = np.random.default_rng(1).integers(0, 2, (5, 256))
    codes = perceptual.parse_hex([perceptual.to_hex(row) for row in bits], 256)
    assert perceptual.distance(codes[:1], codes).tolist() == [int((bits[0] != row).sum()) for row in bits]
    with pytest.raises(SchemaMismatch, match="'abcd' of 16 bits, expected 64"):
        perceptual.parse_hex(["abcd"], 64)


def always(_: int, others: list[int]) -> np.ndarray:
    return np.ones(len(others), bool)


def test_of_a_chain_the_far_end_stays() -> None:
    """a~b and b~c, but a is not near to c: b goes for a, c stays. Union-find would drop c for a picture that it is not like."""
    a = np.zeros((1, 4), np.uint16)
    b, c = flipped(a[0], [0, 1]), flipped(a[0], [0, 1, 2, 3])
    index = dedup.hash_index(np.stack([a[0], b, c]), 2, np.ones(3, bool))
    assert dedup.survivors(np.array([0, 1, 2]), [index], always).tolist() == [0, 0, 2]
    assert dedup.survivors(np.array([1, 2, 0]), [index], always).tolist() == [1, 1, 1]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_every_dropped_row_is_near_to_a_survivor_and_no_two_survivors_are_near(seed: int) -> None:
    codes, order = planted(seed, 120, 4, 9), np.random.default_rng(seed).permutation(120)
    survivor = dedup.survivors(order, [dedup.hash_index(codes, 4, np.ones(120, bool))], always)
    rank = np.argsort(order)
    stays = np.flatnonzero(survivor == np.arange(120))
    gaps = perceptual.distance(codes[:, None], codes[None, :])
    for row in np.flatnonzero(survivor != np.arange(120)):
        assert survivor[row] in stays
        assert gaps[row, survivor[row]] <= 4
        assert rank[survivor[row]] < rank[row]
    close = gaps[np.ix_(stays, stays)] <= 4
    assert close.sum() == len(stays)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_survivors_do_not_depend_on_the_order_of_the_rows(seed: int) -> None:
    rng = np.random.default_rng(seed)
    codes, shuffle = planted(seed, 80, 4, 8), rng.permutation(80)
    names = np.array([f"{rng.integers(1 << 62):032x}" for _ in range(80)])

    def names_kept(codes: np.ndarray, names: np.ndarray) -> dict[str, str]:
        survivor = dedup.survivors(dedup.preference((names,)), [dedup.hash_index(codes, 4, np.ones(80, bool))], always)
        return dict(zip(names.tolist(), names[survivor].tolist(), strict=True))

    assert names_kept(codes, names) == names_kept(codes[shuffle], names[shuffle])


def test_a_hash_that_says_nothing_matches_nothing() -> None:
    codes = np.zeros((3, 4), np.uint16)
    index = dedup.hash_index(codes, 2, np.array([True, False, True]))
    assert dedup.survivors(np.arange(3), [index], always).tolist() == [0, 1, 0]
    assert dedup.involved(index).tolist() == [True, False, True]
    nothing = dedup.hash_index(codes, 2, np.zeros(3, bool))
    assert dedup.survivors(np.arange(3), [nothing], always).tolist() == [0, 1, 2]


def test_a_second_look_that_disagrees_keeps_the_row() -> None:
    index = dedup.hash_index(np.zeros((3, 4), np.uint16), 2, np.ones(3, bool))
    colour = np.array([0, 1, 1])
    same_colour = lambda row, others: colour[others] == colour[row]  # noqa: E731
    assert dedup.survivors(np.arange(3), [index], same_colour).tolist() == [0, 1, 1]


def test_preference_is_rights_then_size_then_score_then_length_then_uid() -> None:
    known, area, score, length = (
        np.array([1, 0, 1, 1, 1, 1]),
        np.array([9, 99, 10, 9, 9, 9]),
        np.array([0.1, 0.9, 0.1, 0.2, 0.2, 0.2]),
        np.array([5, 5, 5, 5, 7, 7]),
    )
    uid = np.array(["a", "b", "c", "d", "f", "e"])
    assert uid[dedup.preference((known, area, score, length, uid))].tolist() == ["c", "e", "f", "d", "a", "b"]


def test_union_find_names_every_component_by_its_smallest_row() -> None:
    assert dedup.components(7, np.array([[5, 2], [2, 4], [0, 6]])).tolist() == [0, 1, 2, 3, 2, 2, 0]
    assert dedup.components(2, np.zeros((0, 2), np.int64)).tolist() == [0, 1]


def test_keys_connect_equal_values_and_an_empty_key_connects_nothing() -> None:
    assert dedup.key_edges(dedup.coded([["a", "", "b"], ["a", "", "a"]])).tolist() == [[0, 3], [0, 5]]


def test_semdedup_in_blocks_equals_the_definition() -> None:
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(60, 8))
    rows[30:] = rows[:30] + 0.2 * rng.normal(size=(30, 8))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    cluster, centroids = np.arange(60) % 3, rng.normal(size=(3, 8))
    rank, largest = dedup.semdedup(rows, centroids, cluster, "hard", block=7)
    for row in range(60):
        mates = [other for other in range(60) if cluster[other] == cluster[row]]
        far = {m: 1 - rows[m] @ centroids[cluster[row]] / np.linalg.norm(centroids[cluster[row]]) for m in mates}
        before = [m for m in mates if far[m] > far[row]]
        assert rank[row] == len(before)
        assert largest[row] == pytest.approx(max([0.0, *(float(rows[m] @ rows[row]) for m in before)]), abs=1e-6)


# ---- groups

BLANK = {"sha256": "", "phash": "", "pdq": "", "quality": 100, "credit": ""}


def groups(*rows: dict[str, object], config: Grouping | None = None) -> list[str]:
    full = [{**BLANK, **row} for row in rows]
    return group_samples(*([row[name] for row in full] for name in ("uid", "caption", "sha256", "phash", "pdq", "quality", "credit")), config)  # type: ignore[arg-type]


def test_equal_captions_bytes_looks_and_authors_share_a_group_named_by_its_smallest_uid() -> None:
    rows = [
        {"uid": "d", "caption": "A red Fish!", "sha256": "1"},
        {"uid": "c", "caption": "a  red fish", "pdq": "0" * 64},
        {"uid": "b", "caption": "boat", "pdq": "0" * 60 + "00ff", "credit": "Ann"},
        {"uid": "a", "caption": "house", "credit": "ann "},
        {"uid": "e", "caption": "tree", "sha256": "1"},
        {"uid": "f", "caption": "moon"},
    ]
    assert groups(*rows) == ["a", "a", "a", "a", "a", "f"]
    assert groups(*rows, config=Grouping(pdq_bits=7)) == ["c", "c", "a", "a", "c", "f"]
    assert groups(*rows, config=Grouping(pdq_bits=7, max_credit_share=0)) == ["c", "c", "b", "a", "c", "f"]


def test_a_credit_on_many_samples_is_a_collection_and_ties_nobody_together() -> None:
    rows = [{"uid": f"{i:02}", "caption": f"caption {i}", "credit": "Noto Emoji, Google" if i < 50 else f"author {i // 2}"} for i in range(60)]
    assert len(set(groups(*rows))) == 50 + 5


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_groups_do_not_depend_on_the_order_of_the_rows(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = [
        {"uid": f"{i:02}", "caption": f"word {rng.integers(40)}", "credit": f"author {rng.integers(40)}", "sha256": str(rng.integers(60))} for i in range(50)
    ]
    loose = Grouping(max_credit_share=1)
    straight = dict(zip([row["uid"] for row in rows], groups(*rows, config=loose), strict=True))
    mixed = [rows[i] for i in rng.permutation(50)]
    assert dict(zip([row["uid"] for row in mixed], groups(*mixed, config=loose), strict=True)) == straight
    assert all(group <= uid for uid, group in straight.items())
