r"""The normal distribution that is a linear map of a code, whose expected log-density needs no sampling.

With :math:`p(x|z) = N(x;\, b + \sum_j z_j d_j,\, \sigma^2)` and any z of independent coordinates with means m and
variances v, each pixel's squared error is that of the mean plus the variance that the atoms hand on:

.. math:: E \log p(x|z) = \log p(x|m) - \frac12 \sum_j v_j \sum_d \frac{D_{jd}^2}{\sigma_d^2}.

Nothing else of z's distribution enters: it may have an atom at zero, or any tails of finite variance.

References
    M. K. Titsias, M. Lázaro-Gredilla (2011), Spike and slab variational inference for multi-task learning.
"""

from __future__ import annotations

import torch
from pyro.distributions import Independent, Normal
from torch import Tensor


class LinearNormal(Independent):
    r"""Independent normal pixels whose mean is a linear map of a code: what a linear `vsc_pyro.NormalDecoder` returns.

    To everything else it is the `Independent` Normal that it is; what ``.to_event()`` makes of it no longer knows its
    code.

    Args:
        code: z, shape ``(*, J)``.
        dictionary: atoms :math:`d_j`, shape ``(J, *event_shape)``.
        bias: b, shape `event_shape`.
        scale: :math:`\sigma`, above 0, of a shape that broadcasts to `event_shape`.
        validate_args: as everywhere in `torch.distributions`.

    Shapes:
        `batch_shape` ``(*)``, `event_shape` that of an atom.
    """

    def __init__(
        self, code: Tensor, dictionary: Tensor, bias: Tensor, scale: Tensor, validate_args: bool | None = None
    ) -> None:
        self.code = code
        self.dictionary = dictionary
        self.scale = scale
        pixels = torch.nn.functional.linear(code, dictionary.flatten(1).T, bias.flatten())
        base = Normal(pixels.unflatten(-1, dictionary.shape[1:]), scale, validate_args=validate_args)
        super().__init__(base, dictionary.dim() - 1, validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: LinearNormal | None = None) -> LinearNormal:
        new = self._get_checked_instance(LinearNormal, _instance)
        new.code, new.dictionary, new.scale = self.code, self.dictionary, self.scale
        return super().expand(batch_shape, _instance=new)

    def expected_log_prob(self, value: Tensor, variance: Tensor) -> Tensor:
        r""":math:`E \log p(x|z)` over independent coordinates of z whose means are `code`; exact, shape `batch_shape`.

        Args:
            value: x, shape ``(*, *event_shape)``.
            variance: of the coordinates, a shape that broadcasts to that of `code`.
        """
        precision = (self.dictionary / self.scale).square().flatten(1).sum(1)
        return self.log_prob(value) - 0.5 * (variance * precision).sum(-1)
