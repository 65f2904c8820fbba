"""Which pictures a batch finds, what it calls them, and what it refuses."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytest.importorskip("pyarrow")
pytest.importorskip("fsspec")
from support.batch_run import in_memory, write_table
from support.cli_run import NAMES

from clipsam.runtime import ImageError, OptionError
from clipsam.runtime.batch.pictures import Columns, Source, find_sources
from clipsam.runtime.batch.places import Place


def find(*inputs: object, columns: Columns | None = None, output: str = "/none") -> list[Source]:
    return find_sources([str(i) for i in inputs], columns or Columns(), Place.of(output))


def test_a_folder_names_its_pictures_as_inspect_does(images: Path) -> None:
    found = find(images)
    assert [source.name for source in found] == NAMES
    assert [source.size for source in found] == [(images / name).stat().st_size for name in NAMES]
    assert {source.address for source in found} == {""}


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.png", ["bad.png"]),
        ("**/*.tiff", ["line 1/äöü/ok.tiff"]),
        ("line*/*", ["line 1/part.v2.BMP"]),
        ("[bg]*.*", ["bad.png", "good.jpg"]),
        ("**", NAMES),
    ],
)
@pytest.mark.parametrize("stored", [False, True])
def test_patterns_name_pictures_by_what_precedes_them(
    images: Path, pattern: str, names: list[str], stored: bool
) -> None:
    found = find(f"{in_memory(images) if stored else images}/{pattern}")
    assert [source.name for source in found] == names
    assert found[0].place.picture("x") == (images / names[0]).read_bytes()


def test_a_picture_in_two_inputs_is_taken_once(images: Path) -> None:
    assert len(find(images / "bad.png", images)) == len(NAMES)


def test_a_picture_whose_name_has_a_wildcard_is_itself(images: Path) -> None:
    odd = images / "part[1].png"
    (images / "bad.png").rename(odd)
    assert [source.name for source in find(odd)] == ["part[1].png"]


def test_a_folder_of_tables_is_its_row_groups(tmp_path: Path) -> None:
    write_table(tmp_path / "t/a.parquet", {"picture": [b"1", b"2", b"3"], "n": [1, 2, 3]})
    write_table(tmp_path / "t/_b.parquet", {"other": [1]})
    found = find(tmp_path / "t")
    assert [(s.name, s.row_group, s.first, s.pictures) for s in found] == [
        ("a.parquet", 0, 0, 2),
        ("a.parquet", 1, 2, 1),
    ]


def test_the_output_is_no_input(images: Path, tmp_path: Path) -> None:
    write_table(tmp_path / "t/a.parquet", {"picture": [b"1"]})
    write_table(tmp_path / "t/out/part.parquet", {"image": ["x"]})
    assert len(find(tmp_path / "t", output=str(tmp_path / "t/out"))) == 1


def refused(*inputs: object, columns: Columns | None = None) -> str:
    with pytest.raises((ImageError, OptionError)) as error:
        find(*inputs, columns=columns)
    return str(error.value)


def test_what_holds_no_picture_is_a_sentence(images: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "holds no image" in refused(tmp_path / "empty")
    assert "holds no image" in refused(images / "*.gif")
    assert "does not exist" in refused(tmp_path / "nothing")
    assert "is no image" in refused(images / "notes.txt")
    os.mkfifo(tmp_path / "pipe.png")
    assert "neither a file nor a folder" in refused(tmp_path / "pipe.png")
    assert "cannot be opened" in refused("nowhere://bucket/x")
    assert "not Unicode" in refused(odd_name(tmp_path / "odd"))


def odd_name(folder: Path) -> Path:
    folder.mkdir()
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff.png")).touch()
    return folder


def test_two_pictures_of_one_name_are_refused(images: Path) -> None:
    other = images / "line 1/bad.png"
    other.write_bytes(b"x")
    assert len(find(images)) == len(NAMES) + 1
    assert refused(images / "bad.png", other) == (
        f"{images}/bad.png and {other} would both be called bad.png in the results: give the "
        "folder above them, or write each to its own OUTPUT."
    )


def test_columns_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    table = write_table(tmp_path / "a.parquet", {"p": [b"1"], "q": [b"2"], "n": [1]})
    assert "Several columns" in refused(table)
    assert "no column 'x' for --image-column: choose of p, q, n" in refused(
        table, columns=Columns("x")
    )
    assert "no column 'x' for --id-column" in refused(table, columns=Columns("p", "x"))
    assert "is of the type int64" in refused(table, columns=Columns("n"))
    plain = write_table(tmp_path / "b.parquet", {"n": [1]})
    assert "no column of the bytes of picture files, only n" in refused(plain)
    (tmp_path / "c.parquet").write_bytes(b"PAR1 no")
    assert "c.parquet cannot be read" in refused(tmp_path / "c.parquet")
