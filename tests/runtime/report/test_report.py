"""`clipsam report`: what it reads, what it writes, and what it refuses."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from support.cli_run import NAMES, make_images
from support.station_parts import HOSTILE, LIMIT, NOT_UNICODE, draw_store
from support.toy_bundle import build_toy_bundle

from clipsam.runtime.calibration.record import Calibration, Promise
from clipsam.runtime.cli import main
from clipsam.runtime.report.change import find_change
from clipsam.runtime.report.folder import read_folder
from clipsam.runtime.report.parts import Part, worst_first
from clipsam.runtime.report.pictures import SMALL, embed
from clipsam.runtime.report.sheet import COLUMNS, ROWS, TILE
from clipsam.runtime.report.store import read_store
from clipsam.runtime.results.index import row_line


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `clipsam inspect` wrote for NAMES and a file that is no image."""
    folder = tmp_path_factory.mktemp("toy")
    toy = build_toy_bundle(folder / "bundle")
    images = make_images(folder / "images")
    (images / "torn.png").write_bytes(b"no image")
    code = main(["inspect", str(toy), str(images), "--output", str(folder / "out")])
    assert code == 3  # one could not be judged
    return folder / "out"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_store(tmp_path_factory.mktemp("line"))


def block(page: str, name: str) -> Any:
    """The JSON block of a page."""
    found = re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', page, re.S)
    assert found is not None
    return json.loads(found[1])


def decoded(address: str) -> Any:
    """The pixels of a data: address."""
    data = base64.b64decode(address.removeprefix("data:image/webp;base64,"))
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)


def test_a_results_folder_becomes_one_page(results: Path, tmp_path: Path, capfd: Any) -> None:
    assert main(["report", str(results), "-o", str(tmp_path / "r.html")]) == 0
    assert "5 parts, 4 with pictures" in capfd.readouterr().out
    page = (tmp_path / "r.html").read_text("utf-8")
    data = block(page, "data")
    assert sorted(data["name"]) == sorted([*NAMES, "torn.png"])
    verdicts = {n: data["verdicts"][v] for n, v in zip(data["name"], data["verdict"], strict=True)}
    assert verdicts["bad.png"] == "anomalous"
    assert verdicts["torn.png"] == "not_judged"
    torn = str(data["name"].index("torn.png"))
    assert "torn.png is damaged" in data["message"][torn]
    bad = data["name"].index("bad.png")
    picture, heat = (decoded(a) for a in block(page, "pictures")[str(bad)])
    assert picture.shape[2] == 3
    x, y, width, height = data["boxes"][str(bad)][0][:4]
    scale = heat.shape[1] / data["size"][str(bad)][0]
    middle = heat[int((y + height / 2) * scale), int((x + width / 2) * scale)]
    assert middle[3] > 100  # the map covers the defect
    assert heat[0, 0, 3] < 20  # and nothing else


def test_the_last_row_of_a_picture_stands(results: Path, tmp_path: Path) -> None:
    lines = (results / "results.jsonl").read_text().splitlines()
    row = json.loads(lines[0])
    del row["crc32"]
    again = {**row, "verdict": "good", "score": 0.01}
    whole = "\n".join(lines).encode() + b"\n" + row_line(again)
    (tmp_path / "results.jsonl").write_bytes(whole + b'{"image')
    run = read_folder(tmp_path, 100)
    assert [p.name for p in run.parts].count(row["image"]) == 1
    assert next(p for p in run.parts if p.name == row["image"]).score == 0.01


def test_a_row_that_is_damaged_or_leads_elsewhere_is_shown_without_pictures(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"image": "a", "stem": "../../etc/passwd", "verdict": "good", "score": "high"},
        {"image": "b", "stem": "/etc/passwd", "verdict": ["odd"], "regions": 7, "timings": [1]},
        {"image": "c", "verdict": "anomalous", "score": 1e999, "regions": [{"box": [1, "x"]}]},
        {"image": NOT_UNICODE, "verdict": "good", "reasons": "none", "precisions": 3},
    ]
    (tmp_path / "results.jsonl").write_bytes(b"".join(map(row_line, rows)))
    assert main(["report", str(tmp_path), "-o", str(tmp_path / "r.html")]) == 0
    page = (tmp_path / "r.html").read_text("utf-8")
    assert block(page, "data")["score"] == [None] * 4
    assert block(page, "pictures") == {}
    assert block(page, "data")["name"][3] == "cam\\udcff.png"


def test_the_record_itself_stands_for_its_folder(results: Path, tmp_path: Path) -> None:
    page = tmp_path / "r.html"
    assert main(["report", str(results / "results.jsonl"), "-o", str(page), "--last", "2"]) == 0
    data = block(page.read_text("utf-8"), "data")
    assert (len(data["name"]), data["leftOut"]) == (2, 3)


