"""Every layout of the field, found by looking, with its quirks; and folders of users."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.dataset_folders import (
    SQUARE,
    SQUARE_AREA,
    find_dataset,
    make_ksdd2,
    make_mtd,
    make_mvtec,
    make_visa,
    make_visa_pytorch,
    picture,
    square,
    write,
)

from clipsam.research.data.datasets import (
    check_gaps,
    limits,
    open_dataset,
    recognise,
)
from clipsam.runtime.core.errors import DatasetError


@pytest.mark.parametrize(
    ("make", "layout", "defects", "train"),
    [
        (make_mvtec, "mvtec", {"good": 2, "bent": 2, "scratch": 2}, 2),
        (make_visa, "visa", {"good": 4, "anomaly": 4}, 2),
        (make_visa_pytorch, "mvtec", {"good": 1, "bad": 1}, 1),
        (make_mtd, "mtd", {"good": 2, "Crack": 2, "Uneven": 2}, 0),
        (make_ksdd2, "ksdd2", {"good": 3, "defect": 1}, 3),
    ],
)
def test_every_layout_is_found_by_looking(
    make: Callable[[Path], Path], layout: str, defects: dict[str, int], train: int, tmp_path: Path
) -> None:
    root = make(tmp_path / "set")
    listing = open_dataset(root)
    assert listing.layout == layout
    assert Counter(item.defect for item in listing.images) == defects
    assert len(listing.train) == train
    assert not listing.problems
    for item in find_dataset(root):
        image, mask = item.load()
        assert image.shape[:2] == mask.shape
        empty = item.good or (item.defect == "Uneven" and item.name.endswith("0.jpg"))
        assert mask.sum() == (0 if empty else SQUARE_AREA)
        assert empty or mask[SQUARE].all()


def test_categories_are_named_for_the_tables_and_for_the_prompts(tmp_path: Path) -> None:
    items = find_dataset(make_visa(tmp_path / "VisA"))
    assert {(i.group, i.category) for i in items} == {
        ("candle", "candle"),
        ("pcb1", "printed circuit board"),
    }
    assert recognise(items) == ("visa", 2, 12)
    one = find_dataset(tmp_path / "VisA" / "pcb1", category="board")
    assert {(i.group, i.category) for i in one} == {("pcb1", "board")}
    for name in ("bottle", "metal_nut"):
        make_mvtec(tmp_path / "mvtec" / name)
    items = find_dataset(tmp_path / "mvtec")
    assert recognise(items) == ("mvtec", 2, 15)
    assert {i.category for i in items} == {"bottle", "metal nut"}
    assert recognise(find_dataset(make_mtd(tmp_path / "mtd_set"))) == ("mtd", 1, 1)
    assert recognise(find_dataset(make_ksdd2(tmp_path / "ksdd2_set"))) == ("ksdd2", 1, 1)
    assert recognise(find_dataset(make_mvtec(tmp_path / "spoon"))) is None


def test_the_inner_folder_of_the_converted_visa_works_too(tmp_path: Path) -> None:
    root = make_visa_pytorch(tmp_path / "VisA_pytorch")
    for place in (root, root / "1cls", root / "1cls" / "candle"):
        assert {i.name for i in find_dataset(place)} == {"good/0001.JPG", "bad/000.JPG"}


def test_ksdd2_uses_the_test_split_and_drops_the_stray_copy(tmp_path: Path) -> None:
    root = make_ksdd2(tmp_path / "KSDD2")
    write(root / "test" / "10009 (copy).png", picture())
    listing = open_dataset(root)
    assert {i.image_path.parent.name for i in listing.images if i.image_path} == {"test"}
    assert len(listing.images) == 4
    assert any("10009 (copy).png left out" in note for note in listing.notes)
    assert len(open_dataset(root / "train").images) == 3  # a split may be named itself


def test_swapped_splits_of_ksdd2_are_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the published counts replaced by those of this tiny set's test split."""
    monkeypatch.setattr("clipsam.research.data.layouts.KSDD2_TRAIN", (1, 3))
    listing = open_dataset(make_ksdd2(tmp_path / "KSDD2"))
    assert "published as the training split" in listing.problems[0][1]


def test_a_folder_of_good_parts_alone_is_a_data_set(tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path / "flat" / f"{number}.png", picture())
        write(tmp_path / "parts" / "OK" / f"{number}.png", picture())
        write(tmp_path / "mv" / "train" / "good" / f"{number}.png", picture())
    write(tmp_path / "flat" / "._0.png", picture())  # left by a Macintosh
    for name, layout in (("flat", "folder"), ("parts", "folder"), ("mv", "mvtec")):
        listing = open_dataset(tmp_path / name)
        assert listing.layout == layout
        assert len(listing.images) == 3
        assert all(item.good and item.has_truth for item in listing.images)
        assert "no defective images" in " ".join(limits(listing.images))
    assert "taken for good" in open_dataset(tmp_path / "flat").notes[0]


def test_defects_without_masks_count_for_images_alone(tmp_path: Path) -> None:
    root = tmp_path / "parts"
    write(root / "good" / "a.jpg", picture())
    write(root / "crack" / "b.jpg", picture(True))
    listing = open_dataset(root)
    crack = next(item for item in listing.images if not item.good)
    assert not crack.has_truth
    assert crack.load_image().shape == (40, 60, 3)
    with pytest.raises(DatasetError, match=r"b\.jpg has no mask"):
        crack.load()
    check_gaps(listing)  # all of them are missing: meant so
    assert "no defect has a mask" in limits(listing.images)[0]
    with pytest.raises(DatasetError, match=r"crack/b\.jpg has no mask .*b_mask\.png"):
        find_dataset(root)  # training cannot do without
    write(root / "ground_truth" / "crack" / "b.png", square())
    assert find_dataset(root)[0].load()[1].sum() == SQUARE_AREA


def test_a_gap_among_masks_is_named(tmp_path: Path) -> None:
    root = make_mvtec(tmp_path / "nut")
    (root / "ground_truth" / "bent" / "001_mask.png").unlink()
    with pytest.raises(DatasetError, match=r"bent/001\.png has no mask"):
        check_gaps(open_dataset(root))


def test_wrong_layouts_are_refused(tmp_path: Path) -> None:
    root = make_mvtec(tmp_path / "nut")
    with pytest.raises(DatasetError, match="no layout 'mvtek'"):
        open_dataset(root, layout="mvtek")
    with pytest.raises(DatasetError, match="no images in the layout mtd"):
        open_dataset(root, layout="mtd")
    with pytest.raises(DatasetError, match=r"cannot be read as visa: .*1cls\.csv"):
        open_dataset(root, layout="visa")
    with pytest.raises(DatasetError, match="is no data set"):
        open_dataset(tmp_path / "nowhere")
    write(tmp_path / "mixed" / "a.png", picture())
    write(tmp_path / "mixed" / "crack" / "b.png", picture())
    with pytest.raises(DatasetError, match="images and folders of images"):
        open_dataset(tmp_path / "mixed")


def test_visa_with_a_foreign_table_is_refused(tmp_path: Path) -> None:
    root = make_visa(tmp_path / "VisA")
    (root / "split_csv" / "1cls.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DatasetError, match="columns object, split, label"):
        open_dataset(root)


def test_a_mask_of_the_magnetic_tiles_counts_above_127(tmp_path: Path) -> None:
    items = find_dataset(make_mtd(tmp_path / "mtd_set"))
    crack = next(item for item in items if item.defect == "Crack")
    assert np.array_equal(crack.load()[1], square() > 0)
