"""Lists of pictures that must not be kept, as hashes from a controlled provider: MD5, SHA-256 and PDQ.

A list is a text file with one hash in hex a line (# begins a comment). Its contents stay in memory as bytes, are never logged, printed or repeated in an error;
an answer is the name of the list. Ask before anything is written to disk.

PDQ hashes match within 31 of 256 bits (methods/data.md 13, 15). Multi-index hashing: of 16 parts of 16 bits, a match within 31 bits has one with at most one
bit flipped, so 16 x 17 look-ups find every candidate, whatever the size of the list. Memory: 16 bytes an MD5, 32 a SHA-256, 96 a PDQ hash, and 4 MB of tables.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vlm_core.data.filter.perceptual import distance
from vlm_core.errors import BadManifest, ConfigError, MissingInput

HashKind = Literal["md5", "sha256", "pdq"]
SIZES: Mapping[str, int] = {"md5": 16, "sha256": 32, "pdq": 32}  # bytes
PDQ_BITS = 31
PARTS = 16

# M hashes of a list, P bytes of a hash


class HashLists:
    """Named lists. `blocked` answers with the name of the first list that holds a picture, or None."""

    def __init__(self, lists: Mapping[str, tuple[HashKind, Path]], pdq_bits: int = PDQ_BITS) -> None:
        """Args: lists: name -> (kind, file); pdq_bits: differing bits up to which PDQ hashes match. Raises MissingInput, BadManifest, ConfigError."""
        if not 0 <= pdq_bits <= PDQ_BITS:
            raise ConfigError(f"Found pdq_bits {pdq_bits}, expected 0 to {PDQ_BITS}, beyond which unrelated pictures match; lower it.")
        self._exact: dict[str, list[tuple[str, NDArray[Any]]]] = {"md5": [], "sha256": []}
        self._near: list[tuple[str, _Near]] = []
        self._bits = pdq_bits
        for name, (kind, path) in lists.items():
            codes = read_hashes(path, kind)
            if kind == "pdq":
                self._near.append((name, _index(codes)))
            else:
                self._exact[kind].append((name, np.sort(codes.view(f"S{SIZES[kind]}").ravel())))

    def __repr__(self) -> str:
        return f"HashLists({len(self._exact['md5'])} of MD5, {len(self._exact['sha256'])} of SHA-256, {len(self._near)} of PDQ)"

    def blocked(self, sha256: str, md5: str = "", pdq: str = "") -> str | None:
        """The list that holds one of these hashes (hex; an empty one is not looked up)."""
        for kind, text in (("md5", md5), ("sha256", sha256)):
            for name, codes in self._exact[kind] if text else ():
                wanted = np.frombuffer(bytes.fromhex(text), f"S{SIZES[kind]}")[0]
                place = int(np.searchsorted(codes, wanted))
                if place < len(codes) and codes[place] == wanted:
                    return name
        code = np.frombuffer(bytes.fromhex(pdq), np.uint8) if pdq else None
        return next((name for name, near in self._near if code is not None and _has(near, code, self._bits)), None)


def read_hashes(path: Path, kind: HashKind) -> NDArray[np.uint8]:
    """(M, P) bytes of a list. Raises MissingInput, and BadManifest with the number of a line that is no hash, never with its text."""
    if kind not in SIZES:
        raise ConfigError(f"Found the kind of hash {kind!r}, expected one of {', '.join(SIZES)}; correct it.")
    if not path.is_file():
        raise MissingInput(f"Found no file {path}, expected a list of {kind} hashes; give its path.")
    found = bytearray()
    with path.open(encoding="ascii", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            text = line.partition("#")[0].strip()
            if not text:
                continue
            try:
                code = bytes.fromhex(text)
            except ValueError:
                code = b""
            if len(code) != SIZES[kind]:
                raise BadManifest(f"Found line {number} of {path} to be no {kind} hash, expected {2 * SIZES[kind]} hex digits; correct the list.") from None
            found += code
    return np.frombuffer(bytes(found), np.uint8).reshape(-1, SIZES[kind])


class _Near(NamedTuple):
    """PDQ codes, and per part the rows in the order of that part's value, with where each value begins."""

    codes_MP: NDArray[np.uint8]
    rows_SM: NDArray[np.int32]
    starts_SV: NDArray[np.int32]


def _index(codes_MP: NDArray[np.uint8]) -> _Near:
    parts_MS = codes_MP.view(">u2").reshape(-1, PARTS)
    rows = np.stack([np.argsort(parts_MS[:, part], kind="stable") for part in range(PARTS)]).astype(np.int32)
    counts = np.stack([np.bincount(parts_MS[:, part], minlength=1 << 16) for part in range(PARTS)])
    starts = np.concatenate([np.zeros((PARTS, 1), np.int64), np.cumsum(counts, axis=1)], axis=1)
    return _Near(codes_MP, rows, starts.astype(np.int32))


_FLIPS = np.array([0, *(1 << bit for bit in range(16))], np.int64)


def _has(near: _Near, code_P: NDArray[np.uint8], bits: int) -> bool:
    values_S = code_P.view(">u2").astype(np.int64)
    for part, value in enumerate(values_S):
        wanted = value ^ _FLIPS
        spans = [near.rows_SM[part, near.starts_SV[part, v] : near.starts_SV[part, v + 1]] for v in wanted.tolist()]
        rows = np.concatenate(spans)
        if len(rows) and (distance(near.codes_MP[rows], code_P) <= bits).any():
            return True
    return False
