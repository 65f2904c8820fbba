"""A small soak, and that it sees what it is there to see."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).with_name("soak.py")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="needs /proc"),
]


def _soak(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SOAK), *args, "--folder", str(folder), "--parts", "60"]
    return subprocess.run([*command, "--kills", "3"], capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("way", ["many", "command"])
def test_killed_and_resumed_every_part_is_judged_once(way: str, tmp_path: Path) -> None:
    plot = tmp_path / "memory.svg"
    done = _soak(tmp_path, way, "--plot", str(plot))
    assert done.returncode == 0, done.stdout + done.stderr
    report = re.search(r"60 parts, (\d+) kills, (\d+) processes.*: (.*)", done.stdout)
    assert report is not None, done.stdout
    kills, processes = int(report[1]), int(report[2])
    assert 1 <= kills <= 3
    assert processes == kills + 1, "all but the last were killed, and it ended by itself"
    assert report[3] == "every part judged exactly once"
    assert "<polyline" in plot.read_text()


def test_parts_lost_doubled_or_judged_wrongly_are_seen(tmp_path: Path) -> None:
    assert _soak(tmp_path, "command").returncode == 0
    out = tmp_path / "command/out"
    first, second, *rest = (out / "results.jsonl").read_text().splitlines()
    row = json.loads(second)
    row["verdict"] = {"good": "anomalous", "anomalous": "good"}[row["verdict"]]
    (out / "results.jsonl").write_text("\n".join([*rest, rest[0], json.dumps(row)]) + "\n")
    (out / "stray").touch()
    (out / f"{row['stem']}.score.tiff").unlink()
    (tmp_path / "command/home/id").touch()
    done = _soak(tmp_path, "command")
    assert done.returncode == 1
    for problem in (
        f"1 not judged, e.g. {json.loads(first)['image']}",
        f"1 judged more than once, e.g. {json.loads(rest[0])['image']}",
        f"1 judged wrongly, e.g. {row['image']}",
        f"missing {row['stem']}.score.tiff",
        "stray stray",
        "left in home",
    ):
        assert problem in done.stdout
