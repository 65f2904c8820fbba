from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.service import Service, serving, until
from support.toy_bundle import build_toy_bundle

from clipsam.runtime.images.reader import decode_image
from clipsam.runtime.pipeline import ClipSAM
from clipsam.runtime.service import judge as judge_module
from clipsam.runtime.station.store import Store


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_toy_bundle(tmp_path_factory.mktemp("toy") / "bundle")


@pytest.fixture(scope="module")
def model(toy: Path) -> Iterator[ClipSAM]:
    with ClipSAM.open(toy, threads=1) as model:
        yield model


@pytest.fixture(scope="module")
def service(model: ClipSAM, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One with a store, for tests that leave it as it is."""
    with (
        Store(tmp_path_factory.mktemp("line") / "line.db", create=True) as store,
        serving(model, store) as running,
    ):
        yield running


class Gate:
    """Holds every picture before it is decoded, until it is opened."""

    def __init__(self) -> None:
        self.arrived, self._open = 0, threading.Event()

    def open(self) -> None:
        self._open.set()

    def wait_for(self, count: int) -> None:
        until(lambda: self.arrived >= count)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate, decode = Gate(), decode_image

    def held(*args: Any) -> Any:
        gate.arrived += 1
        assert gate._open.wait(60)
        return decode(*args)

    monkeypatch.setattr(judge_module, "decode_image", held)
    yield gate
    gate.open()
