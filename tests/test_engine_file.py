"""Which engine files are found and which are refused; all of it is file handling, no TensorRT."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_tensorrt import make_plan
from session_graph import make_graph
from trt_engines import FAKE_BOX, make_sidecar, write_fake_engine

from clipsam.runtime import EngineError, OutputError, SessionError
from clipsam.runtime.engine_file import (
    Box,
    digest_onnx,
    find_engine,
    has_engine,
    onnx_digest,
    read_engine,
    sm,
    write_engine,
)
from clipsam.runtime.engine_sidecar import (
    BuildFlags,
    Profile,
    Sidecar,
    SidecarError,
    read_sidecar,
    this_platform,
    version_numbers,
)

COMMAND = "build it on this box with `python export/build_engines.py --engines-only {} --precision"


@pytest.fixture
def onnx(tmp_path: Path) -> Path:
    return make_graph(tmp_path, "clip_umci.onnx")


def find(onnx: Path, box: Box = FAKE_BOX, precision: str = "fp32") -> Path:
    where = onnx.parent, "clip_umci", precision, digest_onnx(onnx)
    return find_engine(*where, box.tensorrt, box.compute_capability, box.gpu)


def refused(onnx: Path, box: Box = FAKE_BOX, precision: str = "fp32") -> str:
    """The message with which there is no engine; one sentence that names the command."""
    with pytest.raises(EngineError) as caught:
        find(onnx, box, precision)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(f"{COMMAND.format(onnx.parent)} {precision}`.")
    return message


def test_found(onnx: Path) -> None:
    path = write_fake_engine(onnx)
    assert path == onnx.parent / "engines/sm89-10.13.3.9-fp32/clip_umci.engine"
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
    assert paths[2].parent.name == "sm87-10.9.0.34-fp32"


def test_compute_capability_in_words() -> None:
    assert [sm((8, 9)), sm((10, 0)), sm((12, 1))] == ["sm89", "sm100", "sm121"]


def test_none_at_all(onnx: Path) -> None:
    assert "has no TensorRT engine of clip_umci: build it" in refused(onnx)
    assert not has_engine(onnx.parent, "clip_umci", "fp32", FAKE_BOX)


def test_the_command_can_be_pasted(tmp_path: Path) -> None:
    folder = tmp_path / "my bundle"
    with pytest.raises(EngineError, match=rf"--engines-only '{folder}' --precision fp16`"):
        find_engine(folder, "clip_umci", "fp16", "0", "10.13.3.9", (8, 9))


def test_none_for_this_box_says_what_there_is(onnx: Path) -> None:
    write_fake_engine(onnx, Box("10.13.3.9", (8, 6), "NVIDIA A10"))
    write_fake_engine(onnx, Box("10.9.0.34", (8, 9), "Fake GPU"))
    message = refused(onnx)
    assert "has no fp32 engine of clip_umci for this box (Fake GPU sm89, TensorRT 10.13.3.9): " in (
        message
    )
    assert "sm86-10.13.3.9-fp32 is for another GPU, NVIDIA A10 sm86, this is sm89; " in message
    assert "sm89-10.9.0.34-fp32 is for TensorRT 10.9.0.34, this is 10.13.3.9; build" in message


def test_another_precision(onnx: Path) -> None:
    write_fake_engine(onnx, precision="fp16")
    message = refused(onnx)
    assert "sm89-10.13.3.9-fp16 is fp16: --precision fp16 uses it; build" in message
    assert has_engine(onnx.parent, "clip_umci", "fp16", FAKE_BOX)
    assert not has_engine(onnx.parent, "clip_umci", "fp32", FAKE_BOX)


def test_many_others_are_not_all_listed(onnx: Path) -> None:
    for minor in range(7):
        write_fake_engine(onnx, Box(f"10.{minor}.0.1", (8, 9), "Fake GPU"))
    assert "sm89-10.3.0.1-fp32 is for TensorRT 10.3.0.1, this is 10.13.3.9; and 3 more; " in (
        refused(onnx)
    )


def test_others_that_say_nothing(onnx: Path) -> None:
    path = write_fake_engine(onnx, Box("10.9.0.34", (8, 9), "Fake GPU"))
    path.with_suffix(".json").write_text("{}")
    other = write_fake_engine(onnx, Box("10.8.0.34", (8, 9), "Fake GPU"), graph="sam_decoder")
    other.rename(other.with_name("clip_umci.engine"))
    other.with_suffix(".json").rename(other.with_name("clip_umci.json"))
    message = refused(onnx)
    assert "sm89-10.9.0.34-fp32 has no readable sidecar" in message
    assert "sm89-10.8.0.34-fp32 is of sam_decoder" in message


# What is done to a good engine, and what must then be said.
DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "cut": (lambda p: p.write_bytes(p.read_bytes()[:-1]), "was truncated or altered ("),
    "empty": (lambda p: p.write_bytes(b""), "was truncated or altered (0 bytes, not "),
    "longer": (lambda p: p.write_bytes(p.read_bytes() + b"\0"), "was truncated or altered"),
    "bit": (lambda p: _flip(p, -1), "was altered (its sha256 is not its sidecar's)"),
    "tag": (lambda p: _flip(p, 0), "is not a TensorRT engine"),
    "layout": (lambda p: _flip(p, 4), "has a header of an unknown kind (1)"),
    "version": (lambda p: _flip(p, 25), "was built by TensorRT 10.12.3.9, its sidecar says 10.13"),
    "folder": (lambda p: (p.unlink(), p.mkdir()), "cannot be read (Is a directory)"),
    "no sidecar": (lambda p: p.with_suffix(".json").unlink(), "cannot be used (No such file"),
    "not JSON": (
        lambda p: p.with_suffix(".json").write_text("{"),
        "cannot be used (it is not JSON",
    ),
    "not text": (lambda p: p.with_suffix(".json").write_bytes(b"\xff"), "(it is not text)"),
    "schema": (lambda p: _edit(p, schema=2), "cannot be used (it has schema 2, not 1)"),
    "no schema": (lambda p: p.with_suffix(".json").write_text("[]"), "not a mapping with a schema"),
    "graph": (
        lambda p: _edit(p, graph="sam_encoder"),
        "is of sam_encoder in fp32, not of clip_umci",
    ),
    "precision": (
        lambda p: _edit(p, precision="fp16"),
        "is of clip_umci in fp16, not of clip_umci",
    ),
    "onnx": (lambda p: _edit(p, onnx_sha256="0" * 64), "was built from another ONNX file than"),
    "gpu": (lambda p: _edit(p, gpu="NVIDIA L4"), "is for another GPU, NVIDIA L4, this is Fake GPU"),
    "sm": (
        lambda p: _edit(p, compute_capability=[8, 0]),
        "is for another GPU, Fake GPU sm80, this",
    ),
    "older": (
        lambda p: _edit(p, tensorrt="10.12.0.36"),
        "is for TensorRT 10.12.0.36, this is 10.13",
    ),
    "platform": (lambda p: _edit(p, platform="windows-amd64"), "is for windows-amd64, this is"),
}


def _flip(path: Path, index: int) -> None:
    data = bytearray(path.read_bytes())
    data[index] ^= 1
    path.write_bytes(data)


def _edit(path: Path, **changes: Any) -> None:
    sidecar = path.with_suffix(".json")
    sidecar.write_text(json.dumps({**json.loads(sidecar.read_text()), **changes}))


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_refused(onnx: Path, name: str) -> None:
    damage, words = DAMAGE[name]
    path = write_fake_engine(onnx)
    damage(path)
    message = refused(onnx)
    assert words in message
    assert "engines/sm89-10.13.3.9-fp32/clip_umci.engine" in message


def test_a_damaged_engine_is_not_replaced_by_another(onnx: Path) -> None:
    """The box's own engine is the one that was meant: another would hide that it is broken."""
    flags = BuildFlags(version_compatible=True)
    write_fake_engine(onnx, Box("10.9.0.34", (8, 9), "Fake GPU"), flags=flags)
    path = write_fake_engine(onnx)
    _flip(path, -1)
    assert "was altered" in refused(onnx)


