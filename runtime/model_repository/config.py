"""The `config.pbtxt` of Triton's models: of the three graphs, and of the whole method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from clipsam.runtime.backends.base import TensorSpec
from clipsam.runtime.model_repository.pbtxt import Value, Word, write
from clipsam.runtime.stages.rough_map import SCALED_TOGETHER

CONFIG = "config.pbtxt"
_TYPES = {
    "uint8": "TYPE_UINT8",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
    "bool": "TYPE_BOOL",
}
_OUTPUTS = {
    "verdict": ("TYPE_STRING", [1]),
    "score": ("TYPE_FP32", [1]),
    "limit": ("TYPE_FP32", [1]),
    "result": ("TYPE_STRING", [1]),
    "score_map": ("TYPE_FP32", [-1, -1]),
    "mask": ("TYPE_BOOL", [-1, -1]),
}


@dataclass(frozen=True)
class Serving:
    """How Triton is to run the models.

    Attributes:
      provider: "cpu" or "cuda" (graphs in ONNX Runtime), or "tensorrt" (engines).
      precision: of the graphs; None: the provider's fastest that the bundle has for each of them.
      engines: of "tensorrt": a folder in the bundle's `engines`; None: the only one.
      name: of the model that is the whole method; the graphs' begin with it.
      instances: of every model, on every GPU.
      gpus: as CUDA counts them; empty: all, or the CPU.
      batch: pictures that CLIP takes at once, at most.
      delay: microseconds that a request may wait for others.
      threads: CPU threads of a graph; None: all cores.
    """

    provider: str = "cpu"
    precision: str | None = None
    engines: str | None = None
    name: str = "clipsam"
    instances: int = 1
    gpus: tuple[int, ...] = ()
    batch: int = 8
    delay: int = 500
    threads: int | None = None


def graph_config(
    name: str,
    file: str,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    serving: Serving,
    precision: str,
    batches: Sequence[int] = (),
) -> str:
    """Of one graph; `file` is ONNX or, ending in `.plan`, an engine built for these `batches`."""
    most = _most_at_once((*inputs, *outputs), serving, precision, batches)
    is_plan = file.endswith(".plan")
    config: dict[str, Value] = {
        "name": name,
        "backend": "tensorrt" if is_plan else "onnxruntime",
        "default_model_filename": file,
        "max_batch_size": most,
        "input": [_tensor(spec, most) for spec in inputs],
        "output": [_tensor(spec, most) for spec in outputs],
        **_running(serving, most),
    }
    if serving.threads is not None and not is_plan:
        config["parameters"] = [_parameter("intra_op_thread_count", str(serving.threads))]
    return write(config)


def method_config(serving: Serving, precision: str) -> str:
    """Of the whole method, whose model.py reads the parameters."""
    batch = 1 if precision in SCALED_TOGETHER else serving.batch
    said = {"provider": serving.provider, "precision": precision}
    if serving.threads is not None:
        said["threads"] = str(serving.threads)
    image: dict[str, Value] = {
        "name": "image",
        "data_type": Word("TYPE_UINT8"),
        "dims": [-1, -1, 3],
    }
    # Pictures of several sizes may share a batch: the method is given every request by itself.
    image |= {"optional": True, "allow_ragged_batch": True}
    return write(
        {
            "name": serving.name,
            "backend": "python",
            "max_batch_size": batch,
            "input": [
                image,
                {"name": "file", "data_type": Word("TYPE_STRING"), "dims": [1], "optional": True},
            ],
            "output": [
                {"name": name, "data_type": Word(kind), "dims": dims}
                for name, (kind, dims) in _OUTPUTS.items()
            ],
            **_running(serving, batch),
            "parameters": [_parameter(key, value) for key, value in said.items()],
        }
    )


def _most_at_once(
    specs: Sequence[TensorSpec], serving: Serving, precision: str, batches: Sequence[int]
) -> int:
    """Triton's `max_batch_size`: 0 where not every tensor begins with a free batch axis."""
    if any(not spec.shape or spec.shape[0] != "batch" for spec in specs):
        return 0
    if precision in SCALED_TOGETHER:  # images of a batch would change each other's results
        return 1
    return min([serving.batch, *batches])


def _tensor(spec: TensorSpec, most: int) -> dict[str, Value]:
    """An input or output; its batch axis is implied where there is one."""
    dims = [-1 if isinstance(side, str) else side for side in spec.shape]
    return {
        "name": spec.name,
        "data_type": Word(_TYPES[spec.dtype]),
        "dims": dims[1:] if most else dims,
    }


def _running(serving: Serving, most: int) -> dict[str, Value]:
    """Where it runs, and whether requests share a batch."""
    on_gpu = serving.provider != "cpu"
    group: dict[str, Value] = {
        "count": serving.instances,
        "kind": Word("KIND_GPU" if on_gpu else "KIND_CPU"),
    }
    if on_gpu and serving.gpus:
        group["gpus"] = list(serving.gpus)
    found: dict[str, Value] = {"instance_group": [group]}
    if most > 1:
        found["dynamic_batching"] = {"max_queue_delay_microseconds": serving.delay}
    return found


def _parameter(key: str, value: str) -> dict[str, Value]:
    return {"key": key, "value": {"string_value": value}}
