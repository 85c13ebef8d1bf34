"""The interface of a prior: a module whose forward takes data x and returns p(z), with optional further methods."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import pyro
import torch
from torch import Tensor
from torch.distributions import Distribution

from vsc_pyro._recorded import Recorded
from vsc_pyro._seeding import seeded
from vsc_pyro.models.modes import in_mode, on_copies

if TYPE_CHECKING:
    from vsc_pyro.models.vae import VAE


class Prior(Recorded):
    """Base class of the priors. A subclass defines `forward`; the other methods have defaults.

    Attributes:
        is_bound: True if training against `forward` bounds the evidence, False if not. None for a test: True unless the
            prior depends on x or returns a distribution for each datum, see `vsc_pyro.VAE.is_bound`.

    >>> import torch, vsc_pyro as vsc
    >>> from pyro.distributions import StudentT
    >>> class StudentPrior(vsc.Prior):
    ...     def forward(self, x):
    ...         return StudentT(3.0, torch.zeros(4), torch.ones(4)).to_event(1)
    >>> vsc.VAE(vsc.NormalEncoder(64, 4), vsc.BernoulliDecoder(4, 64), StudentPrior()).is_bound
    True
    """

    is_bound: bool | None = None

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        if not isinstance(cls.is_bound, property) and "is_bound" not in vars(cls):
            # The library's own priors do not depend on x. A subclass may, so it does not inherit their answer.
            cls.is_bound = True if cls.__module__.startswith("vsc_pyro.models.priors.") else None

    def forward(self, x: Tensor) -> Distribution:
        """Return the distribution that the objective compares a posterior with.

        Its `event_shape` is ``(J,)`` and its `batch_shape` ``()`` or ``(B,)``. The values of `hyperparameters` arrive
        as keyword arguments, by their names.
        """
        raise NotImplementedError(f"{type(self).__name__} must define forward(x)")

    def marginal(self, x: Tensor) -> Distribution:
        """Return the distribution of codes before any datum is seen, from which samples are drawn."""
        return self(x)

    def hyperparameters(self) -> dict[str, tuple[Distribution, Distribution]]:
        """Return prior and posterior of each latent variable that is common to all data, by the name of its site."""
        return {}

    def penalty(self) -> Tensor | None:
        """Return a term that the objective subtracts, in nats per datum, a 0-d tensor; None for no term."""
        return None

    def prepare(self, images: Tensor) -> None:
        """Take starting values from training data, shape ``(N, ...)``; called by `fit`, before the first step."""

    def check_range(self, low: Tensor, high: Tensor) -> None:
        """Warn if the training data's range is not that shown to `prepare`; called after an epoch of a `DataLoader`."""


def depends_on_data(model: VAE, prior: Callable[[Tensor], Distribution], x: Tensor) -> bool:
    """Return True if `prior` depends on the data that it is given, or returns a distribution for each of them.

    The test compares the prior's log-density at one draw for several batches that differ in all values, in training and
    in evaluation mode. The encoder sees each batch first, because a prior may read what the encoder keeps.

    Args:
        model: the model; its state is left unchanged.
        prior: a function of the model that returns its prior, given data.
        x: a batch of zeros, whose size is not the size of any other batch dimension of the prior.
    """
    generator = torch.Generator().manual_seed(0)
    inside, near = torch.rand(x.shape, generator=generator), 3 * torch.randn(x.shape, generator=generator)
    others = (x + 1, 100 * torch.linspace(-1, 1, x.numel()).to(x).reshape(x.shape), inside.to(x), near.to(x))
    with pyro.validation_enabled(False), torch.no_grad():
        return any(_depends(model, prior, x, others, training) for training in (False, True))


def _depends(
    model: VAE, prior: Callable[[Tensor], Distribution], x: Tensor, others: tuple[Tensor, ...], training: bool
) -> bool:
    # Refusing some data does not count as depending on them.
    priors = [p for p in (_prior_given(model, prior, y, training) for y in (x, *others)) if p is not None]
    if not priors:
        return not training
    first, *rest = priors
    try:
        with seeded(0, x.device):
            z = _draw(first, x)
        expected = first.log_prob(z)
        same = (torch.allclose(other.log_prob(z), expected, 0, 0, equal_nan=True) for other in rest)
        return len(x) in first.batch_shape or not all(same)
    except (RuntimeError, ValueError, IndexError):
        return True  # distributions of different shapes


def _prior_given(model: VAE, prior: Callable[[Tensor], Distribution], x: Tensor, training: bool) -> Distribution | None:
    """Return the prior for x, from the same model state and random numbers in each call; None if it fails."""
    own = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    with on_copies(model), in_mode(model, training):
        # Before training, weights of zero may hide a dependence on x.
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
