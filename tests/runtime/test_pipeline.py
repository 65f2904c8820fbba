"""The whole flow on the toy bundle: what runs, what is skipped, what comes out."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.toy_bundle import SCORES, bright_square, build_toy_bundle, hashes, plain_part

from clipsam.runtime import (
    Bundle,
    CategoryError,
    ClipSAM,
    ImageError,
    InspectOptions,
    OptionError,
    Result,
    SessionError,
)
from clipsam.runtime.backends.base import Array, Session, SessionWrapper, open_session
from clipsam.runtime.bundle import Manifest, write_manifest, write_text_features
from clipsam.runtime.stages.prompts import PromptOptions

Outputs = dict[str, Array]


class Spy(SessionWrapper):
    """A session that counts its runs, keeps its feeds, and may change its outputs."""

    def __init__(self, inner: Session, before: Callable[[], None] = lambda: None) -> None:
        super().__init__(inner)
        self.before = before
        self.feeds: list[Mapping[str, Array]] = []
        self.change: Callable[[Outputs], None] = lambda outputs: None
        self.closed = False

    def _run(self, feeds: Mapping[str, Array], wanted: Sequence[str]) -> Outputs:
        self.feeds.append(feeds)
        self.before()
        outputs = super()._run(feeds, wanted)
        self.change(outputs)
        return outputs

    def close(self) -> None:
        self.closed = True
        super().close()


class Model:
    """A ClipSAM whose three sessions are spies and whose clock is set by hand."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.cost = {"clip_umci": 0.010, "sam_encoder": 0.200, "sam_decoder": 0.030}
        bundle = Bundle.open(folder)
        self.spies = {name: self._spy(bundle, name) for name in self.cost}
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)
        self.model = ClipSAM(bundle, dict(self.spies))

    def _spy(self, bundle: Bundle, name: str) -> Spy:
        def pass_time() -> None:
            self.now += self.cost[name]

        return Spy(open_session(bundle.graph_path(name), threads=1), pass_time)

    def runs(self) -> dict[str, int]:
        return {name: len(spy.feeds) for name, spy in self.spies.items()}


@pytest.fixture
def spied(toy: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Model]:
    model = Model(toy, monkeypatch)
    with model.model:
        yield model
    assert all(spy.closed for spy in model.spies.values())


@pytest.fixture(scope="module")
def model(toy: Path) -> Iterator[ClipSAM]:
    with ClipSAM.open(toy, threads=1) as opened:
        yield opened


DARK = plain_part(120, 160, 30)


def two_squares() -> NDArray[np.uint8]:
    image = bright_square(200, 160, (20, 20, 50, 40))
    image[120:160, 90:130] = 240
    return image


def test_a_good_part_runs_no_sam(spied: Model) -> None:
    result = spied.model.inspect(DARK)
    assert spied.runs() == {"clip_umci": 1, "sam_encoder": 0, "sam_decoder": 0}
    assert (result.verdict, result.anomalous) == ("good", False)
    assert (result.prompts, result.dropped, result.regions) == (0, 0, ())
    assert (result.refined, result.late) == (False, False)  # there is nothing to redraw
    assert not result.mask.any()
    np.testing.assert_allclose(result.score_map, 32 / 255 / 4, atol=2.1 / 255 / 4)
    assert result.score == pytest.approx(34 / 255)
    assert (result.limit, result.map_limit) == (0.47, 0.47 / 4)
    assert set(result.timings) == {"rough", "prompts", "fuse", "total", "latency"}


def test_a_defect_is_encoded_and_decoded_once(spied: Model) -> None:
    result = spied.model.inspect(two_squares())
    assert spied.runs() == {"clip_umci": 1, "sam_encoder": 1, "sam_decoder": 1}
    assert result.verdict == "anomalous"
    assert (result.prompts, len(result.regions), result.refined) == (2, 2, True)
    assert set(result.timings) == {
        "rough",
        "prompts",
        "encode",
        "decode",
        "fuse",
        "total",
        "latency",
    }
    assert result.timings["encode"] == pytest.approx(200)
    assert result.timings["total"] == pytest.approx(240)
    decoder = spied.spies["sam_decoder"].feeds[0]
    assert decoder["point_coords"].shape == (2, 7, 2)  # all prompts in one call
    np.testing.assert_array_equal(decoder["point_labels"], [[1] * 5 + [2, 3]] * 2)
    encoder = spied.spies["sam_encoder"].feeds[0]
    np.testing.assert_array_equal(encoder["valid_size"], [128, 102])
    assert not encoder["image"][0, :, 102:].any()


