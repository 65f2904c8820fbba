"""Image files in, result files out."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from clipsam.runtime.errors import ImageError, OutputError
from clipsam.runtime.files import write_bytes
from clipsam.runtime.image_header import read_header
from clipsam.runtime.preprocess import Image, check_image

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
MAX_PIXELS = 100_000_000  # a 100-megapixel image; decoding more is rather a broken header


def read_image(path: Path | str, max_pixels: int = MAX_PIXELS) -> Image:
    """Read a file as HxWx3 uint8 RGB (gray is repeated, EXIF orientation applied).

    Nothing is guessed: 16 bits a channel, CMYK, transparency and animation are refused with an
    ImageError that says what to convert, as are missing, truncated and foreign files.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path} cannot be read ({error.strerror}): check the path.") from error
    if not data:
        raise ImageError(f"{path} is empty (0 bytes): it was not written to the end; take it again.")
    header = read_header(data)
    if header is not None:
        _refuse(path, header.width * header.height, max_pixels, f"{header.width}x{header.height}")
        if header.bits > 8:
            raise ImageError(
                f"{path} has {header.bits} bits a channel: convert it to 8 bits with the scaling "
                "that suits your camera."
            )
        if header.cmyk:
            raise ImageError(f"{path} is CMYK: convert it to RGB.")
        if header.frames > 1:
            raise ImageError(f"{path} is animated ({header.frames} frames): save one frame.")
        if not header.complete:
            raise ImageError(f"{path} is truncated: its end is missing; copy it again.")
    flags = cv2.IMREAD_COLOR if header and not header.alpha else cv2.IMREAD_UNCHANGED
    return check_image(_to_rgb(path, _decode(path, data, flags), max_pixels))


def _refuse(path: Path, pixels: int, max_pixels: int, size: str) -> None:
    if pixels > max_pixels:
        raise ImageError(
            f"{path} claims {size} pixels, over the limit of {max_pixels:,}: cut it into tiles, or "
            "raise max_pixels if it is real."
        )


def _decode(path: Path, data: bytes, flags: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    buffer = np.frombuffer(data, np.uint8)
    with _opencv_quiet():
        try:
            frames = cv2.imcount(os.fspath(path)) if flags == cv2.IMREAD_UNCHANGED else 1
            image = cv2.imdecode(buffer, flags)
        except cv2.error as error:
            raise ImageError(f"{path} cannot be decoded ({error.err}): save it again.") from error
    if image is None:
        raise ImageError(
            f"{path} is damaged or not an image: give one of {', '.join(SUFFIXES)} that opens in a "
            "viewer."
        )
    if frames > 1:
        raise ImageError(f"{path} holds {frames} frames or pages: save one of them.")
    return image  # type: ignore[return-value]


def _to_rgb(
    path: Path, image: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], max_pixels: int
) -> Image:
    height, width = image.shape[:2]
    _refuse(path, height * width, max_pixels, f"{width}x{height}")
    if image.dtype != np.uint8:
        raise ImageError(
            f"{path} holds {image.dtype} values: convert it to 8 bits a channel with the scaling "
            "that suits your camera."
        )
    if image.ndim == 3 and image.shape[2] == 4:
        if image[..., 3].min() < 255:
            raise ImageError(
                f"{path} has transparent pixels: put it on the background it is to be judged on."
            )
        return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGRA2RGB), np.uint8)
    conversion = cv2.COLOR_GRAY2RGB if image.ndim == 2 else cv2.COLOR_BGR2RGB
    return np.asarray(cv2.cvtColor(image, conversion), np.uint8)


@contextlib.contextmanager
def _opencv_quiet() -> Iterator[None]:
    """OpenCV prints its own warnings about files that get our sentence anyway."""
    level = cv2.getLogLevel()
    cv2.setLogLevel(0)
    try:
        yield
    finally:
        cv2.setLogLevel(level)


def write_png(path: Path, image: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> None:
    """Write gray [H,W] or RGB [H,W,3] uint8 as PNG, whole or not at all. Raises OutputError."""
    bgr = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    _encode(path, ".png", bgr, [])


def write_score_tiff(path: Path, score: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> None:
    """Write [H,W] as float32 TIFF, uncompressed: the form MVTec's own evaluation reads."""
    _encode(path, ".tiff", score.astype(np.float32), [cv2.IMWRITE_TIFF_COMPRESSION, 1])


def _encode(path: Path, suffix: str, array: cv2.typing.MatLike, parameters: list[int]) -> None:
    done, data = cv2.imencode(suffix, array, parameters)
    if not done:
        raise OutputError(f"{path} could not be encoded as {suffix}.")
    write_bytes(path, data.tobytes())
