"""Progress of a build on stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from tqdm import tqdm

from clipsam.runtime.core.stop import check_told

T = TypeVar("T")


@contextmanager
def stage(title: str, steps: int) -> Iterator[Any]:
    """A progress bar for one stage; a line or two where stderr is a file."""
    interval = 0.1 if sys.stderr.isatty() else 30
    with tqdm(total=steps, desc=title, file=sys.stderr, unit="step", mininterval=interval) as bar:
        yield bar
    check_told()


def counted(items: Iterable[T], bar: Any) -> Iterator[T]:
    """The items, each a step of the bar once it was used."""
    for item in items:
        yield item
        bar.update()
        check_told()
