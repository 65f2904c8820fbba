"""Model inputs: SAM's are bit for bit those of segment-anything, CLIP's are golden."""

from __future__ import annotations

from typing import Any

import numpy as np
import PIL
import pytest
from numpy.typing import NDArray
from PIL import Image
from support.plain_host import plain_resize

from clipsam.runtime import ImageError
from clipsam.runtime.images.image import check_image
from clipsam.runtime.ops import pillow_resize as resample
from clipsam.runtime.ops.geometry import Geometry
from clipsam.runtime.ops.pillow_resize import resize_bilinear
from clipsam.runtime.stages.preprocess import PreprocessOptions, clip_input, sam_input

PILLOW_13 = int(PIL.__version__.split(".")[0]) >= 13

# Up, down, mixed, one-pixel sides, odd and even, the identity, and large ratios.
SHAPES = [
    ((16, 16), (16, 16)),
    ((17, 31), (64, 64)),
    ((64, 64), (17, 31)),
    ((40, 100), (100, 40)),
    ((100, 40), (40, 100)),
    ((33, 77), (1, 77)),
    ((33, 77), (33, 1)),
    ((33, 77), (1, 1)),
    ((1, 50), (25, 25)),
    ((50, 1), (25, 25)),
    ((1, 1), (7, 5)),
    ((511, 257), (512, 258)),
    ((512, 258), (511, 257)),
    ((900, 1600), (576, 1024)),
    ((37, 2000), (9, 512)),
    ((301, 299), (1024, 1017)),
    ((2, 3), (200, 300)),
]


@pytest.fixture(scope="module")
def resize_longest_side() -> Any:
    """segment-anything's own transform."""
    reason = "segment-anything, the reference, is not installed: pip install 'clipsam[research]'"
    return pytest.importorskip(
        "segment_anything.utils.transforms", reason=reason, exc_type=ImportError
    ).ResizeLongestSide


def noise(shape: tuple[int, int], seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)


def extreme(shape: tuple[int, int], seed: int = 0) -> NDArray[np.uint8]:
    """Only 0 and 255: the largest sums and the sharpest edges."""
    bits = np.random.default_rng(seed).integers(0, 2, (*shape, 3), np.uint8)
    return np.asarray(bits * np.uint8(255))


def pillow(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Pillow 13's resize; older ones always ran the horizontal pass first, so it is spelt out."""
    source = Image.fromarray(image)
    if not PILLOW_13 and image.shape[0] - height > max(0, 2 * (image.shape[1] - width)):
        source = source.resize((image.shape[1], height), Image.Resampling.BILINEAR)
    resized = source.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized, np.uint8)


@pytest.mark.parametrize(("old", "new"), SHAPES, ids=str)
def test_resizing_gives_the_bits_of_pillow(old: tuple[int, int], new: tuple[int, int]) -> None:
    for image in (noise(old), extreme(old), np.full((*old, 3), 255, np.uint8)):
        np.testing.assert_array_equal(resize_bilinear(image, *new), pillow(image, *new))


def test_resize_is_pillows_on_random_shapes() -> None:
    draw = np.random.default_rng(7)
    for seed in range(400):
        height, width, new_height, new_width = (int(v) for v in draw.integers(1, 120, 4))
        image = (noise if seed % 2 else extreme)((height, width), seed)
        found = resize_bilinear(image, new_height, new_width)
        np.testing.assert_array_equal(found, pillow(image, new_height, new_width))


def test_views_are_resized_as_their_copies() -> None:
    """BGR turned to RGB by a slice, a crop, a flip, and a read-only array."""
    whole = noise((60, 90))
    locked = whole.copy()
    locked.flags.writeable = False
    for view in (whole[..., ::-1], whole[5:50, 7:80], whole[::-1, ::2], locked):
        expected = pillow(np.ascontiguousarray(view), 33, 44)
        np.testing.assert_array_equal(resize_bilinear(view, 33, 44), expected)


# Sides halved, quartered, doubled (float32 sums are exact, half of them half-way), thirds, sixths
# and five fourths (exact halves among sums that are not), one more or less, and large ratios.
SIDES = [
    (512, 256), (1024, 256), (96, 192), (64, 512), (768, 256), (768, 128), (640, 512),
    (513, 256), (511, 256), (257, 512), (3000, 40), (31, 500), (77, 26), (200, 201),
]  # fmt: skip


