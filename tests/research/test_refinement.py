"""What SAM adds, measured: by hand on a few pixels, and the command on the embedded model."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from clipsam.research.evaluate import main as evaluate
from clipsam.research.refinement import Overlaps, iou, main
from clipsam.runtime.ops.geometry import Geometry
from clipsam.runtime.stages.prompts import PromptOptions, find_prompts
from clipsam.runtime.stages.sam import Masks

ROW = re.compile(
    r"^\| (\S+) \| \d+ \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|", re.MULTILINE
)


def test_overlaps_are_those_worked_out_by_hand() -> None:
    """Two components of 4 x 4 pixels: one lies half on a defect, the other on none."""
    side = 32
    rough, truth = np.zeros((side, side), np.float32), np.zeros((side, side), np.bool_)
    rough[4:8, 4:8], rough[20:24, 20:24] = 0.9, 0.8
    truth[4:8, 6:10] = True
    truth[28:30, 0:3] = True  # a defect that nothing touches does not count
    prompts = find_prompts(rough, PromptOptions(min_area=0))
    logits = np.full((2, 3, side, side), -8, np.float32)
    logits[0, 0, 4:8, 6:10] = 8  # the defect itself
    logits[0, 1, 4:8, 4:10] = 8  # more than it
    scores = np.array([[0.2, 0.7, 0.1], [0.3, 0.4, 0.5]], np.float32)
    found = Overlaps()
    found.add(prompts, Masks(logits, scores, Geometry(side, side, side)), truth)
    assert found.rough == [pytest.approx(8 / 24)]
    assert found.rated == [pytest.approx(16 / 24)]
    assert found.best == [1.0]
    assert found.scores == [pytest.approx(0.7)]
    assert found.false_alarms == [pytest.approx(0.5)]
    assert "1 components on defects, 1 false alarms" in str(found)
    assert "better in 100%" in str(found)
    assert iou(truth, ~truth) == 0


def test_without_weight_sam_adds_nothing(
    tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = [str(tiny_bundle), "synthetic", "--count", "12"]
    assert main([*few, "--weights", "0", "1"]) == 0
    out = capsys.readouterr().out
    rows = {name: figures for name, *figures in ROW.findall(out)}
    assert rows.keys() == {"0", "1"}
    assert rows["0"] != rows["1"]
    assert "IoU with the defect" in out
    assert evaluate([*few, "--without-mmr"]) == 0
    pooled = {name: figures for name, *figures in ROW.findall(capsys.readouterr().out)}
    assert rows["0"] == pooled["pooled"]


def test_a_set_without_masks_is_refused(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "test" / "broken"
    folder.mkdir(parents=True)
    cv2.imwrite(str(folder / "1.png"), np.zeros((32, 32, 3), np.uint8))
    assert main([str(tiny_bundle), str(tmp_path)]) == 1
    assert "has a mask" in capsys.readouterr().err
