import copy
import math

import pytest
import torch
from conftest import assert_mean_equals
from pyro.distributions import Bernoulli, MultivariateNormal, StudentT
from torch import nn
from torch.distributions import kl_divergence

import vsc_pyro as vsc
from vsc_pyro.distributions import AssignedMixture
from vsc_pyro.distributions.pairwise import pairwise_kl


def test_priors_are_distributions_of_a_code():
    for prior in (vsc.NormalPrior(5), vsc.SpikeSlabPrior(5)):
        p = prior(torch.zeros(3, 64))
        assert (p.batch_shape, p.event_shape) == ((), (5,))
        assert p.expand((3,)).sample().shape == (3, 5)


def test_inclusion_is_the_probability_of_not_being_zero():
    p = vsc.SpikeSlabPrior(2, inclusion=torch.tensor([0.01, 0.7]))(torch.zeros(1))
    torch.testing.assert_close(p.base_dist.probs, torch.tensor([0.01, 0.7]))
    assert (p.sample((2000,)) != 0).float().mean(0)[1] > 0.6


def test_learned_inclusion_is_a_parameter_and_fixed_is_not():
    fixed, learned = vsc.SpikeSlabPrior(3, 0.2), vsc.SpikeSlabPrior(3, 0.2, learn_inclusion=True)
    assert list(fixed.parameters()) == []
    assert [name for name, _ in learned.named_parameters()] == ["inclusion_logits"]
    learned(torch.zeros(1)).log_prob(torch.zeros(3)).backward()
    torch.testing.assert_close(learned.inclusion_logits.grad, torch.full((3,), -0.2))
    # What is fixed travels with the weights too; fit tells the two apart when it resumes (test_training.py).
    assert fixed.state_dict().keys() == learned.state_dict().keys()
    assert "inclusion=0.2, learn_inclusion='per-latent'" in repr(learned)


