r"""Spikes of infinite log-odds, which are never or always drawn: :math:`0 \log 0 = 0`, with a gradient of zero."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

_FAR = 1e30  # 0 times it is 0


def spike_entropy(logits: Tensor) -> Tensor:
    r""":math:`H(\gamma)` in nats, shape and type of the log-odds, computed in float32 at least."""
    on = bounded(to_float32(logits))
    entropy = -(torch.sigmoid(on) * logsigmoid(on) + torch.sigmoid(-on) * logsigmoid(-on))
    return entropy.to(logits.dtype)


def bounded(logits: Tensor) -> Tensor:
    """Log-odds with infinite ones far beyond all others, where their logarithms are as good as infinite."""
    far = min(_FAR, torch.finfo(logits.dtype).max)
    return logits.clamp(-far, far)


def almost_certain(logits: Tensor) -> Tensor:
    """Log-odds with infinite ones just beyond what the type tells from certainty, where sums of them are precise."""
    certain = -1.25 * math.log(torch.finfo(logits.dtype).eps)
    return torch.nan_to_num(logits, nan=math.nan, posinf=certain, neginf=-certain)


def to_float32(tensor: Tensor) -> Tensor:
    """In float32, or in float64 if it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
