"""What the training tests need on disk: random weights, procedural data sets in five layouts."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from clipsam.export.graphs.checkpoints import Checkpoints
from clipsam.research.models.checkpoints import save_weights
from clipsam.research.models.presets import PRESETS
from clipsam.research.synthetic.sample import sample_from_seed

ROOT = Path(__file__).resolve().parents[2]
SIZE = 96  # side of the images, and of CLIP's input in most tests


def write_weights(folder: Path) -> Path:
    """`clip.safetensors` and `sam.safetensors` of `tiny`, random (seed 0)."""
    # Not a fresh SAM: its position embeddings are zeros, so that all tokens of a padded border are
    # alike, and the norm over their differences shows nothing but rounding.
    random = Checkpoints(random_seed=0)
    for name, model in (
        ("clip", random.load_clip(PRESETS["tiny"])[0]),
        ("sam", random.load_sam(PRESETS["tiny"])[0]),
    ):
        save_weights(model.state_dict(), folder / f"{name}.safetensors", name)
    return folder


def samples(count: int) -> list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """RGB images and masks of 0 and 1; every second one has no defect."""
    found: tuple[list[tuple[NDArray[np.uint8], NDArray[np.uint8]]], ...] = ([], [])
    seed = 7 * 2**30
    while min(len(found[0]), len(found[1])) < (count + 1) // 2:
        sample = sample_from_seed(seed, SIZE)
        found[int(sample.mask.any())].append((sample.image, sample.mask.astype(np.uint8)))
        seed += 1
    pairs = zip(found[1], found[0], strict=False)
    return [sample for pair in pairs for sample in pair][:count]


def write_dataset(root: Path, layout: str, count: int = 8) -> Path:
    """Procedural images as a data set in the layout `mvtec`, `visa` or `visa_pytorch` (its
    two forms), `mtd` or `ksdd2`."""
    rows = ["object,split,label,image,mask"]
    for number, (image, mask) in enumerate(samples(count)):
        good, name = not mask.any(), f"{number:03d}"
        if layout == "mvtec":
            category = root / "metal_nut"
            _write(category / "test" / ("good" if good else "bent") / f"{name}.png", image)
            if not good:
                _write(category / "ground_truth" / "bent" / f"{name}_mask.png", mask * 255)
        elif layout == "visa":
            data = "candle/Data"
            path = f"{data}/Images/{'Normal' if good else 'Anomaly'}/{name}.JPG"
            _write(root / path, image)
            mask_path = "" if good else f"{data}/Masks/Anomaly/{name}.png"
            if not good:
                _write(root / mask_path, mask)  # VisA's masks are above 0
            rows.append(f"candle,test,{'normal' if good else 'anomaly'},{path},{mask_path}")
        elif layout == "visa_pytorch":
            category, kind = root / "1cls" / "candle", "good" if good else "bad"
            _write(category / "test" / kind / f"{name}.JPG", image)
            if not good:
                _write(category / "ground_truth" / "bad" / f"{name}.png", mask * 255)
        elif layout == "mtd":
            folder = root / ("MT_Free" if good else "MT_Crack") / "Imgs"
            _write(folder / f"exp1_num_{name}.jpg", image)
            _write(folder / f"exp1_num_{name}.png", mask * 255)
        else:
            _write(root / "test" / f"2{name}0.png", image)
            _write(root / "test" / f"2{name}0_GT.png", mask * 255)
            _write(root / "train" / f"1{name}0.png", image)
            _write(root / "train" / f"1{name}0_GT.png", mask * 255)
    if layout == "visa":
        (root / "split_csv").mkdir()
        (root / "split_csv" / "1cls.csv").write_text("\n".join(rows) + "\n")
    return root


def _write(path: Path, image: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    bgr = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    assert cv2.imwrite(str(path), bgr)


def train_arguments(weights: Path, data: Path, save: Path, *more: str) -> list[str]:
    """A short run of `tiny` on the folder `data`, without a GPU."""
    return [
        "--preset", "tiny", "--dataset", "folder", "--data_path", str(data),
        "--save_path", str(save), "--clip_weights", str(weights / "clip.safetensors"),
        "--image_size", str(SIZE), "--batch_size", "4", "--workers", "0", "--device", "cpu",
        *more,
    ]  # fmt: skip


def start_training(
    arguments: Sequence[str], processes: int = 1, nodes: Sequence[str] = ()
) -> subprocess.Popen[str]:
    """`python -m clipsam.research.train`, or the same under torchrun; on one of several `nodes`
    with these options of torchrun's."""
    start = [sys.executable]
    if processes > 1 or nodes:
        start += ["-m", "torch.distributed.run", *(nodes or ["--standalone"])]
        start += [f"--nproc_per_node={processes}"]
    return subprocess.Popen(
        [*start, "-m", "clipsam.research.train", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def descendants(pid: int) -> list[int]:
    """Process ids of the children of `pid`, and of theirs (Linux)."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    found = [int(word) for word in children.read_text().split()] if children.exists() else []
    return found + [other for child in found for other in descendants(child)]
