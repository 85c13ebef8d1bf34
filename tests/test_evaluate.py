import itertools
import json
import math
import re

import pyro.distributions as dist
import pytest
import torch
from conftest import assert_mean_equals
from torch import nn
from torch.distributions import kl_divergence

import vsc_pyro as vsc
from vsc_pyro.datasets import Dataset
from vsc_pyro.evaluation.bounds import bounds
from vsc_pyro.evaluation.evaluate import hoyer
from vsc_pyro.evaluation.probes import auroc
from vsc_pyro.gates import GATES, get_gate

# A linear-Gaussian model whose evidence is known: the sum over all 2^8 spike patterns of Gaussian marginals.

J, D, NOISE, ALPHA = 8, 14, 1.0, 0.3


class LinearNormalDecoder(nn.Module):
    """A decoder of a user's own: p(x|z) = N(W z, noise^2), fixed."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("weight", torch.randn(D, J, generator=generator))

    def forward(self, z):
        return dist.Normal(z @ self.weight.T, NOISE).to_event(1)


def log_evidence(x, weight):
    x, weight = x.double(), weight.double()
    terms = []
    for pattern in itertools.product([0.0, 1.0], repeat=J):
        active = weight * torch.tensor(pattern)
        marginal = torch.distributions.MultivariateNormal(
            torch.zeros(D, dtype=torch.float64), active @ active.T + NOISE**2 * torch.eye(D, dtype=torch.float64)
        )
        log_prior = sum(pattern) * math.log(ALPHA) + (J - sum(pattern)) * math.log(1 - ALPHA)
        terms.append(log_prior + marginal.log_prob(x))
    return torch.logsumexp(torch.stack(terms), 0)


@pytest.fixture(scope="module")
def linear():
    torch.manual_seed(0)
    decoder, prior = LinearNormalDecoder(), vsc.SpikeSlabPrior(J, ALPHA)
    with torch.no_grad():
        x = decoder(prior(None).sample((21_000,))).sample()
    model = vsc.VAE(vsc.SpikeSlabEncoder(D, J, hidden=(128, 128)), decoder, prior)
    vsc.fit(model, x[1000:], epochs=10, batch_size=200, lr=4e-3, device="cpu", progress=False)
    return model, x[:1000]


@pytest.mark.slow
def test_bounds_rise_to_the_evidence(linear):
    model, x = linear[0], linear[1][:400]
    evidence = float(log_evidence(x, model.decoder.weight).mean())
    few = torch.tensor([[(r := vsc.evaluate(model, x, num_draws=10, seed=s)).elbo, r.iwae] for s in range(5)]).double()
    # The same bounds, without the survey that `evaluate` makes besides.
    many = torch.stack([vsc.bounds(model, x, num_draws=1000, seed=s).iwae.mean() for s in range(5)])
    most = vsc.bounds(model, x, num_draws=2000).iwae.mean()
    (elbo, ten), thousand = few.mean(0), many.mean()
    error = many.std() / 5**0.5
    print(f"ELBO {elbo:.3f}, IWAE(10) {ten:.3f}, IWAE(1000) {thousand:.4f} +- {error:.4f}, IWAE(2000) {most:.4f}")
    print(f"log p(x) {evidence:.4f}")
    assert elbo < ten - 0.1
    assert ten < thousand - 0.02
    assert thousand < evidence + 5 * error
    assert abs(most - evidence) < 0.05


def test_parts_of_the_bound_agree_with_a_direct_computation(linear):
    model, x = linear
    x = x[:200]
    result = vsc.evaluate(model, x, num_draws=500)
    model.eval()
    with torch.no_grad():
        q, p = model.encoder(x), model.prior(x)
        z = q.sample((2000,))
        recon = model.decoder(z).log_prob(x).mean(1)
        log_w = model.decoder(z).log_prob(x) + p.log_prob(z) - q.log_prob(z)
    model.train()
    assert result.kl == pytest.approx(float(kl_divergence(q, p.expand(q.batch_shape)).mean()), rel=1e-5)
    assert result.kl_is_exact
    assert_mean_equals(recon, result.reconstruction, z_bound=5 * math.sqrt(1 + 2000 / 500))
    assert result.elbo == pytest.approx(result.reconstruction - result.kl, rel=1e-6)
    # 500 draws of the same weights in another order of 2,000: four estimates of the same bound.
    quarters = (log_w.reshape(4, 500, -1).logsumexp(1) - math.log(500)).mean(1)
    assert abs(result.iwae - quarters.mean()) < 6 * quarters.std()
    assert result.expected_l0 == pytest.approx(float(q.base_dist.probs.sum(1).mean()), rel=1e-5)
    assert result.hard_l0 == pytest.approx(float((q.base_dist.probs > 0.5).sum(1).double().mean()))
    assert result.hard_l0_odds == pytest.approx(float((q.base_dist.probs > ALPHA).sum(1).double().mean()))
    torch.testing.assert_close(result.usage, q.base_dist.probs.mean(0))


def test_memory_is_bounded_in_the_number_of_draws(small_vae, digits, monkeypatch):
    monkeypatch.setattr("vsc_pyro.evaluation.importance._ELEMENTS_AT_ONCE", {"cpu": 64_000})
    for num_draws in (1, 30, 1050):
        model, rows = small_vae(), []
        model.decoder.register_forward_hook(lambda _, inputs, __, r=rows: r.append(inputs[0].shape[:-1].numel()))
        vsc.evaluate(model, digits.test, num_draws=num_draws)
        assert max(rows) <= 1000
        assert sum(rows) >= num_draws * 360


def test_seeded_and_the_callers_state_and_mode_are_left(small_vae, digits):
    model = small_vae()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first = vsc.evaluate(model, digits.test, num_draws=5)
    assert torch.equal(torch.rand(1), expected)
    assert model.training
    second = vsc.evaluate(model, digits.test, num_draws=5)
    assert first.as_dict() == second.as_dict()
    assert vsc.evaluate(model, digits.test, num_draws=5, seed=1).elbo != first.elbo


@pytest.mark.parametrize("gate", [name for name in GATES if (gate := get_gate(name)).hardened() is gate])
def test_relaxation_gap_is_exactly_zero_for_hard_gates(small_vae, digits, gate):
    model = small_vae(gate)
    vsc.fit(model, digits.train, epochs=1, device="cpu", progress=False)
    assert vsc.evaluate(model, digits.test, num_draws=3).relaxation_gap == 0


@pytest.mark.slow
def test_relaxation_gap_shows_the_leak_of_soft_spikes(small_vae, digits):
    model = small_vae("shifted-sigmoid", inclusion=0.05)
    vsc.fit(model, digits.train, epochs=40, batch_size=100, lr=1e-2, device="cpu", progress=False)
    result = vsc.evaluate(model, digits.test, num_draws=10)
    print(f"ELBO {result.elbo:.2f}, relaxation gap {result.relaxation_gap:.2f}")
    assert result.relaxation_gap > 0.1


def test_relaxation_gap_of_an_encoder_inside_another_module(small_vae, digits):
    class Wrapped(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x)

    model = small_vae("shifted-sigmoid")
    plain = vsc.evaluate(model, digits.test, num_draws=3).relaxation_gap
    model.encoder = Wrapped(model.encoder)
    assert vsc.evaluate(model, digits.test, num_draws=3).relaxation_gap == plain != 0


def test_codes_of_two_dimensions(digits):
    class Grid(nn.Module):
        def __init__(self, event):
            super().__init__()
            self.event = event
            self.inner = vsc.SpikeSlabEncoder(64, 12)

        def forward(self, x):
            q = self.inner(x).base_dist
            loc, scale, logits = (t.unflatten(-1, self.event) for t in (q.slab.loc, q.slab.scale, q.logits))
            return vsc.SpikeSlab(dist.Normal(loc, scale), logits=logits).to_event(len(self.event))

    class GridPrior(nn.Module):
        def __init__(self, event):
            super().__init__()
            self.event = event

        def forward(self, x):
            return vsc.SpikeSlab(dist.Normal(torch.zeros(self.event), 1.0), probs=0.1).to_event(len(self.event))

    results = []
    for event in ((12,), (4, 3)):
        torch.manual_seed(0)
        decoder = nn.Sequential(
            nn.Flatten(-len(event)) if len(event) > 1 else nn.Identity(), vsc.BernoulliDecoder(12, 64)
        )
        results.append(vsc.evaluate(vsc.VAE(Grid(event), decoder, GridPrior(event)), digits.test, num_draws=4))
    assert results[0].as_dict() == results[1].as_dict()


def test_beta_does_not_enter(small_vae, digits):
    model = small_vae()
    plain = vsc.evaluate(model, digits.test, num_draws=5)
    model.beta = 7.0
    assert vsc.evaluate(model, digits.test, num_draws=5).elbo == plain.elbo


def test_dense_codes(digits):
    model = vsc.VAE(vsc.NormalEncoder(64, 6), vsc.BernoulliDecoder(6, 64), vsc.NormalPrior(6))
    result = vsc.evaluate(model, digits.test, num_draws=5)
    assert (result.expected_l0, result.hard_l0, result.hard_l0_odds, result.used_latents) == (6, 6, 6, 6)
    assert result.relaxation_gap == 0
    # Normal codes have |z|_1 / |z|_2 near sqrt(2 J / pi), more exactly a Hoyer measure of .28 to .36 at J = 6.
    assert 0.2 < result.hoyer < 0.45


class Cauchy(nn.Module):
    """A posterior or prior without a mean: half its locations follow the data, half stay where they are."""

    input_shape = (64,)

    def forward(self, x):
        return dist.Cauchy(torch.cat([4 * x.flatten(1)[:, 20:23], x.new_ones(len(x), 3)], 1), 0.1).to_event(1)


def test_active_units_of_codes_without_a_mean(digits):
    model = vsc.VAE(Cauchy(), vsc.BernoulliDecoder(6, 64, activation="tanh"), Cauchy())
    assert vsc.evaluate(model, digits.test, num_draws=5).active_units == 3


def test_hoyer_at_its_ends():
    assert hoyer(torch.eye(5)) == pytest.approx(1)
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=4)))
    assert hoyer(signs * torch.tensor([1.0, 5.0, 100.0, 0.1])) == pytest.approx(0, abs=1e-6)  # scales do not count
    assert hoyer(torch.zeros(3, 5)) == 1
    assert math.isnan(hoyer(torch.ones(3, 1)))


class MixturePrior(nn.Module):
    """A prior without a closed form against a normal posterior."""

    def forward(self, x):
        mixture = dist.MixtureSameFamily(
            dist.Categorical(torch.ones(6, 2)), dist.Normal(torch.zeros(6, 2), torch.tensor([0.1, 1.0]).expand(6, 2))
        )
        return mixture.to_event(1)


def test_a_kl_without_closed_form_is_sampled_and_marked(digits):
    model = vsc.VAE(vsc.NormalEncoder(64, 6), vsc.BernoulliDecoder(6, 64), MixturePrior())
    result = vsc.evaluate(model, digits.test, num_draws=200)
    assert not result.kl_is_exact
    assert "sampled" in str(result)
    q, p = model.encoder(digits.test.images), model.prior(None)
    z = q.sample((2000,))
    sampled = (q.log_prob(z) - p.log_prob(z)).mean(1).detach()
    # Each draw's mean over data varies; the library's 200 draws and these 2,000 estimate the same number.
    assert_mean_equals(sampled, result.kl, z_bound=5 * math.sqrt(1 + 2000 / 200))


def test_the_table_and_json(small_vae, digits):
    result = vsc.evaluate(small_vae(), digits.test, num_draws=3, progress=False)
    text = str(result)
    for piece in ("360 data, binarisation: dynamic", "ELBO", "bound of 3 draws", "relaxation gap", "of 8 latents"):
        assert piece in text
    assert (
        json.loads(json.dumps(vsc.evaluate(small_vae(latent_dim=1), digits.test, num_draws=1).as_dict()))["hoyer"]
        is None
    )
    assert json.loads(json.dumps(result.as_dict()))["num_data"] == 360


def test_bad_arguments(small_vae, digits):
    with pytest.raises(ValueError, match="num_draws must be a whole number of at least 1, got 0"):
        vsc.evaluate(small_vae(), digits.test, num_draws=0)
    with pytest.raises(ValueError, match="support of the likelihood"):
        vsc.evaluate(small_vae(), digits.test.images * 16)
    with pytest.raises(ValueError, match="at least one datum"):
        vsc.evaluate(small_vae(), torch.zeros(0, 64))


def test_a_point_has_no_bound_and_its_zeros_are_counted(digits):
    torch.manual_seed(0)
    encoder = vsc.DeltaEncoder((1, 8, 8), 20, (30,), rectify=True)
    model = vsc.VAE(encoder, vsc.BernoulliDecoder(20, (1, 8, 8), (30,)), vsc.LaplacePrior(20))
    x = digits.test.images.round()
    result = vsc.evaluate(model, x, num_draws=7)
    assert math.isnan(result.elbo)
    assert math.isnan(result.iwae)
    assert str(result).count("none: the posterior is a point") == 2
    with torch.no_grad():
        codes = encoder(x).v
        reconstruction = model.decoder(codes).log_prob(x).mean().item()
        penalty = (codes.abs() + math.log(2)).sum(1).mean().item()
    assert result.reconstruction == pytest.approx(reconstruction, rel=1e-4)
    assert result.objective == pytest.approx(reconstruction - penalty, rel=1e-4)
    assert result.expected_l0 == pytest.approx((codes != 0).sum(1).float().mean().item())
    assert result.expected_l0 < 15
    assert result.as_dict()["elbo"] is None


@pytest.mark.parametrize("value", [1e30, -1e38])
@pytest.mark.parametrize("datum", [0, 31, 49])
def test_a_figure_that_is_not_finite_is_of_a_datum_that_is_named(datum, value):
    model = vsc.VAE(
        vsc.SpikeSlabEncoder(D, 3, hidden=(8,)), vsc.NormalDecoder(3, D, hidden=(8,)), vsc.SpikeSlabPrior(3)
    )
    x = torch.rand(50, D)
    x[datum, 2] = value
    message = rf"reconstruction of datum {datum} is (nan|-inf) \(1 of 50 data are not finite"
    with pytest.raises(ValueError, match=message):
        vsc.bounds(model, x, num_draws=2)
    with pytest.warns(UserWarning, match=f"means over data are NaN: the {message}"):
        result = vsc.evaluate(model, x, num_draws=2)
    assert all(math.isnan(figure) for figure in (result.elbo, result.iwae, result.objective, result.r2))
    assert re.search(f"none: the {message}", str(result))
    assert not re.search("point|NOT a bound|0 of 3", str(result))
    assert math.isnan(result.used_per_datum)
    assert len(result.advice) == 1
    assert re.search(message, result.advice[0])
    json.dumps(result.as_dict(), allow_nan=False)
    with pytest.raises(ValueError, match=r"reconstruction of datum 0 is (nan|-inf) \(50 of 50 data are not finite"):
        vsc.evaluate(model, x[datum].expand(50, D), num_draws=2)


def test_a_loader_is_refused_where_data_must_be_in_memory(small_vae, digits):
    model, loader = small_vae(), torch.utils.data.DataLoader(digits.test.images, batch_size=10)
    for measure in (vsc.exact_posterior, vsc.gibbs_posterior):
        with pytest.raises(ValueError, match=r"data must be in memory, .*, got a DataLoader, which only fit, evaluate"):
            measure(model, loader)
    with pytest.raises(ValueError, match="got a DataLoader"):
        model.impute(loader, torch.ones(1, dtype=torch.bool))


def linear_vae(latent_dim=J):
    torch.manual_seed(0)
    decoder = vsc.NormalDecoder(latent_dim, D, hidden=(), scale=NOISE)
    return vsc.VAE(
        vsc.SpikeSlabEncoder(D, latent_dim, hidden=(128, 128)), decoder, vsc.SpikeSlabPrior(latent_dim, ALPHA)
    )


@pytest.mark.slow
def test_against_the_exact_posterior_and_the_sampled_one(linear):
    trained, x = linear
    model, x = linear_vae(), x[:150]
    with torch.no_grad():
        model.decoder.network[0].weight.copy_(trained.decoder.weight)
        model.decoder.network[0].bias.zero_()
    model.encoder.load_state_dict(trained.encoder.state_dict())
    plain = vsc.evaluate(model, x, num_draws=20)
    result = vsc.evaluate(model, x, num_draws=20, reference="exact")
    sampled = vsc.evaluate(model, x, num_draws=20, reference="gibbs")
    assert result.evidence == pytest.approx(float(log_evidence(x, trained.decoder.weight).mean()), abs=1e-4)
    assert result.gap == pytest.approx(result.evidence - plain.elbo)
    with model.evaluating():
        gamma = model.encoder(x).base_dist.probs
    assert result.inclusion_error == pytest.approx((gamma - vsc.exact_posterior(model, x).inclusion).abs().mean())
    assert result.inclusion_error > 0.01
    assert sampled.inclusion_error == pytest.approx(result.inclusion_error, abs=0.005)
    assert math.isnan(sampled.gap)
    new = {"reference": None, "evidence": None, "gap": None, "inclusion_error": None}
    assert result.as_dict() | new == sampled.as_dict() | new == plain.as_dict()
    assert "evidence" not in str(plain)
    assert f"exact; {result.gap:.2f} above the ELBO" in str(result)
    assert "mean distance, gibbs posterior" in str(sampled)


def test_refuses_a_reference_that_cannot_be_had_before_the_work(small_vae, digits, monkeypatch):
    monkeypatch.setattr("vsc_pyro.evaluation.evaluate.figures_of_batch", None)
    with pytest.raises(ValueError, match="unknown reference 'nuts'; known are 'exact', 'gibbs'"):
        vsc.evaluate(linear_vae(), torch.zeros(5, D), reference="nuts")
    with pytest.raises(ValueError, match="use gibbs_posterior"):
        vsc.evaluate(linear_vae(13), torch.zeros(5, D), reference="exact")
    for reference in ("exact", "gibbs"):
        with pytest.raises(ValueError, match="only a linear decoder"):
            vsc.evaluate(small_vae(), digits.test, reference=reference)
    dense = vsc.VAE(vsc.NormalEncoder(D, 3), vsc.NormalDecoder(3, D, hidden=()), vsc.SpikeSlabPrior(3))
    with pytest.raises(
        ValueError, match="needs a posterior with inclusion probabilities, and the encoder's codes have none"
    ):
        vsc.evaluate(dense, torch.zeros(5, D), reference="gibbs")


def test_bounds_are_those_that_evaluate_averages(small_vae, digits, monkeypatch):
    monkeypatch.setattr("vsc_pyro.evaluation.importance._ELEMENTS_AT_ONCE", {"cpu": 64_000})  # several batches
    for gate in ("concrete", "shifted-sigmoid"):
        model = small_vae(gate)
        result = vsc.evaluate(model, digits.test, num_draws=12, seed=4)
        each = bounds(model, digits.test, num_draws=12, seed=4)
        assert (each.elbo.mean().item(), each.iwae.mean().item()) == (result.elbo, result.iwae)
        assert each.elbo.shape == each.iwae.shape == (360,)
        assert (each.num_draws, each.binarize) == (12, "dynamic")
        assert model.training
    with pytest.raises(ValueError, match="num_draws must be a whole number of at least 1, got 0"):
        bounds(model, digits.test, num_draws=0)


def test_points_have_no_bounds(digits):
    model = vsc.VAE(vsc.DeltaEncoder(64, 5), vsc.BernoulliDecoder(5, 64), vsc.LaplacePrior(5))
    each = bounds(model, digits.test.images[:7].round(), num_draws=3)
    assert each.elbo.isnan().all()
    assert each.iwae.isnan().all()


def test_shuffled_digits_are_told_from_digits_by_their_bounds(small_vae, digits):
    model = small_vae()
    vsc.fit(model, digits.train, epochs=5, batch_size=50, lr=5e-3, device="cpu", progress=False)
    images = digits.test.images
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    shuffled = Dataset(images.flatten(1)[:, order].reshape(images.shape), binarize="dynamic")
    seen, unseen = (bounds(model, data, num_draws=20) for data in (digits.test, shuffled))
    for score in ("elbo", "iwae"):
        scores = -torch.cat([getattr(seen, score), getattr(unseen, score)]).unsqueeze(1)
        area = auroc(scores, (torch.arange(720) >= 360).double().unsqueeze(1).numpy()).item()
        print(f"AUROC of -{score}: {area:.4f}")
        assert area > 0.95


def test_clothes_are_unlike_digits(mnist_root):
    """A few steps are enough for bounds to tell them apart; both binarised, so that grey levels do not."""
    train, test = vsc.datasets.load("mnist", root=mnist_root)
    _, clothes = vsc.datasets.load("fashion-mnist", root=mnist_root)
    torch.manual_seed(0)
    model = vsc.VAE(
        vsc.SpikeSlabEncoder((1, 28, 28), 20, hidden=(100,)),
        vsc.BernoulliDecoder(20, (1, 28, 28), hidden=(100,)),
        vsc.SpikeSlabPrior(20, 0.2),
    )
    vsc.fit(model, train[:10_000], epochs=3, progress=False)
    scores = [-vsc.bounds(model, data[:500], num_draws=10).iwae for data in (test, clothes)]
    unseen = torch.arange(1000).ge(500).numpy()[:, None]
    assert auroc(torch.cat(scores)[:, None], unseen) > 0.97
