"""The ArviZ object says what the model says: exactly where it can, within Monte Carlo error where it draws."""

import math

import numpy as np
import pytest
import torch
from conftest import Z_BOUND, assert_mean_equals
from problems.inference_data import groups, values
from problems.pairs import ADMISSIBLE, build
from scipy.stats import binom, norm
from torch.distributions import Normal

import vsc_pyro as vsc
from vsc_pyro._seeding import seeded
from vsc_pyro.arviz_bridge import to_arviz as posterior
from vsc_pyro.arviz_bridge.versions import matplotlib_figure
from vsc_pyro.distributions import SpikeSlab, inclusion_logits

GROUPS = {
    *("posterior", "posterior_predictive", "log_likelihood", "sample_stats", "prior", "prior_predictive"),
    *("observed_data", "constant_data"),
}
PIXELS = ("channel", "height", "width")


@pytest.fixture(scope="module")
def inference(trained, digits):
    return vsc.to_arviz(trained, digits.test[:10], num_samples=4000, seed=3)


def test_mean_of_active_is_the_inclusion_probability(inference):
    count = inference["posterior"]["active"].sum(("chain", "draw")).values
    probs = inference["constant_data"]["inclusion_prob"].values.astype(float)
    # Exact binomial tails; 60 of them at 5 standard errors' level fail by chance in one of 29,000 runs.
    smaller_tail = np.minimum(binom.cdf(count, 4000, probs), binom.sf(count - 1, 4000, probs))
    assert (smaller_tail > norm.sf(Z_BOUND)).all()
    assert 0.05 < probs.mean() < 0.95


def test_groups_dims_and_coords_are_named(inference, digits):
    assert groups(inference).keys() == GROUPS
    dims = {f"{group}.{name}": v.dims for group, found in groups(inference).items() for name, v in found.items()}
    of_datum, of_draw = ("datum", "latent"), ("chain", "draw", "datum")
    assert dims == {
        "posterior.z": (*of_draw, "latent"),
        "posterior.active": (*of_draw, "latent"),
        "posterior_predictive.x": (*of_draw, *PIXELS),
        "log_likelihood.x": of_draw,
        "sample_stats.log_prior": of_draw,
        "sample_stats.log_posterior": of_draw,
        "prior.z": (*of_draw, "latent"),
        "prior.active": (*of_draw, "latent"),
        "prior_predictive.x": (*of_draw, *PIXELS),
        "observed_data.x": ("datum", *PIXELS),
        "constant_data.inclusion_prob": of_datum,
        "constant_data.slab_loc": of_datum,
        "constant_data.slab_scale": of_datum,
        "constant_data.prior_inclusion_prob": ("latent",),
        "constant_data.label": ("datum",),
    }
    assert inference["posterior"].sizes == {"chain": 1, "draw": 4000, "datum": 10, "latent": 6}
    for found in groups(inference).values():
        for dim, size in found.sizes.items():
            assert found[dim].values.tolist() == list(range(size))
    assert inference["constant_data"]["label"].values.tolist() == digits.test.labels[:10].tolist()
    assert inference["posterior"].attrs["binarize"] == "dynamic"


def test_names_and_labels_of_ones_own(trained, digits):
    images = digits.test.images[:3]
    names = ["a", "b", "c", "d", "e", "f"]
    named = vsc.to_arviz(
        trained, images, 20, labels=["one", "two", "three"], coords={"latent": names, "datum": [7, 8, 9]}
    )
    mean = named["posterior"]["active"].mean(("chain", "draw"))
    assert float(mean.sel(datum=8, latent="c")) == float(mean[1, 2])
    assert named["constant_data"]["label"].sel(datum=9).item() == "three"
    assert named["posterior"].attrs["binarize"] == "None"
    torch.testing.assert_close(values(named, "observed_data", "x"), images)


def test_round_trip_through_a_file_is_lossless(inference, trained, digits, tmp_path):
    import arviz
    import xarray

    strings = vsc.to_arviz(trained, digits.test[:2], 10, labels=["ä", "b"], coords={"latent": list("uvwxyz")})
    for number, saved in enumerate((inference, strings)):
        saved.to_netcdf(tmp_path / f"{number}.nc")
        loaded = arviz.from_netcdf(tmp_path / f"{number}.nc")
        assert groups(loaded).keys() == GROUPS
        for name, group in groups(saved).items():
            dataset, again = (xarray.Dataset(dict(f.data_vars), f.coords, f.attrs) for f in (group, loaded[name]))
            xarray.testing.assert_identical(dataset.load(), again.load())
            assert {v: dataset[v].dtype.kind for v in dataset} == {v: again[v].dtype.kind for v in again}


