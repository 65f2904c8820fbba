"""Looking for an engine of one graph, as the tests of engine files do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from clipsam.runtime import EngineError
from clipsam.runtime.backends.trt.engine_store import Box, read_engine
from clipsam.runtime.core.files import digest_onnx
from support.trt_engines import FAKE_BOX

MODULE = "clipsam.export.build_engines"
COMMAND = f"build it on this box with `python -m {MODULE} --engines-only {{}} --precision"


def find(onnx: Path, box: Box = FAKE_BOX, precision: str = "fp32") -> Path:
    """The engine of the graph at `onnx` for a box."""
    return read_engine(onnx.parent, "clip_umci", precision, digest_onnx(onnx), box).path


def refused(onnx: Path, box: Box = FAKE_BOX, precision: str = "fp32") -> str:
    """The message with which there is no engine; one sentence that names the command."""
    with pytest.raises(EngineError) as caught:
        find(onnx, box, precision)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(f"{COMMAND.format(onnx.parent)} {precision}`.")
    return message


def flip(path: Path, index: int) -> None:
    """Change one bit of a file."""
    data = bytearray(path.read_bytes())
    data[index] ^= 1
    path.write_bytes(data)


def edit(path: Path, **changes: Any) -> None:
    """Change fields of an engine's sidecar."""
    sidecar = path.with_suffix(".json")
    sidecar.write_text(json.dumps({**json.loads(sidecar.read_text()), **changes}))
