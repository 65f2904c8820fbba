"""What a TIFF file claims about itself: see `headers`."""

from __future__ import annotations

import struct
import zlib
from typing import Any

# Little and big endian, classic and BigTIFF.
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_TYPES = {1: "B", 3: "H", 4: "I", 16: "Q"}  # those that the tags below may have
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES = 256, 257, 258, 259, 262, 277
_ROWS, _PLANAR, _FORMAT, _TILE_WIDTH, _TILE_HEIGHT = 278, 284, 339, 322, 323
_DATA = ((273, 279), (324, 325))  # (offsets, byte counts) of strips, of tiles
# Tag -> how many values it may have, of those that are read: a file may hold thousands of others.
_MOST = dict.fromkeys(
    (_WIDTH, _HEIGHT, _COMPRESSION, _PHOTOMETRIC, _SAMPLES, _ROWS, _PLANAR, _TILE_WIDTH), 1
)
_MOST |= {_TILE_HEIGHT: 1, _BITS: 64, _FORMAT: 64}
_MOST |= {tag: 1 << 18 for pair in _DATA for tag in pair}
_NONE, _LZW, _DEFLATE = 1, 5, (8, 32946)
_MOST_TAGS = 4096  # of a page
_COLOUR = {0: 1, 1: 1, 2: 3, 3: 1, 6: 3}  # photometric -> channels: gray, RGB, palette, YCbCr
_CMYK, _UNSIGNED = 5, 1
_DAMAGED = "is damaged (its pixels are not all there): copy it again"
_MOST_PAGES = 1000  # pages counted; a damaged file may chain them in a ring
_READ, _UNPACKED = 1 << 16, 1 << 20  # bytes in hand at a time while deflate's are counted


def read_tiff(data: bytes, max_pixels: int) -> dict[str, Any]:
    """The fields of `headers.Header`. Raises struct.error, KeyError or ValueError.

    Strips and tiles of more bytes than `max_pixels` can have are not unpacked to be counted.
    """
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    first = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)[0]
    tags, following = _page(data, first, order, big)
    frames = 1
    while following and frames < _MOST_PAGES:
        frames += 1
        try:
            following = _next_page(data, following, order, big)
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
    problem = problem or _damage(data, tags, 8 * max_pixels)  # RGBA, and as much for tiles' rims
    return {
        "width": tags[_WIDTH][0],
        "height": tags[_HEIGHT][0],
        "bits": max(tags.get(_BITS, (1,))),
        "cmyk": photometric == _CMYK,
        "alpha": alpha,
        "frames": frames,
        "problem": problem,
    }


def _damage(data: bytes, tags: dict[int, tuple[int, ...]], most: int) -> str:
    """Why the pixels cannot all be there, or "": libtiff decodes what it can and says nothing."""
    tiled = _TILE_WIDTH in tags
    offsets, counts = (tags.get(tag, ()) for tag in _DATA[tiled])
    if any(offset + count > len(data) for offset, count in zip(offsets, counts, strict=False)):
        return "is truncated: its end is missing; copy it again"
    compression = tags.get(_COMPRESSION, (_NONE,))[0]
    if compression not in (_NONE, _LZW, *_DEFLATE):
        return f"is compressed by TIFF's method {compression}: save it with deflate, or without"
    expected = _sizes(tags, tiled)
    if len(offsets) != len(counts) or len(counts) != len(expected):
        return _DAMAGED
    if sum(expected) > most:
        return "has strips or tiles far larger than a picture's: save it again"
    for offset, count, size in zip(offsets, counts, expected, strict=True):
        if compression in _DEFLATE:
            if not _unpacks(data[offset : offset + count], size):
                return _DAMAGED
        elif count < (size if compression == _NONE else 1):
            return _DAMAGED
    return ""


def _unpacks(packed: bytes, size: int) -> bool:
    """Whether deflate's checksum fits behind `size` bytes, or there are more; in little memory,
    since a megabyte may unpack to a gigabyte."""
    unpacker, found = zlib.decompressobj(), 0
    try:
        for start in range(0, len(packed), _READ):
            rest = packed[start : start + _READ]
            while rest and found <= size:
                found += len(unpacker.decompress(rest, _UNPACKED))
                rest = unpacker.unconsumed_tail
            if found > size:
                return True
        found += len(unpacker.flush())
    except zlib.error:
        return False
    return found > size or (found == size and unpacker.eof)


def _sizes(tags: dict[int, tuple[int, ...]], tiled: bool) -> list[int]:
    """Bytes of every strip or tile, unpacked. Raises ValueError where there are too many."""
    width, height = tags[_WIDTH][0], tags[_HEIGHT][0]
    samples, bits = tags.get(_SAMPLES, (1,))[0], max(tags.get(_BITS, (1,)))
    planes = samples if tags.get(_PLANAR, (1,))[0] == 2 else 1
    channels = samples // planes
    if tiled:
        wide, high = tags[_TILE_WIDTH][0], tags[_TILE_HEIGHT][0]
    else:
        wide, high = width, min(tags.get(_ROWS, (height,))[0], height)
    if min(wide, high, width, height) < 1 or not 1 <= samples <= 64:
        raise ValueError("a side of nothing")
    across, down = -(-width // wide), -(-height // high)
    if planes * across * down > _MOST[_DATA[tiled][0]]:
        raise ValueError("too many strips")
    row = (wide * channels * bits + 7) // 8
    sizes = [row * high] * (across * down)
    if not tiled:
        sizes[-1] = row * (height - high * (down - 1))
    return sizes * planes


def _next_page(data: bytes, position: int, order: str, big: bool) -> int:
    count = struct.unpack_from(order + ("Q" if big else "H"), data, position)[0]
    entry, offset = (20, "Q") if big else (12, "I")
    where = position + (8 if big else 2) + entry * count
    return int(struct.unpack_from(order + offset, data, where)[0])


def _page(
    data: bytes, position: int, order: str, big: bool
) -> tuple[dict[int, tuple[int, ...]], int]:
    """The tags of the page at `position` that matter here, and where the next one is."""
    count = struct.unpack_from(order + ("Q" if big else "H"), data, position)[0]
    entry, offset = (20, "Q") if big else (12, "I")
    start = position + (8 if big else 2)
    if count > _MOST_TAGS:
        raise ValueError("too many tags")
    tags: dict[int, tuple[int, ...]] = {}
    for at in range(start, start + entry * count, entry):
        tag, kind, length = struct.unpack_from(order + "HH" + offset, data, at)
        if tag not in _MOST:
            continue
        # Of a tag given twice, libraries differ in which one they take.
        if kind not in _TYPES or not 0 < length <= _MOST[tag] or tag in tags:
            raise ValueError("a tag that is not what it has to be")
        layout = f"{order}{length}{_TYPES[kind]}"
        size = struct.calcsize(layout)
        if size > len(data):
            raise ValueError("a tag larger than the file")
        inline = at + entry - (8 if big else 4)
        if size > (8 if big else 4):
            inline = struct.unpack_from(order + offset, data, inline)[0]
        tags[tag] = struct.unpack_from(layout, data, inline)
    return tags, _next_page(data, position, order, big)
