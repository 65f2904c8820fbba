"""Beside a production line: open the bundle once, inspect every part, stop on none.

python examples/inspect_line.py bundles/tiny FOLDER_THE_CAMERA_WRITES_TO
"""

from __future__ import annotations

import sys
from pathlib import Path

from clipsam.runtime import ClipSAM, ClipSAMError


def main(bundle: str, folder: str) -> None:
    """Print one line a part; a part that cannot be judged is reported, not fatal."""
    with ClipSAM.open(bundle) as model:
        model.warm_up()
        # Arrays from a camera do as well. The next part is taken while this one is inspected, and
        # its time runs from then: `ahead=1` keeps one waiting, not more.
        paths = sorted(Path(folder).rglob("*.jpg"))
        for part in model.inspect_many(paths, "object", deadline_ms=500, ahead=1):
            name = Path(str(part.item)).name
            try:
                result = part.result()
            except ClipSAMError as error:
                print(f"{name}: not inspected: {error}")
                continue
            boxes = [region.box for region in result.regions]
            note = " (rough: no time for SAM)" if result.late else ""
            print(f"{name}: {result.verdict} {result.score:.2f} {boxes}{note}")


if __name__ == "__main__":
    main(*sys.argv[1:3])
