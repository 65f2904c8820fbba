"""Image files that are read: every kind comes out as the RGB that Pillow sees, and silently."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageOps
from support.image_files import colour, encode, encode_tiff, exif, picture

from clipsam.runtime import ImageError, OutputError, read_image
from clipsam.runtime.images.reader import write_png, write_score_tiff

GOOD: dict[str, bytes] = {
    "colour.png": encode(picture(), "PNG"),
    "interlaced-free.png": encode(picture(33, 47), "PNG", optimize=True),
    "gray.png": encode(colour("L"), "PNG"),
    "palette.png": encode(colour("P"), "PNG"),
    "bits.png": encode(colour("1"), "PNG"),
    "opaque.png": encode(colour("RGBA"), "PNG"),
    "gray-opaque.png": encode(colour("LA"), "PNG"),
    "colour.jpg": encode(picture(), "JPEG", quality=95),
    "progressive.jpeg": encode(picture(), "JPEG", progressive=True),
    "gray.jpg": encode(colour("L"), "JPEG"),
    "restart.jpg": encode(picture(), "JPEG", restart_marker_blocks=2),
    "colour.bmp": encode(picture(), "BMP"),
    "palette.bmp": encode(colour("P"), "BMP"),
    "bits.bmp": encode(colour("1"), "BMP"),
    "colour.tif": encode(picture(), "TIFF"),
    "lzw.tiff": encode(picture(), "TIFF", compression="tiff_lzw"),
    "gray.tif": encode(colour("L"), "TIFF"),
    "bits.tif": encode(colour("1"), "TIFF"),
    "palette.tif": encode(colour("P"), "TIFF"),
    "opaque.tif": encode(colour("RGBA"), "TIFF"),
    "big.tif": encode_tiff(picture(), photometric="rgb", bigtiff=True),
    "motorola.tif": encode_tiff(picture(), photometric="rgb", byteorder=">"),
    "planar.tif": encode_tiff(
        picture().transpose(2, 0, 1).copy(), photometric="rgb", planarconfig="separate"
    ),
    "strips.tif": encode_tiff(picture(), photometric="rgb", rowsperstrip=7, compression="zlib"),
    "lossless.webp": encode(picture(), "WEBP", lossless=True),
    "lossy.webp": encode(picture(), "WEBP", quality=90),
    "opaque.webp": encode(colour("RGBA"), "WEBP", lossless=True),
}


@pytest.fixture
def quiet(capfd: pytest.CaptureFixture[str]) -> Any:
    """Fails the test if anything was printed, by a C library too."""
    yield
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


@pytest.mark.parametrize("name", GOOD)
def test_reads_what_pillow_reads(name: str, tmp_path: Path, quiet: None) -> None:
    path = tmp_path / name
    path.write_bytes(GOOD[name])
    image = read_image(path)
    with Image.open(path) as file:
        expected = np.asarray(file.convert("RGB"))
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    lossy = path.suffix in (".jpg", ".jpeg") or name == "lossy.webp"
    np.testing.assert_allclose(image.astype(int), expected, atol=4 if lossy else 0)


def test_gray_images_become_three_equal_channels(tmp_path: Path) -> None:
    path = tmp_path / "gray.png"
    path.write_bytes(GOOD["gray.png"])
    image = read_image(str(path))  # a str is a path, too
    assert (image == image[..., :1]).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "PNG-alpha"])
def test_exif_orientation_is_applied(
    kind: str, orientation: int, tmp_path: Path, quiet: None
) -> None:
    path = tmp_path / "photo"
    tags = Image.Exif()
    tags[0x0112] = orientation
    image = colour("RGBA") if kind == "PNG-alpha" else colour()
    options: dict[str, dict[str, Any]] = {
        "WEBP": {"lossless": True},
        "JPEG": {"quality": 97, "subsampling": 0},
    }
    path.write_bytes(encode(image, kind.split("-")[0], exif=tags, **options.get(kind, {})))
    with Image.open(path) as file:
        expected = np.asarray(ImageOps.exif_transpose(file).convert("RGB"))
    found = read_image(path)
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).mean() < (2 if kind == "JPEG" else 1e-9)


def test_thumbnail_does_not_disturb(tmp_path: Path, quiet: None) -> None:
    path = tmp_path / "camera.jpg"
    thumbnail = encode(picture(16, 24), "JPEG")
    path.write_bytes(encode(picture(), "JPEG", exif=exif(6, thumbnail)))
    assert read_image(path).shape == (60, 40, 3)


def test_a_second_picture_after_the_end_is_ignored(tmp_path: Path, quiet: None) -> None:
    """Phones append a second JPEG (a depth or gain map) to the first."""
    path = tmp_path / "phone.jpg"
    path.write_bytes(GOOD["colour.jpg"] + encode(picture(16, 24), "JPEG"))
    assert read_image(path).shape == (40, 60, 3)


def test_a_callers_limit_is_obeyed(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(GOOD["colour.png"])
    assert read_image(path, max_pixels=40 * 60).shape == (40, 60, 3)
    with pytest.raises(ImageError, match="60x40 pixels, over the limit of 2,399"):
        read_image(path, max_pixels=40 * 60 - 1)


def test_opencv_keeps_its_log_level(tmp_path: Path, quiet: None) -> None:
    before = cv2.utils.logging.LOG_LEVEL_WARNING
    cv2.utils.logging.setLogLevel(before)
    path = tmp_path / "cut.bmp"
    path.write_bytes(GOOD["colour.bmp"][:-50])
    with pytest.raises(ImageError):
        read_image(path)
    assert cv2.utils.logging.getLogLevel() == before


@pytest.mark.parametrize("name", GOOD)
def test_every_cut_is_refused(name: str, tmp_path: Path, quiet: None) -> None:
    """No file of any format that lost its end comes back as a half gray picture."""
    data, path = GOOD[name], tmp_path / name
    draw = random.Random(name)
    for cut in {1, 2, 10, 30, len(data) - 4, *(draw.randrange(len(data) - 4) for _ in range(25))}:
        path.write_bytes(data[:cut])
        with pytest.raises(ImageError) as error:
            read_image(path)
        assert str(path) in str(error.value)


def test_noise_is_refused_or_read(tmp_path: Path) -> None:
    """Whatever the bytes, the answer is an image or an ImageError.

    Only here may libjpeg print: it decodes some damaged scans and tells no one but stderr.
    """
    draw, path = random.Random(0), tmp_path / "fuzz"
    starts = [data[:n] for data in GOOD.values() for n in (4, 12, 40)]
    tries = [draw.choice(starts) + draw.randbytes(draw.randrange(400)) for _ in range(150)]
    for data in GOOD.values():
        for _ in range(15):
            changed = bytearray(data)
            for _ in range(draw.choice((1, 1, 3, 20))):
                changed[draw.randrange(min(len(data), draw.choice((40, 10**6))))] = draw.randrange(
                    256
                )
            tries.append(bytes(changed))
    images, refusals = [], []
    for data in tries:
        path.write_bytes(data)
        try:
            images.append(read_image(path))
        except ImageError as error:
            refusals.append(str(error))
    assert all(image.dtype == np.uint8 and image.ndim == 3 for image in images)
    assert all(str(path) in message for message in refusals)
    assert images
    assert refusals


def test_written_files_read_back_the_same(tmp_path: Path) -> None:
    gray = picture()[..., 0].copy()
    score = np.linspace(0, 1, 40 * 60, dtype=np.float32).reshape(40, 60)
    write_png(tmp_path / "deep/colour.png", picture())
    write_png(tmp_path / "gray.png", gray)
    write_score_tiff(tmp_path / "score.tiff", score)
    with Image.open(tmp_path / "deep/colour.png") as file:
        np.testing.assert_array_equal(np.asarray(file), picture())
    with Image.open(tmp_path / "gray.png") as file:
        assert file.mode == "L"
        np.testing.assert_array_equal(np.asarray(file), gray)
    found: NDArray[np.float32] = tifffile.imread(tmp_path / "score.tiff")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, score)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deep", "gray.png", "score.tiff"]


def test_a_writer_below_a_file_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    sentence = r"could not be written .*: allow that, or choose another folder\.$"
    with pytest.raises(OutputError, match=sentence):
        write_png(tmp_path / "file" / "a.png", picture())
