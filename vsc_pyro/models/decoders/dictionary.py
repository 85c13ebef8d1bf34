"""The decoder of a sparse dictionary: linear, with atoms of one norm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vsc_pyro._arguments import positive_float
from vsc_pyro.distributions import LinearNormal
from vsc_pyro.models.decoders.normal import NormalDecoder
from vsc_pyro.models.precision import PRECISIONS

if TYPE_CHECKING:
    from jaxtyping import Float


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
        scale, variance, min_scale: noise :math:`\sigma`, see `NormalDecoder`; it is learned by default.

    Shapes:
        z ``(*, J)``; the distribution is a `vsc_pyro.distributions.LinearNormal` with `batch_shape` ``(*)`` and
        `event_shape` `output_shape`.

    Raises:
        ValueError: as `NormalDecoder`; an `atom_norm` that is not above 0.

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
        variance: str = "shared",
        min_scale: float | None = None,
    ) -> None:
        super().__init__(latent_dim, output_shape, (), scale=scale, variance=variance, min_scale=min_scale)
        self.atom_norm = positive_float("atom_norm", atom_norm)
        with torch.no_grad():
            self.own_layer.weight.copy_(normalize(self.own_layer.weight, dim=0))

    @property
    def dictionary(self) -> Tensor:
        """The atoms, shape ``(J, *output_shape)``, in units of the data; all have the same norm."""
        directions = normalize(self.own_layer.weight, dim=0).T.unflatten(1, self.output_shape)
        return self._in_units(self.atom_norm * directions)

    def pixels(self, z: Tensor) -> Tensor:
        return self(z).mean

    def forward(self, z: Float[Tensor, "*draws latents"]) -> LinearNormal:
        bias = self._in_units(self.own_layer.bias.unflatten(0, self.output_shape))
        return LinearNormal(z, self.dictionary, bias, self.scale, product_dtype=PRECISIONS[self.network_precision])

    def extra_repr(self) -> str:
        return f"atom_norm={self.atom_norm:g}, {super().extra_repr()}"
