"""Training on two machines: two torchrun agents that meet on this one's loopback, gloo."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from safetensors.torch import load_file
from support.training_files import start_training, train_arguments, write_dataset, write_weights
from torch import Tensor, nn

from clipsam.research.train import main as train
from clipsam.research.training.distributed import Processes, check_agreed
from clipsam.research.training.loop import LoopConfig, run
from clipsam.runtime.core.errors import WeightsError

T = TypeVar("T")


@pytest.mark.slow
def test_two_machines_with_disks_of_their_own_train_what_one_does(tmp_path: Path) -> None:
    """Nothing is shared but the network: each machine fills its own cache, the first one writes."""
    weights = write_weights(tmp_path / "weights")
    data = write_dataset(tmp_path / "data", "mvtec")

    def arguments(name: str) -> list[str]:
        return train_arguments(weights, data, tmp_path / name, "--epoch", "2")

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    meeting = ["--nnodes=2", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}"]
    nodes = [
        start_training(arguments(name), 1, [*meeting, "--local-addr=127.0.0.1"])
        for name in ("a", "b")
    ]
    said = [node.communicate(timeout=300)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], "\n".join(said)
    assert "4 steps of 4 on 2 x cpu" in "".join(said)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the processes above: sums then have one order
    try:
        assert train(arguments("one")) == 0
    finally:
        torch.set_num_threads(threads)
    written = list(tmp_path.glob("[ab]/umci.safetensors"))
    assert len(written) == 1
    ours, one = load_file(written[0]), load_file(tmp_path / "one/umci.safetensors")
    assert ours.keys() == one.keys()
    assert max(float((ours[n].float() - one[n].float()).abs().max()) for n in one) < 1e-3  # float16
    caches = [*tmp_path.glob("[ab]/features/*/features.npy")]
    assert len({path.read_bytes() for path in caches}) == 1
    assert len(caches) == 2


class Second(Processes):
    """The second of two processes; the first one has `first`."""

    rank, world = 1, 2

    def __init__(self, first: object) -> None:
        super().__init__()
        self._first = first

    def broadcast(self, value: T) -> T:
        return self._first  # type: ignore[return-value]


class Line:
    """A task of one weight."""

    def __init__(self) -> None:
        self.module: nn.Module = nn.Linear(1, 1)

    def loss(self, batch: Tensor) -> tuple[Tensor, dict[str, float]]:
        return self.module(batch).mean(), {}

    def validate(self) -> dict[str, float]:
        return {}


def test_a_machine_without_the_last_checkpoint_is_refused(tmp_path: Path) -> None:
    config = LoopConfig(4, 2, 1e-2, tmp_path, workers=0)
    with pytest.raises(WeightsError, match="is at step 0 and the first process's at step 3"):
        run(Line(), torch.zeros(8, 1), config, None, Second(3))  # type: ignore[arg-type]


def test_machines_that_would_train_different_runs_are_refused() -> None:
    check_agreed({"images": "a"}, Second({"images": "a"}))
    with pytest.raises(WeightsError, match="Process 1 would train with images 'b', the first one"):
        check_agreed({"images": "b", "seed": 0}, Second({"images": "a", "seed": 0}))
