"""How the commands of `research` take their flags, refuse what cannot be, and end."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch
from torch._utils import ExceptionWrapper

from clipsam.research.cli.run import check_outputs, run_command
from clipsam.research.models.device import torch_device
from clipsam.runtime.commands.parser import number, whole_number
from clipsam.runtime.core.errors import ImageError, OutputError, ProviderError, WeightsError


def test_numbers_out_of_range_are_refused() -> None:
    assert whole_number()("3") == 3
    assert whole_number(0)("0") == 0
    assert whole_number(0, 7)("7") == 7
    assert number(0, 1)("0.5") == 0.5
    for parse, text in (
        (whole_number(), "0"), (whole_number(), "1.5"), (whole_number(0), "-1"),
        (whole_number(0, 7), "8"),
        (number(0), "nan"), (number(0), "inf"), (number(0), "-1e-9"), (number(0, 1), "1.1"),
    ):  # fmt: skip
        with pytest.raises(argparse.ArgumentTypeError, match=r"must be a"):
            parse(text)


def test_devices_that_cannot_compute_are_refused() -> None:
    assert torch_device("cpu").type == "cpu"
    with pytest.raises(ProviderError, match=r"--device gpu cannot be used here .*--device cpu"):
        torch_device("gpu")
    with pytest.raises(ProviderError, match="computes nothing"):
        torch_device("meta")
    if not torch.cuda.is_available():
        with pytest.raises(ProviderError, match="--device cuda cannot be used here"):
            torch_device("cuda")


def test_outputs_are_tried_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    check_outputs(None, tmp_path / "new" / "rows.csv")
    assert list((tmp_path / "new").iterdir()) == []  # nothing is left behind
    for path in (tmp_path / "file" / "rows.csv", tmp_path):
        with pytest.raises(OutputError, match=r"cannot be written .*give another file"):
            check_outputs(path)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (WeightsError("There is no file x."), 1, "error: There is no file x.\n"),
        (KeyboardInterrupt(), 130, "interrupted; all is well.\n"),
        (OSError(28, "No space left on device", "log"), 1, "error: log cannot be read or written"),
        (
            torch.OutOfMemoryError("CUDA out of memory."),
            1,
            "memory is too small (CUDA out of memory)",
        ),
    ],
)
def test_errors_end_a_command_with_a_message_and_a_code(
    error: BaseException, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> int:
        raise error

    assert run_command(work, "all is well") == code
    assert message in capsys.readouterr().err


def test_an_error_from_a_process_that_loads_data(capsys: pytest.CaptureFixture[str]) -> None:
    """PyTorch passes it on with the trace in its message."""

    def work() -> int:
        try:
            raise ImageError("a.png is truncated: copy it again.")
        except ImageError:
            wrapped = ExceptionWrapper(where="in DataLoader worker process 0")
        wrapped.reraise()
        return 0

    assert run_command(work) == 1
    assert capsys.readouterr().err == "error: a.png is truncated: copy it again.\n"


def test_nothing_is_said_below_the_sentence_of_an_interrupt(
    capsys: pytest.CaptureFixture[str],
) -> None:
    freed = []

    class HalfMade:
        def __del__(self) -> None:
            freed.append(1)
            raise AttributeError("no attribute '_shutdown'")  # a warning, so a failure here

    def work() -> int:
        loader = HalfMade()
        raise KeyboardInterrupt(str(loader is None))

    assert run_command(work, "all is well") == 130
    assert freed
    assert capsys.readouterr().err == "interrupted; all is well.\n"


def test_mistakes_of_ours_are_not_hidden() -> None:
    def work() -> int:
        raise RuntimeError("a mistake")

    assert run_command(lambda: 0) == 0
    with pytest.raises(RuntimeError, match="a mistake"):
        run_command(work)
