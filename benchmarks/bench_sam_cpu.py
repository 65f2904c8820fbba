"""SAM's encoder and decoder on a CPU: forms of attention, memory pattern, prompts, one fusion.

    python benchmarks/bench_sam_cpu.py                                # tiny
    python benchmarks/bench_sam_cpu.py --preset vit-b --runs 3        # 9 GB, a quarter of an hour
    python benchmarks/bench_sam_cpu.py --preset paper --attention blocked --pattern off
    python benchmarks/bench_sam_cpu.py --quick                        # does it run at all?

Exports the graphs with seeded random weights, prints the tables and writes bench_sam_cpu.csv
(machine, versions and date in every line). A row is a process of its own (`sam_cpu_row.py`) that
opens one graph with the options of `clipsam.runtime`, but for what the row changes.

- Encoder: every form of attention (`export/graphs/sam_attention.py`), with and without
  onnxruntime's memory pattern. `cpu_s`: processor seconds of every run in order, with the kernel's
  part
  (`system_s`) of the first; `peak_mb` is of the process, which loads nothing but the graph.
- Decoder: prompts of a call, with and without onnxruntime's SkipLayerNormFusion. The rows take
  turns, --rounds times; `ms_prompt` is the median over rounds of each process's fastest-half
  median, in processor milliseconds for each prompt.
- Equality: in the same run every form's embedding is compared with that of `stock` (the first form
  asked for), and every decoder's output with the first one's of as many prompts. More than
  --tolerance of the largest value fails the run.

Random weights take as long as real ones in float32.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from bench_latency import PRESETS  # noqa: E402
from cpu_report import table, write_csv  # noqa: E402
from harness.machine import machine  # noqa: E402
from sam_cpu_row import SamJob  # noqa: E402

from clipsam.export.build_engines import ATTENTIONS  # noqa: E402

Line = dict[str, Any]
PATTERNS = {"off": False, "on": True}
FUSIONS = {"off": False, "on": True}
GRAPH = {"encoder": "sam_encoder", "decoder": "sam_decoder"}


def run_row(job: SamJob) -> Line:
    """The row's report; {"failed": …} when its process did not come back with one."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(job.threads)}
    command = [sys.executable, str(HERE / "sam_cpu_row.py"), json.dumps(asdict(job))]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode == 0:
        found: Line = json.loads(done.stdout)
        return found
    words = done.stderr.strip().splitlines()
    killed = " (killed: most likely out of memory)" if done.returncode == -9 else ""
    return {"failed": f"exit code {done.returncode}{killed}: {words[-1] if words else 'no word'}"}


def off_by(found: Mapping[str, Any], expected: Mapping[str, Any]) -> float:
    """The largest difference of any output, as a share of that output's largest value."""
    worst = 0.0
    for name, array in expected.items():
        difference = np.abs(found[name] - array).max() / np.abs(array).max()
        if not np.isfinite(difference):
            return float("inf")
        worst = max(worst, float(difference))
    return worst


