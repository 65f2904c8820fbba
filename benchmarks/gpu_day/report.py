"""One Markdown page of what the parts found; says first whether there was a GPU at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from harness.report import table

from gpu_day.parts import Part
from gpu_day.roofline import rooflines
from gpu_day.runner import MEASURED, NOT_RUN

Results = Mapping[str, Mapping[str, Any]]
NO_GPU = (
    "**No GPU was seen on this machine. No figure on this page is of a GPU**; what needs one is "
    "listed as not run."
)


def render(parts: Sequence[Part], results: Results) -> str:
    """The page; `results` by part, those without one have not been reached."""
    pieces = [
        "# A day on a GPU",
        *_machine(results.get("machine")),
        *_parts(parts, results),
        *_section("Wheels that were not installed", _wheels(_figures(results, "wheels"))),
        *_section("Peaks", _peaks(_figures(results, "peaks"))),
        *_section("Against float32 on the CPU provider", _parity(results)),
        *_section("Pictures made by `prepare`, against the host's", _prepare(results)),
        *_section("Engines of TensorRT", _engines(results)),
        *_section("Why engines were refused", _diagnoses(results)),
        *_section("Latency and roofline", _latency(results)),
        *_section("Training", _training(_figures(results, "training"))),
    ]
    return "\n\n".join(pieces) + "\n"


def _figures(results: Results, part: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = results.get(part, {}).get("figures", {})
    return found


def _section(title: str, pieces: Iterator[str]) -> list[str]:
    found = list(pieces)
    return [f"## {title}", *found] if found else []


def _machine(result: Mapping[str, Any] | None) -> Iterator[str]:
    if result is None or result["status"] != MEASURED:
        yield "What this machine is was not found out: nothing is known of a GPU."
        return
    facts = result["figures"]
    yield f"GPU: {next(iter(facts['seen'].values()))}." if facts["seen"] else NO_GPU
    place = [facts[name] for name in ("date", "cpu", "system")]
    place += [f"{facts['cores']} cores", f"{facts['memory_gb']} GB", f"Python {facts['python']}"]
    lines = [f"- {', '.join(place)}, commit {facts['commit'] or 'unknown'}"]
    lines += [f"- {who} sees {what}" for who, what in facts["seen"].items()]
    lines += [f"- {who} sees no GPU: {why}" for who, why in facts["unseen"].items()]
    lines.append("- " + ", ".join(f"{n} {v}" for n, v in facts["libraries"].items()))
    yield "\n".join(lines)


def _parts(parts: Sequence[Part], results: Results) -> Iterator[str]:
    body = []
    for part in parts:
        result = results.get(part.name, {"status": "not reached", "reason": "", "seconds": 0})
        figures = result.get("figures", {})
        memory = [figures.get("peak_rss_mb"), figures.get("gpu_memory_mb")]
        body.append([part.name, result["status"], f"{result['seconds']:.0f}",
                     *("" if m is None else f"{m:.0f}" for m in memory),
                     result["reason"].replace("|", "/").replace("\n", " ")])  # fmt: skip
    yield "## Parts"
    yield table(["part", "status", "s", "peak MB", "GPU MB above before", "why"], body)
    counts = [sum(row[1] == status for row in body) for status in (MEASURED, NOT_RUN)]
    yield f"{counts[0]} measured, {counts[1]} not run, {len(body) - sum(counts)} other."


def _wheels(figures: Mapping[str, Any]) -> Iterator[str]:
    if figures.get("refused"):
        yield "\n".join(f"- {name}: {why}" for name, why in figures["refused"].items())


def _peaks(figures: Mapping[str, Any]) -> Iterator[str]:
    for product in figures.get("products", ()):
        rate = product.get("peak_tflops")
        yield f"- {product['backend']} {product['precision']}: " + (
            f"{rate} TFLOP/s" if rate else product["status"]
        )
    for name, rate in figures.get("copies", {}).items():
        yield f"- {name.removesuffix('_gb_s').replace('_', ' ')} copies: {rate} GB/s"


def _parity(results: Results) -> Iterator[str]:
    graphs, whole = [], []
    for name, result in results.items():
        for check in result.get("figures", {}).get("graphs", ()) if " parity " in name else ():
            graphs.append([name, check["graph"], check["precision"], check["provider"],
                           f"{check['max_rel']:.1e}", f"{check['tolerance']:.0e}",
                           "yes" if check["passed"] else "NO"])  # fmt: skip
        for check in result.get("figures", {}).get("whole", ()) if " parity " in name else ():
            whole.append([name, check["image"], check["precision"], check["prompts"],
                          f"{check['mask_iou']:.4f}", f"{check['final_map']:.1e}",
                          "same" if check["same_verdict"] else "OTHER"])  # fmt: skip
    if graphs:
        yield table(
            ["part", "graph", "precision", "ran on", "worst error", "allowed", "within"], graphs
        )
    if whole:
        yield table(
            ["part", "picture", "precision", "prompts", "mask IoU", "map", "verdict"], whole
        )


def _prepare(results: Results) -> Iterator[str]:
    body, times = [], []
    for name, result in results.items():
        figures = result.get("figures", {})
        if " prepare " not in name or "pictures" not in figures:
            continue
        off, masks = figures["pictures"], figures["masks"]
        body.append([name, f"{off['clip_off']:.0f}", f"{off['clip_share']:.2%}",
                     f"{off['sam_off']:.0f}", f"{off['sam_share']:.2%}",
                     f"{min(mask['mask_iou'] for mask in masks):.4f}",
                     f"{max(mask['score'] for mask in masks):.1e}",
                     "same" if all(m["same_verdict"] for m in masks) else "OTHER"])  # fmt: skip
        times += [[name, *line.values()] for line in figures["times"]]
    if body:
        yield table(["part", "CLIP's, levels", "values", "SAM's, levels", "values",
                     "least mask IoU", "score", "verdicts"], body)  # fmt: skip
        yield table(["part", "picture", "prepare, ms", "the host's CLIP, ms", "and SAM, ms"], times)


def _engines(results: Results) -> Iterator[str]:
    body = []
    for name, result in results.items():
        if not name.startswith("engines ") or result["status"] != MEASURED:
            continue
        figures = result["figures"]
        worst = max((check["max_rel"] for check in figures["checks"]), default=None)
        body.append([name, ", ".join(figures["written"] + figures["kept"]),
                     "" if worst is None else f"{worst:.1e}", f"{result['seconds']:.0f}",
                     f"{sum(figures['bytes'].values()) / 1e6:.0f}"])  # fmt: skip
    if body:
        head = ["part", "engines that passed the gate", "worst error", "s", "MB of all engines"]
        yield table(head, body)


def _diagnoses(results: Results) -> Iterator[str]:
    for name, result in results.items():
        for words in result.get("figures", {}).get("diagnosis", {}).values():
            yield f"`{name}`:\n```\n{words['said']}\n```"


def _latency(results: Results) -> Iterator[str]:
    whole, graphs = [], []
    peaks = _figures(results, "peaks")
    for name, result in results.items():
        if not name.startswith("latency "):
            continue
        preset = name.split()[1]
        for line in result["figures"].get("lines", ()):
            if line.get("stage") == "whole":
                whole.append([preset, line["row"], line["part"], line["p50_ms"], line["p99_ms"],
                              line["n"], line.get("gpu_memory_mb", "")])  # fmt: skip
        for row in rooflines(result["figures"], peaks):
            floor = row.get("floor_ms")
            graphs.append([preset, row["row"], row["graph"], f"{row['ms']:.3f}",
                           f"{row['gflop']:.1f}", f"{row['mb']:.1f}" if row["mb"] else "",
                           f"{floor:.3f}" if floor else "", row.get("bound", ""),
                           f"{row['share']:.0%}" if floor else ""])  # fmt: skip
    if whole:
        yield table(["preset", "row", "part", "p50 ms", "p99 ms", "n", "GPU MB"], whole)
    if graphs:
        yield (
            "Milliseconds of a graph include its copies to and from the device. MB is what has to "
            "move at least: weights, inputs and outputs. The floor is the longer of GFLOP over the "
            "measured matrix peak and MB over the measured copy rate; the share is floor over "
            "milliseconds."
        )
        head = ["preset", "row", "graph", "p50 ms", "GFLOP", "MB", "floor ms", "bound by", "share"]
        yield table(head, graphs)


def _training(figures: Mapping[str, Any]) -> Iterator[str]:
    if not figures.get("runs"):
        return
    if figures["device"] == "cpu":
        yield "On a CPU, one picture a step: not a GPU's figures."
    body = []
    for run in figures["runs"]:
        body.append([f"{figures['device']} {run['precision']}", run["batch_size"], run["step_s"],
                     run["read_s"], run["peak_rss_gb"], run.get("peak_cuda_gb", "")])  # fmt: skip
    yield table(["step", "batch", "s", "s to read", "peak GB", "peak GB of the GPU"], body)
