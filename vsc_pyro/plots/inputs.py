"""How a model is looked at, hard spikes and the caller's random state left alone, and what of a code is seen."""

from __future__ import annotations

import functools
import numbers
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from pyro.distributions import Categorical, MixtureSameFamily
from torch import Tensor
from torch.distributions import Distribution
from torch.nn.functional import logsigmoid

from vsc_pyro._arguments import natural_int
from vsc_pyro._seeding import seeded
from vsc_pyro.datasets import Dataset
from vsc_pyro.distributions import centre, inclusion_logits, inclusion_of, is_proper, slab_of
from vsc_pyro.models.data_checks import in_memory
from vsc_pyro.models.vae import VAE

_DRAWS = 10_000  # that quantiles are taken from where there is no formula
F = TypeVar("F", bound=Callable[..., Any])


def looking(function: F) -> F:
    """Run in evaluation mode, without gradients, and leave mode and random state as they were."""

    @functools.wraps(function)
    def wrapper(model: VAE, *args: Any, **kwargs: Any) -> Any:
        with model.evaluating(), seeded(natural_int("seed", kwargs.get("seed", 0)), model.reference.device):
            return function(model, *args, **kwargs)

    return wrapper


# What is looked at ----------------------------------------------------------------------------------------------------


def some_data(model: VAE, x: Tensor | np.ndarray, num: int) -> Tensor:
    """`x` as `num` data of shape ``(num, ...)`` that the model takes, where it is and in its type.

    Of one datum the leading dimension may be missing.

    Raises:
        ValueError: another number of data, or data that do not fit the model.
    """
    remedy = f"pass data.images[:{num}], or what data.draw(slice({num})) gives"
    if isinstance(x, Dataset):
        raise ValueError(f"x must be a tensor of {_data(num)}, got a Dataset; {remedy}")
    x = torch.as_tensor(x)
    shape = getattr(model.encoder, "input_shape", None)
    # Of a model of flat data an image of three dimensions, or a row of pixels, is one datum as well.
    if num == 1 and (x.shape == shape or (x.shape[1:] != shape and x.ndim % 2 == 1)):
        x = x.unsqueeze(0)
    if x.ndim < 2 or len(x) != num:
        raise ValueError(f"x must be {_data(num)}, got a tensor of shape {tuple(x.shape)}; {remedy}")
    x = in_memory(x).images
    model.check_data(x)
    return x.to(model.reference)


def _data(num: int) -> str:
    return "one datum" if num == 1 else f"{num} data"


def data_for(model: VAE, data: Dataset | Tensor | np.ndarray) -> Dataset:
    """`data` as a `Dataset` that the model takes, or `ValueError`."""
    data = in_memory(data)
    model.check_data(data.images)
    return data


def batches(model: VAE, data: Dataset) -> Iterator[Tensor]:
    """The data as the model sees them, a thousand at a time, where it is."""
    return (data.draw(rows).to(model.reference) for rows in torch.arange(len(data)).split(1000))


def latent_index(latent: int, posterior: Distribution) -> int:
    """Return `latent` as an `int` that counts a latent of this posterior, or raise `ValueError`."""
    num = posterior.event_shape[-1]
    if isinstance(latent, bool) or not isinstance(latent, numbers.Integral) or not 0 <= latent < num:
        raise ValueError(f"latent must be a whole number from 0 to {num - 1}, of {num} latents, got {latent!r}")
    return int(latent)


def proper_prior(model: VAE, x: Tensor, remedy: str = "build the model with a proper prior") -> Distribution:
    """The distribution of codes before any datum is seen, or `ValueError` where it is flat."""
    prior = model.marginal_prior(x)
    if not is_proper(prior):
        raise ValueError(f"the prior is flat, and there is nothing to draw from; {remedy}")
    return prior


class Usage(NamedTuple):
    """How much of the data each latent is used for, shapes ``(J,)``, on the CPU.

    Attributes:
        inclusion: mean inclusion probability.
        highest: largest inclusion probability.
        datum: where the latent is surely on and far from zero: the largest product of inclusion and distance.
        order: the latents, most used first: by their mean inclusion, and of equals by how much their centres vary.
    """

    inclusion: Tensor
    highest: Tensor
    datum: Tensor
    order: Tensor


def usage_of(model: VAE, seen: Tensor) -> Usage:
    """`Usage` in data ``(N, ...)`` as the model sees them. All pictures take their order of latents from here."""
    sums, highest, score, datum = 0.0, None, None, None
    for start in range(0, len(seen), 1000):
        posterior = model.encoder(seen[start : start + 1000].to(model.reference))
        inclusion, centres = inclusion_of(posterior).cpu(), centre(posterior).cpu()
        sums = sums + torch.stack([x.double().sum(0) for x in (inclusion, centres, centres.double() ** 2)])
        own, place = (inclusion * centres.abs()).max(0)
        if score is None:
            score, datum, highest = own, place, inclusion.amax(0)
        datum = torch.where(own > score, place + start, datum)
        score, highest = torch.maximum(own, score), torch.maximum(highest, inclusion.amax(0))
    mean, first, second = sums / len(seen)
    by_spread = (second - first**2).argsort(descending=True)
    order = by_spread[mean[by_spread].argsort(descending=True, stable=True)]
    return Usage(mean.float(), highest, datum, order)


# What of a code is seen -----------------------------------------------------------------------------------------------


def quantiles(slab: Distribution, levels: Tensor) -> Tensor:
    """Quantiles of every coordinate, shape ``(len(levels), ...)``, of draws where the family has no formula."""
    try:
        return slab.icdf(levels.reshape(-1, *[1] * len(slab.batch_shape)))
    except NotImplementedError:
        return slab.sample((_DRAWS,)).sort(0).values[(levels * (_DRAWS - 1)).round().long()]


def slab_quantiles(distribution: Distribution, latent: int, levels: Tensor) -> Tensor:
    """Quantiles of one latent given that it is on, shape ``(len(levels),)``."""
    return quantiles(_given_on(distribution, latent), levels)[..., latent].flatten()


def slab_draws(distribution: Distribution, latent: int, num: int) -> Tensor:
    """Draws of one latent given that it is on, shape ``(num,)``."""
    return _given_on(distribution, latent).sample((num,))[..., latent].flatten()


def _given_on(distribution: Distribution, latent: int) -> Distribution:
    slab = slab_of(distribution)
    if not isinstance(slab, MixtureSameFamily) or inclusion_logits(slab) is None:
        return slab
    # A component is the likelier the more it has of the latent: of a mixture of codes, of this latent alone.
    components, ndims = slab.component_distribution, len(slab.event_shape)
    on = logsigmoid(inclusion_logits(components))
    weights = slab.mixture_distribution.logits + (on[..., latent] if ndims else on)
    return MixtureSameFamily(Categorical(logits=weights), slab_of(components).to_event(ndims))
