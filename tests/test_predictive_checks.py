"""Models are compared, and their predictions held against data, by the numbers that the model itself gives."""

import copy
import math

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import assert_mean_equals
from problems.inference_data import groups, values

import vsc_pyro as vsc
from vsc_pyro.arviz_bridge import predictive_checks as criticism
from vsc_pyro.arviz_bridge.versions import compare_models, matplotlib_figure, plot_statistics


@pytest.fixture(scope="module")
def linear():
    """Four latents and a linear decoder: the evidence is known."""
    torch.manual_seed(0)
    return vsc.VAE(
        vsc.SpikeSlabEncoder(9, 4, hidden=(8,)),
        vsc.NormalDecoder(4, 9, hidden=(), scale=0.8),
        vsc.SpikeSlabPrior(4, inclusion=0.3),
    )


def pointwise(result):
    return result["loo_i"] if "elpd_loo" in dir(result) else result.elpd_i


def test_elpd_is_the_importance_weighted_bound_of_the_draws(linear):
    x = torch.randn(5, 9)
    inference = vsc.to_arviz(linear, x, 3000, predictive=False)
    z = values(inference, "posterior", "z")[0]
    with linear.evaluating():
        weights = linear.decoder(z).log_prob(x) + linear.prior(x).log_prob(z) - linear.encoder(x).log_prob(z)
        expected = torch.logsumexp(weights.double(), 0) - math.log(3000)
    result = vsc.elpd(inference)
    torch.testing.assert_close(torch.from_numpy(pointwise(result).values), expected, atol=1e-5, rtol=0)
    # Weights over the evidence have mean one.
    evidence = vsc.exact_posterior(linear, x).log_evidence
    assert_mean_equals((weights.double() - evidence).exp(), 1.0)


@pytest.mark.filterwarnings("ignore:The inplace keyword in DataFrame.sort_values")  # ArviZ 0.23 with pandas 3.1
def test_compare_prefers_the_trained_model(trained, digits):
    hardly = copy.deepcopy(trained)
    with torch.no_grad():
        hardly.decoder.network[-1].weight.mul_(0.5)
    pair = {"trained": trained, "hardly": hardly}
    found = {name: vsc.elpd(vsc.to_arviz(model, digits.test[:200], 50)) for name, model in pair.items()}
    table = compare_models(found)  # arviz.compare; 1.x alone would round 177 to 180
    assert list(table.index) == ["trained", "hardly"]
    difference = (pointwise(found["trained"]) - pointwise(found["hardly"])).values
    row = table.loc["hardly"]
    assert abs(float(row["elpd_diff"])) == pytest.approx(difference.sum(), rel=0.01)
    assert float(row["dse"]) == pytest.approx(math.sqrt(200) * difference.std(), rel=0.02)
    assert difference.sum() > 5 * float(row["dse"])


def test_elpd_refuses_what_it_cannot_weigh(linear, digits):
    inference = vsc.to_arviz(linear, torch.randn(2, 9), 3, log_likelihood=False)
    with pytest.raises(ValueError, match="no group log_likelihood; call to_arviz with log_likelihood=True"):
        vsc.elpd(inference)
    point = vsc.VAE(vsc.DeltaEncoder(64, 3), vsc.BernoulliDecoder(3, 64), vsc.LaplacePrior(3))
    with pytest.raises(ValueError, match="the posterior is a point"):
        vsc.elpd(vsc.to_arviz(point, digits.test.images[:2].flatten(1), 3))


def test_statistics_of_images():
    x = np.zeros((2, 1, 4, 4))
    x[0, 0, 0, 0] = x[0, 0, 1, 1] = 1  # neighbours at a corner
    x[0, 0, 3, 3] = 0.75
    x[1, 0, 0] = 0.25
    assert criticism.ink(x).tolist() == [2.75, 1]
    assert criticism.pixels_on(x).tolist() == [3, 0]
    assert criticism.strokes(x).tolist() == [2, 0]
    assert criticism.strokes(np.concatenate([x, x], 1)).tolist() == [4, 0]
    with pytest.raises(ValueError, match=r"strokes needs images.*got data of shape \(2, 16\)"):
        criticism.strokes(x.reshape(2, 16))


@pytest.mark.parametrize("group", ["posterior", "prior"])
def test_predictive_check_has_the_statistics_of_both(trained, digits, group):
    inference = vsc.to_arviz(trained, digits.test[:20], 60)
    check = vsc.predictive_check(inference, {**criticism.STATISTICS, "on": criticism.active_latents(trained)}, group)
    assert groups(check).keys() == {"posterior_predictive", "observed_data"}
    observed, drawn = values(inference, "observed_data", "x"), values(inference, f"{group}_predictive", "x")
    torch.testing.assert_close(values(check, "observed_data", "ink"), observed.sum((1, 2, 3)).double())
    torch.testing.assert_close(values(check, "posterior_predictive", "ink"), drawn.sum((-1, -2, -3)).double())
    assert check["posterior_predictive"]["strokes"].dims == inference[f"{group}_predictive"]["x"].dims[:-3]
    with trained.evaluating():
        on = trained.encoder(drawn.flatten(0, -4)).base_dist.probs.sum(-1)
    torch.testing.assert_close(values(check, "posterior_predictive", "on").flatten(), on.double())


@pytest.mark.filterwarnings("ignore:Passing a dict or None as alias_mapping")  # ArviZ 0.23 with matplotlib 3.11
def test_arviz_draws_the_check(trained, digits):
    check = vsc.predictive_check(vsc.to_arviz(trained, digits.test[:20], 60))
    figure = matplotlib_figure(plot_statistics(check))
    assert {axes.get_title().removesuffix(" (mean)") for axes in figure.axes} >= {"ink", "pixels_on", "strokes"}


@pytest.mark.parametrize("group", ["posterior", "prior"])
@pytest.mark.parametrize("data", ["tensor", "data frame"])
def test_predictive_check_of_a_table(linear, group, data):
    x = torch.randn(6, 9)
    inference = vsc.to_arviz(linear, pd.DataFrame(x.numpy()) if data == "data frame" else x, 5)
    check = vsc.predictive_check(inference, group=group)
    drawn = values(inference, f"{group}_predictive", "x")
    for name, statistic in {"mean": x.mean(1), "smallest": x.amin(1), "largest": x.amax(1)}.items():
        torch.testing.assert_close(values(check, "observed_data", name), statistic.double())
    torch.testing.assert_close(values(check, "observed_data", "standard deviation"), x.std(1, correction=0).double())
    torch.testing.assert_close(values(check, "posterior_predictive", "largest"), drawn.amax(-1).double())


def test_predictive_check_refuses(trained, digits):
    inference = vsc.to_arviz(trained, digits.test[:2], 3, prior=False)
    with pytest.raises(ValueError, match="unknown group 'observed'"):
        vsc.predictive_check(inference, group="observed")
    with pytest.raises(ValueError, match="no group prior_predictive"):
        vsc.predictive_check(inference, group="prior")
    with pytest.raises(
        ValueError, match=r"statistics\['all'\] must return one number for each of the 6 data.*shape \(\)"
    ):
        vsc.predictive_check(inference, {"all": np.sum})
    dense = vsc.VAE(vsc.NormalEncoder(64, 3), vsc.BernoulliDecoder(3, 64), vsc.NormalPrior(3))
    with pytest.raises(ValueError, match="NormalEncoder has no spikes"):
        criticism.active_latents(dense)(np.zeros((2, 64), np.float32))