def test_a_picture_that_changed_since_is_not_shown(results: Path, tmp_path: Path) -> None:
    run = read_folder(results, 100)
    part = next(p for p in run.parts if p.name == "bad.png")
    other = tmp_path / "bad.png"
    cv2.imwrite(str(other), np.zeros((50, 50, 3), np.uint8))
    for digest in (part.sha256, None):
        assert embed([Part(part.name, part.verdict, picture=other, sha256=digest)], 10**6) == {}
    assert len(embed([part], 10**6)) == 1


def test_images_says_where_the_pictures_went(results: Path, tmp_path: Path) -> None:
    images = results.parent / "images"
    run = read_folder(results, 100, images)
    assert {p.picture for p in run.parts} == {images / p.name for p in run.parts}


def test_a_store_becomes_a_page_with_labels_events_and_what_changed(
    store: Path, tmp_path: Path
) -> None:
    assert main(["report", str(store), "-o", str(tmp_path / "r.html")]) == 0
    data = block((tmp_path / "r.html").read_text("utf-8"), "data")
    assert len(data["name"]) == 120
    assert data["timed"]
    assert set(data["limit"]) == {LIMIT, None}
    assert len(data["label"]) == 12
    assert [event[1] for event in data["events"]] == ["started"]
    assert abs(data["changes"]["anomalous"]["start"] - 60) < 3
    assert data["changes"]["anomalous"]["before"] == 0
    assert "notJudged" not in data["changes"]


def test_the_newest_parts_are_read_and_the_others_counted(store: Path) -> None:
    run = read_store(store, 50)
    assert [p.name for p in run.parts] == [f"cam1/part-{n:04}.png" for n in range(71, 121)]
    assert run.left_out == 70


def test_names_are_text_wherever_they_stand(store: Path, tmp_path: Path) -> None:
    page_file = tmp_path / "r.html"
    assert main(["report", str(store), "-o", str(page_file)]) == 0
    page = page_file.read_text("utf-8")
    assert HOSTILE in block(page, "data")["name"]
    assert "window.hit" in page
    assert "<script>window.hit" not in page
    assert "<img" not in page
    assert "<i>here" not in page
    assert page.count("<script") == 3


def test_a_hostile_folder_name_is_escaped_in_the_title(results: Path, tmp_path: Path) -> None:
    folder = tmp_path / "<img src=x>&"
    folder.mkdir()
    (folder / "results.jsonl").write_bytes((results / "results.jsonl").read_bytes())
    assert main(["report", str(folder), "-o", str(tmp_path / "r.html")]) == 0
    assert "<title>&lt;img src=x&gt;&amp; " in (tmp_path / "r.html").read_text("utf-8")


