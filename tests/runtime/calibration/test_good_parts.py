"""Duplicates, reference parts, what may be judged, and the estimate: on small made-up parts."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from clipsam.runtime.calibration.coreset import make_reference
from clipsam.runtime.calibration.duplicates import first_of_each, thumbnail
from clipsam.runtime.calibration.expected import Example, contact_sheet, tables
from clipsam.runtime.calibration.histogram import draw_histogram
from clipsam.runtime.calibration.judgeable import bounds_of
from clipsam.runtime.calibration.observed import Observed
from clipsam.runtime.calibration.scores import (
    balanced_weight,
    choose_reference,
    clearly_worse,
    measure_good,
    measure_other,
    placements,
)
from clipsam.runtime.stages.picture import obvious_reasons, picture_facts, reasons_of


def part(seed: int, shift: int = 0) -> NDArray[np.uint8]:
    """A textured disc on a plain tray, never twice the same."""
    rng = np.random.default_rng(seed)
    picture = np.full((160, 200, 3), (60, 70, 80), np.float32)
    grain = cv2.GaussianBlur(rng.normal(0, 60, (160, 200)).astype(np.float32), (0, 0), 1.5)
    disc = np.zeros((160, 200), np.uint8)
    cv2.circle(disc, (100 + shift, 80), 55, 1, -1)
    picture[disc > 0] = (170, 120, 70)
    picture[disc > 0] += grain[disc > 0][:, None]
    picture += rng.normal(0, 2, picture.shape) + rng.normal(0, 1)
    return np.clip(picture, 0, 255).astype(np.uint8)


def test_the_same_part_counts_once() -> None:
    first, second = part(0), part(1)
    noise = np.random.default_rng(9).normal(3, 2, first.shape)
    again = np.clip(first + noise, 0, 255).astype(np.uint8)  # taken again, the lamp brighter
    jpeg = cv2.imdecode(cv2.imencode(".jpg", second)[1], cv2.IMREAD_COLOR)
    pictures = [first, second, again, np.asarray(jpeg, np.uint8), part(2), first]
    assert first_of_each([thumbnail(p) for p in pictures]) == [0, 1, 4]
    assert first_of_each([thumbnail(part(i)) for i in range(8)]) == list(range(8))


BAD = {
    "black": lambda p: p // 8,
    "burnt out": lambda p: np.clip(p.astype(np.int16) * 4, 0, 255).astype(np.uint8),
    "blurred": lambda p: cv2.GaussianBlur(p, (0, 0), 4),
    "out of place": lambda p: np.roll(p, 50, axis=1),
    "not this product": lambda p: np.ascontiguousarray(p[..., ::-1]),
    "empty": lambda p: np.full_like(p, 64) + np.random.default_rng(0).integers(0, 4, p.shape, "u1"),
}


@pytest.mark.parametrize("reason", BAD)
def test_frames_unlike_the_good_ones_are_not_judged(reason: str) -> None:
    bounds = bounds_of([picture_facts(part(i)) for i in range(20)])
    frame = np.asarray(BAD[reason](part(30)), np.uint8)
    assert reason in reasons_of(picture_facts(frame), bounds)


def test_other_good_parts_are_judged() -> None:
    bounds = bounds_of([picture_facts(part(i)) for i in range(20)])
    refused = [reasons_of(picture_facts(part(i)), bounds) for i in range(100, 300)]
    assert sum(map(bool, refused)) <= 2


def test_without_good_parts_only_the_obvious_is_known() -> None:
    shape = (90, 120, 3)
    noise = np.random.default_rng(0).integers(0, 8, shape).astype(np.uint8)
    assert obvious_reasons(noise) == ("black",)
    assert obvious_reasons(255 - noise // 2) == ("burnt out",)
    assert obvious_reasons(np.full(shape, 90, np.uint8)) == ("empty",)
    assert obvious_reasons(90 + noise) == ()
    assert obvious_reasons(part(0)) == ()
    assert obvious_reasons(part(0) // 4) == ()


def observed(seed: int, odd: bool = False) -> Observed:
    rng = np.random.default_rng(seed)
    tokens = rng.normal(0, 0.05, (64, 16)).astype(np.float32)
    tokens[:, 0] += 1
    if odd:
        tokens[7] = 0
        tokens[7, 5] = 1
    tokens /= np.linalg.norm(tokens, axis=1, keepdims=True)
    return Observed(float(rng.uniform(0.1, 0.4)), tokens.astype(np.float16), {"brightness": 1.0})


def test_distances_are_those_of_a_loop_and_a_part_is_not_compared_with_itself() -> None:
    good = [observed(i) for i in range(6)]
    reference = choose_reference(good, 3)
    own = sorted(set(reference.parts.tolist()))
    assert len(own) == 3
    assert len(reference.tokens) == 3 * 64  # few enough to keep all
    measured = measure_good(good, reference)
    for i, one in enumerate(good):
        others = np.concatenate([good[k].tokens for k in own if k != i]).astype(np.float64)
        far = [1 - max(others @ token.astype(np.float64)) for token in one.tokens]
        assert measured.largest[i] == pytest.approx(max(far), abs=1e-5)
        assert measured.typical[i] == pytest.approx(np.median(far), abs=1e-5)
    assert reference.distance(good[own[0]].tokens)[0] == pytest.approx(0, abs=2e-3)
    odd = measure_other([observed(i, odd=True) for i in range(10, 20)], reference)
    weight = balanced_weight(measured)
    beside = placements(measured.scores(weight), odd.scores(weight))
    without = placements(measured.scores(0), odd.scores(0))
    assert beside.mean() == 1 > without.mean()
    assert clearly_worse(beside, without)
    assert not clearly_worse(without, beside)
    assert not clearly_worse(without, without)


def test_few_tokens_stand_for_many() -> None:
    parts = [observed(i, odd=i == 2).tokens for i in range(5)]
    reference = make_reference(parts, most=20)
    assert len(reference.tokens) == 20
    assert 2 in reference.parts
    far = [reference.distance(tokens)[0] for tokens in parts]
    assert max(far) < 0.2  # the odd token of one part is among the twenty


def test_what_is_found_is_counted_by_kind_and_size() -> None:
    tile = np.zeros((160, 160, 3), np.uint8)
    examples = [
        Example(kind, size, observed(0), tile)
        for kind, size in (("scratch", 4.0), ("scratch", 30.0), ("hole", 30.0), ("hole", 90.0))
    ]
    found = np.array([False, True, True, True])
    counted = tables(examples, found, 200, None)
    assert counted["kind"] == {"hole": (2, 2), "scratch": (1, 2)}
    assert counted["size"] == {"up to 6 px": (0, 1), "24 to 50 px": (2, 2), "over 50 px": (1, 1)}
    assert next(iter(tables(examples, found, 200, 0.1)["size"])) == "up to 0.6 mm"
    sheet = contact_sheet(examples, found)
    assert sheet.shape == (160, 6 * 160, 3)
    assert tuple(sheet[2, 2]) != tuple(sheet[2, 162])  # the smallest is missed, the next is found


def test_the_histogram_shows_groups_and_limit() -> None:
    groups = {"good": np.linspace(0.1, 0.4, 30), "planted": np.array([]), "defective": np.ones(1)}
    picture = draw_histogram(groups, 0.5, "parts")
    assert picture.shape == (40 + 2 * 150 + 40, 900, 3)
    assert (picture == 0).all(axis=2).any(axis=0).sum() > 2