def test_the_map_is_equation_nine(model: ClipSAM) -> None:
    """In the middle of the square: brightness plus all three scores, over four."""
    result = model.inspect(bright_square())
    (region,) = result.regions
    assert result.score_map[50, 65] == pytest.approx((250 / 255 + sum(SCORES)) / 4, abs=1e-3)
    assert result.score_map[5, 5] == pytest.approx(30 / 255 / 4, abs=1e-3)
    assert region.centroid == pytest.approx((64.5, 49.5), abs=1)
    x, y, width, height = region.box
    assert np.abs(np.array([x, y, width, height]) - [40, 30, 50, 40]).max() <= 3
    assert result.score == pytest.approx(250 / 255, abs=1e-3)  # of the rough map
    assert region.area == result.mask.sum()


def test_the_category_steers_the_score(model: ClipSAM) -> None:
    image = bright_square()
    assert model.inspect(image, "object").anomalous
    assert not model.inspect(image, "nothing").anomalous
    ninety = model.inspect(image, "metal nut")
    assert ninety.category == "metal nut"
    assert ninety.score_map[5, 5] == pytest.approx(0.9 * 30 / 255 / 4, abs=1e-3)
    with pytest.raises(CategoryError, match="did you mean 'bottle'"):
        model.inspect(image, "botle")


def test_the_verdict_does_not_depend_on_the_norm(model: ClipSAM) -> None:
    for image in (bright_square(), DARK, two_squares(), bright_square(bright=150)):
        fixed, scaled = (model.inspect(image, norm=norm) for norm in ("fixed", "image"))
        assert (fixed.norm, scaled.norm) == ("fixed", "image")
        assert fixed.verdict == scaled.verdict
        assert fixed.regions == scaled.regions
        assert fixed.score == scaled.score
        np.testing.assert_array_equal(fixed.mask, scaled.mask)
    scaled = model.inspect(bright_square(), norm="image")
    assert (scaled.score_map.min(), scaled.score_map.max()) == (0, 1)
    with pytest.raises(OptionError, match="norm='dataset' must be one of"):
        model.inspect(DARK, norm="dataset")


def test_a_deadline_gives_the_rough_result(spied: Model) -> None:
    model, image = spied.model, bright_square()
    full = model.inspect(image)  # tells the model that SAM costs 230 ms
    assert model.inspect(image, deadline_ms=250).refined
    late = model.inspect(image, deadline_ms=230)  # 10 ms are gone when SAM would start
    assert spied.runs() == {"clip_umci": 3, "sam_encoder": 2, "sam_decoder": 2}
    assert (late.refined, late.late, late.prompts, late.verdict) == (False, True, 1, "anomalous")
    assert (late.limit, late.score) == (full.limit, full.score)
    assert set(late.timings) == {"rough", "prompts", "fuse", "total", "latency"}
    np.testing.assert_array_equal(late.mask, late.score_map > 0.47 / 4)
    assert late.score == pytest.approx(250 / 255, abs=1e-3)


def test_one_slow_run_does_not_switch_sam_off_for_good(spied: Model) -> None:
    model, image = spied.model, bright_square()
    model.inspect(image)  # 230 ms
    refined = [model.inspect(image, deadline_ms=200).refined for _ in range(30)]
    assert not any(refined[:5])
    assert any(refined)


def test_a_deadline_does_not_touch_good_parts(spied: Model) -> None:
    spied.model.inspect(bright_square())
    result = spied.model.inspect(DARK, deadline_ms=1)
    assert (result.verdict, result.refined) == ("good", False)


def test_warm_up_tells_the_deadline_what_sam_costs(spied: Model) -> None:
    spied.cost["sam_encoder"] = 5.0  # the first run sets the engine up

    def warm() -> None:
        spied.now += spied.cost["sam_encoder"]
        spied.cost["sam_encoder"] = 0.2

    spied.spies["sam_encoder"].before = warm
    spied.model.warm_up()
    assert not spied.model.inspect(bright_square(), deadline_ms=230).refined
    assert spied.model.inspect(bright_square(), deadline_ms=250).refined


def test_warm_up_runs_without_the_category_object(tmp_path: Path) -> None:
    features = np.ones((1, 4, 2), np.float32)
    folder = build_toy_bundle(tmp_path / "a")
    write_text_features(folder / "text_features.npz", ("bolt",), features)
    old = Manifest.from_json((folder / "manifest.json").read_text())
    write_manifest(
        folder, Manifest(**{**vars(old), "categories": ("bolt",), "files": hashes(folder)})
    )
    with ClipSAM.open(folder, threads=1) as model:
        model.warm_up()
        assert model.inspect(bright_square(), "bolt").anomalous


