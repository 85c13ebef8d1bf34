"""What a prior is: a module whose forward takes data x and returns p(z), and what it may offer besides."""

from __future__ import annotations

import math
from collections.abc import Callable

import pyro
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from vsc_pyro.seeding import seeded


class Prior(nn.Module):
    """Base class of the priors. Define `forward`; the rest has defaults, for priors that need none of it.

    Attributes:
        is_bound: whether training against `forward` bounds the evidence; None for yes unless it depends on x, or
            returns a distribution for each datum, see `vsc_pyro.VAE.is_bound`.
    """

    is_bound: bool | None = None

    def forward(self, x: Tensor, **hyperparameters: Tensor) -> Distribution:
        """What the objective holds a posterior against: `event_shape` ``(J,)``, `batch_shape` ``()`` or ``(B,)``."""
        raise NotImplementedError(f"{type(self).__name__} must define forward(x)")

    def marginal(self, x: Tensor) -> Distribution:
        """The distribution that codes have before any datum is seen: what samples and weights are taken from."""
        return self(x)

    def hyperparameters(self) -> dict[str, tuple[Distribution, Distribution]]:
        """Latent variables common to all data, by name of site: prior and posterior; `forward` takes their values."""
        return {}

    def penalty(self) -> Tensor | None:
        """What the objective is charged besides, in nats per datum, as a tensor of no dimension."""
        return None

    def prepare(self, images: Tensor) -> None:
        """Look at training data, shape ``(N, ...)``, once, before the first step; `vsc_pyro.fit` calls it."""

    def check_range(self, low: Tensor, high: Tensor) -> None:
        """Warn where that range of the training data is not what `prepare` was shown; after a `DataLoader`'s epoch."""


def depends_on_data(prior: Callable[[Tensor], Distribution], x: Tensor) -> bool:
    """Whether `prior` depends on the data that it is given, or returns a distribution for each of them.

    Its log-density is compared at a draw, given batches that differ in all values.

    Args:
        prior: in evaluation mode.
        x: a batch of zeros, of a size that is no dimension's of a batch of priors otherwise.
    """
    # A number that is read makes NaN of what depends on it, even where its weight is zero before training.
    others = (x + 1, 100 * torch.linspace(-1, 1, x.numel()).to(x).reshape(x.shape), x + math.nan)
    with seeded(0, x.device), pyro.validation_enabled(False):
        try:
            first = prior(x)
            z = _draw(first, x)
            expected = first.log_prob(z)
            same = (torch.allclose(prior(y).log_prob(z), expected, 0, 0, equal_nan=True) for y in others)
            return len(x) in first.batch_shape or not all(same)
        except (RuntimeError, ValueError, IndexError):
            return True  # of some data, and not of others


def _draw(distribution: Distribution, x: Tensor) -> Tensor:
    try:
        return distribution.sample()
    except NotImplementedError:  # an improper prior
        return x.new_zeros(distribution.batch_shape + distribution.event_shape)
