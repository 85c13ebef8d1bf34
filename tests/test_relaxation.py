"""The relaxation gap is told by a posterior's draws, whatever its modules are called."""

import pyro.distributions as dist
import pytest
import torch
from conftest import Z_BOUND
from torch import nn

import vsc_pyro as vsc
from vsc_pyro.gates import BinaryConcrete

D, J = 16, 4


class Own(nn.Module):
    """An encoder of a user's own, which makes its spike-and-slab itself, in every mode alike."""

    input_shape = (D,)

    def __init__(self, hard):
        super().__init__()
        self.heads = nn.Linear(D, 3 * J)
        self.estimator = BinaryConcrete(0.5, hard=hard)

    def forward(self, x):
        loc, log_scale, logits = self.heads(x).chunk(3, -1)
        return vsc.SpikeSlab(dist.Normal(3 * loc, log_scale.exp()), logits=logits, gate=self.estimator).to_event(1)


class Trunk(nn.Module):
    """A trunk with a layer called `gate`, dropout, batch normalisation, and a count of its training passes."""

    out_features = D

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(D, D)
        self.norm = nn.BatchNorm1d(D)
        self.drop = nn.Dropout(0.5)
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, x):
        self.passes += self.training
        return self.drop(self.norm(self.gate(x)))


def vae(encoder):
    return vsc.VAE(encoder, vsc.NormalDecoder(J, D, hidden=(8,)), vsc.SpikeSlabPrior(J, 0.3))


def test_soft_draws_of_an_encoder_of_ones_own_show_their_gap():
    model, x = vae(Own(hard=False)), torch.rand(40, D)
    with torch.no_grad():
        posterior = model.encoder(x)
        with torch.enable_grad():  # without gradients spikes are exact
            codes = [draw((2000,)) for draw in (posterior.rsample, posterior.sample)]
        soft, hard = (model.decoder(z).log_prob(x).mean(1) for z in codes)
    truth, error = soft.mean() - hard.mean(), (soft.var() / 2000 + hard.var() / 2000).sqrt()
    gaps = torch.tensor([vsc.evaluate(model, x, num_draws=1, seed=seed).relaxation_gap for seed in range(8)])
    # Two-sided normal tails of 5 standard errors: 6e-7.
    assert abs(gaps.mean() - truth) < Z_BOUND * (error**2 + gaps.var() / 8).sqrt()
    assert truth > 20 * error
    assert vsc.evaluate(vae(Own(hard=True)), x, num_draws=1).relaxation_gap == 0


@pytest.mark.parametrize("gate", ["concrete", "score", "disarm"])
def test_hard_draws_have_none_whatever_the_trunk_does_in_training(gate):
    model, x = vae(vsc.SpikeSlabEncoder(D, J, gate=gate, trunk=Trunk())), torch.rand(33, D)
    model.encoder.network[0].norm.running_mean.normal_()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plain = vsc.evaluate(model, x, num_draws=3)
    assert plain.relaxation_gap == 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    assert vsc.evaluate(model, x[:1], num_draws=3).relaxation_gap == 0  # one datum, of which there is no batch norm


def test_a_layer_called_gate_is_none():
    class Gated(nn.Module):
        input_shape = (D,)

        def __init__(self):
            super().__init__()
            self.gate, self.inner = nn.Linear(D, D), vsc.NormalEncoder(D, J, hidden=(8,))

        def forward(self, x):
            return self.inner(self.gate(x))

    def make():
        return vsc.VAE(Gated(), vsc.NormalDecoder(J, D, hidden=(8,)), vsc.NormalPrior(J))

    model, x = make(), torch.rand(50, D)
    layer = model.encoder.gate
    vsc.fit(model, x, epochs=2, batch_size=25, device="cpu", progress=False)
    vsc.fit_ensemble([model, make()], x, epochs=1, batch_size=25, device="cpu", progress=False)
    with pytest.raises(ValueError, match="gate='score' is for spikes, and Gated draws none"):
        vsc.fit(model, x, gate="score", device="cpu", progress=False)
    assert model.encoder.gate is layer


class Tracked(nn.Module):
    """A trunk whose training passes leave traces of every kind, and which takes no single datum in training."""

    out_features = D

    def __init__(self):
        super().__init__()
        self.passes, self.log, self.kept = 0, [], torch.ones(D, requires_grad=True) * 2
        self.register_buffer("ema", torch.zeros(()))

    def forward(self, x):
        if self.training:
            if len(x) == 1:
                raise KeyError("no single datum")
            self.passes += 1
            self.log.append(len(x))
            self.ema = 0.9 * self.ema + x.mean()
        return x + self.ema


@pytest.mark.parametrize("hard", [True, False])
def test_nothing_of_training_mode_is_left_in_the_encoder(hard):
    trunk = Tracked()
    model, x = vae(vsc.SpikeSlabEncoder(D, J, gate=BinaryConcrete(0.5, hard), trunk=trunk)), torch.rand(7, D)
    ema, kept = trunk.ema, trunk.kept
    assert (vsc.evaluate(model, x, num_draws=3).relaxation_gap == 0) == hard
    assert (trunk.passes, trunk.log) == (0, [])
    assert trunk.ema is ema
    assert trunk.kept is kept
    assert ema == 0


def test_an_encoder_that_fails_in_training_mode_has_no_gap_and_says_why():
    model = vae(vsc.SpikeSlabEncoder(D, J, trunk=Tracked()))
    result = vsc.evaluate(model, torch.rand(1, D), num_draws=3)
    assert result.as_dict()["relaxation_gap"] is None
    assert "none: the encoder fails in training mode (KeyError: 'no single datum')" in str(result)
    assert result.elbo == result.elbo
