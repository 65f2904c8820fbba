"""The whole way of a user, in each layout of the field: check, train, evaluate, export, inspect.

    python tests/support/whole_way.py                       # all five layouts, minutes on two cores
    python tests/support/whole_way.py --layouts mvtec ksdd2

Random CLIP and SAM weights of `tiny`'s size on eight procedural pictures: the machinery is proved,
not a quality. In each layout UMCI is trained three times for the same 12 steps: without a stop; on
one process, killed (SIGKILL) after its first checkpoint and started again; on two processes
(torchrun, gloo), killed and started again. The last one's weights are evaluated in PyTorch,
exported, evaluated as a bundle, and the bundle inspects a picture.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from clipsam.export.build_engines import main as export
from clipsam.research.dataset_check import main as dataset
from clipsam.research.evaluate import main as evaluate
from clipsam.research.train import main as train
from clipsam.research.training.log import read_log
from clipsam.runtime import ClipSAM
from clipsam.runtime.cli import main as clipsam
from clipsam.runtime.core.files import sha256
from clipsam.runtime.images.reader import SUFFIXES
from support.training_files import (
    SIZE,
    descendants,
    start_training,
    train_arguments,
    write_dataset,
    write_weights,
)

LAYOUTS = ("mvtec", "visa", "visa_pytorch", "mtd", "ksdd2")
STEPS, EPOCHS = 12, 6  # 8 images in batches of 4
FIGURES = ("auroc", "ap", "f1_max", "pro")


@dataclass(frozen=True)
class Found:
    """What was measured on the way."""

    layout: str
    resumed_from: tuple[
        int, int
    ]  # steps done when the runs on one and on two processes were killed
    one: float  # largest difference of a weight, one process resumed against one not stopped
    two: float  # the same, two processes
    moved: float  # how far the furthest weight moved in all (against an untrained run)
    bundle: float  # largest difference of a figure, the bundle against PyTorch
    figures: dict[str, float]  # of the bundle


def whole_way(layout: str, folder: Path) -> Found:
    """Go the whole way in an empty folder; AssertionError where anything is not as it should be."""
    torch.set_num_threads(1)  # as the processes started here: sums then have one order
    data = write_dataset(folder / "data", layout)
    assert dataset(["check", str(data)]) == 0
    files = write_weights(folder / "weights")
    of_set = "visa" if layout == "visa_pytorch" else layout

    def arguments(name: str, *more: str) -> list[str]:
        shared = ["--dataset", of_set, "--epoch", str(EPOCHS)]
        shared += ["--cache_path", str(folder / "features")]
        return train_arguments(files, data, folder / name, *shared, *more)

    assert train(arguments("whole")) == 0
    assert train(arguments("still", "--learning_rate", "0")) == 0
    whole = checkpoint(folder / "whole")
    assert whole["step"] == STEPS

    kill_after_first_checkpoint(arguments("one"), folder / "one")
    stopped_one = int(checkpoint(folder / "one")["step"])
    assert train(arguments("one")) == 0
    kill_after_first_checkpoint(arguments("two"), folder / "two", processes=2)
    stopped_two = int(checkpoint(folder / "two")["step"])
    resumed = start_training(arguments("two"), processes=2)
    output, _ = resumed.communicate(timeout=900)
    assert resumed.returncode == 0, output
    assert max(stopped_one, stopped_two) < STEPS
    logs = [read_log(folder / name / "umci" / "log.jsonl") for name in ("whole", "one", "two")]
    assert [[row["step"] for row in log] for log in logs] == [[2, 4, 6, 8, 10, 12]] * 3
    assert [row["loss"] for row in logs[0]] == [row["loss"] for row in logs[1]]

    umci = folder / "two" / "umci.safetensors"
    torch_figures, bundle_figures = _measure(data, files, umci, folder)
    _inspect(data, folder)
    return Found(
        layout=layout,
        resumed_from=(stopped_one, stopped_two),
        one=difference(checkpoint(folder / "one"), whole),
        two=difference(checkpoint(folder / "two"), whole),
        moved=difference(checkpoint(folder / "still"), whole),
        bundle=max(abs(torch_figures[k] - bundle_figures[k]) for k in FIGURES),
        figures=bundle_figures,
    )


def _measure(
    data: Path, files: Path, umci: Path, folder: Path
) -> tuple[dict[str, float], dict[str, float]]:
    """Figures of PyTorch and of the bundle exported from the same weights."""
    weights = ["--clip_weights", str(files / "clip.safetensors")]
    weights += ["--sam_weights", str(files / "sam.safetensors"), "--umci_weights", str(umci)]
    of_torch, of_bundle, bundle = folder / "torch.json", folder / "bundle.json", folder / "bundle"
    assert evaluate(["--torch", "tiny", str(data), *weights, "--json", str(of_torch)]) == 0
    flags = [word.replace("_", "-") if word.startswith("--") else word for word in weights]
    assert export([*flags, "--threads", "1", "--output", str(bundle)]) == 0
    with ClipSAM.open(bundle, threads=1) as model:
        assert sha256(umci) in json.dumps(model.bundle.manifest.provenance)
        assert model.bundle.manifest.clip_image_size == SIZE  # what it was trained with
    table = ["--csv", str(folder / "rows.csv"), "--per-image", str(folder / "images.csv")]
    table += ["--sheet", str(folder / "sheet.png"), "--threads", "1"]
    assert evaluate([str(bundle), str(data), *table, "--json", str(of_bundle)]) == 0
    assert len((folder / "images.csv").read_text().splitlines()) == 1 + 8  # every image
    return figures(of_torch), figures(of_bundle)


def _inspect(data: Path, folder: Path) -> None:
    image = next(
        path
        for path in sorted(data.rglob("*"))
        if path.suffix.lower() in SUFFIXES and not path.stem.endswith(("_mask", "_GT"))
    )
    out = folder / "out"
    arguments = [str(folder / "bundle"), str(image), "--output", str(out), "--threads", "1"]
    assert clipsam(["inspect", *arguments]) == 0
    (line,) = (out / "results.jsonl").read_text().splitlines()
    assert json.loads(line)["verdict"] in ("good", "anomalous")
    assert list(out.rglob("*.overlay.png"))


def figures(path: Path) -> dict[str, float]:
    """The first row of a table that `evaluate --json` wrote."""
    row = json.loads(path.read_text())[0]
    return {name: float(row[name]) for name in FIGURES}


def checkpoint(save: Path) -> dict[str, Any]:
    """The last state of a run."""
    state: dict[str, Any] = torch.load(save / "umci" / "last.pt", weights_only=True)
    return state


def difference(a: dict[str, Any], b: dict[str, Any]) -> float:
    """The largest absolute difference of two checkpoints' weights."""
    assert a["module"].keys() == b["module"].keys()
    return max(float((a["module"][n] - b["module"][n]).abs().max()) for n in a["module"])


