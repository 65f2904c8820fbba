"""What onnxruntime is told when it opens a graph: every option, and why.

CPU figures are medians of CPU time on one core of an AVX-512 EPYC, onnxruntime 1.31.1, random
weights; benchmarks/README.md has the tables, and what was tried and left out.
"""

from __future__ import annotations

from typing import Any

from clipsam.runtime.backends.ort.placement import ask_for_placement

EXECUTION_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def _of_provider(provider: str, precision: str) -> dict[str, str]:
    if provider == "cpu":
        return {}
    # By default CUDA rounds fp32 products to TF32's 10 bits: fp32 is for those who want it exact.
    return {"use_tf32": str(int(precision == "tf32"))}


# Graph rewrites that cost more than they save. One fused kernel for "add, then normalise" takes
# 8 % of the time of SAM's decoder: what it replaces is vectorised better.
_SLOW_ON_CPU = ("SkipLayerNormFusion",)


def session_options(ort: Any, provider: str, threads: int | None) -> Any:
    """onnxruntime's SessionOptions for `provider`; `threads` None leaves it all cores.

    `ort` is the imported onnxruntime.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4  # errors come back as exceptions: not on stderr, too
    if threads is not None:
        options.intra_op_num_threads = threads
    if provider == "cpu":
        # By default the first run records every buffer and the second lays all of them out in one
        # block that is kept beside the first's: SAM ViT-B peaks at 2.3 instead of 1.35 GB (6.8
        # instead of 3.8 with its attention as published), two runs are slow instead of one, and
        # none is faster.
        options.enable_mem_pattern = False
        # Idle threads of one session would go on spinning while another one works on the cores:
        # with two threads on two cores a defective part takes 1.6 times as long.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    else:
        ask_for_placement(ort, options)
    return options


def session_arguments(
    provider: str, precision: str = "fp32", device_id: int | None = None
) -> dict[str, Any]:
    """The keyword arguments of InferenceSession for `provider`, one of `EXECUTION_PROVIDERS`."""
    chosen = {} if device_id is None else {"device_id": str(device_id)}
    arguments: dict[str, Any] = {
        "providers": [
            (EXECUTION_PROVIDERS[provider], {**_of_provider(provider, precision), **chosen})
        ],
        "enable_fallback": 0,  # it prints to stdout, and tries other devices than that asked for
    }
    if provider == "cpu":
        arguments["disabled_optimizers"] = list(_SLOW_ON_CPU)
    return arguments
