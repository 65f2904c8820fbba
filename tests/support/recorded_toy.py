"""The toy bundle in several precisions, with a recording: what engines are built from in tests."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto

from clipsam.export.parity.golden import RECORDED, Recording, write_recording
from clipsam.export.parity.golden_record import make_recording, open_all
from clipsam.runtime.bundle import Bundle
from support.toy_bundle import (
    Node,
    _graphs,
    bright_square,
    build_toy_bundle,
    hashes,
    plain_part,
    write_graph,
)


def record_toy(bundle: Path) -> Recording:
    """What the toy's float32 graphs say."""
    opened = Bundle.open(bundle)
    options = replace(opened.manifest.prompts, threshold=0.5)
    images = {
        "defect": bright_square(),
        "tall": bright_square(200, 90),
        "good": plain_part(),
    }
    asked = [(name, image, "object", options) for name, image in images.items()]
    with open_all(opened, 1) as sessions:
        return make_recording(opened, sessions, asked, asked[:1])


def build_recorded_toy(folder: Path, *precisions: str) -> Path:
    """The toy bundle in fp32 and `precisions`, all of the same graphs, with its recording."""
    bundle = build_toy_bundle(folder)
    path = bundle / "manifest.json"
    values: dict[str, Any] = json.loads(path.read_text())
    for precision in precisions:
        values["variants"][precision] = variant = {}
        for name, entry in values["variants"]["fp32"].items():
            own = "fp16" if (precision, name) == ("int8", "sam_decoder") else precision
            variant[name] = {**entry, "file": f"{name}.{own}.onnx", "precision": own}
            shutil.copy(bundle / f"{name}.onnx", bundle / variant[name]["file"])
    write_recording(bundle / RECORDED, record_toy(bundle))
    path.write_text(json.dumps(values))
    rehash(bundle)
    return bundle


def rehash(bundle: Path) -> None:
    """Let the manifest vouch for the files as they are now."""
    path = bundle / "manifest.json"
    values = json.loads(path.read_text())
    values["files"] = dict(hashes_of_files(bundle).items())
    path.write_text(json.dumps(values))


def hashes_of_files(bundle: Path) -> dict[str, str]:
    engines = bundle / "engines"
    aside = bundle.parent / "engines-aside"
    if engines.exists():
        engines.rename(aside)
    found = hashes(bundle)
    if aside.exists():
        aside.rename(engines)
    return found


def break_normalisation(path: Path) -> None:
    """Replace the toy's encoder by one that normalises in half precision, and overflows there.

    It multiplies the embedding by x / sqrt(x * x), which is 1 for the bright and finite; with x in
    the thousands the square is infinite in half, and the quotient zero: no NaN, only a wrong
    embedding, as SAM's do whose LayerNorm is half.
    """
    inputs, outputs, nodes, constants = _graphs()["sam_encoder"]
    nodes = [(op, ins, "pooled" if out == "embedding" else out, a) for op, ins, out, a in nodes]
    half, full = {"to": TensorProto.FLOAT16}, {"to": TensorProto.FLOAT}
    extra: list[Node] = [
        ("Add", ["pooled", "small"], "positive", {}),
        ("Mul", ["positive", "3000"], "x", {}),
        ("Cast", ["x"], "x16", half),
        ("Mul", ["x16", "x16"], "square", {}),
        ("Sqrt", ["square"], "deviation", {}),
        ("Div", ["x16", "deviation"], "normal", {}),
        ("Cast", ["normal"], "one", full),
        ("Mul", ["pooled", "one"], "embedding", {}),
    ]
    constants = {
        **constants,
        "small": np.float32(0.1).reshape(()),
        "3000": np.float32(3000).reshape(()),
    }
    write_graph(path, inputs, outputs, [*nodes, *extra], constants)
