"""Is it the picture that the pair means: placeholders, hashes that a table brings, and what must not stay in a stored picture."""

import hashlib
import io
import struct
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageCms, ImageDraw

from tests.data.loopback import body, encoded, png, web
from tests.data.test_download import LIMITS, download, settings, stored, write_pairs
from vlm_core.data.filter import perceptual
from vlm_core.data.fetch.picture import decode
from vlm_core.data.fetch.verify import check_hash, mark_placeholders


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_HOME", str(tmp_path / "home"))


def code(*flipped, seed=0):
    """A PDQ hash with some bits of a random one flipped."""
    bits = np.random.default_rng(seed).integers(0, 2, 256)
    bits[list(flipped)] ^= 1
    return perceptual.to_hex(bits)


def record(sha256, pdq="", quality=100, status="ok"):
    return {"status": status, "sha256": sha256, "pdq": pdq, "pdq_quality": quality}


def test_near_copies_over_sites_count_as_one_picture_and_others_do_not():
    looks = {
        "a": record("1", code()), "b": record("2", code(*range(31))), "c": record("3", code(*range(225, 256))), "same": record("4", code()),
        "far": record("5", code(*range(32))), "other": record("6", code(seed=9)), "vague": record("7", code(), quality=49), "failed": record("", status="http_4xx"),
    }  # fmt: skip
    pairs = [{"url": url, "caption": f"{url} {n}"} for url in looks for n in range(2)]
    fetched = {url: dict(found) for url, found in looks.items()}
    mark_placeholders(pairs, fetched, 8)
    # a and same: themselves, each other, b (31 bits) and c (31 bits): 8 captions. b sees a, same, far (1 bit): 8. c: a, same: 6. far: b only: 4.
    assert {url for url, found in fetched.items() if found["status"] == "placeholder"} == {"a", "same", "b"}
    assert fetched["a"]["detail"] == "one picture and 3 near copies under 8 captions"
    fetched = {url: dict(found) for url, found in looks.items()}
    mark_placeholders(pairs, fetched, 9)
    assert not any(found["status"] == "placeholder" for found in fetched.values())


@pytest.mark.parametrize(
    ("expected", "pdq", "mode", "status", "detail"),
    [
        ("", "", "drop", "ok", None), ("AB", "", "drop", "ok", None), ("cd", "", "drop", "hash_mismatch", "sha256 differs from cd"),
        ("cd", "", "flag", "ok", "sha256 differs from cd"), ("cd", code(*range(31)), "drop", "hash_mismatch", "sha256 differs from cd, PDQ by 31 of 256 bits"),
        ("cd", code(*range(31)), "accept_if_pdq_near", "ok", "sha256 differs from cd, PDQ by 31 of 256 bits"),
        ("cd", code(*range(32)), "accept_if_pdq_near", "hash_mismatch", "sha256 differs from cd, PDQ by 32 of 256 bits"),
        ("cd", "", "accept_if_pdq_near", "hash_mismatch", "sha256 differs from cd"),
    ],
)  # fmt: skip
def test_a_hash_that_the_table_brings_decides_by_mode(expected, pdq, mode, status, detail):
    found = check_hash({"sha256": expected, "pdq": pdq}, record("ab", code()), mode)
    assert (found["status"], found.get("detail")) == (status, detail)


def test_a_table_with_hashes_is_checked_pair_by_pair_and_one_picture_in_many_qualities_is_a_placeholder(tmp_path):
    picture = Image.open(io.BytesIO(png(320, 240, seed=5)))
    copies = {f"/{quality}.jpg": encoded(picture, "JPEG", quality=quality) for quality in (60, 70, 80, 90, 95)}
    names = [f"www.site{n}.org" for n in range(5)]
    with web({path: body(data) for path, data in copies.items()} | {"/good": body(png(200, 160, seed=6))}) as site:
        pairs = [(f"http://{name}{path}", f"caption {path}") for name, path in zip(names, copies, strict=True)]
        folder = write_pairs(tmp_path / "pairs", *pairs, ("http://a.test/good", "right"), ("http://a.test/good", "wrong"))
        table = pq.read_table(folder / "pairs.parquet")
        hashes = {"right": hashlib.sha256(png(200, 160, seed=6)).hexdigest(), "wrong": hashlib.sha256(b"another").hexdigest()}
        column = pa.array([hashes.get(caption, "") for caption in table["caption"].to_pylist()], pa.string())
        table = table.set_column(table.schema.get_field_index("sha256"), "sha256", column)
        pq.write_table(table, folder / "pairs.parquet")
        rows, report = download(tmp_path, folder, settings(site, *names, placeholder_captions=5))
    assert Counter(row["status"] for row in rows.values()) == {"placeholder": 5, "hash_mismatch": 1, "ok": 1}
    assert {row["site"]: (row["addresses"], row["ok"], row["placeholder"]) for row in report.tables["addresses per site"]} == {
        "a.test": (1, 1, 0),
        **{f"site{n}.org": (1, 0, 1) for n in range(5)},
    }
    assert [row["MB"] for row in report.tables["addresses per site"] if row["site"] == "a.test"] == [round(len(png(200, 160, seed=6)) / 1e6, 3)]


