"""A line of parts: the same results in the same order, whatever goes wrong, and no thread left.

Nothing here measures time. Where two things have to be under way at once, a stage is held until
the other has been seen.
"""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.toy_bundle import CLIP_SIZE, bright_square, plain_part

from clipsam.runtime import (
    Bundle,
    CategoryError,
    ClipSAM,
    ImageError,
    Inspected,
    OptionError,
    Result,
    SessionError,
)
from clipsam.runtime.backends.base import Array, Session, SessionWrapper, open_session
from clipsam.runtime.images.reader import write_png
from clipsam.runtime.part import Item
from clipsam.runtime.timing import Clock

Feeds = dict[str, Array]
DARK = plain_part(120, 160, 30)
PATIENCE = 20  # seconds until a test fails that would wait for ever


class Watched(SessionWrapper):
    """A session that tells of every run, and may hold it or change its outputs."""

    def __init__(self, inner: Session) -> None:
        super().__init__(inner)
        self.before: Callable[[Feeds], None] = lambda feeds: None
        self.after: Callable[[Feeds], None] = lambda outputs: None
        self.batches: list[int] = []

    def _run(self, feeds: Feeds, wanted: Sequence[str]) -> Feeds:  # type: ignore[override]
        self.batches.append(len(feeds["image"]) if "image" in feeds else 1)
        self.before(feeds)
        outputs = super()._run(feeds, wanted)
        self.after(outputs)
        return outputs


class Watching:
    """A model whose sessions are watched."""

    def __init__(self, folder: Path) -> None:
        bundle = Bundle.open(folder)
        self.clip, self.encoder, self.decoder = (
            Watched(open_session(bundle.graph_path(name), threads=1))
            for name in ("clip_umci", "sam_encoder", "sam_decoder")
        )
        names = ("clip_umci", "sam_encoder", "sam_decoder")
        self.model = ClipSAM(
            bundle, dict(zip(names, (self.clip, self.encoder, self.decoder), strict=True))
        )


@pytest.fixture(scope="module")
def model(toy: Path) -> Iterator[ClipSAM]:
    with ClipSAM.open(toy, threads=1) as opened:
        yield opened


@pytest.fixture
def watching(toy: Path) -> Iterator[Watching]:
    watching = Watching(toy)
    with watching.model:
        yield watching


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def wait(event: threading.Event) -> None:
    assert event.wait(PATIENCE), "nothing happened"


def parts(number: int) -> list[NDArray[np.uint8]]:
    """Good and defective parts of several sizes, no two alike."""
    found = []
    for i in range(number):
        height, width = 90 + 7 * (i % 5), 100 + 11 * (i % 3)
        bright = 50 + i if i % 3 else 250 - i
        found.append(bright_square(height, width, (20 + i % 7, 25, 30 + i % 4, 20), bright))
    return found


def same(found: Result, expected: Result) -> None:
    """Equal in everything but the time it took."""
    for name in ("verdict", "score", "regions", "category", "prompts", "dropped", "refined"):
        assert getattr(found, name) == getattr(expected, name), name
    np.testing.assert_array_equal(found.score_map, expected.score_map)
    np.testing.assert_array_equal(found.mask, expected.mask)


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("norm", ["fixed", "image"])
def test_a_line_says_what_one_by_one_says(model: ClipSAM, batch: int, norm: str) -> None:
    images = parts(14)
    line = list(model.inspect_many(images, "metal nut", norm=norm, batch=batch))
    assert len({part.result().verdict for part in line}) == 2
    for part, image in zip(line, images, strict=True):
        assert part.item is image
        np.testing.assert_array_equal(part.image, image)
        same(part.result(), model.inspect(image, "metal nut", norm=norm))


def test_no_run_of_the_graph_has_more_looks_than_an_engine_takes(watching: Watching) -> None:
    line = list(watching.model.inspect_many([DARK] * 24, batch=12))
    assert len(line) == 24
    assert sum(watching.clip.batches) == 24
    assert max(watching.clip.batches) <= 8


def test_the_trained_model_says_the_same_in_batches(tiny_bundle: Path) -> None:
    """Bit for bit one at a time; in batches the same verdicts and maps within float's rounding."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (3, 96, 128, 3), np.uint8)
    images = [noise[0], bright_square(130, 128), noise[1], noise[2]]
    with ClipSAM.open(tiny_bundle, threads=1) as model:
        expected = [model.inspect(image) for image in images]
        for part, alone in zip(model.inspect_many(images), expected, strict=True):
            same(part.result(), alone)
        for part, alone in zip(model.inspect_many(images, batch=2), expected, strict=True):
            assert part.result().verdict == alone.verdict
            np.testing.assert_allclose(part.result().score_map, alone.score_map, atol=1e-5)


def test_an_empty_stream_yields_nothing(model: ClipSAM) -> None:
    assert list(model.inspect_many([])) == []


def test_every_image_may_name_its_own_category(model: ClipSAM) -> None:
    image = bright_square()
    items: list[Item] = [image, (image, "nothing"), (image, "metal nut"), (image, "botle"), image]
    line = list(model.inspect_many(items, "bottle", batch=4))
    words = [part.outcome.category for part in line if isinstance(part.outcome, Result)]
    assert words == ["bottle", "nothing", "metal nut", "bottle"]
    assert [part.result().anomalous for part in line[:3]] == [True, False, True]
    with pytest.raises(CategoryError, match="did you mean 'bottle'"):
        line[3].result()


def test_a_stream_takes_files_and_arrays(model: ClipSAM, tmp_path: Path) -> None:
    write_png(tmp_path / "part.png", bright_square())
    line = list(model.inspect_many([tmp_path / "part.png", str(tmp_path / "part.png"), DARK]))
    assert [part.item for part in line[:2]] == [tmp_path / "part.png", str(tmp_path / "part.png")]
    for part in line[:2]:
        np.testing.assert_array_equal(part.image, bright_square())
        same(part.result(), model.inspect(bright_square()))
    assert "read" in line[0].result().timings
    assert "read" not in line[2].result().timings


@pytest.mark.parametrize("batch", [1, 3])
def test_a_bad_image_does_not_lose_the_others(model: ClipSAM, tmp_path: Path, batch: int) -> None:
    (tmp_path / "cut.png").write_bytes(b"\x89PNG")
    good = bright_square()
    items: list[Item] = [
        good,
        tmp_path / "no.png",
        good,
        good[..., 0],
        tmp_path / "cut.png",
        "a\0b",
        good,
    ]
    line = list(model.inspect_many(items, batch=batch))
    assert [isinstance(part.outcome, Result) for part in line] == [1, 0, 1, 0, 0, 0, 1]
    for number, words in ((1, "no.png cannot be read"), (3, "repeat a gray"), (4, "cut.png is da")):
        with pytest.raises(ImageError, match=words):
            line[number].result()
    assert line[1].image is None
    same(line[6].result(), model.inspect(good))


def test_an_engine_that_overflows_fails_that_image_alone(watching: Watching) -> None:
    def overflow(outputs: Feeds) -> None:
        outputs["rough"][outputs["rough"].max((1, 2)) > 0.9] = np.nan

    watching.clip.after = overflow
    line = list(watching.model.inspect_many([DARK, bright_square(), DARK], batch=3))
    assert line[0].result().verdict == line[2].result().verdict == "good"
    with pytest.raises(SessionError, match="rough that are not numbers"):
        line[1].result()


def test_a_failing_engine_fails_its_batch_alone(watching: Watching) -> None:
    """Every image of the batch says so, and the next ones go on."""

    def fail(feeds: Feeds) -> None:
        if (feeds["image"] > 200).any():
            raise SessionError("out of memory")

    watching.clip.before = fail
    line = list(watching.model.inspect_many([DARK, bright_square(), DARK]))
    assert [isinstance(part.outcome, Result) for part in line] == [True, False, True]


@pytest.mark.parametrize("which", ["clip", "encoder", "decoder"])
def test_an_engine_that_is_dead_ends_the_line(watching: Watching, which: str) -> None:
    """The remaining images are not billed for it."""
    taken = []

    def camera() -> Iterator[NDArray[np.uint8]]:
        for number in range(50):
            taken.append(number)
            yield bright_square()

    def fail(feeds: Feeds) -> None:
        if len(getattr(watching, which).batches) > 2:
            raise SessionError("the device is lost")

    getattr(watching, which).before = fail
    line = watching.model.inspect_many(camera())
    assert [next(line).result().anomalous for _ in range(2)] == [True, True]
    with pytest.raises(SessionError, match="the device is lost"):
        next(line)
    assert len(taken) < 10


def test_a_closed_model_ends_the_line(toy: Path) -> None:
    model = ClipSAM.open(toy, threads=1)
    line = model.inspect_many(DARK for _ in count())
    next(line)
    model.close()
    with pytest.raises(SessionError, match="closed: open it again"):
        list(islice(line, 10))


def test_a_source_that_fails_ends_the_line_at_its_place(model: ClipSAM) -> None:
    def camera() -> Iterator[NDArray[np.uint8]]:
        yield bright_square()
        yield DARK
        raise OSError("the cable is loose")

    line = model.inspect_many(camera())
    assert [next(line).result().verdict, next(line).result().verdict] == ["anomalous", "good"]
    with pytest.raises(OSError, match="the cable is loose"):
        next(line)
    assert list(line) == []


@pytest.mark.parametrize("where", ["clip", "encoder"])
def test_what_is_no_fault_of_an_image_ends_the_line(watching: Watching, where: str) -> None:
    def fail(feeds: Feeds) -> None:
        if len(getattr(watching, where).batches) == 2:
            raise RuntimeError("a bug of ours")

    getattr(watching, where).before = fail
    line = watching.model.inspect_many([bright_square() for _ in range(4)])
    assert next(line).result().anomalous
    with pytest.raises(RuntimeError, match="a bug of ours"):
        next(line)


def test_a_stream_of_no_iterable_is_a_type_error(model: ClipSAM) -> None:
    with pytest.raises(TypeError, match="not iterable"):
        next(model.inspect_many(3))  # type: ignore[arg-type]


def test_wrong_arguments_are_refused_at_once(model: ClipSAM) -> None:
    with pytest.raises(CategoryError, match="did you mean 'bottle'"):
        model.inspect_many([], "botle")
    with pytest.raises(OptionError, match="norm='dataset' must be one of"):
        model.inspect_many([], norm="dataset")
    for batch, ahead in ((0, None), (4, 2), (1, -1)):
        with pytest.raises(OptionError, match="at least batch - 1"):
            model.inspect_many([], batch=batch, ahead=ahead)


@pytest.mark.parametrize("deadline", ["500", float("nan"), -5, True])
def test_a_deadline_that_is_none_is_refused_at_once(model: ClipSAM, deadline: Any) -> None:
    refused = pytest.raises(OptionError, match=r"deadline_ms=.* must be a number of milliseconds")
    with refused:
        model.inspect(DARK, deadline_ms=deadline)
    with refused:
        model.inspect_many([DARK], deadline_ms=deadline)


@pytest.mark.parametrize("one", ["part.png", Path("part.png"), b"part.png", DARK])
def test_one_image_is_no_source(model: ClipSAM, one: Any) -> None:
    with pytest.raises(OptionError, match="was given one: put it in a list"):
        model.inspect_many(one)


@pytest.mark.parametrize("threads", [100_000, 0, -1, 1.5, "2", True])
def test_a_number_of_threads_that_no_machine_has_is_refused(toy: Path, threads: Any) -> None:
    with pytest.raises(OptionError, match=r"threads=.* must be between 1 and \d+ on this machine"):
        ClipSAM.open(toy, threads=threads)


def test_a_batch_whose_images_would_change_each_other_is_refused(watching: Watching) -> None:
    watching.clip.precision = "int8-dynamic"
    assert len(list(watching.model.inspect_many([DARK, DARK]))) == 2
    with pytest.raises(OptionError, match="batch=2 would let images change each other's results"):
        watching.model.inspect_many([DARK], batch=2)


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_a_slow_consumer_holds_an_endless_camera_back(model: ClipSAM, ahead: int) -> None:
    taken = []
    room = threading.Event()

    def camera() -> Iterator[NDArray[np.uint8]]:
        for number in count():
            taken.append(number)
            if number == ahead + 1:
                room.set()  # must not happen before the consumer asks for the second part
            yield DARK

    line = model.inspect_many(camera(), ahead=ahead)
    next(line)
    assert not room.wait(0.1)
    assert len(taken) <= ahead + 1
    for seen in range(2, 12):
        next(line)
        assert len(taken) <= ahead + seen
    line.close()


def test_the_memory_of_what_is_done_is_let_go(model: ClipSAM) -> None:
    """An endless camera: no image lives longer than those under way."""
    alive: list[weakref.ref[NDArray[np.uint8]]] = []
    for part in islice(model.inspect_many(DARK.copy() for _ in count()), 30):
        assert part.image is not None
        alive.append(weakref.ref(part.image))
        del part
    gc.collect()
    assert not [reference for reference in alive[:-1] if reference() is not None]


def test_a_picture_is_let_go_while_the_next_is_waited_for(model: ClipSAM) -> None:
    """By every thread of the line: a station may wait for hours."""
    alive: list[weakref.ref[NDArray[np.uint8]]] = []
    gone = threading.Event()

    def camera() -> Iterator[NDArray[np.uint8]]:
        yield DARK
        for _ in range(100 * PATIENCE):
            if alive and alive[0]() is None:
                gone.set()
                return
            gone.wait(0.01)

    for part in model.inspect_many(camera()):
        assert part.image is not None
        alive.append(weakref.ref(part.image))
        del part
    assert gone.is_set()


def test_stages_of_successive_parts_are_under_way_together(watching: Watching) -> None:
    """SAM of the first is held until CLIP has the second and the source was asked for the third."""
    third, second = threading.Event(), threading.Event()

    def camera() -> Iterator[NDArray[np.uint8]]:
        yield bright_square()
        yield bright_square(bright=240)
        third.set()
        yield bright_square(bright=230)

    def clip(feeds: Feeds) -> None:
        if len(watching.clip.batches) == 2:
            second.set()

    def sam(feeds: Feeds) -> None:
        wait(second)
        wait(third)

    watching.clip.before, watching.encoder.before = clip, sam
    line = list(watching.model.inspect_many(camera()))
    assert [part.result().verdict for part in line] == ["anomalous"] * 3


def test_clip_takes_what_waits(watching: Watching) -> None:
    """The first goes alone; the others that came meanwhile go together, four at most."""
    last = threading.Event()

    def cameras() -> Iterator[NDArray[np.uint8]]:
        yield from parts(6)
        last.set()

    watching.clip.before = lambda feeds: wait(last)
    line = list(watching.model.inspect_many(cameras(), batch=4, ahead=7))
    assert len(line) == 6
    first, second, *rest = watching.clip.batches
    assert 1 <= first <= 4
    assert second == min(4, 6 - first)
    assert sum([first, second, *rest]) == 6


def test_an_image_may_be_overwritten_once_it_is_given(watching: Watching) -> None:
    """As a camera's driver does with its buffer."""
    overwritten = threading.Event()

    def camera() -> Iterator[NDArray[np.uint8]]:
        buffer = bright_square()
        yield buffer
        buffer[...] = plain_part()
        overwritten.set()
        yield buffer

    watching.clip.before = lambda feeds: wait(overwritten)
    line = list(watching.model.inspect_many(camera()))
    assert [part.result().verdict for part in line] == ["anomalous", "good"]
    np.testing.assert_array_equal(line[0].image, bright_square())


