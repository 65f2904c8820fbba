"""On which device onnxruntime put the nodes of a graph: what computes must be on the one asked for.

`session.disable_cpu_ep_fallback` refuses a graph for any node on the CPU, down to one that adds two
integers. That is too much where ONNX revised an operator and a provider has no kernel of it yet. So
the assignment itself is read, where onnxruntime tells it, and judged: products, convolutions,
softmax and attention on the CPU are refused, the rest is said in the log.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from clipsam.runtime.core.errors import ProviderError
from clipsam.runtime.core.log import get_logger

_LOG = get_logger("onnxruntime")
_CPU = "CPUExecutionProvider"
_STRICT = "session.disable_cpu_ep_fallback"
# In the names of operators that compute, onnxruntime's own fused ones among them.
_COMPUTE = ("MatMul", "Gemm", "Conv", "Softmax", "Attention", "Einsum", "Normalization", "GRU")


def ask_for_placement(ort: Any, options: Any) -> None:
    """Have a session opened with `options` tell its placement, or refuse any node on the CPU where
    this onnxruntime (before 1.24) cannot tell. `ort` is the imported module."""
    can_tell = hasattr(ort.InferenceSession, "get_provider_graph_assignment_info")
    key = "session.record_ep_graph_assignment_info" if can_tell else _STRICT
    options.add_session_config_entry(key, "1")


def computes(operator: str) -> bool:
    """Whether an operator, onnxruntime's own among them, is one that a GPU is there for."""
    return any(word in operator for word in _COMPUTE)


def check_placement(session: Any, provider: str, graph: str) -> None:
    """Raise ProviderError where `session`, an InferenceSession asked to tell its placement, runs
    something that computes on the CPU.

    `provider` is the one asked for and `graph` the file's name, both for the sentence.
    """
    tell = getattr(session, "get_provider_graph_assignment_info", None)
    if tell is None:
        return  # opened with the strict option
    placed = [(part.ep_name, part.get_nodes()) for part in tell()]
    on_cpu = [node for name, nodes in placed if name == _CPU for node in nodes]
    total = sum(len(nodes) for _, nodes in placed)
    wrong = [node for node in on_cpu if computes(node.op_type)]
    if wrong:
        raise ProviderError(
            f"{provider} was asked for but onnxruntime would run {len(on_cpu)} of {total} "
            f"operators of {graph} on the CPU, among them {_named(wrong)}: build the bundle again "
            "with --opset 20, install another onnxruntime-gpu, or use provider 'cpu'."
        )
    if on_cpu:
        _LOG.info(
            "%s on %s: %d of %d operators run on the CPU (%s); none of them computes.",
            graph,
            provider,
            len(on_cpu),
            total,
            _named(on_cpu),
        )


def _named(nodes: Sequence[Any]) -> str:
    names = [f"{node.op_type} {node.name!r}" for node in nodes[:3]]
    return ", ".join(names) + (f" and {len(nodes) - 3} more" if len(nodes) > 3 else "")
