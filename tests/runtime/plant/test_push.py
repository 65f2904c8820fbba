from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from support.postgres import PASSWORD, Server
from support.station_parts import draw_store

from clipsam.runtime.cli import main
from clipsam.runtime.core.errors import OptionError, StoreError, UnreachableError
from clipsam.runtime.plant import push as pushing
from clipsam.runtime.plant import schema as plant_schema
from clipsam.runtime.plant.database import shown
from clipsam.runtime.plant.push import BOX_ONLY, Pushed, push
from clipsam.runtime.station import schema
from clipsam.runtime.station.changes import changes
from clipsam.runtime.station.part import COLUMNS
from clipsam.runtime.station.schema import iso
from clipsam.runtime.station.store import Store

pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'clipsam[postgres]'")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """40 parts: 5 is not judged, those from 31 on are bad one in two."""
    with Store(draw_store(tmp_path, 40, 30)) as store:
        yield store


def rows(server: Server, columns: str = "*", table: str = "parts") -> list[tuple[Any, ...]]:
    return server.sql(f"SELECT {columns} FROM clipsam.{table} ORDER BY 1, 2")


def test_parts_events_and_thumbnails_arrive_as_they_are(plant: Server, store: Store) -> None:
    assert push(store, plant.address, "press 3") == Pushed(40, 39, 1)
    found = plant.sql(
        'SELECT id, name, serial, verdict, score, "limit", reasons, label, timings, regions, box, '
        "taken_at FROM clipsam.parts ORDER BY id"
    )
    for part, row in zip(store.parts(), found, strict=True):
        id_, name, serial, verdict, score, limit, reasons, label, timings, regions, box, at = row
        assert (id_, name, serial, verdict, label, box) == (
            part.id, part.name, part.serial, part.verdict, part.label, "press 3",
        )  # fmt: skip
        assert (score, limit) == (part.score, part.limit)
        assert (tuple(reasons), tuple(regions)) == (part.reasons, part.regions)
        assert (timings, iso(at)) == (part.timings, part.taken_at)
    assert plant.sql("SELECT kind, message, box FROM clipsam.events") == [
        ("started", "The station began <i>here</i>.", "press 3")
    ]
    (picture, score_map), *_ = plant.sql("SELECT picture, map FROM clipsam.pictures WHERE id = 32")
    colours = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR)
    assert colours is not None
    assert abs(int(colours[30, 5, 0]) - (90 + 32)) < 4  # WebP is not exact
    grey = cv2.imdecode(np.frombuffer(score_map, np.uint8), cv2.IMREAD_UNCHANGED)
    assert grey is not None
    assert grey[15, 30] == int(0.632 * 255)


def test_a_second_push_sends_nothing_and_a_changed_label_sends_that_row(
    plant: Server, store: Store
) -> None:
    push(store, plant.address, "box")
    before = rows(plant)
    assert push(store, plant.address, "box") == Pushed()
    assert rows(plant) == before
    store.label(7, "defective", "anna")
    store.label(10, None)
    assert push(store, plant.address, "box") == Pushed(parts=2)  # their thumbnails are there
    assert rows(plant, "id, label, labelled_by")[6] == (7, "defective", "anna")
    assert rows(plant, "id, label")[9] == (10, None)
    assert len(rows(plant)) == 40


def test_without_thumbnails_rows_alone_are_sent_and_pictures_may_follow(
    plant: Server, store: Store
) -> None:
    assert push(store, plant.address, "box", side=0) == Pushed(40, 0, 1)
    assert push(store, plant.address, "box", everything=True) == Pushed(40, 39, 1)


def test_what_the_box_removes_stays_in_the_database(plant: Server, store: Store) -> None:
    push(store, plant.address, "box")
    from clipsam.runtime.station.upkeep import prune

    assert prune(store, quota=0).pictures > 0
    store._connection.execute("DELETE FROM parts WHERE id < 10")
    assert push(store, plant.address, "box").parts > 0
    assert len(rows(plant)) == 40
    assert len(rows(plant, "id, store", "pictures")) == 39


def test_two_boxes_with_the_same_numbers_keep_their_parts_apart(
    plant: Server, tmp_path: Path
) -> None:
    for box in ("a", "b"):
        with Store(draw_store(tmp_path / box, 5, 3)) as store:
            push(store, plant.address, box)
    assert rows(plant, "id, box") == [(n, box) for n in range(1, 6) for box in "ab"]


def test_a_store_restored_from_an_older_copy_gives_numbers_twice_and_loses_no_part(
    plant: Server, store: Store, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.db"
    with sqlite3.connect(copy) as target:
        store._connection.backup(target)
    target.close()
    first = store.add_judged("after.png", "ring", verdict="good", score=0.1, filed=True)
    push(store, plant.address, "box")
    with Store(copy) as restored:
        second = restored.add_judged("other.png", "ring", verdict="good", score=0.2, filed=True)
        assert first == second == 41
        assert push(restored, plant.address, "box").parts == 1
    names = plant.sql("SELECT name FROM clipsam.parts WHERE id = 41 ORDER BY 1")
    assert names == [("after.png",), ("other.png",)]


def test_rows_that_were_lost_with_the_database_are_sent_again_when_asked(
    plant: Server, store: Store
) -> None:
    push(store, plant.address, "box")
    plant.sql("DELETE FROM clipsam.parts WHERE id > 20")
    assert push(store, plant.address, "box") == Pushed()
    assert push(store, plant.address, "box", everything=True) == Pushed(40, 20, 1)
    assert len(rows(plant)) == 40


def test_a_server_that_stops_in_the_middle_loses_nothing_and_it_goes_on_after(
    server: Server, plant: Server, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pushing, "_BATCH", 10)

    def stop(done: int, total: int) -> None:
        assert total == 41
        if done == 20:
            server.stop()

    try:
        with pytest.raises(UnreachableError, match="cannot be used now"):
            push(store, plant.address, "box", progress=stop)
        with pytest.raises(UnreachableError, match="cannot be used now"):
            push(store, plant.address, "box")
        store.label(1, "good")  # offline, the line goes on
    finally:
        server.start()
    assert len(rows(plant)) == 20
    assert push(store, plant.address, "box").parts == 21  # 20, and the one with a label
    assert len(rows(plant)) == 40
    assert rows(plant, "id, label")[0] == (1, "good")


@pytest.mark.parametrize("moment", ["thumbnails", "rows"])
def test_a_push_that_is_killed_goes_on_where_it_was(
    plant: Server, store: Store, moment: str
) -> None:
    code = """
