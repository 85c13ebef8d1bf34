"""One latent, z ~ SS(N(0, 1), 0.2) and x | z ~ N(z, 0.6), whose exact losses and gradients are known."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import torch

from vsc_pyro.distributions import SpikeSlab

PARAMETERS = ("logits", "loc", "scale")


N = 50_000
TOY = {"logits": -0.4, "loc": 0.7, "scale": 0.8}
X, NOISE, ALPHA = 1.1, 0.6, 0.2


def toy_prior():
    return SpikeSlab(
        dist.Normal(torch.tensor(0.0, dtype=torch.float64), 1.0), probs=torch.tensor(ALPHA, dtype=torch.float64)
    )


def toy_exact(likelihood):
    """Minus the ELBO's gradient by autograd of its closed form."""
    theta = {name: torch.tensor(value, dtype=torch.float64, requires_grad=True) for name, value in TOY.items()}
    gamma = theta["logits"].sigmoid()
    slab_kl = -theta["scale"].log() + (theta["scale"] ** 2 + theta["loc"] ** 2 - 1) / 2
    spike_kl = gamma * (gamma / ALPHA).log() + (1 - gamma) * ((1 - gamma) / (1 - ALPHA)).log()
    loss = gamma * slab_kl + spike_kl
    if likelihood:
        on = ((X - theta["loc"]) ** 2 + theta["scale"] ** 2) / (2 * NOISE**2)
        loss = loss + gamma * on + (1 - gamma) * X**2 / (2 * NOISE**2) + math.log(NOISE * math.sqrt(2 * math.pi))
    loss.backward()
    return loss.detach(), {name: value.grad for name, value in theta.items()}


def toy_gradients(elbo, gate, likelihood, wrap=lambda d: d.to_event(1), model_wrap=None):
    """Gradients of N independent replicas of the toy, each with parameters of its own: shape (N,) a parameter."""
    model_wrap = model_wrap or wrap

    def model():
        with pyro.plate("replicas", N):
            z = pyro.sample("z", model_wrap(toy_prior().expand((N, 1))))
            if likelihood:
                pyro.sample("x", dist.Normal(z, NOISE).to_event(1), obs=torch.full((N, 1), X, dtype=torch.float64))

    def guide():
        theta = {k: pyro.param(k, torch.full((N, 1), v, dtype=torch.float64)) for k, v in TOY.items()}
        with pyro.plate("replicas", N):
            slab = dist.Normal(theta["loc"], theta["scale"])
            pyro.sample("z", wrap(SpikeSlab(slab, logits=theta["logits"], gate=gate)))

    elbo.loss_and_grads(model, guide)
    return {name: pyro.param(name).grad.squeeze(-1) for name in PARAMETERS}


def importance_weighted_exact(num_draws):
    """Minus the bound's gradient, by enumeration of spikes and quadrature over slabs, of 2 or 3 draws."""
    theta = {name: torch.tensor(value, dtype=torch.float64, requires_grad=True) for name, value in TOY.items()}
    nodes, weights = (torch.tensor(a) for a in np.polynomial.hermite_e.hermegauss(60))
    weights = weights / weights.sum()
    w = theta["loc"] + theta["scale"] * nodes
    slab, gamma = dist.Normal(theta["loc"], theta["scale"]), theta["logits"].sigmoid()
    unit = dist.Normal(torch.tensor(0.0, dtype=torch.float64), 1.0)
    on = dist.Normal(w, NOISE).log_prob(torch.tensor(X)) + math.log(ALPHA) + unit.log_prob(w)
    on = on - gamma.log() - slab.log_prob(w)
    off = dist.Normal(0.0, NOISE).log_prob(torch.tensor(X)).double() + math.log(1 - ALPHA) - (1 - gamma).log()
    log_w, prob = torch.cat([on, off[None]]), torch.cat([gamma * weights, (1 - gamma)[None]])
    bound, joint = log_w, prob
    for _ in range(num_draws - 1):
        bound, joint = torch.logaddexp(bound[..., None], log_w), joint[..., None] * prob
    loss = -(joint * (bound - math.log(num_draws))).sum()
    loss.backward()
    return loss.detach(), {name: value.grad for name, value in theta.items()}


def toy_loss(elbo, gate):
    def model():
        with pyro.plate("replicas", 5000):
            z = pyro.sample("z", toy_prior().expand((5000,)))
            pyro.sample("x", dist.Normal(z, NOISE), obs=torch.full((5000,), X, dtype=torch.float64))

    def guide():
        theta = {k: torch.full((5000,), v, dtype=torch.float64) for k, v in TOY.items()}
        with pyro.plate("replicas", 5000):
            pyro.sample("z", SpikeSlab(dist.Normal(theta["loc"], theta["scale"]), logits=theta["logits"], gate=gate))

    return elbo.loss(model, guide) / 5000
