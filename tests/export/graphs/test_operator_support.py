"""Every graph in every precision uses what TensorRT's ONNX parser documents, and nothing else.

Source: `docs/operators.md` of NVIDIA's onnx-tensorrt, as of TensorRT 10.15 (opset 9 to 24). The
table below holds the operators that the graphs rely on; a new one fails until it was looked up.
This says what is documented. Whether an engine builds is for a machine with TensorRT. Precisions
made for another provider are exempt.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

from clipsam.export.graphs.checkpoints import Checkpoints
from clipsam.export.graphs.onnx_export import BF16_OPSET, OPSETS, export_graph
from clipsam.export.graphs.sources import GraphSource, graph_sources
from clipsam.export.parity.inputs import image_cases, varied_images
from clipsam.export.quantization.half import DTYPES, HalfPrecision
from clipsam.export.quantization.static_int8 import quantize
from clipsam.research.models.clip import ClipFeatures
from clipsam.research.models.presets import PRESETS, Preset, SamConfig
from clipsam.research.models.umci import UMCIConfig, UMCIStages
from clipsam.runtime.backends.precision import PRECISIONS
from clipsam.runtime.backends.providers import can_run
from clipsam.runtime.bundle import GRAPHS

pytestmark = pytest.mark.slow  # exports

OPSET_RANGE = (9, 24)
TYPES = {"FLOAT", "FLOAT16", "BFLOAT16", "INT32", "INT64", "INT8", "UINT8", "BOOL"}

_F = frozenset({"FLOAT", "FLOAT16", "BFLOAT16"})
_FI = _F | {"INT32", "INT64"}
_FIB = _FI | {"BOOL"}

# Operator -> types of its first input. Restrictions are in `_restrictions`.
SUPPORTED: dict[str, frozenset[str]] = {
    "Add": _FI, "Attention": _F, "AveragePool": _F, "Cast": _FIB | {"UINT8"}, "Clip": _F,
    "Concat": _FIB, "Conv": _F, "ConvTranspose": _F, "Cos": _F,
    "DequantizeLinear": frozenset({"INT8"}), "Div": _FI,
    "Einsum": _F, "Equal": _FI, "Expand": _FIB, "Gather": _FIB, "Gelu": _F, "Gemm": _F,
    "InstanceNormalization": _F, "LayerNormalization": _F, "Less": _FI, "MatMul": _F, "Mul": _FI,
    "Not": frozenset({"BOOL"}), "Pad": _FI, "Pow": _FI, "QuantizeLinear": _F, "ReduceL2": _FI,
    "ReduceMean": _FI, "ReduceSum": _FI, "Relu": _FI, "Reshape": _FIB, "Resize": _F, "Shape": _FIB,
    "Sigmoid": _F, "Sin": _F, "Slice": _FIB, "Softmax": _F, "Split": _FIB, "Sqrt": _F,
    "Squeeze": _FIB, "Sub": _FI, "Tanh": _F, "Transpose": _FIB, "Unsqueeze": _FIB,
}  # fmt: skip

_RESIZE: dict[str, set[Any]] = {
    "mode": {"nearest", "linear"},
    "coordinate_transformation_mode": {
        "half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric", "align_corners",
    },
    "nearest_mode": {"floor", "ceil", "round_prefer_floor", "round_prefer_ceil"},
    "keep_aspect_ratio_policy": {"stretch"},
    "antialias": {0},
}  # fmt: skip


# --- the audit ----------------------------------------------------------------------------------


def audit(model: onnx.ModelProto) -> list[str]:
    """What of a graph is not within the documented support; empty when all is."""
    found = [
        f"operators of {o.domain}" for o in model.opset_import if o.domain not in ("", "ai.onnx")
    ]
    opset = {o.domain: o.version for o in model.opset_import}[""]
    if not OPSET_RANGE[0] <= opset <= OPSET_RANGE[1]:
        found.append(f"opset {opset}")
    found += [f"function {function.name}" for function in model.functions]

    try:
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    except onnx.shape_inference.InferenceError as error:
        found.append(str(error))
    graph = onnx.shape_inference.infer_shapes(model).graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    types = {name: TensorProto.DataType.Name(t.data_type) for name, t in constants.items()}
    ranks = {name: len(tensor.dims) for name, tensor in constants.items()}
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        types[value.name] = TensorProto.DataType.Name(tensor.elem_type)
        ranks[value.name] = len(tensor.shape.dim)
    found += [f"{name}: {kind}" for name, kind in types.items() if kind not in TYPES]
    for node in graph.node:
        if node.op_type not in SUPPORTED or node.domain not in ("", "ai.onnx"):
            found.append(f"{node.name}: operator {node.domain}{node.op_type}")
            continue
        kind = types.get(node.input[0], "unknown")
        if kind not in SUPPORTED[node.op_type]:
            found.append(f"{node.name}: {node.op_type} of {kind}")
        found += [f"{node.name}: {problem}" for problem in _restrictions(node, constants, ranks)]
    return found


def _restrictions(
    node: NodeProto, constants: Mapping[str, TensorProto], ranks: Mapping[str, int]
) -> Iterator[str]:
    attributes: dict[str, Any] = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    names = list(node.input)
    if node.op_type == "Resize":
        for name, allowed in _RESIZE.items():
            value = attributes.get(name, next(iter(allowed)))
            value = value.decode() if isinstance(value, bytes) else value
            if value not in allowed:
                yield f"Resize with {name} {value}"
    elif node.op_type == "Attention":
        if any(ranks.get(name) != 4 for name in names[:4]):
            yield "Attention on other than four axes"
        if any(names[4:]) or len(node.output) > 1:
            yield "Attention with past or present"
        if attributes.get("softcap") or attributes.get("qk_matmul_output_mode"):
            yield "Attention with softcap or qk_matmul_output_mode"
    elif node.op_type == "AveragePool" and len(attributes["kernel_shape"]) not in (2, 3):
        yield "AveragePool over other than two or three axes"
    elif node.op_type == "LayerNormalization" and len(node.output) > 1:
        yield "LayerNormalization with more than one output"
    elif node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        if names[1] not in constants:
            yield f"{node.op_type} with a scale that is not constant"
        zeros = numpy_helper.to_array(constants[names[2]]) if len(names) > 2 else np.zeros(1)
        if zeros.any():
            yield f"{node.op_type} with a zero point"
    elif node.op_type.startswith("Reduce") or node.op_type in ("Squeeze", "Unsqueeze"):
        if len(names) > 1 and names[1] not in constants:
            yield f"{node.op_type} with axes that are not constant"
    elif node.op_type == "Einsum" and b"..." in attributes["equation"]:
        yield "Einsum with an ellipsis"


# --- what is audited ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Models:
    """A CLIP with UMCI and a SAM, small, with everything that the preset they stand for has."""

    preset: Preset
    clip: Callable[[], CLIP]


def _linear_clip() -> CLIP:
    """As OpenAI's: linear patches and QuickGELU."""
    vision = CLIPVisionCfg(layers=2, width=64, head_width=32, patch_size=14, image_size=112)
    text = CLIPTextCfg(context_length=77, vocab_size=100, width=32, heads=2, layers=1)
    return CLIP(embed_dim=32, vision_cfg=vision, text_cfg=text, quick_gelu=True).eval()


