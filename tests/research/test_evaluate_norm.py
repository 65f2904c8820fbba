"""Eq. 9's normalisation in an evaluation: one pass gives the min-max over the whole set."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from support.dataset_folders import make_mvtec, picture, write

from clipsam.research.data.datasets import find_dataset
from clipsam.research.evaluate import evaluate, main
from clipsam.research.evaluation.contact_sheet import COLUMNS, TILE, small_map, with_final
from clipsam.research.evaluation.metrics import pixel_metrics, pro_score
from clipsam.research.evaluation.normalisation import headroom, unclipped
from clipsam.research.evaluation.tables import table
from clipsam.runtime.core.result import Result
from clipsam.runtime.images.image import Image
from clipsam.runtime.stages.fusion import fixed_scale, image_scale
from clipsam.runtime.stages.prompts import PromptOptions

Total = NDArray[np.float32]


class Sums:
    """A model whose sums are the picture's brightness with a ramp; above 4 where it is bright, as
    where boxes overlap, if `overlapping`."""

    identity = "fake"
    categories: Collection[str] = frozenset({"object"})
    prompts = PromptOptions(max_boxes=3)
    size = 32

    def __init__(self, overlapping: bool) -> None:
        self.notes: list[str] = []
        self.gain = 9.0 if overlapping else 3.0
        self.norms: list[str] = []

    def total(self, image: Image) -> Total:
        ramp = np.linspace(0, 1, image[..., 0].size, dtype=np.float32).reshape(image.shape[:2])
        return np.asarray(self.gain * image[..., 0].astype(np.float32) / 255 + ramp, np.float32)

    def rough_map(self, image: Image, category: str) -> Total:
        return fixed_scale(self.total(image), 3)

    def inspect(
        self, image: Image, category: str, refine: bool = True, norm: str = "fixed"
    ) -> Result:
        self.norms.append(norm)
        total = self.total(image)
        final, mask = fixed_scale(total, 3), total > 2
        return Result(
            "anomalous", float(final.max()), 0.5, (), category, *image.shape[:2], 0, 0, refine,
            norm, "", {}, final if norm == "fixed" else image_scale(total), mask,
        )  # fmt: skip


def test_there_is_room_for_the_sums_of_all_boxes() -> None:
    assert [headroom(n) for n in (1, 2, 3, 4, 16, 17)] == [1, 2, 4, 4, 16, 32]


@pytest.mark.parametrize("overlapping", [False, True])
def test_what_the_fixed_scale_cut_off_is_found_again(overlapping: bool) -> None:
    model, image = Sums(overlapping), picture(True)
    result = model.inspect(image, "object")
    assert (result.score == 1) == overlapping
    found = unclipped(result, lambda norm: model.inspect(image, "object", norm=norm))
    np.testing.assert_allclose(found, model.total(image) / 4, rtol=3e-6)
    assert model.norms == ["fixed", *(["image"] if overlapping else [])]


def test_a_map_cut_off_everywhere_stays() -> None:
    full = np.ones((2, 3), np.float32)
    result = Result("good", 1.0, 0.5, (), "", 2, 3, 0, 0, True, "fixed", "", {}, full, full > 2)
    np.testing.assert_array_equal(unclipped(result, lambda norm: result), full)
    full[0, 0] = 0.5  # one pixel alone, the lowest: no second to draw the line through
    low = Result("good", 1.0, 0.5, (), "", 2, 3, 0, 0, True, "fixed", "", {}, full, full > 2)
    np.testing.assert_array_equal(unclipped(low, lambda norm: low), full)


def test_figures_are_those_of_the_sums_scaled_over_the_set(tmp_path: Path) -> None:
    """Against min-max in a second pass over all maps, with scikit-learn and the exact PRO."""
    items = find_dataset(make_mvtec(tmp_path / "nut", ("bent",)))
    model = Sums(overlapping=True)
    tally = evaluate(model, items, 0, norm="dataset")
    pairs = [item.load() for item in items]
    sums = np.stack([model.total(image) for image, _ in pairs])
    scaled = (sums - sums.min()) / (sums.max() - sums.min())
    masks = [mask for _, mask in pairs]
    truth = {**pixel_metrics(scaled, np.stack(masks)), "pro": pro_score(list(scaled), masks)}
    row = table(tally)[0]
    for name, value in truth.items():
        assert abs(float(row[name]) - value) <= float(row[f"{name}_error"]) + 1e-6, name
    clipped = table(evaluate(model, items, 0))[0]
    assert float(clipped["ap"]) < float(row["ap"])  # cut off at 1, the highest sums are all alike


def test_where_nothing_is_cut_off_the_figures_are_the_fixed_scales(tmp_path: Path) -> None:
    items = find_dataset(make_mvtec(tmp_path / "nut"))
    fixed, over_set = (
        table(evaluate(Sums(overlapping=False), items, 0, norm=norm))
        for norm in ("fixed", "dataset")
    )
    assert fixed == over_set


def test_the_command_says_the_norm_and_draws_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from contextlib import nullcontext

    root, model = make_mvtec(tmp_path / "nut", ("bent",)), Sums(overlapping=True)
    monkeypatch.setattr("clipsam.research.evaluate.open_model", lambda args: nullcontext(model))
    rows, sheet = tmp_path / "rows.json", tmp_path / "sheet.png"
    arguments = ["b", str(root), "--json", str(rows), "--sheet", str(sheet)]
    assert main([*arguments, "--norm", "dataset"]) == 0
    assert "norm dataset" in capsys.readouterr().out
    assert {row["norm"] for row in json.loads(rows.read_text())} == {"dataset"}
    drawn = cv2.imread(str(sheet), cv2.IMREAD_GRAYSCALE)
    assert drawn is not None
    column = COLUMNS.index("final map")
    finals = drawn[24:, column * TILE : (column + 1) * TILE].reshape(4, TILE, TILE)
    assert finals.max() > 250  # the highest sum of the set, on a defective image
    good = [i for i, item in enumerate(find_dataset(root)) if item.good]
    assert finals[good].max() < 128  # on an image's own scale they would reach 255
    assert main([*arguments, "--norm", "image"]) == 0
    assert "a scale of its own" in capsys.readouterr().out


def test_a_row_with_another_final_map() -> None:
    row = np.zeros((TILE, TILE * len(COLUMNS), 3), np.uint8)
    final = np.full((50, 70), 0.5, np.float32)
    changed = with_final(row, small_map(final))
    at = COLUMNS.index("final map") * TILE
    assert (changed[:, at : at + TILE] == 127).all()
    changed[:, at : at + TILE] = 0
    assert not changed.any()


def test_ignored_flags_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "parts" / "a.png", picture())
    parts = str(tmp_path / "parts")
    assert main(["tiny", parts, "--torch", "--provider", "cuda"]) == 1
    assert "--provider is for a bundle: leave it out, --device says" in capsys.readouterr().err
    assert main(["b", parts, "--umci_weights", "u"]) == 1
    assert "--umci_weights is for --torch" in capsys.readouterr().err
    assert main(["tiny", parts, "--torch", "--device", "gpu"]) == 1
    assert "--device gpu cannot be used here" in capsys.readouterr().err
    assert main(["b", parts, "--csv", str(tmp_path / "parts" / "a.png" / "rows.csv")]) == 1
    assert "cannot be written" in capsys.readouterr().err
    for wrong in (["--size", "-3"], ["--each", "0"], ["--count", "0"], ["--threads", "0"]):
        with pytest.raises(SystemExit) as caught:
            main(["b", parts, *wrong])
        assert caught.value.code == 2
