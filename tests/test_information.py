"""Against quadrature and enumeration, and on latents that idle."""

import math

import pyro.distributions as dist
import pytest
import torch

import vsc_pyro as vsc
from vsc_pyro.distributions import ThresholdedSpikeSlab, inclusion_of
from vsc_pyro.evaluation.information import Information, is_informative


def nats(posterior, parts=1):
    """The information of each latent, of posteriors that come in so many parts."""
    if parts > 1:
        rows = torch.arange(len(posterior.base_dist.logits)).chunk(parts)
        base = posterior.base_dist
        pieces = [
            vsc.SpikeSlab(dist.Normal(base.slab.loc[r], base.slab.scale[r]), logits=base.logits[r]).to_event(1)
            for r in rows
        ]
    else:
        pieces = [posterior]
    information = Information()
    for piece in pieces:
        information.locate(piece)
    for piece in pieces:
        information.count(piece)
    return information.nats()


def spike_slab(family, loc, scale, probs):
    return vsc.SpikeSlab(family(loc, scale), probs=probs).to_event(1)


def truth(family, loc, scale, probs):
    """By quadrature over a grid that holds all but a millionth of the mass (Cauchy: a thousandth)."""
    grid = torch.sinh(torch.linspace(-9, 9, 40_001, dtype=torch.float64))
    density = family(loc.double().unsqueeze(-1), scale.double().unsqueeze(-1)).log_prob(grid).exp()
    mean = (probs.double().unsqueeze(-1) * density).mean(0)
    ratio = torch.where(density > 0, (probs.unsqueeze(-1) * density / mean.clamp(min=1e-300)).clamp(min=1e-300), 1.0)
    on = torch.trapezoid(probs.unsqueeze(-1) * density * ratio.log(), grid).mean(0)
    off = ((1 - probs) * ((1 - probs) / (1 - probs).mean(0)).log()).double().mean(0)
    return on + off


@pytest.mark.parametrize("family", [dist.Normal, dist.Laplace, dist.Cauchy])
@pytest.mark.parametrize("size", [0.1, 0.5, 2.0])
def test_slightly_below_the_truth_by_quadrature(family, size):
    generator = torch.Generator().manual_seed(0)
    loc = size * torch.randn(6, 4, generator=generator)
    scale = torch.exp(size / 2 * torch.randn(6, 4, generator=generator))
    probs = torch.sigmoid(size * torch.randn(6, 4, generator=generator) - 1)
    expected = truth(family, loc, scale, probs)
    got = nats(spike_slab(family, loc, scale, probs))
    print(got, expected)
    assert (got < expected + 1e-4).all()
    assert (got > 0.9 * expected).all()


def test_the_spikes_part_is_exact_and_parts_of_the_data_add_up():
    probs = torch.tensor([[0.1, 0.5], [0.9, 0.5], [0.2, 0.01], [0.3, 0.99]])
    posterior = spike_slab(dist.Normal, torch.ones(4, 2), torch.ones(4, 2), probs)
    mean = probs.mean(0)
    expected = (probs * (probs / mean).log() + (1 - probs) * ((1 - probs) / (1 - mean)).log()).mean(0)
    torch.testing.assert_close(nats(posterior).float(), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(nats(posterior, parts=3), nats(posterior))


def test_prior_divergence_is_the_information_and_that_of_the_average():
    """Of spikes alone, where all three are known: what the decomposition of the docstring says."""
    probs, alpha = torch.tensor([[0.05], [0.3], [0.1]]), 0.2
    posterior = spike_slab(dist.Normal, torch.zeros(3, 1), torch.ones(3, 1), probs)
    prior = vsc.SpikeSlab(dist.Normal(torch.zeros(1), 1.0), probs=alpha).to_event(1)
    kl = torch.distributions.kl_divergence(posterior, prior.expand((3,))).mean()
    mean = dist.Bernoulli(probs.mean())
    rest = torch.distributions.kl_divergence(mean, dist.Bernoulli(torch.tensor(alpha)))
    assert float(nats(posterior)) == pytest.approx(float(kl - rest), rel=1e-4)


@pytest.mark.parametrize(
    "posterior",
    [
        lambda one: dist.Normal(3 * one, 0.2 * one).to_event(1),
        lambda one: dist.Cauchy(3 * one, 0.2 * one).to_event(1),
        lambda one: spike_slab(dist.Laplace, -one, one, 0.17 * one),
        lambda one: ThresholdedSpikeSlab(dist.Normal(0.3 * one, one), one).to_event(1),
        lambda one: dist.Delta(0.7 * one, event_dim=1),
        lambda one: dist.Delta(0 * one, event_dim=1),
        lambda one: dist.MultivariateNormal(one, torch.eye(3)),
    ],
)
def test_what_is_the_same_for_all_data_tells_nothing_whatever_the_prior(posterior):
    posterior = posterior(torch.ones(20, 3))
    information = nats(posterior)
    assert (information.abs() < 1e-7).all()
    assert not is_informative(information, inclusion_of(posterior).mean(0), 20).any()


def test_values_that_tell_data_apart_carry_the_logarithm_of_their_number():
    loc = torch.tensor([[-10.0], [10.0], [-10.0], [10.0]])
    for posterior in (dist.Normal(loc, torch.ones(4, 1)).to_event(1), dist.Delta(loc, event_dim=1)):
        assert float(nats(posterior)) == pytest.approx(math.log(2), abs=1e-3)
    # On and off by the datum, and where it is on always the same.
    rectified = dist.Delta(loc.clamp(min=0), event_dim=1)
    assert float(nats(rectified)) == pytest.approx(math.log(2), abs=1e-6)
    assert is_informative(nats(rectified), torch.tensor([0.5]), 4).all()


def test_the_marginals_of_a_correlated_posterior():
    loc = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
    correlated = dist.MultivariateNormal(loc, torch.tensor([[1.0, 0.9], [0.9, 1.0]]))
    torch.testing.assert_close(nats(correlated), nats(dist.Normal(loc, torch.ones(2, 2)).to_event(1)))


def test_idle_latents_are_not_used_and_rare_certain_ones_are():
    generator = torch.Generator().manual_seed(0)
    num = 1000
    # 12 latents that data switch on, 38 that tremble about the prior's rate of .1, one on for a datum of 250, and one
    # that is on for none, with odds that differ by the datum.
    used = torch.sigmoid(8 * torch.rand(num, 12, generator=generator).sub(0.8))
    idle = torch.sigmoid(-2.2 + 0.5 * torch.randn(num, 38, generator=generator))
    rare = torch.full((num, 1), 1e-4)
    rare[::250] = 0.99
    never = torch.sigmoid(-14 + 4 * torch.randn(num, 1, generator=generator))
    probs = torch.cat([used, idle, rare, never.clamp(max=1e-3)], 1)
    loc = torch.cat([torch.randn(num, 12, generator=generator), torch.zeros(num, 40)], 1)
    information = nats(spike_slab(dist.Normal, loc, torch.ones(num, 52), probs))
    informative = is_informative(information, probs.mean(0), num)
    assert informative.tolist() == [True] * 12 + [False] * 38 + [True, False]
    assert is_informative(information, probs.mean(0), 10**6)[-1]  # only its rarity leaves the last one out
    assert information[12:50].min() > information[50] / 3  # nats alone do not tell them apart


def test_a_dense_latent_has_to_carry_a_hundredth_of_a_nat():
    one = torch.ones(2)
    assert is_informative(torch.tensor([0.011, 0.009]), one, 100).tolist() == [True, False]
