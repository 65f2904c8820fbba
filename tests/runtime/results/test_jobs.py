"""Which pictures are inspected and what their files are called: nothing of the user's is lost."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.cli_run import Run, lines, listing, save
from support.toy_bundle import bright_square, plain_part

from clipsam.runtime import ImageError, read_image
from clipsam.runtime.images.caption import captioned
from clipsam.runtime.results.index import Index
from clipsam.runtime.results.jobs import Job, choose_stems, find_jobs

DARK = plain_part(50, 50, 30)


def test_a_file_of_the_users_is_not_overwritten(run: Run, tmp_path: Path) -> None:
    save(tmp_path / "p.jpg", bright_square())
    save(tmp_path / "p.mask.png", DARK)
    before = (tmp_path / "p.mask.png").read_bytes()
    done = run(tmp_path, "--output", tmp_path)
    assert (done.code, done.out) == (1, "")
    assert done.err == (
        f"error: {tmp_path / 'p.mask.png'} is there already and was not written by an inspection "
        f"into {tmp_path}: move it away, or choose another --output.\n"
    )
    assert (tmp_path / "p.mask.png").read_bytes() == before
    assert listing(tmp_path) == ["p.jpg", "p.mask.png"]


def test_our_own_files_are_replaced(run: Run, images: Path, tmp_path: Path) -> None:
    for _ in range(2):
        assert run(images, "--output", tmp_path / "out").code == 0
    assert len(listing(tmp_path / "out")) == 13


def test_another_picture_of_the_same_stem_keeps_the_files_of_the_first(
    run: Run, tmp_path: Path
) -> None:
    save(tmp_path / "a.png", bright_square())
    save(tmp_path / "a.jpg", DARK)
    for name in ("a.png", "a.jpg"):
        assert run(tmp_path / name, "--output", tmp_path / "out").code == 0
    assert [row["stem"] for row in lines(tmp_path / "out")] == ["a", "a.jpg"]
    assert len(listing(tmp_path / "out")) == 7


def test_files_of_another_inspection_are_no_pictures(
    run: Run, images: Path, tmp_path: Path
) -> None:
    assert run(images, "--output", images / "deep/results").code == 0
    save(images / "deep/results/mine.mask.png", DARK)
    done = run(images, "--output", tmp_path / "out")
    assert done.out.startswith("3 good, 2 anomalous;")
    assert lines(tmp_path / "out")[1]["image"] == "deep/results/mine.mask.png"


def names(*given: str) -> list[str]:
    jobs = [Job(Path("in", name), Path(name)) for name in given]
    return choose_stems(jobs, Path("/nowhere"), Index())


def test_names_that_differ_in_letter_case_have_files_of_their_own() -> None:
    chosen = names("A.png", "a.png", "B.PNG", "b.jpg", "c.png", "c.png.jpg", "c.jpg")
    assert chosen[0] == "A.png"
    assert chosen[1].startswith("a.png~")
    assert chosen[2:4] == ["B.PNG", "b.jpg"]
    assert len({name.casefold() for name in chosen}) == 7


def test_accents_spelled_in_two_ways_have_files_of_their_own() -> None:
    assert len(set(names("\u00e4.png", "a\u0308.png"))) == 2


def test_links_to_folders_are_named_and_not_followed(
    run: Run, images: Path, tmp_path: Path
) -> None:
    (images / "circle").symlink_to(images)
    os.mkfifo(images / "pipe.png")
    (images / "gone.png").symlink_to(tmp_path / "nothing.png")
    done = run(images, "--output", tmp_path / "out")
    assert done.code == 3
    assert done.out.startswith("2 good, 2 anomalous, 1 not judged")
    link, pipe, gone = done.err.splitlines()
    assert link == (
        f"note: {images / 'circle'} is a link to a folder and was not followed: give it as an "
        "input."
    )
    assert pipe == f"note: {images / 'pipe.png'} is no regular file and was left out."
    assert gone.startswith(f"error: {images / 'gone.png'} cannot be read")


def test_a_folder_that_cannot_be_read_is_not_left_out_in_silence(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.scandir

    def scandir(path: str) -> object:
        if Path(path).name == "line 1":
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(ImageError, match=r"line 1 cannot be read \(Permission denied\): allow it"):
        find_jobs([images])


def test_a_name_too_long_for_its_results_is_shortened(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("x" * 246, "x" * 245 + "y", "ä" * 123):
        save(folder / f"{name}.png", DARK)
    save(folder / "z.png", bright_square())
    for _ in range(2):
        done = run(folder, "--output", tmp_path / "out")
        assert (done.code, done.err) == (0, "")
    stems = [row["stem"] for row in lines(tmp_path / "out")]
    assert len(set(stems)) == 4
    assert len(listing(tmp_path / "out")) == 13


def test_a_picture_too_large_for_the_memory_costs_its_row_alone(
    run: Run, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clipsam.runtime import folder, stream
    from clipsam.runtime.stages.sam import Segmenter

    def failing(real: Callable[..., Any], on: Callable[[Any], bool]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            if on(args):
                raise MemoryError
            return real(*args)

        return call

    read = failing(read_image, lambda args: args[0].name == "good.jpg")
    monkeypatch.setattr(stream, "read_image", read)
    encode = failing(Segmenter.encode, lambda args: args[1].shape[:2] == (64, 64))
    monkeypatch.setattr(Segmenter, "encode", encode)
    drawn = failing(captioned, lambda args: args[0].shape[:2] == (50, 60))
    monkeypatch.setattr(folder, "captioned", drawn)
    done = run(images, "--output", tmp_path / "out")
    assert done.out.startswith("0 good, 1 anomalous, 3 not judged")
    for name, line in zip(
        ("good.jpg", "part.v2.BMP", "ok.tiff"), done.err.splitlines(), strict=True
    ):
        assert line.startswith("error: ")
        assert name in line
        assert "does not fit into the memory that is free" in line


def test_a_name_that_the_file_system_refuses_costs_its_row_alone(
    run: Run, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that encrypts names does at 143 bytes."""
    real = os.open

    def refuse(path: Any, flags: int, mode: int = 0o777, **options: Any) -> int:
        if flags & os.O_CREAT and "good" in str(path):
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        return real(path, flags, mode, **options)

    monkeypatch.setattr(os, "open", refuse)
    done = run(images, "--output", tmp_path / "out")
    assert done.out.startswith("1 good, 2 anomalous, 1 could not be inspected")
    assert "File name too long" in done.err


def test_a_file_too_large_to_be_an_image_is_not_even_hashed(
    run: Run, images: Path, tmp_path: Path
) -> None:
    """200 GB that take no room on the disk: reading them would take minutes."""
    with (images / "huge.png").open("wb") as file:
        file.truncate(200 << 30)
    done = run(images, "--output", tmp_path / "out")
    assert done.out.startswith("2 good, 2 anomalous, 1 not judged;")
    assert done.err == (
        f"error: {images / 'huge.png'} cannot be read (It has 214,748,364,800 bytes, over the "
        "limit of 467,108,864): check the path.\n"
    )
    row = next(row for row in lines(tmp_path / "out") if row["image"] == "huge.png")
    assert (row["sha256"], row["verdict"]) == (None, "not_judged")
