import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import assert_mean_equals
from pyro import poutine
from pyro.infer import SVI, Predictive, RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from torch import nn

import vsc_pyro as vsc


def test_model_and_guide_are_plain_pyro_programs(small_vae, digits):
    vae, x = small_vae(), digits.test.images[:7]
    guide = poutine.trace(vae.guide).get_trace(x)
    model = poutine.trace(poutine.replay(vae.model, guide)).get_trace(x)
    assert [n for n, s in model.nodes.items() if s["type"] == "sample"] == ["data", "z", "x"]
    assert model.nodes["z"]["value"] is guide.nodes["z"]["value"]
    assert model.nodes["x"]["is_observed"]
    model.compute_log_prob()
    assert model.nodes["x"]["log_prob"].shape == model.nodes["z"]["log_prob"].shape == (7,)


@pytest.mark.parametrize("shape", [(5, 1, 8, 8), (5, 8, 8), (5, 64)])
def test_data_of_any_layout(small_vae, shape):
    small_vae().model(torch.rand(shape).round())


@pytest.mark.parametrize("beta", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO, vsc.TraceELBO, vsc.AnalyticELBO])
def test_beta_weighs_the_kl_alone(small_vae, digits, beta, elbo):
    vae = small_vae()
    vae.beta = beta
    x = digits.test.draw(slice(360))
    q, p = vae.encoder(x), vae.prior(x)
    kl = torch.distributions.kl_divergence(q, p.expand(q.batch_shape)).sum().detach()
    losses = torch.stack([torch.tensor(elbo().loss(vae.model, vae.guide, x)) for _ in range(50)])
    z = q.sample((50,))
    recon = vae.decoder(z).log_prob(x).sum(1)
    assert_mean_equals(losses + recon, float(beta * kl))


def test_predictive_and_renyi(small_vae, digits):
    vae, x = small_vae("shifted-sigmoid"), digits.test.draw(slice(5))
    vae.eval()
    unconditioned = poutine.uncondition(vae.model)
    for parallel in (True, False):
        draws = Predictive(unconditioned, guide=vae.guide, num_samples=40, parallel=parallel, return_sites=("z", "x"))(
            x
        )
        assert draws["z"].shape == (40, 5, 8)
        assert draws["x"].shape == (40, 5, 1, 8, 8)
        assert (draws["z"] == 0).any()
    prior = Predictive(unconditioned, num_samples=400, return_sites=("z",))(x)["z"]
    assert_mean_equals((prior != 0).double().flatten(), 0.2)
    vae.train()
    bound = RenyiELBO(alpha=0, num_particles=20, vectorize_particles=True, max_plate_nesting=1)
    assert bound.loss(vae.model, vae.guide, x) < Trace_ELBO(num_particles=20).loss(vae.model, vae.guide, x)


def test_two_models_train_in_one_process(small_vae, digits):
    x = digits.train.draw(slice(200))
    for seed in (0, 1):
        vae = small_vae(seed=seed)
        before = {n: p.clone() for n, p in vae.named_parameters()}
        svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 3e-3}), Trace_ELBO())
        losses = [svi.step(x) for _ in range(100)]
        assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
        assert all(not torch.equal(p, before[n]) for n, p in vae.named_parameters())


def test_drawing_from_models_leaves_the_parameter_store_alone(small_vae, digits):
    x = digits.test.images[:3].round()
    for seed in (0, 1):
        vae = small_vae(seed=seed)
        Predictive(poutine.uncondition(vae.model), guide=vae.guide, num_samples=2, return_sites=("x",))(x)
        with torch.no_grad():
            Trace_ELBO().loss(vae.model, vae.guide, x)
    assert list(pyro.get_param_store().keys()) == []


def test_a_parameter_that_pyro_would_copy_is_named(small_vae, digits):
    vae = small_vae()
    weight = vae.decoder.network[0].weight
    weight.data = weight.data.t().contiguous().t()
    with pytest.raises(RuntimeError, match=r"decoder\.network\.0\.weight is not contiguous"):
        vae.model(digits.test.images[:3].round())


class Wrapped(nn.Module):
    """An encoder of a user's own, which does not say its input shape."""

    def __init__(self, encoder):
        super().__init__()
        self.inner = encoder

    def forward(self, x):
        return self.inner(x)


def test_parts_without_an_input_shape_are_checked_with_the_first_data(digits):
    vae = vsc.VAE(Wrapped(vsc.SpikeSlabEncoder(64, 5)), vsc.BernoulliDecoder(5, 64), vsc.NormalPrior(5))
    for objective in ("trace", "analytic"):
        with pytest.raises(ValueError, match="is infinite"):
            vsc.fit(vae, digits.train, objective=objective, epochs=1, device="cpu", progress=False)
    with pytest.raises(ValueError, match="is infinite"):
        vsc.evaluate(vae, digits.test)


def test_parts_that_return_torch_distributions_are_pointed_out():
    class TorchPrior(nn.Module):
        def forward(self, x):
            return torch.distributions.Independent(torch.distributions.Normal(torch.zeros(5), 1.0), 1)

    with pytest.raises(ValueError, match=r"the prior must return a Pyro distribution, got torch\.distributions"):
        vsc.VAE(vsc.NormalEncoder(64, 5), vsc.BernoulliDecoder(5, 64), TorchPrior())


