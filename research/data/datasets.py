"""Data sets as lists of labelled images: the field's layouts, anyone's folders, the synthetic set.

listing = open_dataset(Path("my_parts"))      # layout found by looking; masks may be missing
check_paired(listing)                         # every defective image has one
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from clipsam.research.data.layouts import LAYOUTS, detect
from clipsam.research.data.samples import GOOD, LabelledImage, Listing
from clipsam.research.synthetic.sample import sample_from_seed
from clipsam.runtime.core.errors import DatasetError
from clipsam.runtime.images.reader import SUFFIXES

__all__ = [
    "GOOD",
    "LAYOUTS",
    "SYNTHETIC_TEST_SEED",
    "LabelledImage",
    "Listing",
    "check_gaps",
    "limits",
    "open_dataset",
    "recognise",
    "synthetic_dataset",
    "without_masks_at_all",
]

# Training, pre-training and validation draw their samples far away from these.
SYNTHETIC_TEST_SEED = 2**42

# The categories of the published sets, by which a table knows what it is shown beside.
CATEGORIES = {
    "mvtec": frozenset(
        (
            "bottle", "cable", "capsule", "carpet", "grid", "hazelnut", "leather", "metal_nut",
            "pill", "screw", "tile", "toothbrush", "transistor", "wood", "zipper",
        )
    ),
    "visa": frozenset(
        (
            "candle", "capsules", "cashew", "chewinggum", "fryum", "macaroni1", "macaroni2",
            "pcb1", "pcb2", "pcb3", "pcb4", "pipe_fryum",
        )
    ),
    "mtd": frozenset({"mtd"}),
    "ksdd2": frozenset({"ksdd2"}),
}  # fmt: skip


def open_dataset(root: Path, category: str | None = None, layout: str | None = None) -> Listing:
    """What is in a folder, with the problems that its names alone show.

    `category` overrides the word for the text prompts, `layout` (a key of `LAYOUTS`) what the
    folder looks like. Raises DatasetError when it is no data set.
    """
    if layout is not None and layout not in LAYOUTS:
        raise DatasetError(f"There is no layout {layout!r}: use one of {', '.join(LAYOUTS)}.")
    found = layout or (detect(root) if root.is_dir() else None)
    if found is None:
        raise DatasetError(
            f"{root} is no data set: neither it nor its folders have a test/ folder, and it is "
            "not VisA, MTD, KSDD2 or a folder of images; see `clipsam dataset check --help`."
        )
    try:
        listing = LAYOUTS[found](root, category)
    except OSError as error:
        raise DatasetError(f"{root} cannot be read as {found}: {error}.") from error
    if not listing.images:
        place = root / "test" if (root / "test").is_dir() else root
        raise DatasetError(
            f"{place} holds no images in the layout {found} ({', '.join(SUFFIXES)})."
        )
    return listing


def check_paired(listing: Listing) -> None:
    """Raise DatasetError naming the first defective image without a mask."""
    without = {item.image_path for item in listing.images if not item.has_truth}
    for path, problem in listing.problems:
        if path in without:
            raise DatasetError(f"{path} {problem}: add it or move the image.")


def limits(images: Sequence[LabelledImage]) -> list[str]:
    """What cannot be computed on these images, a sentence each."""
    notes = []
    good = [item for item in images if item.good]
    defective = [item for item in images if not item.good]
    without = sorted({item.defect for item in defective if not item.has_truth})
    if not defective:
        notes.append(
            "there are no defective images: only how many good ones are called anomalous can be "
            "counted"
        )
    elif not good:
        notes.append("there are no good images: image-level figures cannot be computed")
    if without:
        which = "" if len(without) > 8 else f" ({', '.join(without)})"
        left = "some defects have no masks" + which
        if all(not item.has_truth for item in defective):
            left = "no defect has a mask"
        notes.append(f"{left}: pixel figures leave them out; image-level figures and counts stand")
    return notes


def check_gaps(listing: Listing) -> None:
    """Raise DatasetError naming the first mask that is missing among others of its defect."""
    meant = without_masks_at_all(listing.images)
    known = [item for item in listing.images if (item.group, item.defect) not in meant]
    check_paired(replace(listing, images=known))


def without_masks_at_all(images: Sequence[LabelledImage]) -> set[tuple[str, str]]:
    """The (category, defect) pairs of which no image has a mask: meant so, not forgotten."""
    defective = [item for item in images if not item.good]
    masked = {(item.group, item.defect) for item in defective if item.has_truth}
    return {(item.group, item.defect) for item in defective} - masked


def recognise(items: Sequence[LabelledImage]) -> tuple[str, int, int] | None:
    """Which published set the images are of: its name, how many of its categories, of how many.

    None when a category is of no published set. Only names are compared.
    """
    groups = {item.group for item in items}
    for name, categories in CATEGORIES.items():
        if groups and groups <= categories:
            return name, len(groups), len(categories)
    return None


def synthetic_dataset(
    count: int, size: int, seed: int = SYNTHETIC_TEST_SEED, fine: float = 0
) -> Sequence[LabelledImage]:
    """`count` procedural images, each with its own category, a share of them `fine`; same seed,
    same images."""
    items = []
    for i in range(count):
        sample = sample_from_seed(seed + i, size, fine=fine)
        defect = sample.defects[0].kind if sample.defects else GOOD
        items.append(
            LabelledImage(
                f"{i:05d}", defect, sample.category, None, seed=seed + i, size=size, fine=fine
            )
        )
    return items