def test_the_header_of_three_numbers(onnx: Path) -> None:
    """JetPack's TensorRT calls itself 10.3.0; the header has the build's number as well."""
    box = Box("10.3.0", (8, 7), "Orin")
    plan = make_plan(onnx.read_bytes(), "10.3.0.26")
    write_engine(box.folder(onnx.parent, "fp32"), plan, make_sidecar(onnx, plan, box))
    assert find(onnx, box).parent.name == "sm87-10.3.0-fp32"


def test_a_build_number_beyond_a_byte(onnx: Path) -> None:
    box = Box("11.4.0.300", (8, 9), "Fake GPU")
    write_fake_engine(onnx, box)
    assert find(onnx, box)


def test_versions() -> None:
    assert version_numbers("10.13.3.9") == (10, 13, 3, 9)
    assert version_numbers("10.0.0b6") == (10, 0, 0)
    with pytest.raises(ValueError, match="'' is not a version"):
        version_numbers("")


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
    """An engine is for one model of GPU unless it was built for more."""
    l4 = replace(FAKE_BOX, gpu="NVIDIA L4")
    write_fake_engine(onnx)
    assert "this is NVIDIA L4 (--hardware-compatibility makes one engine for both)" in (
        refused(onnx, l4)
    )
    assert find(onnx, replace(FAKE_BOX, gpu=None))  # where nobody asks for the model
    write_fake_engine(onnx, flags=BuildFlags(hardware_compatibility=SAME))
    assert find(onnx, l4)


def test_the_newest_of_several_compatible_ones(onnx: Path) -> None:
    flags = BuildFlags(version_compatible=True)
    for version in ("10.9.0.34", "10.12.0.36", "10.10.0.31", "10.14.1.48"):
        write_fake_engine(onnx, Box(version, (8, 9), "Fake GPU"), flags=flags)
    assert find(onnx).parent.name == "sm89-10.12.0.36-fp32"
    path = write_fake_engine(onnx)  # its own comes first
    assert find(onnx) == path


