"""Priors: modules whose forward takes data x and returns the prior p(z), a distribution (most ignore x).

A prior of your own is any `torch.nn.Module` with such a forward; give it the attribute `latent_dim` as well if it has
one, and `vsc_pyro.VAE` uses, checks and trains it like these.
"""

from __future__ import annotations

import torch
from pyro.distributions import Independent, Normal
from torch import Tensor, nn

from vsc_pyro.arguments import positive_int
from vsc_pyro.distributions import IndependentSpikeSlab, SpikeSlab


class NormalPrior(nn.Module):
    """Standard normal prior (Kingma & Welling, 2014).

    Args:
        latent_dim: number of latents J.

    Shapes:
        The distribution has `batch_shape` ``()`` and `event_shape` ``(J,)``.
    """

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim = positive_int("latent_dim", latent_dim)
        self.register_buffer("loc", torch.zeros(self.latent_dim), persistent=False)

    def forward(self, x: Tensor) -> Independent:
        return Normal(self.loc, torch.ones_like(self.loc)).to_event(1)


class SpikeSlabPrior(nn.Module):
    r"""Spike-and-slab prior, :math:`p(z) = \prod_j \alpha_j N(z_j; 0, 1) + (1 - \alpha_j) \delta_0`.

    Args:
        latent_dim: number of latents J.
        inclusion: :math:`\alpha = P(z_j \neq 0)`, strictly between 0 and 1: one number, or a tensor of shape ``(J,)``.
        learn_inclusion: learn :math:`\alpha_j` of every latent from there, by maximum likelihood; latents that do not
            pay for themselves then switch off.

    Shapes:
        The distribution has `batch_shape` ``()`` and `event_shape` ``(J,)``.

    Raises:
        ValueError: an inclusion outside (0, 1) or of another shape.
    """

    def __init__(self, latent_dim: int, inclusion: float | Tensor = 0.1, learn_inclusion: bool = False) -> None:
        super().__init__()
        self.latent_dim = positive_int("latent_dim", latent_dim)
        self.learn_inclusion = learn_inclusion
        alpha = torch.as_tensor(inclusion, dtype=torch.get_default_dtype())
        if alpha.shape not in ((), (self.latent_dim,)):
            raise ValueError(
                f"inclusion must be one number or one for each of the {self.latent_dim} latents, "
                f"got a tensor of shape {tuple(alpha.shape)}"
            )
        if not ((alpha > 0) & (alpha < 1)).all():
            raise ValueError(f"inclusion must lie strictly between 0 and 1, got {inclusion!r}")
        self.inclusion = inclusion if alpha.ndim == 0 else alpha.tolist()
        logits = torch.logit(alpha).expand(self.latent_dim).clone()
        if learn_inclusion:
            self.inclusion_logits = nn.Parameter(logits)
        else:
            self.register_buffer("inclusion_logits", logits)

    def extra_repr(self) -> str:
        return f"{self.latent_dim}, inclusion={self.inclusion}, learn_inclusion={self.learn_inclusion}"

    def forward(self, x: Tensor) -> IndependentSpikeSlab:
        slab = Normal(torch.zeros_like(self.inclusion_logits), torch.ones_like(self.inclusion_logits))
        return SpikeSlab(slab, logits=self.inclusion_logits).to_event(1)
