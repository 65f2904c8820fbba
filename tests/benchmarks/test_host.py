"""`bench_host.py` times the pipeline's own steps, and with `prepare` none of them is a resize."""

from __future__ import annotations

from collections.abc import Callable

import bench_host
import numpy as np
import pytest
from harness import host
from harness.planted import picture

from clipsam.runtime.stages import rough_map, sam

SMALL = {"small": (200, 300), "tall": (333, 120)}


@pytest.fixture(autouse=True)
def once(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(call: Callable[[], object], clock: object = None) -> list[float]:
        call()
        return [1.0]

    for module in (host, bench_host):
        monkeypatch.setattr(module, "times_ms", run)
        monkeypatch.setattr(module, "SIZES", SMALL)


@pytest.mark.parametrize("boxes", [1, 4, 16])
def test_stand_ins_find_the_defects_that_are_planted(boxes: int) -> None:
    image = picture(300, 400)
    for prepares in (False, True):
        model = host.answering(300, 400, boxes, prepares=prepares)
        result = model.inspect(image)
        assert (result.prompts, result.verdict, result.refined) == (boxes, "anomalous", True)
        assert len(result.regions) == boxes
        fused = np.unique(result.score_map.round(3))
        assert fused[-1] > 0.8  # map and masks lie on each other
        assert host.answering(300, 400, 0, prepares=prepares).inspect(image).verdict == "good"


def test_after_means_without_the_hosts_resizes(monkeypatch: pytest.MonkeyPatch) -> None:
    model = host.answering(300, 400, 2, prepares=True)
    monkeypatch.delattr(rough_map, "clip_input")
    monkeypatch.delattr(sam, "sam_input")
    assert model.inspect(picture(300, 400)).prompts == 2


def test_the_table_has_every_step_and_size(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_host.main(["--boxes", "2"]) == 0
    out = capsys.readouterr().out
    for row in ("CLIP's picture", "SAM's picture", "masks at the picture's size", "a good part"):
        assert row in out
    assert out.count("1.0 to 1.0") == 3 * len(SMALL)
    assert all(name in out for name in SMALL)
