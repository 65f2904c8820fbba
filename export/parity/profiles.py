"""The sizes that engines take along a graph's free axes."""

from __future__ import annotations

from collections.abc import Mapping

from clipsam.runtime.backends.trt.sidecar import Profile
from clipsam.runtime.manifest import GraphEntry, Manifest
from clipsam.runtime.ops.resize_bands import widest
from clipsam.runtime.stages.prepare import LONGEST
from clipsam.runtime.stages.prompt_buckets import BUCKETS, bucket

BATCH = (1, 1, 8)  # smallest, fastest, largest
BOX_POINTS = 2  # a prompt's corners, beside its points
FASTEST = 2448  # pixels a side of a picture, of a camera with 5 megapixels

Sizes = Mapping[str, tuple[int, int, int]]


def axis_sizes(manifest: Manifest) -> Sizes:
    """Free axis -> (smallest, fastest, largest) size.

    A bundle asks every prompt with the same number of points, so that axis has one size.
    """
    options = manifest.prompts
    sides = {"clip": manifest.clip_image_size, "sam": manifest.sam_image_size}
    points = options.num_points + BOX_POINTS
    largest = bucket(options.max_boxes)
    return {
        "batch": BATCH,
        "prompts": (BUCKETS[0], min(BUCKETS[1], largest), largest),
        "points": (points, points, points),
        "height": (1, FASTEST, LONGEST),
        "width": (1, FASTEST, LONGEST),
        **{
            f"{graph}_{axis}_reach": (1, widest(FASTEST, side), widest(LONGEST, side))
            for graph, side in sides.items()
            for axis in ("columns", "rows")
        },
    }


def graph_profiles(entry: GraphEntry, sizes: Sizes) -> dict[str, Profile]:
    """The profile of every input of a graph that has a free axis.

    Raises KeyError for a free axis that `sizes` does not know.
    """
    return {
        spec.name: Profile(
            *(
                tuple(sizes[axis][bound] if isinstance(axis, str) else axis for axis in spec.shape)
                for bound in range(3)
            )
        )
        for spec in entry.inputs
        if any(isinstance(axis, str) for axis in spec.shape)
    }
