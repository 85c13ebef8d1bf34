import math

import pyro.distributions as dist
import pytest
import torch
from torch import nn

import vsc_pyro as vsc
from vsc_pyro.datasets import Dataset
from vsc_pyro.distributions import centre
from vsc_pyro.evaluation.survey import survey


def test_shares_agree_with_a_direct_computation(trained, digits):
    data = Dataset(digits.test.images.round())
    x = data.images
    seen = survey(trained, data)
    with trained.evaluating():
        posterior = trained.encoder(x)
        slab, gamma = posterior.base_dist.slab.loc, posterior.base_dist.probs
        codes = gamma * slab, torch.where(gamma > 0.5, slab, 0.0)
        likelihoods = [trained.decoder(code) for code in codes]
    mean = x.double().mean(0)
    total = (x - mean).square().sum()
    alone = torch.distributions.Bernoulli(mean).entropy().sum() * len(x)  # the cross-entropy of the mean is linear in x
    r2 = [1 - float((x - likelihood.mean).square().sum() / total) for likelihood in likelihoods]
    entropy = [1 + float(likelihood.log_prob(x).sum() / alone) for likelihood in likelihoods]
    assert (seen.r2, seen.hard_r2) == pytest.approx(r2, abs=1e-5)
    assert (seen.entropy_explained, seen.hard_entropy_explained) == pytest.approx(entropy, abs=1e-5)
    assert r2[0] > r2[1] > 0.05
    assert seen.baseline == pytest.approx(float(alone) / len(x), rel=1e-6)
    assert seen.residual == pytest.approx(math.sqrt((1 - r2[0]) * float(total) / x.numel()), rel=1e-5)
    torch.testing.assert_close(seen.usage.float(), gamma.mean(0))
    assert seen.used_per_datum == pytest.approx(float(gamma.mean(0)[seen.is_informative].sum()), rel=1e-5)


class MeanDecoder(nn.Module):
    """Whatever the code is, the mean of the data."""

    def __init__(self, mean):
        super().__init__()
        self.register_buffer("mean", mean)

    def forward(self, z):
        return dist.Normal(self.mean.expand(z.shape[:-1] + self.mean.shape), 0.5).to_event(1)


def test_the_mean_alone_explains_nothing():
    x = 3 + 2 * torch.randn(200, 7)
    model = vsc.VAE(vsc.NormalEncoder(7, 3, hidden=(8,)), MeanDecoder(x.mean(0)), vsc.NormalPrior(3))
    seen = survey(model, Dataset(x))
    assert (seen.r2, seen.hard_r2) == pytest.approx((0, 0), abs=1e-6)
    assert math.isnan(seen.entropy_explained)
    assert seen.noise == 0.5
    assert seen.baseline == pytest.approx(float(x.double().var(0, correction=0).sum()), rel=1e-6)
    assert seen.deviation == pytest.approx(seen.residual, rel=1e-4)
    assert math.isnan(survey(model, Dataset(torch.full((9, 7), 0.3))).r2)  # data that are all alike


def normal_decoder(**kwargs):
    return vsc.NormalDecoder(5, 12, hidden=(8,), **kwargs)


@pytest.mark.parametrize(
    ("encoder", "prior"),
    [
        (vsc.SpikeSlabEncoder, lambda e: vsc.SpikeSlabPrior(5, 0.2)),
        (vsc.SpikeSlabEncoder, lambda e: vsc.SpikeSlabPrior(5, 0.2, learn_inclusion=True, hyperprior=(1.0, 9.0))),
        (vsc.SpikeSlabEncoder, lambda e: vsc.PseudoInputPrior(e, 4)),
        (vsc.ThresholdEncoder, lambda e: vsc.SpikeSlabPrior(5, 0.2, slab="laplace")),
        (vsc.NormalEncoder, lambda e: vsc.NormalPrior(5)),
        (vsc.NormalEncoder, lambda e: vsc.NormalMixturePrior(5)),
        (vsc.NormalEncoder, lambda e: vsc.PseudoInputPrior(e, 4)),
        (vsc.LaplaceEncoder, lambda e: vsc.LaplacePrior(5)),
        (vsc.DeltaEncoder, lambda e: vsc.FlatPrior(5)),
        (vsc.DeltaEncoder, lambda e: vsc.LaplacePrior(5)),
    ],
)
def test_every_posterior_under_every_prior(encoder, prior):
    torch.manual_seed(0)
    encoder = encoder(12, 5, hidden=(8,))
    model = vsc.VAE(encoder, normal_decoder(), prior(encoder))
    x = torch.randn(50, 12)
    model.prepare(x)
    seen = survey(model, Dataset(x))
    with model.evaluating():
        dense = centre(encoder(x))
    assert seen.information.shape == seen.usage.shape == (5,)
    assert (seen.information > 0).all()
    assert (seen.information < math.log(50)).all()
    assert math.isfinite(seen.r2)
    assert seen.has_atom or (seen.usage == 1).all()
    assert seen.has_atom or seen.hard_r2 == seen.r2
    assert dense.std(0).min() > 0


def test_cauchy_codes():
    encoder = vsc.CauchyEncoder(12, 5, hidden=(8,))
    decoder = vsc.NormalDecoder(5, 12, hidden=(8,), activation="tanh")
    seen = survey(vsc.VAE(encoder, decoder, vsc.CauchyPrior(5)), Dataset(torch.randn(50, 12)))
    assert (seen.information > 0).all()
    assert math.isfinite(seen.r2)


def test_memory_is_bounded_and_parts_of_the_data_add_up(small_vae, digits, monkeypatch):
    whole = survey(small_vae(), digits.test)
    monkeypatch.setattr("vsc_pyro.evaluation.survey._ELEMENTS_AT_ONCE", 640)
    model, rows = small_vae(), []
    model.decoder.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    parts = survey(model, digits.test)
    assert max(rows) == 10
    assert parts.r2 == pytest.approx(whole.r2, abs=1e-6)
    torch.testing.assert_close(parts.information, whole.information, rtol=1e-4, atol=1e-6)


def test_the_callers_random_state_and_mode_are_left(small_vae, digits):
    model = small_vae()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first, second = (survey(model, digits.test, seed=5) for _ in range(2))
    assert torch.equal(torch.rand(1), expected)
    assert model.training
    assert (first.r2, first.used_per_datum) == (second.r2, second.used_per_datum)
    assert survey(model, digits.test, seed=6).r2 != first.r2


def test_in_words(trained, digits):
    seen = survey(trained, digits.test)
    text = str(seen)
    assert text.startswith(
        f"used {int(seen.is_informative.sum())} of 6 latents, {seen.used_per_datum:.1f} a datum; R2 "
    )
    assert f"entropy explained {seen.entropy_explained:.2f} (hard code {seen.hard_entropy_explained:.2f})" in text
    assert seen.as_dict()["r2"] == seen.r2
