import itertools
import math

import pytest
import torch
from conftest import Z_BOUND, assert_mean_equals
from problems.linear import linear_model

import vsc_pyro as vsc
from vsc_pyro.inference.linear_exact import exact_posterior


def by_hand(model, x):
    """Evidence, inclusion, mean and variance from the joint Gaussian of (z, x) in every pattern, in pixel space."""
    x = x.flatten(1).double()
    weight, bias = (p.detach().double() for p in model.decoder.network[0].parameters())
    noise = torch.diag(model.decoder.scale.detach().double().expand(len(bias)) ** 2)
    alpha = model.prior.inclusion_probs.double()
    log_joint, first, second, patterns = [], [], [], []
    for pattern in itertools.product([0.0, 1.0], repeat=len(alpha)):
        on = torch.tensor(pattern, dtype=torch.float64)
        covariance = (weight * on) @ weight.T + noise
        gain = on.unsqueeze(1) * weight.T @ torch.linalg.inv(covariance)
        mean = (x - bias) @ gain.T
        variance = on - (gain * weight.T * on.unsqueeze(1)).sum(1)
        marginal = torch.distributions.MultivariateNormal(bias, covariance)
        log_prior = torch.where(on > 0, alpha, 1 - alpha).log().sum()
        log_joint.append(log_prior + marginal.log_prob(x))
        first.append(mean)
        second.append(variance + mean**2)
        patterns.append(on)
    log_joint = torch.stack(log_joint, 1)
    weights = log_joint.softmax(1)
    mean = torch.einsum("bs,sbj->bj", weights, torch.stack(first))
    square = torch.einsum("bs,sbj->bj", weights, torch.stack(second))
    return log_joint.logsumexp(1), weights @ torch.stack(patterns), mean, square - mean**2


@pytest.mark.parametrize("variance", ["fixed", "shared", "per-pixel"])
def test_enumeration_in_latent_space_is_that_in_pixel_space(variance):
    inclusion = torch.tensor([0.1, 0.3, 0.5, 0.2, 0.9])
    model, x, _ = linear_model(variance=variance, inclusion=inclusion)
    posterior = exact_posterior(model, x)
    fields = (posterior.log_evidence, posterior.inclusion, posterior.mean, posterior.variance)
    for field, expected in zip(fields, by_hand(model, x), strict=True):
        torch.testing.assert_close(field, expected, atol=1e-6, rtol=1e-6)


def with_learned_slab(learn_slab):
    """A linear-Gaussian model whose slabs have moved from N(0, 1), with 200 data of its own."""
    model, _, _ = linear_model(inclusion=0.4)
    model.prior = vsc.SpikeSlabPrior(5, 0.4, learn_slab=learn_slab, slab_loc=0.7, slab_scale=0.6)
    with torch.no_grad():
        if learn_slab is True:
            model.prior.slab_loc.copy_(torch.tensor([2.0, -1.0, 0.0, 0.5, 3.0]))
            model.prior.slab_log_scale.copy_(torch.tensor([0.1, 1.0, 2.0, 0.5, 1e-4]).log())
        return model, model.decoder(model.prior(None).sample((200,))).sample()


@pytest.mark.parametrize("learn_slab", [False, True, "global"])
def test_slabs_have_their_current_location_and_scale(learn_slab):
    """Evidence, inclusion and mean against Gaussians of (z, x) in pixel space, summed over patterns."""
    model, x = with_learned_slab(learn_slab)
    weight, bias = (p.detach().double() for p in model.decoder.network[0].parameters())
    slab = model.prior(None).base_dist.slab
    loc, scale, x = slab.loc.detach().double(), slab.scale.detach().double(), x.double()
    log_joint, means, patterns = [], [], []
    for pattern in itertools.product([0.0, 1.0], repeat=5):
        on = torch.tensor(pattern, dtype=torch.float64)
        covariance = (weight * on * scale**2) @ weight.T + 0.25 * torch.eye(9)
        marginal = torch.distributions.MultivariateNormal(bias + weight @ (on * loc), covariance)
        gain = (on * scale**2).unsqueeze(1) * weight.T @ torch.linalg.inv(covariance)
        log_joint.append(torch.where(on > 0, 0.4, 0.6).log().sum() + marginal.log_prob(x))
        means.append(on * loc + (x - marginal.loc) @ gain.T)
        patterns.append(on)
    log_joint = torch.stack(log_joint, 1)
    weights = log_joint.softmax(1)
    posterior = exact_posterior(model, x)
    mean = torch.einsum("bs,sbj->bj", weights, torch.stack(means))
    expected = (log_joint.logsumexp(1), weights @ torch.stack(patterns), mean)
    found = (posterior.log_evidence, posterior.inclusion, posterior.mean)
    for field, by_patterns in zip(found, expected, strict=True):
        torch.testing.assert_close(field, by_patterns, atol=1e-5, rtol=1e-5)
    draws = posterior.sample((2000,))
    seen = (posterior.inclusion > 0.05) & (posterior.variance > 1e-6)
    error = (posterior.variance[seen] / len(draws)).sqrt()
    assert ((draws.mean(0) - posterior.mean)[seen].abs() / error).max() < Z_BOUND


