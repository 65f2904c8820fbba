"""What tests of the runtime share: the toy bundle, `clipsam inspect` on it, a tree of images."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.cli_run import Run, make_images, runner
from support.toy_bundle import build_toy_bundle


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_toy_bundle(tmp_path_factory.mktemp("toy") / "bundle")


@pytest.fixture
def run(toy: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    return runner(toy, capfd)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return make_images(tmp_path / "images")