def test_summary_and_forest_of_what_is_active(inference):
    import arviz

    summary = arviz.summary(inference, var_names=["active"], kind="stats")
    means = torch.tensor(summary["mean"].to_numpy(dtype=float))
    torch.testing.assert_close(
        means, values(inference, "posterior", "active").double().mean((0, 1)).flatten(), atol=0.01, rtol=0
    )
    on = inference["posterior"]["active"].sum("latent").to_dataset(name="on").astype(float)
    figure = matplotlib_figure(arviz.plot_forest(on, combined=True))
    marked = [x for axes in figure.axes for line in axes.lines if len(line.get_xdata()) == 1 for x in line.get_xdata()]
    marked += [x for axes in figure.axes for points in axes.collections for x, _ in points.get_offsets()]
    expected = (
        on["on"].median(("chain", "draw")) if arviz.__version__.startswith("0.") else on["on"].mean(("chain", "draw"))
    )
    assert set(np.round(expected.values, 6)) <= set(np.round(np.array(marked, float), 6))


def test_the_slab_is_the_exact_one(trained, digits):
    x = digits.test.images[:5]
    inference = vsc.to_arviz(trained, x, 5)
    with trained.evaluating():
        exact = trained.encoder(x)
    loc, scale, probs = (values(inference, "constant_data", v) for v in ("slab_loc", "slab_scale", "inclusion_prob"))
    z = values(inference, "posterior", "z")
    torch.testing.assert_close(SpikeSlab(Normal(loc, scale), probs=probs).to_event(1).log_prob(z), exact.log_prob(z))


def test_log_densities_are_those_of_the_draws(trained, digits):
    inference = vsc.to_arviz(trained, digits.test[:5], 30)
    x, z = values(inference, "observed_data", "x"), values(inference, "posterior", "z")
    with trained.evaluating():
        parts = {
            ("log_likelihood", "x"): trained.decoder(z).log_prob(x),
            ("sample_stats", "log_prior"): trained.prior(x).log_prob(z),
            ("sample_stats", "log_posterior"): trained.encoder(x).log_prob(z),
        }
    for (group, name), expected in parts.items():
        torch.testing.assert_close(values(inference, group, name), expected)
    assert set(x.unique().tolist()) == {0, 1}  # binarised as the data set says


def assert_mean_is_zero(drawn, mean):
    """Of pixels' noise, but for those so rarely on that their own draws do not tell how far off a mean may be."""
    common = (mean[0].mean(0) > 0.01) & (mean[0].mean(0) < 0.99)
    assert common.double().mean() > 0.3
    assert_mean_equals((drawn - mean)[0][:, common], torch.zeros(()))


def test_predictions_have_the_decoders_mean(trained, digits):
    inference = vsc.to_arviz(trained, digits.test[:3], 4000)
    z, x = values(inference, "posterior", "z"), values(inference, "posterior_predictive", "x")
    with trained.evaluating():
        # Given the codes the pixels are independent, so that only the last draw's noise is left.
        assert_mean_is_zero(x, trained.decoder(z).mean)
        prior, drawn = values(inference, "prior", "z"), values(inference, "prior_predictive", "x")
        assert_mean_is_zero(drawn, trained.decoder(prior).mean)
    assert_mean_equals((prior[0] != 0).double(), 0.3)
    # A draw has as many data as there are, each with a code of its own.
    assert not torch.equal(prior[0, :, 0], prior[0, :, 1])


def test_codes_owe_nothing_to_the_pixels_noise():
    """Both are drawn by one seed, and of one stream a pixel's noise would be a spike's as well."""
    torch.manual_seed(0)
    encoder = vsc.SpikeSlabEncoder(64, 64, hidden=(8,), initial_inclusion=0.5)
    model = vsc.VAE(encoder, vsc.BernoulliDecoder(64, 64), vsc.SpikeSlabPrior(64, 0.5))
    grey = vsc.Dataset(torch.full((500, 64), 0.5), binarize="dynamic")
    for num_samples in (1, 20):
        inference = vsc.to_arviz(model, grey, num_samples, predictive=False, log_likelihood=False)
        x = values(inference, "observed_data", "x").flatten().double()
        active = values(inference, "posterior", "active").flatten().double()
        x, active = x - x.mean(), active - active.mean()
        # At every offset of one stream in the other, 32,000 pairs each: chance is a normal of sd 1.
        spectrum = torch.fft.rfft(x, 2 * len(active)).conj() * torch.fft.rfft(active, 2 * len(active))
        lagged = torch.fft.irfft(spectrum)[: len(active) - len(x) + 1]
        z = lagged / (x.std() * active.std() * math.sqrt(len(x)))
        assert z.abs().max() < norm.isf(norm.sf(Z_BOUND) / len(z))


