import pytest
import torch
from problems.autoencoders import D, J, built, data, posterior

import vsc_pyro as vsc
from vsc_pyro.distributions import hard_code, inclusion_of


def test_the_hard_code_of_a_jump_relu_encoder_is_a_jump_relu_and_its_inclusion_is_a_logistic_of_it():
    model = built(vsc.JumpReLUEncoder(D, J)).double()
    encoder, x = model.encoder, data().double()
    weight, bias = encoder.own_layer.weight, encoder.own_layer.bias
    u = (x - encoder.input_mean) / encoder.input_scale @ weight.T + bias
    theta, slope = encoder.log_threshold.exp(), encoder.log_slope.exp()
    q = posterior(model, x)
    torch.testing.assert_close(inclusion_of(q), torch.sigmoid(slope * (u - theta)))
    torch.testing.assert_close(hard_code(q), torch.where(u > theta, u, 0.0))
    assert torch.equal(encoder.jump_thresholds, theta)
    assert (encoder.jump_thresholds > 0).all()
    assert 0.02 < (hard_code(q) > 0).double().mean() < 0.98
    assert not (hard_code(q) < 0).any()
    scales = q.base_dist.slab.scale
    assert torch.equal(scales, scales[:1].expand(len(x), J))
    assert sum(p.numel() for p in encoder.parameters()) == J * D + 4 * J


@pytest.mark.parametrize("inclusion", [0.001, 0.1, 0.3, 0.5, 0.9])
def test_a_jump_relu_encoder_starts_at_the_priors_inclusion(inclusion):
    encoder = vsc.JumpReLUEncoder(D, J)
    vsc.VAE(encoder, vsc.NormalDecoder(J, D, hidden=()), vsc.SpikeSlabPrior(J, inclusion))
    middle = encoder(encoder.input_mean[None])
    torch.testing.assert_close(inclusion_of(middle), torch.full((1, J), inclusion))
    own = vsc.JumpReLUEncoder(D, J, initial_inclusion=0.2)
    vsc.VAE(own, vsc.NormalDecoder(J, D, hidden=()), vsc.SpikeSlabPrior(J, inclusion))
    torch.testing.assert_close(inclusion_of(own(own.input_mean[None])), torch.full((1, J), 0.2))


def test_a_jump_relu_encoder_takes_the_warmup_and_the_gates_of_spikes():
    encoder = vsc.JumpReLUEncoder(D, J, gate="score")
    x = torch.randn(4, D)
    own = encoder(x).base_dist
    encoder.slab_weight.fill_(0.3)
    q = encoder(x).base_dist
    torch.testing.assert_close(q.slab.loc, 0.3 * own.slab.loc)
    torch.testing.assert_close(q.slab.scale**2, 0.3 * own.slab.scale**2 + 0.7)
    assert torch.equal(q.logits, own.logits)
    assert "Score" in repr(q.gate)


@pytest.mark.parametrize("objective", ["exact", "trace"])
def test_a_jump_relu_encoder_trains_and_resumes(objective, tmp_path):
    settings = {"objective": objective, "batch_size": 100, "lr": 3e-2, "cooldown": 0, "progress": False}

    def run(path, *epochs):
        torch.manual_seed(0)
        encoder, decoder = vsc.JumpReLUEncoder(D, J), vsc.NormalDecoder(J, D, hidden=())
        model = vsc.VAE(encoder, decoder, vsc.SpikeSlabPrior(J, 0.2, learn_slab=True))
        histories = [vsc.fit(model, data(), epochs=n, checkpoint=path, resume=True, **settings) for n in epochs]
        return model, histories[-1].elbo

    whole, elbo = run(tmp_path / "whole.pt", 6)
    parts, _ = run(tmp_path / "parts.pt", 3, 6)
    assert elbo[-1] > elbo[0] + 1
    assert all(map(torch.equal, whole.state_dict().values(), parts.state_dict().values()))


@pytest.mark.slow
def test_compiled_steps_of_a_jump_relu_encoder_equal_eager_ones(compiler):
    losses = []
    for compile in (False, True):
        torch.manual_seed(0)
        model = vsc.VAE(vsc.JumpReLUEncoder(D, J), vsc.NormalDecoder(J, D, hidden=()), vsc.SpikeSlabPrior(J, 0.2))
        history = vsc.fit(model, data(), objective="exact", epochs=3, batch_size=100, compile=compile, progress=False)
        losses.append(history.elbo)
    assert history.compiled
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
