"""Every graph in every precision uses what TensorRT's ONNX parser documents, and nothing else.

And every graph that ONNX Runtime's CUDA provider may run would lie on the device as a whole. Both
are read from the files (`tensorrt_operators.py`, `placement.py`); whether an engine builds and a
session opens is for a machine with a GPU. Precisions made for another provider are exempt.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from support.small_graphs import NOISE, small_sources

from clipsam.export.graphs.onnx_export import OPSETS
from clipsam.export.graphs.placement import on_cpu
from clipsam.export.graphs.prepare import write_prepare
from clipsam.export.graphs.sources import GraphSource, graph_sources
from clipsam.export.graphs.tensorrt_operators import SUPPORTED, unsupported
from clipsam.export.parity.inputs import image_cases, varied_images
from clipsam.export.precisions.recipes import RECIPES
from clipsam.export.quantization import floating
from clipsam.export.quantization.static_int8 import quantize
from clipsam.research.models.clip import ClipFeatures
from clipsam.research.models.presets import PRESETS, Preset
from clipsam.research.models.umci import UMCIConfig, UMCIStages
from clipsam.runtime.backends.precision import PRECISIONS
from clipsam.runtime.backends.providers import can_run
from clipsam.runtime.bundle import GRAPHS

pytestmark = pytest.mark.slow  # exports

Export = Callable[[str, str, str, str, int], tuple[GraphSource, Path]]

# --- what is audited ----------------------------------------------------------------------------


def _linear_clip() -> CLIP:
    """As OpenAI's: linear patches and QuickGELU."""
    vision = CLIPVisionCfg(layers=1, width=64, head_width=32, patch_size=14, image_size=112)
    text = CLIPTextCfg(context_length=77, vocab_size=100, width=32, heads=2, layers=1)
    return CLIP(embed_dim=32, vision_cfg=vision, text_cfg=text, quick_gelu=True).eval()


# The paper's CLIP and UMCI, small. One block, one stage and one size of pooling: others add nodes
# of the same kinds, and seconds to each export. SAM's graphs are those of the small bundle, whose
# SAM has all that the paper's has; so has its CLIP all that tiny's has.
PAPER = replace(
    PRESETS["paper"],
    clip_image_size=112,
    features_list=(1,),
    umci=UMCIConfig(64, text_dim=32, hidden_dim=32, pool_sizes=(3,), stages=1),
)


def _sources(small: Preset, models: str, attention: str) -> dict[str, GraphSource]:
    if models == "small":
        return small_sources(small, attention)
    if models == "tiny":  # SAM with CLIP's embedding
        return small_sources(replace(small, sam=replace(small.sam, unet_width=32)), attention)
    features = ClipFeatures(_linear_clip().visual, PAPER.features_list, PAPER.clip_image_size)
    text = np.random.default_rng(0).normal(size=(1, 32, 2)).astype(np.float32)
    umci, sam = UMCIStages(PAPER.umci), NOISE.load_sam(small)[0]
    digests = dict.fromkeys(("clip", "umci"), "")
    return {"clip_umci": next(graph_sources(PAPER, features, umci, sam, text, digests))}


MODELS = {"clip_umci": "paper", "sam_encoder": "small", "sam_decoder": "small"}
MADE = [
    *itertools.product(["fp32", "fp16"], OPSETS), ("bf16", RECIPES["bf16"].opset), ("bf16", 23)
]  # fmt: skip
CASES = [
    *((models, "stock", graph, *made) for graph, models in MODELS.items() for made in MADE),
    *itertools.product(["small"], ["mask", "mask-free"], ["sam_encoder"], ["fp16"], OPSETS),
    *itertools.product(["small"], ["blocked"], ["sam_encoder"], ["fp32", "fp16"], [OPSETS[0]]),
    ("small", "stock", "clip_umci", "fp16", 20),
    ("tiny", "stock", "sam_encoder", "fp16", 20),
]


