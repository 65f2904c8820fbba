"""Accuracy of a bundle's engines, as figures: right ones are within, wrong ones are not."""

from __future__ import annotations

import importlib.util
import shlex
from pathlib import Path
from types import ModuleType

import pytest
from support.engine_toy import break_encoder
from support.golden_toy import build_golden_toy

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "bench_accuracy", ROOT / "benchmarks" / "bench_accuracy.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows(text: str, start: str) -> list[list[str]]:
    """Cells of the table rows whose first cell begins with a word."""
    table = [line.strip("| ").split("|") for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in row] for row in table if row[0].startswith(start)]


def test_right_engines_are_within_and_wrong_ones_are_not(
    bench: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = build_golden_toy(tmp_path / "bundle", "fp16")
    break_encoder(bundle)
    assert bench.main([str(bundle), "--precision", "fp32", "fp16", "--threads", "1"]) == 0
    exact, half = capsys.readouterr().out.split("fp16 by cpu")
    for name in ("clip_umci", "sam_encoder", "sam_decoder"):
        found = rows(exact, name)
        assert found
        assert {tuple(row[-3:]) for row in found} == {("0.0e+00", "0.0e+00", "yes")}
    (picture,) = rows(exact, "defect")[:1]
    assert picture[-2:] == ["same", "yes"]
    encoder = rows(half, "sam_encoder")
    assert {row[-1] for row in encoder} == {"NO"}
    assert {row[-1] for row in rows(half, "clip_umci")} == {"yes"}


def test_what_cannot_be_opened_is_an_error_in_words(
    bench: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench.main([str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_the_commands_of_the_page_are_parsed(bench: ModuleType) -> None:
    page = (ROOT / "docs" / "on_the_box.md").read_text()
    commands = [line for line in page.splitlines() if "bench_accuracy.py " in line]
    parsed = [bench.parse(shlex.split(line)[2:]) for line in commands if line.endswith("fp16")]
    assert {options.provider for options in parsed} == {"tensorrt", "cuda"}
