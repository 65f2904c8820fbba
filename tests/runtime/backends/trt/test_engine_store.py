"""Which engine files are found and which are refused; all of it is file handling, no TensorRT."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.engine_lookup import edit, find, flip, refused
from support.session_graph import make_graph
from support.trt_engines import FAKE_BOX, make_sidecar, write_fake_engine

from clipsam.runtime import EngineError, OutputError, SessionError
from clipsam.runtime.backends.trt.engine_store import (
    Box,
    has_engine,
    read_engine,
    slug,
    sm,
    write_engine,
)
from clipsam.runtime.backends.trt.sidecar import (
    Profile,
    read_sidecar,
)
from clipsam.runtime.core.files import digest_onnx, onnx_digest


@pytest.fixture
def onnx(tmp_path: Path) -> Path:
    return make_graph(tmp_path, "clip_umci.onnx")


def test_a_written_engine_is_found_and_read(onnx: Path) -> None:
    path = write_fake_engine(onnx)
    assert path == onnx.parent / "engines/sm89-10.13.3.9-fp32-fake-gpu/clip_umci.engine"
    assert find(onnx) == path
    engine = read_engine(onnx.parent, "clip_umci", "fp32", digest_onnx(onnx), FAKE_BOX)
    assert engine.plan == path.read_bytes()
    assert engine.sidecar == read_sidecar(path.with_suffix(".json"))
    assert engine.sidecar.profiles["left"] == Profile((1, 3), (4, 3), (16, 3))
    assert sorted(p.name for p in path.parent.iterdir()) == ["clip_umci.engine", "clip_umci.json"]


def test_several_boxes_and_precisions_share_a_bundle(onnx: Path) -> None:
    other = Box("10.9.0.34", (8, 7), "Orin")
    paths = [
        write_fake_engine(onnx),
        write_fake_engine(onnx, precision="fp16"),
        write_fake_engine(onnx, other),
    ]
    assert [find(onnx), find(onnx, precision="fp16"), find(onnx, other)] == paths
    assert paths[2].parent.name == "sm87-10.9.0.34-fp32-orin"


def test_a_compute_capability_has_its_short_name() -> None:
    assert [sm((8, 9)), sm((10, 0)), sm((12, 1))] == ["sm89", "sm100", "sm121"]


def test_a_gpu_in_a_folders_name() -> None:
    names = ["NVIDIA L4", "NVIDIA GeForce RTX 4090", "Orin (nvgpu)", "NVIDIA A100-SXM4-40GB", "??"]
    assert [slug(name) for name in names] == [
        "l4", "geforce-rtx-4090", "orin-nvgpu", "a100-sxm4-40gb", "gpu",
    ]  # fmt: skip


def test_no_engine_asks_to_build_one(onnx: Path) -> None:
    assert "has no TensorRT engine of clip_umci: build it" in refused(onnx)
    assert not has_engine(onnx.parent, "clip_umci", "fp32", FAKE_BOX)


def test_the_command_can_be_pasted(tmp_path: Path) -> None:
    folder = tmp_path / "my bundle"
    with pytest.raises(EngineError, match=rf"--engines-only '{folder}' --precision fp16`"):
        read_engine(folder, "clip_umci", "fp16", "0", FAKE_BOX)


def test_none_for_this_box_says_what_there_is(onnx: Path) -> None:
    write_fake_engine(onnx, Box("10.13.3.9", (8, 6), "NVIDIA A10"))
    write_fake_engine(onnx, Box("10.9.0.34", (8, 9), "Fake GPU"))
    message = refused(onnx)
    assert "has no fp32 engine of clip_umci for this box (Fake GPU sm89, TensorRT 10.13.3.9), " in (
        message
    )
    assert "only sm86-10.13.3.9-fp32-a10, sm89-10.9.0.34-fp32-fake-gpu: build it" in message
    assert not has_engine(onnx.parent, "clip_umci", "fp32", FAKE_BOX)


def test_an_engine_of_another_precision_is_not_taken(onnx: Path) -> None:
    write_fake_engine(onnx, precision="fp16")
    assert ", only sm89-10.13.3.9-fp16-fake-gpu: build it" in refused(onnx)
    assert has_engine(onnx.parent, "clip_umci", "fp16", FAKE_BOX)
    assert not has_engine(onnx.parent, "clip_umci", "fp32", FAKE_BOX)


def test_many_others_are_not_all_listed(onnx: Path) -> None:
    for minor in range(7):
        write_fake_engine(onnx, Box(f"10.{minor}.0.1", (8, 9), "Fake GPU"))
    assert ", sm89-10.3.0.1-fp32-fake-gpu, 3 more: build it" in refused(onnx)


def into_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


# What is done to a good engine, and what must then be said.
DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "cut": (lambda p: p.write_bytes(p.read_bytes()[:-1]), "was truncated or altered ("),
    "empty": (lambda p: p.write_bytes(b""), "was truncated or altered (0 bytes, not "),
    "longer": (lambda p: p.write_bytes(p.read_bytes() + b"\0"), "was truncated or altered"),
    "bit": (lambda p: flip(p, -1), "was altered (its sha256 is not its sidecar's)"),
    "first bit": (lambda p: flip(p, 0), "was altered (its sha256 is not its sidecar's)"),
    "folder": (into_a_folder, "cannot be read (Is a directory)"),
    "no sidecar": (lambda p: p.with_suffix(".json").unlink(), "cannot be used (No such file"),
    "not JSON": (
        lambda p: p.with_suffix(".json").write_text("{"),
        "cannot be used (it is not JSON",
    ),
    "not text": (lambda p: p.with_suffix(".json").write_bytes(b"\xff"), "(it is not text)"),
    "schema": (lambda p: edit(p, schema=2), "cannot be used (it has schema 2, not 1)"),
    "no schema": (lambda p: p.with_suffix(".json").write_text("[]"), "not a mapping with a schema"),
    "graph": (
        lambda p: edit(p, graph="sam_encoder"),
        "is of sam_encoder in fp32, not of clip_umci",
    ),
    "precision": (
        lambda p: edit(p, precision="fp16"),
        "is of clip_umci in fp16, not of clip_umci",
    ),
    "onnx": (lambda p: edit(p, onnx_sha256="0" * 64), "was built from another ONNX file than"),
    "gpu": (lambda p: edit(p, gpu="NVIDIA L4"), "is for another GPU, NVIDIA L4, this is Fake GPU"),
    "sm": (
        lambda p: edit(p, compute_capability=[8, 0]),
        "is for another GPU, Fake GPU sm80, this",
    ),
    "older": (
        lambda p: edit(p, tensorrt="10.12.0.36"),
        "is for TensorRT 10.12.0.36, this is 10.13",
    ),
    "platform": (lambda p: edit(p, platform="windows-amd64"), "is for windows-amd64, this is"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_engine_is_refused(onnx: Path, name: str) -> None:
    damage, words = DAMAGE[name]
    path = write_fake_engine(onnx)
    damage(path)
    message = refused(onnx)
    assert words in message
    assert "engines/sm89-10.13.3.9-fp32-fake-gpu/clip_umci.engine" in message


def test_two_models_of_one_compute_capability_have_engines_of_their_own(onnx: Path) -> None:
    l4 = replace(FAKE_BOX, gpu="NVIDIA L4")
    path = write_fake_engine(onnx)
    assert ", only sm89-10.13.3.9-fp32-fake-gpu: build it" in refused(onnx, l4)
    own = write_fake_engine(onnx, l4)
    assert own == onnx.parent / "engines/sm89-10.13.3.9-fp32-l4/clip_umci.engine"
    assert [find(onnx), find(onnx, l4)] == [path, own]


def test_the_sidecar_decides_where_two_gpu_names_make_one_folder(onnx: Path) -> None:
    path = write_fake_engine(onnx)
    edit(path, gpu="FAKE--GPU")
    assert "is for another GPU, FAKE--GPU, this is Fake GPU" in refused(onnx)


def test_a_build_number_may_be_beyond_a_byte(onnx: Path) -> None:
    box = Box("11.4.0.300", (8, 9), "Fake GPU")
    write_fake_engine(onnx, box)
    assert find(onnx, box)


def test_a_sidecar_that_repeats_the_engines_first_bytes_still_counts(onnx: Path) -> None:
    """As they were written once; a field that nobody knows is refused (test_sidecar.py)."""
    path = write_fake_engine(onnx)
    edit(path, header="66747274")
    assert find(onnx) == path


def test_weights_beside_the_graph_count(onnx: Path) -> None:
    """New weights leave a graph's file as it is when they lie beside it."""
    alone = digest_onnx(onnx)
    assert alone == hashlib.sha256(onnx.read_bytes()).hexdigest()
    data = onnx.with_name("clip_umci.onnx.data")
    digests = set()
    for weights in (b"old", b"new"):
        data.write_bytes(weights)
        digests.add(digest_onnx(onnx))
        files = {
            "clip_umci.onnx": alone,
            "clip_umci.onnx.data": hashlib.sha256(weights).hexdigest(),
            "other.onnx.data": "1",
        }
        assert onnx_digest(files, "clip_umci.onnx") == digest_onnx(onnx)
    assert len(digests | {alone}) == 3
    assert onnx_digest({"a.onnx": "7", "b.onnx.data": "8"}, "a.onnx") == "7"


def test_errors_are_session_errors() -> None:
    assert issubclass(EngineError, SessionError)


def test_an_interrupted_rewrite_leaves_no_believable_engine(
    onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build that is interrupted between the two files leaves nothing that is believed."""
    path = write_fake_engine(onnx)
    old = path.read_bytes()

    def disk_is_full(path: Path, data: bytes) -> None:
        if path.suffix == failing:
            raise OutputError("no space")
        path.write_bytes(data)

    monkeypatch.setattr("clipsam.runtime.backends.trt.engine_store.write_bytes", disk_is_full)
    plan = old + b"new"
    for failing in (".engine", ".json"):
        with pytest.raises(OutputError):
            write_engine(path.parent, plan, make_sidecar(onnx, plan))
        if failing == ".engine":
            assert find(onnx)  # the old one is whole
    assert "was truncated or altered" in refused(onnx)
    failing = "none"
    assert write_engine(path.parent, plan, make_sidecar(onnx, plan)) == find(onnx) == path
