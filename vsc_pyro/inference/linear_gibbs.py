r"""`gibbs_posterior`: the posterior of a linear-Gaussian model of more latents than can be enumerated.

A blocked Gibbs sampler (J. Geweke, 1996; E. I. George, R. E. McCulloch, 1997). Latents are split at random into
blocks, anew in every sweep, and each block is drawn from its exact conditional given the others: with
:math:`r = h_b - G_{b\bar b} z_{\bar b}` in place of h, the latents of a block b are a linear-Gaussian model of their
own (`vsc_pyro.inference.linear_exact`), so its spikes are drawn with its values integrated out, by enumeration of its
patterns. Two latents that explain the same part of a datum are rarely both on; alone, neither can give way to the
other, together they can.

Inclusion and mean are averages of these conditional expectations and not of the draws (Rao-Blackwellised; A. E.
Gelfand, A. F. M. Smith, 1990).
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from vsc_pyro._arguments import natural_int, positive_int
from vsc_pyro._seeding import seeded
from vsc_pyro.inference.linear_exact import MAX_LATENTS, NUMBERS_AT_ONCE, LinearGaussian, Patterns, linear_gaussian
from vsc_pyro.models.vae import VAE

_BATCHES = 20  # of sweeps, whose means tell the error of the mean of all
_NOTHING = 1e-12  # variance of a probability between chains


@dataclasses.dataclass(frozen=True, eq=False)
class GibbsPosterior:
    """What `gibbs_posterior` returns, float64, on the model's device.

    Attributes:
        inclusion: P(z != 0 | x), shape ``(B, J)``.
        mean: of z given x, shape ``(B, J)``.
        inclusion_error: standard error of `inclusion`, by the means of batches of sweeps (Geyer, 1992), over all
            chains. It knows of no mode that no chain has seen; nor does `r_hat`.
        r_hat: potential scale reduction of the conditional inclusion probabilities over chains (Gelman & Rubin, 1992),
            shape ``(B, J)``; near 1 where chains agree, NaN for a single chain.
        draws: every `thin`-th draw of every chain, shape ``(chains, num_samples // thin, B, J)``.
    """

    inclusion: Tensor
    mean: Tensor
    inclusion_error: Tensor
    r_hat: Tensor
    draws: Tensor

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        """Kept draws chosen at random, by torch's random state, shape `sample_shape + (B, J)`."""
        kept = self.draws.flatten(0, 1)
        chosen = torch.randint(len(kept), (torch.Size(sample_shape).numel(), *self.inclusion.shape[:1], 1))
        index = chosen.to(kept.device).expand(-1, -1, kept.shape[-1])
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

    Data and chains are drawn side by side, in chunks that bound memory, except for the kept draws.

    Args:
        model: a `VAE` with a ``NormalDecoder(..., hidden=())``, of any variance, and a `SpikeSlabPrior` of normal
            slabs. Its encoder is not used.
        x: data, shape ``(B, ...)``.
        num_samples: sweeps of each chain that count, at least 2.
        burn_in: sweeps of each chain before those.
        chains: number of chains for each datum.
        block_size: latents drawn together, at most 12; a block costs two to this power.
        thin: one draw in so many is kept.
        start: codes to start from, shape ``(B, J)`` or ``(chains, B, J)``, such as draws of the encoder's; None for
            draws from the prior.
        seed: of blocks and draws.
        progress: show a bar.

    Raises:
        ValueError: another decoder, prior or slab; data or `start` that do not fit the model; or numbers below 1.
    """
    num_samples, burn_in = positive_int("num_samples", num_samples), natural_int("burn_in", burn_in)
    if num_samples < 2:
        raise ValueError("num_samples must be at least 2, for an error to be told, got 1")
    if positive_int("block_size", block_size) > MAX_LATENTS:
        raise ValueError(
            f"block_size must be at most {MAX_LATENTS}, for a block has two to its power of patterns, got {block_size}"
        )
    chains, thin, seed = positive_int("chains", chains), positive_int("thin", thin), natural_int("seed", seed)
    if thin > num_samples:
        raise ValueError(f"thin must be at most num_samples={num_samples}, for a draw to be kept, got {thin}")
    statistics = linear_gaussian(model, x)
    num_data, latents = statistics.projection.shape
    block_size = min(block_size, latents)
    starts = None if start is None else _checked(start, (chains, num_data, latents)).to(statistics.gram)
    width = max(_BATCHES * latents, 2**block_size * block_size**2)
    chunks = torch.arange(num_data).split(max(1, NUMBERS_AT_ONCE // (chains * width)))
    parts = []
    with (
        torch.no_grad(),
        seeded(seed, statistics.gram.device),
        tqdm(total=len(chunks) * (burn_in + num_samples), desc="gibbs", unit="sweep", disable=not progress) as bar,
    ):
        for rows in chunks:
            chunk = statistics._replace(projection=statistics.projection[rows])
            z = _from_prior(chunk, chains) if starts is None else starts[:, rows].clone()
            parts.append(_chains(chunk, z, num_samples, burn_in, block_size, thin, bar))
    *moments, draws = zip(*parts, strict=True)
    return GibbsPosterior(*(torch.cat(moment) for moment in moments), torch.cat(draws, 2))


def _checked(start: Tensor, shape: tuple[int, int, int]) -> Tensor:
    if start.shape not in (shape, shape[1:]) or not torch.isfinite(start).all():
        raise ValueError(
            f"start must be finite codes of shape {shape[1:]}, or {shape} for all chains, "
            f"got a tensor of shape {tuple(start.shape)}"
        )
    return start.detach().expand(shape)


def _from_prior(statistics: LinearGaussian, chains: int) -> Tensor:
    shape = (chains, *statistics.projection.shape)
    on = torch.rand(shape).to(statistics.gram) < statistics.logits.sigmoid()
    return on * torch.randn(shape).to(statistics.gram)


def _chains(
    statistics: LinearGaussian, z: Tensor, num_samples: int, burn_in: int, block_size: int, thin: int, bar: tqdm
) -> tuple[Tensor, ...]:
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
    # Probabilities that hardly vary are in agreement; what is left of them is rounding.
    ratio = torch.where(between < _NOTHING, 0.0, between / within)
    return of_chains.mean(0), mean.mean(0), error, (1 + ratio).sqrt(), torch.stack(kept, 1)


def _sweep(statistics: LinearGaussian, z: Tensor, block_size: int) -> tuple[Tensor, Tensor]:
    """Draw every block of z, in place; the inclusion probabilities and means it was drawn by."""
    gram = statistics.gram
    inclusion, expected = torch.empty_like(z), torch.empty_like(z)
    unexplained = statistics.projection - z @ gram
    for block in torch.randperm(gram.shape[0]).to(gram.device).split(block_size):
        before = z[..., block]
        own = gram[block][:, block]
        patterns = Patterns(own, statistics.logits[block])
        projection = unexplained[..., block] + before @ own
        weights = patterns.log_joint(projection).softmax(-1)
        inclusion[..., block] = weights @ patterns.on
        expected[..., block] = patterns.mean(weights, projection)
        after = patterns.sample(weights, projection, 1).squeeze(-2)
        unexplained -= (after - before) @ gram[block]
        z[..., block] = after
    return inclusion, expected