def test_learned_slabs_start_as_fixed_ones_and_find_those_of_the_codes():
    prior = vsc.SpikeSlabPrior(2, 0.5, learn_slab=True)
    start, fixed = prior(torch.zeros(1)), vsc.SpikeSlabPrior(2, 0.5)(torch.zeros(1))
    torch.testing.assert_close(kl_divergence(start, fixed), torch.zeros(()))
    assert "learn_slab=True" in repr(prior)
    torch.manual_seed(0)
    codes = torch.tensor([[2.0, -1.0]]) + torch.tensor([0.5, 3.0]) * torch.randn(4000, 2)
    optimizer = torch.optim.LBFGS(prior.parameters(), max_iter=100)

    def loss():
        optimizer.zero_grad()
        total = -prior(codes).expand((len(codes),)).log_prob(codes).sum()
        total.backward()
        return total

    optimizer.step(loss)
    torch.testing.assert_close(prior.slab_loc.detach(), codes.mean(0), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(prior.slab_log_scale.exp().detach(), codes.std(0, correction=0), rtol=1e-3, atol=0)


def test_slabs_start_where_asked_and_stay_there_unless_learned():
    loc, scale = torch.tensor([2.0, -1.0, 0.0]), torch.tensor([0.5, 3.0, 1.0])
    for learn in (False, True, "per-latent"):
        prior = vsc.SpikeSlabPrior(3, 0.5, learn_slab=learn, slab_loc=loc, slab_scale=scale)
        slab = prior(torch.zeros(1)).base_dist.slab
        torch.testing.assert_close((slab.loc, slab.scale), (loc, scale))
        assert [name for name, _ in prior.named_parameters()] == (["slab_loc", "slab_log_scale"] if learn else [])
    shared = vsc.SpikeSlabPrior(3, 0.5, learn_slab="global", slab_loc=2, slab_scale=0.5)
    assert [parameter.shape for parameter in shared.parameters()] == [(), ()]
    slab = shared(torch.zeros(1)).base_dist.slab
    torch.testing.assert_close((slab.loc, slab.scale), (torch.full((3,), 2.0), torch.full((3,), 0.5)))
    assert "learn_slab='global', slab_loc=2.0, slab_scale=0.5" in repr(shared)
    assert "slab_" not in repr(vsc.SpikeSlabPrior(3))


def test_a_learned_slab_takes_weights_by_their_names_and_shapes():
    weights = {name: torch.rand(3) for name in ("inclusion_logits", "slab_loc", "slab_log_scale")}
    prior = vsc.SpikeSlabPrior(3, learn_slab=True)
    prior.load_state_dict(weights)
    assert torch.equal(prior.slab_scale, weights["slab_log_scale"].exp())
    assert torch.equal(prior(torch.zeros(1)).base_dist.slab.loc, weights["slab_loc"])


def test_one_name_stands_for_two_ways_to_learn_a_slab_of_each_latent():
    assert repr(vsc.SpikeSlabPrior(3, learn_slab="per-latent")) == repr(vsc.SpikeSlabPrior(3, learn_slab=True))


def test_a_learned_scale_has_a_floor_from_which_it_can_grow():
    prior = vsc.SpikeSlabPrior(2, learn_slab=True)
    with torch.no_grad():
        prior.slab_log_scale.copy_(torch.tensor([-20.0, -1.0]))
    torch.testing.assert_close(prior.slab_scale, torch.tensor([1e-4, math.exp(-1)]))
    narrow = prior(torch.zeros(1)).log_prob(torch.tensor([1.0, 1.0]))
    (-narrow).backward()
    assert torch.isfinite(prior.slab_log_scale.grad).all()
    assert (prior.slab_log_scale.grad < 0).all()


@pytest.mark.parametrize("learn", [True, "global"])
def test_a_learned_slab_goes_with_a_posterior_over_inclusion(learn):
    torch.manual_seed(0)
    prior = vsc.SpikeSlabPrior(4, 0.2, "global", (1.0, 4.0), learn_slab=learn, slab_loc=1.0)
    draws = torch.tensor([0.1, 0.3])
    p = prior(torch.zeros(1), draws)
    assert p.batch_shape == (2,)
    assert p.base_dist.slab.loc.shape == (2, 4)
    kl_divergence(p, p).sum().backward()


def test_an_expected_number_of_active_latents_is_an_inclusion():
    prior = vsc.SpikeSlabPrior(8, expected_active=2, learn_inclusion=True)
    torch.testing.assert_close(prior.inclusion_probs, torch.full((8,), 0.25))
    assert repr(prior) == repr(vsc.SpikeSlabPrior(8, 0.25, learn_inclusion=True))
    for number in (0, -1, float("inf"), "5"):
        with pytest.raises(ValueError, match="expected_active must be a finite number above 0, got"):
            vsc.SpikeSlabPrior(8, expected_active=number)
    for number in (8, 8 - 1e-9, 1e-50):
        with pytest.raises(ValueError, match=r"expected_active must be below the number of latents, 8, and .* got"):
            vsc.SpikeSlabPrior(8, expected_active=number)
    with pytest.raises(
        ValueError, match=r"inclusion=0\.1 and expected_active=2 both set how many latents are on; pass"
    ):
        vsc.SpikeSlabPrior(8, 0.1, expected_active=2)


@pytest.mark.parametrize("inclusion", [0, 1, -0.1, 1.5, float("nan"), torch.tensor([0.5, 0.0, 0.5])])
def test_inclusion_outside_the_unit_interval(inclusion):
    with pytest.raises(ValueError, match=r"inclusion must lie strictly between 0 and 1, got"):
        vsc.SpikeSlabPrior(3, inclusion)


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"one for each of the 3 latents, got a tensor of shape \(2,\)"):
        vsc.SpikeSlabPrior(3, torch.tensor([0.1, 0.2]))
    with pytest.raises(ValueError, match="latent_dim must be"):
        vsc.NormalPrior(0)
    with pytest.raises(ValueError, match="scale must be a finite number above 0, got -1"):
        vsc.LaplacePrior(3, scale=-1)
    with pytest.raises(ValueError, match="unknown slab 'uniform'; known are 'cauchy', 'exponential', 'gamma', "):
        vsc.SpikeSlabPrior(3, slab="uniform")
    with pytest.raises(ValueError, match="learn_inclusion must be one of False, True, 'per-latent', 'global', got 'al"):
        vsc.SpikeSlabPrior(3, learn_inclusion="all")
    with pytest.raises(ValueError, match="learn_slab must be one of False, True, 'per-latent', 'global', got tensor"):
        vsc.SpikeSlabPrior(3, learn_slab=torch.ones(3))
    with pytest.raises(ValueError, match="learn_slab must be one of False, True, 'per-latent', 'global', got 'all'"):
        vsc.SpikeSlabPrior(3, learn_slab="all")
    with pytest.raises(ValueError, match=r"slab_loc must be one number or one for each of the 3 latents, .* \(2,\)"):
        vsc.SpikeSlabPrior(3, slab_loc=torch.zeros(2))
    for name in ("slab_loc", "slab_scale", "inclusion"):
        for value in ("a", 1j, [[1], [2, 3]]):
            with pytest.raises(ValueError, match=rf"{name} must be one number or one for each of the 3 latents, got"):
                vsc.SpikeSlabPrior(3, **{name: value})
    with pytest.raises(ValueError, match=r"unknown slab \['normal'\]; known are"):
        vsc.SpikeSlabPrior(3, slab=["normal"])
    with pytest.raises(ValueError, match="'global' learns one slab_scale, and slab_scale holds 3; pass one number"):
        vsc.SpikeSlabPrior(3, learn_slab="global", slab_scale=torch.ones(3))
    with pytest.raises(ValueError, match="slab_loc must be finite, got nan"):
        vsc.SpikeSlabPrior(3, slab_loc=math.nan)
    for scale in (0.0, -1.0, 1e-5, math.inf):
        with pytest.raises(ValueError, match=r"slab_scale must be at least 0\.0001 and finite for slab='normal', got"):
            vsc.SpikeSlabPrior(3, slab_scale=scale)
    with pytest.raises(ValueError, match=r"hyperprior=\(1, 9\) is a prior of inclusions that are learned; pass learn"):
        vsc.SpikeSlabPrior(3, hyperprior=(1, 9))
    with pytest.raises(ValueError, match=r"the two parameters \(a, b\) of a Beta, got 3"):
        vsc.SpikeSlabPrior(3, learn_inclusion=True, hyperprior=3)
    with pytest.raises(ValueError, match="hyperprior must be a finite number above 0, got 0"):
        vsc.SpikeSlabPrior(3, learn_inclusion=True, hyperprior=(1, 0))
    with pytest.raises(ValueError, match="'global' learns one inclusion, and inclusion holds 2; pass one number"):
        vsc.SpikeSlabPrior(2, torch.tensor([0.1, 0.2]), "global")
    with pytest.raises(ValueError, match=r"weights and scales must have the same length, .* got 2 and 1"):
        vsc.NormalMixturePrior(3, scales=[1.0])
    with pytest.raises(ValueError, match=r"weights must be a finite number above 0, got 0\.0"):
        vsc.NormalMixturePrior(3, weights=(1.0, 0.0))


