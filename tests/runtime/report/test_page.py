"""The report in a real browser: it counts again, it filters, and it runs and loads nothing else.

Needs `pip install 'clipsam[browser]'` and Chromium (`apt-get install chromium`); skipped without.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.station_parts import HOSTILE, draw_store

from clipsam.runtime.cli import main
from clipsam.runtime.results.index import row_line

playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: pip install 'clipsam[browser]'"
)
NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((found for name in NAMES if (found := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("line")
    page = folder / "report.html"
    assert main(["report", str(draw_store(folder)), "-o", str(page)]) == 0
    return page


@pytest.fixture(params=[1280, 390], ids=["desktop", "phone"])
def page(browser: Any, report: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The report, opened from its file; nothing may be complained of or asked for."""
    size = {"width": request.param, "height": 844}
    context = browser.new_context(viewport=size, timezone_id="Europe/Berlin")
    page = context.new_page()
    page.set_default_timeout(60_000)
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on(
        "request",
        lambda asked: None if asked.url.startswith(("file:", "data:")) else said.append(asked.url),
    )
    page.goto(report.as_uri())
    yield page
    assert said == []
    assert page.evaluate("window.hit") is None  # the hostile name never ran
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    context.close()


def recount(page: Any) -> dict[str, list[str]]:
    """The table under the slider: first word -> its two numbers."""
    rows = page.locator("#recount tbody tr").all()
    cells = [[cell.inner_text() for cell in row.locator("td").all()] for row in rows]
    return {row[0].split(",")[0]: [text.split(" ")[0] for text in row[1:]] for row in cells}


def move_slider(page: Any, value: float) -> None:
    page.locator("#slider").evaluate(
        "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')); }",
        value,
    )


def names(page: Any) -> list[str]:
    return [str(name.get_attribute("title")) for name in page.locator("#grid .name").all()]


def test_it_says_what_happened_before_anything_is_chosen(page: Any) -> None:
    assert (
        "It got worse since Mon 2 Mar, 17:20: 51 % anomalous, 0 % before."
        in page.locator("#findings").inner_text()
    )
    totals = page.locator("#totals").inner_text().split("\n")
    assert totals[totals.index("▲ Anomalous") + 1] == "30"
    assert totals[totals.index("– Not judged") + 1] == "1"
    assert "The station began <i>here</i>." in page.locator("#events").inner_text()
    assert "black" in page.locator("#reasons").inner_text()
    assert page.locator("#trend .bar-bad").count() > 3
    assert page.locator("#drift .line-median").count() == 1


def test_moving_the_limit_counts_again(page: Any) -> None:
    assert recount(page) == {
        "Anomalous": ["30", "30"],
        "Good": ["89", "89"],
        "False alarms": ["0", "0"],
        "Found (recall)": ["6", "6"],
        "Missed": ["1", "1"],
    }
    move_slider(page, 0.701)
    assert recount(page)["Anomalous"] == ["30", "10"]  # those after part 100
    assert recount(page)["Missed"] == ["1", "5"]
    assert "30" in page.locator('#verdicts [data-key="anomalous"]').inner_text()  # as judged
    page.locator('#verdicts [data-key="change"]').click()
    assert page.locator("#grid li").count() == 20
    page.locator("#limit-reset").click()
    assert recount(page)["Anomalous"] == ["30", "30"]
    assert page.locator("#limit-reset").is_disabled()


def test_the_slider_moves_by_keyboard_and_says_what_it_came_to(page: Any) -> None:
    slider = page.locator("#slider")
    slider.focus()
    page.keyboard.press("Home")
    assert recount(page)["Anomalous"] == ["30", "119"]
    assert slider.get_attribute("aria-valuetext") == "limit 0: 119 anomalous"


def test_the_list_is_worst_first_and_other_orders_work(page: Any) -> None:
    assert names(page)[:2] == ["cam1/part-0120.png", "cam1/part-0118.png"]
    page.locator("#order").select_option("old")
    assert names(page)[0] == "cam1/part-0001.png"
    page.locator("#order").select_option("near")
    assert names(page)[0] == "cam1/part-0062.png"  # 0.662, or 0.219 of part 119


def test_the_verdict_and_a_word_filter_the_list(page: Any) -> None:
    page.locator('#verdicts [data-key="not_judged"]').click()
    assert names(page) == ["cam1/part-0005.png"]
    page.locator('#verdicts [data-key="all"]').click()
    page.locator("#find").fill("s77")
    assert names(page) == ["cam1/part-0077.png"]
    page.locator("#find").fill("window.hit")
    assert names(page) == [HOSTILE]
    page.locator("#find").fill("no such part")
    assert page.locator("#grid").inner_text() == "No part is like this."


