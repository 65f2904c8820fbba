"""The paper's tables as named protocols: our figures with the published rows beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from clipsam.research.data.datasets import LabelledImage, recognise
from clipsam.research.evaluation.paper_tables import TITLES, Published, datasets_of, published
from clipsam.runtime.core.errors import DatasetError

PROTOCOLS = {f"table{number}": number for number in range(1, 6)}
ABLATIONS = ("table2", "table3")  # run by `ablations`
# Train on -> test on, as the paper has it.
TRAINED_ON = {"mvtec": "VisA", "visa": "MVTec-AD", "mtd": "MVTec-AD", "ksdd2": "MVTec-AD"}
_COLUMNS = {"auroc": "AUROC", "f1_max": "F1-max", "ap": "AP", "pro": "PRO"}  # the paper's order


def check_protocol(number: int, items: Sequence[LabelledImage]) -> tuple[str, list[str]]:
    """The data set's key, and warnings if it is not whole.

    Raises DatasetError when the images are not of a data set that the table covers.
    """
    found = recognise(items)
    covered = datasets_of(number)
    if found is None or found[0] not in covered:
        names = " and ".join(TITLES[name] for name in covered)
        raise DatasetError(
            f"Table {number} is about {names}, and this data set is not one of them: leave out "
            "--protocol, or give the folder that holds all its categories."
        )
    name, present, whole = found
    warnings = []
    if present < whole:
        warnings.append(
            f"only {present} of the {whole} categories of {TITLES[name]}: not comparable with the "
            "published rows, which are means over all of them"
        )
    return name, warnings


def format_protocol(
    number: int, dataset: str, ours: Sequence[tuple[str, Mapping[str, float | str]]]
) -> str:
    """The published rows and ours, in percent; every row says which it is.

    `ours` are names and rows of `tables.table`. A published row of the same name stands
    right above ours.
    """
    lines = [
        f"Table {number}, {TITLES[dataset]}, in %",
        "| method | source | " + " | ".join(_COLUMNS.values()) + " |",
        "| --- " * (2 + len(_COLUMNS)) + "|",
    ]
    left = list(ours)
    for row in published(number, dataset):
        lines.append(_line(row.method, "published", _figures(row)))
        for name, figures in [pair for pair in left if pair[0] == row.method]:
            lines.append(_line(name, "measured here", figures))
            left.remove((name, figures))
    lines += [_line(name, "measured here", figures) for name, figures in left]
    return "\n".join(lines)


def protocol_notes(number: int, dataset: str, resolution: str) -> list[str]:
    """What has to be known to compare the rows."""
    return [
        f"published rows are copied from table {number} of arXiv 2401.12665 and were not measured "
        "here; their resolution and metric code are not published",
        f"our rows: pooled pixels at {resolution}, mean over categories, PRO integrated exactly to "
        "0.3",
        f"for the paper's {TITLES[dataset]} row UMCI was trained on {TRAINED_ON[dataset]}",
    ]


def _figures(row: Published) -> dict[str, float]:
    values = {key: getattr(row, key) for key in _COLUMNS}
    return {key: value / 100 for key, value in values.items() if value is not None}


def _line(name: str, source: str, figures: Mapping[str, float | str]) -> str:
    cells = [f"{100 * float(figures[k]):.1f}" if k in figures else "-" for k in _COLUMNS]
    return f"| {name} | {source} | {' | '.join(cells)} |"
