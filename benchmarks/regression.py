"""Posterior inclusion probabilities of `AutoSpikeSlab` in linear regressions, against the truth.

    python benchmarks/regression.py

prints a table: the mean and the largest error over all coefficients and seeds, against enumeration for 12 columns and
Gibbs sampling for 200, of 100 data each, with independent and with correlated columns. The factorised posterior that
coordinate ascent reaches (P. Carbonetto, M. Stephens, 2012) shows the part of the error that is the family's and not
the optimiser's.
"""

import argparse
import functools
import time
from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

import vsc_pyro as vsc

NOISE, NUM_DATA = 0.7, 100
CELLS = ((12, 0.2, 0.0), (12, 0.2, 0.5), (200, 0.05, 0.0), (200, 0.05, 0.5))  # columns, inclusion, correlation
WEIGHTS = (1.0, -1.0, 0.5, -0.5, 0.3, -0.3, 0.2)


def simulate(columns: int, correlation: float, seed: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    common = torch.randn(NUM_DATA, 1)
    x = (1 - correlation) ** 0.5 * torch.randn(NUM_DATA, columns) + correlation**0.5 * common
    return x, x[:, : len(WEIGHTS)] @ torch.tensor(WEIGHTS) + NOISE * torch.randn(NUM_DATA)


def model(x: Tensor, y: Tensor, inclusion: float) -> None:
    weights = pyro.sample(
        "weights", vsc.SpikeSlab(dist.Normal(x.new_zeros(x.shape[1]), 1.0), probs=inclusion).to_event(1)
    )
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal((x * weights).sum(-1), NOISE), obs=y)


def fitted(x: Tensor, y: Tensor, inclusion: float, steps: int) -> Tensor:
    program = functools.partial(model, inclusion=inclusion)
    guide = vsc.AutoSpikeSlab(program)
    optimizer = pyro.optim.ClippedAdam({"lr": 0.1, "lrd": 0.01 ** (1 / steps)})
    elbo = vsc.AnalyticELBO(num_particles=20, vectorize_particles=True, max_plate_nesting=1)
    svi = vsc.SVI(program, guide, optimizer, elbo)
    for _ in range(steps):
        svi.step(x, y)
    return guide.inclusion()["weights"]


def truth(x: Tensor, y: Tensor, inclusion: float, sweeps: int) -> tuple[Tensor, float]:
    """Return the inclusion probabilities and their largest standard error."""
    columns = x.shape[1]
    decoder = vsc.NormalDecoder(columns, len(y), hidden=(), scale=NOISE)
    with torch.no_grad():
        decoder.dictionary.copy_(x.T)
        decoder.network[0].bias.zero_()
    prior = vsc.SpikeSlabPrior(columns, inclusion)
    vae = vsc.VAE(vsc.SpikeSlabEncoder(len(y), columns, hidden=(2,)), decoder, prior)
    if columns <= 12:
        return vsc.exact_posterior(vae, y.unsqueeze(0)).inclusion[0], 0.0
    found = vsc.gibbs_posterior(vae, y.unsqueeze(0), num_samples=sweeps, burn_in=sweeps // 4)
    return found.inclusion[0], float(found.inclusion_error.max())


def factorised(x: Tensor, y: Tensor, inclusion: float, rounds: int = 200) -> Tensor:
    """Return the inclusion probabilities of the factorised posterior that coordinate ascent reaches from 1/2."""
    x, y = x.double(), y.double()
    variance = 1 / (x.square().sum(0) / NOISE**2 + 1)
    on, mean = torch.full_like(variance, 0.5), torch.zeros_like(variance)
    residual = y.clone()
    for _ in range(rounds):
        for j in range(x.shape[1]):
            residual += x[:, j] * on[j] * mean[j]
            mean[j] = variance[j] * (x[:, j] @ residual) / NOISE**2
            logit = torch.logit(x.new_tensor(inclusion)) + 0.5 * (variance[j].log() + mean[j] ** 2 / variance[j])
            on[j] = logit.sigmoid()
            residual -= x[:, j] * on[j] * mean[j]
    return on


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--sweeps", type=int, default=400, help="of each of four chains, for 200 columns")
    args = parser.parse_args(argv)
    print(
        "| columns | correlation | error of the guide, mean | largest | of the best factorised, mean | largest | ",
        end="",
    )
    print("Gibbs' standard error, largest | seconds a fit |\n|---|---|---|---|---|---|---|---|")
    for columns, inclusion, correlation in CELLS:
        guide, best, errors, seconds = [], [], [], 0.0
        for seed in range(args.seeds):
            x, y = simulate(columns, correlation, seed)
            exact, error = truth(x, y, inclusion, args.sweeps)
            start = time.process_time()
            guide.append((fitted(x, y, inclusion, args.steps) - exact).abs())
            seconds += (time.process_time() - start) / args.seeds
            best.append((factorised(x, y, inclusion) - exact).abs())
            errors.append(error)
        cells = [f"{value:.3f}" for part in (guide, best) for value in (torch.cat(part).mean(), torch.cat(part).max())]
        print(f"| {columns} | {correlation:g} | {' | '.join(cells)} | {max(errors):.3f} | {seconds:.1f} |", flush=True)


if __name__ == "__main__":
    main()
