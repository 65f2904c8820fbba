"""`clipsam batch` on Ray: on this machine alone, and on a cluster of which a node dies."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray", reason="ray is not installed: pip install 'clipsam[ray]'")

from harness.ray_nodes import ray_nodes
from support.batch_run import rows
from support.service import png
from support.toy_bundle import bright_square, plain_part

from clipsam.runtime.batch.places import Place
from clipsam.runtime.cli import main

pytestmark = pytest.mark.ray


def start(*arguments: object) -> subprocess.Popen[str]:
    """`clipsam batch`, as a person starts it."""
    command = [sys.executable, "-m", "clipsam.runtime.cli", "batch", *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def draw(folder: Path, count: int, height: int = 120) -> list[str]:
    """So many pictures, every fifth with a defect; their names."""
    folder.mkdir()
    pictures = [png(plain_part(height)) for _ in range(4)] + [png(bright_square(height))]
    for number in range(count):
        (folder / f"{number:04d}.png").write_bytes(pictures[number % 5])
    return [f"{number:04d}.png" for number in range(count)]


def once_each(output: Path, names: list[str]) -> list[dict[str, Any]]:
    found = rows(Place.of(str(output)))
    assert sorted(row["image"] for row in found) == names
    wanted = ["anomalous" if int(name[:4]) % 5 == 4 else "good" for name in names]
    assert [row["verdict"] for row in sorted(found, key=lambda row: row["image"])] == wanted
    return found


def until(happened: Callable[[], bool], run: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 120
    while not happened():
        assert run.poll() is None, run.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_machine_alone_stopped_goes_on_and_says_what_is_not_judged(
    toy: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    names = draw(tmp_path / "in", 200)
    (tmp_path / "in/0000.png").write_bytes(b"no picture")
    out = tmp_path / "out"
    arguments = (toy, tmp_path / "in", out, "--workers", 2, "--shard-size", 5)
    stopped = start(*arguments)
    until(lambda: len(list(out.glob("*.parquet"))) >= 3, stopped)
    stopped.send_signal(signal.SIGTERM)
    said = stopped.communicate(timeout=60)
    assert (stopped.returncode, said) == (143, ("", ""))
    there = len(list(out.glob("*.parquet")))
    assert 3 <= there < 40
    whole = start(*arguments)
    printed, errors = whole.communicate(timeout=120)
    assert (whole.returncode, errors) == (3, "")
    found = re.fullmatch(
        r"159 good, 40 anomalous, 1 not judged \((\d+) of them done before\); results in .*\n",
        printed,
    )
    assert found, printed
    assert int(found[1]) == 5 * there
    assert len(list(out.glob("*.parquet"))) == 40
    assert sorted(row["image"] for row in rows(Place.of(str(out)))) == names
    assert main(["batch", *map(str, arguments)]) == 3  # needs no Ray for what is done
    assert capfd.readouterr().out.startswith("159 good, 40 anomalous, 1 not judged (200 of them")


def test_a_cluster_whose_node_is_killed_judges_every_picture_once(
    toy: Path, tmp_path: Path
) -> None:
    names = draw(tmp_path / "in", 600, height=400)
    out = tmp_path / "out"
    with ray_nodes(3) as cluster:
        run = start(toy, tmp_path / "in", out, "--address", cluster.address, "--shard-size", 20)
        # All three are at work, and have been.
        begun = out / "_batch"
        until(lambda: len(list(begun.glob("begun*"))) >= 3 and any(out.glob("*.parquet")), run)
        cluster.kill()
        assert len(list(out.glob("*.parquet"))) < 30
        printed, errors = run.communicate(timeout=180)
    assert (run.returncode, errors) == (
        0, "note: 1 of the machines died meanwhile; others did their shards.\n"
    )  # fmt: skip
    assert printed == f"480 good, 120 anomalous; results in {out}\n"
    once_each(out, names)
    assert list(begun.glob("begun*")) == []


def test_what_goes_wrong_on_a_worker_is_one_sentence(toy: Path, tmp_path: Path) -> None:
    draw(tmp_path / "in", 4)
    graph = toy / "sam_encoder.onnx"
    kept = graph.read_bytes()
    graph.write_bytes(kept[:-1] + b"x")
    try:
        run = start(toy, tmp_path / "in", tmp_path / "out")
        printed, errors = run.communicate(timeout=120)
    finally:
        graph.write_bytes(kept)
    assert (run.returncode, printed) == (1, "")
    assert errors.startswith("error: ")
    assert len(errors.splitlines()) == 1
    assert "sam_encoder.onnx" in errors
