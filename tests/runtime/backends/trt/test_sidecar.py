"""Sidecars: what is written is read, and anything else is refused."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import pytest
from support.session_graph import make_graph
from support.trt_engines import FAKE_BOX, make_sidecar

from clipsam.runtime.backends.trt.sidecar import (
    BuildFlags,
    Sidecar,
    SidecarError,
    this_platform,
    version_numbers,
)


@pytest.fixture
def onnx(tmp_path: Path) -> Path:
    return make_graph(tmp_path, "clip_umci.onnx")


def test_version_numbers_are_parsed_for_comparison() -> None:
    assert version_numbers("10.13.3.9") == (10, 13, 3, 9)
    assert version_numbers("10.0.0b6") == (10, 0, 0)
    with pytest.raises(ValueError, match="'' is not a version"):
        version_numbers("")


def test_a_sidecar_survives_json(onnx: Path) -> None:
    sidecar = make_sidecar(
        onnx,
        b"plan",
        flags=BuildFlags(5, 1 << 30, True),
        gate={"rough": {"max_abs": 1e-3}},
    )
    assert Sidecar.from_json(sidecar.to_json()) == sidecar
    assert sidecar.platform == this_platform()
    assert this_platform() == f"{platform.system()}-{platform.machine()}".lower()
    assert json.loads(sidecar.to_json())["inputs"][0] == {
        "name": "left",
        "dtype": "float32",
        "shape": ["n", 3],
    }


WRONG: dict[str, dict[str, Any]] = {
    "unknown field x": {"x": 1},
    "gpu is not text": {"gpu": 5},
    "is not a version": {"tensorrt": "ten"},
    "is not a list of sizes": {"compute_capability": "89"},
    "not enough values": {"compute_capability": [8]},
    "too many values": {"compute_capability": [8, 9, 0]},
    "engine_size is not a number": {"engine_size": "12"},
    "unknown field hardware_compatibility": {"flags": {"hardware_compatibility": "none"}},
    "gate is not a mapping": {"gate": [1]},
    "no attribute 'items'": {"profiles": []},
    "no field opt": {"profiles": {"left": {"min": [1], "max": [1]}}},
    "is not a shape": {"inputs": [{"name": "left", "dtype": "float32", "shape": [1.5]}]},
    "the name or dtype": {"inputs": [{"name": 1, "dtype": "float32", "shape": [1]}]},
    "is not iterable": {"outputs": 5},
    "unknown field strange": {"inputs": [{"strange": 1}]},
}


@pytest.mark.parametrize("message", WRONG)
def test_a_wrong_sidecar_is_refused(onnx: Path, message: str) -> None:
    values = json.loads(make_sidecar(onnx, b"plan").to_json())
    changes = WRONG[message]
    if "flags" in changes:
        changes = {"flags": {**values["flags"], **changes["flags"]}}
    with pytest.raises(SidecarError, match=message):
        Sidecar.from_json(json.dumps({**values, **changes}))


@pytest.mark.parametrize("field", ["graph", "flags", "inputs", "engine_sha256", "platform"])
def test_a_sidecar_that_leaves_something_out(onnx: Path, field: str) -> None:
    values = json.loads(make_sidecar(onnx, b"plan").to_json())
    del values[field]
    with pytest.raises(SidecarError, match=f"no field {field}"):
        Sidecar.from_json(json.dumps(values))


JUNK: list[Any] = [None, True, -1, 0, 1.5, float("nan"), "", "x", [], [1], [[]], {}, {"x": 1}]


def _places(values: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value within a JSON value."""
    items = values.items() if isinstance(values, dict) else enumerate(values)
    found = []
    for key, value in items:
        found.append((*path, key))
        if isinstance(value, dict | list):
            found += _places(value, (*path, key))
    return found


def test_any_value_anywhere_is_read_or_refused(onnx: Path) -> None:
    """Nothing in a sidecar raises anything but SidecarError, and what is read can be used."""
    text = make_sidecar(onnx, b"plan").to_json()
    refused = 0
    for place in _places(json.loads(text)):
        for junk in JUNK:
            values = at = json.loads(text)
            for key in place[:-1]:
                at = at[key]
            at[place[-1]] = junk
            try:
                sidecar = Sidecar.from_json(json.dumps(values))
            except SidecarError:
                refused += 1
                continue
            FAKE_BOX.misfit(sidecar)
            Sidecar.from_json(sidecar.to_json())
    assert refused > 300
