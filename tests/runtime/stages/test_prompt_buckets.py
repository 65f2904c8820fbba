"""Padded prompts: the same answers, and only shapes that a warm-up has met."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.toy_bundle import SAM_SIZE, build_toy_bundle

from clipsam.runtime import ClipSAM
from clipsam.runtime.backends.base import Array, Session, SessionWrapper
from clipsam.runtime.bundle import Bundle
from clipsam.runtime.ops.geometry import Geometry
from clipsam.runtime.stages.prompt_buckets import bucket, calls
from clipsam.runtime.stages.prompts import Prompts
from clipsam.runtime.stages.sam import Embedding, Segmenter


class Counting(SessionWrapper):
    """A session that notes how many prompts it was asked."""

    def __init__(self, inner: Session, provider: str) -> None:
        super().__init__(inner)
        self.provider, self.counts = provider, list[int]()

    def _run(self, feeds: Mapping[str, Array], wanted: Sequence[str]) -> dict[str, Array]:
        self.counts.append(len(feeds.get("point_labels", ())))
        return super()._run(feeds, wanted)


def _prompts(count: int) -> Prompts:
    rng = np.random.default_rng(count)
    corners = np.sort(rng.random((count, 2, 2)) * 100, axis=1)
    points = rng.random((count, 5, 2)) * 100
    boxes = corners.reshape(count, 4).astype(np.float32)
    return Prompts(0.9, 0.5, boxes, points.astype(np.float32), ())


@pytest.mark.parametrize(
    ("count", "sizes"),
    [(1, [1]), (2, [4]), (4, [4]), (5, [16]), (16, [16]), (17, [16, 1]), (37, [16, 16, 16])],
)
def test_prompts_are_padded_to_a_few_numbers(count: int, sizes: list[int]) -> None:
    found = list(calls(count))
    assert [size for _, size in found] == sizes
    every = list(range(count))
    assert [i for part, _ in found for i in every[part]] == every


@pytest.mark.parametrize("count", [1, 3, 7, 16, 21])
def test_answers_are_those_without_padding(tiny_bundle: Path, count: int) -> None:
    """The trained decoder on a CPU. Not always the same bits: a product of more rows may be summed
    in another order."""
    with ClipSAM.open(tiny_bundle, threads=1, precision="fp32") as model:
        decoder = model.sessions["sam_decoder"]
        spec = decoder.inputs["embedding"]
        values = (
            np.random.default_rng(0).normal(size=tuple(map(int, spec.shape))).astype(np.float32)
        )
        side = int(model.sessions["sam_encoder"].inputs["image"].shape[1])
        embedding = Embedding(values, Geometry(100, 100, side))
        exact = Segmenter(model.sessions["sam_encoder"], Counting(decoder, "cpu"))
        padded = Segmenter(model.sessions["sam_encoder"], Counting(decoder, "tensorrt"))
        wanted, found = (s.decode(embedding, _prompts(count)) for s in (exact, padded))
    assert exact.decoder.counts == [count]  # type: ignore[attr-defined]
    assert padded.decoder.counts == [size for _, size in calls(count)]  # type: ignore[attr-defined]
    assert found.logits.shape == wanted.logits.shape
    largest = float(np.abs(wanted.logits).max())
    np.testing.assert_allclose(found.logits, wanted.logits, atol=2e-6 * largest)
    np.testing.assert_allclose(found.scores, wanted.scores, atol=2e-6)


@pytest.mark.parametrize(
    ("provider", "most", "counts"),
    [("tensorrt", 16, [1, 1, 4, 16, 1]), ("tensorrt", 3, [1, 1, 4, 1]), ("cpu", 16, [1, 1])],
)
def test_the_warm_up_meets_every_number(
    tmp_path: Path, provider: str, most: int, counts: list[int]
) -> None:
    with ClipSAM.open(build_toy_bundle(tmp_path / "toy"), threads=1) as model:
        decoder = Counting(model.sessions["sam_decoder"], provider)
        options = replace(model.bundle.manifest.prompts, max_boxes=most)
        manifest = replace(model.bundle.manifest, prompts=options)
        bundle = Bundle(model.bundle.folder, manifest, model.bundle.id)
        spied = ClipSAM(bundle, {**model.sessions, "sam_decoder": decoder})
        spied.warm_up()
        assert decoder.counts == counts
        met = set(counts)
        image = np.full((SAM_SIZE, SAM_SIZE, 3), 30, np.uint8)
        for i in range(min(most, 5)):  # as many defects, each a square
            image[8:16, 8 + 24 * i : 20 + 24 * i] = 250
        result = spied.inspect(image)
        assert result.prompts == min(most, 5)
        assert provider == "cpu" or bucket(result.prompts) in met
        assert decoder.counts[-1] == (5 if provider == "cpu" else bucket(result.prompts))
