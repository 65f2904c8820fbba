"""What SAM adds, measured: by hand on a few pixels, and the command on the embedded model."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from clipsam.research.evaluate import main as evaluate
from clipsam.research.refinement import Overlaps, Regions, boundary_f, iou, main
from clipsam.runtime.ops.geometry import Geometry
from clipsam.runtime.stages.prompts import PromptOptions, find_prompts
from clipsam.runtime.stages.sam import Masks
from clipsam.runtime.stages.zoom import Crop, CropMasks

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


def test_masks_of_crops_count_where_the_crop_lies() -> None:
    rough, truth = np.zeros((32, 32), np.float32), np.zeros((32, 32), np.bool_)
    rough[4:8, 4:8] = rough[20:24, 20:24] = 0.9
    truth[4:8, 4:8] = truth[20:24, 20:28] = True
    prompts = find_prompts(rough, PromptOptions(min_area=0))
    logits = np.full((2, 1, 3, 16, 16), -8, np.float32)
    logits[0, 0, 0, 4:8, 4:8] = 8
    logits[1, 0, 0, 4:8, 4:12] = 8
    shape, scores = Geometry(16, 16, 16), np.array([[0.9, 0.2, 0.1]], np.float32)
    crops = Crop(16, 16, 32, 32, (1,)), Crop(0, 0, 16, 16, (0,))
    found = Overlaps()
    masks = Masks(logits[1], scores, shape), Masks(logits[0], scores, shape)
    found.add(prompts, CropMasks(crops, masks), truth)
    assert found.rough == [pytest.approx(0.5), 1.0]
    assert found.rated == [1.0, 1.0]


def test_edges_count_as_right_within_their_tolerance() -> None:
    truth, found = np.zeros((2, 32, 32), np.bool_)
    truth[8:16, 8:16] = True
    found[8:16, 10:18] = True  # the same square, two pixels further
    found[24:28, 24:28] = True  # a false alarm is no region of a defect
    off = np.array([boundary_f(found[:20], truth[:20], tolerance) for tolerance in range(3)])
    assert off.tolist() == sorted(off)
    assert off[0] < 1
    assert off[2] == pytest.approx(1)
    regions = Regions(2)
    regions.add(found, truth)
    assert regions.overlaps == [pytest.approx(48 / 80)]
    assert regions.edges == [pytest.approx(1)]
    assert str(regions) == "1 regions on defects, IoU 0.600, edges within 2 px F 1.000"
    assert str(Regions(2)) == "no region on a defect"


def test_large_pictures_are_measured_with_tiles_and_crops(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A grey part of 1,000 pixels with a dark spot, of which SAM is shown a crop."""
    image = np.full((1000, 1000, 3), 128, np.uint8)
    mask = np.zeros((1000, 1000), np.uint8)
    cv2.circle(image, (500, 400), 40, (20, 20, 20), -1)
    cv2.circle(mask, (500, 400), 40, 255, -1)
    for folder, name, pixels in (
        ("test", "1.png", image),
        ("ground_truth", "1_mask.png", mask),
    ):
        (tmp_path / folder / "spot").mkdir(parents=True)
        cv2.imwrite(str(tmp_path / folder / "spot" / name), pixels)
    few = [str(tiny_bundle), str(tmp_path), "--weights", "0", "0.2", "--tiles", "2x2"]
    assert main([*few, "--zoom", "off"]) == 0
    whole = capsys.readouterr().out
    assert main([*few, "--zoom", "auto"]) == 0
    crops = capsys.readouterr().out
    assert " 0.0 crops an image" in whole
    assert " 1.0 crops an image" in crops
    without, weighted = re.findall(r"^0(?:\.2)?: 1 regions on defects.*", crops, re.MULTILINE)
    assert without in whole
    assert weighted not in whole


def test_an_unknown_grid_of_tiles_is_refused(
    tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tiny_bundle), "synthetic", "--count", "1", "--tiles", "3"]) == 1
    assert capsys.readouterr().err.startswith("error: ")


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
