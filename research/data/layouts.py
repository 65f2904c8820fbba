"""Folder layouts of the field, each with its quirks, as lists of labelled images.

mvtec   CATEGORY/test/<defect>/NNN.png, CATEGORY/ground_truth/<defect>/NNN_mask.png (or NNN.png,
        as VisA has it once converted to VisA_pytorch/1cls); > 0 is anomalous
visa    split_csv/1cls.csv names images and masks; mask values are small numbers, > 0 is anomalous
mtd     MT_<defect>/Imgs/X.jpg with X.png beside it, MT_Free is good; > 127 is anomalous (the edges
        of some masks are gray); all of it is the test split
ksdd2   {train,test}/NNNNN.png with NNNNN_GT.png; an empty mask means good
folder  anyone's: images of good parts, or one folder for good ones and one for every defect; masks
        in ground_truth/<defect>, if there are any
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from clipsam.research.data.samples import GOOD, LabelledImage, Listing, read_mask
from clipsam.runtime.core.errors import DatasetError
from clipsam.runtime.images.reader import SUFFIXES

GOOD_NAMES = ("good", "ok", "normal", "free", "no_defect", "defect_free", "non_defective")
MASKS = "ground_truth"

# The words of the prompts, where the folder's name is none.
WORDS = {
    "chewinggum": "chewing gum",
    "macaroni1": "macaroni",
    "macaroni2": "macaroni",
    **{f"pcb{number}": "printed circuit board" for number in range(1, 5)},
}
MTD_WORD, KSDD2_WORD = "magnetic tile", "metal surface"
MTD_EMPTY_MASKS = "MT_Uneven"  # the published set has four there
KSDD2_TRAIN = (246, 2085)  # defective and good images of the published training split


def word(folder: Path) -> str:
    """What the prompts call the parts in a category's folder."""
    name = folder.resolve().name
    return WORDS.get(name, name.replace("_", " "))


def images_in(folder: Path) -> list[Path]:
    """The folder's image files, sorted; hidden ones (`._x.png`) are none."""
    if not folder.is_dir():
        return []
    return sorted(
        p
        for p in folder.iterdir()
        if p.suffix.lower() in SUFFIXES and not p.name.startswith(".") and p.is_file()
    )


