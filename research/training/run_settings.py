"""What a run was started with, kept beside its checkpoint: resuming another run is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipsam.runtime.core.errors import WeightsError
from clipsam.runtime.core.files import write_bytes

SETTINGS = "settings.json"


def check_settings(folder: Path, settings: Mapping[str, Any], flag: str = "--save_path") -> None:
    """Raise WeightsError if `folder`, which `flag` chose, holds a checkpoint of a run with other
    settings."""
    path = folder / SETTINGS
    # Without a checkpoint there is nothing to confuse; older runs have no settings.
    if not path.exists() or not (folder / "last.pt").exists():
        return
    try:
        known = dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise WeightsError(f"{path} is damaged: choose another {flag}.") from error
    wanted = json.loads(json.dumps(settings))  # tuples become lists, as in the file
    different = [n for n in sorted({*known, *wanted}) if known.get(n) != wanted.get(n)]
    if different:
        name = different[0]
        raise WeightsError(
            f"{folder} holds a run with {name} {known.get(name)!r}, now it is "
            f"{wanted.get(name)!r}: give the same arguments to go on with it, or choose another "
            f"{flag}."
        )


def keep_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write the settings into `folder`, whole or not at all."""
    write_bytes(folder / SETTINGS, json.dumps(settings, indent=1).encode())
