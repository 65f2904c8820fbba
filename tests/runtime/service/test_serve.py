"""`clipsam serve` as a process."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.interrupts import attend_interrupts
from support.service import png
from support.toy_bundle import bright_square

from clipsam.runtime.cli import main
from clipsam.runtime.station.store import Store

BAD = png(bright_square())


@contextmanager
def process(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command, once it is ready, and its address."""
    command = [sys.executable, "-m", "clipsam.runtime.cli", "serve", *arguments, "--port", "0"]
    with subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=attend_interrupts,
    ) as running:
        assert running.stderr is not None
        try:
            url = ""
            for line in running.stderr:
                if found := re.search(r"listens on (http://\S+)", line):
                    url = found[1]
                if '"state": "ready"' in line:
                    break
            assert url
            yield running, url
        finally:
            if running.poll() is None:
                running.kill()


def post(url: str) -> dict[str, object]:
    request = urllib.request.Request(f"{url}/inspect", BAD, {"Content-Type": "image/png"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        found = json.load(answer)
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_and_stops_well(toy: Path, tmp_path: Path, stop: signal.Signals) -> None:
    store = tmp_path / "line.db"
    with process(str(toy), "--uncalibrated", "--store", str(store)) as (running, url):
        assert post(url)["part"] == 1
        running.send_signal(stop)
        assert running.stderr is not None
        logged = [json.loads(line) for line in running.stderr]
        assert running.wait(60) == 0
    assert [line["verdicts"] for line in logged if "verdicts" in line] == [["anomalous"]]
    assert logged[-1]["state"] == "stopping"
    with Store(store) as opened:
        assert opened.counts() == {"anomalous": 1}


def test_what_was_judged_is_kept_when_it_is_killed(toy: Path, tmp_path: Path) -> None:
    store = tmp_path / "line.db"
    arguments = (str(toy), "--uncalibrated", "--store", str(store))
    with process(*arguments) as (running, url):
        post(url)
        running.kill()
        running.wait(60)
    with Store(store) as opened, opened.transaction() as connection:
        connection.execute("UPDATE parts SET filed = 0, picture = NULL, map = NULL")
    with process(*arguments) as (_, url):
        assert post(url)["part"] == 2
    with Store(store) as opened:
        assert all(part.filed for part in opened.parts())


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (["--token-file", "nowhere"], "nowhere cannot be read"),
        (["--host", "no.such.host.invalid"], "cannot be listened on"),
        (["--store", "nowhere/line.db"], "is no folder"),
        (["--calibration", "nowhere"], "nowhere cannot be read"),
        (["--look-for", "banana", "--store", "line.db"], "has no words for defects"),
    ],
)
def test_what_cannot_be_is_one_sentence_and_makes_no_store(
    toy: Path,
    capsys: pytest.CaptureFixture[str],
    change: list[str],
    word: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    limit = [] if "--calibration" in change else ["--uncalibrated"]
    assert main(["serve", str(toy), *limit, "--port", "0", *change]) == 1
    error = capsys.readouterr().err
    assert word in error
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_port_that_is_taken_is_found_before_the_bundle_is_opened(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        assert main(["serve", "nowhere", "--uncalibrated", "--port", port]) == 1
    assert f"port {port} cannot be listened on" in capsys.readouterr().err


def test_a_store_has_one_writer(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Store(tmp_path / "line.db", create=True) as store:
        store.claim()
        arguments = ["--uncalibrated", "--port", "0", "--store", str(store.path)]
        assert main(["serve", str(toy), *arguments]) == 1
    assert "is in use" in capsys.readouterr().err
