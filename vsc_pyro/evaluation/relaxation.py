"""`relaxation_gap`: the part of an objective that is due to relaxed spikes."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from vsc_pyro._seeding import seeded
from vsc_pyro.evaluation.importance import log_likelihood_of
from vsc_pyro.models.modes import in_mode, on_copies
from vsc_pyro.models.vae import VAE

GAP_DRAWS = 10  # of each code, in one batch


def relaxation_gap(model: VAE, x: Tensor, seed: int) -> tuple[Tensor, str | None]:
    r"""Return :math:`E[\log p(x|z_{soft})] - E[\log p(x|z_{hard})]` for each datum, with the reason if there is none.

    Soft codes are drawn as in training, hard codes with exact zeros. Both come from the posterior of training mode and
    from the same random numbers. The KL term is the same for both, because a draw is scored by its spike.

    Args:
        model: in evaluation mode, called without gradients.
        x: data, shape ``(B, ...)``.
        seed: of the draws.

    Returns:
        The gaps, shape ``(B,)``, and None. If the encoder fails in training mode: NaN, and the error as text.
    """
    try:
        soft, hard = _soft_and_hard_codes(model, x, seed)
    except Exception as error:  # a user's encoder may raise anything
        reason = str(error).partition("\n")[0][:100]
        return x.new_full((len(x),), math.nan), f"the encoder fails in training mode ({type(error).__name__}: {reason})"
    if torch.equal(soft, hard):
        return x.new_zeros(len(x)), None
    return log_likelihood_of(model, x, soft).mean(0) - log_likelihood_of(model, x, hard).mean(0), None


def _soft_and_hard_codes(model: VAE, x: Tensor, seed: int) -> list[Tensor]:
    with on_copies(model.encoder), in_mode(model.encoder, True):
        for module in model.encoder.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        with seeded(seed, x.device):
            posterior = model.encoder(x)
        codes = []
        for draw in (posterior, posterior.sample):
            # Equal noise makes equal codes under hard gates. Gradients are on because a gate may draw otherwise
            # without them; no tensor here requires one, so no autograd graph is kept.
            with seeded(seed, x.device), torch.enable_grad():
                codes.append(draw(torch.Size([GAP_DRAWS])).detach())
    return codes
