r"""A draw of a Laplace or Normal distribution through a shifted soft threshold is a spike-and-slab, and exactly which.

Draw :math:`\zeta` from the *base* of location :math:`\mu` and scale :math:`\sigma`, and let

.. math::
    z = 0 \;\text{where}\; |\zeta - \mu| \le \lambda, \qquad
    z = \zeta - \mathrm{sign}(\zeta - \mu)\, \lambda \;\text{elsewhere.}

So z is zero with a probability of its own, and otherwise, whichever tail it came from, distributed about :math:`\mu`:

========  ==============================================  =======================================
base      inclusion probability :math:`\gamma`            slab, independent of the spike
========  ==============================================  =======================================
Laplace   :math:`e^{-\lambda / \sigma}`                   the base again: it has no memory
Normal    :math:`2\, \Phi(-\lambda / \sigma)`             `ShiftedNormalTails`
========  ==============================================  =======================================

Nothing is left to approximate: density, divergences and every gate are those of `SpikeSlab`. Fallah & Rozell (2022)
train with the divergence of the un-thresholded :math:`\zeta` instead, which is not that of the code and may lie on
either side of it: it charges for the location of a latent that is always off, and nothing for spikes, so that a datum's
own thresholds tell the decoder about it free of charge and the objective bounds no evidence.

The gate ``"threshold"`` is their gradient: exact zeros forward; backward, everywhere, also where z is zero, the
derivative of :math:`\mu + \mathrm{sign}(\zeta - \mu) (|\zeta - \mu| - \lambda)`. What it biases is the likelihood's
part of the gradient alone, since the density is scored by a slab and a spike drawn as any other's (see
`vsc_pyro.distributions.spike_slab`); :math:`\zeta` is drawn given them.

References
    K. Fallah, C. J. Rozell (2022), Variational sparse coding with learned thresholding.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution, Laplace, Normal, constraints

from vsc_pyro._arguments import choice
from vsc_pyro.distributions.families import Change, changed, of_part
from vsc_pyro.distributions.normal_tails import ShiftedNormalTails
from vsc_pyro.distributions.spike_slab import SpikeSlab
from vsc_pyro.gates import GATES, Gate, StraightThrough


class StraightThroughThreshold(StraightThrough):
    """The gate ``"threshold"`` of a `ThresholdedSpikeSlab`; of a `SpikeSlab` that has no threshold `StraightThrough`.

    K. Fallah, C. J. Rozell (2022).
    """


THRESHOLD_GATES: dict[str, type[Gate]] = {**GATES, "threshold": StraightThroughThreshold}


class ThresholdedSpikeSlab(SpikeSlab):
    r"""The distribution of a shifted soft threshold of a Laplace or Normal draw; see the module's docstring.

    Args:
        base: `Laplace` or `Normal`, of :math:`\zeta`.
        threshold: :math:`\lambda`, above 0, broadcast against the base.
        gate: ``"threshold"`` or any other, see `vsc_pyro.gates`: a name or an object.
        validate_args: as everywhere in `torch.distributions`.

    Shapes:
        `batch_shape` is the broadcast of the base's and the threshold's; `event_shape` is ``()``.

    Raises:
        ValueError: a base of another family, an unknown gate (the message lists the known ones), a threshold of 0 or
            below.

    Example:
        >>> q = ThresholdedSpikeSlab(Laplace(torch.zeros(5), 1.0), torch.tensor(2.3)).to_event(1)
        >>> q.sample((1000,)).ne(0).float().mean()  # close to exp(-2.3) = 0.1
    """

    arg_constraints: ClassVar = {"threshold": constraints.positive, **SpikeSlab.arg_constraints}

    def __init__(
        self,
        base: Distribution,
        threshold: Tensor | float,
        gate: str | Gate = "concrete",
        validate_args: bool | None = None,
    ) -> None:
        if not isinstance(base, (Laplace, Normal)):
            raise ValueError(f"base must be Laplace or Normal, got {type(base).__name__}, of which no slab is known")
        threshold = torch.as_tensor(threshold, dtype=base.loc.dtype, device=base.loc.device)
        batch_shape = torch.broadcast_shapes(base.batch_shape, threshold.shape)
        self.base = base.expand(batch_shape)
        self.threshold = threshold.expand(batch_shape)
        cut = self.threshold / self.base.scale
        if isinstance(base, Laplace):
            slab, logits = self.base, -cut - torch.log(-torch.expm1(-cut))
        else:
            slab = ShiftedNormalTails(self.base.loc, self.base.scale, self.threshold, validate_args)
            # torch.special.log_ndtr would do, but for its gradient, which is NaN in float32 some 50,000 sigma out.
            root = cut / math.sqrt(2)
            logits = torch.log(torch.special.erfcx(root)) - root**2 - torch.log(torch.erf(root))
        super().__init__(slab, logits=logits, gate=get_threshold_gate(gate), validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: ThresholdedSpikeSlab | None = None) -> ThresholdedSpikeSlab:
        new = self._get_checked_instance(ThresholdedSpikeSlab, _instance)
        new.base = self.base.expand(batch_shape)
        new.threshold = self.threshold.expand(batch_shape)
        return super().expand(batch_shape, new)

    def _gated(self, factor: Tensor, slab: Tensor) -> Tensor:
        value = super()._gated(factor, slab)
        if not isinstance(self.gate, StraightThroughThreshold):
            return value
        value = value.detach()
        base = self.base
        with torch.no_grad():
            # What the base drew, in its scales: beyond the cut where the spike is on, and else anywhere within it.
            cut = self.threshold / base.scale
            deviation = (slab - base.loc) / base.scale
            size = torch.where(value != 0, deviation.abs() + cut, self._within(cut.expand_as(value)))
            sign = deviation.sign()
        surrogate = base.loc + sign * (base.scale * size - self.threshold)
        return value + (surrogate - surrogate.detach())

    def _within(self, cut: Tensor) -> Tensor:
        """The size of a standard base draw, given that it does not exceed `cut`."""
        uniform = torch.rand_like(cut)
        if isinstance(self.base, Laplace):
            return -torch.log1p(uniform * torch.expm1(-cut))
        return math.sqrt(2) * torch.erfinv(uniform * torch.erf(cut / math.sqrt(2)))


@changed.register
def _changed(distribution: ThresholdedSpikeSlab, change: Change) -> ThresholdedSpikeSlab:
    base = changed(distribution.base, of_part("base", change))
    threshold = change("threshold", distribution.threshold, constraints.positive)
    return ThresholdedSpikeSlab(base, threshold, distribution.gate, validate_args=False)


def get_threshold_gate(gate: str | Gate) -> Gate:
    """As `vsc_pyro.gates.get_gate`, and ``"threshold"`` besides.

    Raises:
        ValueError: an unknown name; the message lists the known ones.
    """
    return gate if isinstance(gate, Gate) else choice("gate", gate, THRESHOLD_GATES)()
