r"""The normal distribution of a linear map of a code, whose expected log-density needs no sampling.

For :math:`p(x|z) = N(x;\, b + \sum_j z_j d_j,\, \sigma^2)` and independent :math:`z_j` of means m and variances v, the
expected squared error of a pixel is the squared error at the mean plus the variance that the atoms pass on:

.. math:: E \log p(x|z) = \log p(x|m) - \frac12 \sum_j v_j \sum_d \frac{D_{jd}^2}{\sigma_d^2}.

Only the first two moments of z enter. The distribution of z may have spikes, or any tails of finite variance.

References
    M. K. Titsias, M. Lázaro-Gredilla (2011), Spike and slab variational inference for multi-task learning.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from pyro.distributions import Independent, Normal
from pyro.distributions.util import sum_rightmost
from torch import Tensor
from torch.distributions.utils import lazy_property
from torch.types import _size

from vsc_pyro.distributions.elementwise import squared_distance

_LOG_ROOT_2_PI = 0.5 * math.log(2 * math.pi)


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
        norm: Euclidean norms of the atoms, shape ``(J,)``, if they are known and `scale` is one number.

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
        norm: Tensor | None = None,
    ) -> None:
        self.code = code
        self.dictionary = dictionary
        self.bias = bias
        self.scale = scale
        self.product_dtype = product_dtype
        self.norm = norm
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
        for name in ("code", "dictionary", "bias", "scale", "product_dtype", "norm"):
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
        return self._log_prob_at(self.mean, value) - 0.5 * (variance * self.sharpness).sum(-1)

    @lazy_property
    def sharpness(self) -> Tensor:
        r"""Precision of each latent given the others, :math:`\sum_d D_{jd}^2 / \sigma_d^2`, shape ``(J,)``."""
        if self.norm is not None:
            return (self.norm / self.scale).square()
        if self.scale.dim():
            return (self.dictionary / self.scale).square().flatten(1).sum(1)
        return self.dictionary.square().flatten(1).sum(1) / self.scale.square()

    def _log_prob_at(self, mean: Tensor, value: Tensor) -> Tensor:
        """Return the log-density of pixels with another mean, whose terms in the scale alone are computed once."""
        if self.base_dist._validate_args:
            self.base_dist._validate_sample(value)
        at_the_mean = -(self.scale.log() + _LOG_ROOT_2_PI).expand(self.event_shape).sum()
        errors = squared_distance(mean, value) / self.scale.square()
        return at_the_mean - 0.5 * cast("Tensor", sum_rightmost(errors, len(self.event_shape)))

    def expected_log_probs(self, value: Tensor, variance: Tensor, prefixes: Sequence[int]) -> Tensor:
        """Return `expected_log_prob` of the first m latents alone, without the others, for each m of `prefixes`.

        Args:
            value, variance: as for `expected_log_prob`; a variance of the shape of `code`.
            prefixes: numbers of latents, in ascending order.

        Returns:
            Shape ``(len(prefixes), *batch_shape)``.
        """
        atoms, mean = self.dictionary.flatten(1), self.bias.flatten()
        charged = variance * self.sharpness
        passed_on, results = torch.zeros(()).to(charged), []
        for begin, end in itertools.pairwise((0, *prefixes)):
            mean = mean + self.product(self.code[..., begin:end], atoms[begin:end])
            passed_on = passed_on + charged[..., begin:end].sum(-1)
            results.append(self._log_prob_at(mean.unflatten(-1, self.event_shape), value) - 0.5 * passed_on)
        return torch.stack(results)


@functools.singledispatch
def as_linear(likelihood: Any) -> tuple[LinearNormal, Callable[[Tensor], Tensor]] | None:
    """Return the `LinearNormal` that a likelihood is, and a function from data to its data; None if it is none.

    The function takes data of shape ``(*, *event_shape)``, whose density under `likelihood` is that of its results
    under the `LinearNormal`: a likelihood with a context subtracts the effects of the context from the values.
    """
    return None


@as_linear.register
def _(likelihood: LinearNormal) -> tuple[LinearNormal, Callable[[Tensor], Tensor]]:
    return likelihood, lambda x: x