def test_scales_and_weights_are_those_asked_for():
    z = torch.tensor([[0.3, -1.2]])
    laplace, cauchy = vsc.LaplacePrior(2, 0.5)(z), vsc.CauchyPrior(2, 0.5)(z)
    torch.testing.assert_close(laplace.log_prob(z), -2 * z.abs().sum(1) + 2 * torch.tensor(1.0).log())
    torch.testing.assert_close(cauchy.log_prob(z), (0.5 / math.pi / (0.25 + z**2)).log().sum(1))
    mixture = vsc.NormalMixturePrior(2, weights=(3, 1), scales=(0.1, 2.0))(z)
    parts = [w * torch.distributions.Normal(0, s).log_prob(z).exp() for w, s in ((0.75, 0.1), (0.25, 2.0))]
    torch.testing.assert_close(mixture.log_prob(z), sum(parts).log().sum(1))
    assert (vsc.FlatPrior(2)(z).log_prob(z) == 0).all()


def test_learned_inclusion_may_be_one_for_all():
    prior = vsc.SpikeSlabPrior(4, 0.2, "global")
    assert [p.shape for p in prior.parameters()] == [()]
    prior(torch.zeros(1)).log_prob(torch.zeros(4)).backward()
    assert prior.inclusion_logits.grad.item() == pytest.approx(-0.8)
    torch.testing.assert_close(prior.inclusion_probs, torch.full((4,), 0.2))


