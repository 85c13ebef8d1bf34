import math

import pytest
import torch
from conftest import assert_mean_equals
from torch.distributions import kl_divergence

import vsc_pyro as vsc
from vsc_pyro.distributions import SLABS, ShiftedNormalTails, StraightThroughThreshold
from vsc_pyro.gates import GATES, BinaryConcrete, ShiftedSigmoid
from vsc_pyro.models.encoders import ThresholdEncoder

X = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("input_shape", [64, (64,), (1, 8, 8)])
@pytest.mark.parametrize("encoder_class", [vsc.NormalEncoder, vsc.SpikeSlabEncoder, ThresholdEncoder])
def test_posteriors_have_a_batch_of_codes(encoder_class, input_shape):
    encoder = encoder_class(input_shape, latent_dim=5, hidden=(16, 12), activation="tanh")
    q = encoder(X)
    assert (q.batch_shape, q.event_shape) == ((6,), (5,))
    assert torch.isfinite(q.log_prob(q.sample((3,)))).all()
    assert torch.isfinite(encoder(1000 * X).base_dist.mean).all()


@pytest.mark.parametrize("gate", GATES)
def test_gates_by_name_and_exact_spikes_in_evaluation_mode(gate):
    encoder = vsc.SpikeSlabEncoder(64, 5, gate=gate)
    assert repr(encoder(X).base_dist.gate) == repr(GATES[gate]())
    z = encoder.eval()(X)((200,))
    assert (z == 0).float().mean() > 0.2
    assert repr(GATES[gate]()) in repr(encoder)


def test_gates_as_objects():
    gate = ShiftedSigmoid(c=200)
    encoder = vsc.SpikeSlabEncoder(64, 5, gate=gate, initial_inclusion=0.5)
    assert repr(encoder(X).base_dist.gate) == repr(gate)
    assert (encoder(X)((200,)) == 0).float().mean() < 0.2
    assert vsc.SpikeSlabEncoder(64, 5, gate=BinaryConcrete(0.3)).gate.temperature == 0.3


@pytest.mark.parametrize("encoder_class", [vsc.NormalEncoder, vsc.SpikeSlabEncoder, ThresholdEncoder])
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
    with pytest.raises(ValueError, match="unknown slab 'uniform'; known are 'cauchy', "):
        vsc.SpikeSlabEncoder(64, 5, slab="uniform")
    for corruption in (1.0, -0.1):
        with pytest.raises(ValueError, match="corruption must be a probability of at least 0 and below 1, got"):
            vsc.DeltaEncoder(64, 5, corruption=corruption)
    trunk = vsc.ConvTrunk((1, 8, 8), (4, 8), 10)
    with pytest.raises(ValueError, match=r"hidden=\(20,\) are widths of the MLP that a trunk replaces; pass one"):
        vsc.NormalEncoder((1, 8, 8), 5, (20,), trunk=trunk)
    with pytest.raises(ValueError, match=r"trunk\.out_features must be a whole number of at least 1, got None"):
        vsc.NormalEncoder((1, 8, 8), 5, trunk=torch.nn.Identity())
    with pytest.raises(ValueError, match="unknown activation 'relux'"):
        vsc.NormalEncoder((1, 8, 8), 5, activation="relux", trunk=trunk)
    with pytest.raises(ValueError, match="input_shape must be a whole number of at least 1, got 0"):
        vsc.NormalEncoder((1, 0), 5)
    with pytest.raises(ValueError, match="unknown gate 'hard'; known are 'concrete', 'disarm', 'reinmax', 'score', 's"):
        vsc.SpikeSlabEncoder(64, 5, gate="hard")


DENSE = {"normal": vsc.NormalEncoder, "laplace": vsc.LaplaceEncoder, "cauchy": vsc.CauchyEncoder}
SPARSE = [vsc.SpikeSlabEncoder, ThresholdEncoder]


@pytest.mark.parametrize("family", DENSE)
def test_families_are_those_of_their_names(family):
    q = DENSE[family](64, 5)(X)
    assert isinstance(q.base_dist, SLABS[family])
    assert (q.base_dist.scale > 0).all()
    assert isinstance(vsc.SpikeSlabEncoder(64, 5, slab=family)(X).base_dist.slab, SLABS[family])


def test_a_point_is_the_networks_output():
    encoder = vsc.DeltaEncoder(64, 5)
    q = encoder(X)
    assert (q.batch_shape, q.event_shape) == ((6,), (5,))
    assert torch.equal(q.sample(), encoder.network(X))
    codes = vsc.DeltaEncoder(64, 50, rectify=True)(X).v
    assert (codes >= 0).all()
    assert 0.2 < (codes == 0).float().mean() < 0.8


def test_corruption_hides_pixels_in_training_only():
    encoder = vsc.DeltaEncoder(64, 5, corruption=0.3)
    seen = []
    encoder.network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    x = torch.ones(2000, 1, 8, 8)
    encoder(x)
    encoder.eval()(x)
    assert_mean_equals(1 - seen[0].flatten(), 0.3)
    assert torch.equal(seen[1], x)


