from __future__ import annotations

import errno
import importlib.util
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from support.toy_bundle import bright_square, build_toy_bundle, plain_part
from support.triton_stand_in import Request, Tensor, stand_in
from support.trt_engines import FAKE_BOX, write_fake_engine

from clipsam.runtime import ClipSAM
from clipsam.runtime.bundle import GRAPHS, Bundle
from clipsam.runtime.calibration.record import Calibration, Promise
from clipsam.runtime.cli import main
from clipsam.runtime.core.errors import CalibrationError, OutputError
from clipsam.runtime.model_repository import pbtxt, repository
from clipsam.runtime.model_repository.config import Serving
from clipsam.runtime.model_repository.repository import write_repository

Write = Callable[..., int]


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "model_repository"


@pytest.fixture
def write(toy: Path, output: Path) -> Write:
    return lambda *options: main(["triton", str(toy), "-o", str(output), *options])


def config_of(folder: Path) -> Any:
    """A `config.pbtxt` as Triton's own schema reads it; an error for what it does not know."""
    reason = "Triton's schema is not installed: pip install 'tritonclient[grpc]'"
    pytest.importorskip("google.protobuf", reason=reason)
    try:
        from tritonclient.grpc import model_config_pb2
    except (ImportError, RuntimeError):
        pytest.skip(reason)
    from google.protobuf import text_format  # type: ignore[import-untyped]

    text = (folder / "config.pbtxt").read_text()
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def test_every_configuration_is_of_tritons_schema_and_says_what_its_graph_takes(
    write: Write, output: Path, toy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import onnxruntime

    assert write("--batch", "4", "--delay", "2ms", "--threads", "2") == 0
    assert f"tritonserver --model-repository {output}" in capsys.readouterr().out
    types = {"TYPE_UINT8": "uint8", "TYPE_FP32": "float", "TYPE_FP16": "float16"}
    types["TYPE_INT64"] = "int64"
    for graph in GRAPHS:
        folder = output / f"clipsam_{graph}"
        config = config_of(folder)
        assert (config.name, config.backend) == (folder.name, "onnxruntime")
        session = onnxruntime.InferenceSession(folder / "1" / config.default_model_filename)
        batched = config.max_batch_size > 0
        for ours, theirs in (
            (config.input, session.get_inputs()),
            (config.output, session.get_outputs()),
        ):
            for tensor, spec in zip(ours, theirs, strict=True):
                shape = [-1 if isinstance(side, str) else side for side in spec.shape]
                dims = [-1, *tensor.dims] if batched else list(tensor.dims)
                kind = type(tensor).DESCRIPTOR.fields_by_name["data_type"].enum_type
                name = kind.values_by_number[tensor.data_type].name
                assert (tensor.name, dims) == (spec.name, shape)
                assert f"tensor({types[name]})" == spec.type
        assert config.parameters["intra_op_thread_count"].string_value == "2"
        group = config.instance_group[0]
        assert (group.kind, group.count) == (type(group).KIND_CPU, 1)
    clip = config_of(output / "clipsam_clip_umci")
    assert clip.max_batch_size == 4
    assert clip.dynamic_batching.max_queue_delay_microseconds == 2000
    assert config_of(output / "clipsam_sam_encoder").max_batch_size == 0  # it takes one image
    method = config_of(output / "clipsam")
    assert (method.backend, method.max_batch_size) == ("python", 4)
    assert [tensor.name for tensor in method.input] == ["image", "file"]
    assert Bundle.open(output / "clipsam/1/bundle").id == Bundle.open(toy).id


def test_on_gpus_every_model_has_instances_on_those_that_were_named(
    write: Write, output: Path
) -> None:
    options = ["--provider", "cuda", "--instances", "2", "--gpus", "0", "3", "--name", "cookie"]
    assert write(*options) == 0
    for name in ("cookie", *(f"cookie_{graph}" for graph in GRAPHS)):
        group = config_of(output / name).instance_group[0]
        assert (group.kind, group.count, list(group.gpus)) == (type(group).KIND_GPU, 2, [0, 3])


def test_engines_become_plans_and_the_method_opens_them_too(tmp_path: Path, output: Path) -> None:
    toy = build_toy_bundle(tmp_path / "bundle")
    for graph in GRAPHS:
        write_fake_engine(toy / f"{graph}.onnx")
    found = write_repository(toy, output, Serving("tensorrt", batch=100))
    assert set(found.values()) == {"model.py", "model.plan"}
    key = FAKE_BOX.folder(Path(), "fp32")
    for graph in GRAPHS:
        config = config_of(output / f"clipsam_{graph}")
        assert (config.backend, config.default_model_filename) == ("tensorrt", "model.plan")
        plan = (output / f"clipsam_{graph}/1/model.plan").read_bytes()
        assert plan == (toy / key / f"{graph}.engine").read_bytes()
        assert plan == (output / "clipsam/1/bundle" / key / f"{graph}.engine").read_bytes()
    most = config_of(output / "clipsam_clip_umci").max_batch_size
    assert 1 < most < 100  # what the engine was built for
    parameters = config_of(output / "clipsam").parameters
    assert parameters["provider"].string_value == "tensorrt"
    assert parameters["precision"].string_value == "fp32"


@pytest.mark.parametrize("damage", ["missing", "altered", "none"])
def test_engines_that_cannot_be_used_are_refused(
    damage: str, tmp_path: Path, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    toy = build_toy_bundle(tmp_path / "bundle")
    if damage != "none":
        paths = [write_fake_engine(toy / f"{graph}.onnx") for graph in GRAPHS]
        if damage == "missing":
            paths[1].unlink()
        else:
            paths[2].write_bytes(paths[2].read_bytes()[:-1] + b"?")
    arguments = ["triton", str(toy), "-o", str(output), "--provider", "tensorrt"]
    assert main(arguments) == 1
    words = {
        "missing": "no TensorRT engine of sam_encoder",
        "altered": "was altered",
        "none": "has no engines",
    }
    assert words[damage] in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [toy]


@pytest.fixture
def method(
    toy: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Any]]:
    """Loads the model.py that was written as Triton does, with a stand-in for Triton's module."""
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", stand_in())
    loaded = []

    def load(**options: Any) -> Any:
        calibration = options.pop("calibration", None)
        write_repository(toy, output, Serving(**options), calibration)
        shutil.move(output, output.with_name("moved"))  # no path of this machine is in it
        folder = output.with_name("moved") / "clipsam"
        spec = importlib.util.spec_from_file_location("model", folder / "1/model.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        from google.protobuf import json_format

        config = json_format.MessageToDict(config_of(folder), preserving_proto_field_name=True)
        model = module.TritonPythonModel()
        model.initialize({"model_config": json.dumps(config), "model_instance_device_id": "0"})
        loaded.append(model)
        return model

    yield load
    for model in loaded:
        model.finalize()
    monkeypatch.delitem(sys.modules, "clipsam.runtime.model_repository.method", raising=False)


def image(*pictures: NDArray[np.uint8]) -> Tensor:
    return Tensor("image", np.stack(pictures))


def file(*contents: bytes) -> Tensor:
    return Tensor("file", np.array([[content] for content in contents], np.object_))


def png(picture: NDArray[np.uint8]) -> bytes:
    return cv2.imencode(".png", picture[..., ::-1])[1].tobytes()


def test_the_method_answers_what_the_library_does(method: Callable[..., Any], toy: Path) -> None:
    good, bad, wide = plain_part(), bright_square(), bright_square(100, 200)
    requests = [
        Request([image(good, bad)]),
        Request([image(wide)], ("verdict", "mask"), {"category": "nothing"}),
        Request([file(png(bad))], ("verdict", "score")),
    ]
    answers = method().execute(requests)
    assert [answer.error for answer in answers] == [None] * 3
    with ClipSAM.open(toy) as model:
        expected = [model.inspect(picture) for picture in (good, bad)]
    assert [list(answer.outputs) for answer in answers[1:]] == [
        ["verdict", "mask"],
        ["verdict", "score"],
    ]
    outputs = answers[0].outputs
    assert outputs["verdict"].tolist() == [[b"good"], [b"anomalous"]]
    assert outputs["score"].shape == (2, 1)
    for i, result in enumerate(expected):
        assert outputs["score"][i, 0] == np.float32(result.score)
        assert outputs["limit"][i, 0] == np.float32(result.limit)
        assert json.loads(outputs["result"][i, 0])["verdict"] == result.verdict
        np.testing.assert_array_equal(outputs["score_map"][i], result.score_map)
        np.testing.assert_array_equal(outputs["mask"][i], result.mask)
    assert answers[1].outputs["verdict"].tolist() == [[b"good"]]  # by its category
    assert answers[1].outputs["mask"].shape == (1, 100, 200)
    assert answers[2].outputs["verdict"].tolist() == [[b"anomalous"]]


def test_the_method_has_the_limit_of_a_calibration_and_refuses_another_bundles(
    method: Callable[..., Any], toy: Path, tmp_path: Path
) -> None:
    path = tmp_path / "bottle.calibration"
    promise = Promise(0.1, 0.95, 30, 0, 0)
    Calibration("0" * 12, "bottle", 0.25, promise, {}).write(path)
    with pytest.raises(CalibrationError, match="that bundle"):
        write_repository(toy, tmp_path / "refused", Serving(), path)
    Calibration(Bundle.open(toy).id, "bottle", 0.25, promise, {}).write(path)
    model = method(calibration=path)
    path.unlink()  # it has its own
    right, wrong = model.execute(
        [
            Request([image(plain_part())]),
            Request([image(plain_part())], said={"category": "object"}),
        ]
    )
    assert right.outputs["limit"].tolist() == [[0.25]]
    assert json.loads(right.outputs["result"][0, 0])["category"] == "bottle"
    assert "was made for 'bottle'" in wrong.error.message()


def test_what_is_wrong_with_a_request_is_its_own_error(method: Callable[..., Any]) -> None:
    good = plain_part()
    requests = [
        Request([file(b"no picture")]),
        Request([]),
        Request([image(good), file(png(good))]),
        Request([image(good)], said={"category": "unheard of"}),
        Request([file(png(good), png(good[:50]))], ("score_map",)),
        Request([image(good)], ("verdict",)),
    ]
    answers = method().execute(requests)
    words = ["not an image", "one input", "one input", "unheard of", "pictures of one size"]
    for answer, word in zip(answers, words, strict=False):
        assert word in answer.error.message()
        assert answer.outputs == {}
    assert answers[5].outputs["verdict"].tolist() == [[b"good"]]


def test_a_repository_is_written_whole_or_not_at_all(
    toy: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = shutil.copyfile, []

    def full(*names: Any) -> Any:
        calls.append(names)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*names)

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OutputError, match="free some space"):
        write_repository(toy, output, Serving())
    monkeypatch.undo()
    monkeypatch.setattr(repository, "_method", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_repository(toy, output, Serving())
    assert list(output.parent.iterdir()) == []


def test_nothing_that_is_there_is_written_over(
    write: Write, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output.mkdir()
    (output / "mine").touch()
    assert write() == 1
    assert "is there already" in capsys.readouterr().err
    assert [path.name for path in output.iterdir()] == ["mine"]
    (output / "mine").unlink()
    assert write() == 0  # an empty folder is as good as none
    assert write("--output", str(output / "clipsam/config.pbtxt/below")) == 1
    assert "could not be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--name", "../x"], "is no name of a model"),
        (["--precision", "int8"], "int8"),
        (["--precision", "int8-dynamic", "--provider", "cuda"], "int8-dynamic"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    options: list[str], words: str, write: Write, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert write(*options) == 1
    assert words in capsys.readouterr().err
    assert not output.parent.joinpath("model_repository").exists()


@pytest.mark.parametrize("options", [["--engines", "x"], ["--gpus", "0"]])
def test_options_of_a_gpu_are_wrong_usage_on_a_cpu(options: list[str], write: Write) -> None:
    with pytest.raises(SystemExit):
        write(*options)


def test_text_is_quoted_as_the_format_has_it() -> None:
    text = pbtxt.write({"a": 'say "x"\\', "b": [1, 2], "c": {"d": True, "e": pbtxt.Word("TYPE")}})
    assert text == 'a: "say \\"x\\"\\\\"\nb: 1\nb: 2\nc {\n  d: true\n  e: TYPE\n}\n'