import os, signal, sys
from clipsam.runtime.plant import push as pushing
from clipsam.runtime.station.store import Store
pushing._BATCH, calls = 10, []
name = {"thumbnails": "_thumbnails", "rows": "_send"}[sys.argv[3]]
real = getattr(pushing, name)
def killed(*args):
    found = real(*args)
    calls.append(1)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)  # before the transaction is through
    return found
setattr(pushing, name, killed)
with Store(sys.argv[1]) as store:
    pushing.push(store, sys.argv[2], "box")
"""
    done = subprocess.run([sys.executable, "-c", code, store.path, plant.address, moment])
    assert done.returncode == -signal.SIGKILL
    assert len(rows(plant)) == 20
    assert push(store, plant.address, "box") == Pushed(20, 20, 1)
    assert len(rows(plant)) == 40


def test_two_pushes_at_once_send_every_part_once(
    plant: Server, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pushing, "_BATCH", 3)
    found: list[Pushed] = []

    def one() -> None:
        with Store(store.path) as mine:
            found.append(push(mine, plant.address, "box"))

    threads = [threading.Thread(target=one) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(done.parts for done in found) == 40
    assert len(rows(plant)) == 40


def test_a_row_that_the_database_refuses_keeps_no_other_back(
    plant: Server, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    store._connection.execute("UPDATE parts SET taken_at = 'yesterday-ish' WHERE id = 8")
    assert main(["store", "push", str(store.path), plant.address]) == 1
    told = capsys.readouterr()
    assert "39 parts" in told.out
    assert "1 rows were refused" in told.out
    assert "note: part 8 was not sent" in told.err
    assert len(rows(plant)) == 39


def test_text_that_postgresql_cannot_hold_arrives_as_escapes(plant: Server, store: Store) -> None:
    store.add_judged(
        "nul\0.png", "ring", verdict="not_judged", reasons=["\udcff\0"], message="a\0b",
        timings={"total": float("nan")}, filed=True,
    )  # fmt: skip
    push(store, plant.address, "box")
    query = "SELECT name, reasons, message, timings FROM clipsam.parts WHERE id = 41"
    assert plant.sql(query) == [("nul\\0.png", ["\\udcff\\0"], "a\\0b", {"total": None})]


def test_a_part_that_is_not_judged_yet_comes_when_it_is(plant: Server, store: Store) -> None:
    part = store.take("new.png", "ring")
    push(store, plant.address, "box")
    assert len(rows(plant)) == 40
    store.judge(part, verdict="good", score=0.1)
    assert push(store, plant.address, "box").parts == 1


def test_changes_of_an_older_store_are_told_each_once(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    latest = schema.MIGRATIONS
    schema.MIGRATIONS = latest[:1]  # type: ignore[assignment]
    try:
        with Store(path, create=True) as store:
            for number in range(5):
                store.add_judged(f"{number}.png", "ring", verdict="good")
                store.event("alarm", str(number))
    finally:
        schema.MIGRATIONS = latest
    with Store(path) as store:
        store.add_judged("5.png", "ring", verdict="good")
        seen: list[str] = []
        after = 0
        while (found := changes(store, after, 3)).through != after:
            after = found.through
            seen += [part.name for part in found.parts] + [event[3] for event in found.events]
    assert sorted(seen) == sorted([f"{n}.png" for n in range(6)] + [str(n) for n in range(5)])


def test_ticks_follow_the_clock_and_never_go_back(store: Store) -> None:
    before = time.time()
    store.label(1, "good")
    store.label(2, "good")
    ticks = dict(store._read("SELECT id, changed FROM parts WHERE id < 3"))
    assert ticks[1] < ticks[2]
    assert before - 2 < ticks[1] / 1e6 < time.time() + 2
    future = ticks[2] + 10**15
    store._connection.execute("UPDATE clock SET last = ?", (future,))  # a clock that was set back
    store.label(1, None)
    assert store._read("SELECT changed FROM parts WHERE id = 1") == [(future + 1,)]


def test_every_column_of_a_part_is_sent_or_said_to_mean_nothing_elsewhere(
    plant: Server, store: Store
) -> None:
    push(store, plant.address, "box")
    query = (
        "SELECT column_name FROM information_schema.columns "
        "WHERE table_schema = 'clipsam' AND table_name = 'parts'"
    )
    there = {name for (name,) in plant.sql(query)}
    assert there == set(COLUMNS) - set(BOX_ONLY) | {"store", "box", "pushed_at"}


def test_an_older_database_is_migrated_and_a_newer_one_still_takes_parts(
    plant: Server, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(store, plant.address, "box")
    more = "ALTER TABLE clipsam.parts ADD COLUMN more text; CREATE TABLE clipsam.other (x int)"
    first = plant_schema.MIGRATIONS
    monkeypatch.setattr(plant_schema, "MIGRATIONS", (*first, f"{more}; oops"))
    store.label(1, "good")
    with pytest.raises(StoreError, match="oops"):
        push(store, plant.address, "box")
    assert plant.sql("SELECT to_regclass('clipsam.other')") == [(None,)]  # all or nothing
    monkeypatch.setattr(plant_schema, "MIGRATIONS", (*first, more))
    push(store, plant.address, "box")
    assert plant.sql("SELECT value FROM clipsam.about") == [("2",)]
    monkeypatch.undo()  # a box with the version before
    store.label(2, "good")
    assert push(store, plant.address, "box") == Pushed(parts=1)
    assert rows(plant, "id, label, more")[1] == (2, "good", None)


def test_a_user_who_may_only_write_can_push_and_one_who_may_not_is_told(
    plant: Server, store: Store
) -> None:
    plant.sql("DROP ROLE IF EXISTS line; ")
    plant.sql("CREATE ROLE line LOGIN PASSWORD 'x'")
    try:
        address = plant.address.replace(f"owner:{PASSWORD}", "line:x")
        with pytest.raises(StoreError, match="does not let this user"):
            push(store, address, "box")
        with Store(store.path.with_name("empty.db"), create=True) as empty:
            push(empty, plant.address, "box")  # the owner makes the tables
        plant.sql(
            "GRANT USAGE ON SCHEMA clipsam TO line; "
            "GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA clipsam TO line"
        )
        assert push(store, address, "box").parts == 40
    finally:
        plant.sql("DROP OWNED BY line; DROP ROLE line")


def test_a_database_of_another_encoding_is_refused(server: Server, store: Store) -> None:
    server.sql("DROP DATABASE IF EXISTS latin", "postgres")
    server.sql("CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0", "postgres")
    address = server.address.removesuffix("plant") + "latin"
    with pytest.raises(StoreError, match="LATIN1"):
        push(store, address, "box")


def test_no_message_holds_the_password(plant: Server, store: Store) -> None:
    assert PASSWORD not in shown(plant.address)
    assert shown(plant.address) == f"postgresql://127.0.0.1:{plant.port}/plant"
    wrong = plant.address.replace(PASSWORD, "wr0ng")
    with pytest.raises(UnreachableError, match="password") as caught:
        push(store, wrong, "box")
    assert "wr0ng" not in str(caught.value)
    with pytest.raises(OptionError, match="cannot be read") as option:
        push(store, f"postgresql://owner:{PASSWORD}@host:port@5/plant%zz", "box")
    assert PASSWORD not in str(option.value)


def test_with_every_it_waits_for_a_database_that_is_away(
    server: Server, plant: Server, store: Store
) -> None:
    server.stop()
    command = [sys.executable, "-m", "clipsam.runtime.cli", "store", "push", str(store.path)]
    command += [plant.address, "--every", "100ms", "--box", "box"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ}
    ) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        try:
            first = process.stderr.readline()
            assert "cannot be used now" in first
            assert "Nothing is lost" in first
            server.start()
            assert "is there again" in process.stderr.readline()  # said twice, not every 100 ms
            assert process.stdout.readline().startswith("40 parts, 39 thumbnails and 1 events sent")
            store.label(3, "good")
            assert process.stdout.readline().startswith("1 parts, 0 thumbnails and 0 events")
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 143
        finally:
            process.kill()
    assert len(rows(plant)) == 40
