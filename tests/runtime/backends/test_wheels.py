"""What an error tells to install fits the machine: its driver, its processor, a Jetson or not."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import pytest

from clipsam.runtime.backends import wheels
from clipsam.runtime.backends.trt.library import import_tensorrt
from clipsam.runtime.backends.wheels import install_advice
from clipsam.runtime.core.errors import ProviderError


@pytest.fixture(autouse=True)
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An x86 server without a driver; returns where the driver would say its version."""
    monkeypatch.setattr(wheels, "DRIVER", tmp_path / "driver")
    monkeypatch.setattr(wheels, "TEGRA", tmp_path / "tegra")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    return tmp_path / "driver"


@pytest.mark.parametrize(
    ("driver", "provider", "extra"),
    [
        ("580.65.06\n", "cuda", "ort-gpu"),
        ("595.10", "tensorrt", "trt"),
        ("579.99", "cuda", "ort-gpu-cu12"),
        ("525.60.13", "cuda", "ort-gpu-cu12"),
        ("570.133.20", "tensorrt", "trt-cu12"),
        ("535.0", "tensorrt", "trt-cu12"),
    ],
)
def test_the_driver_decides_which_wheels(
    server: Path, driver: str, provider: str, extra: str
) -> None:
    server.write_text(driver)
    major = driver.split(".")[0]
    wanted = f"pip install 'clipsam[{extra}]' (this machine's driver is {major})"
    assert install_advice(provider) == wanted


@pytest.mark.parametrize(
    ("driver", "provider", "least"),
    [("524.1", "cuda", 525), ("534.9", "tensorrt", 535), ("470.1", "tensorrt", 535)],
)
def test_a_driver_that_is_too_old_comes_first(
    server: Path, driver: str, provider: str, least: int
) -> None:
    server.write_text(driver)
    assert f"is too old, install {least} or later, then pip install" in install_advice(provider)


@pytest.mark.parametrize("content", [None, "", "unknown"])
def test_without_a_driver_that_tells_both_are_named(server: Path, content: str | None) -> None:
    if content is not None:
        server.write_text(content)
    advice = install_advice("tensorrt")
    assert "'clipsam[trt]' (driver 580 or later)" in advice
    assert "'clipsam[trt-cu12]' (driver 535 or later)" in advice


def test_an_arm_server_gets_its_own_and_a_jetson_none(
    server: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert "clipsam[trt-sbsa]" in install_advice("tensorrt")
    assert "clipsam[ort-gpu]" in install_advice("cuda")
    (server.parent / "tegra").write_text("# R36")
    for provider in ("tensorrt", "cuda"):
        assert "pip install" not in install_advice(provider)
        assert "JetPack's own" in install_advice(provider)


def test_windows_is_refused_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(ProviderError, match=r"is for Linux: on Windows use provider 'cuda' or"):
        import_tensorrt()


def test_every_extra_that_is_named_is_there() -> None:
    tomllib = pytest.importorskip("tomllib")
    project = Path(__file__).resolve().parents[3] / "pyproject.toml"
    extras = tomllib.loads(project.read_text())["project"]["optional-dependencies"]
    named = {extra for of in wheels._EXTRAS.values() for extra in of} | {"trt-sbsa", "ort"}
    assert named <= set(extras)
