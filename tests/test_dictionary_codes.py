"""Codes of a dictionary, read from models of every kind."""

from types import SimpleNamespace

import pytest
import torch
from problems.linear import linear_model
from torch import nn

import vsc_pyro as vsc
from vsc_pyro.evaluation.dictionary_codes import Coder


class Autoencoder(nn.Module):
    """A sparse autoencoder by hand, of bipolar codes; in training mode it makes noise."""

    def __init__(self, atoms, threshold=0.5):
        super().__init__()
        self.W_dec, self.threshold = nn.Parameter(atoms), threshold

    def encode(self, x):
        code = x @ self.W_dec.T + self.training * torch.randn(len(x), len(self.W_dec))
        return torch.where(code.abs() > self.threshold, code, 0)

    def decode(self, code):
        return code @ self.W_dec


def read(model, x, posterior=None):
    coder = Coder(model, vsc.Dataset(x), posterior, 0)
    parts = [codes for _, codes in coder.batches()]
    return coder, type(parts[0])(*map(torch.cat, zip(*parts, strict=True)))


def test_a_posterior():
    model, x, _ = linear_model()
    x = x.repeat(5, 1)  # in two batches
    coder, codes = read(model, x)
    expected = vsc.codes(model, x)
    bias = model.decoder.own_layer.bias.detach()
    assert coder.is_probabilistic
    torch.testing.assert_close(coder.atoms, model.decoder.dictionary.detach())
    torch.testing.assert_close(codes.x, x.double())
    torch.testing.assert_close(codes.inclusion, expected.inclusion)
    torch.testing.assert_close(coder.score(codes), expected.inclusion)
    torch.testing.assert_close(codes.code, expected.inclusion * expected.centre)
    for found, code in ((codes.mean, expected.inclusion * expected.centre), (codes.hard, expected.hard)):
        torch.testing.assert_close(found, (code @ coder.atoms + bias).double(), rtol=1e-4, atol=1e-5)


def test_the_result_of_an_inference():
    model, x, _ = linear_model()
    _, codes = read(model, x, lambda x: vsc.exact_posterior(model, x))
    exact = vsc.exact_posterior(model, x)
    given_on = torch.where(exact.inclusion > 0.5, exact.mean / exact.inclusion, 0)
    decoded = given_on @ model.decoder.dictionary.detach().double() + model.decoder.own_layer.bias.detach()
    torch.testing.assert_close(codes.inclusion.double(), exact.inclusion, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(codes.hard, decoded, rtol=1e-4, atol=1e-5)


def test_an_autoencoder_in_evaluation_mode():
    model, x = Autoencoder(torch.eye(3)), torch.tensor([[1.0, 0.2, -2], [0, 0, 0]])
    coder, codes = read(model, x)
    assert not coder.is_probabilistic
    assert codes.inclusion.tolist() == [[1, 0, 1], [0, 0, 0]]
    assert codes.code.tolist() == [[1, 0, -2], [0, 0, 0]]
    assert coder.score(codes).tolist() == [[1, 0, 2], [0, 0, 0]]
    assert codes.mean.tolist() == codes.hard.tolist() == [[1, 0, -2], [0, 0, 0]]
    assert model.training
    assert not coder.atoms.requires_grad


def test_a_file_with_a_posterior(tmp_path):
    pytest.importorskip("safetensors", reason="needs the package safetensors: pip install 'vsc-pyro[sae]'")
    model, x, _ = linear_model()
    vsc.sae.export(model, tmp_path)
    coder, codes = read(vsc.sae.load(tmp_path), x)
    _, expected = read(model, x)
    norms = model.decoder.dictionary.detach().norm(dim=1)
    assert coder.is_probabilistic
    assert ((expected.inclusion > 0.01) & (expected.inclusion < 0.99)).any()
    torch.testing.assert_close(coder.score(codes), expected.inclusion)
    torch.testing.assert_close(codes.code, expected.code * norms)
    for found, decoded in ((codes.mean, expected.mean), (codes.hard, expected.hard)):
        torch.testing.assert_close(found, decoded, rtol=1e-4, atol=1e-5)


def point_model():
    encoder, decoder = vsc.DeltaEncoder(9, 5, (), rectify=True), vsc.NormalDecoder(5, 9, hidden=())
    return vsc.VAE(encoder, decoder, vsc.LaplacePrior(5))


def test_points_have_no_probabilities(tmp_path):
    pytest.importorskip("safetensors", reason="needs the package safetensors: pip install 'vsc-pyro[sae]'")
    model, x = point_model(), torch.randn(20, 9)
    vsc.sae.export(model, tmp_path)
    for either in (model, vsc.sae.load(tmp_path)):
        coder, codes = read(either, x)
        assert not coder.is_probabilistic
        assert torch.equal(coder.score(codes), codes.code.abs())
        assert torch.equal(codes.inclusion, (codes.code != 0).float())
        assert "code not 0" in str(vsc.evaluate_dictionary(either, x))


def test_rounding_of_probabilities_is_cut_off():
    model, x, _ = linear_model()
    _, codes = read(model, x[:4], given(torch.tensor([[-5e-5, 0.3, 1.00005, 0, 1]]).repeat(4, 1), torch.ones(4, 5)))
    assert codes.inclusion[0].tolist() == pytest.approx([0, 0.3, 1, 0, 1])
    assert 0 <= codes.inclusion.min() <= codes.inclusion.max() <= 1


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: nn.Linear(9, 3), "model must be a VAE with a linear decoder or an object with encode, .* got Linear"),
        (lambda: Autoencoder(torch.eye(4)), r"a dictionary of shape \(4, 4\), and a datum has 9 values"),
        (lambda: Autoencoder(torch.full((9, 9), torch.inf)), "the reconstruction of datum 0 is (nan|inf|-inf)"),
        (lambda: vsc.VSC(9, latent_dim=2), "only a linear decoder has a dictionary"),
    ],
)
def test_models_without_a_dictionary_of_the_data(build, message):
    with pytest.raises(ValueError, match=message):
        read(build(), torch.rand(5, 9))


