"""EMA of weights: steadier than the last step's, at the cost of one more copy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA:
    """An exponential moving average of a module's trained parameters.

    `decay` is what stays of the average in a step; it starts lower, so that the first steps are
    forgotten.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module, self.decay, self.updates = module, decay, 0
        self.values = {name: p.detach().clone() for name, p in self._trained()}

    def update(self) -> None:
        """Take the module's present weights in."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, parameter in self._trained():
            self.values[name].lerp_(parameter.detach(), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The module with the averaged weights, for validation and saving."""
        own = {name: p.detach().clone() for name, p in self._trained()}
        self._write(self.values)
        try:
            yield
        finally:
            self._write(own)

    def state_dict(self) -> dict[str, Tensor | int]:
        """For the checkpoint."""
        return {**self.values, "updates": self.updates}

    def load_state_dict(self, state: dict[str, Tensor | int]) -> None:
        """From a checkpoint of the same module."""
        self.updates = int(state["updates"])
        for name, value in self.values.items():
            value.copy_(torch.as_tensor(state[name]))

    def _trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((n, p) for n, p in self.module.named_parameters() if p.requires_grad)

    def _write(self, values: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self._trained():
                parameter.copy_(values[name])
