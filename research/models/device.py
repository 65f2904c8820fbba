"""The device that torch computes on."""

from __future__ import annotations

import torch

from clipsam.runtime.core.errors import ProviderError


def best_device() -> str:
    """ "cuda" where PyTorch finds a GPU, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def torch_device(name: str) -> torch.device:
    """The device, ready to be used. Raises ProviderError where this machine has none such."""
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).add_(1)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:160]
        raise ProviderError(
            f"--device {name} cannot be used here ({reason}): use --device cpu, or cuda on a "
            "machine with an NVIDIA GPU and a PyTorch that knows it."
        ) from error
    if device.type == "meta":  # shapes without numbers
        raise ProviderError("--device meta computes nothing: use --device cpu or cuda.")
    return device
