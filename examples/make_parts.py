"""Draw the parts of a product to try `clipsam calibrate` with: turned rings, no photographs.

    python examples/make_parts.py parts
    clipsam calibrate bundles/tiny --good parts/good --false-alarms 0.05 --output ring.calibration
    clipsam inspect bundles/tiny parts/line --calibration ring.calibration --output out

Sixty good ones in FOLDER/good, and twenty of a line in FOLDER/line, every second of them scratched
or dented.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np
from make_line import draw_defect, draw_part


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    if folder.exists() and any(folder.iterdir()):
        print(f"error: {folder} is not empty: choose another folder.", file=sys.stderr)
        return 1
    for name, count in (("good", 60), ("line", 20)):
        (folder / name).mkdir(parents=True)
        rng = np.random.default_rng(count)
        for number in range(count):
            part, defective = draw_part(rng, dark=False), name == "line" and number % 2 == 1
            if defective:
                draw_defect(rng, part)
            kind = "defective" if defective else "good"
            cv2.imwrite(str(folder / name / f"{kind}-{number:02}.png"), part)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
