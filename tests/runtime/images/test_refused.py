"""Image files that are refused, each with one sentence that names the file and what to do."""

from __future__ import annotations

import io
import os
import random
import re
import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image
from support.image_files import colour, encode, encode_tiff, exif, huge, picture, png_chunk

from clipsam.runtime import ImageError, read_image


def animated(kind: str) -> bytes:
    frames = [Image.fromarray(np.roll(picture(), n, axis=1)) for n in (0, 20, 40)]
    return encode(frames[0], kind, save_all=True, append_images=frames[1:], duration=50)


def transparent(kind: str, mode: str = "RGBA", **options: Any) -> bytes:
    image = colour(mode)
    image.putalpha(Image.fromarray(np.where(picture()[..., 0] > 100, 255, 0).astype(np.uint8)))
    return encode(image, kind, **options)


def flipped_png() -> bytes:
    data = bytearray(encode(picture(), "PNG"))
    data[data.index(b"IDAT") + 60] ^= 0x10
    return bytes(data)


def trns_png() -> bytes:
    data = encode(picture(), "PNG")
    at = data.index(b"IDAT") - 4
    r, g, b = (int(v) for v in picture()[0, 0])
    return data[:at] + png_chunk(b"tRNS", struct.pack(">HHH", r, g, b)) + data[at:]


DEEP = np.arange(40 * 60, dtype=np.uint16).reshape(40, 60)
PAGES = np.stack([picture(), picture()])