_SAM = SamConfig(
    image_size=256, dim=32, depth=2, heads=2, global_blocks=(1,), window=6, prompt_dim=64,
    mlp_dim=64, unet_width=32,
)  # fmt: skip
MODELS = {
    "paper": Models(
        replace(
            PRESETS["paper"],
            clip_image_size=112,
            features_list=(1, 2),
            sam=replace(_SAM, unet_width=0),
            umci=UMCIConfig(visual_dim=64, text_dim=32, hidden_dim=32, stages=2),
        ),
        _linear_clip,
    ),
    "tiny": Models(
        replace(PRESETS["tiny"], sam=_SAM, umci=replace(PRESETS["tiny"].umci, hidden_dim=32)),
        lambda: Checkpoints(random_seed=3).load_clip(PRESETS["tiny"])[0],
    ),
}


def _sources(name: str, attention: str = "stock") -> dict[str, GraphSource]:
    models = MODELS[name]
    preset = models.preset
    features = ClipFeatures(models.clip().visual, preset.features_list, preset.clip_image_size)
    sam = Checkpoints(random_seed=3).load_sam(preset)[0]
    text = np.random.default_rng(0).normal(size=(1, preset.umci.text_dim, 2)).astype(np.float32)
    digests = dict.fromkeys(("clip", "umci", "sam"), "")
    umci = UMCIStages(preset.umci)
    sources = graph_sources(preset, features, umci, sam, text, digests, attention)
    return {source.name: source for source in sources}


CASES = [
    *itertools.product(["paper"], ["stock"], GRAPHS, ["fp32", "fp16"], OPSETS),
    *itertools.product(["paper"], ["stock"], GRAPHS, ["bf16"], [BF16_OPSET, OPSETS[-1]]),
    *itertools.product(["paper"], ["mask", "mask-free"], ["sam_encoder"], ["fp16"], OPSETS),
    *itertools.product(["paper"], ["blocked"], ["sam_encoder"], ["fp32", "fp16"], [OPSETS[0]]),
    *itertools.product(["tiny"], ["stock"], ["clip_umci", "sam_encoder"], ["fp32", "fp16"], [20]),
]


@pytest.fixture(scope="module")
def sources() -> Callable[[str, str], dict[str, GraphSource]]:
    known: dict[tuple[str, str], dict[str, GraphSource]] = {}

    def get(name: str, attention: str) -> dict[str, GraphSource]:
        if (name, attention) not in known:
            known[name, attention] = _sources(name, attention)
        return known[name, attention]

    return get