@pytest.mark.parametrize("rows", SIDES[::3], ids=str)
@pytest.mark.parametrize("columns", SIDES, ids=str)
def test_resize_is_the_plain_one(rows: tuple[int, int], columns: tuple[int, int]) -> None:
    """Bit for bit, on noise, on the largest sums, and on ramps, whose sums are often half-way."""
    old, new = zip(rows, columns, strict=True)
    y, x = np.mgrid[0 : old[0], 0 : old[1]]
    ramps = np.dstack([x % 256, y % 256, (x // 2 + y // 2) % 256]).astype(np.uint8)
    for image in (noise(old), extreme(old), ramps):
        found = resize_bilinear(image, *new)
        assert found.shape == (*new, 3)
        np.testing.assert_array_equal(found, plain_resize(image, *new))


def test_resize_is_the_same_in_several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    image = noise((157, 203))
    expected = plain_resize(image, 61, 90)
    for chunk in (1, 700, 5000):
        monkeypatch.setattr(resample, "_CHUNK", chunk)
        np.testing.assert_array_equal(resize_bilinear(image, 61, 90), expected)


@pytest.mark.parametrize("sides", [*SIDES, (8165, 1024), (4000, 1024), (1000, 1024)], ids=str)
def test_the_margin_covers_what_float32_is_off(sides: tuple[int, int]) -> None:
    """The products against sums of integers: what the exact rounding rests on."""
    filters = resample._filters(*sides)
    draw = np.random.default_rng(3)
    lines = np.concatenate(
        [draw.integers(0, 256, (sides[0], 300)), 255 * draw.integers(0, 2, (sides[0], 300))], axis=1
    )
    lines[:, 0] = 255
    exact = np.zeros((sides[1], lines.shape[1]))
    for tap in range(filters.index.shape[1]):
        exact += filters.weight[:, tap, None] * lines[filters.index[:, tap]]
    found = np.concatenate(
        [p.weights @ lines[p.sources].astype(np.float32) for p in filters.products]
    )
    off = np.abs(found.astype(np.float64) - exact / 2**22)
    if filters.margin:
        assert 0 < off.max() < filters.margin
    else:
        assert off[filters.short].max() == 0
        assert filters.short.any()


SAM_SHAPES = [(128, 128), (16, 1024), (1024, 16), (333, 1000), (97, 61), (1000, 999), (20, 20)]


@pytest.mark.parametrize("shape", SAM_SHAPES, ids=str)
@pytest.mark.parametrize("size", [128, 512])
def test_sam_input_is_segment_anythings(
    shape: tuple[int, int], size: int, resize_longest_side: Any
) -> None:
    image, geometry = noise(shape), Geometry(*shape, size)
    padded, valid = sam_input(image, geometry)
    official = resize_longest_side(size)
    assert official.apply_image(image).shape[:2] == geometry.sam_shape
    expected = official.apply_image(image) if PILLOW_13 else pillow(image, *geometry.sam_shape)
    assert padded.shape == (1, size, size, 3)
    assert padded.dtype == np.uint8
    assert valid.dtype == np.int64
    assert tuple(valid) == geometry.sam_shape == expected.shape[:2]
    height, width = expected.shape[:2]
    np.testing.assert_array_equal(padded[0, :height, :width], expected)
    assert not padded[0, height:].any()
    assert not padded[0, :, width:].any()


def test_geometry_is_segment_anythings(resize_longest_side: Any) -> None:
    draw = np.random.default_rng(1)
    for _ in range(200):
        height, width = (int(v) for v in draw.integers(16, 3000, 2))
        official, geometry = resize_longest_side(1024), Geometry(height, width, 1024)
        assert geometry.sam_shape == official.get_preprocess_shape(height, width, 1024)
        points = draw.uniform(0, (width, height), (5, 2))
        expected = official.apply_coords(points, (height, width)).astype(np.float32)
        found = geometry.to_sam(points)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_geometry_keeps_leading_axes() -> None:
    points = np.array([[[10, 20], [30, 40]]], np.float32)
    found = Geometry(100, 200, 1024).to_sam(points)
    assert found.shape == (1, 2, 2)
    np.testing.assert_allclose(found[0, 0], [10 * 5.12, 20 * 5.12], rtol=1e-6)


def ramp(height: int, width: int) -> NDArray[np.uint8]:
    y, x = np.mgrid[0:height, 0:width]
    return np.dstack([x * 9 % 256, y * 11 % 256, (x * y) % 256]).astype(np.uint8)


GOLDEN = {
    "shrink": ((24, 36), 4),
    "enlarge": ((3, 2), 4),
    "mixed": ((2, 20), 4),
}
# Areas checked by hand: the first pixel of "shrink" is the mean of 0, 9, …, 72.
# [size,size] of the first and of the last channel, as the released models were trained with.
GOLDEN_VALUES: dict[str, tuple[list[list[int]], list[list[int]]]] = {
    "shrink": (
        [[36, 117, 198, 80], [36, 117, 198, 80], [36, 117, 198, 80], [36, 117, 198, 80]],
        [[10, 32, 55, 78], [34, 110, 168, 126], [58, 170, 96, 146], [82, 129, 148, 119]],
    ),
    "enlarge": (
        [[0, 2, 7, 10], [0, 2, 7, 10], [0, 2, 7, 10], [0, 2, 7, 10]],
        [[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 2], [0, 0, 2, 2]],
    ),
    "mixed": (
        [[18, 63, 108, 153], [18, 63, 108, 153], [18, 63, 108, 153], [18, 63, 108, 153]],
        [[0, 0, 0, 0], [0, 2, 3, 4], [2, 5, 9, 13], [2, 8, 13, 19]],
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_clip_input_is_golden(name: str) -> None:
    shape, size = GOLDEN[name]
    found = clip_input(ramp(*shape), size)
    first, last = GOLDEN_VALUES[name]
    np.testing.assert_array_equal(found[0, ..., 0], first)
    np.testing.assert_array_equal(found[0, ..., 2], last)


@pytest.mark.parametrize("shape", [(16, 16), (64, 64), (65, 63), (20, 500), (500, 20), (64, 200)])
def test_clip_input_has_its_shape_and_keeps_gray_gray(shape: tuple[int, int]) -> None:
    gray = np.repeat(noise(shape)[..., :1], 3, axis=2)
    found = clip_input(gray, 64)
    assert found.shape == (1, 64, 64, 3)
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous
    assert (found == found[..., :1]).all()


def test_clip_input_of_its_own_size_is_the_image() -> None:
    image = noise((64, 64))
    np.testing.assert_array_equal(clip_input(image, 64)[0], image)
    np.testing.assert_array_equal(clip_input(image[..., ::-1], 64)[0], image[..., ::-1])


def test_clip_input_averages_when_shrinking() -> None:
    """A checkerboard of single pixels is gray from afar: cubic would alias it."""
    y, x = np.mgrid[0:512, 0:512]
    board = np.repeat(((x + y) % 2 * 255).astype(np.uint8)[..., None], 3, axis=2)
    assert np.ptp(clip_input(board, 64)) <= 1
    assert abs(int(clip_input(board, 64).mean()) - 127) <= 1


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("part.png", "not a str: read files with clipsam.runtime.read_image"),
        (None, "not a NoneType"),
        (np.zeros((40, 40), np.uint8), r"uint8\[40, 40\]: repeat a gray channel"),
        (np.zeros((40, 40, 4), np.uint8), r"uint8\[40, 40, 4\].*drop alpha"),
        (np.zeros((3, 40, 40), np.uint8), r"uint8\[3, 40, 40\]"),
        (np.zeros((1, 40, 40, 3), np.uint8), r"uint8\[1, 40, 40, 3\]"),
        (np.zeros((40, 40, 3), np.float32), r"float32\[40, 40, 3\].*scale to 0\.\.255"),
        (np.zeros((15, 40, 3), np.uint8), "The image is 40x15 pixels: at least 16x16"),
        (np.zeros((0, 40, 3), np.uint8), "is 40x0 pixels: at least 16x16"),
        (np.zeros((16, 1025, 3), np.uint8), "over 64 times the other: cut it into pieces"),
    ],
)
def test_images_of_a_wrong_kind_are_refused(image: object, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        check_image(image)


def test_the_smallest_and_thinnest_images_are_accepted() -> None:
    for shape in ((16, 16), (16, 1024), (1024, 16)):
        image = noise(shape)
        assert check_image(image) is image


@pytest.mark.parametrize("name", ["crop", "zoom"])  # sorted before and behind what is known
def test_unknown_preprocessing_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"unknown preprocessing '{name}'"):
        PreprocessOptions(clip=name)
    with pytest.raises(ValueError, match=f"unknown preprocessing 'squash-area-cubic', '{name}'"):
        PreprocessOptions(sam=name)
