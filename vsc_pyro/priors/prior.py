"""What a prior is: a module whose forward takes data x and returns p(z), and what it may offer besides."""

from __future__ import annotations

from torch import Tensor, nn
from torch.distributions import Distribution


class Prior(nn.Module):
    """Base class of the priors. Define `forward`; the rest has defaults, for priors that need none of it.

    Attributes:
        is_bound: whether training against `forward` bounds the evidence.
    """

    is_bound: bool = True

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
