"""The procedural image generator: reproducible, consistently labelled, never invisibly."""

from __future__ import annotations

from collections import Counter

import cv2
import numpy as np
import pytest

from clipsam.research.synthetic.finish import add_finish
from clipsam.research.synthetic.sample import Sample, make_sample, sample_from_seed
from clipsam.research.synthetic.scenes import make_scene
from clipsam.runtime.planting.canvas import Canvas
from clipsam.runtime.planting.kinds import BY_NAME, KINDS, DefectKind
from clipsam.runtime.planting.textures import FAMILIES, texture

COUNT = 400


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return [sample_from_seed(seed, 96) for seed in range(COUNT)]


def same(first: Sample, second: Sample) -> bool:
    """Whether everything in two samples is equal, byte for byte."""
    pairs = zip(first.defects + first.parts, second.defects + second.parts, strict=True)
    return (
        first.image.tobytes() == second.image.tobytes()
        and first.mask.tobytes() == second.mask.tobytes()
        and first.kind_map.tobytes() == second.kind_map.tobytes()
        and all(a.kind == b.kind and np.array_equal(a.mask, b.mask) for a, b in pairs)
        and (first.category, first.caption) == (second.category, second.caption)
    )


@pytest.mark.parametrize("seed", range(12))
def test_same_seed_same_bytes_whatever_the_thread_count(seed: int) -> None:
    threads = cv2.getNumThreads()
    try:
        cv2.setNumThreads(1)
        first = sample_from_seed(seed, 256)
        cv2.setNumThreads(4)
        second = sample_from_seed(seed, 256)
    finally:
        cv2.setNumThreads(threads)
    assert same(first, second)


def test_the_global_random_state_is_not_used() -> None:
    np.random.seed(1)
    first = sample_from_seed(5, 64)
    np.random.seed(2)
    assert same(first, sample_from_seed(5, 64))


def test_different_seeds_draw_different_images(samples: list[Sample]) -> None:
    assert len({sample.image.tobytes() for sample in samples}) == COUNT


@pytest.mark.parametrize("size", [48, 101, 192, 512])
def test_samples_have_the_size_asked_for(size: int) -> None:
    for seed in range(6):
        sample = sample_from_seed(seed, size)
        assert sample.image.shape == (size, size, 3)
        assert sample.image.dtype == np.uint8
        assert sample.image.flags.c_contiguous
        for array in (sample.mask, sample.kind_map):
            assert array.shape == (size, size)
            assert array.dtype == np.uint8
        for item in sample.defects + sample.parts:
            assert item.mask.shape == (size, size)
            assert item.mask.dtype == np.bool_
            assert item.mask.any()


def test_masks_kind_maps_and_defects_agree(samples: list[Sample]) -> None:
    for sample in samples:
        union = np.zeros(sample.mask.shape, bool)
        allowed = np.zeros((len(KINDS) + 1, *union.shape), bool)
        for item in sample.defects:
            union |= item.mask
            allowed[1 + KINDS.index(BY_NAME[item.kind])] |= item.mask
        assert np.array_equal(sample.mask, union.astype(np.uint8))
        assert np.array_equal(sample.kind_map > 0, union)
        allowed[0] = ~union
        assert np.take_along_axis(allowed, sample.kind_map[None].astype(np.intp), 0).all()


def test_what_is_missing_belongs_to_no_part(samples: list[Sample]) -> None:
    for sample in samples:
        gone = [item.mask for item in sample.defects if BY_NAME[item.kind].needs_outline]
        for part in sample.parts:
            assert not any((part.mask & mask).any() for mask in gone)


def test_good_samples_are_empty_and_the_rate_is_kept(samples: list[Sample]) -> None:
    for sample in samples:
        assert bool(sample.defects) == bool(sample.mask.any())
        assert len(sample.defects) <= 4
    share = sum(bool(sample.defects) for sample in samples) / COUNT
    assert 0.6 < share < 0.8
    assert not any(sample_from_seed(s, 64, defect_rate=0.0).mask.any() for s in range(30))
    certain = [sample_from_seed(s, 64, defect_rate=1.0).mask.any() for s in range(60)]
    assert sum(certain) >= 59


def test_every_kind_occurs_and_gray_is_common(samples: list[Sample]) -> None:
    kinds = Counter(item.kind for sample in samples for item in sample.defects)
    assert set(kinds) == {kind.name for kind in KINDS if kind.weight}
    assert {item.kind for sample in samples for item in sample.parts} == {
        "part", "drilled hole", "mark", "printed text", "seam",
    }  # fmt: skip
    gray = [bool((s.image == s.image[..., :1]).all()) for s in samples]
    assert 0.3 < sum(gray) / COUNT < 0.6