@pytest.mark.parametrize("slab", SLABS)
def test_warmup_interpolates_between_the_priors_slab_and_the_encoders(slab):
    encoder = vsc.SpikeSlabEncoder(64, 5, slab=slab)
    own = encoder(X).base_dist
    for weight in (0.0, 0.3, 1.0):
        encoder.slab_weight.fill_(weight)
        q = encoder(X).base_dist
        torch.testing.assert_close(q.slab.loc, weight * own.slab.loc)
        torch.testing.assert_close(q.slab.scale**2, weight * own.slab.scale**2 + 1 - weight)  # squares, not scales
        assert torch.equal(q.logits, own.logits)
    encoder.slab_weight.fill_(0.0)
    prior = vsc.SpikeSlabPrior(5, 0.3, slab=slab)(X)
    kl = kl_divergence(encoder(X), prior.expand((6,)))
    spikes = torch.distributions.Bernoulli(own.probs)
    alone = kl_divergence(spikes, torch.distributions.Bernoulli(torch.tensor(0.3))).sum(1)
    torch.testing.assert_close(kl, alone)  # nothing to pay for the slab


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 64, 64), (1, 8, 8)])
@pytest.mark.parametrize("encoder_class", [*DENSE.values(), vsc.DeltaEncoder, *SPARSE])
def test_convolutional_trunks(encoder_class, shape):
    encoder = encoder_class(shape, 5, trunk=vsc.ConvTrunk(shape, (4, 8), 20))
    for x in (torch.rand(3, *shape), torch.rand(3, math.prod(shape))):
        assert encoder(x).sample().shape == (3, 5)
    decoder = vsc.BernoulliDecoder(5, shape, activation="tanh", trunk=vsc.DeconvTrunk(shape, (8, 4), 20))
    prior = {vsc.DeltaEncoder: vsc.FlatPrior, **dict.fromkeys(SPARSE, vsc.SpikeSlabPrior)}.get(encoder_class)
    vae = vsc.VAE(encoder, decoder, (prior or vsc.CauchyPrior)(5))
    vae.check_data(torch.rand(3, *shape))
    with pytest.raises(ValueError, match="encoder does not take data of shape"):
        vae.check_data(torch.rand(3, shape[0], 9, 9))


@pytest.mark.parametrize("threshold", ["amortised", "per-latent"])
@pytest.mark.parametrize("base", ["laplace", "normal"])
def test_thresholds_start_as_sparse_as_asked_and_inclusion_follows_from_them(base, threshold):
    for inclusion in (0.02, 0.1, 0.9):
        encoder = ThresholdEncoder(64, 400, initial_inclusion=inclusion, base=base, threshold=threshold)
        q = encoder(X).base_dist
        assert q.probs.mean().item() == pytest.approx(inclusion, rel=0.15)
        assert isinstance(q.base, SLABS[base])
        assert isinstance(q.slab, SLABS["laplace"] if base == "laplace" else ShiftedNormalTails)
        by_scale = q.probs.flatten()[q.base.scale.flatten().argsort()]
        if threshold == "per-latent":
            assert torch.equal(q.threshold, q.threshold[:1].expand(6, 400))
            assert (by_scale.diff() >= 0).all()  # one threshold here: wider is likelier beyond it


def test_a_common_threshold_is_a_parameter_for_each_latent():
    encoder = ThresholdEncoder(64, 5, threshold="per-latent")
    with torch.no_grad():
        encoder.unconstrained_threshold.copy_(torch.tensor([-200.0, -1.0, 0.0, 1.0, 200.0]))
    q = encoder(X)
    assert (q.base_dist.threshold > 0).all()
    assert (q.base_dist.probs[:, 1:].diff(dim=1) < 0).all()
    prior = vsc.SpikeSlabPrior(5)(X)
    kl_divergence(q, prior.expand((6,))).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in encoder.parameters())


@pytest.mark.parametrize("gate", [*GATES, "threshold"])
def test_every_gate_goes_with_a_threshold(gate):
    encoder = ThresholdEncoder(64, 5, gate=gate)
    expected = GATES[gate]() if gate in GATES else StraightThroughThreshold()
    assert repr(encoder(X).base_dist.gate) == repr(expected)
    assert repr(expected) in repr(encoder)
    assert (encoder.eval()(X)((200,)) == 0).float().mean() > 0.2


def test_bad_arguments_of_thresholds():
    with pytest.raises(ValueError, match="initial_inclusion must lie strictly between 0 and 1, got 0"):
        ThresholdEncoder(64, 5, initial_inclusion=0)
    with pytest.raises(ValueError, match="unknown base 'cauchy'; known are 'laplace', 'normal'"):
        ThresholdEncoder(64, 5, base="cauchy")
    with pytest.raises(ValueError, match="unknown threshold 'global'; known are 'amortised', 'per-latent'"):
        ThresholdEncoder(64, 5, threshold="global")
    with pytest.raises(ValueError, match=r"unknown gate 'hard'; known are .*'threshold'"):
        ThresholdEncoder(64, 5, gate="hard")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("base", "gate", "threshold"),
    [
        ("laplace", "threshold", "amortised"),
        ("laplace", "concrete", "amortised"),
        ("normal", "concrete", "amortised"),
        ("normal", "straight-through", "per-latent"),
    ],
)
def test_thresholds_train(base, gate, threshold, digits):
    encoder = ThresholdEncoder((1, 8, 8), 8, (32,), gate=gate, initial_inclusion=0.3, base=base, threshold=threshold)
    vae = vsc.VAE(encoder, vsc.BernoulliDecoder(8, (1, 8, 8), (32,)), vsc.SpikeSlabPrior(8, 0.3, slab=base))
    before = vsc.evaluate(vae, digits.test, num_draws=5)
    vsc.fit(vae, digits.train, epochs=4, batch_size=50, lr=3e-3, progress=False)
    after = vsc.evaluate(vae, digits.test, num_draws=5)
    assert after.elbo > before.elbo + 5
    assert after.kl_is_exact
    assert after.relaxation_gap == 0
