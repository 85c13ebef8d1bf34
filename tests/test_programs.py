"""ArviZ objects of Pyro programs: groups, dimensions, and draws and densities against closed forms."""

import functools

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import assert_mean_equals
from problems.inference_data import groups, values
from pyro import poutine
from pyro.infer.autoguide import AutoNormal, init_to_value
from sklearn.datasets import load_diabetes

import vsc_pyro as vsc
from vsc_pyro.arviz_bridge.versions import group_names


def regression(x, y=None):
    weights = pyro.sample("weights", vsc.SpikeSlab(dist.Normal(torch.zeros(3), 1.0), probs=0.3).to_event(1))
    noise = pyro.sample("noise", dist.HalfNormal(1.0))
    pyro.deterministic("precision", noise**-2)
    pyro.factor("penalty", -noise)
    with pyro.plate("patient", len(x)):
        pyro.sample("y", dist.Normal((x * weights).sum(-1), noise), obs=y)


def data(num=20):
    table = load_diabetes()
    x, y = torch.tensor(table.data[:num, :3]).float(), torch.tensor(table.target[:num]).float()
    return x / x.std(0), (y - y.mean()) / y.std()


@pytest.fixture(scope="module")
def made():
    torch.manual_seed(0)
    x, y = data()
    guide = vsc.AutoSpikeSlab(regression, init_scale=0.3)
    svi = vsc.SVI(regression, guide, functools.partial(torch.optim.Adam, lr=0.05), vsc.AnalyticELBO())
    for _ in range(50):
        svi.step(x, y)
    return guide, vsc.to_arviz(regression, (x, y), 400, guide=guide, coords={"weights_dim_0": ["age", "sex", "bmi"]})


def test_groups_and_dims(made):
    _, inference = made
    of_draw, weights = ("chain", "draw"), ("chain", "draw", "weights_dim_0")
    latents = {"weights": weights, "weights_active": weights, "noise": of_draw, "precision": of_draw}
    predicted = {"y": ("chain", "draw", "patient")}
    dims = {name: {key: value.dims for key, value in group.items()} for name, group in groups(inference).items()}
    assert dims == {
        "posterior": latents,
        "prior": latents,
        "posterior_predictive": predicted,
        "prior_predictive": predicted,
        "log_likelihood": predicted,
        "observed_data": {"y": ("patient",)},
        "constant_data": {"weights_inclusion_prob": ("weights_dim_0",)},
    }
    assert inference["posterior"].sizes == {"chain": 1, "draw": 400, "weights_dim_0": 3}
    assert inference["posterior"]["weights"]["weights_dim_0"].values.tolist() == ["age", "sex", "bmi"]
    torch.testing.assert_close(values(inference, "observed_data", "y"), data()[1])


def test_draws_are_those_of_the_guide_and_of_the_prior(made):
    guide, inference = made
    active = values(inference, "posterior", "weights_active")[0]
    assert torch.equal(active != 0, values(inference, "posterior", "weights")[0] != 0)
    assert_mean_equals(active, guide.inclusion()["weights"])
    torch.testing.assert_close(
        values(inference, "constant_data", "weights_inclusion_prob"), guide.inclusion()["weights"]
    )
    assert_mean_equals(values(inference, "prior", "weights_active")[0], 0.3 * torch.ones(3))
    assert_mean_equals(values(inference, "prior", "noise")[0], (2 / np.pi) ** 0.5)


def test_predictions_and_densities_belong_to_their_draw(made):
    _, inference = made
    x, y = data()
    weights, noise = (values(inference, "posterior", name)[0] for name in ("weights", "noise"))
    likelihood = dist.Normal(weights @ x.T, noise.unsqueeze(1))
    torch.testing.assert_close(values(inference, "log_likelihood", "y")[0], likelihood.log_prob(y))
    predicted = values(inference, "posterior_predictive", "y")[0]
    assert not torch.equal(predicted[0], predicted[1])
    assert_mean_equals((predicted - likelihood.mean) / noise.unsqueeze(1), torch.zeros(20))
    assert_mean_equals(((predicted - likelihood.mean) / noise.unsqueeze(1)).square(), torch.ones(20))
    of_prior = [values(inference, group, name)[0] for group, name in (("prior", "weights"), ("prior", "noise"))]
    residual = values(inference, "prior_predictive", "y")[0] - of_prior[0] @ x.T
    assert_mean_equals((residual / of_prior[1].unsqueeze(1)).square(), torch.ones(20))


@pytest.mark.filterwarnings("ignore:.*hape validation failed")
def test_arviz_summarises_it_and_files_hold_it(made, tmp_path):
    import arviz

    guide, inference = made
    table = arviz.summary(inference, var_names=["weights_active"], kind="stats")
    means = torch.tensor(table["mean"].astype(float).to_numpy())
    torch.testing.assert_close(means.float(), guide.inclusion()["weights"], atol=0.1, rtol=0)
    inference.to_netcdf(tmp_path / "posterior.nc")
    assert set(group_names(arviz.from_netcdf(tmp_path / "posterior.nc"))) == set(group_names(inference))


