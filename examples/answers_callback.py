"""A station within a program of your own: a function of yours is called with every part.

python examples/answers_callback.py bundles/tiny FOLDER_THE_CAMERA_WRITES_TO line.db
"""

from __future__ import annotations

import sys
from pathlib import Path

from clipsam.runtime import ClipSAM
from clipsam.runtime.station.health import Health
from clipsam.runtime.station.part import Part
from clipsam.runtime.station.pictures import Keep
from clipsam.runtime.station.sources.folder import FolderSource
from clipsam.runtime.station.station import Options, Station
from clipsam.runtime.station.store import Store


def gate(part: Part) -> None:
    """Open for a good part and for nothing else; what is raised here is an alarm, not the end."""
    print(f"part {part.id} ({part.name}): {'PASS' if part.verdict == 'good' else 'REJECT'}")


def main(bundle: str, folder: str, store: str) -> None:
    with Store(store, create=True) as rows, ClipSAM.open(bundle) as model:
        rows.claim()  # one station a store
        health = Health()
        source = FolderSource(
            Path(folder),
            health.alarm,
            lambda name, state: rows.holds_file(name, *state[:2]),
            without=rows.pictures,
        )
        options = Options(deadline_ms=500, keep=Keep(good=0.01, retain=90))
        try:
            Station(model, rows, source, options, [gate], health).run()
        except KeyboardInterrupt:
            pass  # what is under way stays in the store, and is judged at the next start
        finally:
            source.close()


if __name__ == "__main__":
    main(*sys.argv[1:4])
