"""Regressions with spike-and-slab coefficients, as Pyro programs and, for their truth, as linear decoders."""

import math

import pyro
import pyro.distributions as dist
import torch

import vsc_pyro as vsc

NOISE = 0.7
COEFFICIENTS = (1.0, -1.0, 0.5, -0.5, 0.3, -0.3, 0.2)


def standardised(x):
    return (x - x.mean(0)) / x.std(0)


def response(x):
    """A response to the first seven columns."""
    return x[:, : len(COEFFICIENTS)] @ torch.tensor(COEFFICIENTS) + NOISE * torch.randn(len(x))


def simulated(num_columns, seed=0, num_data=100):
    """Independent columns and a response."""
    torch.manual_seed(seed)
    x = standardised(torch.randn(num_data, num_columns))
    return x, response(x)


def decoder_of(x, inclusion):
    """The same regression as a linear decoder: a datum is y, and the dictionary the columns of x."""
    num_data, num_columns = x.shape
    model = vsc.VAE(
        vsc.SpikeSlabEncoder(num_data, num_columns, hidden=(2,)),
        vsc.NormalDecoder(num_columns, num_data, hidden=(), scale=NOISE),
        vsc.SpikeSlabPrior(num_columns, inclusion),
    )
    with torch.no_grad():
        model.decoder.dictionary.copy_(x.T)
        model.decoder.network[0].bias.zero_()
    return model


def linear(x, y, inclusion=0.2):
    prior = vsc.SpikeSlab(dist.Normal(x.new_zeros(x.shape[1]), 1.0), probs=inclusion)
    weights = pyro.sample("weights", prior.to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal((x * weights).sum(-1), NOISE), obs=y)


def logistic(x, y, inclusion=0.5):
    prior = vsc.SpikeSlab(dist.Normal(x.new_zeros(x.shape[1]), 1.0), probs=inclusion)
    weights = pyro.sample("weights", prior.to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Bernoulli(logits=(x * weights).sum(-1)), obs=y)


def trained(model, *data, steps=1000, particles=32, seed=0, **options):
    """An automatic guide after a run of Adam whose rate falls to zero."""
    torch.manual_seed(seed)
    guide = vsc.AutoSpikeSlab(model, **options)
    guide(*data)
    optimizer = torch.optim.Adam(guide.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    loss = vsc.AnalyticELBO(num_particles=particles, vectorize_particles=True, max_plate_nesting=1)
    svi = vsc.SVI(model, guide, optimizer, loss)
    for _ in range(steps):
        svi.step(*data)
        schedule.step()
    return guide


def enumerated_logistic(x, y, inclusion=0.5, limit=6.0, points=81):
    """P(weight != 0) for each of a few columns: quadrature on a grid under each of all subsets."""
    columns = x.shape[1]
    grid = torch.linspace(-limit, limit, points, dtype=torch.float64)
    log_joint, patterns = [], []
    for pattern in range(2**columns):
        on = [j for j in range(columns) if pattern >> j & 1]
        nodes = torch.cartesian_prod(*[grid] * len(on)).reshape(-1, len(on)) if on else torch.zeros(1, 0).double()
        likelihood = -torch.nn.functional.softplus(-(2 * y.double() - 1) * (nodes @ x[:, on].double().T)).sum(-1)
        prior = dist.Normal(0.0, 1.0).log_prob(nodes).sum(-1) + len(on) * (grid[1] - grid[0]).log()
        spikes = len(on) * math.log(inclusion) + (columns - len(on)) * math.log(1 - inclusion)
        log_joint.append((likelihood + prior).logsumexp(0) + spikes)
        patterns.append([float(j in on) for j in range(columns)])
    return torch.stack(log_joint).softmax(0) @ torch.tensor(patterns).double()
