"""A toy bundle, and stand-ins for TensorRT and CUDA that build engines of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.engine_toy import Fake, break_encoder, fake_workshop
from support.golden_toy import build_golden_toy


@pytest.fixture
def fake() -> Iterator[Fake]:
    with fake_workshop() as libraries:
        yield libraries


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return build_golden_toy(tmp_path / "bundle", "fp16", "int8")


@pytest.fixture
def broken(bundle: Path) -> Path:
    """The bundle with an fp16 encoder that overflows in its normalisation."""
    break_encoder(bundle)
    return bundle
