"""What a build measured: in full in `parity.json`, the worst cases in the manifest."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from clipsam.export.bundle.reuse import PARITY
from clipsam.export.parity.inspection import EndToEndCheck
from clipsam.export.parity.onnx_vs_torch import summary
from clipsam.export.parity.prepare import PrepareCheck
from clipsam.export.parity.tensors import GraphCheck
from clipsam.export.precisions.recipes import RECIPES, TOLERANCES
from clipsam.runtime.bundle import GraphEntry

Variants = Mapping[str, Mapping[str, GraphEntry]]


def write_parity(
    folder: Path,
    variants: Variants,
    graphs: Sequence[GraphCheck],
    whole: Sequence[EndToEndCheck],
    prepared: Sequence[PrepareCheck],
    refused: Mapping[str, str],
) -> None:
    """Write `parity.json` into the bundle's `folder`, where its graphs are already.

    Args:
      variants: precision -> graph -> entry.
      refused: why a graph is not there, by the name of its file without `.onnx`.
    """
    figures = {
        "how": {precision: RECIPES[precision].how for precision in variants},
        "tolerances": {precision: asdict(TOLERANCES[precision]) for precision in variants},
        "graphs": [asdict(check) for check in graphs],
        "end_to_end": [asdict(check) for check in whole],
        "prepare": [check.to_dict() for check in prepared],
        "refused": dict(refused),
        # Which MatMuls or convolutions are int8, and which MatMuls would not stand it.
        "layers": {
            precision: {
                name: asdict(RECIPES[precision].load().read_record(folder / entry.file))
                for name, entry in variants[precision].items()
                if entry.precision == precision
            }
            for precision in variants
            if RECIPES[precision].base is not None
        },
    }
    (folder / PARITY).write_text(json.dumps(figures, indent=1) + "\n", "utf-8")


def worst_cases(
    variants: Variants, graphs: Sequence[GraphCheck], whole: Sequence[EndToEndCheck]
) -> dict[str, dict[str, Any]]:
    """For the manifest: the worst of every graph and of the whole, by precision."""
    return {
        precision: {
            "graphs": summary([check for check in graphs if check.precision == precision]),
            "end_to_end": _worst([check for check in whole if check.precision == precision]),
        }
        for precision in variants
    }


def _worst(checks: Sequence[EndToEndCheck]) -> dict[str, float]:
    return {
        "images": len(checks),
        "prompts": sum(check.prompts for check in checks),
        "mask_iou": min(check.mask_iou for check in checks),
        "scores": max(check.scores for check in checks),
        "final_map": max(check.final_map for check in checks),
    }
