"""From bytes that nobody vouches for to an upright picture without alpha: nothing is decoded before its header has been believed.

Formats are told by their magic bytes, sizes are checked before decoding, large JPEGs are decoded reduced (DCT scaling), EXIF orientation is
applied and dropped, alpha is matted on white, 16-bit and CMYK and profiles become 8-bit sRGB. Animated pictures give their first frame.
Source: `methods/data.md` 2, 3; PLATFORM 10.2 A2, A3.
"""

import io
import struct
import zlib
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageCms

from vlm_core.data.web.address import FetchFailed

FORMATS = {"JPEG": "image/jpeg", "PNG": "image/png", "GIF": "image/gif", "WEBP": "image/webp", "AVIF": "image/avif", "BMP": "image/bmp"}
# Pillow's own size (RGB takes 4) and that of the copies which `_plain` makes; an unknown mode counts as the largest.
BYTES_PER_PIXEL, MOST_BYTES = {"1": 2, "L": 1, "RGB": 4, "CMYK": 8, "YCbCr": 8, "P": 12, "LA": 12, "RGBA": 12}, 16
_DAMAGED = (OSError, SyntaxError, ValueError, KeyError, TypeError, IndexError, EOFError, struct.error, zlib.error, OverflowError, MemoryError)
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}  # fmt: skip


class Header(NamedTuple):
    """What the first bytes say. Width and height are those of the upright picture."""

    format: str
    mime: str
    width: int
    height: int
    orientation: int


class Limits(NamedTuple):
    """Refuse what lies outside: pixels of the whole picture, MB of memory to decode it, shortest side, aspect ratio (0 = any)."""

    max_pixels: int
    max_decoded_mb: int
    min_side: int
    max_aspect: float


def sniff(head: bytes) -> str:
    """The picture format of the magic bytes, or ''."""
    if head[:3] == b"\xff\xd8\xff":
        return "JPEG"
    if head[:8] == b"\x89PNG\r\n\x1a\n":
        return "PNG"
    if head[:6] in {b"GIF87a", b"GIF89a"}:
        return "GIF"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp" and head[8:12] in {b"avif", b"avis"}:
        return "AVIF"
    return "BMP" if head[:2] == b"BM" and len(head) > 26 else ""


def probe(stream: BinaryIO, limits: Limits) -> Header:
    """Read the header and check it. Raises FetchFailed: not_image, decode_error, too_many_pixels, too_small, aspect_ratio."""
    image, header = _open(stream)
    check(image, header, limits)
    return header


def check(image: Image.Image, header: Header, limits: Limits) -> None:
    """Raises FetchFailed for what lies outside the limits."""
    pixels, short = header.width * header.height, min(header.width, header.height)
    if short < limits.min_side:
        raise FetchFailed("too_small", f"{header.width} x {header.height} pixels, at least {limits.min_side} on the short side expected")
    if pixels > limits.max_pixels:
        raise FetchFailed("too_many_pixels", f"{header.width} x {header.height} pixels, at most {limits.max_pixels:,} allowed")
    if limits.max_aspect and max(header.width, header.height) > limits.max_aspect * short:
        raise FetchFailed("aspect_ratio", f"{header.width} x {header.height} pixels, more than {limits.max_aspect:g} : 1")
    scale = 8 if header.format == "JPEG" else 1
    if pixels // scale**2 * BYTES_PER_PIXEL.get(image.mode, MOST_BYTES) > limits.max_decoded_mb * 2**20:
        raise FetchFailed("too_many_pixels", f"{header.width} x {header.height} pixels ({image.mode}) need more than {limits.max_decoded_mb} MB to decode")


def plain_jpeg(stream: BinaryIO, limits: Limits, side: int = 0) -> tuple[Header, int] | None:
    """(header, DCT reduction) of a JPEG that any decoder may be given as it is: whole, upright, grey or sRGB; None for all else. Raises as `probe` does."""
    image, header = _open(stream)
    if header.format != "JPEG" or header.orientation != 1 or image.mode not in {"RGB", "L"}:
        return None
    profile = image.info.get("icc_profile")
    if profile and b"sRGB" not in profile and "sRGB".encode("utf-16-be") not in profile:
        return None
    check(image, header, limits)
    reduction = _reduction(image, side)
    if image.mode == "L" and reduction > 1:
        return None
    if image.width * image.height // reduction**2 * BYTES_PER_PIXEL[image.mode] > limits.max_decoded_mb * 2**20:
        return None
    stream.seek(-2, io.SEEK_END)
    return (header, reduction) if stream.read(2) == b"\xff\xd9" else None


