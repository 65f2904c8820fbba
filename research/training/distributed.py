"""One training process, or several started by torchrun: what the loop asks of either.

    torchrun --nproc_per_node 8 -m clipsam.research.train ...

Every process draws its share of the same global batch and the gradients are averaged, so the
number of processes changes nothing but the order in which floating point numbers are added.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from clipsam.research.models.device import torch_device
from clipsam.runtime.core.errors import ClipSAMError, ProviderError, WeightsError

T = TypeVar("T")


class Processes:
    """The group of processes that train together, here this one alone. Collective: all of a group
    must make the same calls.

    Attributes:
      rank: of this process, from 0.
      world: how many there are.
      device: of this process.
    """

    rank, world = 0, 1

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)

    def wrap(self, module: nn.Module) -> nn.Module:
        """A module over the same parameters, whose gradients are averaged over the processes."""
        return module

    def backward(self, loss: Tensor) -> None:
        """Gradients of this process's share of the loss."""
        loss.backward()

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a tensor over the processes."""
        return value

    def barrier(self) -> None:
        """Return when every process has come here."""

    def broadcast(self, value: T) -> T:
        """The first process's value, on every process."""
        return value

    def close(self) -> None:
        """Leave the group."""


class FabricProcesses(Processes):
    """The group that torchrun started, through Lightning Fabric: gloo on CPUs, NCCL on GPUs."""

    def __init__(self, accelerator: str) -> None:
        try:
            from lightning_fabric import Fabric
        except ImportError as error:
            raise ClipSAMError(
                "Training on several processes needs Lightning Fabric, which is not installed: "
                "pip install 'clipsam[train]', or start without torchrun."
            ) from error
        local = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
        nodes = int(os.environ["WORLD_SIZE"]) // local
        self._fabric: Any = Fabric(
            accelerator=accelerator, devices=local, num_nodes=nodes, strategy="ddp"
        )
        self._fabric.launch()
        self.rank = int(self._fabric.global_rank)
        self.world = int(self._fabric.world_size)
        self.device = torch.device(self._fabric.device)

    def wrap(self, module: nn.Module) -> nn.Module:
        wrapped: nn.Module = self._fabric.setup_module(module)
        return wrapped

    def backward(self, loss: Tensor) -> None:
        self._fabric.backward(loss)

    def mean(self, value: Tensor) -> Tensor:
        reduced: Tensor = self._fabric.all_reduce(value.detach().clone(), reduce_op="mean")
        return reduced

    def barrier(self) -> None:
        self._fabric.barrier()

    def broadcast(self, value: T) -> T:
        same: T = self._fabric.broadcast(value)
        return same

    def close(self) -> None:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def start_processes(device: str) -> Processes:
    """The group this process belongs to, by torchrun's environment variables.

    `device` is "cpu", "cuda" or, for one process, "cuda:N". Raises ClipSAMError when there are
    several processes and Lightning Fabric is missing, ProviderError when the device is.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes(torch_device(device))
    kind, local = device.split(":")[0], int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    # Counted, not used: every process would set itself up on the first GPU.
    if kind == "cuda" and torch.cuda.device_count() < local:
        raise ProviderError(
            f"torchrun started {local} processes here and PyTorch finds "
            f"{torch.cuda.device_count()} GPUs: start one a GPU (--nproc_per_node), or use "
            "--device cpu."
        )
    if kind not in ("cpu", "cuda"):
        raise ProviderError(f"--device {device} is for one process: use cpu or cuda.")
    return FabricProcesses(kind)


def check_agreed(settings: Mapping[str, Any], processes: Processes) -> None:
    """Raise WeightsError where this process would train another run than the first one does.

    Machines have files of their own: other images or weights, or arguments that were mistyped,
    would be trained on side by side.
    """
    first = processes.broadcast(settings)
    different = [name for name in settings if settings[name] != first.get(name)]
    if different:
        name = different[0]
        raise WeightsError(
            f"Process {processes.rank} would train with {name} {settings[name]!r}, the first one "
            f"with {first.get(name)!r}: give all machines the same arguments, images and weights."
        )


def share_of(batch_size: int, processes: Processes) -> tuple[int, int]:
    """The half-open range of the global batch's places that this process works on.

    Raises ClipSAMError if the batch cannot be shared out evenly.
    """
    if batch_size % processes.world:
        raise ClipSAMError(
            f"--batch_size {batch_size} counts the images of all processes together and cannot be "
            f"shared out among {processes.world}: choose a multiple of {processes.world}."
        )
    each = batch_size // processes.world
    return processes.rank * each, (processes.rank + 1) * each
