"""Counts of stated probabilities and of events in bins: expected calibration error, Brier score, reliability."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Reliability:
    """Bins of equal width of probabilities, filled batch by batch.

    Args:
        bins: their number.

    Attributes:
        count: number of probabilities in each bin, shape ``(bins,)``, float64.
    """

    def __init__(self, bins: int) -> None:
        self.count, self._predicted, self._observed = torch.zeros(3, bins, dtype=torch.float64)
        self._squares = 0.0

    def add(self, probability: Tensor, happened: Tensor) -> None:
        """Count probabilities and the events that they are of, tensors of one shape on the CPU."""
        probability, happened = probability.flatten().double(), happened.flatten().double()
        index = (probability * len(self.count)).long().clamp(max=len(self.count) - 1)
        for total, value in (
            (self.count, torch.ones_like(happened)),
            (self._predicted, probability),
            (self._observed, happened),
        ):
            total.index_add_(0, index, value)
        self._squares += float((probability - happened).square().sum())

    @property
    def ece(self) -> float:
        """Distance between mean probability and share of events, averaged over bins by their counts."""
        return float((self._predicted - self._observed).abs().sum() / self.count.sum())

    @property
    def brier(self) -> float:
        """Mean squared difference between probability and event."""
        return self._squares / float(self.count.sum())

    def bins(self) -> dict[str, Any]:
        """Return mean probability, share of events, and count of each bin; the first two are NaN in empty bins."""
        return {
            "bin_inclusion": self._predicted / self.count,
            "bin_frequency": self._observed / self.count,
            "bin_count": self.count.long(),
        }