def per_prompt(reports: Sequence[Line], prompts: int) -> dict[str, float]:
    """Processor milliseconds a prompt: median, least and most over rounds, without first runs."""
    rounds = []
    for report in reports:
        warm = sorted(report["cpu_s"][1:] or report["cpu_s"])
        rounds.append(statistics.median(warm[: max(1, len(warm) // 2)]) * 1e3 / prompts)
    return {
        "ms_prompt": round(statistics.median(rounds), 3),
        "ms_prompt_min": round(min(rounds), 3),
        "ms_prompt_max": round(max(rounds), 3),
    }


def export(preset_name: str, seed: int, attentions: Sequence[str], folder: Path) -> dict[str, Path]:
    """ "encoder ATTENTION" and "decoder" -> the ONNX file, all of the same random weights."""
    from clipsam.export.graphs.checkpoints import Checkpoints
    from clipsam.export.graphs.onnx_export import export_graph
    from clipsam.export.graphs.sam_decoder import SamDecoderGraph
    from clipsam.export.graphs.sam_encoder import SamEncoderGraph
    from clipsam.research.models.presets import PRESETS as MODELS

    preset = MODELS[preset_name]
    sam, _ = Checkpoints(random_seed=seed).load_sam(preset)
    side, dim = preset.sam.image_size, preset.sam.prompt_dim
    import torch

    picture = {
        "image": torch.zeros(1, side, side, 3, dtype=torch.uint8),
        "valid_size": torch.tensor([side, side // 2]),
    }
    paths = {}
    for attention in attentions:
        path = paths[f"encoder {attention}"] = folder / f"encoder-{attention}.onnx"
        print(f"exporting {path.stem}", file=sys.stderr, flush=True)
        export_graph(SamEncoderGraph(sam, attention), picture, {}, ["embedding"], path)
    path = paths["decoder"] = folder / "decoder.onnx"
    prompt = {
        "embedding": torch.zeros(1, dim, side // 16, side // 16),
        "point_coords": torch.zeros(3, 7, 2),
        "point_labels": torch.ones(3, 7),
    }
    free = {0: "prompts", 1: "points"}
    axes = {"point_coords": free, "point_labels": free}
    export_graph(SamDecoderGraph(sam), prompt, axes, ["logits", "scores"], path)
    return paths


def measure(args: argparse.Namespace, paths: Mapping[str, Path], folder: Path) -> list[Line]:
    """Every line of the CSV, printed as it comes."""
    lines: list[Line] = []

    def show(line: Line) -> None:
        lines.append(line)
        print("  ".join(f"{key} {value}" for key, value in line.items()), flush=True)

    base = SamJob("", "", args.runs, args.threads)
    reference = None
    for attention in args.attention:
        for pattern in args.pattern:
            output = folder / "embedding.npz"
            graph = str(paths[f"encoder {attention}"])
            job = replace(base, graph=graph, output=str(output), memory_pattern=PATTERNS[pattern])
            head: Line = {"graph": "encoder", "attention": attention, "memory_pattern": pattern}
            report = run_row(job)
            if "failed" in report:
                show({**head, "status": f"failed: {report['failed']}"})
                continue
            arrays = dict(np.load(output))
            reference = reference or arrays
            show({**head, **_encoder(report), **_agreement(off_by(arrays, reference), args)})
    for prompts in args.prompts:
        kept: dict[str, list[Line]] = {fusion: [] for fusion in args.fusion}
        reference, worst = None, dict.fromkeys(args.fusion, 0.0)
        for _ in range(args.rounds):
            for fusion, reports in kept.items():
                output = folder / "masks.npz"
                job = replace(base, graph=str(paths["decoder"]), output=str(output),
                              runs=args.decoder_runs, prompts=prompts, points=args.points,
                              fused_norm=FUSIONS[fusion])  # fmt: skip
                reports.append(run_row(job))
                if "failed" not in reports[-1]:
                    arrays = dict(np.load(output))
                    reference = reference or arrays
                    worst[fusion] = max(worst[fusion], off_by(arrays, reference))
        for fusion, reports in kept.items():
            head = {"graph": "decoder", "skip_layer_norm_fusion": fusion, "prompts": prompts}
            failed = [report["failed"] for report in reports if "failed" in report]
            if failed:
                show({**head, "status": f"failed: {failed[0]}"})
                continue
            peak = round(max(report["peak_rss_mb"] for report in reports))
            times = {"rounds": args.rounds, **per_prompt(reports, prompts), "peak_mb": peak}
            show({**head, "status": "measured", **times, **_agreement(worst[fusion], args)})
    return lines


def _encoder(report: Line) -> Line:
    return {
        "status": "measured",
        "cpu_s": " ".join(f"{seconds:.3f}" for seconds in report["cpu_s"]),
        "wall_s": " ".join(f"{seconds:.3f}" for seconds in report["wall_s"]),
        "system_s": round(report["system_s"][0], 3),
        "load_cpu_s": round(report["load_cpu_s"], 3),
        "peak_mb": round(report["peak_rss_mb"]),
    }


def _agreement(difference: float, args: argparse.Namespace) -> Line:
    return {"off_by": difference, "agrees": difference <= args.tolerance}


def tables(lines: Sequence[Line]) -> str:
    """The two tables in Markdown."""
    encoder = [
        [x["attention"], x["memory_pattern"], x.get("cpu_s", x["status"]),
         str(x.get("system_s", "")), str(x.get("peak_mb", ""))]
        for x in lines if x["graph"] == "encoder"
    ]  # fmt: skip
    decoder = [x for x in lines if x["graph"] == "decoder"]
    prompts = list(dict.fromkeys(x["prompts"] for x in decoder))
    rows = [
        [f"SkipLayerNormFusion {fusion}",
         *(str(x.get("ms_prompt", x["status"])) for x in decoder
           if x["skip_layer_norm_fusion"] == fusion)]
        for fusion in dict.fromkeys(x["skip_layer_norm_fusion"] for x in decoder)
    ]  # fmt: skip
    head = ["encoder", "memory pattern", "runs, CPU s", "of the first, system", "peak MB"]
    return (
        table(head, encoder)
        + "\n\nCPU ms a prompt:\n\n"
        + table(["decoder", *(f"{n} prompts" for n in prompts)], rows)
    )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line's options, completed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--preset", choices=PRESETS, default="tiny")
    add("--seed", type=int, default=0, help="of the random weights (default: 0)")
    add("--attention", nargs="*", choices=ATTENTIONS, default=list(ATTENTIONS))
    add("--pattern", nargs="+", choices=tuple(PATTERNS), default=["on", "off"])
    add("--fusion", nargs="+", choices=tuple(FUSIONS), default=["on", "off"])
    add("--prompts", type=int, nargs="*", default=[1, 4, 16])
    add("--points", type=int, default=5, help="of a prompt beside its box (default: 5)")
    add("--runs", type=int, default=3, help="of an encoder's row (default: 3)")
    add("--decoder_runs", type=int, default=12, help="of a decoder's row (default: 12)")
    add("--rounds", type=int, default=4, help="in which the decoder's rows take turns")
    add("--threads", type=int, default=1)
    add("--tolerance", type=float, default=1e-3, help="of the largest value (default: 1e-3)")
    add("--quick", action="store_true", help="one round, one run")
    add("--csv", type=Path, default=Path("bench_sam_cpu.csv"))
    args = parser.parse_args(arguments)
    if args.quick:
        args.runs, args.decoder_runs, args.rounds = 1, 2, 1
    if min(args.runs, args.decoder_runs, args.rounds, args.threads, *args.prompts, 1) < 1:
        parser.error("--runs, --decoder_runs, --rounds, --threads and --prompts are 1 or more")
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 1 when a row failed or differs."""
    args = parse(arguments)
    asked = sys.argv[1:] if arguments is None else arguments
    facts: Line = {
        "preset": args.preset,
        "weights": f"random {args.seed}",
        "points": args.points,
        "command": shlex.join(["bench_sam_cpu.py", *asked]),
        **machine(args.threads),
    }
    print("\n".join(f"{name}: {value}" for name, value in facts.items()) + "\n")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines = measure(args, export(args.preset, args.seed, args.attention, folder), folder)
    write_csv(args.csv, lines, facts)
    print(f"\n{tables(lines)}\n\n{args.csv}: {len(lines)} lines")
    bad = [x for x in lines if x["status"] != "measured" or not x["agrees"]]
    for line in bad:
        print(f"error: {line}", file=sys.stderr)
    return int(bool(bad))


if __name__ == "__main__":
    raise SystemExit(main())
