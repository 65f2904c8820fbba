"""Bundles: what opens, and what is refused with a sentence that says what to do."""

from __future__ import annotations

import io
import json
import os
import shutil
import tracemalloc
import zipfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from support.toy_bundle import CATEGORIES, add_prepare, bright_square, build_toy_bundle, hashes

from clipsam.runtime import Bundle, BundleError, CategoryError, ClipSAM
from clipsam.runtime.bundle import Manifest, write_manifest
from clipsam.runtime.external_data import external_files

Values = dict[str, Any]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_toy_bundle(tmp_path_factory.mktemp("toy") / "bundle")


@pytest.fixture
def toy(pristine: Path, tmp_path: Path) -> Path:
    """A copy that the test may damage."""
    return Path(shutil.copytree(pristine, tmp_path / "bundle"))


def edit(folder: Path, change: Callable[[Values], Any], rehash: bool = False) -> None:
    """Change the manifest's JSON; with `rehash`, vouch for the files as they are now."""
    path = folder / "manifest.json"
    values = json.loads(path.read_text())
    if rehash:
        values["files"] = hashes(folder)
    change(values)
    path.write_text(json.dumps(values))


def refuse(folder: Path, message: str) -> None:
    with pytest.raises(BundleError, match=message) as error:
        Bundle.open(folder)
    text = str(error.value)
    assert text.endswith(".")
    assert "build it again with `python export/build_engines.py`" in text
    assert "\n" not in text


def test_a_bundle_opens_with_its_text_and_graphs(toy: Path) -> None:
    bundle = Bundle.open(str(toy))
    assert bundle.folder == toy
    assert len(bundle.id) == 12
    int(bundle.id, 16)
    assert bundle.manifest.clip_image_size == 64
    assert bundle.manifest.sam_image_size == 128
    assert bundle.manifest.categories == tuple(CATEGORIES)
    assert bundle.graph_path("sam_decoder") == toy / "sam_decoder.onnx"
    text = bundle.text("metal nut")
    assert text.shape == (4, 2)
    assert text.dtype == np.float32
    assert (text[:, 1] == np.float32(0.9)).all()


def test_a_manifest_survives_json(toy: Path) -> None:
    manifest = Bundle.open(toy).manifest
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_the_id_names_the_content(toy: Path) -> None:
    first = Bundle.open(toy).id
    assert Bundle.open(toy).id == first
    seen = {first}
    for name in ("parity.json", "sam_encoder.onnx"):
        path = toy / name
        if name == "parity.json":
            path.write_text('{"changed": 1}')
        else:
            path.write_bytes(path.read_bytes().replace(b"sam_encoder", b"sam_encodes"))
        edit(toy, lambda _: None, rehash=True)
        seen.add(Bundle.open(toy).id)
    edit(toy, lambda v: v["prompts"].update(seed=1))
    seen.add(Bundle.open(toy).id)
    assert len(seen) == 4


@pytest.mark.parametrize("where", ["nothing", "file", "file/below", "."])
def test_a_folder_without_a_bundle_is_refused(where: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    refuse(tmp_path / where, r"There is no bundle in .* \(manifest.json: .+\)")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", "has schema None, this version of clipsam reads schema 3 and 4"),
        (b"3", "has schema None"),
        (b"{}", "has schema None"),
        (b'{"schema": 2, "graphs": {}}', "has schema 2, .* or build it again with `python export/"),
        (b'{"schema": 5}', "has schema 5, this version .* install the clipsam that built it"),
        (b'{"schema": 4}', "is damaged"),
        (b'{"schema": "3"}', "has schema '3'"),
        (b'{"schema": 3}', "is damaged"),
        (b'{"schema": 3.0}', "has schema 3.0"),
        (b'{"schema": 3, "schema": 3}', "is not JSON .a key is given twice"),
        (b'{"schema": 3, "name": NaN}', "is not JSON .NaN is not a number"),
        (b'{"schema": 3, "name": "\\ud800"}', "is not JSON"),
        (b'{"schema": 3, "name": "\xff"}', "is not JSON"),
        (b'{"schema": 3, "name": ' + b"9" * 5000 + b"}", "is not JSON"),
        (b" " * (4 << 20) + b"{}", "over the limit of 4,194,304"),
    ],
)
def test_a_file_that_is_no_manifest_is_refused(toy: Path, data: bytes, message: str) -> None:
    (toy / "manifest.json").write_bytes(data)
    refuse(toy, message)


