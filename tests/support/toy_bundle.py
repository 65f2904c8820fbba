"""A bundle without a model: three hand-made graphs that keep the contract, built in a moment.

`clip_umci` calls the brightness of the image its rough map (times the abnormal text feature, so
that the category matters), and colours its tokens; `sam_encoder` averages blocks; `sam_decoder`
keeps what is bright within each prompt's box. A bright square on dark ground is therefore a defect
that both stages find, and every test of the runtime runs the whole pipeline without torch.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from clipsam.export.graphs.prepare import write_prepare
from clipsam.runtime.backends.base import TensorSpec, open_session
from clipsam.runtime.bundle import (
    NAMING,
    TEXT_FEATURES,
    Bundle,
    GraphEntry,
    Manifest,
    write_manifest,
    write_naming,
    write_text_features,
)
from clipsam.runtime.core.files import sha256
from clipsam.runtime.stages.naming import NamingHead

CLIP_SIZE, SAM_SIZE, TEXT_SIZE, CHANNELS = 64, 128, 4, 3
PATCH = 8
TOKENS = (CLIP_SIZE // PATCH) ** 2
EMBEDDING, LOW = SAM_SIZE // 8, SAM_SIZE // 4
SCORES = (0.9, 0.8, 0.7)
# Category -> its abnormal text feature, which the toy multiplies brightness with.
CATEGORIES = {"object": 1.0, "metal nut": 0.9, "bottle": 0.8, "nothing": 0.0}

_TYPES = {
    "uint8": TensorProto.UINT8,
    "int64": TensorProto.INT64,
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
}
Node = tuple[str, list[str], str, dict[str, Any]]


def plain_part(height: int = 120, width: int = 160, level: int = 30) -> NDArray[np.uint8]:
    """A good part HxWx3: dark, with stripes that no model sees; a flat one is not judged."""
    image = np.full((height, width, 3), level, np.uint8)
    image[:, np.arange(width) // 8 % 2 == 1] += 4
    return image


def bright_square(
    height: int = 120,
    width: int = 160,
    box: tuple[int, int, int, int] = (40, 30, 50, 40),
    bright: int = 250,
) -> NDArray[np.uint8]:
    """A dark RGB image with a bright rectangle `box` (x, y, width, height): the toy's defect."""
    image = np.full((height, width, 3), 30, np.uint8)
    x, y, w, h = box
    image[y : y + h, x : x + w] = bright
    return image