@pytest.mark.slow
@pytest.mark.parametrize("learn", ["per-latent", "global"])
def test_posterior_over_inclusion_is_the_conjugate_one(learn):
    """Codes held fixed, the posterior SVI finds is Beta(a + number on, b + number off), known in closed form."""
    torch.manual_seed(0)
    num_data, probs = 400, torch.tensor([0.05, 0.3, 0.7])
    on = (torch.rand(num_data, 3) < probs).double().sum(0)
    total = num_data
    if learn == "global":
        on, total = on.sum(), 3 * num_data
    prior = vsc.SpikeSlabPrior(3, 0.1, learn, hyperprior=(2.0, 3.0)).double()
    optimizer = torch.optim.Adam(prior.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1000, 1500])
    for _ in range(1800):
        optimizer.zero_grad()
        ((site, (p, q)),) = prior.hyperparameters().items()
        inclusion = q.rsample((200,))
        log_likelihood = (on * inclusion.log() + (total - on) * (-inclusion).log1p()).reshape(200, -1).sum(1).mean()
        (kl_divergence(q, p) - log_likelihood).backward()
        optimizer.step()
        schedule.step()
    assert site == "inclusion"
    expected = torch.stack([2.0 + on, 3.0 + total - on])
    mean, concentration = prior.inclusion_logits.detach().sigmoid(), prior.log_concentration.detach().exp()
    torch.testing.assert_close(mean, expected[0] / expected.sum(0), rtol=0.02, atol=0)
    torch.testing.assert_close(concentration, expected.sum(0), rtol=0.1, atol=0)


def test_posterior_over_inclusion_weighs_as_all_the_data_do(digits):
    """Its divergence is paid once for the data set, so by a minibatch only in part."""
    torch.manual_seed(0)
    prior = vsc.SpikeSlabPrior(4, 0.3, "per-latent", hyperprior=(1.0, 20.0))
    vae = vsc.VAE(vsc.SpikeSlabEncoder((1, 8, 8), 4), vsc.BernoulliDecoder(4, (1, 8, 8)), prior, num_data=1000)
    x = digits.train.draw(slice(100))
    ((_, (p, q)),) = prior.hyperparameters().items()
    kl = kl_divergence(q, p).item()
    assert kl > 1
    losses = []
    for num_data in (1000, None):
        vae.num_data = num_data
        torch.manual_seed(0)
        losses.append(vsc.AnalyticELBO(max_plate_nesting=1).loss(vae.model, vae.guide, x))
    assert losses[1] - losses[0] == pytest.approx(0.9 * kl, rel=1e-3)
    with pytest.raises(ValueError, match="num_data must be a whole number of at least 1, got 0"):
        vsc.VAE(vae.encoder, vae.decoder, prior, num_data=0)


class FullCovariance(torch.nn.Module):
    """An encoder of a user's own whose latents are not independent."""

    input_shape, latent_dim = (64,), 3

    def forward(self, x):
        return MultivariateNormal(x[:, :3], torch.eye(3))


class HeavyTails(torch.nn.Module):
    """An encoder of a user's own whose posteriors have no divergence from each other in closed form."""

    input_shape, latent_dim = (64,), 3

    def forward(self, x):
        return StudentT(3.0, x[:, :3], torch.ones(3)).to_event(1)


