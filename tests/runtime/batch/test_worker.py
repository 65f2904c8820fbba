"""What a batch writes: the rows that `clipsam inspect` would, once each, whatever happens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyarrow")
pytest.importorskip("fsspec")


from support.batch_run import in_memory, make_task, plan, rows, work, write_table
from support.cli_run import NAMES, Run, lines
from support.service import png
from support.toy_bundle import bright_square, build_toy_bundle, plain_part

from clipsam.runtime import BundleError, ImageError, InspectOptions, OutputError
from clipsam.runtime.batch import judge
from clipsam.runtime.batch.attempts import MOST
from clipsam.runtime.batch.pictures import Columns, find_sources
from clipsam.runtime.batch.places import Place
from clipsam.runtime.batch.plan import Plan
from clipsam.runtime.batch.worker import Worker
from clipsam.runtime.images.reader import decode_image
from clipsam.runtime.results.tables import flat

VARYING = {"timings", "stem", "source", "settings", "crc32", "id", "error"}


def stable(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in VARYING}


def test_the_rows_are_those_of_inspect(toy: Path, run: Run, images: Path, tmp_path: Path) -> None:
    run(images, "--output", tmp_path / "inspected", "--save", "none")
    wanted = [stable(flat(row)) for row in lines(tmp_path / "inspected")]
    found = work(make_task(toy, tmp_path / "out"), [images], size=3)
    assert [stable(row) for row in found] == wanted
    assert [row["image"] for row in found] == NAMES
    assert {row["verdict"] for row in found} == {"good", "anomalous"}
    assert json.loads(found[0]["regions"])[0]["box"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "_batch", "part-00000-0000.parquet", "part-00000-0001.parquet"
    ]  # fmt: skip
    assert [p.name for p in (tmp_path / "out/_batch").glob("begun*")] == []


def test_a_picture_that_cannot_be_inspected_is_a_row(
    toy: Path, images: Path, tmp_path: Path
) -> None:
    (images / "bad.png").write_bytes(b"no picture")
    (images / "gone.png").symlink_to(tmp_path / "nowhere")
    found = {row["image"]: row for row in work(make_task(toy, tmp_path / "out"), [images])}
    assert sorted(found) == sorted([*NAMES, "gone.png"])
    bad, gone = found["bad.png"], found["gone.png"]
    assert (bad["verdict"], bad["reasons"], bad["score"]) == ("not_judged", '["damaged"]', None)
    assert bad["error"].startswith("bad.png is damaged")
    assert len(bad["sha256"]) == 64
    assert (gone["verdict"], gone["reasons"]) == ("not_judged", '["unreadable"]')
    assert found["good.jpg"]["error"] is None


def test_rows_of_tables_are_named_by_number_and_keep_their_id(toy: Path, tmp_path: Path) -> None:
    good, bad = png(plain_part()), png(bright_square())
    write_table(
        tmp_path / "t/a.parquet",
        {
            "serial": ["s1", None, "s3", "s4", "s5"],
            "picture": [{"bytes": b, "path": None} for b in (good, bad, None, b"x", bad)],
        },
    )
    task = make_task(toy, tmp_path / "out", columns=Columns(id="serial"))
    found = work(task, [tmp_path / "t"], size=2)
    assert [(row["image"], row["id"], row["verdict"]) for row in found] == [
        ("a.parquet#0", "s1", "good"),
        ("a.parquet#1", None, "anomalous"),
        ("a.parquet#2", "s3", "not_judged"),
        ("a.parquet#3", "s4", "not_judged"),
        ("a.parquet#4", "s5", "anomalous"),
    ]
    assert found[2]["error"] == "a.parquet#2 holds no picture: take it again."


def test_a_table_that_is_cut_off_after_planning_has_all_its_rows(toy: Path, tmp_path: Path) -> None:
    table = write_table(tmp_path / "a.parquet", {"picture": [png(plain_part())] * 3})
    task = make_task(toy, tmp_path / "out")
    plan(task, [table])
    data = bytearray(table.read_bytes())
    data[4:200] = bytes(196)
    table.write_bytes(data)
    worker = Worker(task)
    for shard in Plan(task.output).shards:
        worker.inspect(shard)
    found = rows(task.output)
    assert [row["image"] for row in found] == [f"a.parquet#{n}" for n in range(3)]
    assert [row["verdict"] for row in found] == ["not_judged", "not_judged", "good"]


def test_a_second_run_does_what_is_new_and_what_is_lost(
    toy: Path, images: Path, tmp_path: Path
) -> None:
    task = make_task(toy, tmp_path / "out")
    work(task, [images], size=2)
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").glob("*.parquet")}
    assert plan(task, [images]) == []
    (images / "new.png").write_bytes(png(plain_part()))
    cut = tmp_path / "out/part-00000-0001.parquet"
    cut.write_bytes(cut.read_bytes()[:-20])
    (tmp_path / "out/part-00000-0000.parquet").rename(tmp_path / "kept")
    assert [shard.file for shard in plan(task, [images])] == [
        "part-00000-0000.parquet", "part-00000-0001.parquet", "part-00001-0000.parquet"
    ]  # fmt: skip
    (tmp_path / "kept").rename(tmp_path / "out/part-00000-0000.parquet")
    found = work(task, [images])
    assert sorted(row["image"] for row in found) == sorted([*NAMES, "new.png"])
    assert (tmp_path / "out/part-00000-0000.parquet").read_bytes() == before[
        "part-00000-0000.parquet"
    ]


def test_a_changed_picture_keeps_its_row_and_is_counted(
    toy: Path, images: Path, tmp_path: Path
) -> None:
    task = make_task(toy, tmp_path / "out")
    found = work(task, [images])
    (images / "bad.png").write_bytes(png(plain_part()))
    sources = find_sources([str(images)], task.columns, task.output)
    assert Plan(task.output).add(sources, 2) == 1
    assert work(task, [images]) == found


def test_another_picture_of_a_known_name_is_refused(
    toy: Path, images: Path, tmp_path: Path
) -> None:
    task = make_task(toy, tmp_path / "out")
    plan(task, [images])
    other = tmp_path / "other/bad.png"
    other.parent.mkdir()
    other.write_bytes(b"x")
    with pytest.raises(ImageError, match=r"would both be called bad\.png"):
        plan(task, [other])


def test_results_of_other_settings_are_not_mixed(toy: Path, images: Path, tmp_path: Path) -> None:
    plan(make_task(toy, tmp_path / "out"), [images])
    with pytest.raises(OutputError, match=r"another category \(object, now bottle\)"):
        plan(make_task(toy, tmp_path / "out", category="bottle"), [images])
    with pytest.raises(OutputError, match=r"another limit \(None, now 0.5\)"):
        plan(make_task(toy, tmp_path / "out", options=InspectOptions(limit=0.5)), [images])


@pytest.mark.parametrize("content", [b"{", b"[1]", b"7"])
def test_damaged_settings_are_a_sentence(
    toy: Path, images: Path, tmp_path: Path, content: bytes
) -> None:
    task = make_task(toy, tmp_path / "out")
    plan(task, [images])
    (tmp_path / "out/_batch/settings.json").write_bytes(content)
    with pytest.raises(OutputError, match=r"settings\.json is damaged"):
        plan(task, [images])


def test_a_folder_of_somebody_else_is_no_output(toy: Path, images: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"holds bad\.png, which no batch wrote"):
        plan(make_task(toy, images), [images])
    with pytest.raises(OutputError, match="cannot be read"):
        plan(make_task(toy, images / "bad.png"), [images])


def test_another_bundle_on_a_machine_is_refused(toy: Path, images: Path, tmp_path: Path) -> None:
    other = build_toy_bundle(tmp_path / "other", name="other")
    task = make_task(toy, tmp_path / "out", bundle=other)
    shard = plan(task, [images])[0]
    with pytest.raises(BundleError, match="on one machine and"):
        Worker(task).inspect(shard)
    answer = Worker(task)({name: [value] for name, value in asdict(shard).items()})
    assert answer["kind"] == ["BundleError"]
    assert "on one machine and" in answer["error"][0]
    assert not list((tmp_path / "out/_batch").glob("begun*"))


def test_the_files_of_an_object_store_are_written_whole(
    toy: Path, images: Path, tmp_path: Path
) -> None:
    """By way of fsspec, as for any store that pyarrow has no file system of its own for."""
    stored, out = in_memory(images), in_memory(tmp_path / "empty")
    task = make_task(toy, out)
    assert not task.output.local
    found = work(task, [stored])
    assert [row["image"] for row in found] == NAMES
    assert plan(task, [stored]) == []
    names = [Path(info.path).name for info in task.output.files_below()]
    assert names == [
        "plan-00000.parquet",
        "settings.json",
        *(f"part-00000-000{n}.parquet" for n in (0, 1)),
    ]


class KilledError(BaseException):
    """Stands for a process that ends at once."""


def test_a_picture_that_ends_processes_is_given_up_and_the_others_are_not(
    toy: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison = (images / "good.jpg").read_bytes()

    def decoded(data: bytes, name: str) -> Any:
        if data == poison:
            raise KilledError
        return decode_image(data, name)

    monkeypatch.setattr(judge, "decode_image", decoded)
    task, ended = make_task(toy, tmp_path / "out"), 0
    for _ in range(2 * MOST):
        try:
            found = work(task, [images], size=4)
        except KilledError:
            ended += 1
        else:
            break
    assert ended == MOST + 1  # the first did not yet say which picture it was at
    assert [row["image"] for row in found] == NAMES
    given_up = found[NAMES.index("good.jpg")]
    assert given_up["verdict"] == "not_judged"
    assert "ended the process that inspected it, 3 times" in given_up["error"]
    assert sum(row["error"] is not None for row in found) == 1


def test_reading_ahead_is_bounded(images: Path) -> None:
    (source,) = find_sources([str(images / "bad.png")], Columns(), Place.of("/none"))
    taken: list[int] = []

    def sources() -> Iterator[Any]:
        for n in range(100):
            taken.append(n)
            yield source

    reading = judge.read_pictures(sources(), Columns())
    next(reading)
    assert len(taken) < 12
