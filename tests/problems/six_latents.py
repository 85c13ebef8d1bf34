"""Six latents behind a nonlinear decoder: the 64 patterns of spikes are enumerated for fixed draws of the slabs."""

import pyro
import pyro.distributions as dist
import torch
from torch.distributions import kl_divergence

from problems.one_latent import PARAMETERS
from vsc_pyro.distributions import SpikeSlab

J, DRAWS, REPEATS = 6, 50, 1000


class FixedNoiseNormal(dist.Normal):
    """A normal slab whose standard noise is given, so that only spikes are random."""

    def __init__(self, loc, scale, noise):
        self.noise = noise
        super().__init__(loc, scale)

    def rsample(self, sample_shape=()):
        return (self.loc + self.scale * self.noise).expand(self._extended_shape(sample_shape))

    def expand(self, batch_shape, _instance=None):
        return FixedNoiseNormal(*(t.expand(batch_shape) for t in (self.loc, self.scale, self.noise)))


class SixLatents:
    def __init__(self):
        generator = torch.Generator().manual_seed(3)
        randn = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
        self.theta = {"logits": randn(J), "loc": 1.5 * randn(J), "scale": (0.3 * randn(J)).exp()}
        self.noise = randn(DRAWS, J)
        self.weights = [randn(J, 8), randn(8), 2 * randn(8, 10), randn(10)]
        self.x = (torch.rand(10, generator=generator) < 0.5).double()

    def prior(self):
        return SpikeSlab(dist.Normal(torch.zeros(J, dtype=torch.float64), 1.0), probs=torch.full((J,), 0.3).double())

    def log_likelihood(self, z):
        w1, b1, w2, b2 = self.weights
        return dist.Bernoulli(logits=(z @ w1 + b1).tanh() @ w2 + b2, validate_args=False).log_prob(self.x).sum(-1)

    def exact(self, likelihood, closed_kl):
        """Gradient for each of the fixed slab draws, shape (DRAWS, J) a parameter."""
        theta = {k: v.expand(DRAWS, J).clone().requires_grad_() for k, v in self.theta.items()}
        slab = dist.Normal(theta["loc"], theta["scale"])
        w = theta["loc"] + theta["scale"] * self.noise
        q = SpikeSlab(slab, logits=theta["logits"])
        patterns = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * J)[:, None]
        log_q_s = dist.Bernoulli(logits=theta["logits"]).log_prob(patterns.expand(-1, DRAWS, J)).sum(-1)
        value = torch.zeros_like(log_q_s)
        if likelihood:
            value = value + self.log_likelihood(patterns * w)
        if not closed_kl:
            log_q = log_q_s + (patterns * slab.log_prob(w)).sum(-1)
            prior = self.prior()
            log_p = patterns * (prior.probs.log() + prior.slab.log_prob(w)) + (1 - patterns) * (1 - prior.probs).log()
            value = value + log_p.sum(-1) - log_q
        loss = -(log_q_s.exp() * value).sum()
        if closed_kl:
            loss = loss + kl_divergence(q, self.prior().expand(q.batch_shape)).sum()
        loss.backward()
        return {name: value.grad for name, value in theta.items()}

    def estimated(self, elbo, gate, likelihood):
        """Gradients of REPEATS replicas for each slab draw, shape (REPEATS, DRAWS, J) a parameter."""
        shape = (REPEATS, DRAWS)

        def model():
            with pyro.plate("draws", DRAWS), pyro.plate("repeats", REPEATS):
                z = pyro.sample("z", self.prior().to_event(1))
                if likelihood:
                    pyro.sample("x", dist.Unit(self.log_likelihood(z)), obs=torch.empty(*shape, 0))

        def guide():
            theta = {k: pyro.param(k, v.expand(*shape, J).clone()) for k, v in self.theta.items()}
            slab = FixedNoiseNormal(theta["loc"], theta["scale"], self.noise.expand(*shape, J))
            with pyro.plate("draws", DRAWS), pyro.plate("repeats", REPEATS):
                pyro.sample("z", SpikeSlab(slab, logits=theta["logits"], gate=gate).to_event(1))

        elbo.loss_and_grads(model, guide)
        return {name: pyro.param(name).grad for name in PARAMETERS}
