"""Lists of hashes of pictures that must not be kept: what they block, what they cost, and that they tell nothing."""

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_core.data.fetch.hash_lists import HashLists, read_hashes
from vlm_core.errors import BadManifest, ConfigError, MissingInput


def codes(n: int, size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, size), np.uint8)


def written(path: Path, rows: np.ndarray) -> Path:
    path.write_text("# from the provider\n\n" + "\n".join(row.tobytes().hex() for row in rows) + "\n")
    return path


def test_exact_hashes_are_blocked_by_the_name_of_their_list(tmp_path: Path) -> None:
    sha, md5 = codes(200, 32), codes(200, 16, 1)
    sha[7, -3:] = 0  # trailing zeros must count
    lists = HashLists({"partner": ("sha256", written(tmp_path / "sha", sha)), "legacy": ("md5", written(tmp_path / "md5", md5))})
    for row in (0, 7, 199):
        assert lists.blocked(sha[row].tobytes().hex()) == "partner"
        assert lists.blocked(sha[row].tobytes().hex().upper()) == "partner"
        assert lists.blocked("", md5=md5[row].tobytes().hex()) == "legacy"
    other = sha[7].copy()
    other[-1] = 1
    assert lists.blocked(other.tobytes().hex()) is None
    assert lists.blocked("ff" * 32, md5="ff" * 16, pdq=sha[0].tobytes().hex()) is None
    assert lists.blocked("") is None


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 299), st.sets(st.integers(0, 255), max_size=40))
def test_pdq_hashes_match_up_to_the_radius_and_no_further(tmp_path_factory: pytest.TempPathFactory, row: int, flipped: set[int]) -> None:
    rows = codes(300, 32, 2)
    path = tmp_path_factory.getbasetemp() / "pdq.txt"
    lists = HashLists({"known": ("pdq", path if path.exists() else written(path, rows))})
    bits = np.unpackbits(rows[row])
    bits[list(flipped)] ^= 1
    asked = np.packbits(bits)
    nearest = np.unpackbits(rows ^ asked, axis=1).sum(1).min()  # brute force
    assert lists.blocked("", pdq=asked.tobytes().hex()) == ("known" if nearest <= 31 else None)


def test_flips_spread_over_all_parts_are_found_at_exactly_31_bits(tmp_path: Path) -> None:
    """The worst case of multi-index hashing: two flips in fifteen parts, one in the last."""
    rows = codes(50, 32, 3)
    lists = HashLists({"known": ("pdq", written(tmp_path / "pdq", rows))})
    bits = np.unpackbits(rows[13])
    flips = [16 * part + bit for part in range(16) for bit in ((3, 11) if part < 15 else (5,))]
    bits[flips] ^= 1
    assert lists.blocked("", pdq=np.packbits(bits).tobytes().hex()) == "known"
    bits[16 * 15 + 6] ^= 1
    assert lists.blocked("", pdq=np.packbits(bits).tobytes().hex()) is None


def test_a_list_tells_its_size_and_kind_and_nothing_else(tmp_path: Path) -> None:
    rows = codes(20, 32)
    lists = HashLists({"a": ("sha256", written(tmp_path / "a", rows))})
    assert repr(lists) == "HashLists(0 of MD5, 1 of SHA-256, 0 of PDQ)"
    (tmp_path / "bad").write_text(f"{rows[0].tobytes().hex()}\n{rows[1].tobytes().hex()[:-2]}\n")
    with pytest.raises(BadManifest, match="Found line 2 of .* to be no sha256 hash, expected 64 hex digits") as refused:
        read_hashes(tmp_path / "bad", "sha256")
    assert rows[1].tobytes().hex()[:8] not in str(refused.value)
    with pytest.raises(MissingInput, match="expected a list of md5 hashes"):
        HashLists({"b": ("md5", tmp_path / "none")})
    with pytest.raises(ConfigError, match="Found pdq_bits 40"):
        HashLists({}, pdq_bits=40)
    with pytest.raises(ConfigError, match="Found the kind of hash 'sha1'"):
        read_hashes(tmp_path / "a", "sha1")


def test_a_long_list_takes_its_bytes_and_little_more(tmp_path: Path) -> None:
    """20,000 SHA-256: 640 kB; as Python texts they would take 2.3 MB."""
    lists = HashLists({"a": ("sha256", written(tmp_path / "a", codes(20_000, 32)))})
    held = sum(column.nbytes for _, column in lists._exact["sha256"])
    assert held == 640_000
    assert sys.getsizeof("f" * 64) * 20_000 > 3 * held
