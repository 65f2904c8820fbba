"""Contact sheets: which images they show, and that the columns hold what they say."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from clipsam.research.evaluation.contact_sheet import (
    COLUMNS,
    ROWS,
    TILE,
    contact_row,
    sheet_indices,
    write_sheet,
)
from clipsam.research.synthetic.sample import sample_from_seed
from clipsam.runtime import ClipSAM


def test_every_group_gets_as_many_rows_spread_evenly() -> None:
    groups = ["crack"] * 100 + ["good"] * 3 + ["hole"] * 50
    chosen = sorted(sheet_indices(groups))
    by_group = [groups[i] for i in chosen]
    assert len(chosen) <= ROWS
    assert by_group.count("crack") == by_group.count("hole") == ROWS // 3
    assert by_group.count("good") == 3
    assert chosen[0] == 0
    assert chosen[-1] == len(groups) - 1


def test_a_row_holds_image_truth_rough_map_prompts_and_result(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    sample = sample_from_seed(3, 256)
    with ClipSAM.open(tiny_bundle, threads=1) as model:
        result = model.inspect(sample.image)
    rough = np.zeros((256, 256), np.float32)
    rough[40:90, 40:90] = 0.95
    options = model.bundle.manifest.prompts
    row = contact_row(sample.image, sample.mask, rough, options, result)
    tiles = np.hsplit(row, len(COLUMNS))
    assert abs(np.mean(tiles[1] > 127) - np.mean(sample.mask)) < 0.01
    assert abs(np.mean(tiles[2]) / 255 - rough.mean()) < 0.01
    assert (tiles[3] != tiles[0]).any(axis=2).mean() > 0.002  # one box and its points
    np.testing.assert_array_equal(tiles[3][-20:, -20:], tiles[0][-20:, -20:])
    write_sheet(tmp_path / "sheet.png", [row, row])
    written = cv2.imread(str(tmp_path / "sheet.png"))
    assert written is not None
    assert written.shape == (2 * TILE + 24, TILE * len(COLUMNS), 3)