WRONG: dict[str, Callable[[Values], Any]] = {
    "no graphs": lambda v: v.pop("variants"),
    "no files": lambda v: v.pop("files"),
    "no name": lambda v: v.pop("name"),
    "no categories": lambda v: v.pop("categories"),
    "no prompts": lambda v: v.pop("prompts"),
    "unknown key": lambda v: v.update(colour="red"),
    "unknown option": lambda v: v["prompts"].update(colour="red"),
    "unknown graph field": lambda v: v["variants"]["fp32"]["clip_umci"].update(colour="red"),
    "graphs a list": lambda v: v.update(variants=[]),
    "no float32": lambda v: v["variants"].pop("fp32"),
    "a variant a list": lambda v: v["variants"].update(fp16=[]),
    "an unknown precision": lambda v: v["variants"].update(fp12={}),
    "a graph's precision unknown": lambda v: v["variants"]["fp32"]["clip_umci"].update(
        precision="fp12"
    ),
    "a graph's precision missing": lambda v: v["variants"]["fp32"]["clip_umci"].pop("precision"),
    "graph a word": lambda v: v["variants"]["fp32"].update(clip_umci="x"),
    "no file of a graph": lambda v: v["variants"]["fp32"]["clip_umci"].pop("file"),
    "file a number": lambda v: v["variants"]["fp32"]["clip_umci"].update(file=3),
    "files a list": lambda v: v.update(files=[]),
    "hash a number": lambda v: v["files"].update({"parity.json": 3}),
    "name a list": lambda v: v.update(name=[1]),
    "categories a number": lambda v: v.update(categories=3),
    "category a number": lambda v: v["categories"].__setitem__(0, 3),
    "provenance a list": lambda v: v.update(provenance=[]),
    "parity a word": lambda v: v.update(parity="fine"),
    "threshold a word": lambda v: v["prompts"].update(threshold="0.5"),
    "threshold out of range": lambda v: v["decision"].update(threshold=1.5),
    "points unknown": lambda v: v["prompts"].update(points="random"),
    "norm unknown": lambda v: v["fusion"].update(norm="dataset"),
    "preprocessing unknown": lambda v: v["preprocess"].update(clip="crop"),
    "preprocess a word": lambda v: v.update(preprocess="crop"),
    "NUL in a path": lambda v: v["files"].update({"a\0b": "0"}),
    "input without a shape": lambda v: v["variants"]["fp32"]["clip_umci"]["inputs"][0].pop("shape"),
    "image size free": lambda v: v["variants"]["fp32"]["clip_umci"]["inputs"][0].update(
        shape=["b", "s", "s", 3]
    ),
    "image without axes": lambda v: v["variants"]["fp32"]["sam_encoder"]["inputs"][0].update(
        shape=[]
    ),
}


def _first_input(spec: dict[str, Any], values: dict[str, Any]) -> None:
    """The manifest's `values` with another first input of clip_umci."""
    values["variants"]["fp32"]["clip_umci"]["inputs"][0] = spec


NUMBERS: tuple[Any, ...] = ({}, [], True, None, "1", 1e999, -1, 1e30, 10**30)


def _put(value: Any, *keys: str) -> Callable[[Values], Any]:
    def change(values: Values) -> None:
        for key in keys[:-1]:
            values = values[key]
        values[keys[-1]] = value

    return change


