"""`prepare` is held against the host's own resizes, and what is wrong with it is seen."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper
from support.golden_toy import golden_toy_outputs
from support.toy_bundle import add_prepare, build_toy_bundle

from clipsam.export.graphs.prepare import write_prepare
from clipsam.export.parity.prepare import SIZES, check_prepare, compare_masks, worst
from clipsam.runtime import ClipSAM
from clipsam.runtime.backends.base import open_session
from clipsam.runtime.core.errors import ExportError


@pytest.mark.parametrize("opset", [20, 23])
@pytest.mark.parametrize(("clip", "sam"), [(336, 1024), (224, 256), (97, 128)])
def test_it_makes_the_hosts_pictures(clip: int, sam: int, opset: int, tmp_path: Path) -> None:
    write_prepare(tmp_path / "prepare.onnx", clip, sam, opset)
    steps: list[None] = []
    with open_session(tmp_path / "prepare.onnx", "cpu", 1) as session:
        checks = check_prepare(session, progress=lambda: steps.append(None))
    found = worst(checks)
    assert json.loads(json.dumps([check.to_dict() for check in checks]))[0]["passed"] is True
    assert len(steps) == len(SIZES)
    assert found["clip_off"] <= 1
    assert found["sam_off"] <= 1
    assert found["sam_share"] <= 0.02  # Pillow's own bits, but for sums half-way between two levels


def set_constant(name: str, value: object) -> Callable[[ModelProto], None]:
    def change(model: ModelProto) -> None:
        for tensor in model.graph.initializer:
            if tensor.name == name:
                kind = numpy_helper.to_array(tensor).dtype
                tensor.CopyFrom(numpy_helper.from_array(np.array(value, kind), name))

    return change


def raised(model: ModelProto) -> None:
    """SAM's picture half a level too bright: what was to be cut off after a pass is not."""
    for node in model.graph.node:
        if list(node.output) == ["sam_columns_made_level"]:
            node.op_type = "Identity"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (set_constant("half", 2.5), "another clip picture .* 100% of its values"),
        (set_constant("half", 0.0), r"\(40% is allowed\)"),  # cut off instead of rounded
        (set_constant("white", 200), r"another clip picture"),
        (raised, "another sam picture"),
    ],
)
def test_a_graph_that_is_wrong_is_refused(
    change: Callable[[ModelProto], None], said: str, tmp_path: Path
) -> None:
    path = tmp_path / "prepare.onnx"
    write_prepare(path, 64, 128, 20)
    model = onnx.load(path)
    change(model)
    onnx.save(model, path)
    with (
        open_session(path, "cpu", 1) as session,
        pytest.raises(ExportError, match=f"The graph prepare makes of a picture of .*{said}"),
    ):
        check_prepare(session)


def test_what_it_costs_in_masks(tmp_path: Path) -> None:
    bundle = build_toy_bundle(tmp_path / "toy")
    path = add_prepare(bundle)
    pictures = golden_toy_outputs(bundle).pictures
    with ClipSAM.open(bundle, threads=1) as model, open_session(path, "cpu", 1) as prepare:
        checks = compare_masks(model.bundle, model.sessions, prepare, pictures)
    json.dumps([vars(check) for check in checks])
    assert [check.image for check in checks] == [picture.name for picture in pictures]
    assert any(check.prompts for check in checks)
    assert all(check.same_verdict for check in checks)
    assert min(check.mask_iou for check in checks) > 0.98