class TestPseudoInputs:
    def model(self, **settings):
        torch.manual_seed(0)
        encoder = vsc.SpikeSlabEncoder((1, 8, 8), 6, (32,), initial_inclusion=0.3)
        prior = vsc.PseudoInputPrior(encoder, 5, **settings)
        return vsc.VAE(encoder, vsc.BernoulliDecoder(6, (1, 8, 8), (32,)), prior)

    def test_start_at_random_training_data_and_stay_in_their_range(self, digits):
        vae = self.model()
        untouched = vae.prior.pseudo_inputs.detach().clone()
        vsc.fit(vae, digits.train, epochs=1, lr=1e-9, batch_size=500, progress=False)
        start = vae.prior.pseudo_inputs.detach()
        assert (start - untouched).abs().max() > 0.3
        distance = (start.unsqueeze(1) - digits.train.images).abs().flatten(2).amax(2)
        nearest, where = distance.min(1)
        assert nearest.max() < 0.011  # each is a datum but for the margin
        assert len(where.unique()) == 5
        vsc.fit(vae, digits.train, epochs=1, lr=1e-9, batch_size=500, seed=1, progress=False)
        torch.testing.assert_close(vae.prior.pseudo_inputs.detach(), start)  # only the first time
        vsc.fit(vae, digits.train, epochs=60, lr=0.02, batch_size=500, progress=False)
        moved = vae.prior.pseudo_inputs.detach()
        assert (moved - start).abs().max() > 0.3
        assert moved.min() >= 0
        assert moved.max() <= 1

    def test_resumed_they_are_those_of_the_run(self, digits, tmp_path):
        settings = {"batch_size": 200, "progress": False, "device": "cpu"}
        straight, first, second = self.model(), self.model(), self.model()
        history = vsc.fit(straight, digits.train, epochs=4, **settings)
        vsc.fit(first, digits.train, epochs=2, checkpoint=tmp_path / "vae.pt", **settings)
        resumed = vsc.fit(second, digits.train, epochs=4, checkpoint=tmp_path / "vae.pt", resume=True, **settings)
        assert resumed.elbo == history.elbo
        assert torch.equal(second.prior.pseudo_inputs, straight.prior.pseudo_inputs)

    def test_take_the_range_of_real_valued_data(self):
        x = 3 * torch.randn(200, 1, 8, 8) + 5
        prior = self.model().prior
        prior.prepare(x)
        assert prior.pseudo_inputs.min() >= x.min()
        assert prior.pseudo_inputs.max() <= x.max()
        assert prior.pseudo_inputs.std().item() == pytest.approx(3, rel=0.2)
        given = self.model(pseudo_inputs=x[:5]).prior
        with pytest.warns(UserWarning, match=r"the range of the data they started at, and these data range from"):
            given.prepare(x + 100)
        assert given.pseudo_inputs.max() <= x[:5].max()

    @pytest.mark.slow
    def test_the_valid_objective_is_below_the_mixtures_and_the_papers_is_not_called_a_bound(self, digits):
        results = {}
        for assignment in ("bound", "optimal", "paper"):
            vae = self.model(assignment=assignment)
            vsc.fit(vae, digits.train, epochs=8, lr=3e-3, batch_size=50, progress=False)
            results[assignment] = vsc.evaluate(vae, digits.test[:120], num_draws=100)
        for valid in (results["bound"], results["optimal"]):
            assert valid.objective == valid.elbo
            assert valid.kl_is_exact
            assert valid.elbo < valid.iwae
            assert "NOT a bound" not in str(valid)
            assert 0 < valid.hard_l0_odds < 6
        paper = results["paper"]
        # What it leaves out is at most log U, so it can lie above the mixture's own bound by no more (below, by any).
        assert paper.objective < paper.elbo + math.log(5)
        assert paper.objective != paper.elbo
        assert not paper.kl_is_exact
        assert "objective" in str(paper)
        assert "NOT a bound" in str(paper)
        assert paper.elbo < paper.iwae

    @pytest.mark.slow
    def test_penalty_is_the_aggregate_inclusions_divergence(self, digits):
        vae = self.model(inclusion=0.05, sparsity_weight=2.0)
        gamma = vae.encoder(vae.prior.pseudo_inputs).base_dist.probs.mean()
        expected = 2 * 6 * (gamma * (gamma / 0.05).log() + (1 - gamma) * ((1 - gamma) / 0.95).log())
        torch.testing.assert_close(vae.prior.penalty(), expected)
        x, losses = digits.train.draw(slice(70)), []
        for weight in (2.0, 0.0):
            vae.prior.sparsity_weight = weight
            torch.manual_seed(0)
            losses.append(vsc.AnalyticELBO(max_plate_nesting=1).loss(vae.model, vae.guide, x))
        assert losses[0] - losses[1] == pytest.approx(70 * expected.item(), rel=1e-3)
        inclusions = []
        for weight in (0.0, 20.0):
            other = self.model(inclusion=0.05 if weight else None, sparsity_weight=weight)
            vsc.fit(other, digits.train, epochs=8, lr=3e-3, batch_size=50, progress=False)
            inclusions.append(vsc.evaluate(other, digits.test, num_draws=1).expected_l0)
        assert inclusions[1] < 0.6 * inclusions[0]

    def test_are_encoded_in_training_as_in_evaluation(self):
        def make(*layers):
            encoder = vsc.SpikeSlabEncoder(6, 3, hidden=(8,))
            for layer in layers:
                encoder.network.insert(2, layer)
            prior = vsc.PseudoInputPrior(encoder, 5, pseudo_inputs=10 + torch.rand(5, 6))
            return vsc.VAE(encoder, vsc.NormalDecoder(3, 6, hidden=(8,)), prior)

        vae, x = make(nn.Dropout(0.5), nn.BatchNorm1d(8)), torch.rand(40, 6)
        norm = next(module for module in vae.encoder.modules() if isinstance(module, nn.BatchNorm1d))
        assert norm.num_batches_tracked == 0  # nor did building it move them
        norm.running_mean.normal_()
        alone = copy.deepcopy(vae.encoder)
        alone(x)
        vae.guide(x)
        vae.model(x)
        vae.prior.penalty()
        own = next(module for module in alone.modules() if isinstance(module, nn.BatchNorm1d))
        assert torch.equal(norm.running_mean, own.running_mean)  # by data alone
        assert norm.num_batches_tracked == 1
        assert all(module.training for module in vae.modules())
        trained = vae.prior(x).component_distribution
        with vae.evaluating():
            evaluated = vae.prior(x).component_distribution
        assert torch.equal(trained.base_dist.logits, evaluated.base_dist.logits)
        with pytest.raises(
            ValueError, match=r"must not depend on the other data of its batch.*track_running_stats=True"
        ):
            make(nn.BatchNorm1d(8, track_running_stats=False))

    def test_an_optimal_assignment_is_at_the_bounds_maximum(self, digits):
        vae = self.model(assignment="optimal").double()
        x = digits.train.images[:20].double()
        vae.prior.prepare(x)
        assert vae.prior.classifier is None
        q, p = vae.encoder(x), vae.prior(x)
        kl = kl_divergence(q, p)
        closed = -torch.logsumexp(p.log_weights - pairwise_kl(q, p.component_distribution), -1)
        torch.testing.assert_close(kl, closed)
        # No gradient is lost by the assignment, which has none.
        parameters = [*vae.encoder.parameters(), vae.prior._unconstrained]
        expected = torch.autograd.grad(closed.sum(), parameters, retain_graph=True)
        torch.testing.assert_close(torch.autograd.grad(kl.sum(), parameters), expected)
        for spread in (0.1, 1.0, 10.0):
            other = torch.log_softmax(p.log_assignment.detach() + spread * torch.randn(p.log_assignment.shape), -1)
            assert (kl_divergence(q, AssignedMixture(p.component_distribution, p.log_weights, other)) > kl).all()

    def test_an_optimal_assignment_is_that_of_the_posterior_of_missing_data(self):
        torch.manual_seed(0)
        x = torch.rand(100, 12)
        x[torch.rand_like(x) < 0.4] = math.nan
        encoder = vsc.NormalEncoder(12, 3, trunk=vsc.MaskTrunk(12, 16))
        prior = vsc.PseudoInputPrior(encoder, 5, assignment="optimal")
        vae = vsc.VAE(encoder, vsc.NormalDecoder(3, 12), prior, missing=True)
        vsc.fit(vae, x, epochs=1, progress=False, device="cpu")
        with vae.evaluating():
            q, p = vae.encoder(x), vae.prior(x)
            best = torch.log_softmax(p.log_weights - pairwise_kl(q, p.component_distribution), -1)
        torch.testing.assert_close(p.log_assignment, best, rtol=0, atol=1e-5)

    def test_an_optimal_assignment_draws_nothing_and_keeps_the_statistics_of_a_batch_norm(self):
        encoder = vsc.SpikeSlabEncoder(6, 3, hidden=(8,))
        encoder.network.insert(2, nn.Sequential(nn.BatchNorm1d(8), nn.Dropout(0.5)))
        prior = vsc.PseudoInputPrior(encoder, 5, assignment="optimal", pseudo_inputs=torch.rand(5, 6)).train()
        x, statistics, state = torch.rand(4, 6), encoder.network[2][0].running_mean.clone(), torch.get_rng_state()
        prior(x)
        assert encoder.training
        assert torch.equal(encoder.network[2][0].running_mean, statistics)
        assert torch.equal(torch.get_rng_state(), state)

    def test_samples_are_the_mixtures_own(self):
        vae = self.model()
        x = torch.rand(3, 1, 8, 8)
        inclusion = vae.encoder(vae.prior.pseudo_inputs).base_dist.probs.mean(0).detach()
        with torch.no_grad():
            for z in (vae.marginal_prior(x).sample((4000,)), vae.prior(x).sample((4000,))[:, 1]):
                assert_mean_equals((z != 0).float(), inclusion)

    def test_bad_arguments(self):
        encoder = vsc.SpikeSlabEncoder((1, 8, 8), 6)
        for settings, message in [
            ({"num_pseudo_inputs": 0}, "num_pseudo_inputs must be a whole number of at least 1, got 0"),
            ({"assignment": "soft"}, "unknown assignment 'soft'; known are 'bound', 'optimal', 'paper'"),
            ({"assignment": "optimal", "hidden": 9}, "hidden=9 and activation=None are of the classifier, .*omit them"),
            ({"assignment": "optimal", "activation": "tanh"}, "activation='tanh' are of the classifier"),
            ({"inclusion": 1.0, "sparsity_weight": 1}, "inclusion must lie strictly between 0 and 1, got 1.0"),
            (
                {"inclusion": 0.1},
                r"inclusion=0\.1 and sparsity_weight=0\.0 are target and weight .*pass both or neither",
            ),
            ({"sparsity_weight": 1}, "inclusion=None and sparsity_weight=1 are target and weight of the sparsity term"),
            ({"pseudo_inputs": torch.full((20, 64), float("nan"))}, "pseudo_inputs must be finite, got NaN"),
            ({"sparsity_weight": -1}, "sparsity_weight must be a finite number of at least 0, got -1"),
            ({"pseudo_inputs": torch.rand(3, 64)}, "must be num_pseudo_inputs=20 data, got 3"),
            (
                {"pseudo_inputs": torch.rand(20, 50)},
                r"shape of the encoder's data, \(1, 8, 8\), got data of shape \(50,\)",
            ),
            ({"pseudo_inputs": torch.zeros(20, 64)}, "stay in the range of the data, and all values are 0"),
        ]:
            with pytest.raises(ValueError, match=message):
                vsc.PseudoInputPrior(encoder, **settings)
        with pytest.raises(ValueError, match=r"sparsity_weight=1\.0 needs spikes, and NormalEncoder has none"):
            vsc.PseudoInputPrior(vsc.NormalEncoder((1, 8, 8), 6), inclusion=0.1, sparsity_weight=1)
        with pytest.raises(ValueError, match=r"assignment='optimal' needs .* no closed form.*; use assignment='bound'"):
            vsc.PseudoInputPrior(HeavyTails(), assignment="optimal")
        with pytest.raises(ValueError, match=r"cannot be broadcast against data, as a prior of pseudo-inputs must"):
            vsc.PseudoInputPrior(FullCovariance())
        with pytest.raises(ValueError, match=r"encoder must have an attribute input_shape.*Identity has none"):
            vsc.PseudoInputPrior(torch.nn.Identity())
        with pytest.raises(
            ValueError, match="num_pseudo_inputs=20 pseudo-inputs start at as many different data, got 7"
        ):
            vsc.PseudoInputPrior(encoder).prepare(torch.rand(7, 64))


