import importlib
import math

import numpy as np
import pyro
import pytest
import torch

import vsc_pyro as vsc
from vsc_pyro.models.starting import mean_and_scale

QUIET = {"progress": False, "device": "cpu", "compile": False}
DECODERS = {
    "linear": lambda: vsc.NormalDecoder(8, 400, hidden=()),
    "linear, given scale": lambda: vsc.NormalDecoder(8, 400, hidden=(), scale=0.3),
    "mlp": lambda: vsc.NormalDecoder(8, 400),
    "mlp, given scale": lambda: vsc.NormalDecoder(8, 400, scale=30.0),
    "deconvolutional": lambda: vsc.NormalDecoder(8, (1, 20, 20), trunk=vsc.DeconvTrunk((1, 20, 20), (8, 4), 16)),
    "bernoulli": lambda: vsc.BernoulliDecoder(8, 400),
    "continuous bernoulli": lambda: vsc.ContinuousBernoulliDecoder(8, 400, hidden=(20, 20)),
}


def low_rank(num=300, features=12, noise=0.1, seed=0):
    """Data of three sparse sources, standard deviation about 1."""
    random = torch.Generator().manual_seed(seed)
    on = torch.rand(num, 3, generator=random) < 0.4
    sources = on * torch.randn(num, 3, generator=random)
    atoms = torch.randn(3, features, generator=random)
    return sources @ atoms + noise * torch.randn(num, features, generator=random)


def linear_vae(features=12, latent_dim=4, **decoder):
    torch.manual_seed(0)
    return vsc.VAE(
        vsc.SpikeSlabEncoder(features, latent_dim, hidden=(32,)),
        vsc.NormalDecoder(latent_dim, features, hidden=(), **decoder),
        vsc.SpikeSlabPrior(latent_dim, 0.3),
    )


@pytest.mark.parametrize("kind", DECODERS)
def test_one_latent_changes_the_outputs_by_about_the_noise_scale(kind):
    torch.manual_seed(0)
    decoder = DECODERS[kind]().eval()
    with torch.no_grad():
        outputs = decoder.pixels(torch.cat([torch.zeros(1, 8), torch.eye(8)])).flatten(1)
    effect = float((outputs[1:] - outputs[0]).square().sum(1).mean().sqrt())
    unit = float(decoder.scale) if "given" in kind else 1.0
    assert effect == pytest.approx(unit, rel=0.05)


def test_building_draws_the_numbers_that_torch_draws():
    torch.manual_seed(0)
    vsc.NormalDecoder(8, 40, hidden=(5,))
    got = torch.rand(1)
    torch.manual_seed(0)
    torch.nn.Linear(8, 5), torch.nn.Linear(5, 40)
    assert torch.equal(got, torch.rand(1))


def test_means_and_scales_are_of_all_data():
    x = 1e4 + 3 * torch.randn(2500, 2, 5, generator=torch.Generator().manual_seed(0))
    mean, scale = mean_and_scale(x)
    exact = x.double()
    torch.testing.assert_close(mean, exact.mean(0))
    torch.testing.assert_close(scale, (exact - exact.mean(0)).square().mean().sqrt())
    assert mean_and_scale(torch.full((7, 3), 5.0))[1] == 1


@pytest.mark.parametrize("build", [vsc.BernoulliDecoder, vsc.ContinuousBernoulliDecoder, vsc.NormalDecoder])
def test_decoders_start_at_the_mean_of_the_data(build):
    x = torch.rand(500, 6, generator=torch.Generator().manual_seed(0)) ** torch.tensor([1.0, 2, 3, 4, 0.5, 0.3])
    decoder = build(3, 6)
    decoder.own_layer.weight.data.zero_()
    decoder.prepare(x)
    torch.testing.assert_close(decoder(torch.zeros(1, 3)).mean[0], x.mean(0), atol=2e-3, rtol=0)
    if build is vsc.NormalDecoder:
        deviation = float((x - x.mean(0)).square().mean().sqrt())
        assert float(decoder.scale.detach()) == pytest.approx(0.4 * deviation, rel=1e-4)
        assert math.isclose(float(decoder.unit), deviation, rel_tol=1e-4)


