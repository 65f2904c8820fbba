"""Planted defects: of the size asked for, on the part, visible, and nothing else is touched."""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np
import pytest

from clipsam.research.synthetic.sample import sample_from_seed
from clipsam.runtime.core.errors import ImageError, OptionError
from clipsam.runtime.planting.foreground import find_part
from clipsam.runtime.planting.kinds import BY_NAME, KINDS
from clipsam.runtime.planting.plant import VISIBLE, Planted, plant


@cache
def tray(height: int, width: int, gray: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """A bright part on a dark, grainy tray: the picture and where the part is."""
    rng = np.random.default_rng(height + width)
    part = np.zeros((height, width), np.uint8)
    axes = (int(width * 0.36), int(height * 0.34))
    cv2.ellipse(part, (width // 2, height // 2), axes, 10, 0, 360, (1.0,), -1)
    colours = np.array([[50, 52, 55], [190, 150, 100]])
    if gray:
        colours = np.array([[50, 50, 50], [160, 160, 160]])
    grain = rng.normal(0, 4, (height, width, 1))
    image = np.clip(colours[part] + grain, 0, 255).astype(np.uint8)
    return image, part > 0


def check(planted: Planted, image: np.ndarray, part: np.ndarray, size: float) -> None:
    """What holds for every planted defect."""
    assert planted.image.shape == image.shape
    assert planted.image.dtype == np.uint8
    assert planted.mask.shape == image.shape[:2]
    assert planted.mask.dtype == np.bool_
    assert planted.mask.any()
    assert not (planted.mask & ~part).any(), "a defect lies on the part"
    change = cv2.absdiff(planted.image, image)
    assert change[planted.mask].mean() == pytest.approx(planted.change)
    assert planted.change >= VISIBLE
    far = max(5, round(0.4 * size))
    away = cv2.distanceTransform(
        (~planted.mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE
    )
    beyond = cv2.bitwise_and(change, change, mask=(away > far).astype(np.uint8))
    assert not beyond.any(), "nothing far from a defect changes"
    assert 0.6 * size <= planted.size <= 1.5 * size


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(64, 64, 10), (96, 140, 30), (333, 200, 8), (700, 900, 120), (1500, 1100, 60)],
)
def test_every_kind_is_planted_at_the_size_asked_for(
    kind: object, height: int, width: int, size: float
) -> None:
    image, part = tray(height, width)
    before = image.copy()
    name = kind.name  # type: ignore[attr-defined]
    made = [plant(image, seed, name, size, part=part) for seed in range(5)]
    assert sum(planted is not None for planted in made) >= 3
    for planted in made:
        if planted is not None:
            assert planted.kind == name
            check(planted, image, part, size)
    assert np.array_equal(image, before), "the picture given stays as it was"


@pytest.mark.parametrize("kind", ["scratch", "missing part", "patch"])
def test_a_picture_of_5000_pixels_takes_small_and_large_defects(kind: str) -> None:
    image, part = tray(5000, 2400)
    for size in (25, 900):
        planted = next(p for s in range(6) if (p := plant(image, s, kind, size, part=part)))
        assert planted.mask.any()
        assert not (planted.mask & ~part).any()
        assert 0.6 * size <= planted.size <= 1.5 * size


def test_the_same_seed_plants_the_same_defect() -> None:
    image, part = tray(200, 240)
    for kind in (None, "crack"):
        first, second = plant(image, 7, kind, part=part), plant(image, 7, kind, part=part)
        other = plant(image, 8, kind, part=part)
        assert first is not None
        assert second is not None
        assert other is not None
        assert first.image.tobytes() == second.image.tobytes()
        assert first.mask.tobytes() == second.mask.tobytes()
        assert first.image.tobytes() != other.image.tobytes()


def test_a_generator_yields_a_series_and_the_global_state_is_not_used() -> None:
    image, part = tray(160, 160)
    series = []
    for seed in (1, 2):
        np.random.seed(seed)
        rng = np.random.default_rng(3)
        series.append([plant(image, rng, part=part) for _ in range(4)])
    pictures = [[p.image.tobytes() for p in made if p] for made in series]
    assert pictures[0] == pictures[1]
    assert len(set(pictures[0])) == len(pictures[0])


@pytest.mark.parametrize("kind", [kind.name for kind in KINDS])
def test_nothing_is_planted_where_it_is_not_allowed(kind: str) -> None:
    image, part = tray(240, 300)
    where = np.zeros(part.shape, np.bool_)
    where[:, :150] = True
    made = [plant(image, seed, kind, 24, part=part, where=where) for seed in range(6)]
    assert any(made)
    assert not any((p.mask & ~where).any() for p in made if p is not None)


def test_gray_pictures_stay_gray() -> None:
    image, part = tray(200, 200, gray=True)
    for seed in range(12):
        planted = plant(image, seed, part=part)
        if planted is not None:
            assert (planted.image == planted.image[..., :1]).all()


def test_surfaces_keep_their_outline_and_take_every_other_kind() -> None:
    rng = np.random.default_rng(0)
    image = np.clip(rng.normal(120, 5, (200, 200, 1)), 0, 255).astype(np.uint8).repeat(3, 2)
    assert find_part(image).all()
    for kind in KINDS:
        made = [plant(image, seed, kind.name, 30) for seed in range(4)]
        assert any(made) != kind.needs_outline
    assert not any(
        BY_NAME[p.kind].needs_outline for s in range(30) if (p := plant(image, s)) is not None
    )


def test_nothing_is_planted_where_there_is_no_room() -> None:
    image, part = tray(100, 100)
    assert plant(image, 0, part=part, where=np.zeros(part.shape, np.bool_)) is None
    tiny = np.zeros(part.shape, np.bool_)
    tiny[50:54, 50:54] = True
    assert plant(image, 0, "stain", 60, part=part, where=tiny) is None


def test_wrong_arguments_are_named() -> None:
    image, part = tray(100, 100)
    with pytest.raises(OptionError, match=r"no kind of defect 'rust'.*scratch"):
        plant(image, 0, "rust")
    with pytest.raises(OptionError, match="does not fit"):
        plant(image, 0, "crack", 400)
    with pytest.raises(OptionError, match="does not fit"):
        plant(image, 0, "crack", float("nan"))
    with pytest.raises(ImageError, match="too small"):
        plant(image[:20], 0)
    with pytest.raises(ImageError, match="uint8"):
        plant(image.astype(np.float32), 0)
    with pytest.raises(ImageError, match="bool mask"):
        plant(image, 0, part=part.astype(np.uint8))
    with pytest.raises(ImageError, match="bool mask"):
        plant(image, 0, where=part[:50])


def test_the_part_is_found_and_its_marks_belong_to_it() -> None:
    image, part = (array.copy() for array in tray(400, 600))
    cv2.circle(image, (300, 200), 12, (52, 52, 55), -1)  # a mark as dark as the tray
    found = find_part(image)
    assert (found & part).sum() > 0.96 * (found | part).sum()
    assert found[200, 300]


def test_parts_and_surfaces_of_procedural_pictures_are_told_apart() -> None:
    agree, surfaces, right = [], 0, 0
    for seed in range(120):
        sample = sample_from_seed(seed, 160, defect_rate=0)
        found, true = find_part(sample.image), sample.outline > 0
        if true.all():
            surfaces += 1
            right += bool(found.mean() > 0.9)
        else:
            agree.append(float((found & true).sum() / (found | true).sum()))
    assert np.median(agree) > 0.85
    assert right > 0.75 * surfaces


@pytest.mark.parametrize("value", [0, 128, 255])
def test_a_plain_frame_is_a_surface(value: int) -> None:
    assert find_part(np.full((90, 120, 3), value, np.uint8)).all()