@pytest.mark.parametrize(("encoder", "prior", "_"), ADMISSIBLE)
def test_every_encoder_and_prior(encoder, prior, _, digits):
    model = build(encoder, prior)
    flat = prior == "flat"
    with torch.no_grad(), seeded(0, torch.device("cpu")):
        x = torch.bernoulli(digits.test.images[:4])
    inference = vsc.to_arviz(model, x, 12, prior=not flat)
    assert groups(inference).keys() == (GROUPS - {"prior", "prior_predictive"} if flat else GROUPS)
    with model.evaluating():
        q = model.encoder(x)
        sites = set(model.prior.hyperparameters()) if hasattr(model.prior, "hyperparameters") else set()
    assert set(inference["posterior"].data_vars) == {"z", "active", *sites}
    logits = inclusion_logits(q)
    z, active, inclusion = (
        values(inference, group, name)
        for group, name in (("posterior", "z"), ("posterior", "active"), ("constant_data", "inclusion_prob"))
    )
    assert ((z != 0) == active).all()
    if logits is None:
        assert (inclusion == active).all()
        assert (inclusion == 1).all() or encoder == "delta"
    else:
        torch.testing.assert_close(inclusion, logits.sigmoid().detach())
        assert 0 < active.double().mean() < 1
        shape = {"slab_concentration", "slab_rate"} if encoder == "spike-slab-gamma" else {"slab_loc", "slab_scale"}
        assert shape <= set(inference["constant_data"].data_vars)
    assert ("slab_threshold" in inference["constant_data"]) == (encoder == "spike-slab-threshold-normal")
    log_posterior = values(inference, "sample_stats", "log_posterior")
    if encoder == "delta":
        assert log_posterior.isnan().all()
        assert (values(inference, "constant_data", "slab_scale") == 0).all()
        torch.testing.assert_close(z, values(inference, "constant_data", "slab_loc").expand_as(z))
    else:
        torch.testing.assert_close(log_posterior, q.log_prob(z).detach())


@pytest.mark.parametrize("prior", ["beta", "global-beta"])
def test_a_learned_inclusion_has_posterior_and_prior_draws(prior, digits):
    model = build("spike-slab", prior)
    inference = vsc.to_arviz(model, digits.test[:2], 4000, predictive=False, log_likelihood=False)
    before, after = model.prior.hyperparameters()["inclusion"]
    assert_mean_equals(values(inference, "posterior", "inclusion")[0], after.mean.detach())
    inclusion, active = values(inference, "prior", "inclusion")[0], values(inference, "prior", "active")[0]
    assert_mean_equals(inclusion, before.mean)
    assert_mean_equals(active[:, 0].double() - (inclusion if inclusion.ndim == 2 else inclusion[:, None]), 0.0)
    # All data of a draw share it: given it they are independent, and without it they are not.
    residual = active.double() - (inclusion if inclusion.ndim == 2 else inclusion[:, None])[:, None]
    assert_mean_equals(residual[:, 0] * residual[:, 1], 0.0)
    assert ((active[:, 0].double() - before.mean) * (active[:, 1].double() - before.mean)).mean() > 0.01
    assert groups(inference).keys() == {"posterior", "prior", "observed_data", "constant_data"}


def test_a_flat_prior_is_left_out_and_said(digits):
    with pytest.warns(UserWarning, match="the prior is flat.*prior=False"):
        inference = vsc.to_arviz(build("delta", "flat"), digits.test[:2], 3)
    assert not {"prior", "prior_predictive"} & groups(inference).keys()


