"""Objectives on random small programs, against exact gradients by enumeration of all their draws.

A program has three latents and two data, each in an inner plate or outside; every one depends on all before it, and
the guide has an order of its own. Latents are Bernoulli variables, spikes and slabs with ``gate="score"`` or Normal;
one may be the guide's alone or the model's.
"""

import itertools
import math
import random

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import assert_mean_equals
from pyro.infer import Trace_ELBO, TraceGraph_ELBO

from vsc_pyro.distributions import SpikeSlab
from vsc_pyro.objectives import AnalyticELBO, ImportanceWeightedELBO, TraceELBO

N, INNER, SCALE = 10_000, 2, 0.5
KINDS = ("bernoulli", "spike", "normal")


class Program:
    """A model and a guide, to be run on N replicas at once or on all configurations of their draws."""

    def __init__(self, seed, kinds=KINDS, roles=("both", "guide", "model"), plates=True):
        draw = random.Random(seed)
        latents = {f"z{k}": draw.choice(kinds) for k in range(3)}
        self.kinds = latents | {"x0": "observed", "x1": "observed"}
        self.plated = {name: plates and draw.random() < 0.5 for name in self.kinds} | {draw.choice([*latents]): False}
        roles = ["both", "both", draw.choice(roles)]
        draw.shuffle(roles)
        self.alone = {role: name for name, role in zip(latents, roles, strict=True) if role != "both"}
        self.orders = {}
        for part, other in (("guide", "model"), ("model", "guide")):
            names = [name for name in (self.kinds if part == "model" else latents) if name != self.alone.get(other)]
            self.orders[part] = draw.sample(names, len(names))
        pairs = itertools.product(self.orders, self.kinds, self.kinds)
        numbers = [draw.gauss(0, 0.7) for _ in range(2 * len(self.kinds) ** 2)]
        self.weights = dict(zip(pairs, numbers, strict=True))
        self.start = {f"{part}.{name}": numbers.pop() for part, order in self.orders.items() for name in order}

    def conditional(self, part, name, theta, values, rows):
        """The distribution of a site given what came before it; in the plate the last dimension is 2, else 1."""
        loc = theta[f"{part}.{name}"].expand(rows, INNER if self.plated[name] else 1)
        for other, value in values.items():
            if self.plated[other] and not self.plated[name]:
                if self.kinds[name] != "observed":
                    continue  # what is in the plate after such a latent would not be independent of one another
                value = value.sum(-1, keepdim=True)
            loc = loc + self.weights[part, name, other] * value
        if self.kinds[name] == "bernoulli":
            return dist.Bernoulli(logits=loc)
        if self.kinds[name] == "spike":
            return SpikeSlab(dist.Normal(0.5 * loc.tanh() + 0.5, SCALE), logits=loc, gate="score")
        return dist.Normal(loc, 1.0 if self.kinds[name] == "observed" else SCALE)

    def run(self, part):
        """As a Pyro program, in which each replica has parameters of its own."""
        theta = {k: pyro.param(k, torch.full((N, 1), v, dtype=torch.float64)) for k, v in self.start.items()}
        values, inner = {}, pyro.plate("inner", INNER, dim=-1)
        infer = lambda name: {"is_auxiliary": True} if name == self.alone.get("guide") else {}  # noqa: E731
        with pyro.plate("replicas", N, dim=-2):
            for name in self.orders[part]:
                q = self.conditional(part, name, theta, values, N)
                obs = torch.ones(q.batch_shape).double() if self.kinds[name] == "observed" else None
                if self.plated[name]:
                    with inner:
                        value = pyro.sample(name, q, obs=obs, infer=infer(name))
                else:
                    value = pyro.sample(name, q, obs=obs, infer=infer(name))
                if obs is None:
                    values[name] = value

    def exact(self, bound=lambda probability, elbo: (probability * elbo).sum()):
        """Minus the bound and its gradients by summing over all configurations, with Hermite nodes for slabs."""
        theta = {k: torch.tensor(v, dtype=torch.float64, requires_grad=True) for k, v in self.start.items()}
        log_weight, values, terms = torch.zeros(1).double(), {}, []
        for part, sign in (("guide", -1), ("model", 1)):
            seen = {}
            for name in self.orders[part]:
                q = self.conditional(part, name, theta, {other: values[other] for other in seen}, len(log_weight))
                observed = self.kinds[name] == "observed"
                if not observed and name not in values:
                    value, log_prob = configurations(q)
                    times = len(value) // len(log_weight)
                    log_weight = log_weight.repeat_interleave(times) + log_prob
                    values = {k: v.repeat_interleave(times, 0) for k, v in values.items()} | {name: value}
                    terms = [term.repeat_interleave(times) for term in terms]
                    q = self.conditional(part, name, theta, {k: values[k] for k in seen}, len(log_weight))
                terms.append(sign * q.log_prob(torch.ones(1).double() if observed else values[name]).sum(-1))
                if not observed:
                    seen[name] = True
        loss = -bound(log_weight.exp(), sum(terms))
        loss.backward()
        return {name: value.grad for name, value in theta.items() if value.grad is not None}


