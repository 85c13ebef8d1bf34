r"""The normal distribution of a linear map of a code, whose expected log-density needs no sampling.

For :math:`p(x|z) = N(x;\, b + \sum_j z_j d_j,\, \sigma^2)` and independent :math:`z_j` of means m and variances v, the
expected squared error of a pixel is the squared error at the mean plus the variance that the atoms pass on:

.. math:: E \log p(x|z) = \log p(x|m) - \frac12 \sum_j v_j \sum_d \frac{D_{jd}^2}{\sigma_d^2}.

Only the first two moments of z enter. The distribution of z may have an atom at zero, or any tails of finite variance.

References
    M. K. Titsias, M. Lázaro-Gredilla (2011), Spike and slab variational inference for multi-task learning.
"""

from __future__ import annotations

from typing import cast

import torch
from pyro.distributions import Independent, Normal
from torch import Tensor
from torch.types import _size


class LinearNormal(Independent):
    r"""Independent normal pixels whose mean is a linear map of a code; a linear `vsc_pyro.NormalDecoder` returns it.

    It behaves as an `Independent` Normal. The result of ``.to_event()`` is a plain `Independent`, without the code.

    Args:
        code: z, shape ``(*, J)``.
        dictionary: atoms :math:`d_j`, shape ``(J, *event_shape)``.
        bias: b, shape `event_shape`.
        scale: :math:`\sigma`, above 0, in units of the data; its shape broadcasts to `event_shape`.
        validate_args: as in `torch.distributions`.
        product_dtype: type of the product of code and dictionary, such as `torch.bfloat16`; None for their own.

    Shapes:
        `batch_shape` is ``(*)``, `event_shape` is the shape of an atom.

    Example:
        >>> import torch
        >>> from vsc_pyro.distributions import LinearNormal
        >>> dictionary = torch.eye(2, 3)
        >>> x = LinearNormal(torch.zeros(5, 2), dictionary, bias=torch.zeros(3), scale=torch.ones(()))
        >>> x.batch_shape, x.event_shape
        (torch.Size([5]), torch.Size([3]))
        >>> x.expected_log_prob(torch.zeros(3), variance=torch.ones(2)) - x.log_prob(torch.zeros(3))
        tensor([-1., -1., -1., -1., -1.])
    """

    def __init__(
        self,
        code: Tensor,
        dictionary: Tensor,
        bias: Tensor,
        scale: Tensor,
        validate_args: bool | None = None,
        product_dtype: torch.dtype | None = None,
    ) -> None:
        self.code = code
        self.dictionary = dictionary
        self.scale = scale
        self.product_dtype = product_dtype
        if product_dtype is None:
            pixels = torch.nn.functional.linear(code, dictionary.flatten(1).T, bias.flatten())
        else:
            pixels = self.product(code, dictionary.flatten(1)) + bias.flatten()
        base = Normal(pixels.unflatten(-1, dictionary.shape[1:]), scale, validate_args=validate_args)
        super().__init__(base, dictionary.dim() - 1, validate_args=validate_args)

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        """Return ``a @ b``, computed in `product_dtype` and cast to the type of a."""
        if self.product_dtype is None:
            return a @ b
        with torch.autocast(a.device.type, self.product_dtype):
            return (a @ b).to(a.dtype)

    def expand(self, batch_shape: _size, _instance: LinearNormal | None = None) -> LinearNormal:
        new = cast("LinearNormal", self._get_checked_instance(LinearNormal, _instance))
        for name in ("code", "dictionary", "scale", "product_dtype"):
            setattr(new, name, getattr(self, name))
        return super().expand(batch_shape, _instance=new)

    def expected_log_prob(self, value: Tensor, variance: Tensor) -> Tensor:
        r"""Return the exact :math:`E \log p(x|z)` in nats for independent :math:`z_j` whose means are `code`.

        Args:
            value: x, shape ``(*, *event_shape)``.
            variance: the variances of the :math:`z_j`; its shape broadcasts to the shape of `code`.

        Returns:
            Shape `batch_shape`.
        """
        precision = (self.dictionary / self.scale).square().flatten(1).sum(1)
        return self.log_prob(value) - 0.5 * (variance * precision).sum(-1)
