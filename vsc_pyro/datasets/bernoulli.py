"""Binary draws from many probabilities, with one byte of randomness each."""

from __future__ import annotations

import torch
from torch import Tensor


def bernoulli(probs: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw 0 or 1 independently, 1 with probability `probs`, like `torch.bernoulli` but faster on a CPU.

    On a CPU torch takes a double-precision uniform number for each draw. Here a random byte u settles all but at most
    one in 256 draws: :math:`256p - u`, clamped to [0, 1], is 0, 1, or the probability with which a second draw is 1.
    The draws are exact, because every binary floating-point type holds the difference without rounding.

    Args:
        probs: probabilities in [0, 1] of any shape and floating-point type; not checked.
        generator: generator on the device of `probs`; None for torch's own.

    Returns:
        The draws, in shape and type of `probs`.

    >>> bernoulli(torch.tensor([0.0, 1.0, 1.0]))
    tensor([0., 1., 1.])
    """
    if probs.device.type != "cpu":
        return torch.bernoulli(probs, generator=generator)
    words = torch.empty(-(-probs.numel() // 8), dtype=torch.int64).random_(-(2**63), None, generator=generator)
    byte = words.view(torch.uint8)[: probs.numel()].view(probs.shape)
    draws = (probs * 256).sub_(byte).clamp_(0, 1).contiguous()
    undecided = _places_of_true(draws.frac().bool().flatten())
    draws.view(-1)[undecided] = torch.bernoulli(draws.view(-1)[undecided], generator=generator)
    return draws


def _places_of_true(flags: Tensor) -> Tensor:
    """Return the places of the few that are True in a tensor ``(N,)``, looking at eight at a time."""
    packed = len(flags) // 8 * 8
    octets = flags[:packed].view(torch.int64).nonzero().squeeze(1)
    near = torch.cat([(octets[:, None] * 8 + torch.arange(8)).flatten(), torch.arange(packed, len(flags))])
    return near[flags[near]]
