"""The parts of a day on a GPU, in their order; a new one is an entry here and a task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from clipsam.runtime.bundle import GRAPHS
from gpu_day.full_size import PRESETS as FULL_SIZE

LIMIT = 600  # seconds


@dataclass(frozen=True)
class Part:
    """One thing to find out, in a process of its own.

    Attributes:
      name: also of its files.
      task: "module:function"; called with `arguments`, and `folder`, that of the whole day.
      limit: seconds.
      gpu: it says nothing without one, and is not started.
      needs: the parts whose results it works on.
      refresh: it is run again whatever is there.
    """

    name: str
    task: str
    arguments: dict[str, Any] = field(default_factory=dict)
    limit: int = LIMIT
    gpu: bool = False
    needs: tuple[str, ...] = ()
    refresh: bool = False


_TASKS = "gpu_day.tasks"
# Of every preset; CUDA's provider has no bf16, and a full-size graph more takes minutes.
_BOTH = ("fp32", "fp16")


def all_parts(presets: Sequence[str], attention: str, wheels: str) -> list[Part]:
    """Every part for these presets: what is cheap and tells most comes first."""
    found = []
    if wheels:
        found.append(Part("wheels", f"{_TASKS}:wheels", {"wheels": wheels}, refresh=True))
    found += [
        Part("machine", f"{_TASKS}:look", limit=120, refresh=True),
        Part("peaks", f"{_TASKS}:peaks", limit=180, gpu=True),
        Part("tests", f"{_TASKS}:gpu_tests", gpu=True),
        Part("training", f"{_TASKS}:training"),
    ]
    for preset in presets:
        found += [*_bundle_parts(preset, attention), *_model_parts(preset)]
    return found


def _bundle_parts(preset: str, attention: str) -> list[Part]:
    asked: dict[str, Any] = {"preset": preset, "attention": attention, "precisions": _BOTH}
    if preset not in FULL_SIZE:
        name, task = f"bundle {preset}", f"{_TASKS}:build_bundle"
        more = {**asked, "precisions": (*_BOTH, "bf16")}  # what is there is taken over
        return [Part(name, task, asked), Part(f"{name} bf16", task, more, LIMIT, True, (name,))]
    task = "gpu_day.full_size"
    graphs = [
        Part(f"graph {preset} {name}", f"{task}:graph", {**asked, "graph": name}, gpu=True)
        for name in GRAPHS
    ]
    needs = tuple(part.name for part in graphs)
    return [*graphs, Part(f"bundle {preset}", f"{task}:bundle", asked, gpu=True, needs=needs)]


def _model_parts(preset: str) -> list[Part]:
    of, needs = {"preset": preset}, (f"bundle {preset}",)

    def part(kind: str, task: str, gpu: bool = True, **asked: Any) -> Part:
        return Part(kind, f"{_TASKS}:{task}", {**of, **asked}, LIMIT, gpu, needs)

    found = [
        part(f"cuda parity {preset}", "parity", provider="cuda", precisions=_BOTH),
        part(f"cuda prepare {preset}", "prepare", provider="cuda"),
    ]
    if preset not in FULL_SIZE:
        name = f"cpu parity {preset}"
        found.insert(0, part(name, "parity", gpu=False, provider="cpu", precisions=_BOTH))
        name = f"cpu prepare {preset}"
        found.insert(1, part(name, "prepare", gpu=False, provider="cpu"))
    for precision in _BOTH if preset in FULL_SIZE else (*_BOTH, "bf16"):
        build = part(f"engines {preset} {precision}", "engines", precision=precision)
        if precision == "bf16":
            build = replace(build, needs=(f"bundle {preset} bf16",))
        found.append(build)
        found.append(part(f"diagnose {preset} {precision}", "diagnose", precision=precision))
    made = part(f"tensorrt prepare {preset}", "prepare", provider="tensorrt")
    found.append(replace(made, needs=(f"engines {preset} fp32",)))
    for library in ("torch", "ort", "tensorrt", "compile"):
        found.append(part(f"latency {preset} {library}", "latency", library=library))
    return found
