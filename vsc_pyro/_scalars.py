"""Scalar buffers: numbers of a module that schedules may move and captured steps read as they stand."""

from __future__ import annotations

import numbers
from typing import Any, cast

import torch
from torch import Tensor

from vsc_pyro._recorded import Recorded


class ScalarModule(Recorded):
    """A module whose scalar buffers can be assigned numbers, as in ``gate.temperature = 0.3``.

    An assignment changes the value of the buffer in place. The tensor stays the same, so a captured step that reads it
    sees the new value. Scalar buffers are settings, not weights: the `state_dict` leaves them out.

    Example:
        >>> import vsc_pyro as vsc
        >>> gate = vsc.gates.BinaryConcrete()
        >>> gate.temperature = 0.25
        >>> gate.temperature
        tensor(0.2500)
    """

    def register_scalar(self, name: str, value: float) -> None:
        """Register a buffer `name` of shape ``()`` that holds `value`."""
        self.check_scalar(name, value)
        with torch.inference_mode(False):  # a setting may be changed in training, wherever it was made
            self.register_buffer(name, torch.tensor(float(value)), persistent=False)

    def check_scalar(self, name: str, value: float) -> None:
        """Raise `ValueError` if `value` is out of range for the buffer `name`. Subclasses override it."""

    def __setattr__(self, name: str, value: Any) -> None:
        buffer = self.__dict__.get("_buffers", {}).get(name)
        if not isinstance(buffer, Tensor) or (isinstance(value, Tensor) and value.shape == buffer.shape):
            super().__setattr__(name, value)
        elif not isinstance(value, numbers.Real):
            raise ValueError(f"{name} must be one number, got {value!r}")
        else:
            self.check_scalar(name, cast("float", value))
            buffer.fill_(float(value))


def seven_digits(scalar: Tensor) -> float:
    """Return the number that a float32 scalar was made of, as far as its digits go."""
    return float(f"{float(scalar):.7g}")
