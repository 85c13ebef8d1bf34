r"""`impute`: missing pixels drawn from the model's own distribution, given the observed pixels.

With observed pixels :math:`x_o` and missing pixels :math:`x_m`, Markov chains on (z, x_m) have the stationary
distribution :math:`p(z, x_m | x_o)` for any encoder. The encoder, trained on whole data, only proposes codes. A step is

* a code :math:`z' \sim q(z|x_o, x_m)`, accepted with probability

  .. math:: \min\Big(1, \frac{p(x_o, x_m|z')\, p(z')\, q(z|x_o, x_m)}{p(x_o, x_m|z)\, p(z)\, q(z'|x_o, x_m)}\Big),

  with the exact densities of hard spikes (Metropolis within Gibbs; P.-A. Mattei, J. Frellsen, 2018);
* missing pixels :math:`x_m \sim p(x_m|z)`.

A proposal that redraws many latents at once is rarely accepted. If q draws latents independently, each latent is
therefore redrawn with probability 1, 1/2, 1/4 or 1/8, and the others are kept. The probability is drawn for every step
and chain, independently of the code, so the kept latents drop out of the ratio.

Chains start from the prior, with steps that accept every code (pseudo-Gibbs; D. J. Rezende, S. Mohamed, D. Wierstra,
2014). These move quickly to the region of the data, but their stationary distribution is not exact.

References
    A. E. Gelfand, A. F. M. Smith (1990), Sampling-based approaches to calculating marginal densities.
    P.-A. Mattei, J. Frellsen (2018), Leveraging the exact likelihood of deep latent variable models.
    D. J. Rezende, S. Mohamed, D. Wierstra (2014), Stochastic backpropagation and approximate inference in deep
        generative models.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor
from torch.distributions import Distribution, Independent
from tqdm.auto import tqdm

from vsc_pyro._arguments import natural_int, positive_int
from vsc_pyro._seeding import seeded
from vsc_pyro.datasets import Dataset
from vsc_pyro.datasets.numbers import as_numbers
from vsc_pyro.distributions import centre, given, is_point
from vsc_pyro.distributions.observed import observed_only
from vsc_pyro.models.data_checks import check_figure, check_support, in_memory
from vsc_pyro.models.vae import VAE, check_is_vae

_ROWS_AT_ONCE = 10_000  # chains in a batch: 30 MB for 784 pixels in float32
_SMALLEST_SHARE = 3  # as a power of a half


@dataclasses.dataclass(frozen=True, eq=False)
class Imputation:
    """The result of `impute`, on the model's device.

    Attributes:
        mean: observed pixels, and :math:`E[x_m | x_o]` at missing pixels; shape of the data, ``(B, ...)``. The estimate
            averages the decoder's mean over chains (Rao-Blackwellised; A. E. Gelfand, A. F. M. Smith, 1990).
        samples: observed pixels, and one draw of the missing pixels from each chain; shape ``(S, B, ...)``.
        codes: the code z of each sample, shape ``(S, B, J)``.
        acceptance: share of the proposed changes of a code that were accepted, over chains and steps, shape ``(B,)``;
            NaN if none was proposed. Near 0 the chains have hardly moved, whatever `samples` look like.
    """

    mean: Tensor
    samples: Tensor
    codes: Tensor
    acceptance: Tensor


def impute(
    model: VAE,
    x: Tensor | np.ndarray,
    mask: Tensor | np.ndarray | None = None,
    *,
    num_samples: int = 20,
    num_steps: int = 200,
    num_pseudo_steps: int = 20,
    seed: int = 0,
    progress: bool = False,
) -> Imputation:
    r"""Draw missing pixels from :math:`p(x_m | x_o)`, the model's own distribution given the observed pixels.

    Markov chains converge to this distribution for any encoder. The number of steps they need depends on the model: run
    more and compare. Memory is bounded except for the result. The model's mode and the caller's random state are
    restored. A latent variable of the prior common to all data (a learned inclusion's posterior) is held at its mean,
    as in `vsc_pyro.evaluate`.

    Args:
        model: a `vsc_pyro.VAE`.
        x: data as the model sees them (after binarisation, if any), shape ``(B, ...)``. Values at missing pixels are
            ignored and may be NaN. (Grey levels under a `BernoulliDecoder` are weighted by their cross-entropy, which
            is no likelihood.)
        mask: bool, **True where a pixel is OBSERVED**, False where it is missing; of the shape of x, or of one that
            broadcasts to it. None if exactly the NaN of x are missing. A datum without an observed pixel is drawn
            from the model's prior.
        num_samples: independent chains S of each datum, one draw from each.
        num_steps: exact steps of each chain, after the pseudo-Gibbs steps. A step takes one pass of the encoder and two
            of the decoder.
        num_pseudo_steps: pseudo-Gibbs steps, which accept every code.
        seed: of all random draws.
        progress: show a bar.

    Raises:
        ValueError: a mask that is not bool or has another shape, observed pixels that are not finite or outside the
            support of the likelihood, a posterior that is a point, a flat prior, a likelihood whose pixels are not
            independent given the code, or numbers below 1.

    Example:
        >>> import torch, vsc_pyro as vsc
        >>> _ = torch.manual_seed(0)
        >>> model = vsc.VAE(vsc.SpikeSlabEncoder(4, 2), vsc.NormalDecoder(2, 4), vsc.SpikeSlabPrior(2))
        >>> x, mask = torch.randn(3, 4), torch.tensor([True, True, False, False])
        >>> imputed = vsc.impute(model, x, mask, num_samples=5, num_steps=10)
        >>> imputed.samples.shape, torch.equal(imputed.mean[:, :2], x[:, :2])
        (torch.Size([5, 3, 4]), True)
    """
    check_is_vae(model)
    num_samples, seed = positive_int("num_samples", num_samples), natural_int("seed", seed)
    num_steps = positive_int("num_steps", num_steps)
    num_pseudo_steps = natural_int("num_pseudo_steps", num_pseudo_steps)
    if isinstance(x, Dataset):  # its images may still have to be binarised
        raise ValueError("x must be a tensor of data as the model sees them, got a Dataset; pass data.draw(slice(10))")
    x = in_memory(x).images.to(model.reference)
    mask = _checked_mask(~x.isnan() if mask is None else mask, x)
    with model.evaluating(), seeded(seed, x.device), pyro.validation_enabled(False):
        x = _without_missing(model, x, mask)
        prior = _checked_prior(model, x, mask)
        chains = torch.arange(len(x) * num_samples, device=x.device).split(_ROWS_AT_ONCE)
        steps = num_pseudo_steps + num_steps
        mean, parts = torch.zeros_like(x), []
        with tqdm(total=len(chains) * steps, desc="impute", unit="step", disable=not progress) as bar:
            for rows in chains:
                datum = rows // num_samples
                means, *part = _run(model, prior, x[datum], mask[datum], num_pseudo_steps, num_steps, bar)
                mean.index_add_(0, datum, means / num_samples)
                parts.append(part)
    samples, codes, accepted, proposed = (
        torch.cat(part).unflatten(0, (len(x), num_samples)) for part in zip(*parts, strict=True)
    )
    check_figure("imputed mean or code", torch.cat([mean.flatten(1), codes.flatten(1)], 1))
    return Imputation(
        mean=torch.where(mask, x, mean),
        samples=samples.transpose(0, 1),
        codes=codes.transpose(0, 1),
        acceptance=accepted.sum(1) / proposed.sum(1),
    )


def _run(
    model: VAE, prior: Distribution, x: Tensor, mask: Tensor, num_pseudo_steps: int, num_steps: int, bar: tqdm
) -> tuple[Tensor, ...]:
    """Run a chain for each row of x; return its last mean, draw and code, and counts of accepted and proposed codes."""
    z = prior.expand(x.shape[:1]).sample()
    likelihood = given(model.decoder(z), x)
    accepted, proposed = x.new_zeros(2, len(x))
    for step in range(num_pseudo_steps + num_steps):
        x = torch.where(mask, x, likelihood.sample().reshape(x.shape))
        posterior = model.encoder(x)
        proposal = posterior.sample()
        if step < num_pseudo_steps:
            z = proposal
        else:
            redrawn = _redrawn(posterior, z)
            proposal = torch.where(redrawn, proposal, z)
            log_ratio = (
                _log_likelihood_ratio(given(model.decoder(proposal), x), likelihood, x)
                + (prior.log_prob(proposal) - prior.log_prob(z))
                + _log_proposal_ratio(posterior, z, proposal, redrawn)
            )
            accept = torch.rand_like(log_ratio).log() < log_ratio
            moved = (proposal != z).flatten(1).any(1)
            accepted += accept & moved
            proposed += moved
            z = torch.where(_unsqueeze_like(accept, z), proposal, z)
        likelihood = given(model.decoder(z), x)
        bar.update()
    x = torch.where(mask, x, likelihood.sample().reshape(x.shape))
    return centre(likelihood).reshape(x.shape), x, z, accepted, proposed


def _redrawn(posterior: Distribution, z: Tensor) -> Tensor:
    """Return True for each latent that the proposal redraws; bool, shape of z."""
    if _scalars(posterior).event_shape:
        return torch.ones_like(z, dtype=torch.bool)
    share = 0.5 ** torch.randint(_SMALLEST_SHARE + 1, z.shape[:1], device=z.device)
    return torch.rand_like(z) < _unsqueeze_like(share, z)


def _log_proposal_ratio(posterior: Distribution, z: Tensor, proposal: Tensor, redrawn: Tensor) -> Tensor:
    each = _scalars(posterior)
    if each.event_shape:
        return posterior.log_prob(z) - posterior.log_prob(proposal)
    # Kept latents are left out rather than cancelled: in the tails of a sharp q their huge terms would absorb the
    # digits of the others.
    difference = each.log_prob(z) - each.log_prob(proposal)
    return torch.where(redrawn, difference, torch.zeros_like(difference)).flatten(1).sum(1)


def _log_likelihood_ratio(new: Distribution, old: Distribution, x: Tensor) -> Tensor:
    value = x.reshape(x.shape[:1] + new.event_shape)
    return (_scalars(new).log_prob(value) - _scalars(old).log_prob(value)).reshape(len(x), -1).sum(1)


def _scalars(distribution: Distribution) -> Distribution:
    """Return the distribution without `Independent`; its `event_shape` is empty if its coordinates are independent."""
    while isinstance(distribution, Independent):
        distribution = distribution.base_dist
    return distribution


def _unsqueeze_like(rows: Tensor, z: Tensor) -> Tensor:
    return rows.reshape(rows.shape + (1,) * (z.ndim - 1))


def _checked_mask(mask: Any, x: Tensor) -> Tensor:
    mask = as_numbers(mask, "mask").to(x.device)
    if mask.dtype != torch.bool:
        raise ValueError(
            f"mask must be a bool tensor, True where a pixel is observed, got {mask.dtype}; pass mask.bool() if its "
            "ones are the observed pixels"
        )
    try:
        mask = mask.expand(x.shape)
    except RuntimeError as error:
        raise ValueError(
            f"mask must be of the shape of x, {tuple(x.shape)}, or broadcast to it, got {tuple(mask.shape)}; one for "
            f"all data has the shape of a datum, {tuple(x.shape[1:])}"
        ) from error
    bad = int((mask & ~torch.isfinite(x)).sum())
    if bad:
        raise ValueError(
            f"x holds {bad} NaN or infinite values where mask is True (observed); make mask False where a pixel is "
            "missing"
        )
    return mask


def _without_missing(model: VAE, x: Tensor, mask: Tensor) -> Tensor:
    """Return x, checked, with values at missing pixels that do not depend on the values given there."""
    # Zero may lie outside the support of the likelihood; a draw does not.
    x = torch.where(mask, x, torch.zeros_like(x))
    code = model.marginal_prior(x[:1])
    draw = model.decoder(x.new_zeros(1, *code.event_shape)).sample()
    if draw[0].numel() == x[0].numel():
        x = torch.where(mask, x, draw.reshape(1, *x.shape[1:]))
    model.check_data(x)
    return x


def _checked_prior(model: VAE, x: Tensor, mask: Tensor) -> Distribution:
    """Return the prior of a model whose posterior has a density, and check that missing pixels can be left out."""
    if is_point(model.encoder(x[:1])):
        raise ValueError(
            "the posterior must have a density for the acceptance of proposals, and "
            f"{type(model.encoder).__name__} gives points; take SpikeSlabEncoder, NormalEncoder or another"
        )
    prior = model.marginal_prior(x[:1])
    likelihood = observed_only(model.decoder(x.new_zeros(1, *prior.event_shape)))
    check_support(torch.where(mask, x, torch.nan), likelihood, x)
    return prior
