r"""Sums over data x and their reconstructions :math:`\hat x`, and the measures they make.

* explained variance :math:`1 - E|x - \hat x|^2 / E|x - E x|^2`; the fraction of variance unexplained (FVU) is the rest;
* mean squared error of a dimension, :math:`E|x - \hat x|^2 / d`;
* shrinkage :math:`E[|\hat x| / |x|]`, over data longer than :math:`10^{-6}`;
* relative reconstruction bias :math:`E|\hat x|^2 / E[\hat x^\top x]`, the factor by which :math:`\hat x` is too large:
  divided by it, its squared error is smallest (Rajamanoharan et al., 2024). Below 1, reconstructions are too small.

References
    S. Rajamanoharan, A. Conmy, L. Smith, T. Lieberum, V. Varma, J. Kramár, R. Shah, N. Nanda (2024), Improving
        dictionary learning with gated sparse autoencoders.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

_LEAST_NORM = 1e-6


class ReconstructionFigures(NamedTuple):
    """Measures of reconstructions, see the module's docstring; NaN where a denominator is 0."""

    explained_variance: float
    mse: float
    shrinkage: float
    relative_bias: float


class Reconstruction:
    """Sums over data and their reconstructions, filled batch by batch.

    Args:
        mean: of the data, shape ``(d,)``, float64.
    """

    def __init__(self, mean: Tensor) -> None:
        self._mean = mean
        self._spread = self._error = self._square = self._product = self._ratio = 0.0
        self._num_data = self._num_ratios = 0

    def add(self, x: Tensor, decoded: Tensor) -> None:
        """Count data and their reconstructions, shape ``(B, d)``, float64."""
        self._spread += float((x - self._mean).square().sum())
        self._error += float((x - decoded).square().sum())
        self._square += float(decoded.square().sum())
        self._product += float((x * decoded).sum())
        norm = x.norm(dim=1)
        long = norm > _LEAST_NORM
        self._ratio += float((decoded[long].norm(dim=1) / norm[long]).sum())
        self._num_data += len(x)
        self._num_ratios += int(long.sum())

    def figures(self) -> ReconstructionFigures:
        return ReconstructionFigures(
            explained_variance=1 - _ratio(self._error, self._spread),
            mse=self._error / (self._num_data * len(self._mean)),
            shrinkage=_ratio(self._ratio, self._num_ratios),
            relative_bias=_ratio(self._square, self._product),
        )


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else math.nan
