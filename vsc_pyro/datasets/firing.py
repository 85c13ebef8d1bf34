r"""Structures of `vsc_pyro.datasets.features`: the features that are on together, with known firing rates.

Rates follow a power law of the rank r, :math:`p_r = \min(c\, r^{-e}, p_{max})`, with c such that the expected number of
features that are on is as asked for.

* ``"independent"``: each feature is on with its rate.
* ``"correlated"``: a Gaussian copula of low rank. Feature f is on if :math:`w_f^\top u + \sqrt{1 - |w_f|^2}\, e_f`, a
  standard normal, is below the normal's quantile of :math:`p_f`. The factors u (8 of them) are shared by all features
  of a datum, the loadings :math:`w_f` have random directions and :math:`|w_f|^2 = 1/2`.
* ``"hierarchical"``: a forest of trees of three levels. A feature has up to four children. A child is on only with its
  parent, and at most one child of a parent is on. If a parent with children is on, one of them is on with probability
  0.8, and it is the r-th with a probability proportional to :math:`r^{-e}`. Roots are independent of one another, and
  their rates follow the power law.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

NUM_FACTORS, SHARED = 8, 0.5
NUM_CHILDREN, NUM_LEVELS, ANY_CHILD = 4, 3, 0.8
_LEAST_SHAPE = 1e-300  # quotients of smaller numbers overflow in float64


class Structure:
    """Presence of features: `rates` and `parent`, shape ``(F,)`` (-1 for none), and a function that draws."""

    rates: np.ndarray
    parent: np.ndarray

    def to(self, device: torch.device) -> Structure:
        """Return a copy that draws on `device`."""
        moved = copy.copy(self)
        vars(moved).update({name: part.to(device) for name, part in vars(self).items() if isinstance(part, Tensor)})
        return moved

    def draw(self, random: Generator, number: int) -> Tensor:
        """Return presence, bool, shape ``(number, F)``, on the device of `random`."""
        raise NotImplementedError


class Independent(Structure):
    """Features that know nothing of one another."""

    def __init__(self, num: int, expected: float, exponent: float, most: float, random: np.random.Generator) -> None:
        self.rates = power_law(np.ones(num), expected, exponent, most)
        self.parent = np.full(num, -1)
        self._thresholds = torch.from_numpy(self.rates).float()

    def draw(self, random: Generator, number: int) -> Tensor:
        return _uniform(random, number, len(self.rates)) < self._thresholds


class Correlated(Structure):
    """Features that share a few normal factors.

    Attributes:
        loadings: of the features on the factors, shape ``(8, F)``; the normals of two features have the correlation
            ``loadings[:, f] @ loadings[:, g]``.
    """

    def __init__(self, num: int, expected: float, exponent: float, most: float, random: np.random.Generator) -> None:
        from scipy.special import ndtri

        self.rates = power_law(np.ones(num), expected, exponent, most)
        self.parent = np.full(num, -1)
        directions = random.standard_normal((num, NUM_FACTORS))
        loadings = SHARED**0.5 * directions / np.linalg.norm(directions, axis=1, keepdims=True)
        self.loadings = torch.from_numpy(loadings.T).float()
        self._quantiles = torch.from_numpy(ndtri(self.rates)).float()

    def draw(self, random: Generator, number: int) -> Tensor:
        options: Any = {"generator": random, "device": random.device, "dtype": torch.float32}
        own, factors = (torch.randn(number, columns, **options) for columns in (len(self.rates), NUM_FACTORS))
        return torch.addmm(own, factors, self.loadings, beta=(1 - SHARED) ** 0.5) < self._quantiles


class Hierarchical(Structure):
    """Features in trees, numbered level by level: first all roots, then their children, then the children of these."""

    def __init__(self, num: int, expected: float, exponent: float, most: float, random: np.random.Generator) -> None:
        self.parent, self._levels = _forest(num)
        low, high = _intervals(self.parent, exponent)
        given_parent = high - low
        # Features that are expected to be on in the tree below each feature, itself included, if it is on.
        size = np.ones(num)
        for feature in range(num - 1, -1, -1):
            if self.parent[feature] >= 0:
                size[self.parent[feature]] += given_parent[feature] * size[feature]
        roots = self._levels[0]
        self.rates = np.empty(num)
        self.rates[roots] = power_law(size[roots], expected, exponent, most)
        for level in self._levels[1:]:
            self.rates[level] = self.rates[self.parent[level]] * given_parent[level]
        self._thresholds = torch.from_numpy(self.rates[roots]).float()
        self._low, self._high = torch.from_numpy(low), torch.from_numpy(high)
        self._above = torch.from_numpy(self.parent)

    def draw(self, random: Generator, number: int) -> Tensor:
        on = torch.empty(number, len(self.rates), dtype=torch.bool, device=random.device)
        roots, *below = self._levels
        on[:, roots] = _uniform(random, number, len(self._thresholds)) < self._thresholds
        for level in below:
            above, first, last = self._above[level], int(self.parent[level][0]), int(self.parent[level][-1])
            # One number for each parent makes its children exclude one another.
            chosen = _uniform(random, number, last - first + 1)[:, above - first]
            on[:, level] = on[:, above] & (chosen >= self._low[level]) & (chosen < self._high[level])
        return on


def _uniform(random: Generator, *shape: int) -> Tensor:
    return torch.rand(shape, generator=random, device=random.device, dtype=torch.float32)


def power_law(weights: np.ndarray, expected: float, exponent: float, most: float) -> np.ndarray:
    """Return rates :math:`min(c r^{-e}, most)` of ranks 1, 2, ..., whose weighted sum is `expected`.

    Raises:
        ValueError: more features are to be on than rates of at most `most` allow, or powers that underflow.
    """
    limit = most * weights.sum()
    if expected > limit:
        raise ValueError(
            f"expected_active={expected:g} is more than the {limit:.4g} features that are on at rates of at most "
            f"max_rate={most:g}; take a smaller expected_active or more features"
        )
    shape = np.arange(1, len(weights) + 1) ** -float(exponent)
    if shape[-1] < _LEAST_SHAPE:
        raise ValueError(
            f"exponent={exponent:g} makes the rate of the last of {len(weights)} ranks vanish; take a smaller exponent"
        )
    # The first k rates are at the maximum; k is the least number that leaves the others below it.
    for at_most in range(len(weights)):
        rest = weights[at_most:] @ shape[at_most:]
        factor = (expected - most * weights[:at_most].sum()) / rest
        if factor * shape[at_most] <= most:
            break
    return np.minimum(factor * shape, most)


def _forest(num: int) -> tuple[np.ndarray, list[slice]]:
    """Return the parent of each feature, and the levels; a last level that is not full has parents with fewer."""
    num_roots = -(-num // sum(NUM_CHILDREN**level for level in range(NUM_LEVELS)))
    parent, levels = np.full(num, -1), [slice(0, num_roots)]
    while (start := levels[-1].stop) < num:
        above = levels[-1]
        size = min(num - start, NUM_CHILDREN * (above.stop - above.start))
        parent[start : start + size] = above.start + np.arange(size) // NUM_CHILDREN
        levels.append(slice(start, start + size))
    return parent, levels


def _intervals(parent: np.ndarray, exponent: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of the part of [0, 1) that stands for each child of a parent; roots have none."""
    low, high = np.zeros(len(parent), dtype=np.float32), np.zeros(len(parent), dtype=np.float32)
    for above in np.unique(parent[parent >= 0]):
        children = np.flatnonzero(parent == above)
        shares = np.arange(1, len(children) + 1) ** -float(exponent)
        high[children] = ends = (ANY_CHILD * shares.cumsum() / shares.sum()).astype(np.float32)
        low[children] = np.append(np.float32(0), ends[:-1])
    return low, high


STRUCTURES: dict[str, Callable[[int, float, float, float, np.random.Generator], Structure]] = {
    "independent": Independent,
    "correlated": Correlated,
    "hierarchical": Hierarchical,
}
