"""What shares are taken of: operations of every stage, and the rate of large matrix products."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

_ROUNDS = 10
_COPIED = 1 << 28  # bytes


def count_flops(preset: str, boxes: int) -> dict[str, int]:
    """Floating-point operations of every graph for a part with `boxes` boxes (a multiply and an add
    are two).

    Counted on tensors without data, so that the paper's models need no memory.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from clipsam.research.models.clip import ClipFeatures
    from clipsam.research.models.presets import PRESETS, build_clip, build_sam
    from clipsam.research.models.umci import UMCIStages
    from harness.torch_rows import graph_modules, graph_specs

    of = PRESETS[preset]
    with torch.device("meta"), torch.no_grad():
        clip, umci = build_clip(of.clip_name).eval(), UMCIStages(of.umci).eval()
        features = ClipFeatures(clip.visual, of.features_list, of.clip_image_size)
        sam = build_sam(of.sam).to("meta")  # segment-anything's mean and std are not yet
        axes: dict[int | str, int] = {
            "batch": 1,
            "prompts": boxes,
            "points": of.prompts.num_points + 2,
        }
        flops = {}
        for name, module in graph_modules(features, umci, sam, "stock").items():
            inputs = [
                torch.empty(
                    [axes[n] if n in axes else int(n) for n in s.shape],
                    dtype=getattr(torch, s.dtype),
                )
                for s in graph_specs(of)[name][0]
            ]
            with FlopCounterMode(display=False) as counter:
                module(*inputs)
            flops[name] = int(counter.get_total_flops())
    return flops


def measure_peaks(device: str, side: int) -> list[dict[str, Any]]:
    """PyTorch's square matrix products in every precision, the best of some: {"backend",
    "precision", "peak_tflops"}, or "status" where there is no such product."""
    found: list[dict[str, Any]] = []
    for precision, call in _products(device, side):
        head = {"backend": "PyTorch", "precision": precision}
        try:
            call()
            best = min(_seconds(call) for _ in range(_ROUNDS))
            rate = round(2 * side**3 / best / 1e12, 5)
            found.append({**head, "status": "measured", "peak_tflops": rate})
        except (RuntimeError, NotImplementedError) as error:  # no such product on this device
            found.append({**head, "status": f"not run: {str(error).splitlines()[0]}"})
    return found


def measure_copies() -> dict[str, float]:
    """Rates of a GPU's copies in GB/s, the best of some: within the device (what is read and what
    is written, together), and to it and from it through pinned memory.
    """
    import torch

    here = torch.ones(_COPIED, dtype=torch.uint8, device="cuda")
    there, host = torch.empty_like(here), torch.ones(_COPIED, dtype=torch.uint8, pin_memory=True)
    calls = {
        "device_gb_s": (2, here, there),
        "to_device_gb_s": (1, host, there),
        "from_device_gb_s": (1, here, host),
    }
    found = {}
    for name, (times, source, target) in calls.items():

        def copy(source: Any = source, target: Any = target) -> None:
            target.copy_(source, non_blocking=True)
            torch.cuda.synchronize()

        copy()
        found[name] = round(times * _COPIED / min(_seconds(copy) for _ in range(_ROUNDS)) / 1e9, 2)
    return found


def _products(device: str, side: int) -> Iterator[tuple[str, Callable[[], object]]]:
    """(precision, a call that returns when the product is there)."""
    import torch

    from harness.torch_rows import need_device

    need_device(device)
    torch.backends.cuda.matmul.allow_tf32 = False  # fp32 means fp32 here, as in every engine
    wait: Callable[[], object] = torch.cuda.synchronize if device == "cuda" else lambda: None
    dtypes = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    for precision, dtype in {**dtypes, "int8": torch.int8}.items():
        multiply = torch._int_mm if precision == "int8" else torch.mm
        b = torch.ones((side, side), dtype=dtype, device=device)
        yield precision, partial(_multiply, multiply, b, wait)


def _multiply(multiply: Any, b: Any, wait: Callable[[], object]) -> Any:
    product = multiply(b, b)
    wait()
    return product


def product_graph(side: int) -> Any:
    """The ONNX model of one product of square matrices."""
    import onnx
    from onnx import TensorProto, helper

    tensors = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [side, side]) for n in "abc"]
    node = helper.make_node("MatMul", ["a", "b"], ["c"])
    graph = helper.make_graph([node], "product", tensors[:2], tensors[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model)
    return model


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
