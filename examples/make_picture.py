"""Make docs/demo.jpg from what `make demo` wrote: sample images above, overlays below.

python examples/make_picture.py
"""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

TILE, COLUMNS = 220, 4
ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Read demo/results.jsonl and the images, write docs/demo.jpg."""
    rows = [json.loads(line) for line in (ROOT / "demo" / "results.jsonl").open(encoding="utf-8")]
    pairs = []
    for row in rows:
        image = cv2.imread(str(ROOT / "examples" / "images" / row["image"]))
        shown = cv2.imread(str((ROOT / "demo" / row["image"]).with_suffix(".overlay.png")))
        if image is None or shown is None:
            raise SystemExit("make demo draws the pictures first.")
        shown = shown[: round(shown.shape[1] * image.shape[0] / image.shape[1])]  # not the caption
        tiles = [cv2.resize(p, (TILE, TILE), interpolation=cv2.INTER_AREA) for p in (image, shown)]
        caption = np.full((26, TILE, 3), 255, np.uint8)
        text = f"{row['verdict']}  {row['score']:.2f}"
        colour = (0, 0, 200) if row["verdict"] == "anomalous" else (0, 120, 0)
        cv2.putText(caption, text, (4, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.5, colour, 1, cv2.LINE_AA)
        pairs.append(np.vstack([*tiles, caption]))
    lines = [
        np.hstack(pairs[i : i + COLUMNS])
        for i in range(0, len(pairs) - len(pairs) % COLUMNS, COLUMNS)
    ]
    whole = cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444  # or red letters blur
    sharp = [cv2.IMWRITE_JPEG_QUALITY, 92, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, whole]
    cv2.imwrite(str(ROOT / "docs" / "demo.jpg"), np.vstack(lines), sharp)


if __name__ == "__main__":
    main()
