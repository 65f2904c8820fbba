"""`python -m clipsam.research.train` from the outside: what it writes, what it refuses.

All with random CLIP weights on procedural images: what is proved is the machinery, not a quality.
That runs killed and resumed end alike, on one and on two processes:
tests/e2e/test_train_to_inspect.py.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.training_files import SIZE, train_arguments, write_dataset, write_weights
from support.whole_way import checkpoint

from clipsam.research.data.file_lock import locked
from clipsam.research.data.items import Batch, epoch_ends
from clipsam.research.models.checkpoints import (
    check_pair,
    load_clip,
    load_umci,
    save_weights,
    trained_preset,
)
from clipsam.research.models.presets import PRESETS
from clipsam.research.models.umci import UMCIStages
from clipsam.research.train import _parser, main
from clipsam.research.training.distributed import (
    FabricProcesses,
    Processes,
    share_of,
    start_processes,
)
from clipsam.research.training.log import read_log
from clipsam.research.training.umci_task import UmciTask
from clipsam.runtime.core.errors import ClipSAMError, ProviderError, WeightsError

pytestmark = pytest.mark.slow  # trains


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data"), "mvtec")


def test_the_defaults_are_the_papers() -> None:
    """Sec. 4, implementation details; tests/research/models/test_umci.py holds the stage
    weights."""
    args = _parser().parse_args(["--save_path", "x"])
    assert (args.learning_rate, args.batch_size, args.epoch) == (1e-4, 8, 6)
    assert (args.preset, args.augment, args.precision) == ("paper", [], "fp32")


@pytest.mark.parametrize("layout", ["mvtec", "visa", "visa_pytorch", "mtd", "ksdd2"])
def test_a_run_on_each_layout(layout: str, weights: Path, tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", layout, 6)
    of_set = layout.removesuffix("_pytorch")
    arguments = train_arguments(weights, data, tmp_path / "run", "--dataset", of_set)
    assert main([*arguments, "--epoch", "2", "--batch_size", "2"]) == 0
    umci = tmp_path / "run" / "umci.safetensors"
    preset, _ = trained_preset(PRESETS["tiny"], umci)
    assert preset.clip_image_size == SIZE
    load_umci(preset, umci)
    clip, _ = load_clip(preset, weights / "clip.safetensors")
    check_pair(preset, umci, clip, "of another file with the same tensors")
    rows = read_log(tmp_path / "run" / "umci" / "log.jsonl")
    assert [row["step"] for row in rows] == [3, 6]  # a row each epoch
    assert all(np.isfinite(row["loss"]) for row in rows)
    cached = np.load(next((tmp_path / "run" / "features").glob("*/masks.npy")))
    assert cached.any(axis=(1, 2)).sum() == 3  # three of the six have a defect


def _untrained(weights: Path, data: Path, folder: Path) -> dict[str, Any]:
    """The state a run starts from: a run with a learning rate of nothing."""
    arguments = train_arguments(weights, data, folder / "still", "--epoch", "1")
    assert main([*arguments, "--learning_rate", "0", "--no_cache"]) == 0
    return checkpoint(folder / "still")


def test_cached_features_train_like_computed_ones(
    weights: Path, data: Path, tmp_path: Path
) -> None:
    """float16 in the cache moves the weights by far less than training does."""
    states = []
    for name, more in (("cached", []), ("computed", ["--no_cache"])):
        arguments = train_arguments(weights, data, tmp_path / name, "--epoch", "2", *more)
        assert main(arguments) == 0
        states.append(checkpoint(tmp_path / name))
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
    assert checkpoint(tmp_path / "run")["step"] == 4


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
        (["--data_path", "x", "--fine", "0.5"], "--fine is for --dataset synthetic"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(
    more: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--save_path", str(tmp_path), *more])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--batch_size", "0"], "--batch_size: '0' must be a whole number, at least 1"),
        (["--epoch", "-1"], "--epoch: '-1' must be a whole number, at least 1"),
        (["--seed", "-1"], "--seed: '-1' must be a whole number, at least 0"),
        (["--seed", str(2**40)], "must be a whole number, at least 0 and at most 549755813888"),
        (["--pool_sizes", "3", "0"], "--pool_sizes: '0' must be"),
        (["--learning_rate", "nan"], "--learning_rate: 'nan' must be a number, at least 0"),
        (["--steering", "2"], "--steering: '2' must be a number, from 0 to 1"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(
    more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--save_path", "x", "--dataset", "synthetic", *more])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--features_list", "1", "99"], r"--features_list \[1, 99\] must rise within 1..2"),
        (["--image_size", "99"], "--image_size 99 is not a multiple of the patch size"),
        (["--device", "gpu"], "--device gpu cannot be used here .* use --device cpu"),
    ],
)
def test_what_this_clip_or_machine_has_not(
    more: list[str],
    message: str,
    weights: Path,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([*train_arguments(weights, data, tmp_path / "run"), *more]) == 1
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_written_to_is_named(
    weights: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file where a folder has to be stands for it: whoever runs the tests may write anywhere."""
    (tmp_path / "file").touch()
    assert main(train_arguments(weights, data, tmp_path / "file" / "run")) == 1
    assert "cannot be written to" in capsys.readouterr().err
    arguments = train_arguments(weights, data, tmp_path / "run")
    assert main([*arguments, "--cache_path", str(tmp_path / "file" / "cache")]) == 1
    assert "choose another --cache_path" in capsys.readouterr().err


