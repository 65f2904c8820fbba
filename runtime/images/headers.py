"""What an image file claims about itself, read before anything is decoded.

OpenCV decodes a truncated JPEG into a half gray picture without an error, turns 16 bits into 8
without a word, and allocates whatever size a header claims. Reading the headers of the formats
that lines use lets each of these be refused with its reason; a TIFF's is in `tiff`.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from clipsam.runtime.images.tiff import TIFF, read_tiff

MAX_PIXELS = 100_000_000  # a 100-megapixel image; decoding more is rather a broken header

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
# Start-of-frame markers hold the size; C4, C8 and CC are other things in the same range.
_START_OF_FRAME = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
# Within a scan a data byte FF is followed by 00, and D0 to D7 are restarts: neither ends it.
_AFTER_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_TRUNCATED = "is truncated: its end is missing; copy it again"
_PARTLY = "is damaged (its pixels are not all there): copy it again"
_ALTERED = "is damaged (a checksum inside does not fit): copy it again"


@dataclass(frozen=True)
class Header:
    """Size in pixels, bits a channel, and what is special about the file."""

    width: int
    height: int
    bits: int
    cmyk: bool = False
    alpha: bool = False
    frames: int = 1
    problem: str = ""  # why it cannot be used, and what to do: the end of a sentence
    scan_end: int = 0  # of a JPEG with one scan: where its marker of the end is


def read_header(data: bytes, max_pixels: int = MAX_PIXELS) -> Header | None:
    """The header of a PNG, JPEG, BMP, TIFF or WebP; None for other formats and damaged headers.

    Nothing is unpacked to be checked that would have more bytes than so many pixels.
    """
    try:
        if data.startswith(_PNG):
            return _png(data)
        if data.startswith(_JPEG):
            return _jpeg(data)
        if data.startswith(TIFF):
            return Header(**read_tiff(data, max_pixels))
        if data.startswith(b"BM"):
            return _bmp(data)
        if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
            return _webp(data)
    except (struct.error, IndexError, ValueError, KeyError, OverflowError):
        return None
    return None


def _png(data: bytes) -> Header:
    width, height, bits, colour = struct.unpack_from(">IIBB", data, 16)
    frames, alpha, problem = 1, colour in (4, 6), _TRUNCATED
    for kind, body, intact in _png_chunks(data):
        if not intact:
            problem = _ALTERED
            break
        if kind == b"acTL":
            frames = struct.unpack_from(">I", body)[0]
        elif kind == b"tRNS":
            alpha = True
        elif kind == b"IEND":
            problem = ""
            break
    return Header(width, height, bits, alpha=alpha, frames=frames, problem=problem)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, memoryview, bool]]:
    """(kind, body, whether its checksum fits) of every whole chunk."""
    view, position = memoryview(data), len(_PNG)
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 8 + length
        if end + 4 > len(data):
            return
        checksum = struct.unpack_from(">I", data, end)[0]
        yield kind, view[position + 8 : end], zlib.crc32(view[position + 4 : end]) == checksum
        position = end + 4


def _jpeg(data: bytes) -> Header | None:
    """Segment by segment, so that an EXIF thumbnail's markers are not taken for the image's."""
    position, frame, scans = 2, None, 0
    progressive = False
    missing: dict[int, list[int]] = {}  # component -> bits that each of its 64 numbers lacks
    while position + 4 <= len(data) or data[position : position + 2] == b"\xff\xd9":
        if data[position] != 0xFF:
            return None
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        if marker == _END_OF_IMAGE:
            if not frame or not scans:
                return None
            whole = not any(any(bits) for bits in missing.values())
            return Header(
                *frame, scan_end=position if scans == 1 else 0, problem="" if whole else _PARTLY
            )
        length = struct.unpack_from(">H", data, position + 2)[0]
        if marker in _START_OF_FRAME and frame is None:
            bits, height, width, channels = struct.unpack_from(">BHHB", data, position + 4)
            frame = (width, height, bits, channels == 4)
            progressive = marker & 3 == 2
            missing = {data[position + 10 + 3 * i]: [99] * 64 for i in range(channels)}
        if marker == _START_OF_SCAN:
            _scan(data[position + 4 : position + 2 + length], missing, progressive)
        position += 2 + length
        if marker == _START_OF_SCAN:
            scans += 1
            after = _AFTER_SCAN.search(data, position)
            position = after.start() if after else len(data)
    return Header(*frame, problem=_TRUNCATED) if frame else None


def _scan(header: bytes, missing: dict[int, list[int]], progressive: bool) -> None:
    """Take from `missing` what a scan brings: a progressive JPEG's scans each bring some bits."""
    components = header[1 : 1 + 2 * header[0] : 2]
    first, last, bits = header[-3:] if progressive else (0, 63, 0)
    for component in components:
        missing[component][first : last + 1] = [bits & 0x0F] * (min(last, 63) + 1 - first)


def _bmp(data: bytes) -> Header:
    size = struct.unpack_from("<I", data, 14)[0]
    width, height, _, bits = struct.unpack_from("<HHHH" if size == 12 else "<iiHH", data, 18)
    if bits not in (1, 4, 8, 16, 24, 32) or width <= 0 or height == 0:
        raise ValueError("not a bitmap")
    return Header(width, abs(height), min(bits, 8))  # a negative height: rows from the top


def _webp(data: bytes) -> Header:
    size, kind = struct.unpack_from("<I4x4s", data, 4)
    problem = _TRUNCATED if size + 8 > len(data) else ""
    if kind == b"VP8X":
        flags, w, w2, h, h2 = struct.unpack_from("<B3xHBHB", data, 20)
        frames = max(2, data.count(b"ANMF")) if flags & 0x02 else 1
        width, height = 1 + (w | w2 << 16), 1 + (h | h2 << 16)
        return Header(width, height, 8, alpha=bool(flags & 0x10), frames=frames, problem=problem)
    if kind == b"VP8L":
        packed = struct.unpack_from("<I", data, 21)[0]
        width, height = 1 + (packed & 0x3FFF), 1 + (packed >> 14 & 0x3FFF)
        return Header(width, height, 8, alpha=bool(packed >> 28 & 1), problem=problem)
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return Header(width & 0x3FFF, height & 0x3FFF, 8, problem=problem)
    raise ValueError("not a WebP")