def test_fine_pictures_show_small_defects_on_finished_surfaces() -> None:
    fine = [sample_from_seed(seed, 96, fine=True) for seed in range(200)]
    assert same(fine[7], sample_from_seed(7, 96, fine=True))
    found = Counter(item.kind for sample in fine for item in sample.defects)
    assert {kind.name for kind in KINDS if not kind.weight} <= set(found)
    assert sum(found[kind.name] for kind in KINDS if not kind.weight) > 0.3 * found.total()
    good = [sample_from_seed(seed, 96, defect_rate=0, fine=True) for seed in range(40)]
    assert not any(sample.mask.any() for sample in good), "a finish is no defect"
    plain = [sample_from_seed(seed, 96, defect_rate=0) for seed in range(40)]
    assert sum(not same(*pair) for pair in zip(good, plain, strict=True)) > 10


def test_shares_of_the_seeds_are_fine_or_have_even_kinds_and_the_rest_is_as_ever() -> None:
    def drawn(seed: int) -> str:
        sample = sample_from_seed(seed, 64, defect_rate=1, fine=0.3, even=0.4)
        for name in ("", "fine", "even"):
            ways = {name: True} if name else {}
            if same(sample, make_sample(np.random.default_rng(seed), 64, defect_rate=1, **ways)):
                return name
        raise AssertionError("the sample is drawn in a fourth way")

    kinds = Counter(drawn(seed) for seed in range(100))
    # A few look alike in two ways, and count as plain.
    assert kinds["fine"] > 20
    assert kinds["even"] > 20
    assert kinds[""] > 20


def test_small_defects_stay_small_in_large_pictures() -> None:
    lengths = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        canvas = make_scene(rng, 768).canvas
        mask = BY_NAME["pinhole"].draw(rng, canvas)
        if mask is not None:
            _, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
            lengths += [max(row[cv2.CC_STAT_WIDTH], row[cv2.CC_STAT_HEIGHT]) for row in stats[1:]]
    assert len(lengths) > 10
    assert np.median(lengths) < 16  # 2 % of the picture


def test_a_finish_has_no_label_and_asks_more_of_defects() -> None:
    for seed in range(8):
        rng = np.random.default_rng(seed)
        canvas = make_scene(rng, 96).canvas
        before, roughness = canvas.image.copy(), canvas.roughness
        add_finish(rng, canvas)
        assert (canvas.image != before).any()
        assert 0 <= canvas.image.min() <= canvas.image.max() <= 1
        assert canvas.roughness > roughness


def test_captions_name_the_category(samples: list[Sample]) -> None:
    assert all(sample.category in sample.caption for sample in samples)
    assert len({sample.caption for sample in samples}) > 0.95 * COUNT
    assert len({sample.category for sample in samples}) > 40


def test_defects_come_in_all_sizes() -> None:
    areas = [
        float(item.mask.mean())
        for seed in range(150)
        for item in sample_from_seed(seed, 96).defects
    ]
    assert min(areas) < 0.003
    assert max(areas) > 0.15
    assert 0.004 < float(np.median(areas)) < 0.04


def look(canvas: Canvas) -> np.ndarray:
    """The part on its background in its light, without shadow, bevel and camera."""
    solid = canvas.solid[..., None]
    flat = canvas.background * (1 - solid) + canvas.image * solid
    return np.asarray(flat * canvas.gain[..., None])


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_labelled_pixels_change_and_the_others_do_not(kind: DefectKind) -> None:
    made = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        canvas = make_scene(rng, 128).canvas
        if canvas.surface and kind.needs_outline:
            continue
        if canvas.surface:
            canvas.background = canvas.background.copy()
        before, part = look(canvas), canvas.part.copy()
        mask = kind.draw(rng, canvas)
        change = np.abs(look(canvas) - before).mean(axis=2)
        if mask is None:
            assert change.max() < 1e-6, "a defect that is not labelled must leave no trace"
            continue
        made += 1
        assert not (mask & ~part).any(), "labels lie on the part"
        assert change[mask].mean() > 0.018
        around = cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        # What lies outside is the faint rim of soft defects, far weaker than the defect itself.
        assert change[~around].mean() < 0.35 * change[mask].mean()
    assert made >= 8


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [64, 101])
def test_textures_have_mean_0_and_deviation_1(family: str, size: int) -> None:
    for seed in range(4):
        field = texture(np.random.default_rng(seed), size, family, 0.4 * seed)
        assert field.shape == (size, size)
        assert field.dtype == np.float32
        assert np.isfinite(field).all()
        assert abs(float(field.mean())) < 0.01
        assert abs(float(field.std()) - 1) < 0.02


def test_a_generator_yields_a_series() -> None:
    rng = np.random.default_rng(3)
    assert not same(make_sample(rng, 64), make_sample(rng, 64))
