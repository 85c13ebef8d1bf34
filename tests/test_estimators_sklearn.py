"""`SpikeSlabCoder` is an estimator of scikit-learn: its own suite of checks, and what they do not look at."""

import copy
import pickle

import numpy as np
import pytest
import torch
from conftest import assert_mean_equals
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.exceptions import NotFittedError
from sklearn.utils.estimator_checks import parametrize_with_checks

import vsc_pyro as vsc

SMALL = {"encoder_hidden": 8, "max_iter": 2, "batch_size": 50, "device": "cpu", "random_state": 0}
# Without a linear decoder the bound is a mean over draws, whose random numbers are not the same for a datum elsewhere.
DRAWN = dict.fromkeys(
    ("check_methods_sample_order_invariance", "check_methods_subset_invariance"), "score_samples draws codes"
)


def expected_failures(estimator):
    return DRAWN if estimator.hidden else {}


@parametrize_with_checks(
    [vsc.SpikeSlabCoder(**SMALL), vsc.SpikeSlabCoder(2, hidden=(8,), threshold=0.5, **SMALL)],
    expected_failed_checks=expected_failures,
)
def test_it_passes_the_checks_of_scikit_learn(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def x():
    return load_digits().data[:300] / 16


def trained(data, **options):
    settings = {"n_components": 12, "inclusion": 0.3, "encoder_hidden": 32, "learning_rate": 5e-3}
    return vsc.SpikeSlabCoder(**SMALL | settings | {"max_iter": 10} | options).fit(data)


@pytest.fixture(scope="module")
def coder(x):
    """A fitted estimator, for tests that only read it."""
    return trained(x)


def test_codes_are_those_of_the_model(coder, x):
    with coder.model_.evaluating():
        posterior = coder.model_.encoder(torch.tensor(x)).base_dist
    np.testing.assert_allclose(coder.transform(x), posterior.mean, rtol=1e-9)
    gamma = coder.predict_inclusion(x)
    np.testing.assert_allclose(gamma, posterior.probs, rtol=1e-9)
    hard = copy.deepcopy(coder).set_params(threshold=0.4).transform(x)
    np.testing.assert_array_equal(hard, np.where(gamma > 0.4, posterior.slab.loc, 0))
    assert 0 < (hard == 0).mean() < 1


def test_a_linear_decoder_adds_its_components(coder, x):
    origin = coder.inverse_transform(np.zeros((1, 12)))
    np.testing.assert_allclose(coder.inverse_transform(np.eye(12)) - origin, coder.components_, atol=1e-12)
    errors = [np.square(x - decoded).mean() for decoded in (origin, coder.inverse_transform(coder.transform(x)))]
    assert errors[1] < 0.8 * errors[0]


def test_the_closed_score_is_the_mean_of_the_drawn_one(coder, x):
    drawn = vsc.bounds(coder.model_, x, num_draws=20).elbo
    assert_mean_equals(drawn - torch.tensor(coder.score_samples(x)), 0.0)
    assert coder.score(x) == coder.score_samples(x).mean()


def test_samples_have_the_moments_of_the_model(coder):
    draws = torch.tensor(coder.sample(20_000))
    mean = torch.tensor(coder.inverse_transform(np.zeros((1, 12)))[0])  # slabs have mean 0
    assert_mean_equals(draws - mean, 0.0)
    variance = 0.3 * np.square(coder.components_).sum(0) + coder.noise_variance_
    assert_mean_equals((draws - mean).square() - torch.tensor(variance), 0.0)
    np.testing.assert_array_equal(coder.sample(3), coder.sample(3))


def test_a_random_state_decides_everything_and_changes_nothing(coder, x):
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002 the global state is the point
    codes = trained(x).transform(x)
    np.testing.assert_array_equal(coder.transform(x), codes)
    assert not np.array_equal(trained(x, random_state=1).transform(x), codes)
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


def test_partial_fit_continues(x):
    coder = trained(x)
    model, score = coder.model_, coder.score(x)
    restored = pickle.loads(pickle.dumps(coder))
    for one in coder, restored:
        for _ in range(5):
            one.partial_fit(x)
    assert coder.model_ is model
    assert coder.n_iter_ == 15
    assert coder.score(x) > score
    np.testing.assert_array_equal(restored.transform(x), coder.transform(x))


@pytest.mark.parametrize("decoder", ["bernoulli", "continuous-bernoulli", vsc.BernoulliDecoder])
def test_other_decoders(decoder, x):
    coder = clone(trained(x, decoder=decoder)).fit(x)
    assert not hasattr(clone(coder), "components_")
    decoded = coder.inverse_transform(coder.transform(x))
    assert decoded.dtype == x.dtype
    assert (decoded >= 0).all()
    assert (decoded <= 1).all()
    assert coder.sample(5).shape == (5, 64)
    np.testing.assert_array_equal(coder.score_samples(x), coder.score_samples(x))
    assert hasattr(coder, "components_") == (decoder != vsc.BernoulliDecoder)
    assert not hasattr(coder, "noise_variance_")


def test_a_decoder_of_images_takes_rows(coder, x):
    images = trained(x, decoder=lambda latents, _: vsc.NormalDecoder(latents, (1, 8, 8), ()))
    for method in "transform", "score_samples":
        np.testing.assert_array_equal(getattr(images, method)(x), getattr(coder, method)(x))
    for method in "sample", "inverse_transform":
        argument = 3 if method == "sample" else coder.transform(x)
        np.testing.assert_array_equal(getattr(images, method)(argument), getattr(coder, method)(argument))
    for name in "components_", "noise_variance_":
        np.testing.assert_array_equal(getattr(images, name), getattr(coder, name))


def test_noise_is_kept_learned_or_the_librarys_choice():
    data = load_breast_cancer().data[:150]
    assert trained(data, noise=2.5).noise_variance_ == pytest.approx(np.full(30, 6.25))
    fixed = trained(data, n_components=30).noise_variance_
    assert fixed == pytest.approx(np.full(30, 0.4**2 * data.var(0).mean()))
    learned = trained(data, n_components=30, noise="learned").noise_variance_
    assert np.ptp(learned) == 0
    assert abs(learned[0] / fixed[0] - 1) > 0.01


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_components": 0}, "n_components must be a whole number of at least 1, got 0"),
        ({"inclusion": 1.0}, "inclusion must lie strictly between 0 and 1"),
        ({"inclusion": 0.1, "expected_active": 3}, "pass one of the two"),
        ({"decoder": "poisson"}, "unknown decoder 'poisson'; known are 'bernoulli'"),
        ({"decoder": "bernoulli", "noise": 0.1}, "noise=0.1 is for decoder='normal'"),
        ({"decoder": vsc.BernoulliDecoder, "hidden": (8,)}, r"hidden=\(8,\) is for a named decoder"),
        ({"noise": "auto"}, "unknown noise 'auto'; known are 'learned'"),
        ({"noise": -1.0}, "noise must be a finite number above 0, got -1.0"),
        ({"threshold": 1}, "threshold must be None or a probability from 0 to below 1, got 1"),
        ({"max_iter": 0}, "max_iter must be a whole number of at least 1, got 0"),
        ({"learning_rate": 0}, "learning_rate must be a finite number above 0, got 0"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
    ],
)
def test_bad_arguments_are_named(options, message, x):
    with pytest.raises(ValueError, match=message):
        trained(x, **options)


