"""The runtime against the oracle, on many images; and the oracle against the paper."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from clipsam.export.graphs.checkpoints import Checkpoints
from clipsam.export.parity.bundle_vs_reference import (
    check_end_to_end,
    check_threshold,
    run_reference,
)
from clipsam.export.parity.inputs import varied_images
from clipsam.research.models.clip import ClipFeatures
from clipsam.research.models.presets import PRESETS, Preset
from clipsam.research.models.reference import Reference, fuse
from clipsam.runtime.bundle import Bundle
from clipsam.runtime.pipeline import ClipSAM

pytestmark = pytest.mark.slow  # exports

IMAGES = 24


def _reference(bundle: Bundle, checkpoints: Checkpoints, preset: Preset) -> Reference:
    clip, umci = checkpoints.load_clip(preset)[0], checkpoints.load_umci(preset)[0]
    features = ClipFeatures(clip.visual, preset.features_list, preset.clip_image_size)
    text = {word: bundle.text(word) for word in ("object", "metal nut", "cookie")}
    manifest = bundle.manifest
    return Reference(
        features,
        umci,
        checkpoints.load_sam(preset)[0],
        text,
        manifest.prompts,
        manifest.fusion.mask_weight,
    )


@pytest.fixture(scope="module", params=["random", "shipped"])
def pair(request: pytest.FixtureRequest, small_preset: Preset) -> tuple[Bundle, Reference]:
    """A bundle, and the reference with the same weights."""
    if request.param == "random":
        folder: Path = request.getfixturevalue("small_bundle")
        checkpoints, preset = Checkpoints(random_seed=1), small_preset
    else:
        folder = request.getfixturevalue("tiny_bundle")
        checkpoints, preset = Checkpoints(), PRESETS["tiny"]
    bundle = Bundle.open(folder)
    return bundle, _reference(bundle, checkpoints, preset)


def test_pipeline_agrees_with_the_reference(pair: tuple[Bundle, Reference]) -> None:
    bundle, reference = pair
    images = list(varied_images(IMAGES, seed=100))
    assert len({image.shape for _, image in images}) >= 8

    # Raises when boxes, a mask, a score, the map or the verdict differ.
    checks = check_end_to_end(bundle, run_reference(reference, images), threads=1)

    assert len(checks) == IMAGES
    assert sum(check.prompts > 0 for check in checks) >= 20
    for check in checks:
        # Of a small mask one rounded pixel is more than a thousandth; of all images, few pixels.
        assert check.mask_iou >= 0.999 or check.flipped <= 16
        assert check.scores <= 1e-4
        assert check.final_map <= 1e-3


def test_maps_agree_without_any_check_of_export(pair: tuple[Bundle, Reference]) -> None:
    """The same, plainly: `inspect` against `inspect` at the bundle's own threshold."""
    bundle, reference = pair
    with ClipSAM.open(bundle, threads=1) as model:
        for _, image in varied_images(3, seed=7):
            found, expected = model.inspect(image, "cookie"), reference.inspect(image, "cookie")
            assert found.prompts == len(expected.prompts)
            difference = np.abs(found.score_map - expected.final)
            # A logit that rounds across zero flips a pixel of a mask's edge, no more.
            assert np.quantile(difference, 0.9999) <= 1e-3


def test_fusion_follows_equation_9() -> None:
    rough = np.array([[0.0, 0.4], [0.8, 1.0]], np.float32)
    masks = np.zeros((2, 3, 2, 2), np.bool_)
    masks[0, 0, 0, 0] = masks[0, 1, 0, 0] = masks[1, 2, 1, 1] = masks[1, 0, 1, 1] = True
    masks[:, :, 1, 1] = True
    scores = np.array([[0.9, 0.5, 0.1], [1.0, 0.8, 0.7]], np.float32)

    final = fuse(rough, masks, scores)

    np.testing.assert_allclose(final, [[0.35, 0.1], [0.2, 1.0]], atol=1e-7)  # 1.25 is cut to 1
    np.testing.assert_array_equal(fuse(rough, masks[:0], scores[:0]), rough / 4)


def test_check_threshold_keeps_away_from_every_value() -> None:
    rough = np.random.default_rng(0).random((50, 60), np.float32) * np.float32(0.3)
    threshold = check_threshold(rough, wanted=0.25)  # exceeded by a sixth of the pixels
    assert abs(threshold - 0.25) < 0.01
    assert np.abs(rough - threshold).min() > 1e-5
    share = float((rough > check_threshold(rough, wanted=0.47)).mean())  # by none
    assert 0.03 < share < 0.07
    assert check_threshold(np.full((8, 8), 0.5, np.float32), 0.47) == 0.5
