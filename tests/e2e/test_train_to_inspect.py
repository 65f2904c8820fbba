"""The whole way of a user, in one layout (`whole_way.py` goes it in all): train, killed and resumed
on one and on two processes; evaluate, export, inspect."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.whole_way import whole_way

from clipsam.research.models.presets import PRESETS, Preset


@pytest.mark.slow
def test_a_trained_model_is_evaluated_exported_and_inspects(
    small_preset: Preset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs of the same steps end with the same weights: exactly the same on one process, within
    1e-6 on two (only the order of additions differs); the bundle measures what PyTorch does."""
    # A smaller SAM, which is not trained here: its nodes cost time.
    monkeypatch.setitem(PRESETS, "tiny", replace(PRESETS["tiny"], sam=small_preset.sam))
    threads = torch.get_num_threads()
    try:
        found = whole_way("mvtec", tmp_path)
    finally:
        torch.set_num_threads(threads)
    assert found.one == 0
    assert found.two < 1e-6
    assert found.moved > 1e-4  # the runs did learn: a hundred times further than they may differ
    assert found.bundle < 0.01
