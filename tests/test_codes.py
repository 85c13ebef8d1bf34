"""Codes of data: inclusion, slab and the hard code, from whatever holds the data."""

import numpy as np
import pyro.distributions as dist
import pytest
import scipy.sparse
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import vsc_pyro as vsc


@pytest.fixture(scope="module")
def images(digits):
    return digits.test.images


@pytest.fixture(scope="module")
def model():
    """One that is as likely as not to have a latent on, unmodel."""
    torch.manual_seed(0)
    encoder = vsc.SpikeSlabEncoder((1, 8, 8), 6, hidden=(32,), initial_inclusion=0.5)
    return vsc.VAE(encoder, vsc.BernoulliDecoder(6, (1, 8, 8), hidden=(32,)), vsc.SpikeSlabPrior(6, 0.5))


class Told(nn.Module):
    """A part of a model that makes a given distribution of its input."""

    def __init__(self, distribution):
        super().__init__()
        self.distribution = distribution

    def forward(self, x):
        return self.distribution(x.flatten(1)).to_event(1)


def told(distribution):
    """A model of three latents, whose posterior is that of three columns of the data."""
    model = vsc.VAE(Told(distribution), vsc.NormalDecoder(3, 3, hidden=()), vsc.FlatPrior(3))
    model.check_data = lambda x: None  # of pairs with the prior, that are not coded by it
    return model


def test_the_hard_code_is_what_is_computed_by_hand(model, images):
    found = vsc.codes(model, images)
    assert (len(found), found.hard.shape, found.threshold) == (360, (360, 6), 0.5)
    assert model.training
    with model.evaluating():
        posterior = model.encoder(images).base_dist
    torch.testing.assert_close(found.inclusion, posterior.probs)
    torch.testing.assert_close(found.centre, posterior.slab.loc)
    torch.testing.assert_close(found.scale, posterior.slab.scale)
    by_hand = found.centre.clone()
    off = posterior.probs <= 0.5
    by_hand[off] = 0
    assert torch.equal(found.hard, by_hand)
    assert 0 < off.float().mean() < 1
    assert (found.hard != 0).sum() == (~off).sum()


def test_the_threshold_is_that_of_the_inclusion(model, images):
    numbers_on = [int((vsc.codes(model, images, threshold=t).hard != 0).sum()) for t in (0, 0.49, 0.5, 0.53)]
    assert numbers_on[0] == 360 * 6
    assert sorted(numbers_on, reverse=True) == numbers_on
    assert len(set(numbers_on)) == 4, numbers_on


@pytest.mark.parametrize(
    ("posterior", "inclusion", "centre", "scale"),
    [
        (lambda x: dist.Normal(x, 2.0), 1, 1, 2.0),
        (lambda x: dist.Laplace(x, 2.0), 1, 1, 2.0),
        (lambda x: dist.Cauchy(x, 2.0), 1, 1, 2.0),
        (lambda x: dist.Uniform(x - 3**0.5, x + 3**0.5), 1, 1, 1.0),
        (lambda x: vsc.SpikeSlab(dist.Laplace(x, 2.0), probs=torch.full_like(x, 0.75)), 0.75, 1, 2.0),
        (lambda x: vsc.ThresholdedSpikeSlab(dist.Laplace(x, 2.0), 2.0 * np.log(4.0)), 0.25, 1, 2.0),
        (lambda x: vsc.ThresholdedSpikeSlab(dist.Normal(x, 2.0), 2.0 * 0.6744898), 0.5, 1, 2.0),
    ],
    ids=["normal", "laplace", "cauchy", "uniform", "spike-slab", "thresholded-laplace", "thresholded-normal"],
)
def test_every_family_has_its_inclusion_centre_and_scale(posterior, inclusion, centre, scale):
    x = torch.randn(7, 3)
    found = vsc.codes(told(posterior), x)
    torch.testing.assert_close(found.inclusion, torch.full((7, 3), float(inclusion)))
    torch.testing.assert_close(found.centre, centre * x)
    torch.testing.assert_close(found.scale, torch.full((7, 3), scale))


