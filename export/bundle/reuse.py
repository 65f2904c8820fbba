"""The bundle that a build replaces: what did not change is taken over from it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipsam.export.bundle.staging import link_or_copy
from clipsam.export.parity.tensors import GraphCheck
from clipsam.runtime.bundle import Bundle
from clipsam.runtime.core.errors import BundleError

PARITY = "parity.json"


class PreviousBundle:
    """The bundle at `output`, if it is there and in order; else nothing holds."""

    def __init__(self, output: Path) -> None:
        self._bundle: Bundle | None = None
        self._keys: Mapping[str, str] = {}
        self._rows: list[dict[str, Any]] = []
        try:
            bundle = Bundle.open(output)
            keys = bundle.manifest.provenance["graph_keys"]
            self._rows = json.loads((output / PARITY).read_text("utf-8"))["graphs"]
            self._bundle, self._keys = bundle, dict(keys)
        except (BundleError, OSError, ValueError, KeyError, TypeError):
            pass  # then everything is built

    def text(self, key: str) -> Mapping[str, NDArray[np.float32]]:
        """L [C_t,2] of every category it knows, if they were made as `key` says."""
        if self._bundle is None or self._keys.get("text") != key:
            return {}
        return {name: self._bundle.text(name) for name in self._bundle.manifest.categories}

    def take_over(self, stem: str, key: str, folder: Path) -> list[GraphCheck] | None:
        """Link the graph file called `stem`.onnx into `folder` if it was made as `key` says.

        Returns its parity figures, or None when there is nothing to take over.
        """
        if self._bundle is None or self._keys.get(stem) != key:
            return None
        graph, _, precision = stem.partition(".")
        try:
            found = [GraphCheck(**row) for row in self._rows]
        except TypeError:
            return None
        checks = [c for c in found if (c.graph, c.precision) == (graph, precision or "fp32")]
        files = [f for f in self._bundle.manifest.files if f.startswith(f"{stem}.onnx")]
        if not checks or not files:
            return None
        for file in files:  # the graph, and its weights when beside it
            link_or_copy(self._bundle.folder / file, folder / file)
        return checks
