from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import cv2
import pytest
from support.postgres import Server
from support.station_parts import draw_store

from clipsam.runtime.cli import main
from clipsam.runtime.plant.push import push
from clipsam.runtime.station.store import Store

pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'clipsam[postgres]'")


def block(page: Path, name: str) -> Any:
    found = re.search(
        rf'<script type="application/json" id="{name}">(.*?)</script>', page.read_text()
    )
    assert found is not None
    return json.loads(found[1])


def test_a_database_and_the_store_it_came_from_give_the_same_page(
    plant: Server, tmp_path: Path
) -> None:
    store = draw_store(tmp_path / "a", 40, 30)
    with Store(store) as opened:
        push(opened, plant.address, "press 3")
    pages = [tmp_path / "store.html", tmp_path / "plant.html"]
    assert main(["report", str(store), "-o", str(pages[0])]) == 0
    assert main(["report", plant.address, "-o", str(pages[1])]) == 0
    ours, theirs = (block(page, "data") for page in pages)
    for data in (ours, theirs):
        del data["made"], data["title"]
    assert ours == theirs
    assert block(pages[0], "pictures").keys() == block(pages[1], "pictures").keys()


def test_a_report_is_of_all_boxes_or_of_one(
    plant: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plant.sql("DROP SCHEMA IF EXISTS clipsam CASCADE")
    page, sheet = tmp_path / "page.html", tmp_path / "sheet.png"
    assert main(["report", plant.address, "-o", str(page)]) == 1
    assert "holds no parts of this version" in capsys.readouterr().err
    for box, parts in (("a", 4), ("b", 6)):
        with Store(draw_store(tmp_path / box, parts, 3)) as store:
            push(store, plant.address, box)
    assert main(["report", plant.address, "-o", str(page), "--last", "8"]) == 0
    data = block(page, "data")
    assert len(data["name"]) == 8
    assert data["leftOut"] == 2
    assert {name.partition("/")[0] for name in data["name"]} == {"a", "b"}
    one = ["--box", "b", "--sheet", str(sheet)]
    assert main(["report", plant.address, "-o", str(page), *one]) == 0
    assert block(page, "data")["name"] == [f"cam1/part-{n:04}.png" for n in range(1, 7)]
    assert cv2.imread(str(sheet)) is not None
    assert main(["report", plant.address, "-o", str(page), "--box", "c"]) == 1
    assert "it has a, b" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["store", "push"], ["report", "-o", "page.html"]])
def test_a_missing_psycopg_is_named_with_its_extra(
    command: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    monkeypatch.chdir(tmp_path)
    store = [str(draw_store(tmp_path, 3))] if command[0] == "store" else []
    assert main([*command, *store, "postgresql://h/x"]) == 1
    assert "pip install 'clipsam[postgres]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["postgresql://h/x", "--images", "."], "a database holds its pictures"),
        (["nowhere.db", "--box", "a"], "--box is for a database"),
        (["postgresql://127.0.0.1:9/x"], "cannot be used now"),
    ],
)
def test_wrong_usage_is_said(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", *arguments, "-o", str(tmp_path / "page.html")]) == 1
    assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