def _reduction(image: Image.Image, side: int) -> int:
    """By how much a JPEG's DCT is scaled down: as far as neither side falls below the stored one."""
    return max((f for f in (1, 2, 4, 8) if min(image.size) >= f * side), default=1) if side else 1


def decode(stream: BinaryIO, limits: Limits, side: int = 0) -> tuple[Image.Image, Header]:
    """The upright 8-bit picture (RGB, or L when it is grey), reduced as long as both sides stay at least `side` (JPEG) or twice `side` (0 = never).

    Raises FetchFailed.
    """
    image, header = _open(stream)
    check(image, header, limits)
    try:
        if header.format == "JPEG" and (scale := _reduction(image, side)) > 1:
            image.draft(None, (image.width // scale, image.height // scale))
        if image.width * image.height * BYTES_PER_PIXEL.get(image.mode, MOST_BYTES) > limits.max_decoded_mb * 2**20:
            raise FetchFailed("too_many_pixels", f"{header.width} x {header.height} pixels ({image.mode}) need more than {limits.max_decoded_mb} MB to decode")
        image.load()
        upright: Image.Image = _plain(image, max(1, min(image.size) // (2 * side)) if side else 1)
    except (*_DAMAGED, Warning) as error:
        raise FetchFailed("decode_error", f"cannot be decoded ({type(error).__name__})") from None
    turn = _TURNS.get(header.orientation)
    return (upright.transpose(turn) if turn is not None else upright), header


def _open(stream: BinaryIO) -> tuple[Image.Image, Header]:
    stream.seek(0)
    form = sniff(stream.read(64))
    if not form:
        raise FetchFailed("not_image", "the first bytes are those of no picture format")
    stream.seek(0)
    try:
        image = Image.open(stream, formats=[form])
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise FetchFailed("too_many_pixels", "the header announces a decompression bomb") from None
    except (*_DAMAGED, Warning) as error:
        raise FetchFailed("decode_error", f"damaged {form} header ({type(error).__name__})") from None
    exif = Image.Exif()
    try:
        exif.load(image.info.get("exif") or b"")  # not getexif(): that decodes a PNG
        orientation = int(exif.get(0x0112, 1))
    except (*_DAMAGED, Warning):
        orientation = 1  # a damaged EXIF block does not spoil the pixels
    width, height = image.size[::-1] if orientation in {5, 6, 7, 8} else image.size
    return image, Header(form, FORMATS[form], width, height, orientation)


def _plain(image: Image.Image, factor: int) -> Image.Image:
    """8-bit RGB or L, without alpha, reduced by a whole factor (box average, alpha premultiplied)."""
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I;16") or image.mode in {"I", "F"}:
        values = np.asarray(image, dtype=np.float32)
        image = Image.fromarray((values / 257 if values.max(initial=0) > 255 else values).round().clip(0, 255).astype(np.uint8))
    if image.mode in {"RGBA", "LA", "PA", "RGBa", "La"} or "transparency" in image.info:
        image = image.convert("RGBA")
        image = image.convert("RGBa").reduce(factor).convert("RGBA") if factor > 1 else image
        white = Image.new("RGB", image.size, (255, 255, 255))
        white.paste(image, mask=image.getchannel("A"))
        return white
    if image.mode not in {"RGB", "L", "CMYK"}:
        image = image.convert("L" if image.mode == "1" else "RGB")
    image = image.reduce(factor) if factor > 1 else image
    return _to_srgb(image, profile)


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    if profile and image.mode in {"RGB", "CMYK"}:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if image.mode == "CMYK" or "srgb" not in ImageCms.getProfileDescription(source).lower():
                turned = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
                if turned is not None:
                    return turned
        except (ImageCms.PyCMSError, *_DAMAGED):
            pass  # an unusable profile: take the numbers as sRGB
    return image if image.mode == "L" else image.convert("RGB")