@pytest.fixture(scope="module")
def export(
    small_preset: Preset,
    small_graph: Callable[[str, str, int], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Export:
    """Models, attention, graph, precision and opset -> the graph's source and its file. Each is
    exported once: int8 is made from the fp16 that was audited."""
    folder = tmp_path_factory.mktemp("graphs")
    sources = cache(partial(_sources, small_preset))

    @cache
    def get(
        models: str, attention: str, graph: str, precision: str, opset: int
    ) -> tuple[GraphSource, Path]:
        source = sources(models, attention)[graph]
        if (models, attention) == ("small", "stock"):
            return source, small_graph(graph, precision, opset)
        path = folder / f"{models}-{attention}-{graph}-{precision}-{opset}.onnx"
        next(floating.make(source, precision, path, opset, 1))
        return source, path

    return get


def test_every_precision_for_tensorrt_is_audited() -> None:
    """int8 has its own test below; int8-dynamic and int8-conv are for ONNX Runtime on a CPU, and
    TensorRT has none of their operators, which is why they are exempt."""
    audited = {precision for _, _, _, precision, _ in CASES} | {"int8"}
    own = {name for name, precision in PRECISIONS.items() if precision.graphs is None}
    assert audited == {p for p in own if can_run("tensorrt", p)}
    assert not {"DynamicQuantizeLinear", "MatMulInteger", "QLinearConv"} & set(SUPPORTED)


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_every_graph_stays_within_documented_support(
    case: tuple[str, str, str, str, int], export: Export
) -> None:
    _, _, graph, _, opset = case
    model = onnx.load(export(*case)[1])
    assert unsupported(model) == []
    # As of opset 22 CUDA has no kernels of sine and cosine: a point's, a few hundred numbers.
    left = {"Sin", "Cos", "Concat"} if opset > 20 and graph == "sam_decoder" else set()
    assert {found.operator for found in on_cpu(model)} == left


@pytest.mark.parametrize("graph", GRAPHS)
def test_the_shipped_models_stay_within_documented_support(graph: str, tiny_bundle: Path) -> None:
    model = onnx.load(tiny_bundle / f"{graph}.onnx")
    assert unsupported(model) == []
    assert on_cpu(model) == []


@pytest.mark.parametrize("opset", OPSETS)
def test_prepare_lies_on_the_device_as_a_whole(opset: int, tmp_path: Path) -> None:
    write_prepare(tmp_path / "prepare.onnx", 518, 1024, opset)
    model = onnx.load(tmp_path / "prepare.onnx")
    assert unsupported(model) == []
    assert on_cpu(model) == []
    assert not {"Shape", "Size", "Resize"} & {node.op_type for node in model.graph.node}


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("graph", ["clip_umci", "sam_encoder"])
def test_int8_graphs_stay_within_documented_support(
    graph: str,
    opset: int,
    export: Export,
    tmp_path: Path,
) -> None:
    source, base = export(MODELS[graph], "stock", graph, "fp16", opset)
    size = int(source.example["image"].shape[1])

    def feeds() -> Iterator[dict[str, Any]]:
        for case in image_cases(graph, varied_images(2), size, source.text):
            yield {name: tensor.numpy() for name, tensor in case.feeds.items()}

    quantize(base, tmp_path / "int8.onnx", feeds, threads=1)
    model = onnx.load(tmp_path / "int8.onnx")
    assert unsupported(model) == []
    # Nor has CUDA kernels of ONNX's latest quantization: int8 for it is opset 20's, the default.
    left = {"QuantizeLinear", "DequantizeLinear"} if opset > 20 else set()
    assert {found.operator for found in on_cpu(model)} <= left


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
    assert problem in unsupported(model)


def test_the_audit_finds_a_zero_point() -> None:
    model = _model(
        "QuantizeLinear", {**_X, "s": (TensorProto.FLOAT, []), "z": (TensorProto.INT8, [])}
    )
    del model.graph.input[1:]
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0.1), "s"))
    model.graph.initializer.append(numpy_helper.from_array(np.int8(3), "z"))
    assert "node: QuantizeLinear with a zero point" in unsupported(model)
