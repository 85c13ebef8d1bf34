r"""`impute`: pixels that are missing, drawn from the model's own distribution given those that are not.

With observed pixels :math:`x_o` and missing ones :math:`x_m`, chains on (z, x_m) whose stationary distribution is
:math:`p(z, x_m | x_o)` whatever the encoder, which was trained on whole data and only proposes. A step is

* a code :math:`z' \sim q(z|x_o, x_m)`, accepted with probability

  .. math:: \min\Big(1, \frac{p(x_o, x_m|z')\, p(z')\, q(z|x_o, x_m)}{p(x_o, x_m|z)\, p(z)\, q(z'|x_o, x_m)}\Big),

  all of them the exact densities of hard spikes (Metropolis within Gibbs; P.-A. Mattei, J. Frellsen, 2018);
* missing pixels :math:`x_m \sim p(x_m|z)`.

A code of many latents drawn anew as a whole is rarely accepted. Where q draws latents independently, a proposal
therefore redraws each with a probability of 1, 1/2, 1/4 or 1/8, itself drawn anew for every step and chain, and keeps
the others; which are redrawn depends on nothing, and those that are kept drop out of the ratio.

Chains start from the prior, with steps whose codes are always accepted (pseudo-Gibbs; D. J. Rezende, S. Mohamed,
D. Wierstra, 2014): from anywhere they are near the data in a few, and only near.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pyro
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent
from tqdm.auto import tqdm

from vsc_pyro._arguments import natural_int, positive_int
from vsc_pyro._seeding import seeded
from vsc_pyro.datasets import Dataset
from vsc_pyro.distributions import centre, is_point
from vsc_pyro.models.data_checks import check_figure, in_memory

_ROWS_AT_ONCE = 10_000  # chains side by side: 784 pixels in float32 take 30 MB a copy
_SMALLEST_SHARE = 3  # as a power of a half


@dataclasses.dataclass(frozen=True, eq=False)
class Imputation:
    """What `impute` returns, on the model's device.

    Attributes:
        mean: observed pixels as they are, missing ones :math:`E[x_m | x_o]`, shape of the data ``(B, ...)``: the mean
            over chains of the decoder's mean, not of the draws (Rao-Blackwellised; A. E. Gelfand, A. F. M. Smith,
            1990).
        samples: observed pixels as they are, missing ones drawn, shape ``(S, B, ...)``, a draw from each chain.
        codes: z of those draws, shape ``(S, B, J)``.
        acceptance: share of the proposed changes of a code that were accepted, over chains and steps, shape ``(B,)``;
            NaN where none was proposed. Near 0 the chains have hardly moved, whatever `samples` look like.
    """

    mean: Tensor
    samples: Tensor
    codes: Tensor
    acceptance: Tensor


def impute(
    model: nn.Module,
    x: Tensor | np.ndarray,
    mask: Tensor | np.ndarray,
    *,
    num_samples: int = 20,
    num_steps: int = 200,
    num_pseudo_steps: int = 20,
    seed: int = 0,
    progress: bool = False,
) -> Imputation:
    r"""Draw missing pixels from :math:`p(x_m | x_o)`, the model's own distribution given the observed ones.

    By Markov chains whose stationary distribution that is, whatever the encoder, which only proposes. How near they are
    after `num_steps` depends on the model: run more and compare. Memory is bounded but for what is returned. Mode and
    the caller's random state are left as they were. A latent variable of the prior common to all data (a learned
    inclusion's posterior) is held at its mean, as in `vsc_pyro.evaluate`.

    Args:
        model: a `vsc_pyro.VAE`.
        x: data as the model sees them (binarised, if they are to be), shape ``(B, ...)``. Values at missing pixels
            are not looked at and may be anything, NaN too. (Grey levels under a `BernoulliDecoder` are weighed by
            their cross-entropy, which is no likelihood.)
        mask: bool, **True where a pixel is OBSERVED**, False where it is missing; of the shape of x or one that
            broadcasts to it. Where nothing of a datum is observed it is drawn from the model's prior.
        num_samples: independent chains S of each datum, which give one draw each.
        num_steps: of each chain, after the pseudo-Gibbs ones. A step takes one pass of the encoder and two of the
            decoder.
        num_pseudo_steps: steps before those whose codes are always accepted.
        seed: of everything that is drawn.
        progress: show a bar.

    Raises:
        ValueError: a mask that is not bool or of another shape; observed pixels that are not finite or not in the
            support of the likelihood; a posterior that is a point, a flat prior, or a likelihood whose pixels are
            not independent given the code; or numbers below 1.
    """
    num_samples, seed = positive_int("num_samples", num_samples), natural_int("seed", seed)
    num_steps = positive_int("num_steps", num_steps)
    num_pseudo_steps = natural_int("num_pseudo_steps", num_pseudo_steps)
    if isinstance(x, Dataset):  # whose images need not be what the model sees
        raise ValueError("x must be a tensor of data as the model sees them, got a Dataset; pass data.draw(slice(10))")
    x = in_memory(x).images.to(model.reference)
    mask = _checked_mask(mask, x)
    with model.evaluating(), seeded(seed, x.device), pyro.validation_enabled(False):
        x = _without_missing(model, x, mask)
        prior = _refuse(model, x)
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
    model: nn.Module, prior: Distribution, x: Tensor, mask: Tensor, num_pseudo_steps: int, num_steps: int, bar: tqdm
) -> tuple[Tensor, ...]:
    """One chain for each row of x: the last mean of the decoder, draw and code; changes accepted and proposed."""
    z = prior.expand(x.shape[:1]).sample()
    likelihood = model.decoder(z)
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
                _log_ratio(model.decoder(proposal), likelihood, x)
                + (prior.log_prob(proposal) - prior.log_prob(z))
                + _log_proposal_ratio(posterior, z, proposal, redrawn)
            )
            accept = torch.rand_like(log_ratio).log() < log_ratio
            moved = (proposal != z).flatten(1).any(1)
            accepted += accept & moved
            proposed += moved
            z = torch.where(_unsqueeze_like(accept, z), proposal, z)
        likelihood = model.decoder(z)
        bar.update()
    x = torch.where(mask, x, likelihood.sample().reshape(x.shape))
    return centre(likelihood).reshape(x.shape), x, z, accepted, proposed


def _redrawn(posterior: Distribution, z: Tensor) -> Tensor:
    """Which latents a proposal draws anew: bool, of the shape of z."""
    if _scalars(posterior) is None:
        return torch.ones_like(z, dtype=torch.bool)
    share = 0.5 ** torch.randint(_SMALLEST_SHARE + 1, z.shape[:1], device=z.device)
    return torch.rand_like(z) < _unsqueeze_like(share, z)


def _log_proposal_ratio(posterior: Distribution, z: Tensor, proposal: Tensor, redrawn: Tensor) -> Tensor:
    if _scalars(posterior) is None:
        return posterior.log_prob(z) - posterior.log_prob(proposal)
    # Latents that are kept are left out and not cancelled: far out in a sharp q they would drown the others' digits.
    each = _scalars(posterior)
    difference = each.log_prob(z) - each.log_prob(proposal)
    return torch.where(redrawn, difference, torch.zeros_like(difference)).flatten(1).sum(1)


def _log_ratio(new: Distribution, old: Distribution, x: Tensor) -> Tensor:
    value = x.reshape(x.shape[:1] + new.event_shape)
    return (_scalars(new).log_prob(value) - _scalars(old).log_prob(value)).flatten(1).sum(1)


def _scalars(distribution: Distribution) -> Distribution | None:
    """The distributions of the coordinates of an event, where they are independent; else None."""
    while isinstance(distribution, Independent):
        distribution = distribution.base_dist
    return None if distribution.event_shape else distribution


def _unsqueeze_like(rows: Tensor, z: Tensor) -> Tensor:
    return rows.reshape(rows.shape + (1,) * (z.ndim - 1))


def _checked_mask(mask: Tensor | np.ndarray, x: Tensor) -> Tensor:
    mask = torch.as_tensor(mask, device=x.device)
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
            f"x holds {bad} NaN or infinite values where mask is True, which says observed; make it False there"
        )
    return mask


def _without_missing(model: nn.Module, x: Tensor, mask: Tensor) -> Tensor:
    """x with values at missing pixels that depend on the model alone, checked to be data of the model."""
    # Zero is not in the support of every likelihood; a draw is.
    x = torch.where(mask, x, torch.zeros_like(x))
    code = model.marginal_prior(x[:1])
    draw = model.decoder(x.new_zeros(1, *code.event_shape)).sample()
    if draw[0].numel() == x[0].numel():
        x = torch.where(mask, x, draw.reshape(1, *x.shape[1:]))
    model.check_data(x)
    return x


def _refuse(model: nn.Module, x: Tensor) -> Distribution:
    """The prior, of a model whose posterior has a density and whose pixels are independent given a code."""
    if is_point(model.encoder(x[:1])):
        raise ValueError(
            "the posterior must have a density for a proposal to be accepted or not, and "
            f"{type(model.encoder).__name__} gives points; take SpikeSlabEncoder, NormalEncoder or another"
        )
    prior = model.marginal_prior(x[:1])
    likelihood = model.decoder(x.new_zeros(1, *prior.event_shape))
    if _scalars(likelihood) is None:
        raise ValueError(
            "pixels must be independent given a code, so that the missing ones can be drawn apart from the observed, "
            f"got {type(likelihood).__name__}; let the decoder return a distribution of scalars made one of data by "
            ".to_event()"
        )
    return prior
