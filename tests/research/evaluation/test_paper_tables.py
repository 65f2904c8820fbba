"""The published figures against the differences and ranks that the paper's own text states."""

from __future__ import annotations

import pytest

from clipsam.research.evaluation.paper_tables import PUBLISHED, Published, datasets_of, published
from clipsam.research.evaluation.protocols import format_protocol

FIGURES = ("auroc", "f1_max", "ap", "pro")


def row(table: int, dataset: str, method: str) -> Published:
    found = [r for r in published(table, dataset) if r.method == method]
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize(
    ("table", "dataset", "other", "gains"),
    [  # Sec. 4.2 and appendix C.5; the order is that of FIGURES
        (1, "mvtec", "SDP+", (1.1, 5.9, 6.5, 2.7)),
        (1, "mvtec", "SAA+", (19.1, 10.0, 17.1, 45.5)),
        (4, "mtd", "APRIL-GAN", (36.9, 38.6, 42.1, 54.1)),
        (4, "mtd", "SAA+", (18.6, 17.9, 23.1, None)),
    ],
)
def test_the_gains_that_the_text_states_are_the_tables(
    table: int, dataset: str, other: str, gains: tuple[float | None, ...]
) -> None:
    ours, theirs = row(table, dataset, "ClipSAM"), row(table, dataset, other)
    for name, gain in zip(FIGURES, gains, strict=True):
        a, b = getattr(ours, name), getattr(theirs, name)
        if gain is None:
            assert b is None
        else:
            assert a - b == pytest.approx(gain, abs=0.051)


def test_clipsam_is_the_best_of_every_table_in_every_figure() -> None:
    """As the paper's bold type says."""
    for table in (1, 4, 5):
        for dataset in datasets_of(table):
            ours = row(table, dataset, "ClipSAM")
            for name in FIGURES:
                best = max(getattr(r, name) or 0 for r in published(table, dataset))
                assert best == getattr(ours, name)


def test_one_result_is_the_same_in_every_table() -> None:
    full = row(1, "mvtec", "ClipSAM")
    same = [(2, "full"), (3, "c_h 384"), (3, "s 3 & 9"), (3, "thr 0.47"), (5, "ClipSAM")]
    for table, name in same:
        other = row(table, "mvtec", name)
        assert [getattr(other, f) for f in FIGURES] == [getattr(full, f) for f in FIGURES]
    for dataset in ("mvtec", "visa"):
        for r in published(1, dataset):
            other = row(5, dataset, r.method)
            assert [getattr(other, f) for f in FIGURES] == [getattr(r, f) for f in FIGURES]


def test_how_many_rows_there_are() -> None:
    counts = {(t, d): len(published(t, d)) for t in range(1, 6) for d in datasets_of(t)}
    assert counts == {
        (1, "mvtec"): 7,
        (1, "visa"): 7,
        (2, "mvtec"): 5,
        (3, "mvtec"): 9,
        (4, "mtd"): 3,
        (4, "ksdd2"): 3,
        (5, "mvtec"): 9,
        (5, "visa"): 9,
    }
    assert all(0 < value < 100 for r in PUBLISHED for f in FIGURES if (value := getattr(r, f)))


def test_published_rows_are_marked_and_ours_stand_beside_them() -> None:
    lines = format_protocol(
        1, "mvtec", [("ClipSAM", {"auroc": 0.5, "ap": 0.25, "f1_max": 0.333}), ("mine", {})]
    ).splitlines()
    assert "| WinCLIP | published | 85.1 | 31.7 | - | 64.6 |" in lines
    place = lines.index("| ClipSAM | published | 92.3 | 47.8 | 45.9 | 88.3 |")
    assert lines[place + 1] == "| ClipSAM | measured here | 50.0 | 33.3 | 25.0 | - |"
    assert lines[-1] == "| mine | measured here | - | - | - | - |"