FP32 = ("variants", "fp32", "clip_umci")
for section, key in (
    ("prompts", "threshold"),
    ("prompts", "num_points"),
    ("prompts", "max_boxes"),
    ("prompts", "min_area"),
    ("prompts", "limit"),
    ("prompts", "seed"),
    ("fusion", "mask_weight"),
    ("fusion", "crop_mask_weight"),
    ("decision", "threshold"),
    ("decision", "min_area"),
):
    for value in NUMBERS:
        WRONG[f"{key} of {section}: {value!r}"] = _put(value, section, key)
for value in (*NUMBERS, "", "a\0", "two\nlines", "x" * 300):
    if value != "1":
        WRONG[f"name {value!r:.20}"] = _put(value, "name")
        WRONG[f"category {value!r:.20}"] = _put(["object", value], "categories")
        WRONG[f"file {value!r:.20}"] = _put(value, *FP32, "file")
    WRONG[f"hash {value!r:.20}"] = _put(value, "files", "parity.json")
    WRONG[f"norm {value!r:.20}"] = _put(value, "fusion", "norm")
    WRONG[f"precision {value!r:.20}"] = _put(value, *FP32, "precision")
    WRONG[f"inputs {value!r:.20}"] = _put(value, *FP32, "inputs")
for shape in (
    [1, 192, 96, 3],
    [1, 64, 64, 4],
    [1, 64, 64],
    [1, 2.0, 2.0, 3],
    [1, True, True, 3],
    [1, 10**9, 10**9, 3],
    [1, -64, -64, 3],
    [1] * 1000,
    "bss3",
    None,
):
    image = {"name": "image", "dtype": "uint8", "shape": shape}
    WRONG[f"image {shape!r:.20}"] = partial(_first_input, image)
WRONG["categories a word"] = _put("object", "categories")
WRONG["no category"] = _put([], "categories")
WRONG["a category twice"] = _put(["object", "object"], "categories")
WRONG["text size free"] = lambda v: v["variants"]["fp32"]["clip_umci"]["inputs"][1].update(
    shape=["b", "c", 2]
)
WRONG["a graph of another format"] = _put("parity.json", *FP32, "file")


@pytest.mark.parametrize("name", WRONG)
def test_a_damaged_manifest_is_refused(toy: Path, name: str) -> None:
    edit(toy, WRONG[name])
    refuse(toy, "manifest.json is (damaged|not JSON)")


def test_a_number_that_overflows_is_refused(toy: Path) -> None:
    path = toy / "manifest.json"
    path.write_text(path.read_text().replace('"threshold": 0.47', '"threshold": 1e999'))
    refuse(toy, "threshold of prompts is not finite")


def test_a_contract_that_is_not_met(toy: Path) -> None:
    edit(toy, lambda v: v["variants"]["fp32"].pop("sam_encoder"))
    refuse(toy, "does not describe the graph sam_encoder")


def test_an_output_of_another_name(toy: Path) -> None:
    edit(toy, lambda v: v["variants"]["fp32"]["clip_umci"]["outputs"][0].update(name="map"))
    refuse(toy, "does not describe the graph clip_umci")


def add_int8(v: Values) -> None:
    """As a build leaves it: int8 has two graphs of its own, its decoder is the fp16 one."""
    for precision in ("int8", "fp16"):
        v["variants"][precision] = variant = {}
        for name, entry in v["variants"]["fp32"].items():
            own = "fp16" if name == "sam_decoder" else precision
            variant[name] = {**entry, "file": f"{name}.{own}.onnx", "precision": own}