def test_a_version_compatible_plan_may_have_any_version_in_its_header(onnx: Path) -> None:
    plan = make_plan(onnx.read_bytes(), "8.6.1.6")
    sidecar = make_sidecar(onnx, plan, flags=BuildFlags(version_compatible=True))
    write_engine(FAKE_BOX.folder(onnx.parent, "fp32"), plan, sidecar)
    assert find(onnx)


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


def test_an_engine_written_anew(onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A build that is interrupted between the two files leaves nothing that is believed."""
    path = write_fake_engine(onnx)
    old = path.read_bytes()

    def disk_is_full(path: Path, data: bytes) -> None:
        if path.suffix == failing:
            raise OutputError("no space")
        path.write_bytes(data)

    monkeypatch.setattr("clipsam.runtime.engine_file.write_bytes", disk_is_full)
    plan = old + b"new"
    for failing in (".engine", ".json"):
        with pytest.raises(OutputError):
            write_engine(path.parent, plan, make_sidecar(onnx, plan))
        if failing == ".engine":
            assert find(onnx)  # the old one is whole
    assert "was truncated or altered" in refused(onnx)
    failing = "none"
    assert write_engine(path.parent, plan, make_sidecar(onnx, plan)) == find(onnx) == path


def test_sidecar_round_trip(onnx: Path) -> None:
    sidecar = make_sidecar(
        onnx,
        b"plan",
        flags=BuildFlags(True, AMPERE, 5, 1 << 30, True),
        gate={"rough": {"max_abs": 1e-3}},
    )
    assert Sidecar.from_json(sidecar.to_json()) == sidecar
    assert sidecar.platform == this_platform()
    assert this_platform() == f"{platform.system()}-{platform.machine()}".lower()
    assert json.loads(sidecar.to_json())["inputs"][0] == {
        "name": "left",
        "dtype": "float32",
        "shape": ["n", 3],
    }


WRONG: dict[str, dict[str, Any]] = {
    "unknown field x": {"x": 1},
    "gpu is not text": {"gpu": 5},
    "is not a version": {"tensorrt": "ten"},
    "is not a list of sizes": {"compute_capability": "89"},
    "not enough values": {"compute_capability": [8]},
    "too many values": {"compute_capability": [8, 9, 0]},
    "engine_size is not a number": {"engine_size": "12"},
    "unknown hardware compatibility 'all'": {"flags": {"hardware_compatibility": "all"}},
    "version_compatible is not true or false": {"flags": {"version_compatible": "no"}},
    "gate is not a mapping": {"gate": [1]},
    "no attribute 'items'": {"profiles": []},
    "no field opt": {"profiles": {"left": {"min": [1], "max": [1]}}},
    "is not a shape": {"inputs": [{"name": "left", "dtype": "float32", "shape": [1.5]}]},
    "the name or dtype": {"inputs": [{"name": 1, "dtype": "float32", "shape": [1]}]},
    "is not iterable": {"outputs": 5},
    "unknown field strange": {"inputs": [{"strange": 1}]},
}


@pytest.mark.parametrize("message", WRONG)
def test_a_wrong_sidecar(onnx: Path, message: str) -> None:
    values = json.loads(make_sidecar(onnx, b"plan").to_json())
    changes = WRONG[message]
    if "flags" in changes:
        changes = {"flags": {**values["flags"], **changes["flags"]}}
    with pytest.raises(SidecarError, match=message):
        Sidecar.from_json(json.dumps({**values, **changes}))


@pytest.mark.parametrize("field", ["graph", "flags", "inputs", "engine_sha256", "platform"])
def test_a_sidecar_that_leaves_something_out(onnx: Path, field: str) -> None:
    values = json.loads(make_sidecar(onnx, b"plan").to_json())
    del values[field]
    with pytest.raises(SidecarError, match=f"no field {field}"):
        Sidecar.from_json(json.dumps(values))


JUNK: list[Any] = [None, True, -1, 0, 1.5, float("nan"), "", "x", [], [1], [[]], {}, {"x": 1}]


def _places(values: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value within a JSON value."""
    items = values.items() if isinstance(values, dict) else enumerate(values)
    found = []
    for key, value in items:
        found.append((*path, key))
        if isinstance(value, dict | list):
            found += _places(value, (*path, key))
    return found


def test_any_value_anywhere_is_read_or_refused(onnx: Path) -> None:
    """Nothing in a sidecar raises anything but SidecarError, and what is read can be used."""
    text = make_sidecar(onnx, b"plan").to_json()
    refused = 0
    for place in _places(json.loads(text)):
        for junk in JUNK:
            values = at = json.loads(text)
            for key in place[:-1]:
                at = at[key]
            at[place[-1]] = junk
            try:
                sidecar = Sidecar.from_json(json.dumps(values))
            except SidecarError:
                refused += 1
                continue
            FAKE_BOX.misfit(sidecar)
            Sidecar.from_json(sidecar.to_json())
            assert sidecar.flags.version_compatible in (True, False)
    assert refused > 300