def test_dropped_regions_are_counted(tmp_path: Path) -> None:
    folder = build_toy_bundle(tmp_path / "a", prompts=PromptOptions(max_boxes=1))
    with ClipSAM.open(folder, threads=1) as model:
        result = model.inspect(two_squares())
    assert (result.prompts, result.dropped) == (1, 1)
    x, y, _, _ = result.regions[0].box
    assert abs(x - 20) <= 3  # the larger one was given to SAM
    assert abs(y - 20) <= 3


@pytest.mark.parametrize(
    ("graph", "tensor"),
    [("clip_umci", "rough"), ("sam_decoder", "logits"), ("sam_decoder", "scores")],
)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_overflow_is_not_a_good_part(
    spied: Model, graph: str, tensor: str, value: float
) -> None:
    """NaN is not above any threshold: without a check the part would be called good."""

    def overflow(outputs: Outputs) -> None:
        outputs[tensor][...] = value

    spied.spies[graph].change = overflow
    with pytest.raises(SessionError, match=f"values of {tensor} that are not numbers"):
        spied.model.inspect(bright_square())


def test_two_runs_and_any_thread_count_agree(toy: Path) -> None:
    image = two_squares()
    found: list[tuple[Any, Result]] = []
    for threads in (1, 1, 2, None):
        bundle = Bundle.open(toy)
        names = ("clip_umci", "sam_encoder", "sam_decoder")
        spies = {n: Spy(open_session(bundle.graph_path(n), threads=threads)) for n in names}
        with ClipSAM(bundle, dict(spies)) as model:
            for _ in range(2):
                result = model.inspect(image)
                found.append((spies["sam_decoder"].feeds[-1]["point_coords"], result))
    for (one, first), (other, second) in pairwise(found):
        np.testing.assert_array_equal(one, other)
        assert first.verdict == second.verdict
        np.testing.assert_array_equal(first.mask, second.mask)


def test_python_threads_share_a_model(model: ClipSAM) -> None:
    images = [bright_square(box=(10 + 5 * i, 20, 40, 40)) for i in range(4)] + [DARK]
    expected = [model.inspect(image) for image in images]
    wrong: list[int] = []

    def work(index: int) -> None:
        for _ in range(5):
            result = model.inspect(images[index])
            same = result.regions == expected[index].regions
            if not same or not np.array_equal(result.score_map, expected[index].score_map):
                wrong.append(index)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(len(images))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert Counter(wrong) == Counter()


