r"""Where networks start: standardised by training data, unless they have been trained before.

Optimisers take steps of a fixed size, so a network learns well if what it reads and what it puts out do not depend on
the data's units. Encoders read :math:`0.3 (x - m) / s`, with the training data's mean m, pixel by pixel, and one scale
s for all pixels, the standard deviation around m. A network that has been trained, or is not to be, is left alone:
another m or s would undo what it has learnt.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

_ROWS_AT_ONCE = 1000
_SMALLEST = 1e-12


class Prepared(nn.Module):
    """A module that starts from training data once: the first time that it is shown some, and not if it is trained.

    Buffers:
        prepared: whether that has been decided. A frozen module is left as it is for good.
    """

    # What buffers are in files of earlier versions, which do not have them.
    added_buffers: ClassVar[dict[str, float]] = {"prepared": True}

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("prepared", torch.tensor(False))

    @property
    def own_layer(self) -> nn.Module:
        """The layer by which to tell whether the module is to be trained, and has been."""
        raise NotImplementedError

    @property
    def is_fresh(self) -> bool:
        """Whether nothing has been decided and no gradient has reached the module yet."""
        return not self.prepared and self.own_layer.weight.grad is None

    def begins(self) -> bool:
        """Whether to start from the data at hand; that is decided by the first call."""
        begins = self.is_fresh and self.own_layer.weight.requires_grad
        self.prepared.fill_(True)
        return begins

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name, value in self.added_buffers.items():
            if f"{prefix}{name}" not in state_dict and any(key.startswith(prefix) for key in state_dict):
                state_dict[f"{prefix}{name}"] = torch.full_like(getattr(self, name), value)
        super()._load_from_state_dict(state_dict, prefix, *args)


@torch.no_grad()
def mean_and_scale(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean of data ``(N, ...)``, shape ``(...)``, and their standard deviation around it, one number.

    In float64, a thousand data at a time. Data that are all alike have a scale of 1.
    """
    chunks = images.split(_ROWS_AT_ONCE)
    mean = sum(chunk.double().sum(0) for chunk in chunks) / len(images)
    variance = sum((chunk - mean).square().sum() for chunk in chunks) / images.numel()
    scale = variance.sqrt()
    return mean, torch.where(scale > _SMALLEST * mean.abs().max(), scale, torch.ones_like(scale))
