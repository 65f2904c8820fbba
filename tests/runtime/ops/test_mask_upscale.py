"""A mask resized only where it can be, against the whole mask resized: the same floats."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from support.plain_host import plain_fuse, plain_upscale

from clipsam.runtime.ops import mask_upscale
from clipsam.runtime.ops.geometry import Geometry
from clipsam.runtime.ops.mask_upscale import upscale_mask
from clipsam.runtime.stages.fusion import fuse
from clipsam.runtime.stages.sam import Masks

Map = NDArray[np.float32]
# Before, IPP's last bit depended on the number of columns; masks are compared all the same.
SAME_BITS = tuple(int(n) for n in cv2.__version__.split(".")[:2]) >= (4, 12)
KINDS = ("smooth", "noise", "sparse", "extreme", "full", "border")

# Of images, for SAM's input of 256 pixels and logits of 64: its own size, multiples and fractions,
# odd sizes, larger and smaller, long and thin.
SHAPES = [
    (256, 256), (256, 192), (100, 256), (512, 512), (1024, 512), (768, 1024), (128, 128),
    (128, 64), (64, 64), (255, 257), (175, 175), (33, 47), (16, 16), (401, 333), (700, 501),
    (16, 1024), (1024, 16), (17, 300), (131, 1003), (129, 256), (511, 128),
]  # fmt: skip


@pytest.fixture(params=["ipp", "opencv"])
def arithmetic(request: pytest.FixtureRequest) -> Iterator[str]:
    """OpenCV with Intel's IPP, which rounds otherwise, and without."""
    before = cv2.ipp.useIPP()
    cv2.ipp.setUseIPP(request.param == "ipp")
    yield request.param
    cv2.ipp.setUseIPP(before)


