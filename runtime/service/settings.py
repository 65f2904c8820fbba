"""What a service is told when it starts."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path

from clipsam.runtime.core.errors import OptionError

_TOKEN = re.compile(r"[!-~]{16,4096}")  # printable, no spaces


@dataclass(frozen=True)
class Settings:
    """Bounds of a service.

    Attributes:
      host: the address it listens on.
      queue: pictures that may be under way, from the first byte of a request to its answer.
      batch: pictures that CLIP takes at once, of those that wait.
      timeout: seconds from a request's head to its answer, at most; a request may ask for less.
      body_timeout: seconds in which a body has to arrive.
      max_body: bytes of a body.
      max_pixels: of a picture, known from its header before it is decoded.
      token: what `Authorization: Bearer` must carry; None: nobody is asked.
    """

    host: str = "127.0.0.1"
    queue: int = 32
    batch: int = 1
    timeout: float = 30.0
    body_timeout: float = 10.0
    max_body: int = 64 << 20
    max_pixels: int = 50_000_000
    token: str | None = None

    @property
    def local(self) -> bool:
        """Whether only this machine can reach it."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether a host's name or address is this machine's own."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def read_token(path: Path) -> str:
    """The token in a file, without the line's end. Raises OptionError."""
    try:
        text = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise OptionError(
            f"--token-file {path} cannot be read ({reason}): check the path."
        ) from error
    if not _TOKEN.fullmatch(text):
        raise OptionError(
            f"--token-file {path} must hold one word of at least 16 letters, digits or signs: "
            "`openssl rand -hex 32` makes one."
        )
    return text
