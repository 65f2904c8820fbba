"""`clipsam evaluate`: rows, files, protocols, folders with little truth; PyTorch beside a bundle.

A fake model stands in for the engines where only the sums and the printing are at stake: it
answers from the picture's brightness. What a bundle and PyTorch answer is compared at the end.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from support.dataset_folders import (
    make_ksdd2,
    make_mtd,
    make_mvtec,
    make_visa,
    picture,
    square,
    write,
)

from clipsam.export.graphs.checkpoints import Checkpoints
from clipsam.research.evaluate import BundleModel, evaluate, main
from clipsam.research.evaluation.metrics import pixel_metrics, pro_score
from clipsam.research.evaluation.tables import Tally, dataset_row, table
from clipsam.research.evaluation.torch_subject import TorchModel
from clipsam.research.models.presets import Preset, get_tokenizer
from clipsam.research.models.prompt_ensemble import text_features
from clipsam.research.models.reference import Reference
from clipsam.research.synthetic.sample import sample_from_seed
from clipsam.runtime import ClipSAM
from clipsam.runtime.core.result import Result
from clipsam.runtime.images.image import Image
from clipsam.runtime.stages.prompts import PromptOptions


class Brightness:
    """A model that takes bright pixels for defects, with a little noise of the position."""

    identity = "fake"
    categories: Collection[str] = frozenset({"object"})
    prompts = PromptOptions()
    size = 32

    def __init__(self) -> None:
        self.notes: list[str] = []

    def rough_map(self, image: Image, category: str) -> NDArray[np.float32]:
        rough = image[..., 0].astype(np.float32) / 255
        ramp = np.arange(rough.size, dtype=np.float32).reshape(rough.shape) / rough.size
        return np.asarray(0.8 * rough + 0.2 * ramp, np.float32)

    def inspect(
        self, image: Image, category: str, refine: bool = True, norm: str = "fixed"
    ) -> Result:
        final = self.rough_map(image, category)
        mask = final > 0.7
        return Result(
            "anomalous" if mask.any() else "good", float(final.max()), 0.7, (), category,
            *image.shape[:2], 0, 0, refine, "fixed", "", {}, final, mask,
        )  # fmt: skip


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Brightness:
    model = Brightness()

    @contextmanager
    def opened(args: argparse.Namespace) -> Iterator[Brightness]:
        yield model

    monkeypatch.setattr("clipsam.research.evaluate.open_model", opened)
    return model


def test_figures_are_those_of_the_pooled_pixels(fake: Brightness, tmp_path: Path) -> None:
    from clipsam.research.data.datasets import find_dataset

    items = find_dataset(make_mvtec(tmp_path / "nut"))
    rows = {row["set"]: row for row in table(evaluate(fake, items, 0))}
    assert list(rows) == ["bent", "scratch", "mean", "pooled", "image level"]
    for name, defects in (("bent", {"bent", "good"}), ("pooled", {"bent", "scratch", "good"})):
        pairs = [item.load() for item in items if item.defect in defects]
        maps, masks = [fake.rough_map(i, "") for i, _ in pairs], [m for _, m in pairs]
        truth = {**pixel_metrics(np.stack(maps), np.stack(masks)), "pro": pro_score(maps, masks)}
        for key, value in truth.items():
            assert abs(float(rows[name][key]) - value) <= float(rows[name][f"{key}_error"]) + 1e-9
    assert rows["mean"]["ap"] == pytest.approx(
        (float(rows["bent"]["ap"]) + float(rows["scratch"]["ap"])) / 2
    )
    assert rows["image level"]["auroc"] == 1
    assert dataset_row(list(rows.values())) is rows["pooled"]


def test_several_categories_get_a_row_each_and_their_mean(
    fake: Brightness, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("bottle", "metal_nut"):
        make_mvtec(tmp_path / "mvtec" / name)
    files = {name: tmp_path / f"rows.{name}" for name in ("csv", "json")}
    images, sheet = tmp_path / "images.csv", tmp_path / "sheet.png"
    arguments = ["b", str(tmp_path / "mvtec"), "--csv", str(files["csv"]), "--sheet", str(sheet)]
    arguments += ["--json", str(files["json"]), "--per-image", str(images)]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "image AUROC" in printed
    assert "called anomalous: 0 of 4 good images (false alarms 0 %), 8 of 8 defective" in printed
    assert "proven largest distance" in printed
    rows = json.loads(files["json"].read_text())
    assert [row["set"] for row in rows] == ["bottle", "metal_nut", "mean"]
    assert rows[2]["auroc"] == pytest.approx((rows[0]["auroc"] + rows[1]["auroc"]) / 2)
    with files["csv"].open() as file:
        table_rows = list(csv.DictReader(file))
    assert [float(r["ap"]) for r in table_rows] == [row["ap"] for row in rows]
    with images.open() as file:
        per_image = list(csv.DictReader(file))
    errors = [float(r["error"]) for r in per_image]
    assert len(per_image) == 12
    assert errors == sorted(errors, reverse=True)
    written = cv2.imread(str(sheet))
    assert written is not None


def test_the_error_of_an_image(tmp_path: Path) -> None:
    from clipsam.research.data.datasets import LabelledImage

    def item(defect: str) -> LabelledImage:
        return LabelledImage("x", defect, "object", tmp_path, tmp_path)

    tally = Tally()
    mask, half = square() > 0, square() > 0
    half[:12] = False  # half of the square's rows
    final = np.where(half, 0.9, 0.2).astype(np.float32)
    tally.add(item("good"), final, np.zeros_like(mask), 0.9, anomalous=True)
    tally.add(item("bent"), final, mask, 0.9, anomalous=True, found=half)
    tally.add(item("bent"), final, mask, 0.9, anomalous=False, found=np.zeros_like(mask))
    tally.add(item("bent"), final, None, 0.9, anomalous=True, found=half)
    errors = [m.error for m in tally.images]
    assert errors == pytest.approx([0.9, 1 - 2 / 3, 1.0, 0.1])


@pytest.mark.parametrize(
    ("protocol", "make", "line", "warning"),
    [
        ("table1", lambda r: make_mvtec(r / "bottle").parent, "SDP+ | published | 91.2", True),
        ("table1", make_visa, "SDP+ | published | 94.8", True),
        ("table4", make_mtd, "SAA+ | published | 69.4", False),
        ("table4", make_ksdd2, "SAA+ | published | 77.5", False),
        ("table5", make_visa, "AnomalyCLIP | published | 95.5", True),
    ],
)
def test_protocols_print_the_published_figures_beside_ours(
    protocol: str,
    make: object,
    line: str,
    warning: bool,
    fake: Brightness,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert callable(make)
    root = make(tmp_path / "set")
    assert main(["b", str(root), "--protocol", protocol]) == 0
    printed = capsys.readouterr().out
    assert line in printed
    assert printed.count("| ClipSAM | measured here |") == 1
    assert "were not measured here" in printed
    assert "pooled pixels at 32x32 px" in printed  # CLIP's input unless --size says otherwise
    assert ("not comparable" in printed) == warning
    assert "200 thresholds" in printed


def test_a_protocol_of_another_data_set_is_refused(
    fake: Brightness, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_mvtec(tmp_path / "spoon")
    assert main(["b", str(root), "--protocol", "table1"]) == 1
    assert "Table 1 is about MVTec-AD and VisA" in capsys.readouterr().err
    assert main(["b", str(make_mtd(tmp_path / "mtd")), "--protocol", "table5"]) == 1


@pytest.mark.parametrize("number", [2, 3])
def test_tables_2_and_3_are_run_by_ablations(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []

    def ablations(argv: list[str]) -> int:
        seen.append(argv)
        return 0

    monkeypatch.setattr("clipsam.research.ablations.main", ablations)
    assert main(["b", "root", "--protocol", f"table{number}", "--preset", "tiny"]) == 0
    assert main([f"--protocol=table{number}", "b", "root", "--runs", "r"]) == 0
    assert seen == [
        ["b", "root", "--preset", "tiny", "--table", str(number)],
        ["b", "root", "--runs", "r", "--table", str(number)],
    ]


def test_good_images_alone_are_counted(
    fake: Brightness, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(3):
        write(tmp_path / "parts" / f"{number}.png", picture(number == 2))
    assert main(["b", str(tmp_path / "parts")]) == 0
    printed = capsys.readouterr().out
    assert "called anomalous: 1 of 3 good images (false alarms 33 %)" in printed
    assert "only how many good ones are called anomalous can be counted" in printed
    assert "proven" not in printed


def test_defects_without_masks_give_image_level_figures(
    fake: Brightness, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, rows = tmp_path / "parts", tmp_path / "rows.json"
    write(root / "good" / "a.png", picture())
    write(root / "crack" / "b.png", picture(True))
    assert main(["b", str(root), "--json", str(rows), "--sheet", str(tmp_path / "s.png")]) == 0
    printed = capsys.readouterr().out
    assert "no defect has a mask" in printed
    crack, level = json.loads(rows.read_text())
    facts = {"model": "fake", "resolution": "image size", "norm": "fixed"}
    assert crack == {"set": "crack", "images": 1, **facts}
    assert level["auroc"] == 1
    write(root / "ground_truth" / "dent" / "c.png", square())
    write(root / "dent" / "c.png", picture(True))
    assert main(["b", str(root), "--json", str(rows)]) == 0
    by_name = {row["set"]: row for row in json.loads(rows.read_text())}
    assert "auroc" in by_name["dent"]
    assert "auroc" not in by_name["crack"]
    assert by_name["mean"]["auroc"] == by_name["dent"]["auroc"]
    assert "some defects have no masks (crack)" in capsys.readouterr().out


def test_a_forgotten_mask_stops_the_run_before_it_starts(
    fake: Brightness, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_mvtec(tmp_path / "nut")
    (root / "ground_truth" / "bent" / "001_mask.png").unlink()
    assert main(["b", str(root)]) == 1
    assert "bent/001.png has no mask" in capsys.readouterr().err


def test_unknown_arguments_and_presets_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["b", "root", "--colour"])
    assert caught.value.code == 2
    assert main(["--torch", "huge", str(make_mvtec(tmp_path / "nut"))]) == 1
    assert "first argument is a preset" in capsys.readouterr().err


def test_pytorch_is_the_reference(small_preset: Preset) -> None:
    """Random weights: maps, prompts and final map are the oracle's."""
    weights = Checkpoints(random_seed=1)
    clip, umci = weights.load_clip(small_preset)[0], weights.load_umci(small_preset)[0]
    sam = weights.load_sam(small_preset)[0]
    model = TorchModel(small_preset, clip, umci, sam)
    text = text_features(clip, get_tokenizer(), "object").numpy()
    # A threshold in the middle of the map: random weights rarely reach the paper's.
    image = sample_from_seed(0, 200).image
    rough = model.rough_map(image, "object")
    model.prompts = PromptOptions(threshold=float(np.quantile(rough, 0.9)), max_boxes=3)
    reference = Reference(
        model.features, umci, sam, {"object": text}, model.prompts, model.fusion.mask_weight
    )
    np.testing.assert_allclose(rough, reference.rough_map(image, text), atol=1e-5)
    ours, theirs = model.inspect(image, "object"), reference.refine(image, rough, model.prompts)
    assert ours.prompts == len(theirs.prompts) > 0
    np.testing.assert_allclose(ours.score_map, theirs.final, atol=1e-6)
    plain = model.inspect(image, "object", refine=False)
    np.testing.assert_allclose(plain.score_map, rough / 4, atol=1e-7)
    assert not plain.refined


