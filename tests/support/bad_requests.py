"""Requests that no well-meaning client would send."""

from __future__ import annotations

import random
import struct
import zlib


def head(length: str, kind: str = "image/png", path: str = "/inspect", token: str = "") -> bytes:
    """The head of a request, `length` being the header that says how long its body is."""
    bearer = f"Authorization: Bearer {token}\r\n" if token else ""
    return (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{bearer}"
        f"Connection: close\r\nContent-Type: {kind}\r\n{length}\r\n\r\n"
    ).encode()


def damaged(request: bytes, draw: random.Random) -> bytes:
    """A request with some bytes changed, cut out or doubled."""
    data = bytearray(request)
    for _ in range(draw.randrange(1, 4)):
        at, length = draw.randrange(len(data)), draw.randrange(1, 40)
        what = draw.randrange(3)
        if what == 0:
            data[at] = draw.randrange(256)
        elif what == 1:
            del data[at : at + length]
        else:
            data[at:at] = data[at : at + length]
    return bytes(data)


def png_claiming(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it is large."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", size)
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )
