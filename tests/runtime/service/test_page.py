"""The page in a real browser: as a person uses it, on a desk and on a phone.

Needs `pip install 'clipsam[browser]'` and Chromium (`apt-get install chromium`); skipped without.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.service import Service, png, serving, until
from support.toy_bundle import bright_square, plain_part

from clipsam.runtime.bundle import Bundle
from clipsam.runtime.calibration.bounds import false_alarm_bound
from clipsam.runtime.calibration.record import Calibration, Promise
from clipsam.runtime.pipeline import ClipSAM
from clipsam.runtime.station.store import Store

playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: pip install 'clipsam[browser]'"
)
NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((found for name in NAMES if (found := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")

HOSTILE = "<img src=x onerror=window.hit=1>.png"
SCORES = [n / 100 for n in range(1, 60)]  # of 59 good parts


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        camera = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *camera])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def calibrated(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    promise = Promise(false_alarm_bound(59, 0, 0.95), 0.95, 59, 0, 0)
    found = Calibration(
        Bundle.open(toy).id, "object", 0.6, promise, {}, notes={"good_scores": SCORES}
    )
    path = tmp_path_factory.mktemp("line") / "line.db"
    with (
        ClipSAM.open(toy, threads=1, calibration=found) as model,
        Store(path, create=True) as store,
        serving(model, store) as service,
    ):
        yield service


@pytest.fixture(params=[1280, 390], ids=["desktop", "phone"])
def page(browser: Any, calibrated: Service, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The page; nothing may be complained of, or asked for elsewhere."""
    context = browser.new_context(viewport={"width": request.param, "height": 844})
    page = context.new_page()
    page.set_default_timeout(30_000)
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on(
        "request",
        lambda asked: (
            None
            if asked.url.startswith((calibrated.url, "data:", "blob:"))
            else said.append(asked.url)
        ),
    )
    page.goto(calibrated.url)
    page.get_by_text("ready", exact=True).wait_for()
    page.get_by_text("(0 of 59 do)").wait_for()
    yield page
    expected = ("a status of 422", "willReadFrequently")  # a file of text, and how a test looks
    assert [text for text in said if not any(word in text for word in expected)] == []
    assert page.evaluate("window.hit") is None
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    context.close()


def drop(page: Any, *files: tuple[str, bytes]) -> None:
    """Choose files, and wait for their verdicts."""
    chosen = [{"name": name, "mimeType": "image/png", "buffer": data} for name, data in files]
    page.locator("#said").evaluate("(said) => { said.textContent = ''; }")
    page.locator("#files").set_input_files(chosen)
    page.get_by_text(f"{len(files)} inspected:").wait_for()


def move_slider(page: Any, value: float) -> None:
    page.locator("#slider").evaluate(
        "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')); }",
        value,
    )


BAD, GOOD = png(bright_square()), png(plain_part())


def test_pictures_get_verdict_map_and_outlines(page: Any) -> None:
    drop(page, ("bad.png", BAD), ("good.png", GOOD), (HOSTILE, BAD), ("text.png", b"no picture"))
    assert page.locator("#said").inner_text() == "4 inspected: 1 good, 2 anomalous, 1 failed"
    pills = page.locator("#results .pill").all_inner_texts()
    assert pills == ["▲ Anomalous", "✓ Good", "▲ Anomalous", "! Not inspected"]
    assert page.locator("#verdict").inner_text() == "▲ Anomalous"
    assert "score" in page.locator("#numbers").inner_text().lower()
    assert "1 regions" in page.locator("#picture").get_attribute("aria-label")
    hot = "(c) => [...c.getContext('2d').getImageData(60, 50, 1, 1).data]"
    with_map = page.locator("#picture").evaluate(hot)
    page.locator("#show-map").uncheck()
    assert page.locator("#picture").evaluate(hot) == [250, 250, 250, 255] != with_map
    page.locator("#results button").nth(3).click()
    assert "damaged or not an image" in page.locator("#empty").inner_text()


def test_the_limit_changes_verdict_and_promise(page: Any) -> None:
    assert "at most 5 % score above this limit, with 95 % confidence (0 of 59 do)" in (
        page.locator("#promise").inner_text()
    )
    drop(page, ("bad.png", BAD))
    move_slider(page, 0.995)
    assert page.locator("#verdict").inner_text() == "✓ Good at this limit"
    move_slider(page, 0.5)
    bound = f"{100 * false_alarm_bound(59, 9, 0.95):.2g}"
    assert f"at most {bound} %" in page.locator("#promise").inner_text()
    assert "(9 of 59 do)" in page.locator("#promise").inner_text()
    page.locator("#limit-reset").click()
    assert page.locator("#verdict").inner_text() == "▲ Anomalous"
    page.locator("#slider").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#slider").get_attribute("aria-valuetext") == "limit 0.601"


