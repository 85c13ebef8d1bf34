r"""`features`: an endless stream of sparse sums of known features, as embeddings and activations are thought to be.

.. math:: x = b + \sum_f s_f\, a_f\, d_f + \epsilon, \qquad s_f \in \{0, 1\}, \quad a_f > 0, \quad
    \epsilon \sim N(0, \mathrm{noise}^2 I)

* Directions :math:`d_f` are unit vectors in fewer dimensions than there are features. Random ones take 25 gradient
  steps on the sum of their squared cosines, and return to unit length after each. This sum has the minimum
  :math:`F (F - d) / d` for :math:`F \ge d` features (Benedetto & Fickus, 2003), and 0 otherwise, where the directions
  are orthogonal. The largest cosines hardly change.
* Presence s: see `vsc_pyro.datasets.firing` for the rates and for the three structures.
* Magnitudes are absolute values of normals, :math:`a_f = |N(m_f, t_f^2)|`, with :math:`m_f \sim U(1, 1.5)` and
  :math:`t_f \sim U(0.2, 0.5)`, so that a feature that is on has a value above 0 and some values are small.
* The bias b has a random direction and length 1.

References
    J. J. Benedetto, M. Fickus (2003), Finite normalized tight frames.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, normalize

from vsc_pyro._arguments import choice, float_from_zero, natural_int, positive_float, positive_int
from vsc_pyro._devices import resolve_device
from vsc_pyro.datasets.dataset import Dataset, Factors
from vsc_pyro.datasets.firing import STRUCTURES, Structure

_STEPS, _STEP = 25, 0.25
_MEANS, _DEVIATIONS = (1.0, 1.5), (0.2, 0.5)
_ROWS_AT_ONCE = 1024
_WORLD, _STREAM, _SAMPLE = range(3)  # separate random numbers
_CPU = torch.device("cpu")


class Magnitudes(NamedTuple):
    """Means m and standard deviations t, shape ``(F,)``, of the normals whose absolute values are the magnitudes."""

    mean: Tensor
    deviation: Tensor


@dataclasses.dataclass(eq=False, repr=False)
class FeatureWorld:
    """Endless data of known features; the result of `features`.

    Iterating yields tensors of shape ``(batch_size, d)``, float32, on `device`. Batch t depends on the seed, on t and
    on the kind of device only, so the stream can be read again from its start, and from any step (`start_at`).

    Attributes:
        dictionary: directions of the features, unit rows, shape ``(F, d)``.
        bias: shape ``(d,)``.
        rates: probability that each feature is on, shape ``(F,)``, float64.
        magnitudes: `Magnitudes` of the features that are on.
        parent: index of each feature's parent, shape ``(F,)``, int64; -1 for features without one.
        noise: standard deviation of the noise in each dimension.
        batch_size, seed: of the stream.
        first_step: number of the batch that iterating begins with.
        device: of the stream; all other tensors are on the CPU.
    """

    dictionary: Tensor
    bias: Tensor
    rates: Tensor
    magnitudes: Magnitudes
    parent: Tensor
    noise: float
    batch_size: int
    seed: int
    _structure: Structure
    first_step: int = 0
    device: torch.device = _CPU

    def __repr__(self) -> str:
        features, dim = self.dictionary.shape
        return f"FeatureWorld({features} features, {dim} dimensions, batch_size={self.batch_size}, seed={self.seed})"

    def start_at(self, step: int) -> FeatureWorld:
        """Return the same world, whose iterating begins with batch number `step`, counted from 0."""
        return dataclasses.replace(self, first_step=natural_int("step", step))

    def __iter__(self) -> Iterator[Tensor]:
        here = self._on(self.device)
        for step in itertools.count(self.first_step):
            yield here._draw(_generator(self.device, self.seed, _STREAM, step), self.batch_size)[0]

    def sample(self, n: int, seed: int = 0) -> Dataset:
        """Return n data with their features as `Dataset.factors`, from other random numbers than the stream's.

        Args:
            n: number of data. A larger n begins with the same data, up to a multiple of 1,024.
            seed: of the data.
        """
        n, random = positive_int("n", n), _generator(_CPU, self.seed, _SAMPLE, natural_int("seed", seed))
        parts = [self._draw(random, min(_ROWS_AT_ONCE, n - first)) for first in range(0, n, _ROWS_AT_ONCE)]
        values = torch.zeros(n, len(self.rates), dtype=torch.float32)
        for first, (_, rows, columns, magnitudes) in zip(range(0, n, _ROWS_AT_ONCE), parts, strict=True):
            values[first + rows, columns] = magnitudes
        names = tuple(f"feature {feature}" for feature in range(len(self.rates)))
        factors = Factors(values > 0, values, names)
        return Dataset(torch.cat([part[0] for part in parts]), name="features", factors=factors)

    def _on(self, device: torch.device) -> FeatureWorld:
        return dataclasses.replace(
            self,
            dictionary=self.dictionary.to(device),
            bias=self.bias.to(device),
            magnitudes=Magnitudes(*(part.to(device) for part in self.magnitudes)),
            _structure=self._structure.to(device),
        )

    def _draw(self, random: torch.Generator, number: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return data ``(number, d)``, and rows, columns and magnitudes of the features that are on."""
        rows, columns = self._structure.draw(random, number).nonzero(as_tuple=True)
        starts = torch.searchsorted(rows, torch.arange(number, device=rows.device))
        options: Any = {"generator": random, "device": rows.device, "dtype": torch.float32}
        normal = torch.randn(len(columns), **options)
        magnitudes = (self.magnitudes.mean[columns] + self.magnitudes.deviation[columns] * normal).abs()
        x = embedding_bag(columns, self.dictionary, starts, mode="sum", per_sample_weights=magnitudes)
        noise = torch.randn(x.shape, **options)
        return x.add_(self.bias).add_(noise, alpha=self.noise), rows, columns, magnitudes


