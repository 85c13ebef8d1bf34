"""What a prior is: a module whose forward takes data x and returns p(z), and what it may offer besides."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pyro
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from vsc_pyro._seeding import seeded
from vsc_pyro.models.modes import in_mode, on_copies


class Prior(nn.Module):
    """Base class of the priors. Define `forward`; the rest has defaults, for priors that need none of it.

    Attributes:
        is_bound: whether training against `forward` bounds the evidence; None for yes unless it depends on x, or
            returns a distribution for each datum, see `vsc_pyro.VAE.is_bound`.
    """

    is_bound: bool | None = None

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        if not isinstance(cls.is_bound, property) and "is_bound" not in vars(cls):
            # None of the library's own depends on x; what a subclass overrides may.
            cls.is_bound = True if cls.__module__.startswith("vsc_pyro.models.priors.") else None

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


def depends_on_data(model: nn.Module, prior: Callable[[Tensor], Distribution], x: Tensor) -> bool:
    """Whether `prior` depends on the data that it is given, or returns a distribution for each of them.

    Its log-density is compared at a draw, given batches that differ in all values, in either mode of `model`. The
    encoder is given each of them first, for a prior may read what that keeps.

    Args:
        model: with an encoder; it is left as it was.
        prior: of `model`.
        x: a batch of zeros, of a size that is no dimension's of a batch of priors otherwise.
    """
    generator = torch.Generator().manual_seed(0)
    inside, near = torch.rand(x.shape, generator=generator), 3 * torch.randn(x.shape, generator=generator)
    others = (x + 1, 100 * torch.linspace(-1, 1, x.numel()).to(x).reshape(x.shape), inside.to(x), near.to(x))
    with pyro.validation_enabled(False), torch.no_grad():
        return any(_depends(model, prior, x, others, training) for training in (False, True))


def _depends(
    model: nn.Module, prior: Callable[[Tensor], Distribution], x: Tensor, others: tuple[Tensor, ...], training: bool
) -> bool:
    # A prior may refuse some data, which is not to depend on them.
    given = [p for p in (_given(model, prior, y, training) for y in (x, *others)) if p is not None]
    if not given:
        return not training
    first, *rest = given
    try:
        with seeded(0, x.device):
            z = _draw(first, x)
        expected = first.log_prob(z)
        same = (torch.allclose(other.log_prob(z), expected, 0, 0, equal_nan=True) for other in rest)
        return len(x) in first.batch_shape or not all(same)
    except (RuntimeError, ValueError, IndexError):
        return True  # distributions of different shapes


def _given(model: nn.Module, prior: Callable[[Tensor], Distribution], x: Tensor, training: bool) -> Distribution | None:
    """What `prior` returns for x, each time from the same state and random numbers; None where it fails."""
    own = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    with on_copies(model), in_mode(model, training):
        # What depends on x may have a weight of zero before training.
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point() and id(tensor) not in own:
                tensor.masked_fill_(tensor == 0, 0.1)
        with seeded(0, x.device), contextlib.suppress(Exception):
            model.encoder(x)
        with seeded(0, x.device), contextlib.suppress(Exception):
            return prior(x)
    return None


def _draw(distribution: Distribution, x: Tensor) -> Tensor:
    try:
        return distribution.sample()
    except NotImplementedError:  # an improper prior
        return x.new_zeros(distribution.batch_shape + distribution.event_shape)
