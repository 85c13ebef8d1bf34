r"""Entropy and divergence of spikes by their log-odds, infinite ones included.

A spike of infinite log-odds is never or always drawn: :math:`0 \log 0 = 0`, with a gradient of zero. All is computed in
float32 at least: in 16 bits, logarithms differ by more than the divergences that are their differences.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

_FAR = 1e30  # beyond it a probability is 0, and 0 times its logarithm, too


def spike_entropy(logits: Tensor) -> Tensor:
    r""":math:`H(\gamma)` in nats, shape of the log-odds."""
    on = finite(logits)
    entropy = -(torch.sigmoid(on) * logsigmoid(on) + torch.sigmoid(-on) * logsigmoid(-on))
    return entropy.to(logits.dtype)


def spike_kl(p: Tensor, q: Tensor) -> Tensor:
    r""":math:`KL(\mathrm{Bern}(\gamma_p) \| \mathrm{Bern}(\gamma_q))` in nats, by log-odds; float32 at least."""
    a, b = finite(p), finite(q)
    on = torch.sigmoid(a) * (logsigmoid(a) - logsigmoid(b))
    off = torch.sigmoid(-a) * (logsigmoid(-a) - logsigmoid(-b))
    # What q never draws, and p does.
    return (on + off).masked_fill(q.isinf() & (p != q), math.inf)


def to_float32(tensor: Tensor) -> Tensor:
    """In float32, or in float64 if it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def finite(logits: Tensor) -> Tensor:
    """The log-odds in float32 at least, infinite ones by finite ones beyond all others."""
    return to_float32(logits).clamp(-_FAR, _FAR)