def test_a_graph_missing_in_a_precision_is_taken_from_a_safer_one(toy: Path) -> None:
    assert Bundle.open(toy).precisions == ("fp32",)
    for name in ("clip_umci", "sam_encoder", "sam_decoder"):
        for precision in ("fp16", "int8"):
            shutil.copy(toy / f"{name}.onnx", toy / f"{name}.{precision}.onnx")
    (toy / "sam_decoder.int8.onnx").unlink()
    edit(toy, add_int8, rehash=True)

    bundle = Bundle.open(toy)
    assert bundle.precisions == ("fp32", "fp16", "int8")  # from the safest on
    assert bundle.graph_path("sam_encoder") == toy / "sam_encoder.onnx"
    assert bundle.graph_path("sam_encoder", "int8") == toy / "sam_encoder.int8.onnx"
    assert bundle.graph_path("sam_decoder", "int8") == toy / "sam_decoder.fp16.onnx"
    assert bundle.graph_entry("sam_decoder", "int8").precision == "fp16"
    assert bundle.graph_entry("sam_encoder").precision == "fp32"
    with pytest.raises(
        BundleError, match=r"no graph clip_umci in bf16, only in fp32, int8, fp16: "
    ):
        bundle.graph_path("clip_umci", "bf16")
    with pytest.raises(BundleError, match="no graph other in fp32, only in none"):
        bundle.graph_path("other")

    edit(toy, lambda v: v["variants"]["fp16"].pop("clip_umci"))
    bundle = Bundle.open(toy)
    assert bundle.precisions == ("fp32", "int8")  # fp16 is not complete
    assert bundle.graph_path("sam_decoder", "fp16") == toy / "sam_decoder.fp16.onnx"
    with pytest.raises(BundleError, match=r"build_engines.py --precision fp16`, or use another"):
        bundle.graph_path("clip_umci", "fp16")


def test_a_bundle_of_schema_3_is_read_and_has_no_prepare(toy: Path) -> None:
    edit(toy, lambda v: (v.pop("prepare"), v.update(schema=3)))
    manifest = Bundle.open(toy).manifest
    assert (manifest.schema, manifest.prepare) == (3, None)
    write_manifest(toy, manifest)  # as `clipsam words` does
    assert Bundle.open(toy).manifest == replace(manifest, schema=4)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda p: p["outputs"][0].update(shape=[1, 65, 65, 3]),
        lambda p: p["outputs"][1].update(dtype="float32"),
        lambda p: p["outputs"].pop(),
        lambda p: p["inputs"].pop(),
        lambda p: p["inputs"][0].update(name="picture"),
        lambda p: p.update(precision="fp16"),
    ],
)
def test_a_prepare_that_does_not_fit_the_other_graphs_is_refused(
    toy: Path, wrong: Callable[[Values], Any]
) -> None:
    add_prepare(toy)
    assert Bundle.open(toy).manifest.prepare is not None
    edit(toy, lambda v: wrong(v["prepare"]))
    refuse(toy, "a graph prepare that does not fit the others")


def test_a_prepare_is_vouched_for_like_every_file(toy: Path) -> None:
    path = add_prepare(toy)
    path.write_bytes(path.read_bytes() + b"\0")
    refuse(toy, "prepare.onnx was truncated or altered")
    edit(toy, lambda v: v["files"].pop("prepare.onnx"))
    refuse(toy, "has no hash of prepare.onnx")


def test_a_variant_has_the_tensors_of_float32(toy: Path) -> None:
    for name in ("clip_umci", "sam_encoder", "sam_decoder"):
        for precision in ("fp16", "int8"):
            shutil.copy(toy / f"{name}.onnx", toy / f"{name}.{precision}.onnx")
    edit(toy, add_int8, rehash=True)
    edit(toy, lambda v: v["variants"]["fp16"]["clip_umci"]["inputs"][1].update(dtype="float16"))
    refuse(toy, "describes clip_umci in fp16 with other tensors than in fp32")


@pytest.mark.parametrize("name", ["clip_umci.onnx", "text_features.npz", "parity.json"])
def test_missing_truncated_and_altered_files_are_refused(toy: Path, name: str) -> None:
    path = toy / name
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    refuse(toy, f"{name} was truncated or altered .* copy the whole folder again")
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    refuse(toy, f"{name} was truncated or altered")
    path.write_bytes(data + b"\0")
    refuse(toy, f"{name} was truncated or altered")
    path.unlink()
    refuse(toy, rf"{name} cannot be read \(No such file or directory\): copy the whole folder")
    path.mkdir()
    refuse(toy, rf"{name} cannot be read")
    path.rmdir()
    path.write_bytes(data)
    Bundle.open(toy)


