"""The unit, the image recipe and the commands of the page are what they say they are."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from clipsam.runtime.commands import calibration, label, store, watch

ROOT = Path(__file__).resolve().parents[3]
UNIT = ROOT / "deploy/clipsam-watch.service"
PARSERS = {
    "watch": watch._parser,
    "store": store._parser,
    "calibrate": calibration._parser,
    "label": label._parser,
}


def commands(text: str) -> list[list[str]]:
    """Every `clipsam ...` of a text, without what is piped into or out of it."""
    lines = text.replace("\\\n", " ").splitlines()
    found = (re.match(r"\s*(?:#\s+)?clipsam (.*)", line.partition("|")[0]) for line in lines)
    return [shlex.split(match[1], comments=True) for match in found if match]


def test_the_commands_of_the_page_exist() -> None:
    page = (ROOT / "docs/station.md").read_text()
    blocks = "".join(re.findall(r"^```console\n(.*?)^```", page, re.M | re.S))
    seen = set()
    for name, *words in commands(blocks):
        PARSERS[name]().parse_args(words)
        seen.add(name)
    assert seen == set(PARSERS)


def test_the_units_command_exists() -> None:
    unit = UNIT.read_text()
    values = dict(re.findall(r"^#   ([A-Z]+)=(.*)$", unit, re.M))
    start = re.search(r"^ExecStart=\S+/clipsam (.*)$", unit, re.M)
    assert start is not None
    line = re.sub(r"\$([A-Z]+)", lambda found: values[found[1]], start[1])
    name, *words = shlex.split(line)
    assert PARSERS[name]().parse_args(words).keep_good == 0.01


def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("there is no systemd-analyze: apt-get install systemd")
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/clipsam/bin/clipsam", sys.executable))
    done = subprocess.run([program, "verify", str(unit)], capture_output=True, text=True)
    about_ours = [line for line in done.stderr.splitlines() if UNIT.stem in line]
    assert about_ours == []
    (tmp_path / "wrong.service").write_text("[Service]\nType=nothing\nExecStart=/bin/true\n")
    wrong = subprocess.run(
        [program, "verify", str(tmp_path / "wrong.service")], capture_output=True, text=True
    )
    assert "wrong.service" in wrong.stderr  # it looks at all


def test_what_the_image_is_built_from_is_there() -> None:
    recipe = (ROOT / "deploy/Containerfile").read_text()
    allowed = {
        line[1:] for line in (ROOT / ".containerignore").read_text().splitlines() if line[0] == "!"
    }
    copied = {
        word
        for line in re.findall(r"^COPY (?!--from)(.*)$", recipe, re.M)
        for word in line.split()[:-1]
    }
    assert copied == allowed
    assert all((ROOT / name).exists() for name in copied)
    assert re.search(r"^USER 10001", recipe, re.M)
    assert re.search(r"^HEALTHCHECK ", recipe, re.M)
