"""Every `clipsam` command of the box that the README or a page of docs/ shows is one that it takes.

Those of training and of adapting are held in tests/e2e/test_docs_train.py.
"""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from clipsam.runtime.commands import COMMANDS

ROOT = Path(__file__).resolve().parents[2]


def commands() -> list[list[str]]:
    """Their words, as far as a module of the runtime answers to them."""
    found = []
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for block in re.findall(r"```console\n(.*?)```", page.read_text("utf-8"), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                for part in line.removeprefix("$ ").split(" | "):
                    words = shlex.split(part, comments=True) if "clipsam" in part else []
                    if words[:1] == ["clipsam"]:
                        found.append(words)
    return [w for w in found if COMMANDS[w[1]].module.startswith("runtime.")]


class TakenError(Exception):
    """The arguments were parsed."""


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_a_documented_command_is_taken(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(self: argparse.ArgumentParser, *args: Any) -> None:
        parse(self, *args)
        raise TakenError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    with pytest.raises(TakenError):
        importlib.import_module(f"clipsam.{COMMANDS[words[1]].module}").main(words[2:])


def test_the_pages_show_commands_of_every_kind() -> None:
    shown = {words[1] for words in commands()}
    assert {"inspect", "calibrate", "watch", "serve", "store", "label", "report"} <= shown