def test_constant_pixels_start_at_a_finite_logit():
    x = torch.cat([torch.zeros(50, 2), torch.ones(50, 2)], 1)
    for build in (vsc.BernoulliDecoder, vsc.ContinuousBernoulliDecoder):
        decoder = build(3, 4)
        decoder.prepare(x)
        assert decoder(torch.zeros(1, 3)).log_prob(x[:1]).isfinite().all()
        assert decoder.own_layer.bias.abs().max() <= 12.001


def test_a_trunk_that_has_been_trained_elsewhere_is_left_as_it_is():
    trunk = vsc.DeconvTrunk((3, 8, 8), (4,), 6)
    torch.nn.init.ones_(trunk.layers[-1].bias) if hasattr(trunk.layers[-1], "bias") else None
    before = {name: value.clone() for name, value in trunk.state_dict().items()}
    decoder = vsc.NormalDecoder(2, (3, 8, 8), trunk=trunk)
    decoder.prepare(torch.rand(20, 3, 8, 8))
    for name, value in trunk.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.slow
def test_data_in_other_units_are_fitted_alike():
    # Inputs, outputs, scale and atoms are in units of the data: the codes are the same, but for rounding.
    x = low_rank()
    found = []
    for factor, shift in ((1.0, 0.0), (1000.0, 0.0), (0.001, 0.0), (100.0, 5000.0)):
        model = linear_vae()
        data = factor * x + shift
        vsc.fit(model, data, epochs=40, batch_size=100, lr=3e-3, **QUIET)
        found.append(vsc.codes(model, data).inclusion)
        assert float(model.decoder.scale.detach()) < 0.8 * factor * float(x.std())
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], atol=0.02, rtol=0)


def buffers(model):
    names = ("encoder.input_mean", "encoder.input_scale", "decoder.unit")
    return {name: value.clone() for name, value in model.named_buffers() if name in names}


def test_models_start_from_the_first_data_that_they_are_shown():
    x = low_rank()
    model = linear_vae()
    assert model.encoder.is_fresh
    model.prepare(x)
    before = buffers(model)
    assert float(before["decoder.unit"]) != 1
    vsc.fit(model, 7 * x + 3, epochs=1, **QUIET)
    torch.testing.assert_close(buffers(model), before, rtol=0, atol=0)


def test_what_has_been_trained_or_frozen_is_left_as_it_is():
    x = low_rank()
    bare = linear_vae()
    svi = pyro.infer.SVI(bare.model, bare.guide, pyro.optim.Adam({"lr": 1e-3}), pyro.infer.Trace_ELBO())
    with pyro.get_param_store().scope():
        svi.step(x)
    before = buffers(bare)
    bare.prepare(x)
    torch.testing.assert_close(buffers(bare), before, rtol=0, atol=0)
    frozen = linear_vae()
    frozen.encoder.requires_grad_(False)
    frozen.prepare(x)
    assert float(frozen.decoder.unit) != 1
    frozen.encoder.requires_grad_(True)  # a second stage: what the decoder has learnt to read stays
    frozen.prepare(x)
    assert float(frozen.encoder.input_scale) == 1


def test_weights_of_ones_own_choice_are_no_training():
    x = low_rank()
    model = linear_vae()
    for layer in model.modules():
        if isinstance(layer, torch.nn.Linear):
            torch.nn.init.xavier_uniform_(layer.weight)
            torch.nn.init.zeros_(layer.bias)
    model.prepare(x)
    assert float(model.decoder.unit) == pytest.approx(float((x - x.mean(0)).square().mean().sqrt()), rel=1e-4)


