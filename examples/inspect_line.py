"""Beside a production line: open the bundle once, inspect every part, stop on none.

python examples/inspect_line.py bundles/tiny FOLDER_THE_CAMERA_WRITES_TO
"""

from __future__ import annotations

import sys
from pathlib import Path

from clipsam.runtime import ClipSAM, ClipSAMError, read_image


def main(bundle: str, folder: str) -> None:
    """Print one line a part; a part that cannot be judged is reported, not fatal."""
    with ClipSAM.open(bundle) as model:
        model.warm_up()
        for path in sorted(Path(folder).rglob("*.jpg")):
            try:
                result = model.inspect(read_image(path), category="object", deadline_ms=500)
            except ClipSAMError as error:
                print(f"{path.name}: not inspected: {error}")
                continue
            boxes = [region.box for region in result.regions]
            note = "" if result.refined else " (rough: no time for SAM)"
            print(f"{path.name}: {result.verdict} {result.score:.2f} {boxes}{note}")


if __name__ == "__main__":
    main(*sys.argv[1:3])