def _after(waited: float, clock: Clock) -> float:
    return waited


def test_the_deadline_counts_from_the_source(
    watching: Watching, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SAM is known to take 230 ms; waiting behind another part is part of the time."""
    watching.model._time.took(230.0)
    for waited, refined in ((100.0, True), (300.0, False)):
        monkeypatch.setattr(Clock, "total", property(partial(_after, waited)))
        (part,) = watching.model.inspect_many([bright_square()], deadline_ms=400)
        assert part.result().refined is refined
        assert part.result().anomalous
        watching.model._time.took(230.0)


def test_leaving_the_loop_stops_the_line(model: ClipSAM) -> None:
    for part in model.inspect_many(DARK for _ in count()):
        assert part.result().verdict == "good"
        break
    line = model.inspect_many(DARK for _ in count())
    next(line)
    assert {t.name for t in threading.enumerate()} >= {"clipsam-clip", "clipsam-sam"}
    line.close()  # and the fixture sees to the rest


def test_an_error_of_the_consumer_stops_the_line(model: ClipSAM) -> None:
    def consume() -> None:
        for part in model.inspect_many(DARK for _ in count()):
            part.result().regions[0]

    with pytest.raises(IndexError):
        consume()


def test_a_line_that_is_never_started(model: ClipSAM) -> None:
    line = model.inspect_many(DARK for _ in count())
    assert not [t for t in threading.enumerate() if t.name.startswith("clipsam-")]
    line.close()


def test_a_forgotten_line_in_a_cycle_is_stopped(model: ClipSAM) -> None:
    line = model.inspect_many(DARK for _ in count())
    next(line)
    cycle: list[object] = [line]
    cycle.append(cycle)
    del line, cycle
    gc.collect()


def test_a_camera_that_waits_for_ever(model: ClipSAM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its thread ends with its next picture; all else ends at once."""
    monkeypatch.setattr("clipsam.runtime.stream._GRACE", 0.05)
    trigger = threading.Event()

    def camera() -> Iterator[NDArray[np.uint8]]:
        yield DARK
        wait(trigger)
        yield DARK

    line = model.inspect_many(camera())
    next(line)
    line.close()
    (reader,) = [t for t in threading.enumerate() if t.name.startswith("clipsam-")]
    assert reader.daemon
    trigger.set()
    reader.join(PATIENCE)


@pytest.mark.parametrize("ahead", [0, 3])
@pytest.mark.parametrize("kind", ["array", "pair"])
def test_a_line_that_is_started_again_loses_no_picture(
    model: ClipSAM, ahead: int, kind: str
) -> None:
    """Nor judges one twice, though the camera overwrites its buffer."""
    buffer = DARK.copy()

    def pictures() -> Iterator[Any]:
        for number in range(20):
            buffer[...] = number
            yield buffer if kind == "array" else (buffer, "bottle")

    camera: Iterator[Any] = pictures()
    seen: list[int] = []
    for _ in range(30):
        line = model.inspect_many(camera, ahead=ahead)
        for part in islice(line, 3):
            assert part.image is not None
            seen.append(int(part.image[0, 0, 0]))
            assert part.result().category == ("object" if kind == "array" else "bottle")
        camera = chain(line.unjudged(), camera)
    assert seen == list(range(20))


def test_a_picture_that_comes_after_the_end_is_given_back(
    model: ClipSAM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipsam.runtime.stream._GRACE", 0.05)
    trigger = threading.Event()

    def camera() -> Iterator[NDArray[np.uint8]]:
        yield DARK
        wait(trigger)
        yield bright_square()

    line = model.inspect_many(camera())
    next(line)
    with pytest.raises(TimeoutError, match="belongs to this line"):
        line.unjudged(timeout=0.01)
    trigger.set()
    (late,) = line.unjudged()
    np.testing.assert_array_equal(np.asarray(late), bright_square())


def test_the_total_leaves_the_wait_for_others_out(watching: Watching) -> None:
    (part,) = watching.model.inspect_many([bright_square()])
    timings = dict(part.result().timings)
    total, latency = timings.pop("total"), timings.pop("latency")
    assert total == pytest.approx(sum(timings.values()), abs=0.01)
    assert latency > total


def test_several_lines_share_a_model(model: ClipSAM) -> None:
    images = parts(8)
    expected = [model.inspect(image) for image in images]
    one, other = model.inspect_many(images), model.inspect_many(reversed(images), batch=3)
    found = list(zip(one, other, strict=True))
    for number, (first, second) in enumerate(found):
        same(first.result(), expected[number])
        same(second.result(), expected[-1 - number])


END = """
import signal, sys, threading
import numpy as np
from clipsam.runtime import ClipSAM
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
model = ClipSAM.open(sys.argv[1], threads=1)
def camera():
    for number in range(10**9):
        if number == 9 and sys.argv[2] != "left":
            if sys.argv[2] == "interrupted":
                signal.raise_signal(signal.SIGINT)
            threading.Event().wait()
        yield np.indices((64, 64, 3)).sum(axis=0).astype(np.uint8) // 4
line = model.inspect_many(camera())
for number, part in enumerate(line):
    print(part.result().verdict, flush=True)
    if number == 4 and sys.argv[2] != "interrupted":
        break
"""


@pytest.mark.parametrize("how", ["left", "waiting", "interrupted"])
def test_a_process_can_end(toy: Path, how: str) -> None:
    """With a line that is still there, a camera that waits for ever, and Ctrl-C."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", END, str(toy), how],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.split()[:5] == ["good"] * 5
    if how == "interrupted":
        assert done.stderr.endswith("KeyboardInterrupt\n")
        assert done.returncode != 0
    else:
        assert (done.returncode, done.stderr) == (0, "")


def test_the_pictures_above_have_to_be_shrunk(toy: Path, model: ClipSAM) -> None:
    """The images above are not the size that CLIP sees, so that shrinking is part of the tests."""
    assert all(image.shape[:2] != (CLIP_SIZE, CLIP_SIZE) for image in parts(8))
    assert isinstance(next(model.inspect_many([DARK])), Inspected)
