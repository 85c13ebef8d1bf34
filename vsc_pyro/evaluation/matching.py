r"""Latents and the true features: decoder cosines, matching, and how well a latent detects its feature.

With :math:`c_{jf} = |\cos(d_j, t_f)|` between the atom of latent j and the direction of the true feature f,

* the *decoder MCC* (mean correlation coefficient) is the mean of c over the one-to-one matching with the largest sum
  (Hungarian method; X. Song et al., 2025), of :math:`\min(J, F)` pairs;
* each latent's *own feature* is the one with the largest c. One feature may be the own feature of several latents. The
  *uniqueness* is the number of different own features, divided by J.

A latent detects its own feature. Precision, recall and :math:`F_1` count the data in which it is on and those in which
the feature is present; each is 0 where its denominator is 0, so a latent that is never on counts 0. Average precision
and AUROC rank the data by the probability that the latent is on, or by the absolute value of a deterministic code. They
are undefined for a feature that is present in all or in none of the data.

References
    X. Song et al. (2025), Position: Mechanistic interpretability should prioritize feature consistency in SAEs.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

_ROWS_AT_ONCE = 1024


@dataclasses.dataclass(frozen=True, eq=False)
class Matching:
    """Latents matched to true features by their directions.

    Attributes:
        mcc, uniqueness: see the module's docstring.
        nearest: own feature of each latent, shape ``(J,)``.
        cosine: absolute cosine with it, shape ``(J,)``.
    """

    mcc: float
    uniqueness: float
    nearest: Tensor
    cosine: Tensor


def unit_rows(matrix: Tensor) -> Tensor:
    """Return rows ``(J, d)`` of any length scaled to norm 1; rows of zeros are unchanged."""
    largest = matrix.abs().amax(1, keepdim=True)
    return normalize(matrix / torch.where(largest > 0, largest, torch.ones_like(largest)))  # squares may underflow


def match(atoms: Tensor, features: Tensor) -> Matching:
    """Match atoms ``(J, d)`` to directions of features ``(F, d)``, of any lengths and signs."""
    from scipy.optimize import linear_sum_assignment

    cosines = (unit_rows(atoms) @ unit_rows(features).T).abs().clamp(max=1)
    pairs = linear_sum_assignment(cosines.float().numpy(), maximize=True)
    cosine, nearest = cosines.max(1)
    return Matching(float(cosines[pairs].double().mean()), len(nearest.unique()) / len(atoms), nearest, cosine)


def pairwise_cosines(atoms: Tensor) -> tuple[float, float]:
    """Return the mean absolute cosine of pairs of atoms ``(J, d)``, and the mean over atoms of the largest one.

    Both are NaN for a single atom.
    """
    if len(atoms) < 2:
        return math.nan, math.nan
    atoms, total, largest = unit_rows(atoms), 0.0, 0.0
    for first in range(0, len(atoms), _ROWS_AT_ONCE):
        cosines = (atoms[first : first + _ROWS_AT_ONCE] @ atoms.T).abs()
        cosines[torch.arange(len(cosines)), first + torch.arange(len(cosines))] = 0
        total += float(cosines.sum(dtype=torch.float64))
        largest += float(cosines.amax(1).sum(dtype=torch.float64))
    return total / (len(atoms) * (len(atoms) - 1)), largest / len(atoms)


class Detection:
    """Counts of data in which latents are on and their features present, filled batch by batch."""

    def __init__(self, num_latents: int) -> None:
        self._both, self._on, self._present = torch.zeros(3, num_latents, dtype=torch.float64)

    def add(self, on: Tensor, present: Tensor) -> None:
        """Count latents that are on and own features that are present, bool, shape ``(B, J)``."""
        for total, which in ((self._both, on & present), (self._on, on), (self._present, present)):
            total += which.sum(0)

    def scores(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return precision, recall and F1 of each latent, shape ``(J,)``."""
        denominators = (self._on, self._present, (self._on + self._present) / 2)
        precision, recall, f1 = (self._both / denominator.clamp(min=0.5) for denominator in denominators)
        return precision, recall, f1

    def accuracy(self, num_data: int) -> Tensor:
        """Return the share of data in which each latent is on if and only if its feature is present, shape ``(J,)``."""
        return 1 - (self._on + self._present - 2 * self._both) / num_data

    def base_rates(self, num_data: int) -> Tensor:
        """Return the share of data in which each latent's feature is present, shape ``(J,)``."""
        return self._present / num_data


def ranking(scores: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return AUROC and average precision of each latent, NaN for features that are always or never present.

    The average precision is the mean, over data in which the feature is present, of the precision among all data with
    at least their score. Tied data enter together.

    Args:
        scores: of data and latents, shape ``(N, J)``.
        present: presence of each latent's feature, bool, shape ``(N, J)``.
    """
    areas, precisions = torch.full((2, scores.shape[1]), torch.nan, dtype=torch.float64)
    for latent, (score, is_there) in enumerate(zip(scores.T.float().numpy(), present.T.numpy(), strict=True)):
        own = np.sort(score[is_there])
        if 0 < len(own) < len(score):
            ordered = np.sort(score)
            below, up_to = (np.searchsorted(ordered, own, side) for side in ("left", "right"))
            ranks = (below + up_to + 1) / 2
            pairs = len(own) * (len(score) - len(own))
            areas[latent] = (ranks.sum() - len(own) * (len(own) + 1) / 2) / pairs
            hits = len(own) - np.searchsorted(own, own)
            precisions[latent] = (hits / (len(score) - below)).mean()
    return areas, precisions
