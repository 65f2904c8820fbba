"""What the float32 graphs say of a few inputs, kept in the bundle: engines are judged by it.

    golden.npz   `index` (JSON text) and the arrays it names, each once; nothing is pickled

The box that builds engines then needs neither PyTorch nor onnxruntime. Inputs are noise and
pictures, in the smallest and largest sizes that engines take; the pictures are inspected whole.
int8 is made for the user's images and judged on them alone, so those are in there where it is.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipsam.export.parity.inspection import Picture
from clipsam.export.precisions.recipes import RECIPES
from clipsam.runtime.core.errors import BundleError
from clipsam.runtime.core.files import write_bytes
from clipsam.runtime.stages.prompts import PromptOptions, find_prompts

GOLDEN = "golden.npz"
SCHEMA = 1

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Case:
    """One input of a graph and what float32 makes of it; `own`: made from the user's images."""

    graph: str
    name: str
    feeds: Arrays
    outputs: Arrays
    own: bool = False


@dataclass(frozen=True)
class GoldenOutputs:
    """The content of the file.

    Attributes:
      roughs: rough map [H,W] of every picture.
      own: how many of the pictures are the user's; they come last.
    """

    cases: tuple[Case, ...]
    pictures: tuple[Picture, ...]
    roughs: tuple[NDArray[np.float32], ...]
    own: int = 0

    def cases_for(self, graph: str, precision: str) -> tuple[Case, ...]:
        """What an engine of `graph` in `precision`, its file's own, is judged by."""
        own = RECIPES[precision].checked_on == "own"
        return tuple(case for case in self.cases if case.graph == graph and (case.own or not own))

    def pictures_for(self, precision: str) -> tuple[Picture, ...]:
        """What the three engines in `precision` are judged by."""
        own = RECIPES[precision].checked_on == "own"
        return self.pictures[len(self.pictures) - self.own :] if own else self.pictures


def write_golden(path: Path, golden: GoldenOutputs) -> None:
    """Write `golden.npz`; raises OutputError."""
    store = _Store()
    index = {
        "schema": SCHEMA,
        "own": golden.own,
        "cases": [
            {
                "graph": case.graph,
                "name": case.name,
                "own": case.own,
                "feeds": store.add_all(case.feeds),
                "outputs": store.add_all(case.outputs),
            }
            for case in golden.cases
        ],
        "pictures": [
            {
                "name": picture.name,
                "category": picture.category,
                "options": asdict(picture.options),
                "verdict": picture.verdict,
                "masks_shape": list(picture.masks.shape),
                "arrays": store.add_all(
                    {
                        "image": picture.image,
                        "rough": rough,
                        "boxes": picture.prompts.boxes,
                        "masks": np.packbits(picture.masks),
                        "scores": picture.scores,
                        "final": picture.final,
                    }
                ),
            }
            for picture, rough in zip(golden.pictures, golden.roughs, strict=True)
        ],
    }
    buffer = io.BytesIO()
    content: dict[str, Any] = {"index": np.array(json.dumps(index)), **store.arrays}
    np.savez_compressed(buffer, **content)
    write_bytes(path, buffer.getvalue())


def read_golden(folder: Path) -> GoldenOutputs:
    """The golden of the bundle in `folder`; raises BundleError."""
    path = folder / GOLDEN
    again = "build the bundle again with `python export/build_engines.py`"
    if not path.exists():
        raise BundleError(
            f"The bundle {folder} has no {GOLDEN}, by which engines are judged: {again}."
        )
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            index = json.loads(str(file["index"]))
            if index["schema"] != SCHEMA:
                raise ValueError(f"it has schema {index['schema']!r}, not {SCHEMA}")
            arrays = {name: file[name] for name in file.files if name != "index"}
        cases = tuple(
            Case(
                entry["graph"],
                entry["name"],
                {name: arrays[key] for name, key in entry["feeds"].items()},
                {name: arrays[key] for name, key in entry["outputs"].items()},
                bool(entry["own"]),
            )
            for entry in index["cases"]
        )
        found = [_picture(entry, arrays) for entry in index["pictures"]]
        own = int(index["own"])
    except Exception as error:  # zipfile, zlib, JSON and NumPy each have their own
        raise BundleError(f"{GOLDEN} cannot be read ({error}): {again}.") from error
    pictures, roughs = tuple(p for p, _ in found), tuple(rough for _, rough in found)
    return GoldenOutputs(cases, pictures, roughs, own)


def _picture(entry: Mapping[str, Any], arrays: Arrays) -> tuple[Picture, NDArray[np.float32]]:
    own = {name: arrays[key] for name, key in entry["arrays"].items()}
    options = PromptOptions(**entry["options"])
    prompts = find_prompts(own["rough"], options)  # its components are not worth storing
    if not np.array_equal(prompts.boxes, own["boxes"]):
        raise ValueError(f"the prompts of {entry['name']} are not found again")
    shape = tuple(entry["masks_shape"])
    count = int(np.prod(shape))
    masks = np.unpackbits(own["masks"], count=count).astype(np.bool_).reshape(shape)
    picture = Picture(
        entry["name"], own["image"], entry["category"], options, prompts, masks, own["scores"],
        own["final"], entry["verdict"],
    )  # fmt: skip
    return picture, own["rough"]


class _Store:
    """Arrays by key, each content once: a decoder's embedding is an encoder's output."""

    def __init__(self) -> None:
        self.arrays: dict[str, NDArray[Any]] = {}

    def add_all(self, arrays: Arrays) -> dict[str, str]:
        return {name: self._add(array) for name, array in arrays.items()}

    def _add(self, array: NDArray[Any]) -> str:
        header = f"{array.dtype}{array.shape}".encode()
        data = np.ascontiguousarray(array).tobytes()
        key = hashlib.sha256(header + data).hexdigest()[:16]
        self.arrays[key] = array
        return key