def folders_in(folder: Path) -> list[Path]:
    """The folder's folders, sorted, without hidden ones."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def mvtec(root: Path, category: str | None = None) -> Listing:
    """One category folder, or a folder of category folders (each named by its folder)."""
    inner = root / "1cls"
    root = inner if not _is_category(root) and _categories(inner) else root
    if _is_category(root):
        return mvtec_category(root, category or word(root))
    parts = [mvtec_category(f, category or word(f)) for f in _categories(root)]
    return _join("mvtec", parts)


def mvtec_category(root: Path, category: str) -> Listing:
    """The test split of one category folder; without one, the good images of its training split."""
    train = images_in(root / "train" / GOOD)
    if not (root / "test").is_dir():
        items = [_item(root, p, GOOD, category, None) for p in train]
        note = f"{root} has no folder test/: its good training images are taken instead"
        return Listing("mvtec", items, notes=[note])
    return _with_masks("mvtec", root, folders_in(root / "test"), category, train)


def visa(root: Path, category: str | None = None) -> Listing:
    """VisA as published; `root` may be one of its category folders."""
    only = None
    if not _visa_table(root).is_file():
        root, only = root.resolve().parent, root.resolve().name
    images: list[LabelledImage] = []
    train: list[Path] = []
    problems = []
    with _visa_table(root).open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"object", "split", "label", "image", "mask"} <= set(rows[0]):
        raise DatasetError(
            f"{_visa_table(root)} does not have the columns object, split, label, image and mask: "
            "take it from the published archive."
        )
    for row in rows:
        if only not in (None, row["object"]):
            continue
        path = root / row["image"]
        if not path.is_file():
            problems.append((path, "is listed in 1cls.csv, but there is no such file"))
            continue
        if row["split"] != "test":
            train.append(path)
            continue
        good = row["label"] == "normal"
        mask = root / row["mask"] if row["mask"] and not good else None
        name = f"{path.parent.name}/{path.name}"
        prompt = category or word(Path(row["object"]))
        if mask is not None and not mask.is_file():
            mask = None
        if mask is None and not good:
            problems.append((path, "has no mask"))
        images.append(
            LabelledImage(
                name, GOOD if good else "anomaly", prompt, path, mask, group=row["object"]
            )
        )
    return Listing("visa", images, train, problems)


def mtd(root: Path, category: str | None = None) -> Listing:
    """The magnetic tiles; all of them are the test split."""
    images, problems = [], []
    for folder in _mtd_folders(root):
        defect = GOOD if folder.name == "MT_Free" else folder.name.removeprefix("MT_")
        files = images_in(folder / "Imgs")
        masks = {p.stem: p for p in files if p.suffix.lower() == ".png"}
        pictures = [p for p in files if p.suffix.lower() in (".jpg", ".jpeg", ".bmp")]
        for path in pictures:
            mask = masks.pop(path.stem, None)
            if defect == GOOD:
                mask = None
            elif mask is None:
                problems.append((path, "has no mask"))
            name = f"{folder.name}/{path.name}"
            prompt = category or MTD_WORD
            images.append(
                LabelledImage(name, defect, prompt, path, mask, group="mtd", mask_above=127)
            )
        problems += [(p, "is a mask without an image") for p in masks.values()]
    return Listing("mtd", images, problems=problems)


def ksdd2(root: Path, category: str | None = None) -> Listing:
    """KolektorSDD2's test split, and its training split's images; or a folder that is a split."""
    split = root if _is_ksdd2_split(root) else root / "test"
    train = [] if split == root else [p for p, _ in _ksdd2_pairs(root / "train", [], [])]
    problems: list[tuple[Path, str]] = []
    notes: list[str] = []
    pairs = _ksdd2_pairs(split, problems, notes)
    with ThreadPoolExecutor(4) as pool:
        empty = list(pool.map(_is_empty, (mask for _, mask in pairs)))
    images = []
    for (path, mask), good in zip(pairs, empty, strict=True):
        defect = GOOD if good else "defect"
        prompt = category or KSDD2_WORD
        shown = None if good else mask
        name = f"{split.name}/{path.name}"
        images.append(LabelledImage(name, defect, prompt, path, shown, group="ksdd2"))
    good_count = sum(empty)
    if split != root and (len(images) - good_count, good_count) == KSDD2_TRAIN:
        problems.append((split, "holds what was published as the training split: swap the two"))
    return Listing("ksdd2", images, train, problems, notes)


def folder(root: Path, category: str | None = None) -> Listing:
    """A user's own images, with as much truth as there is."""
    direct = images_in(root)
    prompt = category or "object"
    inner = [f for f in folders_in(root) if f.name != MASKS and images_in(f)]
    if direct and inner:
        raise DatasetError(
            f"{root} holds images and folders of images: put good parts into good/ and each kind "
            "of defect into a folder of its own."
        )
    if direct:
        note = f"every image in {root} is taken for good, since there are no folders of defects"
        return Listing("folder", [_item(root, p, GOOD, prompt, None) for p in direct], notes=[note])
    return _with_masks("folder", root, inner, prompt, [])


LAYOUTS: dict[str, Callable[[Path, str | None], Listing]] = {
    "mvtec": mvtec,
    "visa": visa,
    "mtd": mtd,
    "ksdd2": ksdd2,
    "folder": folder,
}


