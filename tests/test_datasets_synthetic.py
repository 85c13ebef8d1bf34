"""The synthetic data are what their docstrings say they are, and their factors are the truth."""

import pytest
import torch
from conftest import assert_mean_equals

from vsc_pyro import datasets
from vsc_pyro.datasets.synthetic import PATTERNS, TEMPLATES

SPARSE_SUMS = [
    (datasets.templates, lambda: datasets.template_images().flatten(1).T),
    (datasets.linear_5x5, datasets.linear_5x5_dictionary),
]
GENERATORS = [datasets.templates, datasets.linear_5x5, datasets.smiley]


@pytest.mark.parametrize("generator", GENERATORS)
def test_drawn_by_the_seed(generator):
    train, test = generator(num_train=300, num_test=100, seed=4)
    again, longer = generator(num_train=300, num_test=150, seed=4)
    assert torch.equal(train.images, again.images)
    assert torch.equal(train.factors.values, again.factors.values)
    assert (len(train), len(test), len(longer)) == (300, 100, 150)
    assert not torch.equal(train.images[:100], test.images)
    assert not torch.equal(train.images, generator(num_train=300, num_test=100, seed=5).train.images)


@pytest.mark.parametrize("generator", GENERATORS)
@pytest.mark.parametrize("arguments", [{"num_train": 0}, {"num_test": 2.5}, {"seed": -1}])
def test_bad_numbers(generator, arguments):
    with pytest.raises(ValueError, match=f"{next(iter(arguments))} must be a whole number"):
        generator(**arguments)


@pytest.mark.parametrize(("generator", "dictionary"), SPARSE_SUMS)
def test_what_the_sources_do_not_explain_is_noise(generator, dictionary):
    data = generator(noise=0.3, seed=2).train
    residual = data.images.flatten(1) - data.factors.values @ dictionary().T
    assert_mean_equals(residual, 0.0)
    assert_mean_equals(residual**2, 0.3**2)
    assert_mean_equals(residual**4, 3 * 0.3**4)
    assert_mean_equals(residual[:, 1:] * residual[:, :-1], 0.0)


@pytest.mark.parametrize(("generator", "dictionary"), SPARSE_SUMS)
def test_sources_can_be_told_apart(generator, dictionary):
    columns = torch.nn.functional.normalize(dictionary(), dim=0)
    cosines = columns.T @ columns - torch.eye(columns.shape[1])
    assert cosines.max() < 0.75
    assert torch.linalg.matrix_rank(columns) == columns.shape[1]


def test_two_templates_in_every_image():
    presence, values, names = datasets.templates().train.factors
    assert names == TEMPLATES
    assert (presence.sum(1) == 2).all()
    pairs = presence.double().unsqueeze(1) * presence.double().unsqueeze(2)
    rows, columns = torch.triu_indices(10, 10, 1)
    assert_mean_equals(pairs[:, rows, columns], 1 / 45)
    weights = values[presence]
    assert ((weights >= 0.5) & (weights <= 1.5)).all()
    assert_mean_equals(weights, 1.0)
    assert_mean_equals((weights - 1) ** 2, 1 / 12)


def test_templates_are_smooth_and_look_as_they_are_named():
    images = dict(zip(TEMPLATES, datasets.template_images(), strict=True))
    assert all(0.8 < image.max() <= 1 for image in images.values())
    for image in images.values():
        assert image.diff(dim=0).abs().max() < 0.75
    assert images["top left"][:5, :5].sum() > 0.95 * images["top left"].sum()
    assert torch.allclose(images["top left"].flip(1), images["top right"])
    assert torch.allclose(images["top left"].flip(0), images["bottom left"])
    assert torch.equal(images["horizontal"].T, images["vertical"])
    assert images["falling"].trace() > 9.9 > images["rising"].trace()
    assert images["ring"][4:6, 4:6].max() < 0.01 < 0.8 < images["centre"][4:6, 4:6].min()


@pytest.mark.parametrize(("slab", "fourth_moment"), [("normal", 3.0), ("laplace", 6.0)])
def test_linear_sources_have_the_law_of_the_docstring(slab, fourth_moment):
    presence, values, names = datasets.linear_5x5(num_train=50_000, inclusion=0.25, slab=slab).train.factors
    assert names == PATTERNS
    assert_mean_equals(presence.double(), 0.25)
    assert_mean_equals((presence[:, 1:] & presence[:, :-1]).double(), 0.25**2)
    on = values[presence]
    assert_mean_equals(on, 0.0)
    assert_mean_equals(on**2, 1.0)
    assert_mean_equals(on**4, fourth_moment)


def test_linear_dictionary_is_of_unit_norm_and_localised():
    dictionary = datasets.linear_5x5_dictionary()
    assert torch.allclose(dictionary.norm(dim=0), torch.ones(5))
    assert [(column > 0).sum().item() for column in dictionary.T] == [4, 5, 5, 5, 3]


def test_bad_options():
    with pytest.raises(ValueError, match="unknown slab 'cauchy'; known are 'laplace', 'normal'"):
        datasets.linear_5x5(slab="cauchy")
    for inclusion in (0, 1.5, float("nan")):
        with pytest.raises(ValueError, match="inclusion must be"):
            datasets.linear_5x5(inclusion=inclusion)
    for generator in (datasets.templates, datasets.linear_5x5):
        with pytest.raises(ValueError, match="noise must be a finite number above 0, got 0"):
            generator(noise=0)
