"""Mixtures of priors with an assignment, and the divergences that they are made of."""

import math

import pytest
import torch
from conftest import assert_mean_equals
from pyro.distributions import Cauchy, Laplace, MultivariateNormal, Normal
from torch.distributions import kl_divergence

from vsc_pyro.distributions import AssignedMixture, SpikeSlab, inclusion_logits
from vsc_pyro.distributions.pairwise import insert_batch_dims, pairwise_kl
from vsc_pyro.gates import GATES

J, U = 4, 3


def dense(family, *shape):
    return family(torch.randn(*shape, J).double(), torch.randn(*shape, J).double().exp()).to_event(1)


def sparse(family, *shape, gate="concrete"):
    slab = dense(family, *shape).base_dist
    return SpikeSlab(slab, logits=torch.randn(*shape, J).double(), gate=gate).to_event(1)


KINDS = [(make, family) for make in (dense, sparse) for family in (Normal, Laplace, Cauchy)]


def mixture(components, *batch, charge=True):
    weights = torch.randn(U).double().log_softmax(-1)
    return AssignedMixture(components, weights, torch.randn(*batch, U).double().log_softmax(-1), charge)


@pytest.mark.parametrize("batch", [(), (5,), (2, 5)])
@pytest.mark.parametrize(("make", "family"), KINDS)
def test_pairwise_divergences_are_those_of_every_pair(make, family, batch):
    p, q = make(family, *batch), make(family, U)
    got = pairwise_kl(p, q)
    assert got.shape == (*batch, U)
    for u in range(U):
        base = q.base_dist
        slab = getattr(base, "slab", base)
        one = family(slab.loc[u], slab.scale[u])
        if make is sparse:
            one = SpikeSlab(one, logits=base.logits[u])
        torch.testing.assert_close(got[..., u], kl_divergence(p, one.to_event(1).expand(batch)))


def test_narrow_slabs_lose_nothing_in_single_precision():
    loc, scale = torch.full((1, J), 3.0), torch.full((1, J), 1e-3)
    p = Normal(loc.expand(6, J), scale.expand(6, J)).to_event(1)
    q = Normal(loc + 1e-3 * torch.arange(1.0, U + 1).unsqueeze(1), scale.expand(U, J)).to_event(1)
    exact = pairwise_kl(
        Normal(p.base_dist.loc.double(), p.base_dist.scale.double()).to_event(1),
        Normal(q.base_dist.loc.double(), q.base_dist.scale.double()).to_event(1),
    )
    torch.testing.assert_close(pairwise_kl(p, q).double(), exact, rtol=1e-5, atol=1e-5)


def test_what_cannot_be_broadcast_is_not_claimed():
    with pytest.raises(NotImplementedError):
        pairwise_kl(dense(Normal, 5), dense(Cauchy, U))
    with pytest.raises(NotImplementedError, match="MultivariateNormal cannot be made of other parameters"):
        insert_batch_dims(MultivariateNormal(torch.zeros(U, J), torch.eye(J)), 1)


@pytest.mark.parametrize(("make", "family"), KINDS)
def test_log_prob_is_jensens_bound_on_the_mixtures(make, family):
    p = mixture(make(family, U), 5)
    z = make(family, 5).sample((200,))
    bound, exact = p.log_prob(z), p.mixture.expand((5,)).log_prob(z)
    assert bound.shape == (200, 5)
    assert (bound <= exact + 1e-9).all()
    # With the posterior over components for an assignment the bound is tight.
    joint = p.component_distribution.log_prob(z[0, 0]) + p.log_weights
    tight = AssignedMixture(p.component_distribution, p.log_weights, joint.log_softmax(-1))
    torch.testing.assert_close(tight.log_prob(z[0, 0]), exact[0, 0])
    # Without the charge for it, nothing is bounded.
    free = AssignedMixture(p.component_distribution, p.log_weights, joint.log_softmax(-1), charge_assignment=False)
    assert free.log_prob(z[0, 0]) > exact[0, 0] - 1e-9


@pytest.mark.parametrize("charge", [True, False])
@pytest.mark.parametrize(("make", "family"), KINDS)
def test_divergence_is_the_expectation_of_the_densities(make, family, charge):
    q, p = make(family, 5), mixture(make(family, U), 5, charge=charge)
    kl = kl_divergence(q, p)
    assert kl.shape == (5,)
    z = q.sample((20_000,))
    assert_mean_equals(q.log_prob(z) - p.log_prob(z), kl)
    assert (p.assignment_kl() > 0).all() == charge


@pytest.mark.parametrize("gate", [name for name, cls in GATES.items() if cls.reparametrized])
def test_a_sampled_divergence_has_the_gradient_of_the_closed_one(gate):
    # The bound is linear in the components' densities, so it keeps what a log-sum-exp of them would lose.
    base = sparse(Normal, gate=gate).base_dist
    logits, loc = base.logits.requires_grad_(), base.slab.loc.requires_grad_()
    q = SpikeSlab(Normal(loc, base.slab.scale), logits=logits, gate=gate).to_event(1)
    p = mixture(sparse(Normal, U))
    exact = torch.autograd.grad(kl_divergence(q, p), (logits, loc), retain_graph=True)
    copies = [t.detach().expand(40_000, J).clone().requires_grad_() for t in (logits, loc)]
    many = SpikeSlab(Normal(copies[1], base.slab.scale.expand(40_000, J)), logits=copies[0], gate=gate).to_event(1)
    z = many.rsample()
    sampled = torch.autograd.grad((many.log_prob(z) - p.expand((40_000,)).log_prob(z)).sum(), copies)
    for one, mean in zip(sampled, exact, strict=True):
        assert_mean_equals(one, mean)


def test_a_component_without_assignment_may_be_infinitely_far():
    logits = torch.tensor([[-1.0, -1.0], [-math.inf, -1.0]])  # under the second component the first latent is never on
    components = SpikeSlab(Normal(torch.zeros(2, 2), 1.0), logits=logits).to_event(1)
    q = SpikeSlab(Normal(torch.zeros(1, 2), 1.0), probs=torch.tensor([[0.5, 0.3]])).to_event(1)
    p = AssignedMixture(components, torch.full((2,), 0.5).log(), torch.tensor([[1.0, 0.0]]).log())
    assert pairwise_kl(q, components)[0, 1] == math.inf
    torch.testing.assert_close(p.assignment_kl(), torch.tensor([math.log(2)]))
    torch.testing.assert_close(kl_divergence(q, p), pairwise_kl(q, components)[:, 0] + math.log(2))
    z = torch.tensor([[1.0, 0.0]])
    torch.testing.assert_close(p.log_prob(z), components.log_prob(z)[:1] - math.log(2))


def test_samples_are_of_the_mixture_whatever_the_assignment():
    p = mixture(sparse(Normal, U), 6)
    z = p.sample((3000,))
    assert z.shape == (3000, 6, J)
    base = p.component_distribution.base_dist
    inclusion = (p.log_weights.exp().unsqueeze(-1) * base.probs).sum(0)
    assert_mean_equals((z != 0).double().flatten(0, 1), inclusion)


@pytest.mark.parametrize("batch", [(), (6,)])
def test_a_mixture_includes_a_latent_as_often_as_its_components_do_on_average(batch):
    p = mixture(sparse(Normal, U))
    expected = (p.log_weights.exp().unsqueeze(-1) * p.component_distribution.base_dist.probs).sum(0)
    torch.testing.assert_close(inclusion_logits(p.mixture.expand(batch)).sigmoid(), expected.expand(*batch, J))
    assert inclusion_logits(mixture(dense(Normal, U)).mixture) is None
