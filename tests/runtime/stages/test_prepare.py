"""CLIP's and SAM's pictures made by the graph `prepare`: the host's to a grey level, everywhere.

By onnxruntime on the CPU with its binding, which is the one that a GPU uses. Nothing here has run
on a GPU.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from support.toy_bundle import (
    CLIP_SIZE,
    SAM_SIZE,
    add_prepare,
    bright_square,
    build_toy_bundle,
    plain_part,
)

from clipsam.runtime import ClipSAM, InspectOptions
from clipsam.runtime.backends.base import DeviceArray, Feeds, open_session
from clipsam.runtime.core.errors import SessionError
from clipsam.runtime.ops.geometry import Geometry
from clipsam.runtime.stages import prepare as stage
from clipsam.runtime.stages.prepare import Preparer, on_host
from clipsam.runtime.stages.preprocess import clip_input, sam_input

SHAPES = [(120, 160), (64, 128), (128, 128), (40, 30), (700, 90), (50, 333), (301, 407), (1, 1)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = build_toy_bundle(tmp_path_factory.mktemp("prepare") / "toy")
    add_prepare(folder)
    return folder


@pytest.fixture(scope="module")
def host(bundle: Path) -> Iterator[ClipSAM]:
    with ClipSAM.open(bundle, threads=1) as model:
        yield model


@pytest.fixture(scope="module", params=["kept", "copied"])
def device(bundle: Path, request: pytest.FixtureRequest) -> Iterator[ClipSAM]:
    with on_device(bundle, request.param == "kept") as model:
        yield model


@contextmanager
def on_device(
    bundle: Path, keeps: bool, options: InspectOptions | None = None
) -> Iterator[ClipSAM]:
    """A model whose graphs keep their outputs, as a GPU's do, and have `prepare` among them."""
    with ExitStack() as stack:
        model = stack.enter_context(ClipSAM.open(bundle, threads=1))
        prepare = stack.enter_context(open_session(bundle / "prepare.onnx", "cpu", 1))
        sessions = {**model.sessions, "prepare": prepare}
        for session in sessions.values():
            session.keeps = keeps
        yield ClipSAM(model.bundle, sessions, options)


def noise(height: int, width: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng(height)
    return rng.integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_both_pictures_are_the_hosts(device: ClipSAM, shape: tuple[int, int]) -> None:
    image = noise(*shape)
    sessions = device.sessions
    prepared = Preparer(
        sessions["prepare"], sessions["clip_umci"], sessions["sam_encoder"]
    )(image)  # fmt: skip
    frame, _ = sam_input(image, Geometry(*shape, SAM_SIZE))
    for found, expected in ((prepared.clip, clip_input(image, CLIP_SIZE)), (prepared.sam, frame)):
        assert isinstance(found, DeviceArray) == sessions["prepare"].keeps
        off = cv2.absdiff(on_host(found), expected)
        assert off.max() <= 1
    assert np.count_nonzero(off) <= 0.02 * off.size  # SAM's: Pillow's own to nearly all bits


def test_a_crop_of_a_picture_is_taken_as_it_lies_in_memory(device: ClipSAM) -> None:
    image = noise(200, 300)
    sessions = device.sessions
    preparer = Preparer(sessions["prepare"], sessions["clip_umci"], sessions["sam_encoder"])
    view = image[20:150, 30:200]
    np.testing.assert_array_equal(on_host(preparer(view).clip), on_host(preparer(view.copy()).clip))


@pytest.mark.parametrize("shape", [(120, 160), (300, 90), (1000, 1300)], ids=str)
def test_the_verdict_and_its_masks_are_the_hosts(
    device: ClipSAM, host: ClipSAM, shape: tuple[int, int]
) -> None:
    height, width = shape
    box = (width // 3, height // 4, width // 4, height // 3)
    for image in (bright_square(height, width, box), plain_part(height, width)):
        found, expected = device.inspect(image), host.inspect(image)
        assert found.verdict == expected.verdict
        assert found.score == pytest.approx(expected.score, abs=1 / 255)
        both = np.count_nonzero(found.mask & expected.mask)
        assert both >= 0.99 * np.count_nonzero(found.mask | expected.mask)
        assert found.precisions == expected.precisions


@pytest.mark.parametrize("batch", [1, 3])
def test_pictures_of_different_sizes_go_through_a_line(
    device: ClipSAM, host: ClipSAM, batch: int
) -> None:
    images = [bright_square(120 + 31 * i, 160 - 17 * i, (20, 30, 50, 40)) for i in range(5)]
    line = device.inspect_many(images, batch=batch)
    for found, image in zip(line, images, strict=True):
        expected = host.inspect(image)
        assert found.result().verdict == expected.verdict == "anomalous"
        assert found.result().score == pytest.approx(expected.score, abs=1 / 255)
        np.testing.assert_array_equal(found.result().mask, device.inspect(image).mask)


@pytest.mark.parametrize(
    "options",
    [
        InspectOptions(tiles="2x2"),
        InspectOptions(tiles="3x2", zoom="auto"),
        InspectOptions(roi=(100, 50, 700, 500)),
    ],
    ids=["tiles", "tiles and zoom", "roi"],
)
@pytest.mark.parametrize("keeps", [True, False])
def test_tiles_crops_and_parts_of_a_picture_are_the_hosts(
    bundle: Path, options: InspectOptions, keeps: bool
) -> None:
    image = bright_square(600, 900, (300, 200, 60, 50))
    with ClipSAM.open(bundle, threads=1, options=options) as host:
        expected = host.inspect(image)
    with on_device(bundle, keeps, options) as device:
        found = device.inspect(image)
        assert (found.verdict, found.tiles, found.crops) == (
            expected.verdict, expected.tiles, expected.crops,
        )  # fmt: skip
        both = np.count_nonzero(found.mask & expected.mask)
        assert both >= 0.98 * np.count_nonzero(found.mask | expected.mask)


def test_a_picture_beyond_what_engines_take_is_resized_on_the_host(
    device: ClipSAM, host: ClipSAM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "LONGEST", 159)
    monkeypatch.setattr(Preparer, "__call__", None)
    image = bright_square()
    np.testing.assert_array_equal(device.inspect(image).mask, host.inspect(image).mask)


def test_a_region_too_thin_for_sam_is_looked_at_all_the_same(bundle: Path) -> None:
    with on_device(bundle, True, InspectOptions(roi=(10, 0, 2, 700))) as device:
        assert device.inspect(plain_part(700, 90)).verdict in ("good", "not_judged")


def test_warming_up_meets_the_graph(device: ClipSAM) -> None:
    device.warm_up()


def test_a_prepare_that_fails_is_one_pictures_error_while_the_engines_run(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with on_device(bundle, True) as device:
        keep = device.sessions["prepare"].keep

        def fails(feeds: Feeds, wanted: Collection[str] | None = None) -> dict[str, DeviceArray]:
            if gone or feeds["image"].shape[0] == 121:
                raise SessionError("No memory is left.")
            return keep(feeds, wanted)

        gone = False
        monkeypatch.setattr(device.sessions["prepare"], "keep", fails)
        images = [bright_square(), bright_square(121), bright_square()]
        outcomes = [found.outcome for found in device.inspect_many(images)]
        assert [isinstance(o, SessionError) for o in outcomes] == [False, True, False]
        gone = True
        with pytest.raises(SessionError, match="No memory"):
            list(device.inspect_many(images))
