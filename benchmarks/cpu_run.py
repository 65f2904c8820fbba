"""The rounds of `bench_cpu.py`: who is asked what, and what becomes of the answers."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from cpu_goals import note
from cpu_lines import (
    CLOCKS,
    Agreement,
    Line,
    Rounds,
    Row,
    agreement,
    agreement_line,
    lines_of_products,
    lines_of_row,
    medians,
    peak_rates,
    spread,
)
from cpu_row import MATRIX, WHOLE, Outcome
from cpu_workers import Team
from latency_row import DEFECTIVE, GOOD

from clipsam.export.precisions.recipes import TOLERANCES, Tolerance

_MATRIX_REPEATS = 3
# Of a precision that builds have no tolerances for.
_OTHERS = Tolerance(max_rel=1, rms_rel=1, mask_iou=0.9, scores=0.1, final_map=0.1)


class Run:
    """Rows, what they were asked, and what they answered."""

    def __init__(self, team: Team, rows: Sequence[Row], args: argparse.Namespace) -> None:
        self.team, self.rows, self.args = team, rows, args
        self.rounds: Rounds = {}
        self.flop: dict[str, float] = {}  # of every matrix product
        self.peaks_mb: dict[str, float] = {}  # of the first round's process
        self.agreements: dict[str, list[Agreement]] = {}
        self._wanted: list[Outcome] = []  # eager's

    def measure(self) -> None:
        """All rounds, then the further starts."""
        with tempfile.TemporaryDirectory() as folder:
            for number in range(self.args.rounds):
                order = list(self.rows) if number % 2 == 0 else list(reversed(self.rows))
                self._matrix(number)
                for row in order:
                    if number == 0:  # which also warms the row up
                        self._outcomes(row, Path(folder) / "outcome.npz")
                    self._turns(row, number)
        for _ in range(self.args.starts):
            for row in self.rows:
                if row.is_session:
                    self.team.start_again(row.name)

    def _matrix(self, number: int) -> None:
        reply = self.team.ask(MATRIX, ask="turn", repeats=_MATRIX_REPEATS)
        if reply is not None:
            best = {
                name: tuple(min(call[name][i] for call in reply["calls"]) for i, _ in CLOCKS)
                for name in reply["flop"]
            }
            self.rounds.setdefault((MATRIX, GOOD), {})[number] = best
            self.flop = reply["flop"]

    def _turns(self, row: Row, number: int) -> None:
        boxes, repeats = self.args.boxes, self.args.repeats
        warm_up = {"ask": "turn", "regions": boxes, "repeats": 1}
        said = []
        for part, regions in ((GOOD, 0), (DEFECTIVE, boxes)):
            reply = self.team.ask(row.name, warm_up, ask="turn", regions=regions, repeats=repeats)
            if reply is None:
                return self._say(f"{row.name}: {self.team.problems[row.name].status}")
            found = self.rounds.setdefault((row.name, part), {})[number] = medians(reply["calls"])
            if number == 0:
                self.peaks_mb[row.name] = reply["peak_rss_mb"]
            said.append(f"{part} {found[WHOLE][0]:,.1f} ms (CPU {found[WHOLE][1]:,.1f})")
        return self._say(f"round {number + 1}/{self.args.rounds}  {row.name}: {', '.join(said)}")

    def _outcomes(self, row: Row, file: Path) -> None:
        """What the row says of the pictures; the first row of PyTorch eager's is what counts."""
        found = []
        for image in self.args.pictures:
            shown = None if image is None else str(image)
            reply = self.team.ask(
                row.name, ask="outcome", image=shown, regions=self.args.boxes, save=str(file)
            )
            if reply is None:
                return
            found.append(Outcome.load(file))
        if not self._wanted and row.job.kind == "torch-eager":
            self._wanted = found
        elif self._wanted:
            self.agreements[row.name] = list(map(agreement, self._wanted, found))

    def _say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def lines(self, flops: Mapping[str, float], facts: Line) -> list[Line]:
        """The lines of the CSV."""
        peaks = peak_rates(self.rounds, self.flop)
        lines = lines_of_products(self.rounds, self.flop)
        if problem := self.team.problems.get(MATRIX):
            lines.append({"row": MATRIX, "status": problem.status})
        for row in self.rows:
            head: Line = {
                "row": row.name,
                "backend": row.title,
                "precision": row.job.precision,
                "engine": row.is_session,
                "bundle_weights": facts["weights"],
                "image": facts["image"],
                "note": note(row.job.precision, facts["weights"] != "from files"),
            }
            problem = self.team.problems.get(row.name)
            head["status"] = "measured" if problem is None else problem.status
            measured = list(lines_of_row(row, self.rounds, flops, peaks, self.args.boxes))
            if not measured:
                if problem is None:
                    head["status"] = "not run: interrupted"
                lines.append(head)
                continue
            starts = [start["cold_start_s"] for start in self.team.starts[row.name]]
            facts_of_row = {
                "peak_rss_mb": round(self.peaks_mb[row.name]),
                "good_peak_rss_mb": round(self.team.starts[row.name][0]["peak_rss_mb"]),
                "starts": len(starts),
                **spread(starts, "cold_start_s", 3),
                **self._agreement(row),
            }
            lines += [{**head, **line, **facts_of_row} for line in measured]
        return lines

    def _agreement(self, row: Row) -> Line:
        if row.name not in self.agreements:
            return {}
        line = agreement_line(self.agreements[row.name])
        limit = TOLERANCES.get(row.job.precision, _OTHERS)
        wrong = [
            what
            for what, is_wrong in {
                f"mask IoU {line['mask_iou_build']}": line["mask_iou_build"] < limit.mask_iou,
                f"score by {line['score_difference']}": line["score_difference"] > limit.scores,
                f"rough map by {line['rough_map_difference']}": line["rough_map_difference"]
                > limit.final_map,
                "verdict": not line["same_verdict"],
            }.items()
            if is_wrong
        ]
        return {**line, "agrees": f"DIFFERS: {', '.join(wrong)}" if wrong else True}
