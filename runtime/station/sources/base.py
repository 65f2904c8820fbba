"""What a station asks of a source."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from clipsam.runtime.images.image import Image
from clipsam.runtime.station.schema import now
from clipsam.runtime.station.sources.files import State

# kind and message: raises an alarm; message None: it is over
Alarm = Callable[[str, "str | None"], None]


@dataclass(frozen=True, eq=False)
class Captured:
    """One picture as it comes from a source.

    Attributes:
      name: what the store calls it.
      path: the file, where it is one.
      image: HxWx3 uint8 RGB, where it is a frame. Neither: a part went by and there is no picture.
      serial: what the trigger said the part is.
      state: (size, time of writing in ns, inode) of the file.
      taken_at: UTC, ISO 8601.
    """

    name: str
    path: Path | None = None
    image: Image | None = None
    serial: str | None = None
    state: State | None = None
    taken_at: str = field(default_factory=now)


class Source(ABC):
    """Asked for one picture at a time, by one thread."""

    @abstractmethod
    def poll(self, seconds: float) -> Captured | None:
        """The next picture, or None when there is none within about `seconds`."""

    @property
    def ended(self) -> bool:
        """Whether nothing comes any more, once `poll` has given None."""
        return False

    def figures(self) -> dict[str, int]:
        """What is counted, by name, such as frames that were dropped."""
        return {}

    def close(self) -> None:  # noqa: B027 - a source may have nothing to stop
        """Stop what runs in the background."""