def given(inclusion, mean):
    return lambda x: SimpleNamespace(inclusion=inclusion, mean=mean)


@pytest.mark.parametrize(
    ("posterior", "message"),
    [
        (given(torch.ones(4, 3), torch.ones(4, 5)), r"inclusion of the posterior must have shape \(4, 5\) .* \(4, 3\)"),
        (given(torch.ones(4, 5), torch.ones(1, 5)), r"mean of the posterior must have shape \(4, 5\) .* \(1, 5\)"),
        (given(torch.full((4, 5), 2.0), torch.ones(4, 5)), "must be probabilities, got values from 2 to 2"),
    ],
)
def test_posteriors_of_another_shape_or_without_probabilities(posterior, message):
    model, x, _ = linear_model()
    with pytest.raises(ValueError, match=message):
        read(model, x[:4], posterior)


def test_hard_codes_beside_an_inclusion_are_checked():
    model, x = Autoencoder(torch.eye(3)), torch.ones(4, 3)
    model.inclusion = lambda x: torch.full_like(x, 0.5)
    model.encode = lambda x, code="hard": x if code == "mean" else x[:1]
    with pytest.raises(ValueError, match=r"encode\(x\) must have shape \(4, 3\) .* got \(1, 3\)"):
        read(model, x)


def test_codes_and_reconstructions_of_another_shape():
    model, x = Autoencoder(torch.eye(3)), torch.ones(4, 3)
    model.decode = lambda code: code[:, :2]
    with pytest.raises(ValueError, match=r"decode\(code\) must have shape \(4, 3\) .* got \(4, 2\)"):
        read(model, x)
    model.decode = lambda code: torch.full((4, 3), torch.nan)
    with pytest.raises(ValueError, match="reconstruction"):
        read(model, x)
    model.encode = lambda x: x[:, :2]
    with pytest.raises(ValueError, match=r"encode\(x\) must have shape \(4, 3\) .* got \(4, 2\)"):
        read(model, x)


def test_other_arguments_that_do_not_fit():
    model, x, _ = linear_model()
    with pytest.raises(ValueError, match="the encoder does not take data of shape"):
        read(model, x[:, :5])
    with pytest.raises(ValueError, match="posterior is for a VAE"):
        read(Autoencoder(torch.eye(9)), x, posterior=model.encoder)
    model.decoder = vsc.NormalDecoder(5, 9, hidden=()).network
    model.check_data = lambda x: None
    with pytest.raises(ValueError, match="the decoder, MLP, has no attribute dictionary"):
        read(model, x)
