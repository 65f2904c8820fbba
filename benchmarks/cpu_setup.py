"""What the CPU benchmarks have in common: options, bundles, rows."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import fields, replace
from fnmatch import fnmatch
from pathlib import Path

from bench_latency import PRESETS, prepare_bundle, run_job
from cpu_lines import TORCH_ROWS, Line, Row
from cpu_row import CpuJob
from cpu_workers import free_memory_mb
from harness.machine import machine
from latency_row import Job

from clipsam.export.build_engines import ATTENTIONS
from clipsam.runtime.backends.precision import PRECISIONS
from clipsam.runtime.manifest import MANIFEST, Manifest


def add_options(parser: argparse.ArgumentParser, csv: str) -> None:
    """The options that both CPU benchmarks have."""
    add = parser.add_argument
    add("--preset", choices=PRESETS, default="tiny", help="default: tiny, or the bundle's")
    add("--bundle", type=Path, nargs="+", default=[], metavar="FOLDER",
        help="default: bundles/PRESET, -random-SEED, -ATTENTION")  # fmt: skip
    add("--random-weights", type=int, metavar="SEED", help="noise for models without a file")
    for name in ("clip", "sam", "umci"):
        add(f"--{name}-weights", type=Path, metavar="FILE", help="as in build_engines.py")
    add("--build", nargs="*", choices=PRECISIONS, metavar="PRECISION",
        help="build bundles that are not there, in fp32 and these")  # fmt: skip
    add("--attention", nargs="+", choices=ATTENTIONS, default=["stock"],
        help="of SAM's encoder: one bundle each (default: stock)")  # fmt: skip
    add("--calibration", type=Path, metavar="FOLDER", help="as in build_engines.py")
    add("--rows", nargs="+", default=["*"], metavar="PATTERN",
        help="only these: torch-*, ort-ATTENTION-PRECISION")  # fmt: skip
    add("--rounds", type=int, default=5, help="default: 5")
    add("--repeats", type=int, default=3, help="inspections of a turn (default: 3)")
    add("--threads", type=int, default=1, help="of every row (default: 1)")
    add("--memory-gb", type=float, help="of all rows together (default: 80 %% of what is free)")
    add("--quick", action="store_true", help="one round, and a small matrix")
    add("--csv", type=Path, default=Path(csv), help="also the name of .md and .png")


def make_rows(args: argparse.Namespace, bundles: Mapping[str, Path], job: CpuJob) -> list[Row]:
    """PyTorch's rows, and one for every precision of every bundle."""
    rows = [
        Row(name, title, replace(job, kind=kind, precision=precision, keep_pages=keep))
        for name, title, kind, precision, keep in TORCH_ROWS
    ]
    for label, folder in bundles.items():
        for precision in manifest_of(folder).variants:
            own = replace(job, kind="session", precision=precision, bundle=str(folder))
            rows.append(Row(f"ort-{label}-{precision}", "ONNX Runtime", own))
    return [row for row in rows if any(fnmatch(row.name, pattern) for pattern in args.rows)]


def manifest_of(folder: Path) -> Manifest:
    """What a bundle says of itself; raises BundleError and OSError."""
    return Manifest.from_json((folder / MANIFEST).read_text("utf-8"))


def find_bundles(args: argparse.Namespace) -> tuple[dict[str, Path], list[str]]:
    """Label -> bundle, built where --build says so; and why others are not there.

    A label is the way the bundle's SAM writes its attention, or its folder where two are alike.
    """
    asked: list[tuple[Path, tuple[str, ...]]] = [(folder, ()) for folder in args.bundle]
    if not asked:
        random = "" if args.random_weights is None else f"-random-{args.random_weights}"
        for attention in args.attention:
            suffix = "" if attention == "stock" else f"-{attention}"
            folder = Path("bundles") / f"{args.preset}{random}{suffix}"
            asked.append((folder, ("--attention", attention, "--threads", str(args.threads))))
    bundles: dict[str, Path] = {}
    problems = []
    for folder, options in asked:
        if args.calibration is not None:
            options = (*options, "--calibration", str(args.calibration))
        names = argparse.Namespace(**{**vars(args), "bundle": folder})
        try:
            problem = prepare_bundle(names, options)
        except subprocess.CalledProcessError as error:
            problem = f"building {folder} failed with exit code {error.returncode}, see above."
        if problem:
            problems.append(problem)
            continue
        manifest = manifest_of(folder)
        if missing := set(args.build or ()) - set(manifest.variants):
            problems.append(
                f"{folder} has no {', '.join(sorted(missing))}: build it again with "
                "`export/build_engines.py --precision`, or remove it."
            )
        label = str(manifest.provenance.get("attention", "stock"))
        bundles[folder.name if label in bundles else label] = folder
    return bundles, problems


def adopt_bundles(args: argparse.Namespace, bundles: Mapping[str, Path]) -> None:
    """Take preset and seed from the bundles, so that PyTorch runs the same models.

    Exits with a sentence where two bundles are not of the same models.
    """
    found = {}
    for folder in bundles.values():
        provenance = manifest_of(folder).provenance
        digests = dict(provenance.get("checkpoints", {}))
        found[str(folder)] = (provenance.get("preset", args.preset), digests)
        if found[str(folder)] != next(iter(found.values())):
            sys.exit(f"error: {' and '.join(found)} are not of the same models and weights.")
        if provenance.get("preset") in PRESETS:
            args.preset = provenance["preset"]
        for digest in map(str, digests.values()):
            if digest.startswith("random:"):
                args.random_weights = int(digest.split(":")[1])


def facts_of(args: argparse.Namespace, command: str) -> Line:
    """What every line of the CSV says of the run."""
    return {
        "preset": args.preset,
        "weights": "from files" if args.random_weights is None else f"random {args.random_weights}",
        "command": command,
        **machine(args.threads),
    }


def base_job(args: argparse.Namespace, bundles: Mapping[str, Path]) -> CpuJob:
    """What all rows have in common."""
    return CpuJob(
        kind="matrix",
        device="cpu",
        precision="fp32",
        bundle=str(next(iter(bundles.values()), "")),
        preset=args.preset,
        weights={
            name: str(path)
            for name in ("clip", "sam", "umci")
            if (path := getattr(args, f"{name}_weights")) is not None
        },
        random_weights=args.random_weights,
        threads=args.threads,
        image_size=tuple(getattr(args, "image_size", (1024, 1024))),
        boxes=getattr(args, "boxes", 16),
        matmul=getattr(args, "matmul", 0),
    )


def count_flops(job: CpuJob) -> dict[str, float]:
    """FLOPs of every stage of the preset's models; none, with a word why, where torch is not."""
    shared = {field.name: getattr(job, field.name) for field in fields(Job)}
    answer = run_job(Job(**{**shared, "kind": "flops"}))
    if "flops" not in answer:
        print(f"no shares: {answer.get('not_run') or answer.get('failed')}", file=sys.stderr)
    found: dict[str, float] = answer.get("flops", {})
    return found


def budget(args: argparse.Namespace) -> float:
    """Memory for all rows in MB."""
    return args.memory_gb * 1e3 if args.memory_gb else free_memory_mb()
