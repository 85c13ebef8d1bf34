import pytest
import torch
from torch.distributions import kl_divergence

import vsc_pyro as vsc
from vsc_pyro.gates import GATES, BinaryConcrete, ShiftedSigmoid

X = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("input_shape", [64, (64,), (1, 8, 8)])
@pytest.mark.parametrize("encoder_class", [vsc.NormalEncoder, vsc.SpikeSlabEncoder])
def test_posteriors_have_a_batch_of_codes(encoder_class, input_shape):
    encoder = encoder_class(input_shape, latent_dim=5, hidden=(16, 12), activation="tanh")
    q = encoder(X)
    assert (q.batch_shape, q.event_shape) == ((6,), (5,))
    assert torch.isfinite(q.log_prob(q.sample((3,)))).all()
    assert torch.isfinite(encoder(1000 * X).base_dist.mean).all()


@pytest.mark.parametrize("gate", GATES)
def test_gates_by_name_and_exact_spikes_in_evaluation_mode(gate):
    encoder = vsc.SpikeSlabEncoder(64, 5, gate=gate)
    assert encoder(X).base_dist.gate == GATES[gate]()
    z = encoder.eval()(X)((200,))
    assert (z == 0).float().mean() > 0.2
    assert repr(GATES[gate]()) in repr(encoder)


def test_gates_as_objects():
    gate = ShiftedSigmoid(c=200)
    encoder = vsc.SpikeSlabEncoder(64, 5, gate=gate, initial_inclusion=0.5)
    assert encoder(X).base_dist.gate is gate
    assert (encoder(X)((200,)) == 0).float().mean() < 0.2
    assert vsc.SpikeSlabEncoder(64, 5, gate=BinaryConcrete(0.3)).gate.temperature == 0.3


@pytest.mark.parametrize("encoder_class", [vsc.NormalEncoder, vsc.SpikeSlabEncoder])
def test_gradients_reach_every_parameter(encoder_class):
    encoder = encoder_class(64, 5)
    prior = vsc.SpikeSlabPrior(5)(X)
    kl_divergence(encoder(X), prior.expand((6,))).sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in encoder.parameters())


def test_codes_start_as_sparse_as_asked():
    for inclusion in (0.02, 0.1, 0.5):
        q = vsc.SpikeSlabEncoder(64, 200, initial_inclusion=inclusion)(X)
        assert q.base_dist.probs.mean().item() == pytest.approx(inclusion, rel=0.1)


def test_bad_arguments():
    with pytest.raises(ValueError, match="initial_inclusion must lie strictly between 0 and 1, got 1"):
        vsc.SpikeSlabEncoder(64, 5, initial_inclusion=1)
    with pytest.raises(ValueError, match="latent_dim must be a whole number of at least 1, got 0"):
        vsc.SpikeSlabEncoder(64, 0)
    with pytest.raises(ValueError, match="input_shape must be a whole number of at least 1, got 0"):
        vsc.NormalEncoder((1, 0), 5)
    with pytest.raises(ValueError, match="unknown gate 'hard'; known are 'concrete', 'score', 'shifted-sigmoid'"):
        vsc.SpikeSlabEncoder(64, 5, gate="hard")
