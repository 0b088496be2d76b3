"""What a picture says about itself: the training and data mining assertion of its content credentials.

Read from the JUMBF boxes of JPEG (APP11), PNG (caBX) and WebP (C2PA). The manifest's signature is not checked: an opt-out is believed as it stands.
Source: C2PA 1.4 (c2pa.training-mining), CAWG training and data mining 1.1 (cawg.training-mining); ISO 19566-5 (JUMBF).
"""

import re
import struct
from collections.abc import Iterator
from typing import BinaryIO

from vlm_core.data.web.rights import ALLOWED, Rights

MOST = 4 * 2**20  # bytes of a file's metadata that are looked at
_LABELS = (b"c2pa.training-mining", b"cawg.training-mining")
# JSON and CBOR both hold the entry's name, then "use", then its word as plain text
_DENIES = re.compile(rb"(?:c2pa|cawg)\.(?:ai_generative_training|ai_training|data_mining)\b.{1,16}?use.{1,6}?(?:notAllowed|constrained)", re.S)


def c2pa_decision(stream: BinaryIO) -> Rights:
    """Deny when an assertion does not allow training or mining. A damaged box says nothing."""
    stream.seek(0)
    data = stream.read(MOST)
    for box in _jumbf(data):
        for label, content in _assertions(box):
            if found := _DENIES.search(content):
                words = re.findall(rb"[A-Za-z0-9_.]{3,}", found.group())
                return Rights(False, "c2pa", f"{label.decode()}: {b' '.join(words).decode()}")
    return ALLOWED


def _jumbf(data: bytes) -> Iterator[bytes]:
    """The JUMBF super boxes of a file."""
    if data[:3] == b"\xff\xd8\xff":
        yield from _app11(data)
    elif data[:8] == b"\x89PNG\r\n\x1a\n":
        at = 8
        while at + 8 <= len(data):
            size, kind = struct.unpack_from(">I4s", data, at)
            if kind == b"caBX":
                yield data[at + 8 : at + 8 + size]
            at += 12 + size
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        at = 12
        while at + 8 <= len(data):
            kind, size = struct.unpack_from("<4sI", data, at)
            if kind == b"C2PA":
                yield data[at + 8 : at + 8 + size]
            at += 8 + size + size % 2


def _app11(data: bytes) -> Iterator[bytes]:
    """JPEG cuts a box into segments with one box number; each repeats the box header."""
    boxes: dict[int, bytes] = {}
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        marker, size = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xEB and data[at + 4 : at + 6] == b"JP" and size > 18:
            number, part = int.from_bytes(data[at + 6 : at + 8], "big"), data[at + 12 : at + 2 + size]
            boxes[number] = boxes[number] + part[8:] if number in boxes else part
        at += 2 + size
    yield from boxes.values()


def _assertions(box: bytes, depth: int = 0) -> Iterator[tuple[bytes, bytes]]:
    """(label, content) of the wanted assertions inside a run of boxes."""
    at = 0
    while at + 8 <= len(box) and depth < 8:
        size, kind = struct.unpack_from(">I4s", box, at)
        inner = box[at + 8 : at + size if size >= 8 else len(box)]
        if kind == b"jumb":
            label = _label(inner)
            if label.startswith(_LABELS):
                yield label, inner
            else:
                yield from _assertions(inner, depth + 1)
        at += size if size >= 8 else len(box)


def _label(inner: bytes) -> bytes:
    """The label of a super box: its description box holds 16 bytes of type, a byte of switches, the text and a zero."""
    size, kind = struct.unpack_from(">I4s", inner) if len(inner) >= 8 else (0, b"")
    return inner[25:size].partition(b"\0")[0] if kind == b"jumd" and size > 25 else b""
