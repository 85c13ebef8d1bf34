"""The decoder of a sparse dictionary: linear, with atoms of one norm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from vsc_pyro._arguments import positive_float
from vsc_pyro.distributions import LinearNormal
from vsc_pyro.distributions.elementwise import squared_distance
from vsc_pyro.models.decoders.normal import NormalDecoder
from vsc_pyro.models.precision import PRECISIONS

if TYPE_CHECKING:
    from jaxtyping import Float


# The noise may fall to this fraction of its start.
_RANGE = 80
# Share of the data's standard deviation that the noise starts from; random atoms explain little.
_SHARE = 0.8
# Smaller directions have no norm that could be divided by.
_LEAST_NORM = 1e-12


class DictionaryDecoder(NormalDecoder):
    r"""Linear normal pixels whose atoms all have the same norm: :math:`p(x|z) = N(x; b + \sum_j z_j d_j, \sigma^2)`.

    The network's weights :math:`w_j` determine the directions of the atoms only,

    .. math:: d_j = c\,s\,\frac{w_j}{\|w_j\|}, \qquad c = \mathrm{atom\_norm},

    so that a prior's slabs alone say how strong a feature is; an atom cannot grow to make its codes, and with them
    their divergence, smaller. s is the standard deviation of the training data for ``scale="data"``, else 1.

    Args:
        latent_dim: number of atoms J.
        output_shape: shape of one datum, or its number of pixels D.
        atom_norm: c, the Euclidean norm of every atom in units of s. Data that are the sum of L active features have
            :math:`c = \sqrt{D / L}` if codes are about 1.
        scale: the noise :math:`\sigma` to start from, in units of the data; ``"data"`` for 0.8 s. Training learns the
            logarithm of :math:`\sigma^2 - m^2` with the floor m = :math:`\sigma / 80` of the start, so that the noise
            changes by at most a factor of 1 + the learning rate in a step of Adam: while the atoms are still random, a
            noise that follows their errors would switch off most features.
        noise: :math:`\sigma / s`, between 0 and 1, which training keeps; about its square is the share of the data's
            variance that stays unexplained. Less noise turns more features on. None to learn the noise.

    Shapes:
        z ``(*, J)``; the distribution is a `vsc_pyro.distributions.LinearNormal` with `batch_shape` ``(*)`` and
        `event_shape` `output_shape`.

    Raises:
        ValueError: as `NormalDecoder`; an `atom_norm` that is not above 0; a `noise` outside (0, 1), or with a `scale`.

    Example:
        >>> import vsc_pyro as vsc
        >>> decoder = vsc.DictionaryDecoder(latent_dim=5, output_shape=64, atom_norm=2.0)
        >>> decoder.dictionary.norm(dim=1).round(decimals=4).tolist()
        [2.0, 2.0, 2.0, 2.0, 2.0]
    """

    def __init__(
        self,
        latent_dim: int,
        output_shape: int | Sequence[int],
        atom_norm: float = 1.0,
        scale: float | Literal["data"] = "data",
        noise: float | None = None,
    ) -> None:
        super().__init__(latent_dim, output_shape, (), scale=scale, variance="fixed")
        if self.follows_data:
            self.initial_scale.fill_(_SHARE if noise is None else _checked_noise(noise))
        elif noise is not None:
            raise ValueError(f"noise={noise!r} and scale={scale!r} both set the noise; pass one of the two")
        if noise is None:
            self.variance = "shared"
            self.register_buffer("min_scale", self.initial_scale / _RANGE)
            self.log_amplitude = nn.Parameter(torch.zeros(()))
        self.atom_norm = positive_float("atom_norm", atom_norm)
        with torch.no_grad():
            self.own_layer.weight.copy_(normalize(self.own_layer.weight, dim=0))

    @property
    def scale(self) -> Tensor:
        r"""Standard deviation :math:`\sigma` of the pixels given z, shape ``()``."""
        if self.variance == "fixed":
            return self._in_units(self.initial_scale)
        floor = self.min_scale.square()
        return self._in_units((floor + (self.initial_scale.square() - floor) * (2 * self.log_amplitude).exp()).sqrt())

    @property
    def dictionary(self) -> Tensor:
        """The atoms, shape ``(J, *output_shape)``, in units of the data; all have the same norm."""
        return self._atoms()[0]

    def _atoms(self) -> tuple[Tensor, Tensor]:
        """Return the dictionary and the norms of its atoms; the norm is 0 if all weights are."""
        weight, size = self.own_layer.weight, self._in_units(torch.full_like(self.initial_scale, self.atom_norm))
        squares = squared_distance(weight, torch.zeros_like(size)).sum(0)
        held = squares.clamp(min=_LEAST_NORM**2)
        dictionary = (weight * (size * held.rsqrt())).T.unflatten(1, self.output_shape)
        return dictionary, size * (squares / held).detach().sqrt()

    def pixels(self, z: Tensor) -> Tensor:
        return self(z).mean

    def forward(self, z: Float[Tensor, "*draws latents"]) -> LinearNormal:
        bias = self._in_units(self.own_layer.bias.unflatten(0, self.output_shape))
        dictionary, norm = self._atoms()
        dtype = PRECISIONS[self.network_precision]
        return LinearNormal(z, dictionary, bias, self.scale, product_dtype=dtype, norm=norm)

    def extra_repr(self) -> str:
        noise = f", noise={float(self.initial_scale):g}" if self.follows_data and self.variance == "fixed" else ""
        return f"atom_norm={self.atom_norm:g}{noise}, {super().extra_repr()}"


def _checked_noise(noise: float) -> float:
    # In the precision of the model, which has the square of the noise too.
    share = torch.tensor(positive_float("noise", noise))
    least = math.sqrt(torch.finfo(share.dtype).tiny)
    if not least < share < 1:
        raise ValueError(
            f"noise must lie above {least:.1g} and below 1, which is all of the data's standard deviation, in the "
            f"model's type, {share.dtype}, got {noise!r}"
        )
    return float(noise)
