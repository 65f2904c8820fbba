"""The names of defects in published layouts, and training on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.dataset_folders import make_mvtec, make_visa, picture, write

from clipsam.research import train_naming
from clipsam.research.data.datasets import open_dataset
from clipsam.research.data.defect_names import known_kinds, named_images
from clipsam.research.models.checkpoints import load_clip
from clipsam.research.models.defect_words import DEFAULT_WORDS, KIND_WORDS
from clipsam.research.models.naming import word_space
from clipsam.research.models.presets import PRESETS, get_tokenizer
from clipsam.research.training.naming_data import photograph
from clipsam.runtime.core.errors import DatasetError

TINY = PRESETS["tiny"]


def test_folders_name_defects_but_for_those_that_say_nothing(tmp_path: Path) -> None:
    make_mvtec(tmp_path / "nut", ("bent_lead", "scratch", "combined"))
    make_mvtec(tmp_path / "brush", ("defective",))
    images = named_images(open_dataset(tmp_path))
    names = [name for _, name in images]
    assert sorted(set(names)) == ["", "bent lead", "scratch"]
    assert names.count("bent lead") == 2
    assert names.count("") == 4, "good parts show what is nothing"
    kinds, place = known_kinds(set(names))
    assert place == {"bent lead": len(KIND_WORDS), "scratch": 0}
    assert [kind.word for kind in kinds] == [*DEFAULT_WORDS, "bent lead"]


def test_a_name_that_the_generator_knows_is_its_kind() -> None:
    _, place = known_kinds({"", "pores", "foreign texture", "void"})
    by_name = {kind.name: number for number, kind in enumerate(KIND_WORDS)}
    hole = by_name["hole"]
    assert place == {"pores": hole, "void": hole, "foreign texture": by_name["foreign texture"]}


def test_visa_names_defects_in_its_own_tables(tmp_path: Path) -> None:
    root = make_visa(tmp_path / "VisA")
    listing = open_dataset(root)
    with pytest.raises(DatasetError, match=r"candle.image_anno\.csv cannot be read"):
        named_images(listing)
    for category, labels in (
        ("candle", ("Different Colour Spot", "other")),
        ("pcb1", ("bent,melt", "melt")),
    ):
        rows = [f"{category}/Data/Images/Normal/0001.JPG,normal,"]
        rows += [
            f'{category}/Data/Images/Anomaly/{number:03d}.JPG,"{label}",'
            for number, label in enumerate(labels)
        ]
        (root / category / "image_anno.csv").write_text("\n".join(["image,label,mask", *rows]))
    images = named_images(listing)
    shown = [(item.group, name) for item, name in images if name]
    assert shown == [("candle", "different colour spot"), ("pcb1", "melt")]
    (root / "pcb1" / "image_anno.csv").write_text("image,label\npcb1/Data/Images/Anomaly/001.JPG\n")
    assert [name for _, name in named_images(listing) if name] == ["different colour spot"]
    (root / "pcb1" / "image_anno.csv").write_bytes(b"\xff\xfe\x00label")
    with pytest.raises(DatasetError, match=r"pcb1.*cannot be read"):
        named_images(listing)
    (root / "pcb1" / "image_anno.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DatasetError, match="does not have the columns"):
        named_images(listing)


def test_a_set_without_names_is_refused(tmp_path: Path) -> None:
    make_mvtec(tmp_path / "nut", ("defective",))
    with pytest.raises(DatasetError, match="which kind of defect"):
        named_images(open_dataset(tmp_path))


def test_a_photograph_is_what_clip_sees_and_its_mask_in_pieces(tmp_path: Path) -> None:
    make_mvtec(tmp_path / "nut", ("scratch",))
    item, _ = next(pair for pair in named_images(open_dataset(tmp_path)) if pair[1])
    seen = photograph(item, 5, 192)
    assert seen.image.shape == (192, 192, 3)
    ((kind, mask),) = seen.drawn
    assert (kind, mask.shape) == (5, (192, 192))
    assert 0.9 < mask.sum() / (96 * 192 * 192 / (40 * 60)) < 1.2
    good = next(item for item, name in named_images(open_dataset(tmp_path)) if not name)
    assert photograph(good, 0, 192).drawn == []


@pytest.mark.slow  # trains
def test_a_head_learns_the_names_of_a_folder_and_its_file_says_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_mvtec(tmp_path / "nut", ("bent_lead", "scratch"), images=24)
    command = ["--dataset", "mvtec", "--data_path", str(data), "--pictures", "0", "--steps", "6"]
    saved = ["--save_path", str(tmp_path / "run"), "--device", "cpu"]
    assert train_naming.main([*command, *saved]) == 0
    assert "72 images show 2 kinds of defects: bent lead, scratch" in capsys.readouterr().out
    files = sorted((tmp_path / "run" / "naming-regions").iterdir())
    write(data / "test" / "scratch" / "000.png", picture(True, shade=60))
    assert train_naming.main([*command, *saved]) == 0
    changed = sorted((tmp_path / "run" / "naming-regions").iterdir())
    assert len(changed) == 2 * len(files), "another picture under the same name is looked at"
    facts = np.concatenate([np.load(file)["facts"] for file in files])
    assert {0, len(KIND_WORDS)} <= set(facts[:, 2].tolist())
    clip: Any = load_clip(TINY, None)[0]
    space = word_space(TINY, clip, get_tokenizer(), tmp_path / "run" / "naming.safetensors")
    assert space is not None
    assert space.learned == ("scratch", "bent lead"), "the generator's kinds were not shown"
    assert space.features(list(space.learned)).shape[0] == 2


@pytest.mark.parametrize(
    "arguments", [["--dataset", "mvtec"], ["--data_path", "x"], ["--pictures", "0"]]
)
def test_half_an_answer_is_wrong_usage(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        train_naming.main(arguments)
    assert caught.value.code == 2
