"""The inputs of figures: checked data, the use of latents, quantiles of slabs, and evaluation under a seed."""

from __future__ import annotations

import functools
import numbers
from collections.abc import Callable, Iterator, Mapping
from typing import Concatenate, NamedTuple, ParamSpec, TypeVar, cast

import numpy as np
import torch
from pyro.distributions import (
    Categorical,
    MixtureSameFamily,  # pyright: ignore[reportAttributeAccessIssue]  Pyro defines it at import
)
from torch import Tensor
from torch.distributions import Distribution
from torch.nn.functional import logsigmoid

from vsc_pyro._arguments import natural_int
from vsc_pyro._seeding import seeded
from vsc_pyro.datasets import Dataset
from vsc_pyro.datasets.numbers import as_numbers
from vsc_pyro.distributions import centre, inclusion_logits, inclusion_of, is_proper, slab_of
from vsc_pyro.models.data_checks import in_memory
from vsc_pyro.models.vae import VAE, check_is_vae

_DRAWS = 10_000  # for quantiles without a formula
P = ParamSpec("P")
R = TypeVar("R")


def seeded_evaluation(function: Callable[Concatenate[VAE, P], R]) -> Callable[Concatenate[VAE, P], R]:
    """Run in evaluation mode, without gradients, with the argument `seed`; restore mode and random state."""

    @functools.wraps(function)
    def wrapper(model: VAE, *args: P.args, **kwargs: P.kwargs) -> R:
        check_is_vae(model)
        seed = natural_int("seed", cast(int, kwargs.get("seed", 0)))
        with model.evaluating(), seeded(seed, model.reference.device):
            return function(model, *args, **kwargs)

    return wrapper


def check_named(argument: str, results: object, *kinds: type) -> None:
    """Raise `ValueError` unless the value of `argument` is a dict from names to one or more results of these kinds."""
    if not isinstance(results, Mapping) or not results:
        kind = f"an empty {type(results).__name__}" if isinstance(results, Mapping) else f"a {type(results).__name__}"
        raise ValueError(f"{argument} must be a dict from names to at least one result, {{'mine': result}}, got {kind}")
    for name, result in results.items():
        if not isinstance(result, kinds):
            raise ValueError(
                f"{argument}[{name!r}] must be a {' or '.join(kind.__name__ for kind in kinds)}, got {result!r}"
            )


# Data and models ------------------------------------------------------------------------------------------------------


def some_data(model: VAE, x: Tensor | np.ndarray, num: int) -> Tensor:
    """Return `x` as `num` data of shape ``(num, ...)``, on the device and in the type of the model.

    A single datum may lack the leading dimension.

    Raises:
        ValueError: another number of data, or data that do not fit the model.
    """
    remedy = f"pass data.images[:{num}] or data.draw(slice({num}))"
    if isinstance(x, Dataset):
        raise ValueError(f"x must be a tensor of {_data(num)}, got a Dataset; {remedy}")
    x = as_numbers(x, "x")
    shape = getattr(model.encoder, "input_shape", None)
    # For a model of flat data, an image of three dimensions or a row of pixels is one datum, too.
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
    """Return `data` as a `Dataset`, or raise `ValueError` if they do not fit the model."""
    data = in_memory(data)
    model.check_data(data.images)
    return data


def batches(model: VAE, data: Dataset) -> Iterator[Tensor]:
    """Yield the data as the model sees them, a thousand at a time, on its device."""
    return (data.draw(rows).to(model.reference) for rows in torch.arange(len(data)).split(1000))


def latent_index(latent: int, posterior: Distribution) -> int:
    """Return `latent` as an `int`, or raise `ValueError` if the posterior has no such latent."""
    num = posterior.event_shape[-1]
    if isinstance(latent, bool) or not isinstance(latent, numbers.Integral) or not 0 <= latent < num:
        raise ValueError(f"latent must be a whole number from 0 to {num - 1}, of {num} latents, got {latent!r}")
    return int(latent)


def proper_prior(model: VAE, x: Tensor, remedy: str = "build the model with a proper prior") -> Distribution:
    """Return the distribution of codes before any datum is seen, or raise `ValueError` if it is flat."""
    prior = model.marginal_prior(x)
    if not is_proper(prior):
        raise ValueError(f"the prior is flat, and there is nothing to draw from; {remedy}")
    return prior


class Usage(NamedTuple):
    """The use of latents over data; tensors of shape ``(J,)``, on the CPU.

    Attributes:
        inclusion: mean inclusion probability.
        highest: largest inclusion probability.
        datum: index of the datum in which the product of inclusion and distance from zero is largest.
        order: the latents, by decreasing mean inclusion, and among equals by decreasing variance of their centres.
    """

    inclusion: Tensor
    highest: Tensor
    datum: Tensor
    order: Tensor


def usage_of(model: VAE, seen: Tensor) -> Usage:
    """Return the `Usage` of latents over data ``(N, ...)`` as the model sees them; all figures order latents by it."""
    sums, scores, places, highest = [], [], [], []
    for start, x in zip(range(0, len(seen), 1000), seen.split(1000), strict=True):
        posterior = model.encoder(x.to(model.reference))
        inclusion, centres = inclusion_of(posterior).cpu(), centre(posterior).cpu()
        sums.append(torch.stack([x.double().sum(0) for x in (inclusion, centres, centres.double() ** 2)]))
        score, place = (inclusion * centres.abs()).max(0)
        scores.append(score)
        places.append(place + start)
        highest.append(inclusion.amax(0))
    mean, first, second = sum(sums, torch.zeros((), dtype=torch.float64)) / len(seen)
    by_spread = (second - first**2).argsort(descending=True)
    order = by_spread[mean[by_spread].argsort(descending=True, stable=True)]
    best = torch.stack(scores).argmax(0, keepdim=True)
    return Usage(mean.float(), torch.stack(highest).amax(0), torch.stack(places).gather(0, best)[0], order)


# Slabs ----------------------------------------------------------------------------------------------------------------


def quantiles(slab: Distribution, levels: Tensor) -> Tensor:
    """Return quantiles of every coordinate, shape ``(len(levels), ...)``, from draws if there is no formula."""
    try:
        return slab.icdf(levels.reshape(-1, *[1] * len(slab.batch_shape)))
    except NotImplementedError:
        return slab.sample((_DRAWS,)).sort(0).values[(levels * (_DRAWS - 1)).round().long()]


def slab_quantiles(distribution: Distribution, latent: int, levels: Tensor) -> Tensor:
    """Return quantiles of one latent given that it is on, shape ``(len(levels),)``."""
    return quantiles(_given_on(distribution, latent), levels)[..., latent].flatten()


def slab_draws(distribution: Distribution, latent: int, num: int) -> Tensor:
    """Draw one latent given that it is on, shape ``(num,)``."""
    return _given_on(distribution, latent).sample((num,))[..., latent].flatten()


def _given_on(distribution: Distribution, latent: int) -> Distribution:
    slab = slab_of(distribution)
    if not isinstance(slab, MixtureSameFamily) or inclusion_logits(slab) is None:
        return slab
    # By Bayes' rule, the weight of a component given that the latent is on grows with its inclusion of the latent.
    components, ndims = slab.component_distribution, len(slab.event_shape)
    on = logsigmoid(inclusion_logits(components))
    weights = slab.mixture_distribution.logits + (on[..., latent] if ndims else on)
    return MixtureSameFamily(Categorical(logits=weights), slab_of(components).to_event(ndims))
