"""Image files in, result files out."""

from __future__ import annotations

import threading
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from clipsam.runtime.core.errors import DamagedError, ImageError, OutputError
from clipsam.runtime.core.files import open_regular, write_bytes
from clipsam.runtime.images.headers import MAX_PIXELS as MAX_PIXELS
from clipsam.runtime.images.headers import Header, read_header
from clipsam.runtime.images.image import Image, check_image

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
_MORE = bytes(range(1, 255)) * 4  # no marker in it
_MOST_BESIDE = 64 << 20  # bytes of a file beside its pixels: EXIF, colour profiles, thumbnails
MAX_BYTES = 4 * MAX_PIXELS + _MOST_BESIDE  # of a file that is read

_LARGE = 4_000_000  # pixels from which a score map is compressed
_STEPS = np.float32(1 << 14)  # to which it is rounded, from 0 to 1
_PLAIN, _DEFLATE, _HORIZONTAL = 1, 8, 2  # TIFF's numbers


def read_image(path: Path | str, max_pixels: int = MAX_PIXELS) -> Image:
    """Read a file as HxWx3 uint8 RGB (gray is repeated, EXIF orientation applied).

    Nothing is guessed: 16 bits a channel, CMYK, transparency and animation are refused with an
    ImageError that says what to convert, as are missing, truncated and foreign files.
    """
    path = Path(path)
    try:
        with open_regular(path, 4 * max_pixels + _MOST_BESIDE) as file:
            data = file.read()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"{path} cannot be read ({reason}): check the path.") from error
    except MemoryError as error:
        raise _no_room(path) from error
    return decode_image(data, path, max_pixels)


def decode_image(data: bytes, name: Path | str, max_pixels: int = MAX_PIXELS) -> Image:
    """`read_image` of a file's content; `name` is what the messages call it. Raises ImageError."""
    try:
        return _decoded(data, name, max_pixels)
    except MemoryError as error:
        raise _no_room(name) from error


def _no_room(path: Path | str) -> ImageError:
    return ImageError(f"{path} does not fit in memory: free some, or cut it up.")


def _decoded(data: bytes, path: Path | str, max_pixels: int) -> Image:
    if not data:
        raise DamagedError(f"{path} is empty (0 bytes): it was never written; take it again.")
    header = read_header(data, max_pixels)
    if header is None:  # nothing is decoded whose size was not read before
        raise DamagedError(
            f"{path} is damaged or not an image: give a PNG, JPEG, BMP, TIFF or WebP file that "
            "opens in a viewer."
        )
    _refuse(path, header, max_pixels)
    if header.alpha:
        pixels = _decode(path, data, cv2.IMREAD_UNCHANGED)
        if pixels.ndim != 3 or pixels.shape[2] != 4 or pixels[..., 3].min() < 255:
            raise ImageError(
                f"{path} has transparent pixels: put it on the background it is to be judged on."
            )
    # Opaque alpha is dropped by decoding again: OpenCV applies EXIF's orientation only here.
    image = _decode(path, data, cv2.IMREAD_COLOR)
    if header.scan_end and not _same_with_more_to_read(path, data[: header.scan_end], image):
        raise DamagedError(f"{path} is damaged (its pixels are not all there): copy it again.")
    return check_image(np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8), str(path))


def _refuse(path: Path | str, header: Header, max_pixels: int) -> None:
    """Raise ImageError for what would be decoded wrongly, or not fit in memory."""
    if header.width * header.height > max_pixels:
        raise ImageError(
            f"{path} claims {header.width}x{header.height} pixels, over the limit of "
            f"{max_pixels:,}: cut it into tiles, or raise max_pixels if it is real."
        )
    if header.bits > 8:
        raise ImageError(
            f"{path} has {header.bits} bits a channel: convert it to 8 bits with the scaling that "
            "suits your camera."
        )
    if header.cmyk:
        raise ImageError(f"{path} is CMYK: convert it to RGB.")
    if header.frames > 1:
        raise ImageError(f"{path} holds {header.frames} frames or pages: save one of them.")
    if header.problem:
        raise DamagedError(f"{path} {header.problem}.")


def _decode(path: Path | str, data: bytes, flags: int) -> NDArray[np.uint8]:
    """HxWx3 BGR (or what `flags` asks for)."""
    with _quiet:
        try:
            image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        except cv2.error as error:
            raise DamagedError(f"{path} cannot be decoded ({error.err}): save it again.") from error
    if image is None:
        raise DamagedError(f"{path} is damaged: copy it again, or save it again from a viewer.")
    return np.asarray(image, np.uint8)


def _same_with_more_to_read(path: Path | str, data: bytes, image: NDArray[np.uint8]) -> bool:
    """Whether a JPEG's one scan was whole, by decoding it again with something behind its end.

    libjpeg fills what is missing with grey and tells no one but stderr. A whole scan is read no
    further than its end, so what follows changes nothing.
    """
    again = _decode(path, data + _MORE, cv2.IMREAD_COLOR)
    return np.array_equal(again, image)


class _OpenCVQuiet:
    """OpenCV prints its own warnings about files that get our sentence anyway.

    Its log level belongs to the process: the first of several threads keeps what it was, the last
    one brings it back.
    """

    def __init__(self) -> None:
        self._lock, self._inside, self._level = threading.Lock(), 0, 0

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                cv2.utils.logging.setLogLevel(self._level)


_quiet = _OpenCVQuiet()


def write_png(path: Path, image: NDArray[np.uint8]) -> None:
    """Write gray [H,W] or RGB [H,W,3] uint8 as PNG, whole or not at all. Raises OutputError."""
    bgr = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    _encode(path, ".png", bgr, [])


def write_score_tiff(path: Path, score: NDArray[np.float32]) -> None:
    """Write [H,W] in [0,1] as float32 TIFF, which OpenCV and tifffile read.

    Uncompressed and exact, the form MVTec's own evaluation reads; from `_LARGE` pixels on rounded
    to 1/16384 and deflated, to a tenth of the size or less.
    """
    score = score.astype(np.float32)
    if score.size < _LARGE:
        _encode(path, ".tiff", score, [cv2.IMWRITE_TIFF_COMPRESSION, _PLAIN])
        return
    score *= _STEPS
    np.rint(score, out=score)
    score /= _STEPS
    # tifffile needs another package for LZW and for the predictor that OpenCV takes by itself.
    form = [cv2.IMWRITE_TIFF_COMPRESSION, _DEFLATE, cv2.IMWRITE_TIFF_PREDICTOR, _HORIZONTAL]
    _encode(path, ".tiff", score, form)


def _encode(path: Path, suffix: str, array: cv2.typing.MatLike, parameters: list[int]) -> None:
    done, data = cv2.imencode(suffix, array, parameters)
    if not done:
        raise OutputError(f"{path} could not be encoded as {suffix}.")
    write_bytes(path, data.tobytes())
