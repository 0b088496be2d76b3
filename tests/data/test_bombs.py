"""Pictures that cost as much as they can, at the size of the books: refused by their header, or one frame of them, in a process of its own that says its peak."""

import json
import struct
import subprocess
import sys
import zlib

import pytest

PROBE = """
import json, sys, time
from vlm_core.data.fetch.picture import Limits, decode
from vlm_core.data.web.address import FetchFailed
from vlm_core.stage import own_peak_mb
before, begin = own_peak_mb(), time.process_time()
try:
    with open(sys.argv[1], "rb") as stream:
        ended = str(decode(stream, Limits(64_000_000, 96, 1, 12.0))[0].size)
except FetchFailed as failed:
    ended = failed.status
peak = own_peak_mb()
print(json.dumps([ended, time.process_time() - begin, peak, peak - before]))
"""


def png_header(side):
    parts = [(b"IHDR", struct.pack(">2I5B", side, side, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(10_000))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(struct.pack(">I", len(b)) + n + b + struct.pack(">I", zlib.crc32(n + b)) for n, b in parts)


def gif(frames):
    one = b"\x21\xf9\x04\x00\x01\x00\x00\x00" + b"\x2c" + struct.pack("<4HB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    return b"GIF89a" + struct.pack("<2H3B", 1, 1, 0x80, 0, 0) + bytes(6) + one * frames + b"\x3b"


def webp(side, frames):
    def chunk(name, data):
        return name + struct.pack("<I", len(data)) + data + bytes(len(data) % 2)

    def three(number):
        return struct.pack("<I", number)[:3]

    pixel = bytes([0x2F, 0, 0, 0, 0, 0x07, 0xD0, 0xFF, 0xFE, 0xF7, 0xBF, 0xFF, 0x81, 0x88, 0x88, 0xE8, 0x7F, 0x00])
    frame = chunk(b"ANMF", three(0) + three(0) + three(0) + three(0) + three(10) + b"\0" + chunk(b"VP8L", pixel))
    body = chunk(b"VP8X", b"\x02\0\0\0" + three(side - 1) + three(side - 1)) + chunk(b"ANIM", bytes(6)) + frame * frames
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


@pytest.mark.abuse("A2")
@pytest.mark.parametrize(
    ("name", "data", "ended"),
    [("png", png_header(50_000), "too_many_pixels"), ("gif", gif(100_000), "(1, 1)"), ("webp", webp(16_000, 100_000), "too_many_pixels")],
    ids=["png", "gif", "webp"],
)
def test_a_bomb_of_any_kind_costs_next_to_nothing(tmp_path, name, data, ended):
    file = tmp_path / f"bomb.{name}"
    file.write_bytes(data)
    done = subprocess.run([sys.executable, "-c", PROBE, str(file)], capture_output=True, text=True, check=True)
    found, seconds, peak_mb, grown_mb = json.loads(done.stdout)
    assert found == ended
    assert seconds < 1
    assert (peak_mb < 300, grown_mb < 60) == (True, True), (peak_mb, grown_mb)