def test_a_point_is_on_where_it_is_not_zero():
    x = torch.tensor([[0.0, -1.0, 2.0], [3.0, 0.0, 0.0]])
    found = vsc.codes(told(lambda x: dist.Delta(x)), x)
    assert torch.equal(found.hard, x)
    assert torch.equal(found.inclusion, (x != 0).float())
    assert torch.equal(found.scale, torch.zeros(2, 3))
    assert found.as_csr().nnz == 3


def test_a_sparse_matrix_holds_the_dense_code_and_nothing_else(model, digits):
    many = torch.cat([digits.train.images, digits.test.images])  # more than one batch
    dense = vsc.codes(model, many, threshold=0.5)
    for matrix in (dense.as_csr(), vsc.codes(model, many, threshold=0.5, format="csr")):
        assert isinstance(matrix, scipy.sparse.csr_array)
        assert (matrix.shape, matrix.dtype) == ((1797, 6), np.float32)
        assert matrix.nnz == int((dense.inclusion > 0.5).sum())
        assert (matrix.toarray() == dense.hard.numpy()).all()


@pytest.mark.parametrize("batch_size", [50, 2000])
@pytest.mark.parametrize("pack", [lambda data: data.images, lambda data: TensorDataset(data.images, data.labels)])
def test_a_loader_gives_the_codes_of_its_array(model, digits, pack, batch_size):
    held = vsc.Dataset(digits.train.images)
    loader = DataLoader(pack(digits.train), batch_size=batch_size)
    expected, found = vsc.codes(model, held), vsc.codes(model, loader)
    for name in ("inclusion", "centre", "scale", "hard"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name))
    torch.testing.assert_close(vsc.encode(model, loader), vsc.encode(model, held))
    array = vsc.codes(model, held.images.double().numpy())
    assert torch.equal(array.hard, expected.hard)


def test_seeds_are_of_binarisation_and_of_shuffling_and_the_callers_state_stays(model, digits):
    shuffled = DataLoader(digits.test.images, batch_size=100, shuffle=True)
    for data in (digits.test, shuffled):
        state = torch.get_rng_state()
        first, again, other = (vsc.codes(model, data, seed=seed).centre for seed in (1, 1, 2))
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(first, again)
        assert not torch.equal(first, other)


def test_what_cannot_be_coded_is_refused_with_a_remedy(model, images):
    for threshold in (1.0, -0.1, "half", float("nan")):
        with pytest.raises(ValueError, match=f"threshold must be a probability from 0 to below 1, got {threshold!r}"):
            vsc.codes(model, images, threshold=threshold)
    with pytest.raises(ValueError, match="unknown format 'dense'; known are 'csr', 'tensors'"):
        vsc.codes(model, images, format="dense")
    with pytest.raises(ValueError, match="data must be a DataLoader with at least one batch, got none"):
        vsc.codes(model, DataLoader(images, batch_size=500, drop_last=True))
    with pytest.raises(ValueError, match=r"batch 2 of the DataLoader: data must lie in the support"):
        vsc.codes(model, DataLoader(torch.cat([images[:5], images[:5] + 2]), batch_size=5))
    with pytest.raises(ValueError, match=r"batch 1 of the DataLoader: batches must be tensors .* got a dict"):
        vsc.codes(model, DataLoader([{"x": image} for image in images], batch_size=5))
    with pytest.raises(ValueError, match="codes that are NaN or infinite; the model has diverged"):
        vsc.codes(told(lambda x: dist.Delta(x.log())), -torch.ones(2, 3))


def test_real_digits_are_coded_sparsely(mnist_root):
    test = vsc.datasets.load("mnist", root=mnist_root, download=False).test[:2500]
    torch.manual_seed(0)
    encoder = vsc.SpikeSlabEncoder(784, 20, (100,), initial_inclusion=0.5)
    model = vsc.VAE(encoder, vsc.BernoulliDecoder(20, 784, (100,)), vsc.SpikeSlabPrior(20, 0.3))
    vsc.fit(model, test, epochs=6, lr=3e-3, progress=False)
    found, matrix = vsc.codes(model, test), vsc.codes(model, test, format="csr")
    assert found.hard.shape == matrix.shape == (2500, 20)
    assert 0 < matrix.nnz < 2500 * 20
    assert (matrix.toarray() == torch.where(found.inclusion > 0.5, found.centre, 0).numpy()).all()
