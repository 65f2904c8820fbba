"""`naming.npz` with a head that looks at tokens and at pixels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.toy_bundle import add_naming, build_toy_bundle

from clipsam.runtime.bundle import NAMING, Bundle
from clipsam.runtime.core.errors import BundleError
from clipsam.runtime.naming_file import read_naming, write_naming
from clipsam.runtime.stages.closeup import CHANNELS
from clipsam.runtime.stages.naming import PLACE, SHAPE, Layers, NamingHead

DRAW = np.random.default_rng(0)


def layers(*sizes: tuple[int, int]) -> Layers:
    return [
        (DRAW.normal(size=size).astype(np.float32), DRAW.normal(size=size[1]).astype(np.float32))
        for size in sizes
    ]


@pytest.fixture(scope="module")
def toy_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = add_naming(build_toy_bundle(tmp_path_factory.mktemp("heads") / "bundle"))
    return Bundle.open(folder)


def head(bundle: Bundle, channels: int = CHANNELS, convolutions: bool = True) -> NamingHead:
    """A head for the toy's tokens, whose close-ups have `channels`."""
    width = bundle.manifest.graphs["clip_umci"].output("tokens").shape[2]
    assert isinstance(width, int)
    text = bundle.manifest.text_size
    closeup = layers((9 * channels, 4), (9 * 4, 5)) if convolutions else []
    pooled = 2 * width + 3 * 7 + SHAPE + 2 * 5 * convolutions
    return NamingHead(
        layers((width + PLACE, 7)), layers((pooled, 8), (8, text)),
        DRAW.normal(size=text).astype(np.float32), 0.1, 9.0, closeup,
    )  # fmt: skip


@pytest.mark.parametrize("convolutions", [True, False])
def test_a_head_comes_back_as_it_was_written(
    toy_bundle: Bundle, tmp_path: Path, convolutions: bool
) -> None:
    written = head(toy_bundle, convolutions=convolutions)
    assert toy_bundle.namer is not None
    write_naming(tmp_path / NAMING, toy_bundle.namer.words, toy_bundle.namer.features, written)
    read = read_naming(tmp_path / NAMING, toy_bundle.manifest).head
    for name in ("token", "pooled", "closeup"):
        pairs = zip(getattr(read, name), getattr(written, name), strict=True)
        for found, wanted in pairs:
            np.testing.assert_array_equal(found[0], wanted[0])
            np.testing.assert_array_equal(found[1], wanted[1])
    assert read.margin == pytest.approx(0.1)
    assert read.scale == 9


def test_a_head_for_other_close_ups_is_refused(toy_bundle: Bundle, tmp_path: Path) -> None:
    assert toy_bundle.namer is not None
    right = head(toy_bundle)
    without_window = [(right.closeup[0][0][:CHANNELS], right.closeup[0][1]), right.closeup[1]]
    for other in (
        head(toy_bundle, channels=CHANNELS - 1),
        replace(right, closeup=without_window),
    ):
        write_naming(tmp_path / NAMING, toy_bundle.namer.words, toy_bundle.namer.features, other)
        with pytest.raises(BundleError, match="closeup_0 is float32"):
            read_naming(tmp_path / NAMING, toy_bundle.manifest)


def test_a_head_that_halves_close_ups_away_is_refused(toy_bundle: Bundle, tmp_path: Path) -> None:
    """Each convolution that widens comes after a halving, and 40 pixels have few."""
    assert toy_bundle.namer is not None
    right = head(toy_bundle)
    wider = layers((9 * 5, 6), (9 * 6, 7), (9 * 7, 5))
    deep = replace(right, closeup=[*right.closeup, *wider])
    write_naming(tmp_path / NAMING, toy_bundle.namer.words, toy_bundle.namer.features, deep)
    with pytest.raises(BundleError, match="halved more than 3 times"):
        read_naming(tmp_path / NAMING, toy_bundle.manifest)
