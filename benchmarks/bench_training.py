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
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from harness.clock import Clock, total
from harness.machine import machine
from harness.memory import peak_mb
from harness.report import Line, show_facts, spread, write_csv
from torch import Tensor

from clipsam.research.data.datasets import LabelledImage
from clipsam.research.data.feature_cache import FEATURES, MASKS, CachedFeatures
from clipsam.research.data.items import Batch, collate
from clipsam.research.models.presets import parameter_count
from clipsam.research.models.umci import UMCIConfig, UMCIStages
from clipsam.research.training.distributed import Processes
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
        for image in array:  # one by one: the peak of memory is the step's
            noise = rng.standard_normal(of_one, np.float32)
            image[:] = noise > 2 if name == MASKS else noise
        array.flush()
    items = [LabelledImage(str(i), "good", "object", None) for i in range(images)]
    return CachedFeatures(folder, items)


def measure(args: argparse.Namespace) -> Line:
    """The figures of one row."""
    device = torch.device(args.device)
    config = UMCIConfig(args.visual_dim, args.text_dim, args.hidden_dim, stages=args.stages)
    shape = (args.stages, args.grid, args.grid, args.visual_dim)
    torch.manual_seed(0)
    task = CachedStep(config, args.image_size, device, args.precision == "bf16")
    settings = LoopConfig(args.steps, args.batch_size, 1e-4, Path(), weight_decay=0.01)
    optimizer = make_optimizer(list(task.module.parameters()), settings)
    times: dict[str, list[float]] = {"step_s": [], "read_s": [], "cpu_s": []}
    with tempfile.TemporaryDirectory(dir=args.cache_path) as folder:
        images = 2 * args.batch_size
        cache = write_cache(Path(folder), images, shape, args.image_size)
        for step in range(args.warmup + args.steps):
            clock = Clock(torch.cuda.synchronize if device.type == "cuda" else lambda: None)
            at = step * args.batch_size
            with clock("read"):
                batch = collate([cache[(at + i) % images] for i in range(args.batch_size)])
            with clock("step"):
                take_step(task, batch, optimizer, 1e-4, Processes())
            if step >= args.warmup:
                found = (clock.stages["step"][0], clock.stages["read"][0], total(clock.stages)[1])
                for name, milliseconds in zip(times, found, strict=True):
                    times[name].append(milliseconds / 1e3)
    row: Line = {"parameters": parameter_count(task.module)}
    for name, seconds in times.items():
        row |= spread(seconds, name)
    row["peak_rss_gb"] = round(peak_mb() / 1e3, 3)
    if device.type == "cuda":
        row["peak_cuda_gb"] = round(torch.cuda.max_memory_allocated(device) / 1e9, 3)
    of_one = 2 * int(np.prod(shape)) + args.image_size**2
    step_s, cpu_s = (statistics.median(times[name]) for name in ("step_s", "cpu_s"))
    for name, count in DATASETS.items():
        steps = count * args.epoch // args.batch_size
        row[f"{name} steps"] = steps
        row[f"{name} clock_min"] = round(steps * step_s / 60, 1)
        row[f"{name} cpu_min"] = round(steps * cpu_s / 60, 1)
        row[f"{name} cache_gb"] = round(count * of_one / 1e9, 2)
    return row


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
    add("--csv", type=Path, help="also write one row with the figures, machine and versions")
    args = parser.parse_args(argv)
    asked = {name: value for name, value in vars(args).items() if name not in ("csv", "cache_path")}
    row = {**asked, **measure(args)}
    show_facts(row)
    if args.csv:
        write_csv(args.csv, [row], machine(torch.get_num_threads()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