def features(
    num_features: int,
    dim: int,
    *,
    expected_active: float = 5.0,
    structure: str = "independent",
    noise: float = 0.05,
    exponent: float = 0.5,
    max_rate: float = 0.5,
    batch_size: int = 1024,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> FeatureWorld:
    r"""Return an endless stream of data made of known features, to train and to test dictionaries on.

    See the module's docstring for the distribution of data: :math:`x = b + \sum_f s_f a_f d_f + \epsilon`.

    Args:
        num_features: number F of features.
        dim: number d of dimensions of a datum.
        expected_active: expected number of features that are on in a datum.
        structure: ``"independent"``; ``"correlated"`` by a Gaussian copula of rank 8; ``"hierarchical"``, trees of
            three levels in which a child is on only with its parent, and at most one child of a parent is on.
        noise: standard deviation of the noise in each dimension; 0 for none.
        exponent: e of the firing rates, :math:`p_r \propto r^{-e}`.
        max_rate: no feature is on more often.
        batch_size: number of data in a batch of the stream.
        seed: of directions, magnitudes and structure, and of the stream.
        device: device that the stream is drawn on, such as ``"cuda"``. The features do not depend on it.

    Returns:
        A `FeatureWorld`: an iterable of tensors ``(batch_size, d)`` whose method `sample` returns a `Dataset` with
        the features of each datum.

    Raises:
        ValueError: a number out of range, an unknown structure (the message lists the known ones), more expected
            features than rates of at most `max_rate` allow, or a device that this machine does not have.

    >>> import vsc_pyro as vsc
    >>> world = vsc.datasets.features(64, 16, expected_active=3, structure="hierarchical", batch_size=10)
    >>> next(iter(world)).shape, round(float(world.rates.sum()), 4)
    (torch.Size([10, 16]), 3.0)
    >>> test = world.sample(100, seed=1)
    >>> test.images.shape, test.factors.presence.shape
    (torch.Size([100, 16]), torch.Size([100, 64]))
    """
    num, dim = positive_int("num_features", num_features), positive_int("dim", dim)
    batch_size, seed = positive_int("batch_size", batch_size), natural_int("seed", seed)
    expected, max_rate = positive_float("expected_active", expected_active), positive_float("max_rate", max_rate)
    noise, exponent = float_from_zero("noise", noise), float_from_zero("exponent", exponent)
    if max_rate > 1:
        raise ValueError(f"max_rate is a probability of at most 1, got {max_rate!r}")
    build, device = choice("structure", structure, STRUCTURES), resolve_device(device)
    random = np.random.Generator(np.random.SFC64((seed, _WORLD, 0)))
    directions = _spread(torch.from_numpy(random.standard_normal((num, dim), dtype=np.float32)))
    bias = normalize(torch.from_numpy(random.standard_normal(dim, dtype=np.float32)), dim=0)
    mean, deviation = (torch.from_numpy(random.uniform(*ends, num)).float() for ends in (_MEANS, _DEVIATIONS))
    found = build(num, expected, exponent, max_rate, random)
    rates, parent = torch.from_numpy(found.rates), torch.from_numpy(found.parent)
    return FeatureWorld(
        directions,
        bias,
        rates,
        Magnitudes(mean, deviation),
        parent,
        float(noise),
        batch_size,
        seed,
        found,
        device=device,
    )


def _generator(device: torch.device, *key: int) -> torch.Generator:
    return torch.Generator(device).manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]))


def _spread(vectors: Tensor) -> Tensor:
    """Return unit vectors ``(F, d)`` of smaller squared cosines than these directions have."""
    vectors = normalize(vectors)
    step = _STEP / max(1.0, len(vectors) / vectors.shape[1])
    for _ in range(_STEPS):
        vectors = normalize(vectors - step * vectors @ (vectors.T @ vectors))
    return vectors
