r"""The spike-and-slab of a Laplace or normal draw after a shifted soft threshold.

Draw :math:`\zeta` from the *base*, with location :math:`\mu` and scale :math:`\sigma`, and let

.. math::
    z = 0 \;\text{where}\; |\zeta - \mu| \le \lambda, \qquad
    z = \zeta - \mathrm{sign}(\zeta - \mu)\, \lambda \;\text{elsewhere.}

Then z is zero with positive probability, and otherwise distributed about :math:`\mu`. It is exactly a spike-and-slab:

========  ==============================================  =======================================
base      inclusion probability :math:`\gamma`            slab, independent of the spike
========  ==============================================  =======================================
Laplace   :math:`e^{-\lambda / \sigma}`                   the base, because it is memoryless
Normal    :math:`2\, \Phi(-\lambda / \sigma)`             `ShiftedNormalTails`
========  ==============================================  =======================================

So density, divergences and all gates are those of `SpikeSlab`. Fallah & Rozell (2022) train with the divergence of the
un-thresholded :math:`\zeta` instead, which may be larger or smaller than the divergence of the code. It charges for the
location of a latent that is always off, and does not charge for spikes. With thresholds that depend on the datum, the
decoder learns about the datum at no cost, and the objective is not a bound on the evidence.

The gate ``"threshold"`` is their gradient: exact zeros in the forward pass; in the backward pass, the derivative of
:math:`\mu + \mathrm{sign}(\zeta - \mu) (|\zeta - \mu| - \lambda)` everywhere, even where z is zero. Only the gradient
of the likelihood is biased by it. The density is scored with the slab and the spike, as for any other gate (see
`vsc_pyro.distributions.draws`); :math:`\zeta` is drawn given these two.

References
    K. Fallah, C. J. Rozell (2022), Variational sparse coding with learned thresholding.
"""

from __future__ import annotations

import functools
import math
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from torch.distributions import Distribution, Laplace, Normal, constraints
from torch.types import _size

from vsc_pyro._arguments import choice
from vsc_pyro.distributions.families import Change, changed, of_part
from vsc_pyro.distributions.normal_tails import ShiftedNormalTails
from vsc_pyro.distributions.spike_slab import SpikeSlab
from vsc_pyro.gates import GATES, Gate, StraightThrough


class StraightThroughThreshold(StraightThrough):
    """The gate ``"threshold"`` of a `ThresholdedSpikeSlab`; `StraightThrough` for a `SpikeSlab` without threshold.

    References
        K. Fallah, C. J. Rozell (2022), Variational sparse coding with learned thresholding.
    """


THRESHOLD_GATES: dict[str, type[Gate]] = {**GATES, "threshold": StraightThroughThreshold}