REFUSED: dict[str, tuple[bytes, str]] = {
    "empty.png": (b"", r"is empty \(0 bytes\)"),
    "notes.png": (b"not an image at all\n" * 20, "damaged or not an image: give a PNG, JPEG"),
    "zeros.jpg": (bytes(5000), "damaged or not an image"),
    "page.jpg": (b"<!DOCTYPE html><html>404</html>", "damaged or not an image"),
    "vector.png": (b"%PDF-1.4\n" + bytes(100), "damaged or not an image"),
    "dot.png": (encode(np.zeros((1, 1, 3), np.uint8), "PNG"), "is 1x1 pixels: at least 16x16"),
    "thin.png": (encode(np.zeros((15, 40, 3), np.uint8), "PNG"), "is 40x15 pixels: at least"),
    "wire.png": (encode(np.zeros((16, 1100, 3), np.uint8), "PNG"), "over 64 times the other: cut"),
    "flip.png": (flipped_png(), r"is damaged \(a checksum inside does not fit\): copy it"),
    "cut.webp": (encode(picture(), "WEBP")[:-9], "is truncated: its end is missing; copy it again"),
    "cut.tif": (encode(picture(), "TIFF")[:-9], "is truncated: its end is missing; copy it again"),
    "deep.png": (encode(DEEP, "PNG"), "has 16 bits a channel: convert it to 8 bits"),
    "deep.tif": (encode_tiff(DEEP), "has 16 bits a channel: convert it to 8 bits"),
    "float.tif": (encode_tiff(DEEP.astype(np.float32)), "has 32 bits a channel: convert"),
    "signed.tif": (
        encode_tiff(picture()[..., 0].astype(np.int8)),
        "signed or floating-point values: conv",
    ),
    "press.jpg": (encode(colour("CMYK"), "JPEG"), "is CMYK: convert it to RGB"),
    "press.tif": (encode(colour("CMYK"), "TIFF"), "is CMYK: convert it to RGB"),
    "lab.tif": (encode(colour("LAB"), "TIFF"), "unusual colour space .*: convert it to RGB"),
    "five.tif": (
        encode_tiff(np.zeros((40, 60, 5), np.uint8), photometric="rgb"),
        "has 5 channels: keep gray or RGB alone",
    ),
    "gray-alpha.tif": (transparent("TIFF", "LA"), "has 2 channels: keep gray or RGB alone"),
    "alpha.png": (transparent("PNG"), "has transparent pixels: put it on the background"),
    "gray-alpha.png": (transparent("PNG", "LA"), "has transparent pixels"),
    "alpha.tif": (transparent("TIFF"), "has transparent pixels"),
    "alpha.webp": (transparent("WEBP", lossless=True), "has transparent pixels"),
    "lossy-alpha.webp": (transparent("WEBP"), "has transparent pixels"),
    "trns.png": (trns_png(), "has transparent pixels"),
    "animated.png": (animated("PNG"), "holds 3 frames or pages: save one of them"),
    "animated.webp": (animated("WEBP"), "holds 3 frames or pages: save one of them"),
    "animated.gif": (animated("GIF"), "give a PNG, JPEG, BMP, TIFF or WebP file"),
    "pages.tif": (encode_tiff(PAGES, photometric="rgb"), "holds 2 frames or pages: save one"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_unreadable_image_is_refused_in_one_sentence(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data, message = REFUSED[name]
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(ImageError, match=message) as error:
        read_image(path)
    _is_one_sentence(str(error.value), path)
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


@pytest.mark.parametrize("name", ["missing.png", "folder.png", "folder.png/a.png", "file/a.png"])
def test_a_path_without_a_file_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").write_text("x")
    path = tmp_path / name
    with pytest.raises(ImageError, match=r"cannot be read \(.+\): check the path") as error:
        read_image(path)
    _is_one_sentence(str(error.value), path)


def test_no_file_can_have_a_nul(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="cannot be read"):
        read_image(f"{tmp_path}/a\0.png")


@pytest.mark.parametrize("kind", ["png", "jpeg", "bmp", "tiff", "bigtiff", "webp"])
def test_claimed_size_is_refused_before_decoding(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"huge.{kind}"
    path.write_bytes(huge(kind))
    assert path.stat().st_size < 100_000

    def decode(*_: object) -> None:
        raise AssertionError("decoded a file whose header claims 400 megapixels")

    monkeypatch.setattr(cv2, "imdecode", decode)
    monkeypatch.setattr(cv2, "imread", decode)
    tracemalloc.start()
    try:
        with pytest.raises(ImageError, match=r"claims 20000x20000 pixels, .*: cut it") as error:
            read_image(path)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()
    _is_one_sentence(str(error.value), path)


def _deflated_zeros(side: int, tile: int | None = None) -> bytes:
    """A gray TIFF of side x side black pixels, deflated in one strip or one tile."""
    packed = zlib.compress(bytes((tile or side) ** 2), 9)
    tags = [(256, side), (257, side), (258, 8), (259, 8), (262, 1), (277, 1)]
    where, count = (273, 279) if tile is None else (324, 325)
    tags += [(278, side)] if tile is None else [(322, tile), (323, tile)]
    tags += [(where, 8), (count, len(packed))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags))
    head = b"II*\0" + struct.pack("<I", 8 + len(packed))
    return head + packed + struct.pack("<H", len(tags)) + entries + bytes(4)


@pytest.mark.parametrize(
    ("side", "tile", "message"),
    [(64, None, ""), (16_384, None, "claims 16384x16384"), (64, 16_384, "larger than a picture's")],
)
def test_a_tiff_is_unpacked_in_little_memory(
    side: int, tile: int | None, message: str, tmp_path: Path
) -> None:
    """300 KB of file took the 268 MB that it claimed, before the claim was looked at."""
    path = tmp_path / "zeros.tif"
    path.write_bytes(_deflated_zeros(side, tile))
    assert path.stat().st_size < 500_000
    if not message:
        assert read_image(path).shape == (side, side, 3)
        return
    tracemalloc.start()
    try:
        with pytest.raises(ImageError, match=message) as error:
            read_image(path, max_pixels=30_000_000)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()
    _is_one_sentence(str(error.value), path)


@pytest.mark.parametrize("kind", ["png", "bmp", "tiff"])
def test_a_lie_below_the_limit_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"lie.{kind}"
    path.write_bytes(huge(kind, 2000, 2000))
    with pytest.raises(ImageError, match=str(path)):
        read_image(path)


def test_a_jpeg_cut_where_its_thumbnail_ended(tmp_path: Path) -> None:
    """The thumbnail in EXIF has start, scan and end markers of its own."""
    thumbnail = encode(picture(16, 24), "JPEG")
    data = encode(picture(200, 300), "JPEG", exif=exif(1, thumbnail), quality=95)
    path = tmp_path / "camera.jpg"
    inside = data.index(thumbnail)
    after = inside + len(thumbnail)
    scan = data.index(b"\xff\xda", after)
    cuts = [inside + 10, after, after + 30, scan, scan + 12, (scan + len(data)) // 2, len(data) - 2]
    for cut in cuts:
        path.write_bytes(data[:cut])
        with pytest.raises(ImageError, match=r"is truncated|damaged") as error:
            read_image(path)
        _is_one_sentence(str(error.value), path)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_truncated_jpeg_says_truncated(progressive: bool, tmp_path: Path) -> None:
    data = encode(picture(200, 300), "JPEG", progressive=progressive)
    path = tmp_path / "half.jpg"
    for cut in np.linspace(data.index(b"\xff\xda") + 20, len(data) - 1, 12).astype(int):
        path.write_bytes(data[:cut])
        with pytest.raises(ImageError, match="is truncated: its end is missing; copy it again"):
            read_image(path)


def test_a_flipped_bit_in_a_png_never_passes(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    draw, data = random.Random(3), encode(picture(), "PNG")
    path = tmp_path / "flip.png"
    for _ in range(100):
        changed = bytearray(data)
        changed[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(changed)
        with pytest.raises(ImageError):
            read_image(path)
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_a_ring_of_tiff_pages_ends(tmp_path: Path) -> None:
    stream = io.BytesIO(encode_tiff(picture(), photometric="rgb"))
    data = bytearray(stream.getvalue())
    first = struct.unpack_from("<I", data, 4)[0]
    count = struct.unpack_from("<H", data, first)[0]
    struct.pack_into("<I", data, first + 2 + 12 * count, first)  # the next page is this page
    path = tmp_path / "ring.tif"
    path.write_bytes(data)
    with pytest.raises(ImageError, match="frames or pages"):
        read_image(path)


def _is_one_sentence(message: str, path: Path) -> None:
    assert str(path) in message
    assert message.endswith(".")
    rest = message.replace(str(path), "")
    assert ". " not in rest
    assert "\n" not in rest


def _detailed() -> NDArray[np.uint8]:
    """A picture whose files are long enough to be cut in many places."""
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3)).astype(np.uint8)
    return np.asarray(cv2.GaussianBlur(noise, (9, 9), 0), np.uint8)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 4}])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_cut_jpeg_with_an_end_marker(
    options: dict[str, Any], share: float, tmp_path: Path
) -> None:
    """libjpeg fills the rest with grey: to the method a defect, or a good part."""
    data = encode(Image.fromarray(_detailed()), "JPEG", quality=90, **options)
    path = tmp_path / "cut.jpg"
    path.write_bytes(data)
    assert read_image(path).shape == (200, 300, 3)
    if options.get("progressive"):  # between scans, where nothing but the end is missing
        scans = [m.start() for m in re.finditer(b"\xff\xda", data)]
        cut = scans[int(share * len(scans))]
    else:
        cut = int(share * len(data))
    path.write_bytes(data[:cut] + b"\xff\xd9")
    with pytest.raises(ImageError, match="is damaged") as error:
        read_image(path)
    _is_one_sentence(str(error.value), path)


@pytest.mark.parametrize("damage", ["inside", "short", "checksum", "strips", "counts"])
def test_a_tiff_whose_pixels_are_not_all_there(damage: str, tmp_path: Path) -> None:
    plain = damage == "counts"
    data = bytearray(
        encode_tiff(
            _detailed(),
            photometric="rgb",
            rowsperstrip=20,
            compression=None if plain else "zlib",
        )
    )
    path = tmp_path / "part.tif"
    path.write_bytes(data)
    assert read_image(path).shape == (200, 300, 3)
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        start, length = page.dataoffsets[4], page.databytecounts[4]
        table, rows = page.tags["StripByteCounts"], page.tags["RowsPerStrip"]
    if damage == "inside":
        data[start + length // 2] ^= 0x55
    elif damage == "short":
        packed = zlib.compress(bytes(900 * 19))
        data[start : start + len(packed)] = packed
    elif damage == "checksum":
        data[start + length - 1] ^= 1
    elif damage == "strips":
        struct.pack_into("<H" if rows.dtype == 3 else "<I", data, rows.valueoffset, 10)
    else:
        form = "<H" if table.dtype == 3 else "<I"
        struct.pack_into(form, data, table.valueoffset + struct.calcsize(form), 100)
    path.write_bytes(data)
    with pytest.raises(ImageError, match=r"is damaged \(its pixels are not all there\)") as error:
        read_image(path)
    _is_one_sentence(str(error.value), path)


def test_a_tiff_method_that_cannot_be_checked(tmp_path: Path) -> None:
    path = tmp_path / "packed.tif"
    path.write_bytes(encode(colour(), "TIFF", compression="packbits"))
    with pytest.raises(ImageError, match="TIFF's method 32773: save it with deflate, or without"):
        read_image(path)


def test_thousands_of_long_tags_take_no_memory(tmp_path: Path) -> None:
    """A megabyte of file whose tags all name the same megabyte took 6 GB."""
    data = bytearray(encode_tiff(picture(), photometric="rgb"))
    data += bytes((1 << 20) - len(data))
    first = struct.unpack_from("<I", data, 4)[0]
    count = struct.unpack_from("<H", data, first)[0]
    entries = data[first + 2 : first + 2 + 12 * count]
    for tag in range(40_000, 42_000):
        entries += struct.pack("<HHII", tag, 1, len(data) - 8, 8)
    struct.pack_into("<I", data, 4, len(data))
    data += struct.pack("<H", count + 2000) + entries + bytes(4)
    path = tmp_path / "tags.tif"
    path.write_bytes(data)
    tracemalloc.start()
    try:
        assert read_image(path).shape == (40, 60, 3)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_an_absurd_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "sparse.png"
    path.write_bytes(encode(picture(), "PNG"))
    os.truncate(path, 200 << 30)
    with pytest.raises(ImageError, match=r"It has 214,748,364,800 bytes, over the limit") as error:
        read_image(path)
    _is_one_sentence(str(error.value), path)


def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "part.png")
    with pytest.raises(ImageError, match="Not a regular file"):
        read_image(tmp_path / "part.png")


def test_no_memory_is_the_images_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    path = tmp_path / "part.png"
    path.write_bytes(encode(picture(), "PNG"))
    monkeypatch.setattr(cv2, "cvtColor", fail)
    with pytest.raises(ImageError, match="does not fit in memory") as error:
        read_image(path)
    _is_one_sentence(str(error.value), path)