def test_pytorch_and_the_bundle_made_of_it_agree(small_preset: Preset, small_bundle: Path) -> None:
    """Random weights: the maps of both, and that --without-mmr is the rough map."""
    weights = Checkpoints(random_seed=1)
    torch_model = TorchModel(
        small_preset,
        weights.load_clip(small_preset)[0],
        weights.load_umci(small_preset)[0],
        weights.load_sam(small_preset)[0],
    )
    assert "anything at all" in torch_model.categories
    with ClipSAM.open(small_bundle, threads=1) as opened:
        bundle = BundleModel(opened)
        torch_model.prompts = bundle.prompts
        assert torch_model.size == bundle.size
        images = [sample_from_seed(seed, 200).image for seed in range(3)]
        for image in images:
            rough = bundle.rough_map(image, "object")
            np.testing.assert_allclose(torch_model.rough_map(image, "object"), rough, atol=1e-4)
        image = images[-1]  # SAM once: 16 boxes take their time
        ours, theirs = torch_model.inspect(image, "object"), bundle.inspect(image, "object")
        assert ours.prompts == theirs.prompts
        assert ours.verdict == theirs.verdict
        assert np.mean(np.abs(ours.score_map - theirs.score_map)) < 1e-3
        plain = torch_model.inspect(image, "object", refine=False)
        np.testing.assert_allclose(plain.score_map * 4, rough, atol=1e-4)
