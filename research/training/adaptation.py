"""Adapting to good parts: fine-tune, measure before and after, say whether it is better.

The state lies in a work folder after every validation; the same call goes on from there. The same
seed and the same number of steps give the same weights, on the CPU to the last bit.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from clipsam.research.data.items import Epochs, Item, LabelledImages, collate
from clipsam.research.data.layouts import images_in
from clipsam.research.data.planted import (
    FeaturePool,
    PlantedParts,
    held_out_items,
    read_good_parts,
    split_parts,
)
from clipsam.research.data.samples import GOOD, LabelledImage
from clipsam.research.models.presets import Preset
from clipsam.research.models.umci import UMCIStages
from clipsam.research.training.adapt_task import FORGOTTEN, AdaptTask
from clipsam.research.training.loop import LoopConfig, run
from clipsam.research.training.run_settings import check_settings, keep_settings
from clipsam.runtime.core.errors import DatasetError, WeightsError
from clipsam.runtime.core.files import sha256
from clipsam.runtime.options import InspectOptions

LEAST_GAIN = 0.01
"""What pixel AP and image AUROC must gain on average for the adapted weights to be kept."""
_EACH = 6  # defects planted on every part that is held out
_MOST_STEPS = 20_000
_BATCH = 4
_VALIDATE_EVERY = 50  # steps
Figures = Mapping[str, float]


@dataclass(frozen=True)
class AdaptOptions:
    """What to adapt to, and for how long.

    Attributes:
      good: folder of pictures of good parts.
      defective: folder of pictures of truly defective parts, for measuring alone.
      category: the prompts' word.
      minutes: of training; steps: exactly so many instead.
      work: folder of the state that a run goes on from.
      pool: pictures whose features are kept in memory and seen again and again.
      view: what of a picture is looked at (roi and ignored area alone).
      embedding: train CLIP's embedding, too (`tiny` alone), on pictures that never repeat.
    """

    good: Path
    category: str
    work: Path
    defective: Path | None = None
    minutes: float = 15.0
    steps: int | None = None
    seed: int = 0
    pool: int = 256
    learning_rate: float = 3e-4
    embedding: bool = False
    view: InspectOptions = field(default_factory=InspectOptions)


@dataclass(frozen=True)
class Adapted:
    """What came of it: figures in 0..1 before and after, by what they were measured on.

    Attributes:
      tensors: the weights of UMCI; embedding: those of CLIP's, where they were trained.
      facts: parts, digests, steps: for the manifest.
    """

    before: Mapping[str, Figures]
    after: Mapping[str, Figures]
    tensors: Mapping[str, Tensor]
    embedding: Mapping[str, Tensor] | None
    facts: Mapping[str, Any]

    @property
    def gain(self) -> float:
        """Of pixel AP and image AUROC on the planted defects of parts never used, on average."""
        return self._gain("planted")

    @property
    def true_gain(self) -> float:
        """The same of true defects, as far as they were given and have masks; else 0."""
        return self._gain("true") if "true" in self.before else 0.0

    def _gain(self, name: str) -> float:
        before, after = self.before[name], self.after[name]
        gains = [after[f] - before[f] for f in ("pixel_ap", "image_auroc") if f in before]
        return sum(gains) / len(gains)

    @property
    def forgot(self) -> float:
        """What the pixel AP on procedural pictures lost."""
        return self.before["procedural"]["pixel_ap"] - self.after["procedural"]["pixel_ap"]

    @property
    def better(self) -> bool:
        """Whether the adapted weights are worth keeping."""
        found = self.gain >= LEAST_GAIN and self.true_gain >= 0
        return found and self.forgot <= 2 * FORGOTTEN


def adapt(
    options: AdaptOptions,
    preset: Preset,
    clip: Any,
    umci: UMCIStages,
    digests: Mapping[str, str],
    device: torch.device,
) -> Adapted:
    """Fine-tune `umci` (in place, and CLIP's embedding with `options.embedding`).

    `digests` name the weights it starts from. Raises DatasetError, ImageError, OutputError, and
    WeightsError where the work folder holds another run.
    """
    if options.embedding and preset.clip_name != "tiny":
        raise WeightsError(
            f"The preset {preset.name} has no embedding to train, only `tiny` has: "
            "train UMCI alone."
        )
    size, category, seed = preset.clip_image_size, options.category, options.seed
    split = split_parts(read_good_parts(options.good, size, options.view), seed)
    print(
        f"adapt: {len(split.train)} good parts to learn from, {len(split.choose)} to choose by "
        f"and {len(split.report)} to report on; measuring what is there",
        flush=True,
    )
    torch.manual_seed(seed)
    choose = held_out_items(split.choose, size, category, seed * 2 + 1, _EACH)
    report = held_out_items(split.report, size, category, seed * 2 + 2, _EACH)
    for held, held_parts in ((choose, split.choose), (report, split.report)):
        _check_planted(held, [part.name for part in held_parts], options.good)
    task = AdaptTask(preset, clip, umci, device, choose, embedding=options.embedding)
    measured = {"planted": task.seen(report), "procedural": task.replayed}
    masks = True
    if options.defective is not None:
        true, masks = true_defects(options.defective, size, category, options.view)
        good = [item for item in (*choose, *report) if not item[1].any()]
        measured["true"] = task.seen([*true, *good])
    settings = _settings(options, digests)
    check_settings(options.work, settings, "--output")

    def figures() -> dict[str, dict[str, float]]:
        task.module.eval()
        found = {name: task.measure(pictures) for name, pictures in measured.items()}
        if not masks:
            found["true"] = {"image_auroc": found["true"]["image_auroc"]}
        return found

    before = figures()
    how_long = f"{options.minutes:g} minutes" if options.steps is None else f"{options.steps} steps"
    print(f"adapt: training for {how_long} on {device.type}", flush=True)
    task.remembered = before["procedural"]["pixel_ap"]
    keep_settings(options.work, settings)
    steps = options.steps or _MOST_STEPS
    items: Dataset[Item] = PlantedParts(split.train, size, category, seed, steps * _BATCH)
    if not options.embedding:
        pool = FeaturePool(items, options.pool, task.extract)
        items = Epochs(pool, seed, -(-steps * _BATCH // options.pool))
    config = LoopConfig(
        steps=steps,
        batch_size=_BATCH,
        learning_rate=options.learning_rate,
        save_path=options.work,
        weight_decay=0.0,
        warmup=10,
        final_fraction=1.0,  # when it ends is not known
        workers=1 if options.embedding else 0,
        validate_every=_VALIDATE_EVERY,
        average=0.97,
        log_every=10,
        seconds=options.minutes * 60 if options.steps is None else float("inf"),
    )
    run(task, items, config, collate)
    after = figures()
    state = torch.load(options.work / "last.pt", weights_only=True, map_location="cpu")
    facts = {
        "category": category,
        "good_parts": len(split.train) + len(split.choose) + len(split.report),
        "good_parts_sha256": settings["good_sha256"],
        "steps": int(state["step"]),
        "seed": seed,
        "trained": "UMCI and CLIP's embedding" if options.embedding else "UMCI",
        "view": options.view.settings(),
        "from": dict(digests),
    }
    weights = task.module.state_dict()
    parts_of = {
        name: {k.removeprefix(f"{name}."): v for k, v in weights.items() if k.startswith(name)}
        for name in ("umci", "embedding")
    }
    return Adapted(before, after, parts_of["umci"], parts_of["embedding"] or None, facts)


def true_defects(
    folder: Path, size: int, category: str, view: InspectOptions
) -> tuple[list[Item], bool]:
    """Pictures of defective parts as CLIP sees them, and whether they have masks: where MVTec AD
    has them, in `../../ground_truth/NAME/STEM_mask.png`. Without, all of a picture is labelled."""
    paths = images_in(folder)
    if not paths:
        raise DatasetError(f"{folder} holds no pictures: give a folder of defective parts.")
    masks = folder.parent.parent / "ground_truth" / folder.name
    images = [
        LabelledImage(path.name, folder.name, category, path, mask if mask.is_file() else None)
        for path in paths
        for mask in [masks / f"{path.stem}_mask.png"]
    ]
    if all(image.has_truth for image in images):
        found = LabelledImages(images, size, view)
        return [found[i] for i in range(len(images))], True
    unknown = LabelledImages(
        [LabelledImage(i.name, GOOD, category, i.image_path) for i in images], size, view
    )
    items = [unknown[i] for i in range(len(images))]
    return [(image, torch.ones_like(mask), word, said) for image, mask, word, said in items], False


def finish(work: Path) -> None:
    """Delete the state of a run that is done."""
    shutil.rmtree(work, ignore_errors=True)


def _check_planted(items: Sequence[Item], names: Sequence[str], folder: Path) -> None:
    defective = [bool(mask.any()) for _, mask, _, _ in items]
    if not any(defective):
        raise DatasetError(
            f"No defect could be planted visibly on {', '.join(names)} of {folder}: are these "
            "pictures of parts, neither black nor burnt out?"
        )


def _settings(options: AdaptOptions, digests: Mapping[str, str]) -> dict[str, Any]:
    """What must not change when a run goes on; for how long it runs may."""
    digest = hashlib.sha256()
    for path in images_in(options.good):
        digest.update(f"{path.name} {sha256(path)}\n".encode())
    return {
        "category": options.category,
        "seed": options.seed,
        "learning_rate": options.learning_rate,
        "pool": options.pool,
        "embedding": options.embedding,
        "good_sha256": digest.hexdigest(),
        "view": options.view.settings(),
        **{f"{name}_sha256": value for name, value in digests.items()},
    }
