r"""Where networks start: standardised by training data, unless they have been trained before.

Optimisers take steps of a fixed size, so a network learns well if what it reads and what it puts out do not depend on
the data's units. Encoders read :math:`0.3 (x - m) / s`, with the training data's mean m, pixel by pixel, and one scale
s for all pixels, the standard deviation around m. A network that has been trained, or is not to be, is left alone:
another m or s would undo what it has learnt.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_ROWS_AT_ONCE = 1000
_SMALLEST = 1e-12


def remember_start(module: nn.Module) -> None:
    """Note the bias that the layer ``module.own_layer`` starts from, for `is_fresh`."""
    module.register_buffer("initial_bias", module.own_layer.bias.detach().clone(), persistent=False)


def is_fresh(module: nn.Module) -> bool:
    """Whether ``module.own_layer`` still has the bias that `remember_start` noted, and is to be trained.

    Training moves a bias in its first step, and so do weights that are loaded.
    """
    bias = module.own_layer.bias
    return bias.requires_grad and torch.equal(bias, module.initial_bias)


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
