"""Time and memory of one training step of UMCI on cached features, and what six epochs take.

    python benchmarks/bench_training.py                       # the paper's sizes, this machine
    python benchmarks/bench_training.py --device cuda --precision bf16
    python benchmarks/bench_training.py --visual_dim 64 --text_dim 48 --hidden_dim 24 --grid 8 \
        --image_size 112                                      # a quick look that it runs
    OMP_NUM_THREADS=1 python benchmarks/bench_training.py --device cpu --csv training.csv

The weights and features are random: neither changes the time. The step is the training loop's own
(`loop.take_step`): features from the memory-mapped cache, forward, Eq. 12, backward, AdamW. CLIP
does not run, as in every epoch after the features were cached. The first steps are not counted.
On a CPU the process's own CPU time stands beside the clock's: it is what the step costs when other
programs have the machine as well.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness.clock import Clock, total
from harness.machine import machine
from harness.memory import peak_mb
from harness.report import Line, spread, write_csv
from torch import Tensor

from clipsam.research.data.datasets import LabelledImage
from clipsam.research.data.feature_cache import FEATURES, MASKS, CachedFeatures
from clipsam.research.data.items import Batch, collate
from clipsam.research.models.presets import parameter_count
from clipsam.research.models.umci import UMCIConfig, UMCIStages
from clipsam.research.training.distributed import OneProcess
from clipsam.research.training.loop import LoopConfig, make_optimizer, take_step
from clipsam.research.training.losses import total_loss

DATASETS = {"VisA": 2162, "MVTec AD": 1725}  # images of the test splits


class CachedStep:
    """The part of `UmciTask` that cached training runs: UMCI and Eq. 12, with a fixed text."""

    def __init__(self, config: UMCIConfig, size: int, device: torch.device, bf16: bool) -> None:
        self.module = UMCIStages(config).to(device)
        self.size, self.device, self.bf16 = size, device, bf16
        self.text = torch.nn.functional.normalize(torch.randn(1, config.text_dim, 2), dim=1)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        features, masks, _, _ = batch
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            taps = list(features.to(self.device).float().unbind(1))
            text = self.text.to(self.device).expand(len(features), -1, -1)
            logits = [stage.float() for stage in self.module(taps, text, self.size)]
        return total_loss(logits, masks.to(self.device)), {}

    def validate(self) -> dict[str, float]:
        return {}


def write_cache(folder: Path, images: int, shape: tuple[int, ...], size: int) -> CachedFeatures:
    """A complete feature cache of random numbers."""
    rng = np.random.default_rng(0)
    for name, dtype, of_one in ((FEATURES, np.float16, shape), (MASKS, np.uint8, (size, size))):
        array = np.lib.format.open_memmap(folder / name, "w+", dtype, (images, *of_one))
        for i in range(images):
            array[i] = (
                rng.standard_normal(of_one) > 2
                if dtype is np.uint8
                else rng.standard_normal(of_one, np.float32)
            )
        array.flush()
    items = [LabelledImage(str(i), "good", "object", None) for i in range(images)]
    return CachedFeatures(folder, items)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each counted step and of reading its batch, the CPU time of both together, and
    the peak of memory in bytes."""
    device = torch.device(args.device)
    config = UMCIConfig(args.visual_dim, args.text_dim, args.hidden_dim, stages=args.stages)
    shape = (args.stages, args.grid, args.grid, args.visual_dim)
    torch.manual_seed(0)
    task = CachedStep(config, args.image_size, device, args.precision == "bf16")
    settings = LoopConfig(args.steps, args.batch_size, 1e-4, Path(), weight_decay=0.01)
    optimizer = make_optimizer(list(task.module.parameters()), settings)
    reads, steps, cpu, losses = [], [], [], []
    with tempfile.TemporaryDirectory(dir=args.cache_path) as folder:
        images = 2 * args.batch_size
        cache = write_cache(Path(folder), images, shape, args.image_size)
        for step in range(args.warmup + args.steps):
            clock = Clock(torch.cuda.synchronize if device.type == "cuda" else lambda: None)
            at = step * args.batch_size
            with clock("read"):
                batch = collate([cache[(at + i) % images] for i in range(args.batch_size)])
            with clock("step"):
                losses.append(take_step(task, batch, optimizer, 1e-4, OneProcess())[0])
            if step >= args.warmup:
                reads.append(clock.stages["read"][0] / 1e3)
                steps.append(clock.stages["step"][0] / 1e3)
                cpu.append(total(clock.stages)[1] / 1e3)
    report: dict[str, Any] = {
        "parameters": parameter_count(task.module),
        "read_s": reads,
        "step_s": steps,
        "cpu_s": cpu,
        "losses": losses,
        "peak_rss_bytes": peak_mb() * 1e6,
        "cached_bytes_per_image": 2 * int(np.prod(shape)) + args.image_size**2,
    }
    if device.type == "cuda":
        report["peak_cuda_bytes"] = torch.cuda.max_memory_allocated(device)
    return report


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of the script; returns the exit code."""
    parser = argparse.ArgumentParser(description="One training step of UMCI, measured.")
    add = parser.add_argument
    paper = UMCIConfig()
    add("--visual_dim", type=int, default=paper.visual_dim, help="C")
    add("--text_dim", type=int, default=paper.text_dim, help="C_t")
    add("--hidden_dim", type=int, default=paper.hidden_dim, help="c_h")
    add("--stages", type=int, default=paper.stages)
    add("--grid", type=int, default=24, help="patch tokens a side")
    add("--image_size", type=int, default=336)
    add("--batch_size", type=int, default=8)
    add("--steps", type=int, default=5, help="that are counted")
    add("--warmup", type=int, default=1, help="that are not")
    add("--epoch", type=int, default=6)
    add("--precision", choices=("fp32", "bf16"), default="fp32")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--cache_path", type=Path, help="the disk to read features from (default: temporary)")
    add("--json", type=Path, help="also write the figures here")
    add("--csv", type=Path, help="also write one row with the figures, machine and versions")
    args = parser.parse_args(argv)
    report = measure(args)
    report["arguments"] = {name: str(value) for name, value in vars(args).items()}
    _print(args, report)
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    if args.csv:
        _write_csv(args, report)
    return 0


def _steps(images: int, args: argparse.Namespace) -> int:
    return int(images * args.epoch // args.batch_size)


def _print(args: argparse.Namespace, report: dict[str, Any]) -> None:
    step, read = statistics.median(report["step_s"]), statistics.median(report["read_s"])
    used = statistics.median(report["cpu_s"])
    print(
        f"UMCI: C={args.visual_dim}, C_t={args.text_dim}, c_h={args.hidden_dim}, "
        f"{args.stages} stages, {args.grid}x{args.grid} tokens, {report['parameters'] / 1e6:.1f} M "
        f"parameters; batch {args.batch_size}, {args.precision}, {args.device}, "
        f"{torch.get_num_threads()} threads"
    )
    print(
        f"step    {step:.3f} s (median of {args.steps}; {min(report['step_s']):.3f} to "
        f"{max(report['step_s']):.3f}), and {read:.4f} s to read its features"
    )
    print(
        f"CPU     {used:.3f} s of the process a step (median; {min(report['cpu_s']):.3f} to "
        f"{max(report['cpu_s']):.3f}), reading included"
    )
    print(f"memory  {report['peak_rss_bytes'] / 1e9:.2f} GB of the process at most", end="")
    cuda = report.get("peak_cuda_bytes")
    print(f", {cuda / 1e9:.2f} GB on the GPU" if cuda is not None else "")
    for name, images in DATASETS.items():
        steps = _steps(images, args)
        print(
            f"{name}: {args.epoch} epochs of {images} images are {steps} steps, about "
            f"{steps * (step + read) / 60:.1f} min by the clock and {steps * used / 60:.1f} min of "
            f"CPU time; cache {images * report['cached_bytes_per_image'] / 1e9:.2f} GB"
        )


def _write_csv(args: argparse.Namespace, report: dict[str, Any]) -> None:
    """One row: what was run, its figures, what six epochs take, on what machine."""
    row: Line = {
        name: getattr(args, name)
        for name in (
            "visual_dim", "text_dim", "hidden_dim", "stages", "grid", "image_size", "batch_size",
            "precision", "device", "steps",
        )
    }  # fmt: skip
    row["parameters"] = report["parameters"]
    for key in ("step_s", "read_s", "cpu_s"):
        row |= spread(report[key], key)
    row["peak_rss_gb"] = round(report["peak_rss_bytes"] / 1e9, 3)
    if "peak_cuda_bytes" in report:
        row["peak_cuda_gb"] = round(report["peak_cuda_bytes"] / 1e9, 3)
    for name, images in DATASETS.items():
        steps = _steps(images, args)
        seconds = steps * statistics.median(report["step_s"])
        row[f"{name} steps"] = steps
        row[f"{name} clock_min"] = round(seconds / 60, 1)
        row[f"{name} cpu_min"] = round(steps * statistics.median(report["cpu_s"]) / 60, 1)
    write_csv(args.csv, [row], machine(torch.get_num_threads()))


if __name__ == "__main__":
    sys.exit(main())
