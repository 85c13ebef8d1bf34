"""Loaded sparse autoencoders take the data in memory that `fit` takes."""

import pandas
import pytest
import torch
from problems.autoencoders import D, J, built, data
from test_sae import MODELS

import vsc_pyro as vsc


@pytest.mark.parametrize("name", ["jump relu", "dictionary", "dictionary, hidden", "l1"])
def test_data_are_all_that_fit_takes(name, tmp_path):
    vsc.sae.export(MODELS[name][1](), tmp_path)
    sae, x = vsc.sae.load(tmp_path), data(50)
    kinds = (x.numpy(), x.numpy()[::-1].copy()[::-1], pandas.DataFrame(x.numpy()), x.tolist(), vsc.Dataset(x))
    for method in (sae.encode, sae.inclusion, sae, lambda x: sae.encode(x, code="mean")):
        expected = method(x)
        for kind in (*kinds, x.reshape(50, 2, 3), x.reshape(50, 2, 3).numpy(), vsc.Dataset(x.reshape(50, 1, D))):
            assert torch.equal(method(kind), expected)
    assert torch.equal(sae.encode(x[0].numpy()), sae.encode(x[0]))
    z = sae.encode(x)
    assert torch.equal(sae.decode(z.numpy()), sae(x))


def test_integers_and_grey_levels(tmp_path):
    vsc.sae.export(built(vsc.JumpReLUEncoder(D, J)), tmp_path)
    sae = vsc.sae.load(tmp_path)
    whole = data(50).round()
    assert torch.equal(sae.encode(whole.int().numpy()), sae.encode(whole))
    grey = vsc.Dataset(torch.full((50, D), 0.5), binarize="dynamic")
    torch.manual_seed(3)
    drawn = grey.draw(slice(None))
    torch.manual_seed(3)
    assert torch.equal(sae.encode(grey), sae.encode(drawn))
    assert not torch.equal(sae.encode(grey), sae.encode(drawn))


def test_data_in_another_order_are_refused(tmp_path):
    vsc.sae.export(MODELS["dictionary, hidden"][1](), tmp_path)
    with pytest.raises(ValueError, match=r"shape \(N, 3, 2\) have their values in another order than an autoencoder"):
        vsc.sae.load(tmp_path).encode(torch.zeros(4, 3, 2))


@pytest.mark.parametrize("name", ["jump relu", "dictionary"])
def test_gradients_flow_to_a_tensor_of_data(name, tmp_path):
    vsc.sae.export(MODELS[name][1]().double(), tmp_path)
    sae, x = vsc.sae.load(tmp_path), data(5).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: sae.encode(x, code="mean"), x)
    gradient = torch.autograd.grad(sae(x).square().sum() + sae.inclusion(x).sum(), x)[0]
    assert (gradient != 0).any()