@pytest.mark.parametrize("name", ["clip_umci.onnx", "text_features.npz"])
def test_a_file_nobody_vouches_for(toy: Path, name: str) -> None:
    edit(toy, lambda v: v["files"].pop(name))
    refuse(toy, f"has no hash of {name}")


@pytest.mark.parametrize(
    "path",
    [
        "../secret",
        "a/../../secret",
        "sub/../parity.json",
        "/etc/passwd",
        "..\\secret",
        "C:\\secret",
        "C:/secret",
        "\\\\server\\share",
    ],
)
def test_a_path_that_leaves_the_folder(toy: Path, path: str) -> None:
    (toy.parent / "secret").write_text("x")
    edit(toy, lambda v: v["files"].update({path: hashes(toy)["parity.json"]}))
    refuse(toy, "lies outside its folder: do not use it")


def test_a_link_that_leaves_the_folder(toy: Path) -> None:
    outside = toy.parent / "elsewhere.onnx"
    (toy / "clip_umci.onnx").rename(outside)
    (toy / "clip_umci.onnx").symlink_to(outside)  # same bytes, same hash
    refuse(toy, "clip_umci.onnx cannot be read .it is a link, a folder or a device")


def test_a_linked_bundle_opens(toy: Path, tmp_path: Path) -> None:
    link = tmp_path / "current"
    link.symlink_to(toy)
    assert Bundle.open(link).id == Bundle.open(toy).id


def test_a_manifest_that_is_a_link(toy: Path) -> None:
    (toy / "manifest.json").rename(toy / "other.json")
    (toy / "manifest.json").symlink_to("other.json")
    refuse(toy, "manifest.json cannot be read .it is a link")


@pytest.mark.parametrize("name", ["manifest.json", "parity.json", "clip_umci.onnx"])
@pytest.mark.parametrize("kind", ["pipe", "loop"])
def test_what_is_no_regular_file_is_refused_at_once(toy: Path, name: str, kind: str) -> None:
    (toy / name).unlink()
    if kind == "pipe":
        os.mkfifo(toy / name)  # whoever opens it to read waits for a writer
    else:
        (toy / name).symlink_to(name)
    refuse(toy, "regular file|symbolic links")


@pytest.mark.parametrize("name", ["parity.json", "clip_umci.onnx", "text_features.npz"])
def test_an_absurd_size_is_refused_before_it_is_read(toy: Path, name: str) -> None:
    os.truncate(toy / name, 200 << 30)  # a sparse file: no disk is needed for it
    refuse(toy, f"{name} cannot be read .it has 214,748,364,800 bytes, over the limit")


def _with_external_weights(path: Path, weight: float, hide: str, location: str) -> None:
    """Have the graph at `path` multiply its output with a tensor that lies in another file."""
    model = onnx.load(path)
    for node in model.graph.node:
        node.output[:] = ["before" if name == "rough" else name for name in node.output]
    tensor = onnx.TensorProto(name="secret", data_type=1, dims=[1], data_location="EXTERNAL")
    for key, value in (("location", location), ("length", "4")):
        tensor.external_data.add(key=key, value=value)
    if hide == "initializer":
        model.graph.initializer.append(tensor)
    else:
        constant = onnx.helper.make_node("Constant", [], ["secret"], value=tensor)
        model.graph.node.insert(0, constant)
    model.graph.node.append(onnx.helper.make_node("Mul", ["before", "secret"], ["rough"]))
    path.write_bytes(model.SerializeToString())
    (path.parent / location).write_bytes(np.float32(weight).tobytes())


@pytest.mark.parametrize("hide", ["initializer", "attribute"])
@pytest.mark.parametrize("listed", [False, True])
def test_a_graph_reads_no_file_that_is_not_vouched_for_under_its_name(
    toy: Path, hide: str, listed: bool
) -> None:
    """Such a file changed verdicts under the same id."""
    _with_external_weights(toy / "clip_umci.onnx", 0, hide, "secret.bin")
    edit(toy, lambda v: listed or v["files"].pop("secret.bin"), rehash=True)
    refuse(toy, "graph clip_umci.onnx reads the file 'secret.bin'.* do not use it")
    with pytest.raises(BundleError, match="does not vouch for"):
        ClipSAM.open(toy, threads=1)


