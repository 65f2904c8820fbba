"""Figures that the paper published, to be printed beside ours. Copied, not measured here.

In percent, as printed in tables 1 to 5 of arXiv 2401.12665; None where the paper gives none.
Resolution and code of those measurements are not published.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

MVTEC, VISA, MTD, KSDD2 = "mvtec", "visa", "mtd", "ksdd2"
TITLES = {MVTEC: "MVTec-AD", VISA: "VisA", MTD: "MTD", KSDD2: "KSDD2"}


@dataclass(frozen=True)
class Published:
    """One method's row in one of the paper's tables, for one data set."""

    table: int
    dataset: str  # a key of TITLES
    method: str
    auroc: float | None
    f1_max: float | None
    ap: float | None
    pro: float | None


# A table and its data set, then a row a method: AUROC, F1-max, AP, PRO.
_TABLES = """
1 mvtec
  WinCLIP         85.1 31.7    - 64.6
  APRIL-GAN       87.6 43.3 40.8 44.0
  SDP             88.7 35.3 28.5 79.1
  SDP+            91.2 41.9 39.4 85.6
  SAA             67.7 23.8 15.2 31.9
  SAA+            73.2 37.8 28.8 42.8
  ClipSAM         92.3 47.8 45.9 88.3
1 visa
  WinCLIP         79.6 14.8    - 56.8
  APRIL-GAN       94.2 32.3 25.7 86.8
  SDP             84.1 16.0  9.6 63.4
  SDP+            94.8 26.5 20.3 85.3
  SAA             83.7 12.8  5.5 41.9
  SAA+            74.0 27.1 22.4 36.8
  ClipSAM         95.6 33.1 26.0 87.5
2 mvtec
  strip path only 90.8 44.3 34.9 79.6
  scale path only 90.9 44.4 42.7 81.9
  w/o UMCI        60.4 19.7 25.0 34.7
  w/o MMR         91.8 46.7 44.7 84.8
  full            92.3 47.8 45.9 88.3
3 mvtec
  c_h 194         91.8 45.6 43.8 83.1
  c_h 256         91.7 46.4 44.6 83.6
  c_h 384         92.3 47.8 45.9 88.3
  s 2 & 4         91.9 45.7 45.3 85.1
  s 3 & 9         92.3 47.8 45.9 88.3
  s 6 & 10        91.8 46.8 44.7 84.9
  thr 0.45        91.5 43.3 44.9 82.5
  thr 0.47        92.3 47.8 45.9 88.3
  thr 0.50        91.7 44.6 43.4 83.2
4 mtd
  APRIL-GAN       51.1 16.6  9.8 17.2
  SAA+            69.4 37.3 28.8    -
  ClipSAM         88.0 55.2 51.9 71.3
4 ksdd2
  APRIL-GAN       52.1 10.7  9.3 13.3
  SAA+            77.5 61.6 49.6    -
  ClipSAM         90.7 67.2 67.9 88.8
5 mvtec
  WinCLIP         85.1 31.7    - 64.6
  APRIL-GAN       87.6 43.3 40.8 44.0
  AnoVL           90.6 36.5    - 77.8
  AnomalyCLIP     91.1    -    - 81.4
  SDP             88.7 35.3 28.5 79.1
  SDP+            91.2 41.9 39.4 85.6
  SAA             67.7 23.8 15.2 31.9
  SAA+            73.2 37.8 28.8 42.8
  ClipSAM         92.3 47.8 45.9 88.3
5 visa
  WinCLIP         79.6 14.8    - 56.8
  APRIL-GAN       94.2 32.3 25.7 86.8
  AnoVL           91.4 17.4    - 75.0
  AnomalyCLIP     95.5    -    - 87.0
  SDP             84.1 16.0  9.6 63.4
  SDP+            94.8 26.5 20.3 85.3
  SAA             83.7 12.8  5.5 41.9
  SAA+            74.0 27.1 22.4 36.8
  ClipSAM         95.6 33.1 26.0 87.5
"""


def _parse(text: str) -> Iterator[Published]:
    table, dataset = 0, ""
    for line in text.strip().splitlines():
        if not line.startswith(" "):
            number, dataset = line.split()
            table = int(number)
            continue
        figures = (None if word == "-" else float(word) for word in line[18:].split())
        yield Published(table, dataset, line[:18].strip(), *figures)


PUBLISHED: tuple[Published, ...] = tuple(_parse(_TABLES))


def published(table: int, dataset: str) -> list[Published]:
    """The rows of a table for a data set, in the paper's order; empty if it has none."""
    return [row for row in PUBLISHED if (row.table, row.dataset) == (table, dataset)]


def datasets_of(table: int) -> list[str]:
    """The data sets a table covers, in the paper's order."""
    return list(dict.fromkeys(row.dataset for row in PUBLISHED if row.table == table))
