"""What a bundle keeps for the gate: made from float32, read back as it was, damage refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.golden_toy import build_golden_toy, golden_toy_outputs

from clipsam.export.parity.golden import GOLDEN, GoldenOutputs, read_golden, write_golden
from clipsam.export.parity.golden_record import LARGEST, golden_steps, open_all
from clipsam.export.parity.inspection import compare_picture
from clipsam.export.parity.profiles import axis_sizes, graph_profiles
from clipsam.export.parity.tensors import compare
from clipsam.export.trt.gate import check_session, check_whole
from clipsam.runtime import BundleError
from clipsam.runtime.backends.base import Session
from clipsam.runtime.backends.trt.sidecar import Profile
from clipsam.runtime.bundle import GRAPHS, Bundle
from clipsam.runtime.images.thumbnail import shrink


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_golden_toy(tmp_path_factory.mktemp("toy") / "bundle")


def _same(a: GoldenOutputs, b: GoldenOutputs) -> None:
    assert len(a.cases) == len(b.cases)
    for one, other in zip(a.cases, b.cases, strict=True):
        assert (one.graph, one.name, one.own) == (other.graph, other.name, other.own)
        for mine, theirs in ((one.feeds, other.feeds), (one.outputs, other.outputs)):
            assert set(mine) == set(theirs)
            for name in mine:
                assert mine[name].dtype == theirs[name].dtype
                assert np.array_equal(mine[name], theirs[name])
    assert a.own == b.own
    for one_p, other_p in zip(a.pictures, b.pictures, strict=True):
        for name in ("name", "category", "options", "verdict"):
            assert getattr(one_p, name) == getattr(other_p, name)
        for name in ("image", "masks", "scores", "final"):
            assert np.array_equal(getattr(one_p, name), getattr(other_p, name))
            assert getattr(one_p, name).dtype == getattr(other_p, name).dtype
        assert np.array_equal(one_p.prompts.coordinates(), other_p.prompts.coordinates())


def test_what_is_read_is_what_was_written(toy: Path, tmp_path: Path) -> None:
    found, made = read_golden(toy), golden_toy_outputs(toy)
    _same(found, made)
    write_golden(tmp_path / GOLDEN, found)
    assert (tmp_path / GOLDEN).read_bytes() == (toy / GOLDEN).read_bytes()
    assert GOLDEN in Bundle.open(toy).manifest.files


def test_sam_encodes_a_picture_once(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[object] = []
    plain = Session.run

    def run(self: Session, *args: Any) -> dict[str, Any]:
        runs.extend(name for name in self.outputs if name == "embedding")
        return plain(self, *args)

    monkeypatch.setattr("clipsam.runtime.backends.ort.session.OrtSession.run", run)
    golden = golden_toy_outputs(toy)
    encoded = [case for case in golden.cases if case.graph == "sam_encoder"]
    assert len(runs) == len(encoded) + sum(bool(len(p.prompts)) for p in golden.pictures) == 6


def test_inputs_reach_from_the_smallest_to_the_largest_engine_size(toy: Path) -> None:
    manifest, golden = Bundle.open(toy).manifest, read_golden(toy)
    for name in GRAPHS:
        entry = manifest.graphs[name]
        cases = golden.cases_for(name, "fp16")
        assert cases
        for tensor, profile in graph_profiles(entry, axis_sizes(manifest)).items():
            shapes = {case.feeds[tensor].shape for case in cases}
            assert {profile.min, profile.max} <= shapes
            assert all(
                low <= size <= high
                for shape in shapes
                for low, size, high in zip(profile.min, shape, profile.max, strict=True)
            )
    profiles = graph_profiles(manifest.graphs["clip_umci"], axis_sizes(manifest))
    assert profiles["text"] == Profile((1, 4, 2), (1, 4, 2), (8, 4, 2))
    assert graph_profiles(manifest.graphs["sam_encoder"], axis_sizes(manifest)) == {}


def test_the_outputs_are_float32s(toy: Path) -> None:
    bundle, golden = Bundle.open(toy), read_golden(toy)
    assert {picture.verdict for picture in golden.pictures} == {"good", "anomalous"}
    assert any(picture.masks.any() for picture in golden.pictures)
    with open_all(bundle, 1) as sessions:
        for case in golden.cases:
            found = sessions[case.graph].run(case.feeds)
            assert all(
                compare(case.graph, "", name, case.outputs[name], found[name]).passed
                for name in found
            )
        for picture in golden.pictures:
            assert compare_picture(bundle, sessions, picture, "fp32").passed


def test_int8_is_judged_by_the_users_images(toy: Path) -> None:
    golden = read_golden(toy)
    assert {case.own for case in golden.cases_for("sam_encoder", "int8")} == {True}
    assert len(golden.cases_for("sam_encoder", "fp16")) == 3
    assert golden.pictures_for("int8") == golden.pictures[-1:]
    assert golden.pictures_for("bf16") == golden.pictures
    assert golden_steps([0, 0, 0], [0]) == len(golden.cases) + len(golden.pictures)


def test_a_build_records_golden_outputs_that_hold(small_bundle: Path) -> None:
    """A bundle of small models, as its build leaves it: everything holds, in little space."""
    bundle, golden = Bundle.open(small_bundle), read_golden(small_bundle)
    assert GOLDEN in bundle.manifest.files
    assert (small_bundle / GOLDEN).stat().st_size < 10e6
    assert len(golden.pictures) == 4
    assert any(len(picture.prompts) for picture in golden.pictures)
    assert golden.own == 0
    with open_all(bundle, 1) as sessions:
        for name, session in sessions.items():
            check_session(name, session, golden.cases_for(name, "fp32"), "fp32", ["fp32"])
        check_whole(bundle, sessions, golden.pictures, "fp32")


def test_large_pictures_are_shrunk() -> None:
    assert shrink(np.zeros((3000, 1000, 3), np.uint8), LARGEST).shape == (LARGEST, 171, 3)
    small = np.zeros((100, 200, 3), np.uint8)
    assert shrink(small, LARGEST) is small


def test_a_bundle_without_golden_outputs_is_refused(toy: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"no golden.npz, by which .* build the bundle again"):
        read_golden(tmp_path)


@pytest.mark.parametrize("what", ["truncated", "schema", "pickle", "prompts"])
def test_a_file_of_damaged_golden_outputs_is_refused(toy: Path, tmp_path: Path, what: str) -> None:
    data = (toy / GOLDEN).read_bytes()
    path = tmp_path / GOLDEN
    with np.load(toy / GOLDEN) as file:
        arrays = dict(file)
    index = json.loads(str(arrays["index"]))
    if what == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif what == "pickle":
        np.savez(path, index=np.array([{}], dtype=object))
    else:
        if what == "schema":
            index["schema"] = 99
        else:
            arrays[index["pictures"][0]["arrays"]["boxes"]] += 1
        np.savez(path, **{**arrays, "index": np.array(json.dumps(index))})
    with pytest.raises(BundleError, match=r"golden.npz cannot be read \(.*\): build the bundle"):
        read_golden(tmp_path)
