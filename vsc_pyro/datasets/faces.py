r"""Smiley: drawn faces of 18 parts, each present or absent, each with one continuous attribute.

The data follow the published description of such a set (32x32 binary faces, 18 known factors in 4 groups, every part
present with probability 1/2, each with a continuous attribute). The drawing is our own, so results are comparable only
among runs on these faces. The factors, named ``group/part``:

=========  ==================  ======================================================
group      part                attribute, from -1 to 1
=========  ==================  ======================================================
hat        bobble              position, from left to right
hat        crown               lean, from left to right
hat        brim                width, from narrow to wide
hat        feather             tilt, from upright to leaning out
eyes       left brow           tilt, from outer end up to inner end up
eyes       right brow          tilt, likewise
eyes       left eye            opening, from shut to round
eyes       right eye           opening, likewise
mouth      nose                width, from narrow to wide
mouth      left cheek          height, from low to high
mouth      right cheek         height, likewise
mouth      moustache           width, from narrow to wide
mouth      mouth               curvature, from a frown to a smile
neck       left shoulder       slope, from square to falling
neck       right shoulder      slope, likewise
neck       left wing           height of the bow tie's wing, from flat to full
neck       right wing          height, likewise
neck       knot                size of the bow tie's knot
=========  ==================  ======================================================

("Left" and "right" are the viewer's.) The outline of the head is in every image. Every part is drawn in its own
rectangle of pixels, so parts do not overlap and an image is the sum of its parts. A present part has at least one
pixel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vsc_pyro._arguments import natural_int, positive_int
from vsc_pyro.datasets.dataset import Dataset, Factors, Split

_SIDE = 32


class _Part(NamedTuple):
    """A part of a face: the rectangle of pixels it is drawn in, and a function that fills it.

    `filled` maps u and v (pixels from the centre, to the right and down) and the attribute a, which broadcast, to
    bools.
    """

    rows: tuple[int, int]
    columns: tuple[int, int]
    filled: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]

    def mirrored(self) -> _Part:
        columns = (_SIDE - self.columns[1], _SIDE - self.columns[0])
        return _Part(self.rows, columns, lambda u, v, a: self.filled(-u, v, a))


def _disc(u: np.ndarray, v: np.ndarray, radius: np.ndarray | float) -> np.ndarray:
    return u**2 + v**2 <= radius**2


# Parts on the left lean and open towards the outside of the face, which is negative u.
_BROW = _Part((9, 12), (9, 14), lambda u, v, a: abs(v + 0.5 * a * u) <= 0.55)
_EYE = _Part((12, 17), (8, 13), lambda u, v, a: (u / 2.4) ** 2 + (v / (1.3 + 0.95 * a)) ** 2 <= 1)
_CHEEK = _Part((17, 21), (7, 10), lambda u, v, a: _disc(u, v + a, 1.2))
_SHOULDER = _Part((27, 32), (0, 7), lambda u, v, a: abs(v + 1.5 + (0.4 + 0.3 * a) * (u - 3)) <= 0.75)
_WING = _Part((27, 32), (8, 14), lambda u, v, a: abs(v) <= 0.6 + (1.3 + 0.9 * a) * (2.5 - u) / 5)
_PARTS = {
    "hat/bobble": _Part((0, 2), (9, 23), lambda u, v, a: _disc(u - 5.5 * a, v, 1.2)),
    "hat/crown": _Part((2, 6), (8, 24), lambda u, v, a: abs(u - 0.9 * a * (1.5 - v)) <= 4.6),
    "hat/brim": _Part((6, 7), (5, 27), lambda u, v, a: abs(u) <= 8.0 + 2.9 * a),
    "hat/feather": _Part((0, 6), (24, 32), lambda u, v, a: abs(u + 3 - (0.6 + 0.6 * a) * (2.5 - v)) <= 0.8),
    "eyes/left brow": _BROW,
    "eyes/right brow": _BROW.mirrored(),
    "eyes/left eye": _EYE,
    "eyes/right eye": _EYE.mirrored(),
    "mouth/nose": _Part((12, 17), (14, 18), lambda u, v, a: abs(u) <= 0.6 + (0.5 + 0.5 * a) * (v + 2)),
    "mouth/left cheek": _CHEEK,
    "mouth/right cheek": _CHEEK.mirrored(),
    "mouth/moustache": _Part((18, 20), (10, 22), lambda u, v, a: abs(u) + 0.5 * v <= 3.1 + 1.7 * a),
    "mouth/mouth": _Part((21, 25), (10, 22), lambda u, v, a: abs(v - 1.3 * a * (1 - 2 * (u / 5) ** 2)) <= 0.65),
    "neck/left shoulder": _SHOULDER,
    "neck/right shoulder": _SHOULDER.mirrored(),
    "neck/left wing": _WING,
    "neck/right wing": _WING.mirrored(),
    "neck/knot": _Part((27, 32), (14, 18), lambda u, v, a: _disc(u / (1.3 + 0.6 * a), v / (1.6 + 1.1 * a), 1)),
}


def smiley(num_train: int = 20_000, num_test: int = 4_000, seed: int = 0) -> Split:
    """Binary faces of 32x32 pixels with 18 known parts; the module's docstring has their table.

    Every part is present with probability 1/2, independently, and its attribute is uniform on (-1, 1).

    Args:
        num_train, num_test: number of images. The draws of one part do not depend on the size of the other.
        seed: seed of all draws.

    Shapes:
        Images are ``(N, 1, 32, 32)``, of zeros and ones. `factors` has 18 columns, with the attributes as values.

    Raises:
        ValueError: a number out of range.

    >>> import vsc_pyro as vsc
    >>> train, test = vsc.datasets.smiley(num_train=10, num_test=5)
    >>> train.images.shape, train.factors.names[-1]
    (torch.Size([10, 1, 32, 32]), 'neck/knot')
    """
    seed, parts = natural_int("seed", seed), []
    for part, number in enumerate((positive_int("num_train", num_train), positive_int("num_test", num_test))):
        random = np.random.default_rng([seed, part])
        presence = torch.tensor(random.random((number, len(_PARTS))) < 0.5)
        values = torch.tensor(random.uniform(-1, 1, presence.shape), dtype=torch.float32) * presence
        factors = Factors(presence, values, tuple(_PARTS))
        parts.append(Dataset(render_smiley(presence, values), name="smiley", factors=factors))
    return Split(*parts)


def render_smiley(presence: Tensor, values: Tensor) -> Tensor:
    """Draw the faces of given factors, as `smiley` does.

    Args:
        presence: bool, shape ``(N, 18)``.
        values: attributes, shape ``(N, 18)``, in [-1, 1]; those of absent parts are ignored.

    Returns:
        Images of zeros and ones, shape ``(N, 1, 32, 32)``.

    Raises:
        ValueError: factors of another shape or type, or an attribute of a present part outside [-1, 1].

    >>> render_smiley(torch.ones(2, 18, dtype=torch.bool), torch.zeros(2, 18)).shape
    torch.Size([2, 1, 32, 32])
    """
    shape = (len(presence), len(_PARTS))
    if presence.dtype != torch.bool or presence.shape != shape or values.shape != shape:
        raise ValueError(
            f"presence (bool) and values must have shape (N, {len(_PARTS)}), got {presence.dtype} of shape "
            f"{tuple(presence.shape)} and values of shape {tuple(values.shape)}"
        )
    if not (values[presence].abs() <= 1).all():
        raise ValueError("values of parts that are present must lie in [-1, 1]; clamp them")
    images = np.zeros((len(presence), _SIDE, _SIDE), dtype=np.float32)
    images[:] = _outline()
    for part, on, value in zip(_PARTS.values(), presence.T.numpy(), values.T.numpy(), strict=True):
        rows, columns = np.arange(*part.rows), np.arange(*part.columns)
        filled = part.filled(columns - columns.mean(), (rows - rows.mean())[:, None], value[:, None, None])
        images[:, slice(*part.rows), slice(*part.columns)] += filled & on[:, None, None]
    return torch.from_numpy(images).unsqueeze(1)


def _outline() -> np.ndarray:
    """Return an oval outline, one pixel thick, that touches no part's rectangle."""
    row, column = np.mgrid[:_SIDE, :_SIDE]
    inside = _oval(row, column)
    edge = [_oval(row + dr, column + dc) for dr, dc in ((0, 1), (0, -1), (1, 0), (-1, 0))]
    return inside & ~np.logical_and.reduce(edge)


def _oval(row: np.ndarray, column: np.ndarray) -> np.ndarray:
    return np.abs((column - 15.5) / 11) ** 2.5 + np.abs((row - 16.8) / 10.1) ** 2.5 <= 1
