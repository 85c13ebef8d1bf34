import pytest
import torch
from torch.distributions import Normal

import vsc_pyro as vsc


def test_atoms_keep_their_norm_while_they_are_trained():
    torch.manual_seed(0)
    decoder = vsc.DictionaryDecoder(7, (2, 3), atom_norm=1.5)
    decoder.prepare(3 + 2 * torch.randn(1000, 2, 3))
    unit = float(decoder.unit)
    assert unit == pytest.approx(2, rel=0.05)
    optimizer = torch.optim.Adam(decoder.parameters(), lr=0.1)
    before = decoder.dictionary.detach()
    for _ in range(3):
        decoder(torch.randn(20, 7)).mean.square().sum().backward()
        optimizer.step()
        norms = decoder.dictionary.flatten(1).norm(dim=1)
        torch.testing.assert_close(norms, torch.full_like(norms, 1.5 * unit))
    assert (decoder.dictionary - before).norm() > 0.1


def test_the_likelihood_is_the_sum_of_atoms_and_bias():
    decoder = vsc.DictionaryDecoder(7, (2, 3), atom_norm=1.5, scale=0.3)
    z, x = torch.randn(4, 5, 7), torch.randn(4, 5, 2, 3)
    mean = torch.einsum("abj,jhw->abhw", z, decoder.dictionary) + decoder.own_layer.bias.reshape(2, 3)
    likelihood = decoder(z)
    torch.testing.assert_close(likelihood.log_prob(x), Normal(mean, 0.3).log_prob(x).sum((-1, -2)))
    torch.testing.assert_close(decoder.pixels(z), mean)
    assert decoder.is_linear
    assert likelihood.code is z


def test_products_in_bfloat16_round_the_code_and_not_the_bias():
    torch.manual_seed(0)
    decoder = vsc.DictionaryDecoder(50, 20)
    with torch.no_grad():
        decoder.own_layer.bias.fill_(1000.1)
    z = torch.randn(30, 50)
    exact = decoder(z).mean - 1000.1
    decoder.network_precision = "bfloat16"
    rounded = decoder(z).mean
    assert rounded.dtype == torch.float32
    error = (rounded - 1000.1 - exact).abs().max() / exact.abs().max()
    assert 1e-5 < error < 0.02  # eight bits


def test_bad_norms():
    with pytest.raises(ValueError, match="atom_norm must be a finite number above 0, got 0"):
        vsc.DictionaryDecoder(7, 6, atom_norm=0)


def test_noise_may_be_a_fixed_share_of_the_spread_of_the_data():
    decoder = vsc.DictionaryDecoder(7, 6, noise=0.3)
    x = 5 + 2 * torch.randn(1000, 6)
    decoder.prepare(x)
    spread = (x - x.mean(0)).square().mean().sqrt()
    torch.testing.assert_close(decoder(torch.zeros(1, 7)).scale.flatten()[0], 0.3 * spread)
    assert not any("amplitude" in name for name, _ in decoder.named_parameters())
    assert "noise=0.3, variance='fixed'" in repr(decoder)  # a resumed run must have the same


@pytest.mark.parametrize("noise", [0, 1.0, -0.5, float("nan"), "data", 0.999999999, 1e-50, 1e-30])
def test_noise_outside_its_range(noise):
    with pytest.raises(ValueError, match="noise must"):
        vsc.DictionaryDecoder(7, 6, noise=noise)


@pytest.mark.parametrize(("unit", "fits"), [(1e-20, False), (1e-15, True), (1e18, True), (1e19, False), (1e25, False)])
def test_units_whose_squares_are_no_numbers(unit, fits):
    x = unit * torch.randn(50, 8)
    model = vsc.SparseDictionary(8, 16, expected_active=2)
    if not fits:
        with pytest.raises(
            ValueError, match=r"float32 does not hold the squares of .*; (divide the data by it|rescale)$"
        ):
            vsc.fit(model, x, epochs=1, progress=False)
        return
    vsc.fit(model, x, epochs=1, progress=False)
    assert 0.5 < model.decoder.scale.item() / unit < 1


def test_two_noises():
    with pytest.raises(ValueError, match=r"noise=0.5 and scale=2.0 both set the noise; pass one of the two"):
        vsc.DictionaryDecoder(7, 6, scale=2.0, noise=0.5)