def detect(root: Path) -> str | None:
    """The layout of a folder, a key of `LAYOUTS`; None if it has none of them."""
    if _visa_table(root).is_file() or (
        (root / "Data" / "Images").is_dir() and _visa_table(root.resolve().parent).is_file()
    ):
        return "visa"
    if _mtd_folders(root):
        return "mtd"
    if _is_ksdd2_split(root) or _is_ksdd2_split(root / "test"):
        return "ksdd2"
    if _is_category(root) or _categories(root) or _categories(root / "1cls"):
        return "mvtec"
    if images_in(root) or any(images_in(f) for f in folders_in(root)):
        return "folder"
    return None


def _is_category(root: Path) -> bool:
    return (root / "test").is_dir() or (root / "train" / GOOD).is_dir()


def _categories(root: Path) -> list[Path]:
    return [f for f in folders_in(root) if (f / "test").is_dir()]


def _visa_table(root: Path) -> Path:
    return root / "split_csv" / "1cls.csv"


def _mtd_folders(root: Path) -> list[Path]:
    return [f for f in folders_in(root) if f.name.startswith("MT_") and (f / "Imgs").is_dir()]


def _is_ksdd2_split(root: Path) -> bool:
    return root.is_dir() and next(root.glob("*_GT.png"), None) is not None


def _ksdd2_pairs(
    split: Path, problems: list[tuple[Path, str]], notes: list[str]
) -> list[tuple[Path, Path]]:
    files = {p.stem: p for p in images_in(split)}
    # The published archive has a stray second copy of one pair.
    copies = sorted(stem for stem in files if stem.endswith((" (copy)", "(copy)")))
    if copies:
        notes.append(f"{', '.join(files.pop(stem).name for stem in copies)} left out: stray copies")
    masks = {stem: files.pop(stem) for stem in sorted(files) if stem.endswith("_GT")}
    pairs = []
    for stem, path in files.items():
        mask = masks.pop(f"{stem}_GT", None)
        if mask is None:
            problems.append((path, "has no mask, so nobody knows whether it is good"))
        else:
            pairs.append((path, mask))
    problems += [(p, "is a mask without an image") for p in masks.values()]
    return pairs


def _is_empty(path: Path) -> bool:
    mask = read_mask(path)
    if mask is None:
        raise DatasetError(f"The mask {path} cannot be read: copy it again.")
    return not mask.any()


def _with_masks(
    layout: str, root: Path, defects: Iterable[Path], category: str, train: list[Path]
) -> Listing:
    """A folder of images for every defect, masks of the same stem in ground_truth/<defect>."""
    images = []
    problems: list[tuple[Path, str]] = []
    unused = {f.name for f in folders_in(root / MASKS)}
    for place in defects:
        good = place.name.lower() in GOOD_NAMES if layout == "folder" else place.name == GOOD
        masks = {} if good else {p.stem: p for p in images_in(root / MASKS / place.name)}
        unused.discard(place.name)
        claimed = set()
        for path in images_in(place):
            stem = f"{path.stem}_mask" if f"{path.stem}_mask" in masks else path.stem
            mask = None if good else masks.get(stem)
            claimed.add(stem)
            if mask is None and not good:
                wanted = root / MASKS / place.name / f"{path.stem}_mask.png"
                problems.append((path, f"has no mask {wanted}"))
            images.append(_item(root, path, GOOD if good else place.name, category, mask))
        problems += [
            (mask, "is a mask without an image")
            for stem, mask in masks.items()
            if stem not in claimed
        ]
    problems += [
        (root / MASKS / name, "holds masks of a defect that has no images")
        for name in sorted(unused - {GOOD})
    ]
    return Listing(layout, images, train, problems)


def _item(root: Path, path: Path, defect: str, category: str, mask: Path | None) -> LabelledImage:
    name = f"{defect}/{path.name}"
    return LabelledImage(name, defect, category, path, mask, group=root.resolve().name)


def _join(layout: str, parts: Iterable[Listing]) -> Listing:
    total = Listing(layout, [])
    for part in parts:
        total.images.extend(part.images)
        total.train.extend(part.train)
        total.problems.extend(part.problems)
        total.notes.extend(part.notes)
    return total
