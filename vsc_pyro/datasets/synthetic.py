r"""Sparse sums of known parts: the smallest tasks on which a sparse code can be right or wrong.

Both are linear, :math:`x = D s + \epsilon`, with a fixed dictionary D of known pictures, sparse s and Gaussian noise
:math:`\epsilon`. `Dataset.factors` holds s. Pixels are real numbers, not grey levels.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from vsc_pyro._arguments import choice, natural_int, positive_float, positive_int
from vsc_pyro.datasets.dataset import Dataset, Factors, Split

TEMPLATES = (
    *("top left", "top right", "bottom left", "bottom right"),
    *("horizontal", "vertical", "falling", "rising", "ring", "centre"),
)
PATTERNS = ("corner block", "bottom row", "right column", "cross", "diagonal")
# Values of a source that is on; both have mean 0 and variance 1.
SLABS = {
    "normal": lambda random, shape: random.standard_normal(shape),
    "laplace": lambda random, shape: random.laplace(0.0, 0.5**0.5, shape),
}


def template_images() -> Tensor:
    r"""The ten templates of `templates`, shape ``(10, 10, 10)``, each smooth and with a largest pixel near 1.

    In coordinates u (right) and v (down) from -1 to 1, each is :math:`\exp(-d^2 / 2w^2)` with a distance d: from the
    points (±0.6, ±0.6) (w = 0.3); from the horizontal axis, the vertical axis and the two diagonals (w = 0.2); from a
    circle of radius 0.7 (w = 0.15); and from the centre (w = 0.3). The order is that of `TEMPLATES`.
    """
    v, u = np.meshgrid(np.linspace(-1, 1, 10), np.linspace(-1, 1, 10), indexing="ij")
    corners = [(np.hypot(u - a, v - b), 0.3) for b in (-0.6, 0.6) for a in (-0.6, 0.6)]
    lines = [(v, 0.2), (u, 0.2), ((u - v) / 2**0.5, 0.2), ((u + v) / 2**0.5, 0.2)]
    centred = [(np.hypot(u, v) - 0.7, 0.15), (np.hypot(u, v), 0.3)]
    images = [np.exp(-(distance**2) / (2 * width**2)) for distance, width in corners + lines + centred]
    return torch.tensor(np.stack(images), dtype=torch.float32)


def templates(num_train: int = 10_000, num_test: int = 2_000, noise: float = 0.1, seed: int = 0) -> Split:
    r"""Images of 10x10 pixels, each the weighted sum of exactly two of ten templates, with Gaussian noise.

    .. math:: x = w_i T_i + w_j T_j + \epsilon, \quad w \sim U(0.5, 1.5), \quad \epsilon \sim N(0, \mathrm{noise}^2 I)

    with the pair i, j drawn uniformly from all 45. The templates :math:`T` are those of `template_images`.

    Args:
        num_train, num_test: number of images. The draws of one part do not depend on the size of the other.
        noise: standard deviation of the noise in every pixel.
        seed: seed of all draws.

    Shapes:
        Images are ``(N, 1, 10, 10)``. `factors` has ten columns, named in `TEMPLATES`, with the weights w as values.

    Raises:
        ValueError: a number out of range.

    >>> import vsc_pyro as vsc
    >>> train, test = vsc.datasets.templates(num_train=10, num_test=5)
    >>> train.images.shape, train.factors.presence.sum(1).unique()
    (torch.Size([10, 1, 10, 10]), tensor([2]))
    """

    def sources(number: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        presence = random.random((number, len(TEMPLATES))).argsort(1).argsort(1) < 2
        return presence, random.uniform(0.5, 1.5, presence.shape)

    dictionary = template_images().flatten(1).T
    return _sparse_sums("templates", TEMPLATES, dictionary, sources, noise, num_train, num_test, seed)


def linear_5x5_dictionary() -> Tensor:
    """The dictionary D of `linear_5x5`, shape ``(25, 5)``, columns of unit norm.

    As pictures of 5x5 pixels, in the order of `PATTERNS`, the columns are constant at the # and zero elsewhere::

        ##...    .....    ....#    .....    .....
        ##...    .....    ....#    ..#..    .....
        .....    .....    ....#    .###.    ..#..
        .....    .....    ....#    ..#..    .#...
        .....    #####    ....#    .....    #....

    They are linearly independent, and some overlap in a pixel.
    """
    pictures = torch.zeros(5, 5, 5)
    pictures[0, :2, :2] = 1
    pictures[1, 4] = 1
    pictures[2, :, 4] = 1
    pictures[3, [1, 2, 2, 2, 3], [2, 1, 2, 3, 2]] = 1
    pictures[4, [4, 3, 2], [0, 1, 2]] = 1
    return torch.nn.functional.normalize(pictures.flatten(1)).T


def linear_5x5(
    num_train: int = 10_000,
    num_test: int = 2_000,
    inclusion: float = 0.3,
    slab: str = "normal",
    noise: float = 0.1,
    seed: int = 0,
) -> Split:
    r"""Images of 5x5 pixels, sums of five known patterns that are switched on at random, with Gaussian noise.

    .. math:: x = D s + \epsilon, \quad s_k \sim \alpha\, p_{\mathrm{slab}} + (1 - \alpha)\, \delta_0
        \text{ independently}, \quad \epsilon \sim N(0, \mathrm{noise}^2 I)

    with D of `linear_5x5_dictionary`. This is the model of a linear decoder under a spike-and-slab prior, so its exact
    posterior and evidence are sums over the 32 patterns of presence (of Gaussian densities, for the normal slab).

    Args:
        num_train, num_test: number of images. The draws of one part do not depend on the size of the other.
        inclusion: :math:`\alpha`, the probability that a source is on.
        slab: distribution of a source that is on, with mean 0 and variance 1: ``"normal"`` or ``"laplace"``.
        noise: standard deviation of the noise in every pixel.
        seed: seed of all draws.

    Shapes:
        Images are ``(N, 1, 5, 5)``. `factors` has five columns, named in `PATTERNS`, with the sources s as values.

    Raises:
        ValueError: a number out of range, or an unknown slab (the message lists the known ones).

    >>> import vsc_pyro as vsc
    >>> train, test = vsc.datasets.linear_5x5(num_train=10, num_test=5, slab="laplace")
    >>> train.images.shape, train.factors.names[0]
    (torch.Size([10, 1, 5, 5]), 'corner block')
    """
    draw = choice("slab", slab, SLABS)
    if not 0 < positive_float("inclusion", inclusion) <= 1:
        raise ValueError(f"inclusion must be above 0 and at most 1, got {inclusion!r}")

    def sources(number: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        presence = random.random((number, len(PATTERNS))) < inclusion
        return presence, draw(random, presence.shape)

    return _sparse_sums("linear-5x5", PATTERNS, linear_5x5_dictionary(), sources, noise, num_train, num_test, seed)


def _sparse_sums(
    name: str,
    names: tuple[str, ...],
    dictionary: Tensor,
    sources: Callable[[int, np.random.Generator], tuple[np.ndarray, np.ndarray]],
    noise: float,
    num_train: int,
    num_test: int,
    seed: int,
) -> Split:
    noise, seed = positive_float("noise", noise), natural_int("seed", seed)
    side = math.isqrt(len(dictionary))
    parts = []
    for part, number in enumerate((positive_int("num_train", num_train), positive_int("num_test", num_test))):
        random = np.random.default_rng([seed, part])
        presence, values = sources(number, random)
        values = np.where(presence, values, 0.0)
        images = values @ dictionary.double().numpy().T + noise * random.standard_normal((number, len(dictionary)))
        factors = Factors(torch.tensor(presence), torch.tensor(values, dtype=torch.float32), names)
        images = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, side, side)
        parts.append(Dataset(images, name=name, factors=factors))
    return Split(*parts)