@pytest.mark.parametrize("channels", [(64, 32), (16, 8)])
@pytest.mark.parametrize("shape", [(1, 28, 28), 784])
def test_deconvolutional_decoders_start_at_the_mean_of_the_data(channels, shape):
    decoder = vsc.NormalDecoder(8, shape, trunk=vsc.DeconvTrunk((1, 28, 28), channels))
    x = 5 + 0.1 * torch.randn(60, *decoder.output_shape, generator=torch.Generator().manual_seed(0))
    decoder.prepare(x)
    assert float(decoder(torch.zeros(1, 8)).mean.detach().mean()) == pytest.approx(5, abs=0.2)


class OwnTrunk(torch.nn.Module):
    """Takes counts as they are; has no bias, and numbers of double precision."""

    out_features = in_features = 12

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(12, 12, bias=False).double()

    def forward(self, x):
        return self.layer(torch.log1p(x)) if x.min() >= 0 else self.layer(x)


def test_trunks_of_ones_own_get_the_data_as_they_are():
    encoder = vsc.SpikeSlabEncoder(12, 3, trunk=OwnTrunk()).double()
    decoder = vsc.NormalDecoder(3, 12, trunk=OwnTrunk()).double()
    model = vsc.VAE(encoder, decoder, vsc.SpikeSlabPrior(3, 0.3).double())
    history = vsc.fit(model, torch.poisson(torch.full((50, 12), 4.0)).double(), epochs=2, **QUIET)
    assert np.isfinite(history.elbo).all()
    assert float(encoder.input_scale) == 1
    assert float(decoder.unit) > 1


def test_a_decoder_without_bias_and_a_bounded_trunk():
    decoder = vsc.BernoulliDecoder(3, 12, hidden=())
    decoder.network[0].bias = None
    decoder.prepare(torch.rand(20, 12))
    trunk = torch.nn.Sequential(torch.nn.Linear(12, 2), torch.nn.Sigmoid())
    trunk.in_features = 12
    assert vsc.NormalDecoder(3, 2, trunk=trunk, scale=10.0).own_layer.weight.abs().max() < 100


def test_scales_are_learned_where_the_code_is_smaller_than_the_datum():
    assert vsc.NormalDecoder(4, 12).variance == "shared"
    assert vsc.NormalDecoder(12, 12).variance == "fixed"
    assert float(vsc.NormalDecoder(12, 12).scale) == pytest.approx(0.4)
    assert vsc.NormalDecoder(4, 12, scale=0.3).variance == "fixed"
    assert vsc.NormalDecoder(12, 12, variance="per-pixel").scale.shape == (12,)


# The prior's inclusion ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [vsc.SpikeSlabEncoder, vsc.ThresholdEncoder])
def test_encoders_start_from_the_priors_inclusion(build):
    x = torch.randn(500, 6)

    def mean_inclusion(prior, **options):
        torch.manual_seed(0)
        encoder = build(6, 300, hidden=(8,), **options)
        model = vsc.VAE(encoder, vsc.BernoulliDecoder(300, 6), prior)
        return vsc.codes(model, x.sigmoid()).inclusion

    assert float(mean_inclusion(vsc.SpikeSlabPrior(300, 0.02)).mean()) == pytest.approx(0.02, rel=0.2)
    assert float(mean_inclusion(vsc.SpikeSlabPrior(300, 0.6)).mean()) == pytest.approx(0.6, rel=0.1)
    assert float(mean_inclusion(vsc.SpikeSlabPrior(300, 0.6), initial_inclusion=0.1).mean()) < 0.15
    each = torch.cat([torch.full((150,), 0.05), torch.full((150,), 0.5)])
    halves = mean_inclusion(vsc.SpikeSlabPrior(300, each)).mean(0).split(150)
    assert float(halves[0].mean()) < 0.1 < 0.4 < float(halves[1].mean())


