"""Latents matched to features: by hand, and by scikit-learn."""

import math

import pytest
import torch
from sklearn.metrics import average_precision_score, precision_recall_fscore_support, roc_auc_score
from torch.nn.functional import normalize

from vsc_pyro.evaluation.matching import Detection, match, pairwise_cosines, ranking

AXES = torch.eye(3)


def test_a_permuted_signed_and_stretched_dictionary_is_perfect():
    features = torch.randn(6, 4)
    order = torch.randperm(6)
    atoms = features[order] * torch.tensor([1.0, -2, 0.1, 5, -1, 3]).unsqueeze(1)
    found = match(atoms, features)
    assert found.mcc == pytest.approx(1)
    assert found.uniqueness == 1
    assert torch.equal(found.nearest, order)
    torch.testing.assert_close(found.cosine, torch.ones(6))


def test_one_to_one_and_own_features_by_hand():
    # Both atoms are nearest to the first axis; one to one, the second atom must take the second axis.
    atoms = torch.tensor([[1.0, 0, 0], [4, 3, 0]])
    found = match(atoms, AXES)
    assert found.mcc == pytest.approx((1 + 0.6) / 2)
    assert found.nearest.tolist() == [0, 0]
    assert found.cosine.tolist() == pytest.approx([1, 0.8])
    assert found.uniqueness == 0.5
    # More latents than features: as many pairs as features.
    more = match(torch.cat([AXES, AXES + 0.1]), AXES)
    assert more.mcc == pytest.approx(1)
    assert more.uniqueness == 0.5


def test_pairwise_cosines():
    atoms = torch.tensor([[2.0, 0, 0], [0, 1, 0], [-3, 4, 0]])
    mean, largest = pairwise_cosines(atoms)
    assert mean == pytest.approx((0 + 0.6 + 0.8) / 3)
    assert largest == pytest.approx((0.6 + 0.8 + 0.8) / 3)
    assert all(map(math.isnan, pairwise_cosines(atoms[:1])))
    many = torch.randn(1100, 5)  # in two blocks
    cosines = (normalize(many) @ normalize(many).T).abs().fill_diagonal_(0)
    assert pairwise_cosines(many) == pytest.approx(
        (float(cosines.sum()) / (1100 * 1099), float(cosines.amax(1).mean()))
    )


def test_detection_by_hand():
    on = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 0], [0, 1, 0]]).bool()
    present = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 0, 0], [1, 0, 0]]).bool()
    found = Detection(3)
    found.add(on[:1], present[:1])
    found.add(on[1:], present[1:])
    precision, recall, f1 = found.scores()
    assert precision.tolist() == [1 / 2, 0, 0]
    assert recall.tolist() == pytest.approx([1 / 3, 0, 0])
    assert f1.tolist() == pytest.approx([2 / 5, 0, 0])
    assert found.accuracy(4).tolist() == pytest.approx([1 / 4, 2 / 4, 3 / 4])
    assert found.base_rates(4).tolist() == [3 / 4, 0, 1 / 4]


def test_scores_are_those_of_sklearn():
    gamma = (10 * torch.rand(300, 5)).round() / 10  # with ties
    present = torch.rand(300, 5) < gamma * torch.linspace(0.1, 1, 5)
    detection = Detection(5)
    detection.add(gamma > 0.5, present)
    areas, precisions = ranking(gamma, present)
    for latent in range(5):
        truth, score = present[:, latent].numpy(), gamma[:, latent].numpy()
        *expected, _ = precision_recall_fscore_support(truth, score > 0.5, average="binary")
        assert [float(part[latent]) for part in detection.scores()] == pytest.approx(expected)
        assert float(areas[latent]) == pytest.approx(roc_auc_score(truth, score))
        assert float(precisions[latent]) == pytest.approx(average_precision_score(truth, score))


def test_features_always_or_never_present_have_no_ranks():
    present = torch.tensor([[1, 0, 1], [1, 0, 0]]).bool()
    areas, precisions = ranking(torch.tensor([[0.1, 0.2, 0.3], [0.3, 0.2, 0.1]]), present)
    assert areas.isnan().tolist() == precisions.isnan().tolist() == [True, True, False]
    assert areas[2] == precisions[2] == 1
