"""`python -m clipsam.research.train` from the outside: refused, killed, resumed, shared out.

All with random CLIP weights on procedural images: what is proved is the machinery, not a quality.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_files import (
    descendants,
    start_training,
    train_arguments,
    write_dataset,
    write_weights,
)

from clipsam.research.file_lock import locked
from clipsam.research.presets import PRESETS
from clipsam.research.processes import FabricProcesses, OneProcess, share_of
from clipsam.research.train import _parser, main
from clipsam.research.training_data import epoch_ends
from clipsam.research.training_log import read_log
from clipsam.research.weights import load_umci
from clipsam.runtime.errors import ClipSAMError


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As the processes that the tests start: sums then have one order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data"), "mvtec")


def last(save: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(save / "umci" / "last.pt", weights_only=True)
    return state


def kill_after_first_checkpoint(arguments: list[str], save: Path, processes: int = 1) -> None:
    """Start the command, and SIGKILL all its processes once there is a checkpoint."""
    run = start_training(arguments, processes)
    deadline = time.monotonic() + 600
    while not (save / "umci" / "last.pt").exists():
        assert run.poll() is None, run.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    for pid in [*descendants(run.pid), run.pid]:  # torchrun's workers first
        os.kill(pid, signal.SIGKILL)
    output, _ = run.communicate()
    assert run.returncode == -signal.SIGKILL, output


def difference(a: dict[str, Any], b: dict[str, Any]) -> float:
    """The largest absolute difference of two checkpoints' weights."""
    assert a["module"].keys() == b["module"].keys()
    return max(float((a["module"][n] - b["module"][n]).abs().max()) for n in a["module"])


def test_the_defaults_are_the_papers() -> None:
    """Sec. 4, implementation details; the stage weights are held by tests/test_umci.py."""
    args = _parser().parse_args(["--save_path", "x"])
    assert (args.learning_rate, args.batch_size, args.epoch) == (1e-4, 8, 6)
    assert (args.preset, args.augment, args.precision) == ("paper", [], "fp32")