def test_an_encoder_that_is_its_priors_own_or_trained_follows_nothing():
    encoder = vsc.SpikeSlabEncoder(6, 4, hidden=(8,))
    before = encoder.own_layer.bias.clone()
    vsc.VAE(encoder, vsc.BernoulliDecoder(4, 6), vsc.PseudoInputPrior(encoder, 3))
    assert torch.equal(encoder.own_layer.bias, before)
    encoder.prepared.fill_(True)
    vsc.VAE(encoder, vsc.BernoulliDecoder(4, 6), vsc.SpikeSlabPrior(4, 0.7))
    assert torch.equal(encoder.own_layer.bias, before)


# Defaults of a run ----------------------------------------------------------------------------------------------------


def test_nothing_is_sampled_where_nothing_need_be():
    from vsc_pyro.objectives import exact_if_linear

    x = low_rank(num=4)
    assert exact_if_linear(linear_vae(), x) == "exact"
    learned = linear_vae()
    learned.prior = vsc.SpikeSlabPrior(4, 0.3, learn_inclusion="global", hyperprior=(1, 3))
    assert exact_if_linear(learned, x) == "exact"
    encoder = vsc.SpikeSlabEncoder(12, 4)
    for decoder, prior in (
        (vsc.NormalDecoder(4, 12), vsc.SpikeSlabPrior(4)),
        (vsc.BernoulliDecoder(4, 12, hidden=()), vsc.SpikeSlabPrior(4)),
    ):
        assert exact_if_linear(vsc.VAE(encoder, decoder, prior), x.sigmoid()) == "analytic"
    mixture = vsc.VAE(vsc.NormalEncoder(12, 4), vsc.NormalDecoder(4, 12, hidden=()), vsc.NormalMixturePrior(4))
    assert exact_if_linear(mixture, x) == "analytic"  # of whose divergence there is no closed form


def test_runs_of_few_minibatches_have_more_epochs(monkeypatch):
    plan = importlib.import_module("vsc_pyro.training.plan")
    assert plan.default_epochs(300) == 50
    assert plan.default_epochs(20) == 100
    assert plan.default_epochs(2) == 1000
    monkeypatch.setattr(plan, "default_epochs", lambda num_batches: num_batches + 1)
    history = vsc.fit(linear_vae(), low_rank(num=20), batch_size=5, **QUIET)
    assert len(history) == 5


def test_checkpoints_of_encoders_without_standardisation_are_read(tmp_path):
    model, path = linear_vae(), tmp_path / "c.pt"
    old = {n: v for n, v in model.state_dict().items() if "input_" not in n and not n.endswith("prepared")}
    vsc.save_checkpoint(path, {"model": old})
    other = linear_vae()
    other.prepare(5 + 3 * low_rank())
    vsc.load_weights(other, vsc.load_checkpoint(path), path)
    assert other.encoder.prepared
    plain = linear_vae()
    plain.load_state_dict(old)
    x = low_rank()
    for copy in (other, plain):
        torch.testing.assert_close(vsc.codes(copy, x).inclusion, vsc.codes(model, x).inclusion)


# Real data ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("factor", [1.0, 100.0])
def test_bundled_digits_are_explained_at_the_defaults_in_any_units(digits, factor):
    x = factor * digits.train.images[:600].flatten(1)
    torch.manual_seed(0)
    model = vsc.VAE(
        vsc.SpikeSlabEncoder(64, 16, hidden=(100,)), vsc.NormalDecoder(16, 64, hidden=()), vsc.SpikeSlabPrior(16, 0.2)
    )
    vsc.fit(model, x, epochs=200, lr=3e-3, **QUIET)
    centred = torch.linalg.svdvals(x - x.mean(0)).square()
    best = float(centred[:16].sum() / centred.sum())  # of any linear code of as many latents
    with model.evaluating():
        error = (x - model.decoder(model.encoder(x).mean).mean).square().sum()
    r2 = 1 - float(error / (x - x.mean(0)).square().sum())
    assert 0.7 < r2 <= best
