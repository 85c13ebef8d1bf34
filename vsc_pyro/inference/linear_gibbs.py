r"""`gibbs_posterior`: the posterior of a linear-Gaussian model with more latents than enumeration can handle.

A blocked Gibbs sampler (J. Geweke, 1996; E. I. George, R. E. McCulloch, 1997). Every sweep splits the latents at random
into blocks and draws each block from its exact conditional given the other latents. Given these, the latents of a block
b form a linear-Gaussian model with :math:`r = h_b - G_{b\bar b} z_{\bar b}` in place of h
(`vsc_pyro.inference.linear_exact`). The spikes of a block are therefore drawn by enumeration of its patterns, with its
values integrated out. Blocks matter for two latents that explain the same part of a datum: usually one of them is on,
and only a joint draw can switch from one to the other.

Inclusion and mean are averages of the conditional expectations, not of the draws (Rao-Blackwellised; A. E. Gelfand, A.
F. M. Smith, 1990).

References
    A. E. Gelfand, A. F. M. Smith (1990), Sampling-based approaches to calculating marginal densities.
    A. Gelman, D. B. Rubin (1992), Inference from iterative simulation using multiple sequences.
    E. I. George, R. E. McCulloch (1997), Approaches for Bayesian variable selection.
    J. Geweke (1996), Variable selection and model comparison in regression.
    C. J. Geyer (1992), Practical Markov chain Monte Carlo.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from vsc_pyro._arguments import natural_int, positive_int
from vsc_pyro._seeding import seeded
from vsc_pyro.inference.linear_exact import MAX_LATENTS, NUMBERS_AT_ONCE, LinearGaussian, linear_gaussian
from vsc_pyro.models.vae import VAE

_BATCHES = 20  # of sweeps; the spread of their means estimates the standard error
_NOTHING = 1e-12  # variance between chains that is rounding error


@dataclasses.dataclass(frozen=True, eq=False)
class GibbsPosterior:
    """The result of `gibbs_posterior`, float64, on the model's device.

    Attributes:
        inclusion: P(z != 0 | x), shape ``(B, J)``.
        mean: of z given x, shape ``(B, J)``.
        inclusion_error: standard error of `inclusion`, from the means of batches of sweeps (Geyer, 1992) of all chains,
            shape ``(B, J)``. Neither this nor `r_hat` can detect a mode that no chain has visited.
        r_hat: potential scale reduction of the conditional inclusion probabilities over chains (Gelman & Rubin, 1992),
            shape ``(B, J)``; near 1 if chains agree, NaN for a single chain.
        draws: every `thin`-th draw of each chain, shape ``(chains, num_samples // thin, B, J)``.
    """

    inclusion: Tensor
    mean: Tensor
    inclusion_error: Tensor
    r_hat: Tensor
    draws: Tensor

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Choose kept draws at random from torch's random state, shape `sample_shape + (B, J)`."""
        kept = self.draws.flatten(0, 1)
        shape = (torch.Size(sample_shape).numel(), *self.inclusion.shape[:1], 1)
        index = torch.randint(len(kept), shape, device=kept.device).expand(-1, -1, kept.shape[-1])
        return kept.gather(0, index).reshape(*sample_shape, *self.inclusion.shape)


def gibbs_posterior(
    model: VAE,
    x: Tensor | np.ndarray,
    *,
    num_samples: int = 1000,
    burn_in: int = 200,
    chains: int = 4,
    block_size: int = 4,
    thin: int = 10,
    start: Tensor | None = None,
    seed: int = 0,
    progress: bool = False,
) -> GibbsPosterior:
    """Sample the posterior of data under a linear `NormalDecoder` and a `SpikeSlabPrior` of any number of latents.

    All data and chains are sampled in parallel, in chunks that bound memory except for the kept draws.

    Args:
        model: a `VAE` with a ``NormalDecoder(..., hidden=())``, of any variance, and a `SpikeSlabPrior` of normal
            slabs of any location and scale. Its encoder is not used.
        x: data, shape ``(B, ...)``.
        num_samples: sweeps of each chain after the burn-in, at least 2.
        burn_in: discarded sweeps at the start of each chain.
        chains: number of chains for each datum.
        block_size: latents drawn jointly, at most 12; the cost of a block of n latents grows as 2^n.
        thin: keep one draw in `thin`.
        start: codes to start from, shape ``(B, J)`` or ``(chains, B, J)``, such as draws of the encoder; None for draws
            from the prior.
        seed: of blocks and draws.
        progress: show a bar.

    Raises:
        ValueError: another decoder, prior or slab; data or `start` that do not fit the model; or numbers below 1.

    Example:
        >>> import torch, vsc_pyro as vsc
        >>> model = vsc.VAE(
        ...     vsc.SpikeSlabEncoder(4, 2), vsc.NormalDecoder(2, 4, hidden=()), vsc.SpikeSlabPrior(2, 0.3)
        ... )
        >>> posterior = vsc.gibbs_posterior(model, torch.randn(5, 4), num_samples=20, burn_in=5)
        >>> posterior.inclusion.shape, posterior.draws.shape
        (torch.Size([5, 2]), torch.Size([4, 2, 5, 2]))
    """
    num_samples, burn_in = positive_int("num_samples", num_samples), natural_int("burn_in", burn_in)
    if num_samples < 2:
        raise ValueError("num_samples must be at least 2, to estimate a standard error, got 1")
    if positive_int("block_size", block_size) > MAX_LATENTS:
        raise ValueError(
            f"block_size must be at most {MAX_LATENTS}, because a block of n latents has 2^n patterns, got {block_size}"
        )
    chains, thin, seed = positive_int("chains", chains), positive_int("thin", thin), natural_int("seed", seed)
    if thin > num_samples:
        raise ValueError(f"thin must be at most num_samples={num_samples}, to keep a draw, got {thin}")
    statistics = linear_gaussian(model, x)
    num_data, latents = statistics.projection.shape
    block_size = min(block_size, latents)
    starts = None if start is None else _checked(start, (chains, num_data, latents)).to(statistics.gram)
    width = max(_BATCHES * latents, 2**block_size * block_size**2)
    chunks = torch.arange(num_data).split(max(1, NUMBERS_AT_ONCE // (chains * width)))
    bar = tqdm(total=len(chunks) * (burn_in + num_samples), desc="gibbs", unit="sweep", disable=not progress)
    parts = []
    with torch.no_grad(), seeded(seed, statistics.gram.device), bar:
        for rows in chunks:
            chunk = statistics._replace(projection=statistics.projection[rows])
            z = _from_prior(chunk, chains) if starts is None else starts[:, rows].clone()
            parts.append(_run(chunk, z, num_samples, burn_in, block_size, thin, bar))
    inclusion, mean, error, r_hat, draws = zip(*parts, strict=True)
    return GibbsPosterior(*map(torch.cat, (inclusion, mean, error, r_hat)), draws=torch.cat(draws, 2))


def _checked(start: Tensor, shape: tuple[int, int, int]) -> Tensor:
    if start.shape not in (shape, shape[1:]) or not torch.isfinite(start).all():
        raise ValueError(
            f"start must be finite codes of shape {shape[1:]}, or {shape} for all chains, "
            f"got a tensor of shape {tuple(start.shape)}"
        )
    return start.detach().expand(shape)


def _from_prior(statistics: LinearGaussian, chains: int) -> Tensor:
    shape, gram = (chains, *statistics.projection.shape), statistics.gram
    on = torch.rand(shape, device=gram.device).to(gram) < statistics.logits.sigmoid()
    return on * (statistics.slab_loc + statistics.slab_scale * torch.randn(shape, device=gram.device).to(gram))


def _run(
    statistics: LinearGaussian, z: Tensor, num_samples: int, burn_in: int, block_size: int, thin: int, bar: tqdm
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Run chains from z, shape ``(chains, B, J)``; return the fields of `GibbsPosterior`."""
    batches = min(_BATCHES, num_samples)
    sums = z.new_zeros(batches, *z.shape)
    counts = z.new_zeros(batches, 1, 1, 1)
    squares, mean = torch.zeros_like(z), torch.zeros_like(z)
    kept = []
    for sweep in range(-burn_in, num_samples):
        inclusion, expected = _sweep(statistics, z, block_size)
        bar.update()
        if sweep < 0:
            continue
        batch = sweep * batches // num_samples
        sums[batch] += inclusion
        counts[batch] += 1
        squares += inclusion.square()
        mean += expected / num_samples
        if (sweep + 1) % thin == 0:
            kept.append(z.clone())
    of_chains = sums.sum(0) / num_samples
    error = (sums / counts).flatten(0, 1).std(0) / (batches * len(z)) ** 0.5
    within = (squares / num_samples - of_chains.square()).clamp(min=0).mean(0)
    between = of_chains.var(0) if len(z) > 1 else torch.full_like(within, torch.nan)
    # Chains agree if their probabilities differ by rounding only.
    ratio = torch.where(between < _NOTHING, 0.0, between / within)
    return of_chains.mean(0), mean.mean(0), error, (1 + ratio).sqrt(), torch.stack(kept, 1)


def _sweep(statistics: LinearGaussian, z: Tensor, block_size: int) -> tuple[Tensor, Tensor]:
    """Draw all blocks of z in place; return the conditional inclusion probabilities and means used for it."""
    gram = statistics.gram
    inclusion, expected = torch.empty_like(z), torch.empty_like(z)
    unexplained = statistics.projection - z @ gram
    for block in torch.randperm(gram.shape[0], device=gram.device).split(block_size):
        before = z[..., block]
        patterns = statistics.patterns(block)
        projection = unexplained[..., block] + before @ gram[block][:, block]
        weights = patterns.log_joint(projection).softmax(-1)
        inclusion[..., block] = weights @ patterns.on
        expected[..., block] = patterns.mean(weights, projection)
        after = patterns.sample(weights, projection, 1).squeeze(-2)
        unexplained -= (after - before) @ gram[block]
        z[..., block] = after
    return inclusion, expected