def test_draws_have_the_moments_and_exact_zeros():
    model, x, _ = linear_model()
    posterior = exact_posterior(model, x[:20])
    draws = posterior.sample((4000,))
    assert draws.shape == (4000, 20, 5)
    assert posterior.sample().shape == (20, 5)
    assert posterior.sample((2, 3)).shape == (2, 3, 20, 5)
    # A latent that is next to never on has too few draws that are for a standard error.
    seen = (posterior.inclusion > 0.02) & (posterior.inclusion < 0.98)
    assert seen.sum() > 20
    assert_mean_equals((draws != 0).double()[:, seen], posterior.inclusion[seen])
    assert_mean_equals(draws[:, seen], posterior.mean[seen])
    assert_mean_equals((draws - posterior.mean).square()[:, seen], posterior.variance[seen])
    assert ((draws != 0).double().mean(0) - posterior.inclusion).abs().max() < 0.05
    # Atoms that overlap: whether one latent is on depends on whether another is.
    both = (draws[..., 0] != 0) & (draws[..., 1] != 0)
    separate = (draws[..., 0] != 0).double().mean(0) * (draws[..., 1] != 0).double().mean(0)
    assert ((both.double().mean(0) - separate).abs() > 0.02).any()


def test_true_codes_are_on_as_often_as_the_posterior_says():
    model, x, z = linear_model()
    posterior = exact_posterior(model, x)
    assert_mean_equals((z != 0).double() - posterior.inclusion, 0)
    assert_mean_equals(z - posterior.mean, 0)


def test_memory_is_bounded_and_chunks_do_not_show(monkeypatch):
    model, x, _ = linear_model()
    whole = exact_posterior(model, x[:30])
    monkeypatch.setattr("vsc_pyro.inference.linear_exact.NUMBERS_AT_ONCE", 4000)
    monkeypatch.setattr("vsc_pyro.inference.linear_exact._ROWS_AT_ONCE", 7)
    chunked = exact_posterior(model, x[:30])
    torch.testing.assert_close(chunked.log_evidence, whole.log_evidence)
    torch.testing.assert_close(chunked.variance, whole.variance)
    error = (whole.variance / 1000).sqrt()
    assert ((chunked.sample((1000,)).mean(0) - whole.mean).abs() / error).max() < Z_BOUND


def test_twelve_latents_and_the_current_inclusion():
    model, x, _ = linear_model(12, 20)
    before = exact_posterior(model, x)
    assert math.isfinite(before.log_evidence.mean())
    model.prior.inclusion_logits.fill_(-200.0)
    after = exact_posterior(model, x)
    assert after.inclusion.max() < 1e-3 < before.inclusion.max()
    noise = model.decoder(torch.zeros(12)).log_prob(x).detach().double()
    torch.testing.assert_close(after.log_evidence, noise, atol=1e-3, rtol=1e-5)


def test_refuses_what_has_no_exact_posterior():
    model, x, _ = linear_model(13, 20)
    with pytest.raises(ValueError, match=r"at most 12 latents, got 13 .*use gibbs_posterior"):
        exact_posterior(model, x)
    deep = vsc.VAE(vsc.SpikeSlabEncoder(9, 3), vsc.NormalDecoder(3, 9, hidden=(8,)), vsc.SpikeSlabPrior(3))
    with pytest.raises(ValueError, match=r"only a linear decoder .* hidden=\(\)"):
        exact_posterior(deep, x[:, :9])
    binary = vsc.VAE(vsc.SpikeSlabEncoder(9, 3), vsc.BernoulliDecoder(3, 9, hidden=()), vsc.SpikeSlabPrior(3))
    with pytest.raises(ValueError, match=r"has an exact posterior, got BernoulliDecoder"):
        exact_posterior(binary, torch.zeros(2, 9))
    dense = vsc.VAE(vsc.NormalEncoder(9, 3), vsc.NormalDecoder(3, 9, hidden=()), vsc.NormalPrior(3))
    with pytest.raises(ValueError, match="with normal slabs, got a prior of Normal; build"):
        exact_posterior(dense, x[:, :9])
    laplace = vsc.VAE(
        vsc.SpikeSlabEncoder(9, 3, slab="laplace"),
        vsc.NormalDecoder(3, 9, hidden=()),
        vsc.SpikeSlabPrior(3, slab="laplace"),
    )
    with pytest.raises(ValueError, match=r"got a prior of SpikeSlab of Laplace; .* slab='normal'\)"):
        exact_posterior(laplace, x[:, :9])