def test_frozen_parameters_are_left_alone_without_warnings(small_vae, digits):
    vae = small_vae()
    vae.decoder.requires_grad_(False)
    before = {n: p.clone() for n, p in vae.decoder.named_parameters()}
    vsc.fit(vae, digits.train.images[:100], epochs=1, progress=False, device="cpu")
    assert all(torch.equal(p, before[n]) for n, p in vae.decoder.named_parameters())


def test_evaluating_restores_each_modules_mode(small_vae):
    vae = small_vae()
    vae.decoder.eval()
    with vae.evaluating():
        assert not any(m.training for m in vae.modules())
        assert not torch.is_grad_enabled()
    assert vae.encoder.training
    assert not vae.decoder.training


class LaplacePrior(nn.Module):
    def __init__(self, latent_dim):
        super().__init__()
        self.latent_dim = latent_dim

    def forward(self, x):
        return dist.Laplace(torch.zeros(self.latent_dim), 1.0).to_event(1)


def test_parts_that_do_not_fit_are_refused_at_construction():
    spike_slab, normal = vsc.SpikeSlabEncoder(64, 5), vsc.NormalEncoder(64, 5)
    decoder = vsc.BernoulliDecoder(5, 64)
    for prior in (vsc.NormalPrior(5), LaplacePrior(5)):
        with pytest.raises(ValueError, match=r"is infinite: .* use a SpikeSlab prior, or an atom-free posterior"):
            vsc.VAE(spike_slab, decoder, prior)
    vsc.VAE(normal, decoder, vsc.SpikeSlabPrior(5))
    vsc.VAE(normal, decoder, LaplacePrior(5))
    with pytest.raises(ValueError, match=r"same number of latents, got codes of shape \(5,\) and \(6,\)"):
        vsc.VAE(spike_slab, decoder, vsc.SpikeSlabPrior(6))
    with pytest.raises(ValueError, match=r"decoder does not take the encoder's codes of shape \(5,\)"):
        vsc.VAE(spike_slab, vsc.BernoulliDecoder(4, 64), vsc.SpikeSlabPrior(5))
    with pytest.raises(ValueError, match=r"data of shape \(N, 64\) do not fit a decoder of shape \(65,\)"):
        vsc.VAE(spike_slab, vsc.BernoulliDecoder(5, 65), vsc.SpikeSlabPrior(5))
    for beta in (0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="beta must be a finite number above 0"):
            vsc.VAE(spike_slab, decoder, vsc.SpikeSlabPrior(5), beta=beta)


def test_bad_data_are_named(small_vae, digits):
    vae, good = small_vae(), digits.test.images[:20]
    vae.check_data(good)
    for value in (float("nan"), float("inf")):
        bad = good.clone()
        bad[3, 0, 2, 2] = value
        with pytest.raises(ValueError, match="data holds 1 NaN or infinite values"):
            vae.check_data(bad)
    for bad in (good * 16, good - 0.5):
        with pytest.raises(ValueError, match=r"support of the likelihood, .*got values from .* rescale them"):
            vae.check_data(bad)
    with pytest.raises(ValueError, match=r"encoder does not take data of shape \(N, 1, 9, 9\)"):
        vae.check_data(torch.rand(5, 1, 9, 9))
    with pytest.raises(ValueError, match="within the support"):
        Trace_ELBO().loss(vae.model, vae.guide, good * 16)  # bare Pyro says so too, by its own validation


@pytest.mark.parametrize("decoder_class", [vsc.BernoulliDecoder, vsc.NormalDecoder])
def test_codes_without_a_mean_need_a_decoder_that_saturates(decoder_class):
    """E|z| of a Cauchy is infinite, and so is the expected loss of a decoder that grows with z."""
    pairs = [
        (vsc.CauchyEncoder(64, 5), vsc.CauchyPrior(5)),
        (vsc.SpikeSlabEncoder(64, 5, slab="cauchy"), vsc.SpikeSlabPrior(5, slab="cauchy")),
    ]
    for encoder, prior in pairs:
        vsc.VAE(encoder, decoder_class(5, 64, activation="tanh"), prior)
        for decoder in (decoder_class(5, 64), decoder_class(5, 64, hidden=())):
            with pytest.raises(ValueError, match=r"the posterior has no mean .*activation='tanh'"):
                vsc.VAE(encoder, decoder, prior)
    vsc.VAE(vsc.NormalEncoder(64, 5), decoder_class(5, 64), vsc.CauchyPrior(5))  # which has a mean


def test_only_parts_and_priors_are_shown_the_data(digits):
    class Trunk(nn.Sequential):
        out_features = 8

        def prepare(self, temperature):
            raise AssertionError("not for this")

    class Mixed(nn.Module):
        def __init__(self, prior):
            super().__init__()
            self.inner = prior

        def forward(self, x):
            return self.inner(x)

    encoder = vsc.SpikeSlabEncoder(64, 3, trunk=Trunk(nn.Flatten(), nn.Linear(64, 8)))
    inner = vsc.PseudoInputPrior(encoder, 4)
    vae = vsc.VAE(encoder, vsc.BernoulliDecoder(3, 64), Mixed(inner))
    seen = []
    vae.decoder.prepare = seen.append
    vae.prepare(digits.train.images)
    assert inner.prepared
    assert len(seen) == 1
