"""A `DataLoader` is evaluated as its data in memory are: the same numbers, whatever its batches."""

import dataclasses

import numpy as np
import pytest
import torch
from problems.inference_data import groups, values
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import vsc_pyro as vsc
from vsc_pyro.training.loaded import Loaded

X = torch.rand(70, 16, generator=torch.Generator().manual_seed(0)) @ torch.randn(
    16, 16, generator=torch.Generator().manual_seed(1)
)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return vsc.VAE(
        vsc.SpikeSlabEncoder(16, 4, hidden=(8,)), vsc.NormalDecoder(4, 16, hidden=()), vsc.SpikeSlabPrior(4, 0.3)
    )


class Noisy(Dataset):
    """Data with noise of torch's global generator, as augmentations draw it."""

    def __len__(self):
        return len(X)

    def __getitem__(self, index):
        return X[index] + 0.1 * torch.randn(16), 0


class Rows(IterableDataset):
    def __iter__(self):
        return iter(X)


LOADERS = {
    "one batch": lambda: DataLoader(X, 70),
    "small batches": lambda: DataLoader(TensorDataset(X), 9),
    "with labels": lambda: DataLoader(vsc.Dataset(X, labels=np.arange(70)), 32),
    "without a length": lambda: DataLoader(Rows(), 25),
    "double": lambda: DataLoader(X.double(), 64),
}


def fields(result):
    return {name: value for name, value in vars(result).items() if not isinstance(value, (str, tuple, type(None)))}


def assert_same(result, expected):
    for name, value in fields(expected).items():
        torch.testing.assert_close(fields(result)[name], value, rtol=0, atol=0, equal_nan=True, msg=name)


@pytest.mark.parametrize("kind", LOADERS)
def test_figures_are_those_of_data_in_memory(model, kind, monkeypatch):
    monkeypatch.setattr("vsc_pyro.evaluation.importance._ELEMENTS_AT_ONCE", {"cpu": 20 * 16 * 20})  # several chunks
    loader = LOADERS[kind]()
    torch.manual_seed(5)
    result = vsc.evaluate(model, loader, num_draws=3, reference="exact")
    assert torch.equal(torch.rand(2), torch.manual_seed(5) and torch.rand(2))  # the caller's random numbers
    expected = vsc.evaluate(model, X, num_draws=3, reference="exact")
    assert_same(result, expected)
    assert str(result) == str(expected)
    assert_same(vsc.bounds(model, loader, num_draws=3), vsc.bounds(model, X, num_draws=3))
    torch.testing.assert_close(vsc.encode(model, loader), vsc.encode(model, X))


def test_advice_is_that_of_data_in_memory(model):
    x = 5 + X
    assert vsc.evaluate(model, x, num_draws=2).advice
    assert vsc.evaluate(model, DataLoader(x, 9), num_draws=2).advice == vsc.evaluate(model, x, num_draws=2).advice


def test_refined_posteriors_are_those_of_data_in_memory(model, monkeypatch):
    monkeypatch.setattr("vsc_pyro.inference.refine._ROWS_AT_ONCE", 3000)  # 30 data at once
    refined, expected = (vsc.refine(model, data, steps=5) for data in (DataLoader(X, 8), X))
    assert torch.equal(refined.elbo_after, expected.elbo_after)
    assert torch.equal(refined.posterior.mean, expected.posterior.mean)


def test_draws_are_those_of_data_in_memory(model):
    found, expected = (vsc.to_arviz([model], data, 4, labels=range(70)) for data in (DataLoader(X, 8), X))
    assert groups(found).keys() == groups(expected).keys()
    for group, name in (("posterior", "z"), ("prior_predictive", "x"), ("log_likelihood", "x"), ("observed_data", "x")):
        assert torch.equal(values(found, group, name), values(expected, group, name))
    with pytest.raises(ValueError, match=r"would take .* GiB .* raise max_gigabytes"):
        vsc.to_arviz(model, DataLoader(X, 8), 4, max_gigabytes=1e-6)


def test_every_pass_reads_the_same_data(model):
    for loader in (DataLoader(Noisy(), 9), DataLoader(X, 9, shuffle=True)):
        data = Loaded(loader, 3, model)
        first, second = (torch.cat(list(data.batches(size))) for size in (70, 11))
        assert torch.equal(first, second)
        assert torch.equal(data.draw(torch.tensor([0, 5, 69])), first[[0, 5, 69]])
        assert not torch.equal(first, torch.cat(list(Loaded(loader, 4).batches(70))))
        assert_same(vsc.evaluate(model, loader, num_draws=2, seed=3), vsc.evaluate(model, first, num_draws=2, seed=3))


def test_passes_do_not_disturb_each_other_and_one_may_end_early(model):
    generator = torch.Generator()
    loaded = Loaded(DataLoader(Noisy(), 10, shuffle=True, generator=generator), 0, model)
    expected, before = list(loaded.batches(10)), (generator.get_state(), torch.get_rng_state())
    first, second = (loaded.batches(10) for _ in range(2))
    for one, other, datum in zip(first, second, expected, strict=True):
        assert torch.equal(one, datum)
        assert torch.equal(other, datum)
    begun = loaded.batches(10)
    next(begun)
    assert all(map(torch.equal, before, (generator.get_state(), torch.get_rng_state())))


def test_batches_have_the_size_asked_for():
    data = Loaded(DataLoader(X, 9), 0)
    assert [len(x) for x in data.batches(20)] == [20, 20, 20, 10]
    assert [len(x) for x in data.batches(35)] == [35, 35]
    assert [len(x) for x in data.batches(4)] == [4] * 17 + [2]
    assert torch.equal(torch.cat(list(data.batches(4))), X)


@pytest.mark.parametrize("measure", [vsc.evaluate, vsc.bounds, vsc.refine, vsc.to_arviz])
def test_bad_loaders_are_refused(model, measure):
    bad = X.clone()
    bad[40, 2] = torch.nan
    for loader, message in (
        (DataLoader(X, 100, drop_last=True), "at least one batch, got none"),
        (DataLoader(bad, 25), r"batch 2 of the DataLoader: data holds 1 NaN or infinite .* in datum 15"),
        (DataLoader(X[:, :7], 25), "batch 1 of the DataLoader: the encoder does not take data of shape"),
        (DataLoader([{"x": x} for x in X], 25), "batch 1 of the DataLoader: batches must be tensors"),
    ):
        with pytest.raises(ValueError, match=message):
            measure(model, loader)


def test_grey_levels_are_drawn_by_the_loader(digits, small_vae):
    loader = DataLoader(dataclasses.replace(digits.test, labels=None), 50)
    seen = torch.cat(list(Loaded(loader, 0).batches(1000)))
    assert set(seen.unique().tolist()) == {0.0, 1.0}
    assert vsc.evaluate(small_vae(), loader, num_draws=2).binarize is None
