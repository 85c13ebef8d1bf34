import dataclasses

import pyro.distributions as dist
import pytest
import torch
from test_probes import told
from torch.utils.data import DataLoader

import vsc_pyro as vsc
from vsc_pyro.datasets import Factors
from vsc_pyro.evaluation.disentanglement import _gap

K = 4
KEYS = ("mig", "disentanglement", "completeness", "informativeness")


def made_of_bits(num, seed):
    """K pixels that tell whether a factor is present, then K of noise."""
    generator = torch.Generator().manual_seed(seed)
    presence = torch.rand(num, K, generator=generator) < torch.tensor([0.2, 0.4, 0.5, 0.7])
    noise = torch.randn(num, K, generator=generator)
    return vsc.Dataset(torch.cat([presence, noise], 1), factors=Factors(presence, presence.float(), tuple("abcd")))


TRAIN, TEST = made_of_bits(2000, 0), made_of_bits(2000, 1)
MIXED = torch.tensor([[1.0, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 2


def scores(code):
    model = told(lambda x: dist.Normal(code(x), 1.0), 2 * K)
    return dataclasses.asdict(vsc.disentanglement(model, TRAIN, TEST))


def test_a_code_of_the_factors_has_every_score_one_also_beside_noise():
    assert scores(lambda x: 3 - 2 * x[:, [2, 0, 1, 3]]) == pytest.approx(dict.fromkeys(KEYS, 1.0), abs=0.005)
    assert scores(lambda x: x) == pytest.approx(dict.fromkeys(KEYS, 1.0), abs=0.05)


def test_a_rotated_code_is_informative_and_not_disentangled():
    # An orthogonal matrix: every latent is a sum of all factors, which they tell together.
    found = scores(lambda x: x[:, :K] @ MIXED)
    assert found["informativeness"] > 0.99
    assert max(found["mig"], found["disentanglement"], found["completeness"]) < 0.4


def test_a_code_of_noise_has_no_score():
    found = scores(lambda x: x[:, K:])
    rate = TEST.factors.presence.double().mean(0)
    assert found["informativeness"] == pytest.approx(torch.maximum(rate, 1 - rate).mean().item(), abs=0.05)
    assert max(found["mig"], found["disentanglement"], found["completeness"]) < 0.1
    constant = scores(lambda x: 0 * x)
    assert (constant["mig"], constant["disentanglement"], constant["completeness"]) == (0, 0, 0)


def test_a_factor_in_two_latents_costs_completeness_and_a_latent_of_two_factors_disentanglement():
    twice = scores(lambda x: x[:, [0, 0, 1, 1, 2, 2, 3, 3]])
    assert twice["mig"] == pytest.approx(0, abs=1e-9)
    assert twice["disentanglement"] == pytest.approx(1, abs=0.01)
    # Every factor in two of eight latents alike.
    assert twice["completeness"] == pytest.approx(1 - 1 / 3, abs=0.05)
    pairs = scores(lambda x: torch.stack([x[:, 0] + 2 * x[:, 1], x[:, 2] + 2 * x[:, 3]], 1))
    assert pairs["completeness"] == pytest.approx(1, abs=0.01)
    # Each latent tells of two of four factors alike.
    assert pairs["disentanglement"] == pytest.approx(1 - 1 / 2, abs=0.01)


def test_what_disentanglement_refuses():
    one = told(lambda x: dist.Normal(x[:, :1], 1.0), 2 * K)
    with pytest.raises(ValueError, match="needs two latents and two factors or more, got 1 latents and 4 factors"):
        vsc.disentanglement(one, TRAIN, TEST)
    with pytest.raises(ValueError, match="train must have known factors"):
        vsc.disentanglement(one, vsc.Dataset(TRAIN.images), TEST)
    with pytest.raises(ValueError, match=r"data must be in memory, .* got a DataLoader"):
        vsc.disentanglement(one, DataLoader(TRAIN, 100), TEST)


def test_means_that_vary_by_rounding_alone_have_a_score():
    spread = 1 + torch.finfo(torch.float64).eps * TEST.factors.presence.double().numpy()
    assert _gap(spread, TEST.factors.presence.numpy()) == pytest.approx(1, abs=0.01)
