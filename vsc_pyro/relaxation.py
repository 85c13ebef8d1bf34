"""`relaxation_gap`: what an objective makes of soft spikes that the model itself does not have."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vsc_pyro.importance import log_likelihood_of
from vsc_pyro.modes import in_mode
from vsc_pyro.seeding import seeded
from vsc_pyro.vae import VAE

GAP_DRAWS = 10  # of each code, all at once


def relaxation_gap(model: VAE, x: Tensor, seed: int) -> Tensor:
    """Log-likelihood of data ``(B, ...)`` given codes as training draws them, minus that given exact draws.

    Of one posterior, that of training mode, by the same random numbers; shape ``(B,)``. The KL part of the objective
    knows no difference: a draw is scored by its spike. `model` is in evaluation mode, and without gradients.
    """
    with seeded(seed, x.device), _as_trained(model.encoder):
        posterior = model.encoder(x)
    likelihoods = []
    for draw in (posterior, posterior.sample):
        # The same noise for both, so that hard gates give exactly zero. What is drawn without gradients need not be
        # what training draws; nothing here requires one, so that no graph is kept.
        with seeded(seed, x.device), torch.enable_grad():
            z = draw(torch.Size([GAP_DRAWS])).detach()
        likelihoods.append(log_likelihood_of(model, x, z).mean(0))
    return likelihoods[0] - likelihoods[1]


@contextlib.contextmanager
def _as_trained(encoder: nn.Module) -> Iterator[None]:
    """Training mode within, of which nothing is left: no batch's statistics are taken, and buffers are put back."""
    before = [(buffer, buffer.clone()) for buffer in encoder.buffers()]
    with in_mode(encoder, True):
        for module in encoder.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        try:
            yield
        finally:
            for buffer, value in before:
                buffer.copy_(value)