def make_logits(kind: str, size: int, seed: int) -> Map:
    draw = np.random.default_rng(seed)
    noise = draw.standard_normal((size, size)).astype(np.float32)
    logits = np.full((size, size), -8.0, np.float32)
    top, left = (int(v) for v in draw.integers(0, size - 8, 2))
    inner = np.s_[top : top + int(draw.integers(1, size // 2)), left : left + size // 5]
    if kind == "smooth":  # as SAM gives them: tens, changing by a few a pixel
        blurred = cv2.GaussianBlur(noise, (0, 0), 3)
        logits = np.asarray(blurred / blurred.std() * 8 - 14, np.float32)
    elif kind == "noise":
        logits = noise
    elif kind == "sparse":  # noise around zero in a rectangle
        logits[inner] = noise[inner]
    elif kind == "extreme":
        logits = np.full((size, size), -1e30, np.float32)
        logits[inner] = 1e30
        logits[inner][::2] = 1e-38
    elif kind == "full":
        logits = np.abs(noise)
    elif kind == "border":
        logits[:2, 5:9] = logits[-1:, 30:] = logits[10:30, -1:] = 0.5
        logits[20:22, 0] = 3
    return logits


def whole(logits: Map, geometry: Geometry) -> tuple[NDArray[np.bool_], Map]:
    """The window's mask in the whole image, and its values with NaN around them."""
    mask = np.zeros((geometry.height, geometry.width), np.bool_)
    values = np.full(mask.shape, np.nan, np.float32)
    window = upscale_mask(logits, geometry)
    if window is not None:
        assert window.logits.dtype == np.float32
        assert window.logits.shape == mask[window.rows, window.columns].shape
        mask[window.rows, window.columns] = window.logits > 0
        values[window.rows, window.columns] = window.logits
    return mask, values


@pytest.mark.parametrize("share", [None, 0.0, 3.0], ids=["default", "whole", "strips"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_window_has_the_values_of_the_whole(
    shape: tuple[int, int], share: float | None, arithmetic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if share is not None:
        monkeypatch.setattr(mask_upscale, "WHOLE_SHARE", share)
    geometry = Geometry(*shape, 256)
    for seed, kind in enumerate(KINDS * 2):
        logits = make_logits(kind, 64, seed)
        expected = plain_upscale(logits, geometry)
        mask, values = whole(logits, geometry)
        np.testing.assert_array_equal(mask, expected > 0, err_msg=kind)
        if SAME_BITS or arithmetic == "opencv":
            inside = ~np.isnan(values)
            np.testing.assert_array_equal(values[inside], expected[inside], err_msg=kind)


@pytest.mark.parametrize(
    ("low", "size"), [(256, 1024), (128, 512), (16, 64), (40, 160), (64, 64), (33, 99), (50, 130)]
)
def test_masks_of_other_models_sizes_are_the_plain_ones(
    low: int, size: int, arithmetic: str
) -> None:
    """SAM's own sizes, and ratios of logits to input that no SAM has."""
    draw = np.random.default_rng(low)
    for seed in range(6):
        height, width = (int(v) for v in draw.integers(size // 4, 2 * size, 2))
        geometry = Geometry(height, width, size)
        logits = make_logits(KINDS[seed], low, seed)
        expected = plain_upscale(logits, geometry) > 0
        np.testing.assert_array_equal(whole(logits, geometry)[0], expected)


def test_masks_of_random_sizes_are_the_plain_ones(arithmetic: str) -> None:
    draw = np.random.default_rng(5)
    for seed in range(150):
        height, width = (int(v) for v in draw.integers(16, 400, 2))
        geometry = Geometry(height, width, 128)
        logits = make_logits(KINDS[seed % len(KINDS)], 32, seed)
        expected = plain_upscale(logits, geometry) > 0
        np.testing.assert_array_equal(whole(logits, geometry)[0], expected)


@pytest.mark.parametrize(("height", "width"), [(16, 129), (129, 16), (24, 130), (128, 128)])
def test_masks_whose_one_side_stays_as_it_is_are_the_plain_ones(
    height: int, width: int, arithmetic: str
) -> None:
    """One side of SAM's input is the image's to the pixel, the other is not."""
    geometry = Geometry(height, width, 128)
    assert any(a == b for a, b in zip(geometry.sam_shape, (height, width), strict=True))
    for seed, kind in enumerate(KINDS):
        logits = make_logits(kind, 32, seed)
        expected = plain_upscale(logits, geometry) > 0
        np.testing.assert_array_equal(whole(logits, geometry)[0], expected)


@pytest.mark.parametrize("value", [-1.0, 0.0, -0.0])
def test_nothing_positive_is_no_window(value: float) -> None:
    assert upscale_mask(np.full((64, 64), value, np.float32), Geometry(300, 200, 256)) is None


def test_positive_only_in_the_padding_is_no_window() -> None:
    """An image three times as wide as high leaves two thirds of SAM's input empty."""
    logits = np.full((64, 64), -1.0, np.float32)
    logits[40:] = 1
    assert upscale_mask(logits, Geometry(100, 300, 256)) is None
    logits[21] = 1  # whose interpolation reaches the last row of the image
    assert upscale_mask(logits, Geometry(100, 300, 256)) is not None


def test_a_small_mask_resizes_a_small_window() -> None:
    """What saves the time: a mask of 1 % of the image is resized in not much more."""
    logits = np.full((64, 64), -1.0, np.float32)
    logits[20:26, 30:36] = 1
    for shape in ((256, 256), (1024, 1024), (700, 900)):
        window = upscale_mask(logits, Geometry(*shape, 256))
        assert window is not None
        assert window.logits.size < 0.06 * shape[0] * shape[1]
        scale = max(shape) / 64
        assert window.rows.start < 20 * scale < 26 * scale < window.rows.stop
        assert window.columns.start < 30 * scale < 36 * scale < window.columns.stop


def official(logits: Map, geometry: Geometry) -> Map:
    """segment-anything's `postprocess_masks`: F.interpolate, crop, F.interpolate."""
    torch = pytest.importorskip("torch", reason="PyTorch, the reference, is not installed")
    resize = partial(torch.nn.functional.interpolate, mode="bilinear", align_corners=False)
    size, (height, width) = geometry.sam_size, geometry.sam_shape
    masks = torch.from_numpy(logits)[None, None]
    masks = resize(masks, (size, size))
    masks = resize(masks[..., :height, :width], (geometry.height, geometry.width))
    return np.asarray(masks[0, 0].numpy(), np.float32)


@pytest.mark.parametrize("shape", [(1024, 1024), (700, 700), (900, 1500), (333, 1000), (512, 512)])
def test_masks_are_segment_anythings(shape: tuple[int, int], arithmetic: str) -> None:
    """No pixel differs on smooth logits; on white noise only where PyTorch's own value is rounding.

    PyTorch rounds the position of a pixel to float32 otherwise than OpenCV does: about 1e-4 of a
    step between two logits. A pixel can differ whose logit is as near to zero as that.
    """
    geometry = Geometry(*shape, 1024)
    for seed in range(3):
        logits = make_logits("smooth", 256, seed)
        np.testing.assert_array_equal(whole(logits, geometry)[0], official(logits, geometry) > 0)
    logits = make_logits("noise", 256, 0)
    expected = official(logits, geometry)
    differs = whole(logits, geometry)[0] != (expected > 0)
    assert np.abs(expected[differs]).max(initial=0) < 1e-3
    assert differs.sum() <= 20


@pytest.mark.parametrize("shape", [(256, 256), (300, 200), (128, 128), (90, 333)], ids=str)
def test_the_sum_is_the_plain_sum(shape: tuple[int, int], arithmetic: str) -> None:
    """Eq. 9 to the last bit: float32 sums depend on their order, which has to be the same."""
    geometry = Geometry(*shape, 256)
    draw = np.random.default_rng(1)
    logits = np.stack([make_logits(KINDS[i % 6], 64, i) for i in range(48)])
    logits = logits.reshape(16, 3, 64, 64)
    scores = draw.random((16, 3), np.float32)
    scores[3] = [0.0, -0.25, 1e-8]  # SAM's predicted IoU is not clipped
    rough = draw.random(shape, np.float32)
    before = rough.copy()
    for weight in (1.0, 0.05):
        total = fuse(rough, Masks(logits, scores, geometry), weight)
        np.testing.assert_array_equal(total, plain_fuse(rough, logits, scores, geometry, weight))
        np.testing.assert_array_equal(rough, before)
        assert (total != rough).any()


def test_binary_yields_every_mask_in_order() -> None:
    geometry = Geometry(90, 120, 256)
    logits = np.stack([make_logits(KINDS[i], 64, i) for i in range(6)]).reshape(2, 3, 64, 64)
    logits[0, 1] = -1  # empty, and yielded all the same
    scores = np.arange(6, dtype=np.float32).reshape(2, 3)
    found = list(Masks(logits, scores, geometry).binary())
    assert [score for _, score in found] == [0, 1, 2, 3, 4, 5]
    for (mask, _), one in zip(found, logits.reshape(6, 64, 64), strict=True):
        np.testing.assert_array_equal(mask, plain_upscale(one, geometry) > 0)
    assert len(list(Masks(logits, scores, geometry).windows())) == 5
