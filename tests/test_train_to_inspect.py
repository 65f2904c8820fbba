"""The whole way of a user: train UMCI, evaluate it, export a bundle, inspect an image with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from training_files import write_dataset, write_weights

from clipsam.export.build_engines import main as export
from clipsam.research.evaluate import main as evaluate
from clipsam.research.train import main as train
from clipsam.runtime import ClipSAM
from clipsam.runtime.cli import main as clipsam
from clipsam.runtime.files import sha256


def figures(path: Path) -> dict[str, float]:
    """The mean row of a table that `evaluate --json` wrote, or its only row."""
    table = json.loads(path.read_text())
    rows = table["rows"] if isinstance(table, dict) else table
    return {name: v for name, v in rows[0].items() if name in ("auroc", "ap", "f1_max", "pro")}


@pytest.mark.slow
def test_train_evaluate_export_inspect(tmp_path: Path) -> None:
    """With random CLIP and SAM weights: every step takes what the one before has written, and the
    bundle measures what the PyTorch model measures."""
    data = write_dataset(tmp_path / "data", "mvtec", 4)
    files = write_weights(tmp_path / "weights")
    clip, sam = files / "clip.safetensors", files / "sam.safetensors"
    run = tmp_path / "run"
    umci = run / "umci.safetensors"
    arguments = ["--preset", "tiny", "--data_path", str(data), "--save_path", str(run)]
    few = ["--clip_weights", str(clip), "--epoch", "1", "--batch_size", "2", "--workers", "0"]
    # So slow that the map stays the noise around 0.5 it is at first: on random features the first
    # thing learned is that nothing is a defect, and without a prompt the export cannot check SAM.
    assert train([*arguments, *few, "--learning_rate", "1e-6", "--device", "cpu"]) == 0

    weights = ["--clip_weights", str(clip), "--sam_weights", str(sam), "--umci_weights", str(umci)]
    json_torch, json_bundle = tmp_path / "torch.json", tmp_path / "bundle.json"
    assert evaluate(["--torch", "tiny", str(data), *weights, "--json", str(json_torch)]) == 0

    bundle = tmp_path / "bundle"
    flags = [word.replace("_", "-") if word.startswith("--") else word for word in weights]
    assert export([*flags, "--threads", "1", "--output", str(bundle)]) == 0
    with ClipSAM.open(bundle) as model:
        assert sha256(umci) in json.dumps(model.bundle.manifest.provenance)
    assert evaluate([str(bundle), str(data), "--json", str(json_bundle)]) == 0
    assert figures(json_torch)
    assert figures(json_bundle) == pytest.approx(figures(json_torch), abs=0.01)

    image = next((data / "metal_nut" / "test" / "bent").iterdir())
    out = tmp_path / "out"
    assert clipsam(["inspect", str(bundle), str(image), "--output", str(out)]) == 0
    (line,) = (out / "results.jsonl").read_text().splitlines()
    assert json.loads(line)["verdict"] in ("good", "anomalous")
    assert list(out.rglob("*.overlay.png"))
