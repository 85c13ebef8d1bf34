"""Scalar buffers: numbers of a module that a schedule moves and a captured step reads anew."""

from __future__ import annotations

import numbers
from typing import Any

import torch
from torch import Tensor, nn


class ScalarModule(nn.Module):
    """A module whose scalar buffers may be assigned numbers, as in ``gate.temperature = 0.3``.

    The buffer stays the same tensor, so whatever holds it (a captured step, the optimiser) reads the new value. Such
    buffers are settings, not weights: they are no part of the `state_dict`.
    """

    def register_scalar(self, name: str, value: float) -> None:
        """Register the buffer `name` of shape ``()``, with that value."""
        self.check_scalar(name, value)
        self.register_buffer(name, torch.tensor(float(value)), persistent=False)

    def check_scalar(self, name: str, value: float) -> None:
        """Raise `ValueError` if the buffer `name` cannot take that value."""

    def __setattr__(self, name: str, value: Any) -> None:
        buffer = self.__dict__.get("_buffers", {}).get(name)
        if buffer is None or isinstance(value, Tensor) or not isinstance(value, numbers.Real):
            super().__setattr__(name, value)
        else:
            self.check_scalar(name, float(value))
            buffer.fill_(value)