def test_every_precision_for_tensorrt_is_audited() -> None:
    """int8 has its own test below; int8-dynamic is for ONNX Runtime on a CPU, and TensorRT has none
    of its operators, which is why it is exempt."""
    audited = {precision for _, _, _, precision, _ in CASES} | {"int8"}
    assert audited == {p for p in PRECISIONS if can_run("tensorrt", p)}
    assert not {"DynamicQuantizeLinear", "MatMulInteger"} & set(SUPPORTED)


def _export(source: GraphSource, precision: str, opset: int, path: Path) -> onnx.ModelProto:
    module = source.module
    if precision in DTYPES:
        module = HalfPrecision(module, precision, fused_attention=opset >= 23)
    export_graph(module, source.example, source.axes, GRAPHS[source.name][1], path, opset)
    return onnx.load(path)


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_every_graph_stays_within_documented_support(
    case: tuple[str, str, str, str, int],
    sources: Callable[[str, str], dict[str, GraphSource]],
    tmp_path: Path,
) -> None:
    models, attention, graph, precision, opset = case
    model = _export(sources(models, attention)[graph], precision, opset, tmp_path / "graph.onnx")
    assert audit(model) == []


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("graph", ["clip_umci", "sam_encoder"])
def test_int8_graphs_stay_within_documented_support(
    graph: str,
    opset: int,
    sources: Callable[[str, str], dict[str, GraphSource]],
    tmp_path: Path,
) -> None:
    source = sources("paper", "stock")[graph]
    _export(source, "fp16", opset, tmp_path / "base.onnx")
    size = int(source.example["image"].shape[1])

    def feeds() -> Iterator[dict[str, Any]]:
        for case in image_cases(graph, varied_images(2), size, source.text):
            yield {name: tensor.numpy() for name, tensor in case.feeds.items()}

    quantize(tmp_path / "base.onnx", tmp_path / "int8.onnx", feeds, threads=1)
    assert audit(onnx.load(tmp_path / "int8.onnx")) == []


# --- the audit finds things ---------------------------------------------------------------------


def _model(
    operator: str, inputs: Mapping[str, tuple[int, list[int]]], opset: int = 20, **attributes: Any
) -> onnx.ModelProto:
    """One node on graph inputs name -> (type, shape); the output's type is that of the first."""
    graph = helper.make_graph(
        [helper.make_node(operator, list(inputs), ["y"], "node", **attributes)],
        "one",
        [helper.make_tensor_value_info(name, *spec) for name, spec in inputs.items()],
        [helper.make_tensor_value_info("y", next(iter(inputs.values()))[0], None)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


_X = {"x": (TensorProto.FLOAT, [1, 2, 4, 4])}
_SCALES = {**_X, "roi": (TensorProto.FLOAT, [0]), "scales": (TensorProto.FLOAT, [4])}
_QKV = {name: (TensorProto.FLOAT16, [1, 8, 32]) for name in "qkv"}


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        (_model("Resize", _SCALES, mode="cubic"), "node: Resize with mode cubic"),
        (_model("Resize", _SCALES, mode="linear", antialias=1), "node: Resize with antialias 1"),
        (
            _model("Resize", _SCALES, mode="nearest", nearest_mode="floor",
                   coordinate_transformation_mode="half_pixel_symmetric"),
            "node: Resize with coordinate_transformation_mode half_pixel_symmetric",
        ),
        (_model("Hardmax", _X), "node: operator Hardmax"),
        (_model("Relu", _X, opset=25), "opset 25"),
        (_model("Softmax", {"x": (TensorProto.DOUBLE, [2])}), "x: DOUBLE"),
        (_model("Softmax", {"x": (TensorProto.DOUBLE, [2])}), "node: Softmax of DOUBLE"),
        (_model("Transpose", {"x": (TensorProto.UINT8, [2, 2])}), "node: Transpose of UINT8"),
        (_model("MatMul", {n: (TensorProto.INT32, [2, 2]) for n in "ab"}), "node: MatMul of INT32"),
        (
            _model("Attention", _QKV, 23, q_num_heads=2, kv_num_heads=2),
            "node: Attention on other than four axes",
        ),
        (
            _model("ReduceMean", {**_X, "axes": (TensorProto.INT64, [1])}),
            "node: ReduceMean with axes that are not constant",
        ),
        (
            _model("QuantizeLinear", {**_X, "scale": (TensorProto.FLOAT, [])}),
            "node: QuantizeLinear with a scale that is not constant",
        ),
        (_model("Einsum", _X, equation="...ij->...ji"), "node: Einsum with an ellipsis"),
    ],
    ids=lambda value: value.replace(" ", "_") if isinstance(value, str) else "",
)  # fmt: skip
def test_the_audit_names_what_is_not_documented(model: onnx.ModelProto, problem: str) -> None:
    assert problem in audit(model)


def test_the_audit_finds_a_zero_point() -> None:
    model = _model(
        "QuantizeLinear", {**_X, "s": (TensorProto.FLOAT, []), "z": (TensorProto.INT8, [])}
    )
    del model.graph.input[1:]
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0.1), "s"))
    model.graph.initializer.append(numpy_helper.from_array(np.int8(3), "z"))
    assert "node: QuantizeLinear with a zero point" in audit(model)