def configurations(q):
    """Values of all draws of the last dimension together, by row, and their log-probabilities."""
    nodes, weights = (torch.tensor(a) for a in np.polynomial.hermite_e.hermegauss(7))
    log_weights = (weights / weights.sum()).log()[:, None, None]
    if isinstance(q, SpikeSlab):
        slabs = q.slab.loc + SCALE * nodes[:, None, None]
        each = torch.cat([torch.zeros_like(slabs[:1]), slabs])
        log_on, log_off = (torch.nn.functional.logsigmoid(sign * q.logits)[None] for sign in (1, -1))
        log_each = torch.cat([log_off, log_on + log_weights])
    elif isinstance(q, dist.Bernoulli):
        each = torch.tensor([0.0, 1.0]).double()[:, None, None].expand(2, *q.batch_shape)
        log_each = q.log_prob(each)
    else:
        each = q.loc + SCALE * nodes[:, None, None]
        log_each = log_weights.expand(each.shape)
    size = q.batch_shape[-1]
    which = torch.cartesian_prod(*size * [torch.arange(len(each))]).reshape(-1, size)
    value, log_prob = (t[which, :, torch.arange(size)].permute(2, 0, 1).reshape(-1, size) for t in (each, log_each))
    return value, log_prob.sum(-1)


def check(program, elbo, exact):
    pyro.clear_param_store()
    torch.manual_seed(0)
    elbo.loss_and_grads(lambda: program.run("model"), lambda: program.run("guide"))
    for name, gradient in exact.items():
        assert_mean_equals(pyro.param(name).grad.squeeze(-1), gradient)


def vectorised(elbo):
    return elbo(num_particles=2, vectorize_particles=True, max_plate_nesting=2)


@pytest.mark.filterwarnings("ignore:Failed to verify mean field", "ignore:Found vars in model but not guide")
@pytest.mark.parametrize("seed", range(20))
def test_gradients_are_exact_whatever_the_structure(seed):
    program = Program(seed)
    exact = program.exact()
    with pyro.validation_enabled(seed % 2 == 0):
        for elbo in (TraceELBO(), AnalyticELBO(), vectorised(TraceELBO), vectorised(AnalyticELBO)):
            check(program, elbo, exact)
        if not program.alone:  # of sites that only one of them has, Pyro's gradients are biased
            for elbo in (Trace_ELBO(), TraceGraph_ELBO()):
                check(program, elbo, exact)


@pytest.mark.parametrize("seed", range(8))
def test_importance_weighted_gradients_are_exact_whatever_the_structure(seed):
    program = Program(seed, ("bernoulli", "spike"), ("both", "guide"), plates=False)

    def of_two_draws(probability, elbo):
        both = torch.logaddexp(elbo[:, None], elbo) - math.log(2)
        return (probability[:, None] * probability * both).sum()

    check(program, vectorised(ImportanceWeightedELBO), program.exact(of_two_draws))


@pytest.mark.filterwarnings("ignore:Failed to verify mean field")
@pytest.mark.parametrize("elbo", [TraceELBO(), AnalyticELBO(), vectorised(TraceELBO), Trace_ELBO()])
def test_data_that_the_model_comes_by_early_and_the_guide_reaches_late(elbo):
    """A spike z that the guide draws a from: the model has x right after a, before z, and x is part of z's signal."""
    number = lambda value: torch.tensor(value, dtype=torch.float64)  # noqa: E731
    slab = dist.Normal(number(0.8), number(-1.0).exp())

    def model():
        with pyro.plate("replicas", 50_000, dim=-1):
            a = pyro.sample("a", dist.Normal(number(0.0), 1.0))
            pyro.sample("x", dist.Normal(a, 0.5), obs=number(1.5).expand(50_000))
            pyro.sample("z", SpikeSlab(dist.Normal(number(0.0), 1.0), probs=number(0.3)))

    def guide():
        logits = pyro.param("logits", number(0.3).expand(50_000).clone())
        with pyro.plate("replicas", 50_000, dim=-1):
            z = pyro.sample("z", SpikeSlab(slab, logits=logits, gate="score"))
            pyro.sample("a", dist.Normal(1.2 * z + 0.4 * (z != 0), 0.7))

    elbo.loss_and_grads(model, guide)
    # The entropy of a is the same whatever z; of the rest the mean over a, then z, of m = 1.2 z + 0.4 and 0.
    quadratic = lambda mean, variance: -0.5 * (mean**2 + variance + ((1.5 - mean) ** 2 + variance) / 0.25)  # noqa: E731
    likelihood = quadratic(1.2 * slab.loc + 0.4, 0.49 + (1.2 * slab.scale) ** 2) - quadratic(0.0, 0.49)
    prior = dist.Normal(number(0.0), 1.0)
    gamma = number(0.3).sigmoid()
    kl = torch.distributions.kl_divergence(slab, prior) + 0.3 - number(0.3).logit()
    exact = gamma * (1 - gamma) * (kl - likelihood)
    assert exact.item() == pytest.approx(-0.2478, abs=1e-4)
    assert_mean_equals(pyro.param("logits").grad, exact)
