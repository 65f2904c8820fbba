"""The store: what was written survives, nothing is judged twice, and only one station has it."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from clipsam.runtime.core.errors import DiskFullError, OptionError, OutputError, StoreError
from clipsam.runtime.station import schema
from clipsam.runtime.station.part import COLUMNS
from clipsam.runtime.station.store import Store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "line.db"


def test_a_row_comes_back_as_it_was_written(path: Path) -> None:
    region = {"box": [1, 2, 3, 4], "area": 9, "score": 0.5}
    with Store(path, create=True) as store:
        number = store.take("a/part.png", "metal nut", sha256="ab", serial="S1", picture="/x.png")
        taken = store.get(number)
        assert taken is not None
        assert (taken.state, taken.attempts, taken.verdict, taken.filed) == (
            "taken",
            1,
            None,
            False,
        )
        store.judge(
            number, verdict="anomalous", score=0.7, limit=0.5, reasons=(), late=False, bundle="b",
            calibration="c", version="1", provider="cpu", precisions={"clip_umci": "fp32"},
            timings={"total": 12.5}, regions=[region],
        )  # fmt: skip
        store.file(number, "line.pictures/1.png", "line.pictures/1.map.png")
    with Store(path, read_only=True) as store:
        part = store.get(number)
    assert part is not None
    assert (part.name, part.serial, part.sha256, part.state) == ("a/part.png", "S1", "ab", "judged")
    assert (part.score, part.limit, part.regions) == (0.7, 0.5, (region,))
    assert (part.precisions, part.timings) == ({"clip_umci": "fp32"}, {"total": 12.5})
    assert part.taken_at <= (part.judged_at or "")
    assert part.taken_at.endswith("Z")
    assert part.filed
    assert part.picture_path(path) == path.parent / "line.pictures/1.png"
    assert set(part.to_dict()) == set(COLUMNS)


def test_every_column_of_the_table_is_a_field(path: Path) -> None:
    Store(path, create=True).close()
    with sqlite3.connect(path) as connection:
        found = [row[1] for row in connection.execute("PRAGMA table_info(parts)")]
    connection.close()
    found.remove("changed")  # of the store alone
    assert tuple(found) == COLUMNS


def test_nothing_is_judged_twice(path: Path) -> None:
    with Store(path, create=True) as store:
        number = store.take("part.png", "object")
        store.judge(number, verdict="good")
        with pytest.raises(StoreError, match="judged already"):
            store.judge(number, verdict="anomalous")
        assert store.counts() == {"good": 1}


def test_what_a_transaction_did_not_end_is_not_there(path: Path) -> None:
    with Store(path, create=True) as store:
        with pytest.raises(StoreError), store.transaction():
            store.judge(store.take("part.png", "object") + 1, verdict="good")
        assert store.counts() == {}
        with store.transaction():
            store.judge(store.take("part.png", "object"), verdict="good")
        assert store.counts() == {"good": 1}


def test_a_row_survives_sigkill(path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "from clipsam.runtime.station.store import Store\n"
        "store = Store(sys.argv[1], create=True)\n"
        "store.claim()\n"
        "store.take('part.png', 'object')\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    with Store(path) as store:
        store.claim()  # the dead one's claim is gone with it
        assert store.counts() == {"taken": 1}
        assert store.integrity() == []


def test_attempts_are_counted_on_disk(path: Path) -> None:
    with Store(path, create=True) as store:
        number = store.take("part.png", "object")
        assert (store.begin(number), store.begin(number)) == (2, 3)


def test_the_settings_that_make_a_row_safe_are_on(path: Path) -> None:
    with Store(path, create=True) as store:
        assert store._read("PRAGMA journal_mode") == [("wal",)]
        assert store._read("PRAGMA synchronous") == [(2,)]  # FULL


def test_one_station_at_a_time_and_readers_beside_it(path: Path) -> None:
    with Store(path, create=True) as store:
        store.claim()
        store.take("part.png", "object")
        with Store(path) as other:
            with pytest.raises(StoreError, match="in use by another"):
                other.claim()
            other.label(1, "good", "anna")
        assert store.find("1").labelled_by == "anna"


def test_threads_and_processes_may_write_at_once(path: Path) -> None:
    with Store(path, create=True) as store, Store(path) as other:

        def write(where: Store) -> None:
            for _ in range(40):
                where.judge(where.take("part.png", "object"), verdict="good")

        threads = [threading.Thread(target=write, args=(w,)) for w in (store, store, other)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert store.counts() == {"good": 120}


def test_a_part_is_found_by_id_serial_or_name(path: Path) -> None:
    with Store(path, create=True) as store:
        store.take("a.png", "object", serial="S1")
        store.take("b.png", "object", serial="S2")
        store.take("b.png", "object", serial="S2")
        assert store.find("1").name == "a.png"
        assert store.find("S1").id == 1
        assert store.find("a.png").id == 1
        with pytest.raises(OptionError, match=r"more than one .* are 3, 2"):
            store.find("b.png")
        for text in ("4", "c.png", "", "9" * 30, "٣"):
            with pytest.raises(OptionError, match="no part"):
                store.find(text)


def test_labels_can_be_given_and_taken_back(path: Path) -> None:
    with Store(path, create=True) as store:
        number = store.take("a.png", "object")
        store.label(number, "defective", "anna")
        part = store.find("1")
        assert (part.label, part.labelled_by) == ("defective", "anna")
        assert part.labelled_at is not None
        store.label(number, None)
        part = store.find("1")
        assert (part.label, part.labelled_at, part.labelled_by) == (None, None, None)
        with pytest.raises(OptionError, match="good, defective"):
            store.label(number, "bad")


def test_parts_are_read_by_the_page_and_by_condition(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipsam.runtime.station.store._PAGE", 3)
    with Store(path, create=True) as store:
        for number in range(8):
            store.take(f"{number}.png", "nut" if number % 2 else "object")
        assert [part.id for part in store.parts()] == list(range(1, 9))
        assert [part.id for part in store.parts("category = ?", ["nut"])] == [2, 4, 6, 8]


def test_ids_are_never_given_twice(path: Path) -> None:
    with Store(path, create=True) as store:
        store.take("a.png", "object")
        with store.transaction() as connection:
            connection.execute("DELETE FROM parts")
        assert store.take("b.png", "object") == 2


def test_two_stores_can_be_told_apart(tmp_path: Path) -> None:
    with Store(tmp_path / "a.db", create=True) as a, Store(tmp_path / "b.db", create=True) as b:
        assert a.about()["store_id"] != b.about()["store_id"]


def test_what_is_no_store_is_refused_and_left_alone(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is no store"):
        Store(tmp_path / "none.db")
    with pytest.raises(StoreError, match="is no folder"):
        Store(tmp_path / "none/line.db", create=True)
    text = tmp_path / "text.db"
    text.write_text("not a database, but long enough to be read as one " * 20)
    with pytest.raises(StoreError, match="no store"):
        Store(text, create=True)
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE t (x)")
    connection.close()
    before = other.read_bytes()
    with pytest.raises(StoreError, match="something else"):
        Store(other, create=True)
    assert other.read_bytes() == before


def test_an_older_schema_is_brought_up_to_date_at_once_or_not_at_all(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store(path, create=True) as store:
        store.take("a.png", "object")
    good = "ALTER TABLE parts ADD COLUMN more TEXT; CREATE TABLE other (x)"
    known = schema.MIGRATIONS
    monkeypatch.setattr(schema, "MIGRATIONS", (*known, "CREATE TABLE half (x); oops"))
    with pytest.raises(OutputError, match="oops"):
        Store(path)
    monkeypatch.setattr(schema, "MIGRATIONS", (*known, good))
    with pytest.raises(
        StoreError, match=f"schema {len(known)} and this version reads {len(known) + 1}"
    ):
        Store(path, read_only=True)
    with Store(path) as store:
        assert store.counts() == {"taken": 1}
        tables = {row[0] for row in store._read("SELECT name FROM sqlite_master")}
    assert "other" in tables
    assert "half" not in tables
    monkeypatch.undo()
    with pytest.raises(StoreError, match="newer version"):
        Store(path)


def test_a_full_disk_is_said_and_leaves_the_store_sound(path: Path) -> None:
    with Store(path, create=True) as store:
        store.take("a.png", "object")
        store._connection.execute("PRAGMA max_page_count = 1")  # as full as SQLite lets it be
        with pytest.raises(DiskFullError, match="free some space"):
            store.take("b" * 100_000, "object")
        store._connection.execute("PRAGMA max_page_count = 1000000")
        store.take("c.png", "object")
        assert store.integrity() == []


def test_a_damaged_store_is_said(path: Path) -> None:
    with Store(path, create=True) as store:
        for _ in range(300):
            store.take("a" * 100, "object")
    data = bytearray(path.read_bytes())
    data[5000:20000] = os.urandom(15000)
    path.write_bytes(data)
    with pytest.raises(StoreError, match="damaged"), Store(path) as store:
        list(store.parts())