def test_a_refused_partial_fit_changes_nothing(x):
    coder = trained(x, decoder="bernoulli", max_iter=1)
    codes = coder.transform(x)
    for change in {"learning_rate": -1}, {}:
        with pytest.raises(ValueError, match=r"learning_rate must|data must lie in"):
            copy.deepcopy(coder).set_params(**change).partial_fit(3 * x)
        np.testing.assert_array_equal(coder.transform(x), codes)
    with pytest.raises(ValueError, match="data must lie in the support"):
        coder.partial_fit(3 * x)
    np.testing.assert_array_equal(coder.transform(x), codes)


def test_masks_are_refused_and_modes_of_torch_ignored(x):
    with pytest.raises(ValueError, match=r"X holds .* values under a mask"):
        trained(np.ma.masked_greater(x, 0.5))
    with torch.inference_mode():
        coder = trained(x, max_iter=1)
    np.testing.assert_array_equal(coder.transform(x), trained(x, max_iter=1).transform(x))


def test_codes_of_another_size_and_unfitted_estimators_are_refused(x):
    with pytest.raises(ValueError, match="X must be codes of 12 latents, got 64"):
        trained(x, max_iter=1).inverse_transform(x)
    for method in "transform", "inverse_transform", "predict_inclusion", "score_samples", "sample":
        with pytest.raises(NotFittedError):
            getattr(vsc.SpikeSlabCoder(), method)(x)