def test_umci_runs_as_it_was_trained_or_not_at_all(tmp_path: Path) -> None:
    preset = PRESETS["tiny"]
    state, path = UMCIStages(preset.umci).state_dict(), tmp_path / "umci.safetensors"
    said = {"umci": preset.umci.to_json(), "clip_sha256": "c"}
    save_weights(state, path, "umci", {**said, "image_size": "96", "features_list": "[1, 2]"})
    trained, clip = trained_preset(preset, path)
    assert (trained.clip_image_size, trained.features_list, clip) == (96, (1, 2), "c")
    load_umci(trained, path)
    with pytest.raises(WeightsError, match=r"trained on images of 96 px.*it would get 192 px"):
        load_umci(preset, path)
    save_weights(state, path, "umci", said)  # a file that does not say keeps the preset's
    assert trained_preset(preset, path)[0] == preset
    save_weights(state, path, "clip")
    with pytest.raises(WeightsError, match="holds no UMCI"):
        trained_preset(preset, path)


def test_an_interruption_while_it_trains_is_told(
    weights: Path,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = [*train_arguments(weights, data, tmp_path), "--epoch", "2"]
    calls: list[int] = []

    def loss(task: UmciTask, batch: Batch) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return whole(task, batch)

    whole = UmciTask.loss
    monkeypatch.setattr(UmciTask, "loss", loss)
    assert main(arguments) == 130
    assert "interrupted; the same command goes on from here" in capsys.readouterr().err
    assert checkpoint(tmp_path)["step"] == 2
    assert not (tmp_path / "umci.safetensors").exists()
    assert main(arguments) == 0
    assert len(calls) == 4 + 2  # only the epoch that was not finished


def test_training_runs_with_every_augmentation(weights: Path, data: Path, tmp_path: Path) -> None:
    more = ["--epoch", "1", "--no_cache", "--augment", "flip", "rotate", "colour"]
    assert main(train_arguments(weights, data, tmp_path, *more, "--precision", "bf16")) == 0


def test_epochs_end_where_their_last_image_is() -> None:
    assert epoch_ends(8, 3, 4) == (2, 4, 6)
    assert epoch_ends(5, 3, 4) == (2, 3)  # 15 images make 3 batches; the third epoch's end is lost
    assert epoch_ends(2, 4, 8) == (1,)


class Group(Processes):
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


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1000")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1000")
    with pytest.raises(ProviderError, match="started 1000 processes here and PyTorch finds"):
        start_processes("cuda")
    with pytest.raises(ProviderError, match="use cpu or cuda"):
        start_processes("mps")
