"""What the TensorRT backend refuses before it runs: files, tensors, libraries; and its logger.

By the stand-ins of test_session.py.
"""

from __future__ import annotations

import logging
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from support.fake_cuda import FakeCuda
from support.fake_tensorrt import DataType, FakeTensorRT, Severity
from support.session_graph import INPUTS, OUTPUTS, make_graph
from support.trt_engines import fake_box, write_fake_engine

from clipsam.runtime import (
    EngineError,
    MissingBackendError,
)
from clipsam.runtime.backends.base import TensorSpec, open_session
from clipsam.runtime.backends.trt.library import Words, tensorrt_logger


def test_a_plan_is_checked_before_tensorrt_sees_it(tmp_path: Path, trt: FakeTensorRT) -> None:
    path = make_graph(tmp_path)
    engine = write_fake_engine(path)
    engine.write_bytes(engine.read_bytes()[:-1] + b"\0")
    with pytest.raises(EngineError, match=r"small\.engine was altered .*--engines-only"):
        open_session(path, "tensorrt")
    assert trt.logger is None  # no runtime was made


def test_an_engine_of_another_onnx_file_is_refused(tmp_path: Path, trt: FakeTensorRT) -> None:
    path = make_graph(tmp_path)
    write_fake_engine(path)
    with path.open("ab") as file:
        file.write(b"\x32\x00")  # another field of the format
    with pytest.raises(
        EngineError, match="was built from another ONNX file than the bundle's small"
    ):
        open_session(path, "tensorrt")
    with pytest.raises(EngineError, match="was built from another ONNX file"):
        open_session(path, "tensorrt", sha256="0" * 64)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("inputs", INPUTS[:2]),
        ("outputs", (*OUTPUTS, TensorSpec("more", "float32", (1,)))),
        ("outputs", (*OUTPUTS[:2], TensorSpec("same", "float16", ("n", 3)))),
        ("inputs", (TensorSpec("left", "float32", ("n", 4)), *INPUTS[1:])),
    ],
)
def test_a_sidecar_of_other_tensors_is_refused(
    tmp_path: Path, cuda: FakeCuda, field: str, value: tuple[TensorSpec, ...]
) -> None:
    path = make_graph(tmp_path)
    others: dict[str, Any] = {field: value}
    write_fake_engine(path, **others)
    with pytest.raises(
        EngineError, match=r"The engine has the tensors .* where its sidecar has .*"
    ):
        open_session(path, "tensorrt")
    assert cuda.held() == {}


def test_tensors_that_are_not_supported(graph: Path, trt: FakeTensorRT) -> None:
    trt.host_tensor = "right"
    with pytest.raises(EngineError, match=r"The engine's tensor right \(FLOAT\) is of a kind"):
        open_session(graph, "tensorrt")
    trt.host_tensor, trt.kind = None, DataType.BF16
    with pytest.raises(EngineError, match=r"\(BF16\) is of a kind that is not supported: build it"):
        open_session(graph, "tensorrt")


def test_opening_without_tensorrt_names_the_extra(
    graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    message = r"Provider 'tensorrt' needs TensorRT \(.*\): pip install 'clipsam\[trt"
    with pytest.raises(MissingBackendError, match=message):
        open_session(graph, "tensorrt")


def test_a_tensorrt_that_does_not_load(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tensorrt.py").write_text("raise OSError('libnvinfer.so.10: cannot open')")
    monkeypatch.syspath_prepend(tmp_path)
    message = r"TensorRT is installed but cannot be loaded \(libnvinfer\.so\.10: cannot open\)"
    with pytest.raises(MissingBackendError, match=message):
        open_session(graph, "tensorrt")


def test_a_tensorrt_that_is_too_old_is_refused(graph: Path) -> None:
    with (
        fake_box(version="8.6.1.6"),
        pytest.raises(MissingBackendError, match=r"TensorRT 8\.6\.1\.6 is too old, it must be 10"),
    ):
        open_session(graph, "tensorrt")


def test_the_last_errors_of_tensorrt_are_the_reason() -> None:
    words = Words(kept=4)
    assert words.last() == "TensorRT gave no reason"
    words.add("INFO", "loaded")
    words.add("VERBOSE", "trying")
    assert words.last() == "TensorRT gave no reason"
    words.add("WARNING", "using an engine\n of another device.")
    assert words.last() == "using an engine of another device"
    words.add("ERROR", "first.")
    words.add("INTERNAL_ERROR", "second")
    assert words.last() == "first.; second"
    for number in range(9):
        words.add("ERROR", f"no {number}")
    assert words.last() == "no 6; no 7; no 8"
    words.add("ERROR", "long " * 500)
    assert len(words.last()) <= 600
    words.clear()
    assert words.last() == "TensorRT gave no reason"


def test_the_words_of_another_thread_count_where_this_one_heard_none() -> None:
    """They count where this thread heard none: TensorRT also reports from threads of its own."""
    words = Words()
    thread = threading.Thread(target=words.add, args=("ERROR", "theirs"))
    thread.start()
    thread.join()
    assert words.last() == "theirs"
    words.add("ERROR", "mine")
    assert words.last() == "mine"
    words.clear()
    assert words.last() == "theirs"


def test_a_process_has_one_logger(
    trt: FakeTensorRT, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    logger = tensorrt_logger(trt)
    assert tensorrt_logger(trt) is logger
    with caplog.at_level(logging.DEBUG, logger="clipsam.tensorrt"):
        logger.log(Severity.ERROR, "it broke")
        logger.log(Severity.INFO, "it started")
    assert logger.words.last() == "it broke"
    assert [r.levelname for r in caplog.records] == ["DEBUG", "DEBUG"]
    assert capfd.readouterr().err == ""