def test_a_part_is_labelled_where_it_is_looked_at_and_in_the_list(
    page: Any, calibrated: Service
) -> None:
    drop(page, ("bad.png", BAD))
    assert calibrated.store is not None
    newest = calibrated.store.latest(1)[0]
    card = page.locator(f'#parts [data-part="{newest.id}"]')
    card.wait_for()
    page.locator("#labels").get_by_text("It is defective").click()
    card.locator('[data-label="defective"][aria-pressed="true"]').wait_for()
    assert calibrated.store.get(newest.id).label == "defective"  # type: ignore[union-attr]
    card.locator('[data-label="good"]').click()
    card.locator('[data-label="good"][aria-pressed="true"]').wait_for()
    card.locator('[data-label="good"]').click()
    card.locator('[data-label="good"][aria-pressed="false"]').wait_for()
    assert calibrated.store.get(newest.id).label is None  # type: ignore[union-attr]


def test_the_list_follows_the_line(page: Any, calibrated: Service) -> None:
    serial = f"S{calibrated.upload(BAD).json['part']}"
    calibrated.upload(BAD, serial=serial)
    page.locator("#parts").get_by_text(serial, exact=True).wait_for()


def test_without_recording_nothing_is_written(page: Any, calibrated: Service) -> None:
    assert calibrated.store is not None
    before = calibrated.store.counts()
    page.locator("#record").uncheck()
    drop(page, ("bad.png", BAD))
    assert calibrated.store.counts() == before
    assert page.locator("#labels").is_hidden()


def test_the_camera_gives_pictures(page: Any) -> None:
    page.locator("#camera").click()
    page.locator("#shoot").click()
    page.get_by_text("1 inspected:").wait_for()
    assert page.locator("#name").inner_text() == "camera-1.png"
    page.locator("#camera-off").click()
    assert page.locator("#live").is_hidden()


def test_dark_and_light(page: Any) -> None:
    colour = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(colour)
    page.locator("#theme").click()
    assert page.evaluate(colour) != light


def test_everything_to_use_has_a_name(page: Any) -> None:
    drop(page, ("bad.png", BAD))
    nameless = page.evaluate(
        """[...document.querySelectorAll('button, input, select')]
             .filter((e) => !e.closest('[hidden]') && !e.innerText.trim() && !e.labels.length
                && !e.getAttribute('aria-label') && !e.getAttribute('aria-labelledby'))
             .map((e) => e.outerHTML)"""
    )
    assert nameless == []


def test_from_dropped_good_parts_to_a_verdict_by_them(
    browser: Any, model: ClipSAM, tmp_path: Path
) -> None:
    draw = np.random.default_rng(0)
    parts = [
        {
            "name": f"good-{number}.png",
            "mimeType": "image/png",
            "buffer": png((plain_part() + draw.integers(0, 24, (120, 160, 3))).astype(np.uint8)),
        }
        for number in range(20)
    ]
    with serving(model, calibrations=tmp_path) as service:
        context = browser.new_context()
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.goto(service.url)
        page.get_by_text("not calibrated").wait_for()
        drop(page, ("before.png", BAD))
        page.locator("#learn-files").set_input_files(parts[:5])
        page.get_by_text("at least 8").wait_for()
        page.locator("#learn-files").set_input_files(parts)
        page.get_by_text("with 95 % confidence (0 of 20 do)").wait_for()
        with page.expect_download() as saved:
            page.locator("#learn-save").click()
        assert saved.value.suggested_filename.endswith(".calibration")
        page.locator("#learn-use").click()
        page.get_by_text("start it with --calibration").wait_for()
        page.get_by_text("Of good parts like those shown to it, at most 14 %").wait_for()
        # What was judged before keeps its verdict and its limit, whatever is tried now.
        numbers = page.locator("#numbers").inner_text()
        assert f"limit {model.bundle.manifest.prompts.deciding:.4f}, judged before" in numbers
        assert page.locator("#scale .part:visible").count() == 0
        move_slider(page, 2)
        assert page.locator("#verdict").inner_text() == "▲ Anomalous"
        page.locator("#limit-reset").click()
        drop(page, ("bad.png", BAD))
        assert page.locator("#verdict").inner_text() == "▲ Anomalous"
        assert page.locator("#scale .part:visible").count() == 1
        assert len(service.inspect(BAD).json["calibration"]) == 12
        context.close()


def test_a_token_is_asked_for_once(browser: Any, model: ClipSAM) -> None:
    with serving(model, token="a-token-of-enough-letters") as service:
        context = browser.new_context()
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.goto(service.url)
        page.locator("#token").fill("wrong")
        page.keyboard.press("Enter")
        until(lambda: page.locator("#ask").is_visible())
        page.locator("#token").fill("a-token-of-enough-letters")
        page.keyboard.press("Enter")
        page.get_by_text("not calibrated").wait_for()
        assert page.locator("#category").is_visible()
        drop(page, ("bad.png", BAD))
        page.reload()
        page.get_by_text("not calibrated").wait_for()
        assert not page.locator("#ask").is_visible()
        context.close()


def test_only_the_pages_own_files_are_given(service: Service) -> None:
    assert service.get("/").status == 200
    assert service.get("/page/main.js").headers["content-type"].startswith("text/javascript")
    for name in ("..%2fpage.py", "%2e%2e/page.py", "page.py", "nothing.js"):
        assert service.get(f"/page/{name}").status == 404