@pytest.mark.parametrize("layout", ["mvtec", "visa", "mtd", "ksdd2"])
def test_a_run_on_each_layout(layout: str, weights: Path, tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", layout, 6)
    arguments = train_arguments(weights, data, tmp_path / "run", "--dataset", layout)
    assert main([*arguments, "--epoch", "2", "--batch_size", "2"]) == 0
    load_umci(PRESETS["tiny"], tmp_path / "run" / "umci.safetensors")
    rows = read_log(tmp_path / "run" / "umci" / "log.jsonl")
    assert [row["step"] for row in rows] == [3, 6]  # a row each epoch
    assert all(np.isfinite(row["loss"]) for row in rows)
    assert (tmp_path / "run" / "umci" / "curves.png").exists()
    cached = np.load(next((tmp_path / "run" / "features").glob("*/masks.npy")))
    assert cached.any(axis=(1, 2)).sum() == 3  # three of the six have a defect


@pytest.mark.slow
def test_killed_and_resumed_on_one_and_on_two_processes(
    weights: Path, data: Path, tmp_path: Path, one_thread: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Runs of the same 12 steps end with the same weights: exactly the same on one process, within
    1e-6 on two (gloo on the CPU, where only the order of additions differs)."""

    def arguments(name: str) -> list[str]:
        cache = ["--cache_path", str(tmp_path / "features")]
        return train_arguments(weights, data, tmp_path / name, "--epoch", "6", *cache)

    assert main(arguments("whole")) == 0
    whole = last(tmp_path / "whole")
    assert whole["step"] == 12
    kill_after_first_checkpoint(arguments("one"), tmp_path / "one")
    assert last(tmp_path / "one")["step"] < 12
    capsys.readouterr()
    assert main(arguments("one")) == 0
    assert "from the cache" in capsys.readouterr().out
    torch.testing.assert_close(last(tmp_path / "one"), whole, rtol=0, atol=0)
    logs = [read_log(tmp_path / name / "umci" / "log.jsonl") for name in ("whole", "one")]
    assert [row["step"] for row in logs[0]] == [2, 4, 6, 8, 10, 12]
    assert [row["loss"] for row in logs[0]] == [row["loss"] for row in logs[1]]

    kill_after_first_checkpoint(arguments("two"), tmp_path / "two", processes=2)
    assert last(tmp_path / "two")["step"] < 12
    resumed = start_training(arguments("two"), processes=2)
    output, _ = resumed.communicate(timeout=600)
    assert resumed.returncode == 0, output
    assert last(tmp_path / "two")["step"] == 12
    assert difference(last(tmp_path / "two"), whole) < 1e-6
    load_umci(PRESETS["tiny"], tmp_path / "two" / "umci.safetensors")
    # The runs did learn: weights moved a hundred times further than they may differ.
    assert difference(_untrained(weights, data, tmp_path), whole) > 1e-4


def _untrained(weights: Path, data: Path, folder: Path) -> dict[str, Any]:
    """The state a run starts from: a run with a learning rate of nothing."""
    arguments = train_arguments(weights, data, folder / "still", "--epoch", "1")
    assert main([*arguments, "--learning_rate", "0", "--no_cache"]) == 0
    return last(folder / "still")


def test_cached_features_train_like_computed_ones(
    weights: Path, data: Path, tmp_path: Path
) -> None:
    """float16 in the cache moves the weights by far less than training does."""
    states = []
    for name, more in (("cached", []), ("computed", ["--no_cache"])):
        arguments = train_arguments(weights, data, tmp_path / name, "--epoch", "2", *more)
        assert main(arguments) == 0
        states.append(last(tmp_path / name))
    still = _untrained(weights, data, tmp_path)
    assert not (tmp_path / "computed" / "features").exists()

    def norm(a: dict[str, Any], b: dict[str, Any]) -> float:
        return float(sum((a["module"][n] - b["module"][n]).square().sum() for n in a["module"]))

    assert norm(*states) ** 0.5 < 0.1 * norm(states[0], still) ** 0.5


def test_two_runs_do_not_share_a_folder(
    weights: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "umci").mkdir()
    with locked(tmp_path / "umci" / "lock", lambda: None):
        assert main(train_arguments(weights, data, tmp_path)) == 1
    assert "Another process is training into" in capsys.readouterr().err


def test_a_batch_is_overfitted_or_the_command_fails(
    weights: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = train_arguments(weights, data, tmp_path / "run", "--overfit_batch")
    assert main([*arguments, "--overfit_steps", "25", "--learning_rate", "1e-3"]) == 0
    assert "can be overfitted" in capsys.readouterr().out
    assert main([*arguments, "--overfit_steps", "2", "--learning_rate", "0"]) == 1
    assert "could not be overfitted" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()  # it is a check only


def test_another_run_is_not_resumed(
    weights: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = train_arguments(weights, data, tmp_path / "run", "--epoch", "1")
    assert main(arguments) == 0
    assert main([*arguments, "--seed", "3"]) == 1
    assert "holds a run with seed 0, now it is 3" in capsys.readouterr().err
    assert main([*arguments, "--hidden_dim", "32"]) == 1
    assert "another --save_path" in capsys.readouterr().err
    assert main([*arguments, "--epoch", "2"]) == 0  # more of the same is no other run
    assert last(tmp_path / "run")["step"] == 4


def test_the_wrong_set_and_sets_without_masks(
    weights: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    visa = write_dataset(tmp_path / "visa", "visa", 2)
    arguments = train_arguments(weights, visa, tmp_path / "run")
    assert main([*arguments, "--dataset", "mvtec"]) == 1
    assert "looks like the layout visa, not like mvtec" in capsys.readouterr().err
    good = tmp_path / "good" / "test" / "good"
    good.mkdir(parents=True)
    image = next((data / "metal_nut" / "test" / "good").iterdir())
    (good / image.name).write_bytes(image.read_bytes())
    assert main(train_arguments(weights, tmp_path / "good", tmp_path / "run")) == 1
    assert "no defective image with a mask" in capsys.readouterr().err


def test_defects_without_masks_are_left_out(
    weights: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A whole kind of defect may have no masks; one mask among others may not be missing."""
    shutil.copytree(data, tmp_path / "data")
    category = tmp_path / "data" / "metal_nut"
    shutil.copytree(category / "test" / "bent", category / "test" / "torn")
    arguments = train_arguments(weights, tmp_path / "data", tmp_path / "run", "--epoch", "1")
    assert main(arguments) == 0
    output = capsys.readouterr().out
    assert "4 images without a mask are left out" in output
    assert "1 epochs of 8 images, 2 steps of 4 on 1 x cpu, fp32" in output
    mask = next((category / "ground_truth" / "bent").iterdir())
    mask.unlink()
    assert main(arguments) == 1
    assert mask.name.removesuffix("_mask.png") in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--dataset", "visa"], "--dataset visa needs --data_path"),
        (["--data_path", "x", "--augment", "flip"], "add --no_cache"),
        (["--dataset", "synthetic", "--augment", "flip", "--no_cache"], "varied already"),
    ],
)
def test_wrong_usage(
    more: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--save_path", str(tmp_path), *more])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_augmented_training_runs(weights: Path, data: Path, tmp_path: Path) -> None:
    more = ["--epoch", "1", "--no_cache", "--augment", "flip", "rotate", "colour"]
    assert main(train_arguments(weights, data, tmp_path, *more, "--precision", "bf16")) == 0


def test_epochs_end_where_their_last_image_is() -> None:
    assert epoch_ends(8, 3, 4) == (2, 4, 6)
    assert epoch_ends(5, 3, 4) == (2, 3)  # 15 images make 3 batches; the third epoch's end is lost
    assert epoch_ends(2, 4, 8) == (1,)


class Group(OneProcess):
    """One of several processes, as far as sharing out goes."""

    def __init__(self, rank: int, world: int) -> None:
        super().__init__()
        self.rank, self.world = rank, world


def test_a_batch_is_shared_out_evenly_or_refused() -> None:
    assert [share_of(8, Group(rank, 4)) for rank in range(4)] == [(0, 2), (2, 4), (4, 6), (6, 8)]
    with pytest.raises(ClipSAMError, match="shared out among 3: choose a multiple of 3"):
        share_of(8, Group(0, 3))


def test_fabric_is_named_when_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightning_fabric", None)
    with pytest.raises(ClipSAMError, match=r"pip install 'clipsam\[train\]'"):
        FabricProcesses("cpu")
