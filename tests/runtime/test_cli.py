"""The `clipsam` command: what it writes, what it says, and how it fails."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from support.cli_run import NAMES, Ran, Run, lines, listing, save
from support.toy_bundle import bright_square, plain_part

from clipsam.runtime import ClipSAM, Result, __version__, read_image
from clipsam.runtime.cli import main
from clipsam.runtime.commands import COMMANDS, Command
from clipsam.runtime.core.files import sha256
from clipsam.runtime.folder import find_jobs


def test_what_runs_is_said_when_asked_for(run: Run, images: Path, tmp_path: Path) -> None:
    done = run(images, "--output", tmp_path / "out", "--verbose")
    assert re.fullmatch(r"info: bundle [0-9a-f]+ on cpu: \{'clip_umci': 'fp32', .*\}\n", done.err)
    assert run(images, "--output", tmp_path / "out").err == ""


def test_a_folder_is_inspected_image_by_image(
    run: Run, images: Path, tmp_path: Path, toy: Path
) -> None:
    output = tmp_path / "deep/out"
    done = run(images, "--output", output)
    assert done == Ran(0, f"2 good, 2 anomalous; results in {output}\n", "")
    stems = ["bad", "good", "line 1/part.v2", "line 1/äöü/ok"]
    kinds = ["mask.png", "overlay.png", "score.tiff"]
    expected = [f"{stem}.{kind}" for stem in stems for kind in kinds]
    assert listing(output) == sorted([*expected, "results.jsonl"])
    assert [row["image"] for row in lines(output)] == NAMES
    assert [row["verdict"] for row in lines(output)] == ["anomalous", "good", "anomalous", "good"]
    with ClipSAM.open(toy, threads=1) as model:
        for stem, name in zip(stems, NAMES, strict=True):
            image = read_image(images / name)
            result = model.inspect(image)
            with Image.open(output / f"{stem}.overlay.png") as file:
                enlarged = file.width // image.shape[1]  # the picture, above its caption
                assert (file.mode, file.width) == ("RGB", enlarged * image.shape[1])
                drawn = np.asarray(file)[: enlarged * image.shape[0] : enlarged, ::enlarged]
            change = np.abs(drawn.astype(int) - image).max()
            assert change > 50 if result.anomalous else change < 10  # a clean part stays clean
            with Image.open(output / f"{stem}.mask.png") as file:
                assert file.mode == "L"
                np.testing.assert_array_equal(np.asarray(file), result.mask * np.uint8(255))
            score = tifffile.imread(output / f"{stem}.score.tiff")
            assert score.dtype == np.float32
            np.testing.assert_array_equal(score, result.score_map)
    row = lines(output)[0]
    added = ("image", "stem", "source", "sha256", "settings", "crc32")
    ours = {name: row.pop(name) for name in added}
    back = Result.from_json(json.dumps(row), result.score_map, result.mask)
    assert (ours["image"], ours["stem"]) == ("bad.png", "bad")
    assert ours["source"] == str(images / "bad.png")
    assert ours["sha256"] == sha256(images / "bad.png")
    assert back.regions[0].area > 1000


def test_single_files_keep_their_names(run: Run, images: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    done = run(images / "bad.png", images / "line 1/part.v2.BMP", "--output", output)
    assert done.code == 0
    assert [row["image"] for row in lines(output)] == ["bad.png", "part.v2.BMP"]
    assert (output / "part.v2.mask.png").exists()


def test_one_stem_twice_keeps_the_suffixes(run: Run, tmp_path: Path) -> None:
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    save(folder / "part.png", bright_square())
    save(folder / "part.jpg", plain_part(50, 50, 30))
    save(folder / "other.png", bright_square())
    assert run(folder, "--output", output).code == 0
    assert {n for n in listing(output) if n.endswith("mask.png")} == {
        "other.mask.png",
        "part.jpg.mask.png",
        "part.png.mask.png",
    }
    assert np.asarray(Image.open(output / "part.png.mask.png")).any()
    assert not np.asarray(Image.open(output / "part.jpg.mask.png")).any()


def test_two_images_that_would_write_the_same_files_are_refused(
    run: Run, images: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    save(other / "bad.png", bright_square())
    done = run(images, other, "--output", tmp_path / "out")
    assert done.code == 1
    assert "would write the same files: inspect them into different --output folders" in done.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("where", [".", "results", "line 1"])
def test_results_are_not_inspected(run: Run, images: Path, where: str) -> None:
    """The output folder may lie among the images: a second run sees the images alone."""
    for times in (1, 2):
        assert run(images, "--output", images / where).code == 0
        assert len(lines(images / where)) == 4 * times


def test_images_called_like_results_are_images(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    save(folder / "a.mask.png", bright_square())
    assert run(folder, "--output", tmp_path / "out").code == 0
    assert run(folder, "--output", tmp_path).code == 0
    assert [row["image"] for row in lines(tmp_path)] == ["a.mask.png"]


def test_a_deadline_leaves_defects_unrefined(run: Run, images: Path, tmp_path: Path) -> None:
    assert run(images, "--output", tmp_path / "out", "--deadline-ms", "0.001").code == 0
    rows = {row["image"]: (row["refined"], row["late"]) for row in lines(tmp_path / "out")}
    assert rows["good.jpg"] == (False, False)  # SAM had nothing to do
    assert rows["bad.png"] == (False, True)


def test_norm_image_stretches_the_score_map_to_0_and_1(
    run: Run, images: Path, tmp_path: Path
) -> None:
    assert run(images / "bad.png", "--output", tmp_path / "out", "--norm", "image").code == 0
    score = tifffile.imread(tmp_path / "out/bad.score.tiff")
    assert (score.min(), score.max()) == (0, 1)


def test_info_describes_the_bundle(toy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(toy)]) == 0
    captured = capfd.readouterr()
    assert captured.err == ""
    for text in (
        "toy  (bundle ",
        "CLIP sees 64 px, SAM 128 px",
        "sam_decoder  embedding float32[1,3,16,16], point_coords float32[prompts,points,2]",
        "threshold 0.47",
        "normalisation: fixed",
        "4 categories: object, metal nut, bottle, nothing",
        "opset: 20",
        "clip_umci: max_abs 0",
    ):
        assert text in captured.out
    assert main(["info", str(toy / "none")]) == 1
    assert capfd.readouterr().err.startswith("error: There is no bundle in ")


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["paint"],
        ["inspect"],
        ["inspect", "BUNDLE", "a.png"],
        ["inspect", "BUNDLE", "a.png", "--output", "out", "--colour"],
        ["inspect", "BUNDLE", "a.png", "--output", "out", "--threads", "0"],
        ["inspect", "BUNDLE", "a.png", "--output", "out", "--threads", "two"],
        ["inspect", "BUNDLE", "a.png", "--output", "out", "--deadline-ms", "-1"],
        ["inspect", "BUNDLE", "a.png", "--output", "out", "--deadline-ms", "nan"],
        ["inspect", "BUNDLE", "a.png", "--output", "out", "--norm", "dataset"],
        ["inspect", "BUNDLE", "a.png", "--output", "out", "--provider", "tpu"],
        ["info"],
        ["info", "BUNDLE", "--colour"],
    ],
    ids=" ".join,
)
def test_usage_errors_end_with_code_2(args: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main(args)
    assert error.value.code == 2
    assert capfd.readouterr().err.startswith("usage: clipsam")


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("evalute", "There is no command 'evalute': did you mean evaluate?"),
        ("zzz", "There is no command 'zzz': use inspect,"),
    ],
)
def test_an_unknown_command_is_answered_with_those_there_are(
    word: str, sentence: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([word])
    assert f"clipsam: error: {sentence}" in capfd.readouterr().err


def test_a_mistake_in_a_command_is_not_taken_for_a_missing_library(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(COMMANDS, "wrong", Command("research.nothing", "research", ""))
    with pytest.raises(ModuleNotFoundError, match=r"clipsam\.research\.nothing"):
        main(["wrong"])


def test_the_version_is_the_one_of_pyproject() -> None:
    text = (Path(__file__).resolve().parents[2] / "pyproject.toml").read_text()
    assert f'\nversion = "{__version__}"\n' in text


def test_the_program_inspects_and_reports_errors(toy: Path, images: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-m", "clipsam.runtime.cli"]

    def call(*args: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *map(str, args)], capture_output=True, text=True, cwd=tmp_path, timeout=120
        )

    done = call("inspect", toy, "images", "--output", "out")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "2 good, 2 anomalous; results in out\n"
    (images / "bad.png").write_bytes(b"")
    done = call("inspect", toy, "images", "--output", "out")
    assert done.returncode == 3
    assert done.stderr.startswith("error: images/bad.png is empty (0 bytes)")
    assert call("inspect").returncode == 2
    help_text = call("inspect", "--help").stdout
    assert "130 interrupted" in help_text  # the exit codes are documented


def test_jobs_are_found_in_a_fixed_order(tmp_path: Path) -> None:
    for name in ("b.png", "a.PNG", "c/a.jpg", "c.webp", ".hidden.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = [job.name.as_posix() for job in find_jobs([tmp_path])]
    assert names == ["a.PNG", "b.png", "c/a.jpg", "c.webp"]


def test_progress_is_shown_on_a_terminal_alone(
    run: Run, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    done = run(images, "--output", tmp_path / "out")
    assert "\r1/4  1 anomalous" in done.err
    assert done.err.endswith(" left \n")
    assert run(images / "bad.png", "--output", tmp_path / "out").err == ""


def test_a_path_that_the_terminal_cannot_show(toy: Path, images: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "clipsam.runtime.cli", "inspect", toy, images, "--output", "äöü"],
        env={**os.environ, "PYTHONIOENCODING": "ascii:strict"},
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("results in \\xe4\\xf6\\xfc\n")
