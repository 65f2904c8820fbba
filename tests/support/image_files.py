"""Image files made by the tests, as bytes: good ones, odd ones, and lying headers."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image


def picture(height: int = 40, width: int = 60) -> NDArray[np.uint8]:
    """A smooth colour picture, different in every corner."""
    y, x = np.mgrid[0:height, 0:width]
    channels = (40 + 3 * x % 200, 30 + 4 * y % 210, 250 - 2 * x - y)
    return np.dstack(channels).astype(np.uint8)


def encode(image: Image.Image | NDArray[Any], kind: str, **options: Any) -> bytes:
    """A Pillow image (or array) as a file of format `kind`."""
    stream = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(
        stream, kind, **options
    )
    return stream.getvalue()


def encode_tiff(array: NDArray[Any], **options: Any) -> bytes:
    """An array as TIFF, by tifffile."""
    stream = io.BytesIO()
    tifffile.imwrite(stream, array, **options)
    return stream.getvalue()


def colour(mode: str = "RGB") -> Image.Image:
    """`picture` in another Pillow mode."""
    return Image.fromarray(picture()).convert(mode)


def exif(orientation: int, thumbnail: bytes = b"") -> bytes:
    """An EXIF block with an orientation and, if given, a JPEG thumbnail in its second directory."""
    entries = [(0x0112, 3, 1, struct.pack("<HH", orientation, 0))]
    first = _directory(entries, 8)
    if thumbnail:
        first = _directory(entries, 8, following=8 + len(first))
        at = 8 + len(first) + 2 + 2 * 12 + 4
        second = [
            (0x0201, 4, 1, struct.pack("<I", at)),
            (0x0202, 4, 1, struct.pack("<I", len(thumbnail))),
        ]
        first += _directory(second, 0) + thumbnail
    return b"Exif\0\0II*\0" + struct.pack("<I", 8) + first


def _directory(entries: list[tuple[int, int, int, bytes]], _: int, following: int = 0) -> bytes:
    body = b"".join(struct.pack("<HHI", t, k, n) + value for t, k, n, value in entries)
    return struct.pack("<H", len(entries)) + body + struct.pack("<I", following)


def png_chunk(kind: bytes, body: bytes) -> bytes:
    """One PNG chunk with its checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def huge(kind: str, width: int = 20_000, height: int = 20_000) -> bytes:
    """A small file of format `kind` whose header claims width x height pixels."""
    if kind == "png":
        header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")]
        return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(k, b) for k, b in chunks)
    if kind == "jpeg":
        data = bytearray(encode(picture(), "JPEG"))
        at = data.index(b"\xff\xc0")
        struct.pack_into(">HH", data, at + 5, height, width)
        return bytes(data)
    if kind == "bmp":
        data = bytearray(encode(picture(), "BMP"))
        struct.pack_into("<ii", data, 18, width, height)
        return bytes(data)
    if kind in ("tiff", "bigtiff"):
        data = bytearray(encode_tiff(picture(), photometric="rgb", bigtiff=kind == "bigtiff"))
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            for tag, value in (("ImageWidth", width), ("ImageLength", height)):
                at = file.pages[0].tags[tag].valueoffset
                form = "<H" if file.pages[0].tags[tag].dtype == 3 else "<I"
                struct.pack_into(form, data, at, value)
        return bytes(data)
    if kind == "webp":  # lossy WebP has 14 bits for each side, the extended header 24
        side = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
        inner = encode(picture(), "WEBP")[12:]
        body = b"WEBPVP8X" + struct.pack("<I", 10) + b"\0\0\0\0" + side + inner
        return b"RIFF" + struct.pack("<I", len(body)) + body
    raise ValueError(kind)