def test_training_statistics_are_left_alone(digits):
    encoder = vsc.SpikeSlabEncoder((1, 8, 8), 3, trunk=vsc.ConvTrunk((1, 8, 8)))
    encoder.trunk_norm = torch.nn.BatchNorm2d(1)
    encoder.register_forward_pre_hook(lambda module, inputs: (module.trunk_norm(inputs[0]),))
    model = vsc.VAE(encoder, vsc.BernoulliDecoder(3, (1, 8, 8)), vsc.PseudoInputPrior(encoder, 4)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    vsc.to_arviz(model, digits.test[:3], 5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_several_models_are_chains(small_vae, digits):
    models = [small_vae(seed=seed) for seed in range(3)]
    x = digits.test.images[:4]
    together = vsc.to_arviz(models, x, 7, seed=5)
    assert together["posterior"].sizes["chain"] == 3
    assert together["constant_data"]["inclusion_prob"].dims == ("chain", "datum", "latent")
    for chain, model in enumerate(models):
        alone = vsc.to_arviz(model, x, 7, seed=5 + chain)  # x is not drawn
        for group, name in (("posterior", "z"), ("posterior_predictive", "x"), ("prior", "z")):
            assert torch.equal(values(together, group, name)[chain], values(alone, group, name)[0])
        for name in ("inclusion_prob", "slab_loc", "prior_inclusion_prob"):
            assert torch.equal(values(together, "constant_data", name)[chain], values(alone, "constant_data", name))


def test_chunks_cover_everything(trained, digits, monkeypatch):
    shapes = {name: group.sizes for name, group in groups(vsc.to_arviz(trained, digits.test[:5], 11)).items()}
    for numbers in (64, 64 * 3, 64 * 11 * 2):  # one draw of a datum, three, all of two data
        monkeypatch.setattr(posterior, "_NUMBERS_AT_ONCE", numbers)
        inference = vsc.to_arviz(trained, digits.test[:5], 11)
        assert {name: group.sizes for name, group in groups(inference).items()} == shapes
        x, z = values(inference, "observed_data", "x"), values(inference, "posterior", "z")
        with trained.evaluating():
            torch.testing.assert_close(values(inference, "log_likelihood", "x"), trained.decoder(z).log_prob(x))
        for group in ("posterior_predictive", "prior_predictive"):
            assert set(values(inference, group, "x").unique().tolist()) == {0, 1}


def test_the_same_seed_gives_the_same_and_leaves_everything_as_it_was(trained, digits):
    trained.train()
    state = torch.get_rng_state()
    first, second, other = (vsc.to_arviz(trained, digits.test[:3], 5, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert trained.training
    assert trained.encoder.training
    trained.eval()
    for group, name in (("posterior", "z"), ("observed_data", "x"), ("prior_predictive", "x")):
        assert torch.equal(values(first, group, name), values(second, group, name))
        assert not torch.equal(values(first, group, name), values(other, group, name))


def test_size_is_told_before_anything_is_drawn(trained, digits):
    with pytest.raises(
        ValueError, match=r"1000000 draws of 360 data would take 196 GiB \(posterior_predictive.x alone 85.8"
    ):
        vsc.to_arviz(trained, digits.test, 1_000_000)
    numbers = 100 * 360 * 64 * 4 / 2**30
    with pytest.raises(ValueError, match=r"data\[:16\], fewer num_samples, predictive=False, or raise max_gigabytes"):
        vsc.to_arviz(trained, digits.test, 100, max_gigabytes=numbers)
    assert vsc.to_arviz(trained, digits.test, 100, max_gigabytes=3 * numbers)["posterior"].sizes["datum"] == 360


def test_bad_arguments_are_refused(trained, small_vae, digits):
    x = digits.test.images[:4]
    with pytest.raises(ValueError, match="model holds no model"):
        vsc.to_arviz([], x)
    with pytest.raises(ValueError, match="num_samples must be a whole number of at least 1, got 0"):
        vsc.to_arviz(trained, x, 0)
    with pytest.raises(ValueError, match=r"labels must have shape \(4,\), one for each datum, got \(3,\)"):
        vsc.to_arviz(trained, x, 2, labels=[1, 2, 3])
    with pytest.raises(ValueError, match="model must be a VAE or a sequence of them, got 3"):
        vsc.to_arviz(3, x)
    with pytest.raises(ValueError, match="labels must be all numbers or all strings"):
        vsc.to_arviz(trained, x, 2, labels=[None, "a", 3, 4])
    with pytest.raises(ValueError, match=r"coords\['latent'\] must be different names"):
        vsc.to_arviz(trained, x, 2, coords={"latent": list("aabcde")})
    with pytest.raises(
        ValueError, match=r"coords\['latent'\] must be a name for each.* got shape \(2,\).*latent \(6\)"
    ):
        vsc.to_arviz(trained, x, 2, coords={"latent": ["a", "b"]})
    with pytest.raises(ValueError, match=r"coords\['letter'\] must be .* the dimensions .* chain \(1\)"):
        vsc.to_arviz(trained, x, 2, coords={"letter": ["a", "b"]})
    with pytest.raises(ValueError, match="must have the same number of latents"):
        vsc.to_arviz([trained, small_vae()], x, 2)
    with pytest.raises(
        ValueError, match=r"must be of one kind, and only some have posterior.inclusion, prior.inclusion"
    ):
        vsc.to_arviz([build("spike-slab", "spike-slab"), build("spike-slab", "beta")], x, 2)
    with pytest.raises(ValueError, match=r"do not fit|does not take"):
        vsc.to_arviz(trained, torch.zeros(3, 7), 2)
    with pytest.raises(ValueError, match="NaN"):
        vsc.to_arviz(trained, x * math.nan, 2)


def test_real_mnist(mnist_root):
    _, test = vsc.datasets.load("mnist", root=mnist_root)
    torch.manual_seed(0)
    model = vsc.VSC(784, latent_dim=10, inclusion=0.2, num_pseudo_inputs=5)
    inference = vsc.to_arviz(model, test[:4], 20)
    assert inference["posterior_predictive"].sizes == {"chain": 1, "draw": 20, "datum": 4} | dict(
        zip(PIXELS, (1, 28, 28), strict=True)
    )
    assert inference["constant_data"]["label"].values.tolist() == [7, 2, 1, 0]
