import copy
import json
import math

import pyro.distributions as dist
import pytest
import torch
from problems.linear import linear_model
from sklearn.metrics import brier_score_loss, roc_auc_score

import vsc_pyro as vsc
from vsc_pyro._seeding import seeded
from vsc_pyro.evaluation.calibration import check_calibration
from vsc_pyro.inference.linear_exact import exact_posterior
from vsc_pyro.inference.linear_gibbs import gibbs_posterior


class Distorted:
    """The exact posterior, with draws or inclusion probabilities that are not."""

    def __init__(self, posterior, shift=0.0, sharpen=1.0):
        self.posterior, self.shift = posterior, shift
        self.inclusion = torch.sigmoid(sharpen * torch.logit(posterior.inclusion, eps=1e-12))

    def sample(self, shape):
        draws = self.posterior.sample(shape)
        return torch.where(draws != 0, draws + self.shift, 0)


@pytest.fixture(scope="module")
def model():
    return linear_model(5, 9, noise=0.3, overlap=0.5)[0]


def test_the_exact_posterior_is_calibrated(model):
    result = check_calibration(model, num_data=3000, posterior=lambda x: exact_posterior(model, x))
    assert result.p_value > 0.001
    # A bin's count is a sum of trials: its error is within the noise of so many (independent or not, of a datum).
    seen = result.bin_count > 0
    variance = (result.bin_inclusion * (1 - result.bin_inclusion) / result.bin_count)[seen]
    assert ((result.bin_inclusion - result.bin_frequency)[seen].abs() < 5 * variance.sqrt()).all()
    assert result.ece < 0.02


def test_the_gibbs_sampler_is_calibrated(model):
    def infer(x):
        return gibbs_posterior(model, x, num_samples=200, burn_in=20, chains=1, thin=2)

    result = check_calibration(model, num_data=500, num_draws=19, posterior=infer)
    assert result.p_value > 0.001
    assert result.ece < 0.04


def test_wrong_posteriors_are_told(model):
    sure = copy.deepcopy(model)
    sure.decoder.initial_scale.mul_(0.5)  # believes the data to be less noisy than they are
    overconfident = check_calibration(model, posterior=lambda x: exact_posterior(sure, x))
    assert overconfident.p_value < 1e-6
    assert overconfident.ece > 0.05
    shifted = check_calibration(model, posterior=lambda x: Distorted(exact_posterior(model, x), shift=0.3))
    assert shifted.p_value < 1e-6
    assert shifted.ece < 0.02
    sharpened = check_calibration(model, posterior=lambda x: Distorted(exact_posterior(model, x), sharpen=2.0))
    assert sharpened.p_value > 0.001
    assert sharpened.ece > 0.03


def test_an_encoder_is_worse_than_the_truth_and_the_scores_are_sklearns(model):
    seen, model = {}, copy.deepcopy(model)
    with torch.no_grad():
        model.encoder.own_layer.bias[-5:] -= 1.5  # which believes in fewer latents than there are

    def infer(x):
        seen["gamma"] = (posterior := model.encoder(x)).base_dist.probs
        return posterior

    result = check_calibration(model, num_data=1000, posterior=infer, seed=3)
    again = check_calibration(model, num_data=1000, seed=3)
    assert again.as_dict() == result.as_dict()
    # The same codes, drawn as they are there.
    with seeded(3, torch.device("cpu")):
        on = (model.prior(None).expand((1,)).sample((1000,)).squeeze(1) != 0).flatten().numpy()
    gamma = seen["gamma"].flatten().double().numpy()
    assert result.brier == pytest.approx(brier_score_loss(on, gamma))
    assert result.auroc == pytest.approx(roc_auc_score(on, gamma))
    assert (result.bin_count.sum(), result.rank_counts.sum()) == (5000, 5000)
    observed = sum(on[(gamma >= i / 10) & (gamma < (i + 1) / 10)].sum() for i in range(10))
    weighted = torch.nansum(result.bin_frequency * result.bin_count)
    assert weighted == pytest.approx(observed)
    assert result.ece > 0.05
    assert result.p_value < 1e-6


def test_ranks_of_a_prior_that_is_the_posterior_are_uniform_with_ties_of_every_size():
    class Prior(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inclusion = torch.tensor([0.01, 0.5, 0.99])

        def forward(self, x):
            prior = vsc.SpikeSlab(dist.Normal(torch.zeros(3), 1.0), probs=self.inclusion).to_event(1)
            return prior.expand(x.shape[:1])

    class Noise(torch.nn.Module):
        def forward(self, z):
            return dist.Normal(z.new_zeros(*z.shape[:-1], 2), 1.0).to_event(1)

    prior = Prior()
    result = check_calibration(vsc.VAE(prior, Noise(), prior), num_data=5000, num_draws=30, rank_bins=7)
    assert result.rank_share.tolist() == pytest.approx([n / 31 for n in (5, 4, 5, 4, 5, 4, 4)])
    assert result.p_value > 0.001
    assert result.auroc == pytest.approx(roc_auc_of_constants(), abs=0.02)


def roc_auc_of_constants():
    """AUROC of probabilities .01, .5, .99, each told to a third of the trials, that are true."""
    on, off = torch.tensor([0.01, 0.5, 0.99]), torch.tensor([0.99, 0.5, 0.01])
    greater = torch.ones(3, 3).tril(-1) + 0.5 * torch.eye(3)
    return (on @ greater @ off / (on.sum() * off.sum())).item()


def test_dense_models_have_ranks_only_and_the_models_state_is_left(digits):
    model = vsc.VAE(vsc.NormalEncoder((1, 8, 8), 4), vsc.BernoulliDecoder(4, (1, 8, 8)), vsc.NormalPrior(4))
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    result = check_calibration(model, num_data=200)
    assert torch.equal(torch.rand(1), expected)
    assert model.training
    assert math.isnan(result.ece)
    assert result.rank_counts.sum() == 800
    read = json.loads(json.dumps(result.as_dict()))
    assert (read["brier"], read["bin_frequency"], read["num_data"]) == (None, [None] * 10, 200)
    assert "200 data simulated from the model" in str(result)


def test_refuses_what_cannot_be_calibrated(model):
    flat = vsc.VAE(vsc.DeltaEncoder(9, 4), vsc.NormalDecoder(4, 9), vsc.FlatPrior(4))
    with pytest.raises(ValueError, match="the prior is flat"):
        check_calibration(flat)
    point = vsc.VAE(vsc.DeltaEncoder(9, 4), vsc.NormalDecoder(4, 9), vsc.LaplacePrior(4))
    with pytest.raises(ValueError, match="is a point"):
        check_calibration(point)
    with pytest.raises(ValueError, match=r"rank_bins must be at most the num_draws \+ 1 = 10 ranks, got 20"):
        check_calibration(model, num_draws=9)
