"""docs/train.md and adapt.md can be followed word for word: every command is one its program takes.

The commands themselves run in tests/support/whole_way.py, with small models.
"""

from __future__ import annotations

import re
import shlex
from argparse import ArgumentParser
from pathlib import Path

import pytest

from clipsam.export import adapt, build_engines
from clipsam.export import words as words_command
from clipsam.research import ablations, dataset_check, evaluate, train, train_naming
from clipsam.runtime.commands import inspection

DOCS = Path(__file__).resolve().parents[2] / "docs"
GUIDE, ADAPT = DOCS / "train.md", DOCS / "adapt.md"
VARIABLE = re.compile(r"([A-Z]+)=(.*)")
MODULES = {"clipsam.research.train": train, "clipsam.research.evaluate": evaluate}
SHELL = ("git", "make", ".")


def commands(page: Path = GUIDE) -> list[list[str]]:
    """The words of every command in the page's console blocks, variables filled in."""
    found: list[list[str]] = []
    values: dict[str, str] = {}
    for block in re.findall(r"```console\n(.*?)```", page.read_text(), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("error: "):  # what a command answers
                continue
            line = line.removeprefix("$ ")
            for name, value in values.items():
                line = line.replace(f"${name}", value)
            assert "$" not in line, line
            words = shlex.split(line, comments=True)
            if words and (assignment := VARIABLE.fullmatch(words[0])):
                values[assignment[1]] = assignment[2]
            elif words and words[0] not in SHELL:
                found.append(words)
    return found


def parser_of(words: list[str]) -> tuple[ArgumentParser, list[str]]:
    """The parser that a command meets, and the arguments it gets."""
    if words[0] in ("python", "torchrun") and "-m" in words:
        at = words.index("-m")
        module, arguments = MODULES[words[at + 1]], words[at + 2 :]
        if "table2" in arguments or "table3" in arguments:
            return ablations._parser(), evaluate._without(arguments, "--protocol")
        return module._parser(), arguments
    if words[:2] == ["python", "export/build_engines.py"]:
        return build_engines._parser(), words[2:]
    if words[:2] == ["clipsam", "evaluate"]:
        return evaluate._parser(), words[2:]
    if words[:2] == ["clipsam", "train-naming"]:
        return train_naming._parser(), words[2:]
    if words[:2] == ["clipsam", "dataset"]:
        return dataset_check.make_parser(), words[2:]
    if words[:2] == ["clipsam", "adapt"]:
        return adapt._parser(), words[2:]
    if words[:2] == ["clipsam", "words"]:
        return words_command._parser(), words[2:]
    assert words[:2] == ["clipsam", "inspect"], words
    return inspection._parser(), words[2:]


@pytest.mark.parametrize("words", [*commands(), *commands(ADAPT)], ids=" ".join)
def test_the_guides_commands_are_taken(words: list[str]) -> None:
    parser, arguments = parser_of(words)
    parser.parse_args(arguments)


def test_the_guide_has_a_command_for_every_step() -> None:
    lines = [" ".join(words) for words in commands()]
    for wanted in (
        "dataset check", "--overfit_batch", "torchrun", "--precision bf16", "table1", "table2",
        "table3", "table4", "table5", "build_engines.py", "clipsam inspect", "--paths strip",
        "--dataset synthetic", "clipsam adapt",
    ):  # fmt: skip
        assert any(wanted in line for line in lines), wanted