def test_the_policy_allows_its_own_script_and_style_alone(store: Path, tmp_path: Path) -> None:
    assert main(["report", str(store), "-o", str(tmp_path / "r.html"), "--megabytes", "0"]) == 0
    page = (tmp_path / "r.html").read_text("utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    assert policy[1].startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy[1]
    for tag, kind in (("script", "script-src"), ("style", "style-src")):
        text = re.search(rf"<{tag}>(.*?)</{tag}>", page, re.S)
        assert text is not None
        digest = base64.b64encode(hashlib.sha256(text[1].encode()).digest()).decode()
        assert f"{kind} 'sha256-{digest}'" in policy[1]
    # The namespace of SVG is a name, no address that is asked.
    assert re.findall(r"https?://[^\s\"']+", page) == ["http://www.w3.org/2000/svg"]


def test_pictures_stop_at_the_size_that_was_given_and_the_worst_come_first(store: Path) -> None:
    parts = read_store(store, 1000).parts
    everything = embed(parts, 10**9)
    assert len(everything) == 119
    size = {i: sum(map(len, pair)) + 24 for i, pair in everything.items()}
    room = 64 * 1024 + sum(size.values()) // 2
    some = embed(parts, room)
    assert 0 < sum(size[i] for i in some) <= room
    assert worst_first(parts)[0] in some
    shown = decoded(everything[0][0])
    assert max(shown.shape[:2]) <= SMALL


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_the_sheet_shows_the_worst_parts_in_their_order(
    store: Path, tmp_path: Path, suffix: str, capfd: Any
) -> None:
    path = tmp_path / f"sheet{suffix}"
    assert main(["report", str(store), "--sheet", str(path)]) == 0
    assert f"the {COLUMNS * ROWS} worst of 120 parts" in capfd.readouterr().out
    sheet = cv2.imread(str(path))
    assert sheet is not None
    below = 44 + TILE // 2 + 14  # the defect
    middles = [sheet[below, 12 + c * (TILE + 12) + TILE // 2] for c in range(COLUMNS)]
    greys = [90 + number % 40 for number in (120, 118, 116, 114, 112, 110)]
    for middle, grey in zip(middles, greys, strict=True):
        assert np.abs(middle.astype(int) - grey).max() <= (2 if suffix == ".jpg" else 0)


def test_what_to_write_must_be_said(store: Path, capfd: Any) -> None:
    for words in (
        [],
        ["--sheet", "sheet.gif"],
        ["-o", "line.db"],
        ["--last", "0"],
        ["--megabytes", "nan"],
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["report", str(store), *words])
        assert stopped.value.code == 2


def test_worst_first_puts_what_could_not_be_judged_between() -> None:
    parts = [
        Part("ok", "good", 0.4, 0.5),
        Part("dark", "not_judged"),
        Part("bad", "anomalous", 0.6, 0.5),
        Part("worst", "anomalous", 0.4, 0.1),
        Part("near", "good", 0.49, 0.5),
    ]
    assert [parts[i].name for i in worst_first(parts)] == ["worst", "bad", "dark", "near", "ok"]


def test_a_change_is_found_where_it_is_and_noise_has_none() -> None:
    rng = np.random.default_rng(3)
    noise = rng.normal(0.2, 0.05, 4000)
    assert find_change(noise, ranked=True) is None
    moved = noise + np.where(np.arange(4000) >= 3000, 0.05, 0)
    change = find_change(moved, ranked=True)
    assert change is not None
    assert abs(change.start - 3000) < 40
    assert change.after - change.before == pytest.approx(0.05, abs=0.01)
    assert find_change(np.zeros(500)) is None
    assert find_change(np.array([0.0, 1.0])) is None


@pytest.mark.parametrize("rate", [0.01, 0.3])
def test_parts_that_are_anomalous_at_an_even_rate_show_no_change(rate: float) -> None:
    rng = np.random.default_rng(5)
    found = [find_change((rng.random(2000) < rate).astype(float)) for _ in range(200)]
    assert found == [None] * 200


@pytest.mark.parametrize(
    ("make", "words", "sentence"),
    [
        (lambda p: None, ["missing"], "does not exist"),
        (lambda p: (p / "empty").mkdir(), ["empty"], "holds no results.jsonl"),
        (lambda p: (p / "a.txt").write_text("no store at all" * 99), ["a.txt"], "no store"),
        (lambda p: draw_store(p, 0), ["line.db"], "no judged part"),
        (lambda p: draw_store(p, 1), ["line.db", "--images", "."], "--images is for"),
        (lambda p: (p / "r.html").mkdir(), ["line.db", "-o", "r.html"], "is a folder"),
    ],
)
def test_what_cannot_be_read_is_one_sentence_and_nothing_is_written(
    make: Any, words: list[str], sentence: str, tmp_path: Path, capfd: Any, monkeypatch: Any
) -> None:
    make(tmp_path)
    monkeypatch.chdir(tmp_path)
    output = [] if "-o" in words else ["-o", "r.html"]
    assert main(["report", *words, *output]) == 1
    error = capfd.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert not [path for path in tmp_path.rglob("*html*") if path.is_file()]


def test_without_jinja2_the_extra_is_named(store: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['jinja2'] = None\n"
        "from clipsam.runtime.cli import main\n"
        f"raise SystemExit(main(['report', {str(store)!r}, '-o', {str(tmp_path / 'r.html')!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "pip install 'clipsam[report]'" in done.stderr


def calibration(path: Path, scores: list[float]) -> Path:
    Calibration(
        bundle="b1",
        category="ring",
        limit=LIMIT,
        promise=Promise(false_alarms=0.05, confidence=0.95, parts=59, above=0, duplicates=0),
        bounds={},
        notes={"good_scores": scores},
    ).write(path)
    return path


def test_scores_are_shown_beside_those_of_the_calibration(
    store: Path, tmp_path: Path, capfd: Any
) -> None:
    file = calibration(tmp_path / "c.calibration", [0.1, 0.2, 0.3])
    page = tmp_path / "r.html"
    assert main(["report", str(store), "-o", str(page), "--calibration", str(file)]) == 0
    usual = block(page.read_text("utf-8"), "data")["usual"]
    assert usual == {"range": [0.11, 0.2, 0.29], "limit": LIMIT}
    assert "no part of line was judged with" in capfd.readouterr().err  # the drawn ones: "c1"


def test_a_calibration_without_scores_is_refused(store: Path, tmp_path: Path, capfd: Any) -> None:
    file = calibration(tmp_path / "c.calibration", [])
    page = tmp_path / "r.html"
    assert main(["report", str(store), "-o", str(page), "--calibration", str(file)]) == 1
    assert "no scores of good parts" in capfd.readouterr().err
    assert not page.exists()