# ---------------------------------------------------------------- what must not stay


def segments(jpeg):
    """Marker -> payloads of a JPEG's segments before the scan."""
    found, at = {}, 2
    while jpeg[at + 1] != 0xDA:
        size = struct.unpack(">H", jpeg[at + 2 : at + 4])[0]
        found.setdefault(jpeg[at + 1], []).append(jpeg[at + 4 : at + 2 + size])
        at += 2 + size
    return found


def private_photo():
    """A phone's photo: lying on its side, with place, owner, maker, profile, XMP and comment."""
    picture = Image.new("RGB", (64, 32), (200, 30, 30))
    ImageDraw.Draw(picture).rectangle((0, 0, 15, 31), fill=(20, 20, 220))  # left edge: top once upright
    exif = Image.Exif()
    exif[0x0112], exif[0x013B], exif[0x010F] = 6, "Jane Private", "PhoneMaker"
    exif[0x8825] = {1: "N", 2: (52.0, 31.0, 12.5), 3: "E", 4: (13.0, 24.0, 17.8)}
    xmp = b"<x:xmpmeta><rdf:Description photoshop:City='Berlin-Secret'/></x:xmpmeta>"
    return encoded(
        picture,
        "JPEG",
        quality=95,
        exif=exif,
        xmp=xmp,
        comment=b"call me 555-0100",
        icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
    )


def test_place_owner_profile_and_comments_of_a_real_jpeg_are_gone_and_it_stands_upright(tmp_path):
    photo = private_photo()
    assert Image.open(io.BytesIO(photo)).getexif().get_ifd(0x8825)[2] == (52.0, 31.0, 12.5)
    with web({"/p.jpg": body(photo, "image/jpeg")}) as site:
        rows, _ = download(tmp_path, write_pairs(tmp_path / "pairs", ("http://a.test/p.jpg", "a photo")), settings(site))
    (row,) = rows.values()
    assert (row["width"], row["height"], row["original_width"], row["original_height"]) == (32, 64, 32, 64)
    files = stored(tmp_path / "images")
    jpeg = next(data for name, data in files.items() if name.endswith(".jpg"))
    assert not {0xE1, 0xE2, 0xED, 0xFE} & segments(jpeg).keys(), "EXIF and XMP, ICC, IPTC, comment"
    everything = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert not any(word in b"".join(files.values()) for word in (b"Jane", b"PhoneMaker", b"Berlin", b"555-0100", b"GPS"))
    assert b"Jane Private" not in everything, "neither beside it: the bytes as fetched are gone"
    pixels = np.asarray(Image.open(io.BytesIO(jpeg))).astype(int)
    assert abs(pixels[6, 16] - (20, 20, 220)).max() < 25
    assert abs(pixels[50, 16] - (200, 30, 30)).max() < 25


def test_an_icc_profile_is_applied_so_that_the_numbers_mean_srgb():
    swapped = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = swapped.replace(b"rXYZ", b"tmp0", 1).replace(b"gXYZ", b"rXYZ", 1).replace(b"tmp0", b"gXYZ", 1)  # its first channel is green
    swapped = swapped.replace("sRGB".encode("utf-16-be"), "GRBx".encode("utf-16-be")).replace(b"sRGB", b"GRBx")
    for form in ("PNG", "JPEG"):
        image, _ = decode(io.BytesIO(encoded(Image.new("RGB", (32, 32), (250, 10, 10)), form, icc_profile=swapped)), LIMITS, 32)
        assert abs(np.asarray(image)[5, 5].astype(int) - (10, 250, 10)).max() <= 6
    cmyk = encoded(Image.new("CMYK", (32, 32), (0, 255, 255, 0)), "JPEG", quality=95)
    image, _ = decode(io.BytesIO(cmyk), LIMITS, 32)
    assert abs(np.asarray(image)[5, 5].astype(int) - (255, 0, 0)).max() <= 6