def test_weights_beside_their_graph_are_read(toy: Path) -> None:
    path = toy / "clip_umci.onnx"
    _with_external_weights(path, 1, "initializer", f"{path.name}.data")
    edit(toy, lambda _: None, rehash=True)
    assert external_files(path) == {f"{path.name}.data"}
    with ClipSAM.open(toy, threads=1) as model:
        assert model.inspect(bright_square()).verdict == "anomalous"
    edit(toy, lambda v: v["files"].pop(f"{path.name}.data"))
    refuse(toy, "does not vouch for")


@pytest.mark.parametrize("order", [("evil", "good"), ("good", "evil")])
def test_a_location_given_twice_hides_nothing(tmp_path: Path, order: tuple[str, str]) -> None:
    def field(number: int, data: bytes) -> bytes:
        return bytes([number << 3 | 2, len(data)]) + data

    entry = field(1, b"location") + b"".join(field(2, name.encode()) for name in order)
    tensor = field(5, b"\x6a" + bytes([len(entry)]) + entry)  # field 13 of a tensor
    path = tmp_path / "a.onnx"
    path.write_bytes(field(7, tensor))
    assert external_files(path) == {"evil", "good"}


def test_every_cut_of_a_graph_is_read_or_refused(toy: Path) -> None:
    data = (toy / "sam_decoder.onnx").read_bytes()
    path = toy / "cut.onnx"
    refused = 0
    for length in range(1, len(data), 7):
        path.write_bytes(data[:length])
        try:
            external_files(path)
        except ValueError:
            refused += 1
    assert refused > len(data) // 7 * 0.9


