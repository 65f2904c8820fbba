"""What a TIFF file claims about itself: see `image_header`."""

from __future__ import annotations

import struct
from typing import Any

# Little and big endian, classic and BigTIFF.
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_TYPES = {1: "B", 3: "H", 4: "I", 16: "Q"}  # those that the tags below may have
_WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _SAMPLES, _EXTRA, _FORMAT = 256, 257, 258, 262, 277, 338, 339
_DATA = ((273, 279), (324, 325))  # (offsets, byte counts) of strips, of tiles
_COLOUR = {0: 1, 1: 1, 2: 3, 3: 1, 6: 3}  # photometric -> channels: gray, RGB, palette, YCbCr
_CMYK, _UNSIGNED = 5, 1
_MOST_PAGES = 1000  # pages counted; a damaged file may chain them in a ring


def read_tiff(data: bytes) -> dict[str, Any]:
    """The fields of `image_header.Header`. Raises struct.error, KeyError or ValueError."""
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    first = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)[0]
    tags, following = _page(data, first, order, big)
    frames = 1
    while following and frames < _MOST_PAGES:
        frames += 1
        try:
            _, following = _page(data, following, order, big)
        except (struct.error, ValueError):
            break
    photometric = tags.get(_PHOTOMETRIC, (1,))[0]
    samples = tags.get(_SAMPLES, (1,))[0]
    channels, alpha, problem = _COLOUR.get(photometric), False, ""
    if channels is not None and samples != channels:
        alpha = samples == channels + 1 == 4
        if not alpha:
            problem = f"has {samples} channels: keep gray or RGB alone"
    elif channels is None and photometric != _CMYK:
        problem = f"is in an unusual colour space (photometric {photometric}): convert it to RGB"
    if any(kind != _UNSIGNED for kind in tags.get(_FORMAT, (_UNSIGNED,))):
        problem = (
            "holds signed or floating-point values: convert it to 8 bits a channel with the "
            "scaling that suits your camera"
        )
    for offsets, counts in _DATA:
        parts = zip(tags.get(offsets, ()), tags.get(counts, ()), strict=False)
        if any(offset + count > len(data) for offset, count in parts):
            problem = "is truncated: its end is missing; copy it again"
    return {
        "width": tags[_WIDTH][0],
        "height": tags[_HEIGHT][0],
        "bits": max(tags.get(_BITS, (1,))),
        "cmyk": photometric == _CMYK,
        "alpha": alpha,
        "frames": frames,
        "problem": problem,
    }


def _page(
    data: bytes, position: int, order: str, big: bool
) -> tuple[dict[int, tuple[int, ...]], int]:
    """The tags of the page at `position` that hold whole numbers, and where the next one is."""
    count = struct.unpack_from(order + ("Q" if big else "H"), data, position)[0]
    entry, offset = (20, "Q") if big else (12, "I")
    start = position + (8 if big else 2)
    tags = {}
    for at in range(start, start + entry * count, entry):
        tag, kind, length = struct.unpack_from(order + "HH" + offset, data, at)
        if kind not in _TYPES or length == 0:
            continue
        layout = f"{order}{length}{_TYPES[kind]}"
        size = struct.calcsize(layout)
        if size > len(data):
            raise ValueError("a tag larger than the file")
        inline = at + entry - (8 if big else 4)
        if size > (8 if big else 4):
            inline = struct.unpack_from(order + offset, data, inline)[0]
        tags[tag] = struct.unpack_from(layout, data, inline)
    return tags, struct.unpack_from(order + offset, data, start + entry * count)[0]