def test_seeded_and_leaves_the_callers_state():
    x, y = data()
    guide = vsc.AutoSpikeSlab(regression)
    guide(x, y)
    torch.manual_seed(3)
    first = vsc.to_arviz(regression, {"x": x, "y": y}, 3, guide=guide, predictive=False, prior=False, seed=5)
    state = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(1), state)
    again = vsc.to_arviz(regression, (x, y), 3, guide=guide, log_likelihood=False, seed=5)
    assert torch.equal(values(first, "posterior", "noise")[:, 0], values(again, "posterior", "noise")[:, 0])
    assert set(groups(first)) == {"posterior", "log_likelihood", "observed_data", "constant_data"}
    assert "log_likelihood" not in groups(again)


def test_a_deterministic_site_has_its_plates_once():
    def program(x):
        weight = pyro.sample("weight", vsc.SpikeSlab(pyro.distributions.Normal(0.0, 1.0), probs=0.5))
        with pyro.plate("rows", 4), pyro.plate("columns", 3):
            mean = pyro.deterministic("mean", weight * x)
            pyro.sample("y", pyro.distributions.Normal(mean, 1.0), obs=torch.zeros(3, 4))

    guide = vsc.AutoSpikeSlab(program)
    inference = vsc.to_arviz(program, torch.ones(3, 4), guide=guide, num_samples=5)
    assert inference["posterior"]["mean"].dims == ("chain", "draw", "columns", "rows")
    assert inference["posterior"]["mean"].shape == (1, 5, 3, 4)


def test_plates_in_any_place_masks_and_guides_of_other_kinds():
    seen = torch.tensor([True, False, True, True])

    def model(y):
        with pyro.plate("group", 2, dim=-2):
            mean = pyro.sample("mean", dist.Normal(torch.zeros(2, 1), 1.0))
            with pyro.plate("data", 4), poutine.scale(scale=3.0), poutine.mask(mask=seen):
                pyro.sample("y", dist.Normal(mean.unsqueeze(-1), 1.0).expand([2, 4, 3]).to_event(1), obs=y)

    inference = vsc.to_arviz(model, torch.ones(2, 4, 3), 5, guide=AutoNormal(model))
    assert inference["posterior"]["mean"].dims == ("chain", "draw", "group", "mean_dim_0")
    assert inference["posterior_predictive"]["y"].dims == ("chain", "draw", "group", "data", "y_dim_0")
    found = values(inference, "log_likelihood", "y")[0]
    expected = dist.Normal(values(inference, "posterior", "mean")[0], 1.0).log_prob(torch.ones(())) * 3
    torch.testing.assert_close(found, expected * seen)
    assert "constant_data" not in groups(inference)


def test_bad_programs_are_refused(small_vae):
    x, y = data()
    guide = vsc.AutoSpikeSlab(regression)

    def subsampled():
        with pyro.plate("rows", 20, subsample_size=5) as rows:
            pyro.sample("weights", vsc.SpikeSlab(dist.Normal(torch.zeros(5), 1.0), probs=0.3))
            pyro.sample("y", dist.Normal(0.0, 1.0), obs=y[rows])

    def improper():
        pyro.sample("weights", vsc.SpikeSlab(dist.Normal(torch.zeros(5), 1.0), probs=0.3).to_event(1))
        pyro.sample("flat", dist.ImproperUniform(dist.constraints.real, (), ()))

    with pytest.raises(ValueError, match="plate 'rows' draws 5 of 20 data"):
        vsc.to_arviz(subsampled, (), 2, guide=vsc.AutoSpikeSlab(subsampled))
    with pytest.raises(ValueError, match=r"guide does not draw the site 'y', .* the data that it observes"):
        vsc.to_arviz(regression, x, 2, guide=vsc.AutoSpikeSlab(poutine.block(regression, hide=["y"])))
    with pytest.raises(ValueError, match=r"1000000 draws of the program would take .* raise max_gigabytes"):
        vsc.to_arviz(regression, (x, y), 1_000_000, guide=guide, max_gigabytes=0.1)
    with pytest.raises(ValueError, match=r"coords\['weights_dim_0'\] must be a name for each entry"):
        vsc.to_arviz(regression, (x, y), 2, guide=guide, coords={"weights_dim_0": ["age"]})
    with pytest.raises(ValueError, match="a VAE has its own guide"):
        vsc.to_arviz(small_vae(), torch.rand(2, 1, 8, 8), 2, guide=guide)
    with pytest.raises(ValueError, match="a Pyro program needs guide="):
        vsc.to_arviz([regression], (x, y), 2)
    guide = vsc.AutoSpikeSlab(improper, init_loc_fn=init_to_value(values={"flat": torch.zeros(())}))
    with pytest.warns(UserWarning, match="prior of 'flat' is flat and cannot be sampled") as warned:
        inference = vsc.to_arviz(improper, guide=guide, num_samples=3)
    assert len(warned) == 1
    assert set(groups(inference)) == {"posterior", "constant_data"}
