"""Makes what `golden.py` keeps: the float32 graphs, run when a bundle is built."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipsam.export.parity.golden import Case, GoldenOutputs
from clipsam.export.parity.inspection import Picture, Remembering
from clipsam.export.parity.profiles import BOX_POINTS, axis_sizes
from clipsam.runtime.backends.base import Session, check_finite, open_session
from clipsam.runtime.bundle import GRAPHS, Bundle
from clipsam.runtime.images.image import Image
from clipsam.runtime.ops.geometry import Geometry
from clipsam.runtime.pipeline import ClipSAM
from clipsam.runtime.stages.preprocess import clip_input, sam_input
from clipsam.runtime.stages.prompts import (
    BOX_BOTTOM_RIGHT,
    BOX_TOP_LEFT,
    PromptOptions,
    find_prompts,
)
from clipsam.runtime.stages.rough_map import rough_map
from clipsam.runtime.stages.sam import Segmenter

LARGEST = 512  # pixels a side of the user's: of a photograph the maps alone would be gigabytes

# An image by name, its category, and how its prompts are found.
Asked = tuple[str, Image, str, PromptOptions]


@contextmanager
def open_all(bundle: Bundle, threads: int | None = None) -> Iterator[dict[str, Session]]:
    """The float32 graphs of a bundle, on the CPU."""
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(open_session(bundle.graph_path(name), "cpu", threads))
            for name in GRAPHS
        }


def make_golden(
    bundle: Bundle,
    sessions: Mapping[str, Session],
    asked: Sequence[Asked],
    own: Sequence[Asked] = (),
    progress: Callable[[], object] = lambda: None,
) -> GoldenOutputs:
    """Run the float32 graphs, opened as `sessions`, on noise, on the pictures `asked` and on the
    user's `own`.

    Calls `progress` `golden_steps` times.
    """
    cases = []
    embeddings: list[NDArray[Any]] = []
    inputs = chain(
        ((False, *found) for found in _inputs(bundle, asked, embeddings)),
        ((True, *found) for found in _own_inputs(bundle, own)),
    )
    for is_own, graph, name, feeds in inputs:
        outputs = sessions[graph].run(feeds)
        check_finite(outputs, *outputs)
        cases.append(Case(graph, name, feeds, outputs, is_own))
        embeddings += [outputs["embedding"]] if graph == "sam_encoder" else []
        progress()
    pictures, roughs = [], []
    remembering = {name: Remembering(session) for name, session in sessions.items()}
    for one in (*asked, *own):
        picture, rough = _inspect(bundle, remembering, one)
        pictures.append(picture)
        roughs.append(rough)
        progress()
    return GoldenOutputs(tuple(cases), tuple(pictures), tuple(roughs), len(own))


def golden_steps(asked: Sequence[object], own: Sequence[object] = ()) -> int:
    """How often `make_golden` reports progress."""
    return 6 + len(asked) + (3 + len(own) if own else 0)


def _inputs(
    bundle: Bundle, asked: Sequence[Asked], embeddings: list[NDArray[Any]]
) -> Iterator[tuple[str, str, dict[str, NDArray[Any]]]]:
    """(graph, name, feeds); the decoder is fed the embeddings, which are there by then."""
    rng = np.random.default_rng(0)
    manifest = bundle.manifest
    sizes = axis_sizes(manifest)
    size, images = manifest.clip_image_size, [image for _, image, *_ in asked]
    largest = sizes["batch"][2]
    noise = rng.integers(0, 256, (1, size, size, 3), np.uint8)
    feeds = _clip_batch(bundle, images, largest)
    yield "clip_umci", "noise", {"image": noise, "text": feeds["text"][:1]}
    yield "clip_umci", f"{largest} pictures", feeds

    side = manifest.sam_image_size
    frame = rng.integers(0, 256, (1, side, side, 3), np.uint8)
    yield "sam_encoder", "noise", {"image": frame, "valid_size": np.array([side, side])}
    wide = max(images, key=lambda image: image.shape[1] / image.shape[0])
    padded, valid = sam_input(wide, Geometry(wide.shape[0], wide.shape[1], side))
    yield "sam_encoder", "wide picture", {"image": padded, "valid_size": valid}

    smallest, _, most = sizes["prompts"]
    for count, embedding in zip((smallest, most), embeddings, strict=True):
        points = manifest.prompts.num_points + BOX_POINTS
        labels = np.ones((count, points), np.float32)
        labels[:, -BOX_POINTS:] = BOX_TOP_LEFT, BOX_BOTTOM_RIGHT
        yield (
            "sam_decoder",
            f"{count} prompts",
            {
                "embedding": embedding,
                "point_coords": (rng.random((count, points, 2)) * (side - 1)).astype(np.float32),
                "point_labels": labels,
            },
        )


def _own_inputs(
    bundle: Bundle, own: Sequence[Asked]
) -> Iterator[tuple[str, str, dict[str, NDArray[Any]]]]:
    """(graph, name, feeds) of the graphs that have int8."""
    if not own:
        return
    images = [image for _, image, *_ in own]
    for count in axis_sizes(bundle.manifest)["batch"][::2]:
        yield "clip_umci", f"{count} of the user's", _clip_batch(bundle, images, count)
    side = bundle.manifest.sam_image_size
    frame, valid = sam_input(images[0], Geometry(images[0].shape[0], images[0].shape[1], side))
    yield "sam_encoder", "the user's", {"image": frame, "valid_size": valid}


def _clip_batch(bundle: Bundle, images: Sequence[Image], count: int) -> dict[str, NDArray[Any]]:
    """`count` of the images, each with a category, both in turn."""
    size, categories = bundle.manifest.clip_image_size, bundle.manifest.categories
    return {
        "image": np.concatenate([clip_input(images[i % len(images)], size) for i in range(count)]),
        "text": np.stack([bundle.text(categories[i % len(categories)]) for i in range(count)]),
    }


def _inspect(
    bundle: Bundle, sessions: Mapping[str, Session], asked: Asked
) -> tuple[Picture, NDArray[np.float32]]:
    name, image, category, options = asked
    manifest = replace(bundle.manifest, prompts=options)
    model = ClipSAM(Bundle(bundle.folder, manifest, bundle.id), dict(sessions))
    result = model.inspect(image, category, norm="fixed")
    rough = rough_map(sessions["clip_umci"], image, bundle.text(category))
    prompts = find_prompts(rough, options)
    masks = np.zeros((0, *image.shape[:2]), np.bool_)
    scores = np.zeros((0, model.masks_per_box), np.float32)
    if len(prompts):
        segmenter = Segmenter(sessions["sam_encoder"], sessions["sam_decoder"])
        found = segmenter.decode(segmenter.encode(image), prompts)
        masks, scores = np.stack([mask for mask, _ in found.binary()]), found.scores
    picture = Picture(
        name, image, category, options, prompts, masks, scores, result.score_map, result.verdict
    )
    return picture, rough
