r"""The standardisation that a network starts with, taken from the training data.

Optimisers take steps of a fixed size, so a network learns well if its inputs and outputs do not depend on the units of
the data. Encoders read :math:`0.3 (x - m) / s`, where m is the mean of the training data, pixel by pixel, and s is one
scale for all pixels, the standard deviation around m. A network that is already trained, or frozen, is left unchanged:
another m or s would undo what it has learnt.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vsc_pyro._recorded import Recorded

_ROWS_AT_ONCE = 1000
_SMALLEST = 1e-12
# Standard deviation of the networks' input. With a larger one, a network overfits small data sooner.
INPUT_DEVIATION = 0.3


class Prepared(Recorded):
    """A module that takes starting values from the first training data it is shown, unless it is already trained.

    Buffers:
        prepared: True once the first training data have been shown. A module that was frozen then stays unchanged.
    """

    # Values of the buffers that older checkpoints lack.
    added_buffers: ClassVar[dict[str, float]] = {"prepared": True}
    prepared: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("prepared", torch.tensor(False))

    @property
    def own_layer(self) -> nn.Linear:
        """The layer whose weight tells if the module is trainable and if it has received gradients."""
        raise NotImplementedError

    @property
    def is_fresh(self) -> bool:
        """True until the module has been shown data or has received a gradient."""
        return not self.prepared and self.own_layer.weight.grad is None

    def begins(self) -> bool:
        """Return True if the module is to start from the data at hand; only the first call can."""
        begins = self.is_fresh and self.own_layer.weight.requires_grad
        self.prepared.fill_(True)
        return begins

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        for name, value in self.added_buffers.items():
            if f"{prefix}{name}" not in state_dict and any(key.startswith(prefix) for key in state_dict):
                state_dict[f"{prefix}{name}"] = torch.full_like(getattr(self, name), value)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


@torch.no_grad()
def mean_and_scale(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean of data ``(N, ...)``, shape ``(...)``, and their standard deviation around it, one number.

    Computed in float64, a thousand data at a time. The scale of constant data is 1.

    >>> mean, scale = mean_and_scale(torch.tensor([[0.0, 4.0], [2.0, 6.0]]))
    >>> mean.tolist(), scale.item()
    ([1.0, 5.0], 1.0)
    """
    chunks = images.split(_ROWS_AT_ONCE)
    zero = images.new_zeros((), dtype=torch.float64)
    mean = sum((chunk.double().sum(0) for chunk in chunks), zero) / len(images)
    variance = sum(((chunk - mean).square().sum() for chunk in chunks), zero) / images.numel()
    scale = variance.sqrt()
    return mean, torch.where(scale > _SMALLEST * mean.abs().max(), scale, torch.ones_like(scale))