SHAPES = [(16, 16), (17, 31), (16, 1024), (1024, 16), (333, 77), (64, 64), (129, 128), (1200, 900)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_images_of_every_shape_are_inspected(model: ClipSAM, shape: tuple[int, int]) -> None:
    height, width = shape
    image = bright_square(height, width, (width // 4, height // 4, width // 2, height // 2))
    result = model.inspect(image)
    assert (result.height, result.width) == shape
    assert result.score_map.shape == result.mask.shape == shape
    assert result.score_map.dtype == np.float32
    assert result.mask.dtype == np.bool_
    assert 0 <= result.score_map.min() <= result.score_map.max() <= 1
    assert result.prompts == 1
    assert result.anomalous  # even where the toy SAM sees two rows and finds nothing
    for region in result.regions:
        x, y, w, h = region.box
        assert 0 <= x < x + w <= width
        assert 0 <= y < y + h <= height
    assert Result.from_json(result.to_json(), result.score_map, result.mask).score == result.score


def test_views_are_inspected_and_wrong_images_refused(model: ClipSAM) -> None:
    whole = bright_square(120, 160)
    flipped = model.inspect(whole[:, ::-1])  # a view, as BGR turned by a slice is
    np.testing.assert_array_equal(
        flipped.score_map, model.inspect(np.ascontiguousarray(whole[:, ::-1])).score_map
    )
    locked = whole.copy()
    locked.flags.writeable = False
    model.inspect(locked)
    with pytest.raises(ImageError, match="repeat a gray channel"):
        model.inspect(whole[..., 0])


def test_the_image_is_left_as_it_was(model: ClipSAM) -> None:
    image = bright_square()
    before = image.copy()
    model.inspect(image)
    np.testing.assert_array_equal(image, before)


def test_a_closed_model_says_so(toy: Path) -> None:
    with ClipSAM.open(toy, threads=1) as opened:
        opened.inspect(DARK)
    with pytest.raises(SessionError, match="is closed"):
        opened.inspect(DARK)


def test_an_engine_that_cannot_be_freed_keeps_none_of_the_others(
    spied: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise SessionError("The GPU went away.")

    with monkeypatch.context() as patch:
        patch.setattr(spied.spies["sam_encoder"].inner, "close", fail)
        with pytest.raises(SessionError, match="went away"):
            spied.model.close()
    assert all(spy.closed for spy in spied.spies.values())


def test_frames_that_show_nothing_are_never_good(model: ClipSAM) -> None:
    shape = (120, 160, 3)
    for image, reason in (
        (np.zeros(shape, np.uint8), "black"),
        (np.full(shape, 30, np.uint8), "empty"),
    ):
        result = model.inspect(image)
        assert (result.verdict, result.reasons) == ("not_judged", (reason,))
        assert result.score <= result.limit
        assert result.regions == ()
    burnt = model.inspect(np.full(shape, 255, np.uint8))  # a defect all over, to this model
    assert (burnt.verdict, burnt.reasons) == ("anomalous", ("burnt out",))
    assert model.inspect(np.full(shape, 255, np.uint8), "nothing").verdict == "not_judged"


def test_a_limit_of_ones_own(toy: Path) -> None:
    for limit, verdict in ((0.5, "anomalous"), (0.99, "good")):
        options = InspectOptions(limit=limit)
        with ClipSAM.open(toy, threads=1, options=options) as opened:
            result = opened.inspect(bright_square())
            assert (result.verdict, result.limit) == (verdict, limit)


def test_defects_below_the_smallest_area_do_not_count(toy: Path) -> None:
    image = two_squares()  # of 2000 and 1600 pixels
    for options, count in (
        (InspectOptions(min_area=1800), 1),
        (InspectOptions(min_area=1200), 2),
        (InspectOptions(min_area=18, mm_per_pixel=0.1), 1),  # mm²
        (InspectOptions(min_area=3000), 0),
    ):
        with ClipSAM.open(toy, threads=1, options=options) as opened:
            result = opened.inspect(image)
            assert len(result.regions) == count
            assert result.min_area == round(
                (options.min_area or 0) / (options.mm_per_pixel or 1) ** 2
            )


def test_only_the_region_of_interest_counts_and_coordinates_are_the_images(toy: Path) -> None:
    image = two_squares()
    with ClipSAM.open(toy, threads=1, options=InspectOptions(roi=(80, 100, 70, 80))) as opened:
        result = opened.inspect(image)
        (many,) = (part.result() for part in opened.inspect_many([image]))
        assert (many.score, many.regions) == (result.score, result.regions)
        (region,) = result.regions
        assert np.abs(np.array(region.box) - [90, 120, 40, 40]).max() <= 4
        assert np.abs(np.array(region.centroid) - [109.5, 139.5]).max() <= 1
        assert min(x for x, _ in region.contour) >= 85
        assert result.mask.shape == result.score_map.shape == image.shape[:2]
        assert result.mask.sum() == region.area
        assert not result.mask[:100].any()
        assert not result.score_map[:100].any()
        assert result.roi == (80, 100, 70, 80)
        with pytest.raises(ImageError, match="100x90 pixels and the roi 80,100,70,80 reaches"):
            opened.inspect(bright_square(90, 100))


def test_what_is_ignored_is_no_defect(toy: Path) -> None:
    image = two_squares()
    ignore = np.zeros(image.shape[:2], np.bool_)
    ignore[110:170, 80:140] = True
    for roi, count in ((None, 1), ((80, 100, 70, 80), 0)):
        with ClipSAM.open(toy, options=InspectOptions(ignore=ignore, roi=roi)) as opened:
            result = opened.inspect(image)
            assert len(result.regions) == count
            assert result.ignore == InspectOptions(ignore=ignore).ignore_id != ""
            assert not (result.mask & ignore).any()
            with pytest.raises(ImageError, match="ignored area was drawn for 160x200"):
                opened.inspect(bright_square(90, 100))


@pytest.mark.parametrize(
    "given",
    [
        {"limit": 0},
        {"limit": float("nan")},
        {"limit": "high"},
        {"min_area": -1},
        {"mm_per_pixel": float("inf")},
        {"roi": (1, 2, 3)},
        {"roi": (-1, 2, 3, 4)},
        {"roi": (0, 0, 1.5, 4)},
        {"roi": (0, 0, 1, 4)},
        {"ignore": np.zeros((3, 4))},
        {"ignore": [[True, False]]},
        {"tiles": 3},
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        InspectOptions(**given)


def test_a_limit_that_no_score_reaches_says_what_the_most_is() -> None:
    with pytest.raises(OptionError, match="greater than 0, at most 100"):
        InspectOptions(limit=101)