def build_toy_bundle(folder: Path, **overrides: Any) -> Path:
    """Write the bundle into `folder`; `overrides` replace fields of its Manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    graphs = {}
    for name, (inputs, outputs, nodes, constants) in _graphs().items():
        write_graph(folder / f"{name}.onnx", inputs, outputs, nodes, constants)
        graphs[name] = GraphEntry(f"{name}.onnx", inputs, outputs)
    features = np.zeros((len(CATEGORIES), TEXT_SIZE, 2), np.float32)
    features[:, :, 1] = np.array(list(CATEGORIES.values()), np.float32)[:, None]
    write_text_features(folder / TEXT_FEATURES, tuple(CATEGORIES), features)
    (folder / "parity.json").write_text("{}\n")
    fields = {
        "name": "toy",
        "variants": {"fp32": graphs},
        "files": hashes(folder),
        "categories": tuple(CATEGORIES),
        "provenance": {"checkpoints": {"clip": "none"}, "opset": 20},
        "parity": {"clip_umci": {"max_abs": 0.0}},
        **overrides,
    }
    write_manifest(folder, Manifest(**fields))
    return folder


def add_prepare(folder: Path) -> Path:
    """Give the toy bundle in `folder` the graph that resizes pictures; returns its file."""
    path = folder / "prepare.onnx"
    write_prepare(path, CLIP_SIZE, SAM_SIZE, 20)
    with open_session(path, "cpu", 1) as session:
        specs = tuple(session.inputs.values()), tuple(session.outputs.values())
    entry = GraphEntry(path.name, *specs)
    manifest = Bundle.open(folder, verify=False).manifest
    write_manifest(folder, replace(manifest, prepare=entry, files=hashes(folder)))
    return path


# What names the toy's regions: the colour of their tokens.
YELLOW, CYAN, MAGENTA = (250, 250, 100), (100, 250, 250), (250, 100, 250)
WORDS = {"scratch": YELLOW, "printed text": CYAN}


def add_naming(folder: Path) -> Path:
    """Let the toy in `folder` call yellow a scratch and cyan printed text; magenta is unknown."""
    colours = np.array([*WORDS.values(), MAGENTA], np.float32)
    colours -= colours.mean(axis=1, keepdims=True)
    features = np.zeros((len(colours), TEXT_SIZE), np.float32)
    features[:, :3] = colours / np.linalg.norm(colours, axis=1, keepdims=True)
    layer = (np.eye(3, TEXT_SIZE, dtype=np.float32), np.zeros(TEXT_SIZE, np.float32))
    head = NamingHead([layer], [], features[-1], 0.0, 10.0)
    write_naming(folder / NAMING, list(WORDS), features[:-1], head)
    manifest = Manifest.from_json((folder / "manifest.json").read_bytes())
    write_manifest(folder, replace(manifest, files=hashes(folder)))
    return folder


def coloured_squares(*colours: tuple[int, int, int]) -> NDArray[np.uint8]:
    """A dark RGB image 128x256 with a square of each colour, from left to right, 40 pixels wide."""
    image = np.full((128, 256, 3), 30, np.uint8)
    for number, colour in enumerate(colours):
        image[40:80, 20 + 80 * number : 60 + 80 * number] = colour
    return image


def hashes(folder: Path) -> dict[str, str]:
    """sha256 of every file of a bundle but its manifest."""
    return {p.name: sha256(p) for p in sorted(folder.iterdir()) if p.name != "manifest.json"}


def write_graph(
    path: Path,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    nodes: list[Node],
    constants: dict[str, NDArray[Any]],
) -> None:
    """Write an ONNX graph; each node is (operator, inputs, output, attributes)."""
    graph = helper.make_graph(
        [helper.make_node(op, ins, [out], **attributes) for op, ins, out, attributes in nodes],
        path.stem,
        [_value(spec) for spec in inputs],
        [_value(spec) for spec in outputs],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString())


def _value(spec: TensorSpec) -> Any:
    return helper.make_tensor_value_info(spec.name, _TYPES[spec.dtype], list(spec.shape))


def _graphs() -> dict[str, tuple[Any, Any, list[Node], dict[str, NDArray[Any]]]]:
    s, d, c, e = CLIP_SIZE, SAM_SIZE, CHANNELS, EMBEDDING
    embedding = TensorSpec("embedding", "float32", (1, c, e, e))
    return {
        "clip_umci": (
            (
                TensorSpec("image", "uint8", ("batch", s, s, 3)),
                TensorSpec("text", "float32", ("batch", TEXT_SIZE, 2)),
            ),
            (
                TensorSpec("rough", "float32", ("batch", s, s)),
                TensorSpec("tokens", "float16", ("batch", TOKENS, 3)),
            ),
            [
                ("Cast", ["image"], "f", {"to": TensorProto.FLOAT}),
                ("Div", ["f", "255"], "unit", {}),
                ("ReduceMean", ["unit", "last"], "grey", {"keepdims": 0}),
                ("Gather", ["text", "one"], "abnormal", {"axis": 2}),
                ("ReduceMean", ["abnormal", "first"], "weight", {"keepdims": 1}),
                ("Unsqueeze", ["weight", "two"], "w", {}),
                ("Mul", ["grey", "w"], "rough", {}),
                ("Transpose", ["unit"], "chw", {"perm": [0, 3, 1, 2]}),
                (
                    "AveragePool",
                    ["chw"],
                    "cells",
                    {"kernel_shape": [PATCH] * 2, "strides": [PATCH] * 2},
                ),
                ("Reshape", ["cells", "0ct"], "columns", {}),
                ("Transpose", ["columns"], "colours", {"perm": [0, 2, 1]}),
                ("ReduceL2", ["colours", "two"], "lengths", {"keepdims": 1}),
                ("Max", ["lengths", "tenth"], "length", {}),
                ("Div", ["colours", "length"], "tokens32", {}),
                ("Cast", ["tokens32"], "tokens", {"to": TensorProto.FLOAT16}),
            ],
            {
                "255": np.float32(255).reshape(()),
                "last": np.array([3]),
                "first": np.array([1]),
                "one": np.array(1),
                "two": np.array([2]),
                "0ct": np.array([0, 3, TOKENS]),
                "tenth": np.float32(0.1).reshape(()),
            },
        ),
        "sam_encoder": (
            (
                TensorSpec("image", "uint8", (1, d, d, 3)),
                TensorSpec("valid_size", "int64", (2,)),
            ),
            (embedding,),
            [
                ("Cast", ["image"], "f", {"to": TensorProto.FLOAT}),
                ("Div", ["f", "255"], "unit", {}),
                ("Transpose", ["unit"], "chw", {"perm": [0, 3, 1, 2]}),
                ("AveragePool", ["chw"], "embedding", {"kernel_shape": [8, 8], "strides": [8, 8]}),
            ],
            {"255": np.float32(255).reshape(())},
        ),
        "sam_decoder": _decoder(embedding),
    }


def _decoder(embedding: TensorSpec) -> tuple[Any, Any, list[Node], dict[str, NDArray[Any]]]:
    """Logit of a pixel: the least of its distances to the box's sides and 40 (brightness - 0.5)."""
    centres = ((np.arange(LOW) + 0.5) * SAM_SIZE / LOW - 0.5).astype(np.float32)
    nodes: list[Node] = [
        ("Gather", ["point_coords", "corner0"], "low", {"axis": 1}),  # [Q,2]: the box's corners
        ("Gather", ["point_coords", "corner1"], "high", {"axis": 1}),
        ("Resize", ["embedding", "", "zoom"], "big", {"mode": "nearest"}),
        ("ReduceMean", ["big", "channel"], "grey", {"keepdims": 1}),  # [1,1,LOW,LOW]
        ("Sub", ["grey", "half"], "bright", {}),
        ("Mul", ["bright", "forty"], "m4", {}),
    ]
    for side, (corner, axis) in enumerate((("low", 0), ("high", 0), ("low", 1), ("high", 1))):
        grid = "x" if axis == 0 else "y"
        order = [grid, f"c{side}"] if corner == "low" else [f"c{side}", grid]
        nodes += [
            ("Gather", [corner, f"a{axis}"], f"g{side}", {"axis": 1}),
            ("Reshape", [f"g{side}", "q111"], f"c{side}", {}),
            ("Sub", order, f"m{side}", {}),
        ]
    nodes += [
        ("Min", [f"m{i}" for i in range(5)], "inside", {}),
        ("Add", ["inside", "margins"], "logits", {}),
        ("ReduceSum", ["point_labels", "channel"], "labels", {"keepdims": 1}),
        ("Mul", ["labels", "zero"], "none", {}),
        ("Add", ["none", "quality"], "scores", {}),
    ]
    constants = {
        "corner0": np.array(-2),
        "corner1": np.array(-1),
        "a0": np.array(0),
        "a1": np.array(1),
        "zoom": np.array([1, 1, LOW / EMBEDDING, LOW / EMBEDDING], np.float32),
        "channel": np.array([1]),
        "half": np.float32(0.5).reshape(()),
        "forty": np.float32(40).reshape(()),
        "zero": np.float32(0).reshape(()),
        "q111": np.array([-1, 1, 1, 1]),
        "x": centres.reshape(1, 1, 1, -1),
        "y": centres.reshape(1, 1, -1, 1),
        "margins": np.array([2, 4, 1], np.float32).reshape(1, 3, 1, 1),
        "quality": np.array([SCORES], np.float32),
    }
    inputs = (
        embedding,
        TensorSpec("point_coords", "float32", ("prompts", "points", 2)),
        TensorSpec("point_labels", "float32", ("prompts", "points")),
    )
    outputs = (
        TensorSpec("logits", "float32", ("prompts", 3, LOW, LOW)),
        TensorSpec("scores", "float32", ("prompts", 3)),
    )
    return inputs, outputs, nodes, constants
