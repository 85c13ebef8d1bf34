"""`relaxation_gap`: what an objective makes of soft spikes that the model itself does not have."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from vsc_pyro._seeding import seeded
from vsc_pyro.evaluation.importance import log_likelihood_of
from vsc_pyro.models.modes import in_mode, on_copies
from vsc_pyro.models.vae import VAE

GAP_DRAWS = 10  # of each code, all at once


def relaxation_gap(model: VAE, x: Tensor, seed: int) -> tuple[Tensor, str | None]:
    """Log-likelihood of data ``(B, ...)`` given codes as training draws them, minus that given exact draws.

    Of one posterior, that of training mode, by the same random numbers; shape ``(B,)``. The KL part of the objective
    knows no difference: a draw is scored by its spike. `model` is in evaluation mode, and without gradients.

    Returns:
        The gap, and None; or NaN, and why the encoder does not work in training mode on these data.
    """
    try:
        soft, hard = _codes_as_trained(model, x, seed)
    except Exception as error:  # whatever an encoder of a user's own raises
        reason = str(error).partition("\n")[0][:100]
        return x.new_full((len(x),), math.nan), f"the encoder fails in training mode ({type(error).__name__}: {reason})"
    if torch.equal(soft, hard):
        return x.new_zeros(len(x)), None
    return log_likelihood_of(model, x, soft).mean(0) - log_likelihood_of(model, x, hard).mean(0), None


def _codes_as_trained(model: VAE, x: Tensor, seed: int) -> list[Tensor]:
    """Codes as training draws them, and exact ones, of which no trace is left in the encoder."""
    with on_copies(model.encoder), in_mode(model.encoder, True):
        for module in model.encoder.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        with seeded(seed, x.device):
            posterior = model.encoder(x)
        codes = []
        for draw in (posterior, posterior.sample):
            # The same noise for both, so that hard gates give the same codes. What is drawn without gradients need not
            # be what training draws; nothing here requires one, so that no graph is kept.
            with seeded(seed, x.device), torch.enable_grad():
                codes.append(draw(torch.Size([GAP_DRAWS])).detach())
    return codes
