"""What an image file claims about itself, read before anything is decoded.

OpenCV decodes a truncated JPEG into a half gray picture without an error, turns 16 bits into 8
without a word, and allocates whatever size a header claims. Reading the header of the two formats
that lines use, PNG and JPEG, lets each of these be refused with its reason.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
# Start-of-frame markers hold the size; C4, C8 and CC are other things in the same range.
_START_OF_FRAME = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_START_OF_SCAN, _END_OF_IMAGE = b"\xff\xda", b"\xff\xd9"


@dataclass(frozen=True)
class Header:
    """Size in pixels, bits a channel, and what is special about the file."""

    width: int
    height: int
    bits: int
    cmyk: bool = False
    alpha: bool = False
    frames: int = 1
    complete: bool = True  # whether the format's end marker is there


def read_header(data: bytes) -> Header | None:
    """The header of a PNG or JPEG file; None for other formats and for damaged headers."""
    try:
        if data.startswith(_PNG):
            return _png(data)
        if data.startswith(_JPEG):
            return _jpeg(data)
    except (struct.error, IndexError, ValueError):
        return None
    return None


def _png(data: bytes) -> Header:
    width, height, bits, colour = struct.unpack_from(">IIBB", data, 16)
    frames, alpha, complete = 1, colour in (4, 6), False
    for kind, body in _png_chunks(data):
        if kind == b"acTL":
            frames = struct.unpack_from(">I", body)[0]
        elif kind == b"tRNS":
            alpha = True
        elif kind == b"IEND":
            complete = True
    return Header(width, height, bits, alpha=alpha, frames=frames, complete=complete)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    position = len(_PNG)
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        if position + 12 + length > len(data):
            return
        yield kind, data[position + 8 : position + 8 + min(length, 8)]
        position += 12 + length


def _jpeg(data: bytes) -> Header | None:
    position = 2
    while position + 4 <= len(data):
        if data[position] != 0xFF:
            return None
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        length = struct.unpack_from(">H", data, position + 2)[0]
        if marker in _START_OF_FRAME:
            bits, height, width, channels = struct.unpack_from(">BHHB", data, position + 4)
            # After the last scan starts, FF D9 can only be the end: data bytes FF are escaped.
            complete = data.rfind(_END_OF_IMAGE) > data.rfind(_START_OF_SCAN) > 0
            return Header(width, height, bits, cmyk=channels == 4, complete=complete)
        position += 2 + length
    return None