@pytest.mark.slow
def test_vsc_is_the_papers_assembly(digits):
    vae = vsc.VSC((1, 8, 8), latent_dim=12, inclusion=0.2, num_pseudo_inputs=6, hidden=(40, 30))
    assert vae.prior.encoder is vae.encoder
    assert (vae.prior.num_pseudo_inputs, vae.prior.inclusion, vae.prior.sparsity_weight) == (6, 0.2, 1.0)
    assert [layer.out_features for layer in vae.decoder.network if hasattr(layer, "out_features")] == [30, 40, 64]
    names = [name for name, _ in vae.named_parameters()]
    assert len(names) == len(set(names))
    vsc.fit(vae, digits.train, epochs=60, lr=3e-3, batch_size=100, progress=False)
    result = vsc.evaluate(vae, digits.test, num_draws=5)
    mean = digits.train.images.mean(0).clamp(0.001, 0.999)
    best_without_a_code = Bernoulli(mean).log_prob(digits.test.draw(slice(None))).flatten(1).sum(1).mean()
    assert result.elbo > best_without_a_code + 0.3
    assert result.kl > 0.3
    with pytest.raises(ValueError, match="unknown gate 'soft'"):
        vsc.VSC(64, gate="soft")
    assert vsc.VSC(64, hidden=30).decoder.network[0].out_features == 30


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:after 450 steps the code explains nothing")  # the warm-up is all of the run
def test_vsc_with_warmup_ends_with_slabs_of_its_own(digits):
    vae = vsc.VSC((1, 8, 8), latent_dim=12, inclusion=0.2, num_pseudo_inputs=6, sparsity_weight=1 / len(digits.train))
    steps = 30 * 15
    schedules = vsc.schedules.slab_warmup(steps)
    vsc.fit(vae, digits.train, epochs=30, lr=3e-3, batch_size=100, schedules=schedules, progress=False)
    assert float(vae.encoder.slab_weight) == 1
    scale = vae.encoder(digits.test.images).base_dist.slab.scale
    assert (scale - 1).abs().max() > 0.1
