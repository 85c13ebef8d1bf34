"""Measures of reconstructions, by hand."""

import math

import pytest
import torch

from vsc_pyro.evaluation.reconstruction import Reconstruction


def figures(x, decoded, pieces=1):
    found = Reconstruction(x.mean(0))
    for rows in torch.arange(len(x)).chunk(pieces):
        found.add(x[rows], decoded[rows])
    return found.figures()


def test_by_hand():
    x = torch.tensor([[3.0, 4], [-3, 0], [0, 0], [0, 0]]).double()
    found = figures(x, torch.tensor([[3.0, 0], [-1, 0], [0, 1], [0, 0]]).double(), pieces=3)
    assert found.mse == pytest.approx((16 + 4 + 1) / 8)
    assert found.explained_variance == pytest.approx(1 - 21 / (9 + 9 + 9 + 3))
    assert found.shrinkage == pytest.approx((3 / 5 + 1 / 3) / 2)  # data of norm 0 have none
    assert found.relative_bias == pytest.approx((9 + 1 + 1) / (9 + 3))


def test_a_scaled_copy_has_its_factor_and_one_without_scale_has_none():
    x = torch.randn(50, 3).double()
    found = figures(x, 0.8 * x)
    assert found.shrinkage == pytest.approx(0.8)
    assert found.relative_bias == pytest.approx(0.8)
    assert found.explained_variance < 1
    assert figures(x, x) == pytest.approx((1, 0, 1, 1))
    nothing = figures(x, 0 * x)
    assert math.isnan(nothing.relative_bias)
    assert nothing.shrinkage == 0


def test_the_bias_is_the_best_divisor():
    x, decoded = torch.randn(200, 4).double(), torch.randn(200, 4).double() + 1
    x = x + decoded
    best = figures(x, decoded).relative_bias
    errors = [float((x - decoded / (best * factor)).square().sum()) for factor in (0.99, 1, 1.01)]
    assert errors[1] == min(errors)


def test_data_that_do_not_vary_have_no_variance_to_explain():
    x = torch.ones(4, 2).double()
    assert math.isnan(figures(x, x).explained_variance)
