"""Bins of probabilities, filled in pieces."""

import pytest
import torch
from sklearn.metrics import brier_score_loss

from vsc_pyro.evaluation.reliability import Reliability


def test_by_hand():
    found = Reliability(2)
    found.add(torch.tensor([[0.1, 0.3], [0.9, 0.7]]), torch.tensor([[False, True], [True, True]]))
    assert found.ece == pytest.approx((abs(0.4 - 1) + abs(1.6 - 2)) / 4)
    assert found.brier == pytest.approx((0.01 + 0.49 + 0.01 + 0.09) / 4)
    bins = found.bins()
    assert bins["bin_inclusion"].tolist() == pytest.approx([0.2, 0.8])
    assert bins["bin_frequency"].tolist() == [0.5, 1]
    assert bins["bin_count"].tolist() == [2, 2]


def test_ends_empty_bins_and_pieces():
    probability, happened = torch.rand(1000), torch.rand(1000) < 0.3
    probability[:2] = torch.tensor([0.0, 1.0])
    whole, pieces = Reliability(10), Reliability(10)
    whole.add(probability, happened)
    for rows in torch.arange(1000).split(77):
        pieces.add(probability[rows], happened[rows])
    assert pieces.ece == pytest.approx(whole.ece)
    assert pieces.brier == pytest.approx(brier_score_loss(happened, probability))
    only_ends = Reliability(3)
    only_ends.add(probability[:2], torch.tensor([False, True]))
    assert (only_ends.ece, only_ends.brier) == (0, 0)
    assert only_ends.bins()["bin_frequency"].isnan().tolist() == [False, True, False]
