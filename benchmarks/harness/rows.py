"""The rows of `bench_latency.py`. A new one is an entry of `ROWS`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path

from clipsam.runtime.backends.precision import PRECISIONS
from clipsam.runtime.backends.providers import can_run


@dataclass(frozen=True)
class Row:
    """One combination of library, device and precision.

    Attributes:
      kind: "session" (the engine), or of `torch_rows`: "eager", "sdpa" or "compile".
      device: a provider of `ClipSAM.open` for sessions, else a torch device.
      keep_pages: glibc's malloc keeps what is freed (see `memory.keep_freed_pages`).
      bundle: the folder that a session opens.
    """

    name: str
    kind: str
    device: str
    precision: str
    keep_pages: bool = False
    bundle: str = ""

    @property
    def torch_device(self) -> str:
        """Where PyTorch runs what it is compared with."""
        return "cpu" if self.device == "cpu" else "cuda"


EAGER = "torch-eager-{}-fp32"  # what rows of a device are compared with
KEEPS_PAGES = "torch-eager-{}-fp32-keep-pages"
ROWS = (
    Row("torch-eager-cpu-fp32", "eager", "cpu", "fp32"),
    Row("torch-eager-cpu-fp32-keep-pages", "eager", "cpu", "fp32", keep_pages=True),
    Row("torch-sdpa-cpu-fp32-keep-pages", "sdpa", "cpu", "fp32", keep_pages=True),
    Row("torch-sdpa-cpu-bf16-keep-pages", "sdpa", "cpu", "bf16", keep_pages=True),
    Row("torch-compile-cpu-bf16-keep-pages", "compile", "cpu", "bf16", keep_pages=True),
    Row("torch-eager-cuda-fp32", "eager", "cuda", "fp32"),
    Row("torch-sdpa-cuda-bf16", "sdpa", "cuda", "bf16"),
    Row("torch-compile-cuda-bf16", "compile", "cuda", "bf16"),
    *(
        Row(f"{name}-{precision}", "session", provider, precision)
        for name, provider in (("ort-cpu", "cpu"), ("ort-cuda", "cuda"), ("tensorrt", "tensorrt"))
        for precision in PRECISIONS
        if can_run(provider, precision)
    ),
)


def select(patterns: Sequence[str], bundles: Sequence[Path]) -> list[Row]:
    """The rows whose name fits a pattern, the engine's once for every bundle.

    With several bundles the folder's name follows the row's.
    """
    found = []
    for row in ROWS:
        if not any(fnmatch(row.name, pattern) for pattern in patterns):
            continue
        if row.kind != "session":
            found.append(row)
            continue
        for bundle in bundles:
            name = row.name if len(bundles) == 1 else f"{row.name} {bundle.name}"
            found.append(replace(row, name=name, bundle=str(bundle)))
    return found