class ThresholdedSpikeSlab(SpikeSlab):
    r"""The distribution of a Laplace or normal draw after a shifted soft threshold.

    .. math:: z = \mathrm{sign}(\zeta - \mu) \max(|\zeta - \mu| - \lambda, 0) + \mu [|\zeta - \mu| > \lambda]

    Args:
        base: the distribution of :math:`\zeta`: `Laplace` or `Normal`.
        threshold: :math:`\lambda`, above 0, broadcast against the base.
        gate: ``"threshold"`` or any gate of `vsc_pyro.gates`: a name or an object.
        validate_args: as in `torch.distributions`.

    Shapes:
        `batch_shape` is the broadcast shape of base and threshold; `event_shape` is ``()``.

    Raises:
        ValueError: a base of another family; an unknown gate (the message lists the known ones); a threshold that is
            not above 0.

    References
        K. Fallah, C. J. Rozell (2022), Variational sparse coding with learned thresholding.

    Example:
        >>> import pyro.distributions as dist
        >>> import torch
        >>> import vsc_pyro as vsc
        >>> q = vsc.ThresholdedSpikeSlab(dist.Laplace(torch.zeros(5), 1.0), torch.tensor(2.3)).to_event(1)
        >>> q.base_dist.probs[0].item()  # exp(-2.3)
        0.10025...
        >>> q.sample((1000,)).shape
        torch.Size([1000, 5])
    """

    arg_constraints: ClassVar[Any] = {"threshold": constraints.positive, **SpikeSlab.arg_constraints}

    def __init__(
        self,
        base: Laplace | Normal,
        threshold: Tensor | float,
        gate: str | Gate = "concrete",
        validate_args: bool | None = None,
    ) -> None:
        mean = base.mean
        threshold = torch.as_tensor(threshold, dtype=mean.dtype, device=mean.device)
        batch_shape = torch.broadcast_shapes(base.batch_shape, threshold.shape)
        self.base = cast("Laplace | Normal", base.expand(batch_shape))
        self.threshold = threshold.expand(batch_shape)
        slab, logits = _slab_and_logits(self.base, self.threshold, validate_args)
        super().__init__(slab, logits=logits, gate=get_threshold_gate(gate), validate_args=validate_args)

    def expand(self, batch_shape: _size, _instance: ThresholdedSpikeSlab | None = None) -> ThresholdedSpikeSlab:
        new = cast("ThresholdedSpikeSlab", self._get_checked_instance(ThresholdedSpikeSlab, _instance))
        new.base = self.base.expand(batch_shape)
        new.threshold = self.threshold.expand(batch_shape)
        super().expand(batch_shape, new)
        return new

    def _gated(self, factor: Tensor, slab: Tensor) -> Tensor:
        value = super()._gated(factor, slab)
        if not isinstance(self.gate, StraightThroughThreshold):
            return value
        value = value.detach()
        base = self.base
        with torch.no_grad():
            # |zeta - mu| / sigma given spike and slab: beyond the cut where the spike is on, below it elsewhere.
            cut = self.threshold / base.scale
            deviation = (slab - base.loc) / base.scale
            size = torch.where(value != 0, deviation.abs() + cut, _draw_below(base, cut.expand_as(value)))
            sign = deviation.sign()
        surrogate = base.loc + sign * (base.scale * size - self.threshold)
        return value + (surrogate - surrogate.detach())


@functools.singledispatch
def _slab_and_logits(base: Any, threshold: Tensor, validate_args: bool | None) -> tuple[Distribution, Tensor]:
    """Return the slab and the log-odds of inclusion of `base` after a shifted soft threshold."""
    raise ValueError(f"base must be Laplace or Normal, got {type(base).__name__}, whose slab is not known")


@_slab_and_logits.register
def _(base: Laplace, threshold: Tensor, validate_args: bool | None) -> tuple[Distribution, Tensor]:
    cut = threshold / base.scale
    return base, -cut - torch.log(-torch.expm1(-cut))


@_slab_and_logits.register
def _(base: Normal, threshold: Tensor, validate_args: bool | None) -> tuple[Distribution, Tensor]:
    # The gradient of torch.special.log_ndtr is NaN in float32 for very large thresholds.
    root = threshold / base.scale / math.sqrt(2)
    logits = torch.log(torch.special.erfcx(root)) - root**2 - torch.log(torch.erf(root))
    return ShiftedNormalTails(base.loc, base.scale, threshold, validate_args), logits


@functools.singledispatch
def _draw_below(base: Any, cut: Tensor) -> Tensor:
    r"""Draw :math:`|\zeta - \mu| / \sigma` given that it does not exceed `cut`."""
    raise NotImplementedError


@_draw_below.register
def _(base: Laplace, cut: Tensor) -> Tensor:
    return -torch.log1p(torch.rand_like(cut) * torch.expm1(-cut))


@_draw_below.register
def _(base: Normal, cut: Tensor) -> Tensor:
    return math.sqrt(2) * torch.erfinv(torch.rand_like(cut) * torch.erf(cut / math.sqrt(2)))


@changed.register
def _changed(distribution: ThresholdedSpikeSlab, change: Change) -> ThresholdedSpikeSlab:
    base = cast("Laplace | Normal", changed(distribution.base, of_part("base", change)))
    threshold = change("threshold", distribution.threshold, constraints.positive)
    return ThresholdedSpikeSlab(base, threshold, distribution.gate, validate_args=False)


def get_threshold_gate(gate: str | Gate) -> Gate:
    """Return the gate of that name with its default settings, or the `Gate` itself; ``"threshold"`` is known too.

    Raises:
        ValueError: an unknown name; the message lists the known ones.
    """
    return gate if isinstance(gate, Gate) else choice("gate", gate, THRESHOLD_GATES)()