def test_category_and_time_filter_everything(page: Any) -> None:
    page.locator("#category").select_option(label="<b>nut</b>")
    assert "40 parts of 120" in page.locator("#shown").inner_text()
    assert recount(page)["Anomalous"] == ["10", "10"]
    page.locator("#from").fill("2026-03-02T22:00")
    page.locator("#from").dispatch_event("change")
    shown = int(page.locator("#shown").inner_text().split(" ")[1])
    assert shown == 11  # parts 90, 93, …, 120
    page.locator("#reset").click()
    assert "all parts" in page.locator("#shown").inner_text()
    assert page.locator("#from").input_value() == "2026-03-02T07:10"


def test_a_bar_of_the_trend_chooses_its_time(page: Any) -> None:
    bar = page.locator("#trend .hit").last
    bar.focus()
    page.keyboard.press("Enter")
    assert "of 120" in page.locator("#shown").inner_text()
    assert "cam1/part-0120.png" in names(page)


def test_a_part_opens_large_with_its_regions_and_closes_again(page: Any) -> None:
    page.locator("#grid button").first.click()
    detail = page.locator("#detail")
    assert "cam1/part-0120.png" in detail.inner_text()
    assert "S120" in detail.inner_text()
    assert detail.locator("img").count() == 3  # the picture, and it again below the map
    assert detail.locator("rect.over").count() == 2
    assert detail.locator("img").first.evaluate("(image) => image.naturalWidth") == 64
    page.keyboard.press("ArrowRight")
    assert "cam1/part-0118.png" in detail.inner_text()
    page.keyboard.press("Escape")
    assert not detail.is_visible()
    page.wait_for_function("document.activeElement.dataset.part === '117'")  # once it has closed


def test_picture_map_or_both_are_shown(page: Any) -> None:
    first = page.locator("#grid li").first
    assert first.locator("img").count() == 2
    page.locator('#view [data-key="picture"]').click()
    assert first.locator("img").count() == 1
    page.locator('#view [data-key="both"]').click()
    assert first.locator(".view").count() == 2


def test_pages_of_the_list_follow_one_another(page: Any) -> None:
    first = names(page)
    page.locator("#pager").get_by_text("Next").click()
    assert not set(first) & set(names(page))
    page.locator("#pager").get_by_text("Previous").click()
    assert names(page) == first


def test_dark_and_light(page: Any) -> None:
    colour = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(colour)
    page.locator("#theme").click()
    assert page.evaluate(colour) != light
    page.locator("#theme").click()
    assert page.evaluate(colour) == light


def test_everything_to_use_has_a_name(page: Any) -> None:
    nameless = page.evaluate(
        """[...document.querySelectorAll('button, input, select')]
             .filter((e) => !e.closest('[hidden]') && !e.innerText.trim() && !e.labels.length
                && !e.getAttribute('aria-label') && !e.getAttribute('aria-labelledby'))
             .map((e) => e.outerHTML)"""
    )
    assert nameless == []


@pytest.mark.parametrize("parts", [1, 3])
def test_a_run_in_which_nothing_was_judged_is_shown(
    browser: Any, tmp_path: Path, parts: int
) -> None:
    rows = [{"image": f"{n}.png", "error": f"{n}.png is empty."} for n in range(parts)]
    (tmp_path / "results.jsonl").write_bytes(b"".join(map(row_line, rows)))
    assert main(["report", str(tmp_path), "-o", str(tmp_path / "r.html")]) == 0
    page = browser.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto((tmp_path / "r.html").as_uri())
    assert "could not be inspected" in page.locator("#reasons").inner_text()
    assert page.locator("#slider").is_disabled()
    page.locator("#grid button").first.click()
    assert "0.png is empty." in page.locator("#detail").inner_text()
    assert said == []
    page.close()


def test_a_run_without_times_or_limits_is_shown_in_its_order(browser: Any, tmp_path: Path) -> None:
    rows = b"".join(
        row_line({"image": f"{n}.png", "verdict": verdict, "score": n / 100})
        for n in range(60)
        for verdict in ["anomalous" if n > 30 else "good"]
    )
    (tmp_path / "results.jsonl").write_bytes(rows)
    assert main(["report", str(tmp_path), "-o", str(tmp_path / "r.html")]) == 0
    page = browser.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto((tmp_path / "r.html").as_uri())
    assert "no times were recorded" in page.locator("#span").inner_text()
    assert "not recorded" in page.locator("#limit").inner_text()
    move_slider(page, 0.5)
    assert recount(page) == {"Anomalous": ["29", "9"], "Good": ["31", "51"]}
    page.locator("#from").fill("51")
    page.locator("#from").dispatch_event("change")
    assert "10 parts of 60" in page.locator("#shown").inner_text()
    assert said == []
    page.close()
