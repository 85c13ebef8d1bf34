r"""Functions of a spike's log-odds that are exact for infinite ones: :math:`0 \log 0 = 0`, with a gradient of zero."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

_FAR = 1e30  # finite, so that 0 times it is 0


def spike_entropy(logits: Tensor) -> Tensor:
    r"""Return :math:`H(\gamma)` in nats, with the shape and dtype of `logits`; computed in float32 or float64."""
    on = bounded(to_float32(logits))
    entropy = -(torch.sigmoid(on) * logsigmoid(on) + torch.sigmoid(-on) * logsigmoid(-on))
    return entropy.to(logits.dtype)


def bounded(logits: Tensor) -> Tensor:
    """Replace infinite log-odds by very large ones."""
    far = min(_FAR, torch.finfo(logits.dtype).max)
    return logits.clamp(-far, far)


def almost_certain(logits: Tensor) -> Tensor:
    """Replace infinite log-odds by values whose probability just rounds to 0 or 1, so that sums stay precise."""
    certain = -1.25 * math.log(torch.finfo(logits.dtype).eps)
    return torch.nan_to_num(logits, nan=math.nan, posinf=certain, neginf=-certain)


def to_float32(tensor: Tensor) -> Tensor:
    """Convert 16-bit numbers to float32 and leave float64 alone."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
