"""What a core can do at most: products of large fp32 matrices by every library that is there.

No library is the fastest on every CPU (on an AVX-512 EPYC, PyTorch's reaches half of what ONNX
Runtime's does), so shares are taken of the best one.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from cpu_row import CpuJob, Stages, memory_mb

SIDES = (1024, 2048)


def products(side: int, threads: int | None) -> dict[str, Callable[[], object]]:
    """Library -> a call that multiplies two fp32 matrices of `side` x `side`."""
    a = np.ones((side, side), np.float32)
    out = np.empty_like(a)
    calls: dict[str, Callable[[], object]] = {"NumPy": lambda: np.matmul(a, a, out=out)}
    if importlib.util.find_spec("torch"):
        import torch

        if threads is not None:
            torch.set_num_threads(threads)
        b, found = torch.from_numpy(a), torch.from_numpy(out)
        calls["PyTorch"] = lambda: torch.mm(b, b, out=found)
    if importlib.util.find_spec("onnxruntime") and importlib.util.find_spec("onnx"):
        session = _session(side, threads)
        calls["ONNX Runtime"] = lambda: session.run(None, {"a": a, "b": a})
    return calls


def _session(side: int, threads: int | None) -> Any:
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper

    tensors = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [side, side]) for name in "abc"
    ]
    node = helper.make_node("MatMul", ["a", "b"], ["c"])
    graph = helper.make_graph([node], "product", tensors[:2], tensors[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def answers(job: CpuJob) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """What answers "turn" with the times of every product; each runs once before that."""
    calls: dict[str, Callable[[], object]] = {}
    flop = {}
    for side in (job.matmul,) if job.matmul else SIDES:
        for library, call in products(side, job.threads).items():
            name = f"{library}, {side} x {side}"
            calls[name], flop[name] = call, 2 * side**3
            call()

    def answer(request: Mapping[str, Any]) -> dict[str, Any]:
        times: list[Stages] = []
        for _ in range(request["repeats"]):
            times.append({})
            for name, call in calls.items():
                wall, cpu = time.perf_counter(), time.process_time()
                call()
                spent = time.perf_counter() - wall, time.process_time() - cpu
                times[-1][name] = spent[0] * 1e3, spent[1] * 1e3
        return {"calls": times, "flop": flop, **memory_mb()}

    return answer
