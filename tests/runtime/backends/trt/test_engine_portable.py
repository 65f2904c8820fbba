"""Engines that were built for more than one box: which are taken where."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.engine_lookup import edit, find, refused
from support.fake_tensorrt import make_plan
from support.session_graph import make_graph
from support.trt_engines import FAKE_BOX, make_sidecar, write_fake_engine

from clipsam.runtime.backends.trt.engine_store import (
    Box,
    has_engine,
    write_engine,
)
from clipsam.runtime.backends.trt.sidecar import (
    BuildFlags,
)


@pytest.fixture
def onnx(tmp_path: Path) -> Path:
    return make_graph(tmp_path, "clip_umci.onnx")


# (built for, flags, opened on) -> whether it runs there.
AMPERE, SAME = "ampere_plus", "same_compute_capability"
L4, A10, T4 = (8, 9), (8, 6), (7, 5)
PORTABLE: list[tuple[str, tuple[int, int], BuildFlags, Box, bool]] = [
    ("10.9.0.34", L4, BuildFlags(version_compatible=True), FAKE_BOX, True),
    ("10.13.3.10", L4, BuildFlags(version_compatible=True), FAKE_BOX, False),  # only forwards
    ("11.0.0.1", L4, BuildFlags(version_compatible=True), FAKE_BOX, False),
    ("10.9.0.34", L4, BuildFlags(version_compatible=True), Box("11.4.0.106", L4), False),
    ("10.9.0.34", A10, BuildFlags(version_compatible=True), FAKE_BOX, False),
    ("10.13.3.9", A10, BuildFlags(hardware_compatibility=AMPERE), FAKE_BOX, True),
    ("10.13.3.9", (12, 0), BuildFlags(hardware_compatibility=AMPERE), FAKE_BOX, True),
    ("10.9.0.34", A10, BuildFlags(hardware_compatibility=AMPERE), FAKE_BOX, False),
    ("10.9.0.34", A10, BuildFlags(True, AMPERE), FAKE_BOX, True),
    ("10.13.3.9", A10, BuildFlags(hardware_compatibility=AMPERE), Box("10.13.3.9", T4), False),
    ("10.13.3.9", A10, BuildFlags(hardware_compatibility=SAME), FAKE_BOX, False),
]


@pytest.mark.parametrize(("version", "built", "flags", "box", "runs"), PORTABLE)
def test_compatible_engines_are_taken_where_tensorrt_takes_them(
    onnx: Path, version: str, built: tuple[int, int], flags: BuildFlags, box: Box, runs: bool
) -> None:
    path = write_fake_engine(onnx, Box(version, built, "Fake GPU"), flags=flags)
    assert has_engine(onnx.parent, "clip_umci", "fp32", box) is runs
    if runs:
        assert find(onnx, box) == path
    else:
        assert f"{path.parent.name} is for " in refused(onnx, box)


def test_two_models_of_one_compute_capability(onnx: Path) -> None:
    """An engine is for one model of GPU unless it was built for more; each has its own folder."""
    l4 = replace(FAKE_BOX, gpu="NVIDIA L4")
    path = write_fake_engine(onnx)
    assert "this is NVIDIA L4 (--hardware-compatibility makes one engine for both)" in (
        refused(onnx, l4)
    )
    assert find(onnx, replace(FAKE_BOX, gpu=None)) == path  # where nobody asks for the model
    shared = write_fake_engine(onnx, flags=BuildFlags(hardware_compatibility=SAME))
    assert shared == onnx.parent / "engines/sm89-10.13.3.9-fp32/clip_umci.engine"
    assert [find(onnx), find(onnx, l4)] == [path, shared]
    own = write_fake_engine(onnx, l4)
    assert own == onnx.parent / "engines/sm89-10.13.3.9-fp32-l4/clip_umci.engine"
    assert [find(onnx), find(onnx, l4)] == [path, own]


def test_an_engine_in_a_folder_of_another_model(onnx: Path) -> None:
    """The sidecar decides, not the folder's name: two names may make one."""
    path = write_fake_engine(onnx)
    edit(path, gpu="FAKE--GPU")
    assert "is for another GPU, FAKE--GPU, this is Fake GPU" in refused(onnx)


def test_the_newest_of_several_compatible_ones(onnx: Path) -> None:
    flags = BuildFlags(version_compatible=True)
    for version in ("10.9.0.34", "10.12.0.36", "10.10.0.31", "10.14.1.48"):
        write_fake_engine(onnx, Box(version, (8, 9), "Fake GPU"), flags=flags)
    assert find(onnx).parent.name == "sm89-10.12.0.36-fp32-fake-gpu"
    path = write_fake_engine(onnx)  # its own comes first
    assert find(onnx) == path


def test_a_version_compatible_plan_may_have_any_version_in_its_header(onnx: Path) -> None:
    plan = make_plan(onnx.read_bytes(), "8.6.1.6")
    sidecar = make_sidecar(onnx, plan, flags=BuildFlags(version_compatible=True))
    write_engine(FAKE_BOX.folder(onnx.parent, "fp32"), plan, sidecar)
    assert find(onnx)


def test_the_header_of_three_numbers(onnx: Path) -> None:
    """JetPack's TensorRT calls itself 10.3.0; the header has the build's number as well."""
    box = Box("10.3.0", (8, 7), "Orin")
    plan = make_plan(onnx.read_bytes(), "10.3.0.26")
    write_engine(box.folder(onnx.parent, "fp32"), plan, make_sidecar(onnx, plan, box))
    assert find(onnx, box).parent.name == "sm87-10.3.0-fp32-orin"


def test_a_build_number_beyond_a_byte(onnx: Path) -> None:
    box = Box("11.4.0.300", (8, 9), "Fake GPU")
    write_fake_engine(onnx, box)
    assert find(onnx, box)
