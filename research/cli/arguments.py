"""The data set that commands of `research` work on."""

from __future__ import annotations

import argparse

from clipsam.research.data.layouts import LAYOUTS
from clipsam.runtime.commands.parser import whole_number


def add_dataset(parser: argparse.ArgumentParser) -> None:
    """The data set to work on, as `selection.select_items` takes it."""
    add = parser.add_argument
    add("dataset", help="a folder, `synthetic`, or `synthetic-fine`: small defects")
    add("--layout", choices=tuple(LAYOUTS), help="default: found by looking")
    add("--category", help="the prompts' word (default: the folder's name)")
    add("--each", type=whole_number(), help="only N images of each defect, evenly spread")
    add("--count", type=whole_number(), default=200, help="images of the synthetic set")