class _Trap:
    """Unpickling this writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_text_features_are_never_unpickled(toy: Path, tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    features = np.empty((4, 4, 2), object)
    features[:] = _Trap(sprung)
    np.savez(toy / "text_features.npz", categories=np.array(list(CATEGORIES)), features=features)
    edit(toy, lambda _: None, rehash=True)
    refuse(toy, r"text_features.npz cannot be read \(Object arrays cannot be loaded")
    assert not sprung.exists()
    with np.load(toy / "text_features.npz", allow_pickle=True) as file:
        assert file["features"].shape == (4, 4, 2)
    assert sprung.exists()  # the trap works


def _features(**changes: Any) -> Values:
    arrays: Values = {
        "categories": np.array(list(CATEGORIES)),
        "features": np.zeros((4, 4, 2), np.float32),
    }
    return {k: v for k, v in {**arrays, **changes}.items() if v is not None}


@pytest.mark.parametrize(
    "arrays",
    [
        _features(categories=np.array(["object", "metal nut", "bottle", "nuthing"])),
        _features(categories=np.array(["object"])),
        _features(features=np.zeros((3, 4, 2), np.float32)),
        _features(features=np.zeros((4, 4, 3), np.float32)),
        _features(features=np.zeros((4, 4), np.float32)),
        _features(features=np.float32(0)),
        _features(features=np.zeros((4, 4, 2), np.float64)),
        _features(features=np.zeros((4, 5, 2), np.float32)),  # C_t is not the graph's
        _features(features=np.full((4, 4, 2), np.nan, np.float32)),
        _features(features=None),
        _features(categories=None),
    ],
)
def test_text_features_that_do_not_fit(toy: Path, arrays: Values) -> None:
    np.savez(toy / "text_features.npz", **arrays)
    edit(toy, lambda _: None, rehash=True)
    refuse(toy, "text_features.npz cannot be read")


def test_an_archive_that_unpacks_to_gigabytes_is_refused_before_it_is(toy: Path) -> None:
    header = io.BytesIO()
    shape = (4, 1 << 26, 2)
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": shape}
    )
    np.savez(toy / "text_features.npz", categories=np.array(list(CATEGORIES)))
    with (
        zipfile.ZipFile(toy / "text_features.npz", "a", zipfile.ZIP_DEFLATED) as archive,
        archive.open("features.npy", "w", force_zip64=True) as member,
    ):
        member.write(header.getvalue())
        for _ in range(64):
            member.write(bytes(1 << 20))
    edit(toy, lambda _: None, rehash=True)
    tracemalloc.start()
    try:
        refuse(toy, "features.npy would take 67,.* bytes instead of 128")
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_a_header_that_claims_more_than_there_is(toy: Path) -> None:
    header = io.BytesIO()
    shape = (4, 1 << 40, 2)
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": shape}
    )
    np.savez(toy / "text_features.npz", categories=np.array(list(CATEGORIES)))
    with zipfile.ZipFile(toy / "text_features.npz", "a") as archive:
        archive.writestr("features.npy", header.getvalue())
    edit(toy, lambda _: None, rehash=True)
    refuse(toy, "features.npy is cut off")


@pytest.mark.parametrize("damage", ["garbage", "empty", "npy", "cut", "flip"])
def test_text_features_that_are_damaged(toy: Path, damage: str) -> None:
    """The hash fits (someone rebuilt the manifest), the archive does not open."""
    path = toy / "text_features.npz"
    data = path.read_bytes()
    damaged = {
        "garbage": b"PK\3\4" + b"x" * 100,
        "empty": b"",
        "cut": data[: len(data) // 2],
        "flip": data[:200] + bytes([data[200] ^ 255]) + data[201:],
    }
    if damage == "npy":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    else:
        path.write_bytes(damaged[damage])
    edit(toy, lambda _: None, rehash=True)
    refuse(toy, "text_features.npz cannot be read")


@pytest.mark.parametrize("word", ["metalnut", "metal_nut", "Metal Nut", "metal nuts"])
def test_an_unknown_category_offers_close_words(toy: Path, word: str) -> None:
    with pytest.raises(CategoryError, match="did you mean 'metal nut'") as error:
        Bundle.open(toy).text(word)
    message = str(error.value)
    assert repr(word) in message
    assert all(category in message for category in CATEGORIES)


@pytest.mark.parametrize(("word", "near"), [("steel nut", "'metal nut'"), ("NUT", "'metal nut'")])
def test_an_unknown_category_offers_what_shares_a_word(toy: Path, word: str, near: str) -> None:
    with pytest.raises(CategoryError, match=f"did you mean {near}") as error:
        Bundle.open(toy).text(word)
    assert "'object' fits anything" in str(error.value)
    assert f'clipsam words {toy} "{word}"' in str(error.value)


@pytest.mark.parametrize("word", ["zzz", "", None, 3, ["qqq"]])
def test_an_unknown_category_names_the_known(toy: Path, word: Any) -> None:
    with pytest.raises(CategoryError, match=r"it knows object, metal nut, bottle, nothing"):
        Bundle.open(toy).text(word)


def test_a_graph_that_is_not_what_the_manifest_says(toy: Path) -> None:
    """Right names, other sizes: found when opened, not as a wrong map."""
    (toy / "clip_umci.onnx").unlink()
    shutil.copy(toy / "sam_encoder.onnx", toy / "clip_umci.onnx")
    edit(toy, lambda _: None, rehash=True)
    with pytest.raises(BundleError, match=r"clip_umci.onnx does not have the tensor image uint8"):
        ClipSAM.open(toy, threads=1)
    edit(toy, lambda v: v["variants"]["fp32"]["sam_encoder"]["inputs"][1].update(dtype="int32"))
    edit(
        toy,
        lambda v: v["variants"]["fp32"]["sam_encoder"]["inputs"][0].update(shape=[1, 96, 96, 3]),
    )
    with pytest.raises(BundleError, match="does not have the tensor"):
        ClipSAM.open(toy, threads=1)