def kill_after_first_checkpoint(arguments: list[str], save: Path, processes: int = 1) -> None:
    """Start the command, and SIGKILL all its processes once there is a checkpoint."""
    run = start_training(arguments, processes)
    deadline = time.monotonic() + 900
    while not (save / "umci" / "last.pt").exists():
        assert run.poll() is None, run.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    for pid in [*descendants(run.pid), run.pid]:  # torchrun's workers first
        os.kill(pid, signal.SIGKILL)
    output, _ = run.communicate()
    assert run.returncode == -signal.SIGKILL, output


def main(argv: Sequence[str] | None = None) -> int:
    """Every layout in turn, a line each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=LAYOUTS)
    parser.add_argument("--verbose", action="store_true", help="show what the commands print")
    args = parser.parse_args(argv)
    print(
        "layout       killed after  one process  two processes  trained by  bundle-PyTorch  seconds"
    )
    for layout in args.layouts:
        start = time.monotonic()
        quiet = (
            contextlib.nullcontext() if args.verbose else contextlib.redirect_stdout(io.StringIO())
        )
        noise = (
            contextlib.nullcontext() if args.verbose else contextlib.redirect_stderr(io.StringIO())
        )
        with tempfile.TemporaryDirectory() as folder, quiet, noise:
            found = whole_way(layout, Path(folder))
        print(
            f"{layout:12} {found.resumed_from!s:13} {found.one:<12.1e} {found.two:<14.1e} "
            f"{found.moved:<11.1e} {found.bundle:<15.1e} {time.monotonic() - start:.0f}",
            flush=True,
        )
        assert found.one == 0, layout
        assert found.two < 1e-6 < found.moved / 100, layout
        assert found.bundle < 0.01, layout
    return 0


if __name__ == "__main__":
    sys.exit(main())
