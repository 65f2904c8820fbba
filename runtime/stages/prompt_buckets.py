"""How many prompts a GPU's decoder is asked at once: a few numbers that it has met before.

A GPU prepares every new shape: TensorRT an execution context and a CUDA graph, ONNX Runtime its
kernels and memory. A part with seven defects must not be the one that pays for the number seven. So
prompts are padded to the next of three numbers and the answers to the padding dropped; more than
the largest go in several calls. Prompts do not see each other, so answers are those without padding
up to the rounding of sums in another order. A CPU prepares nothing, and padding would cost it time.
"""

from __future__ import annotations

from collections.abc import Iterator

BUCKETS = (1, 4, 16)


def bucket(count: int) -> int:
    """The number that `count` prompts are padded to; the largest for more than that."""
    return next((size for size in BUCKETS if count <= size), BUCKETS[-1])


def calls(count: int) -> Iterator[tuple[slice, int]]:
    """For `count` prompts, which of them go into each call, and how many that is with padding."""
    for start in range(0, count, BUCKETS[-1]):
        end = min(start + BUCKETS[-1], count)
        yield slice(start, end), bucket(end - start)
