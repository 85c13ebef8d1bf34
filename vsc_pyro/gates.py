r"""Gates: how a spike is drawn, and how a gradient passes it.

A spike :math:`s \in \{0, 1\}` is on with probability :math:`\gamma`, given by its log-odds. Every gate draws it from
one uniform number :math:`u`,

.. math:: s = [u > 1 - \gamma] = [\mathrm{logit}(u) + \mathrm{logit}(\gamma) > 0],

and multiplies the slab by a *factor* whose value is :math:`s` (a soft gate: a number in (0, 1)) and whose derivative is
the gate's. Gates are small immutable objects; wherever one is taken, its name does as well:

====================  ===================  ========================================  ===================
name                  factor, forward      derivative                                bias
====================  ===================  ========================================  ===================
``straight-through``  :math:`s`            that of :math:`\gamma`                    likelihood part
``concrete``          :math:`s` (or soft)  that of the relaxed spike                 likelihood part
``shifted-sigmoid``   soft (or :math:`s`)  that of the relaxed spike                 likelihood; *leaks*
``score``             :math:`s`            none: the ELBO adds a score-function term  none
====================  ===================  ========================================  ===================

References
    Y. Bengio, N. Léonard, A. Courville (2013), Estimating or propagating gradients through stochastic neurons.
    C. J. Maddison, A. Mnih, Y. W. Teh (2017), The concrete distribution.
    F. Tonolini, B. S. Jensen, R. Murray-Smith (2020), Variational sparse coding (the shifted sigmoid).
    R. J. Williams (1992), Simple statistical gradient-following algorithms (the score function).
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from vsc_pyro.arguments import choice, positive_float


class SpikeDraw(NamedTuple):
    """One draw of spikes.

    Attributes:
        hard: exact spikes, 0 or 1, without gradient, shape of the logits.
        factor: what multiplies the slab, of the same shape: the gate's forward value, with the gate's gradient.
    """

    hard: Tensor
    factor: Tensor


@dataclasses.dataclass(frozen=True)
class Gate:
    """A spike's gradient estimator. A gate of your own subclasses this and defines `draw`.

    Attributes:
        reparametrized: whether the factor carries a gradient with respect to the logits. Where it does not, the
            distribution reports itself as not reparametrised and the ELBO adds a score-function term.
    """

    reparametrized: ClassVar[bool] = True

    def draw(self, logits: Tensor) -> SpikeDraw:
        """Draw one spike for each element of `logits` (the log-odds of being on, any shape)."""
        raise NotImplementedError(f"{type(self).__name__} must define draw(logits)")

    def hardened(self) -> Gate:
        """The same gate with exact spikes in the forward pass; itself where they are exact already."""
        return self


def _uniform(logits: Tensor) -> Tensor:
    # At least float32: a uniform number of 8 bits cannot tell a rare spike from one twice as rare.
    return torch.rand_like(logits, dtype=torch.promote_types(logits.dtype, torch.float32))


def _logistic_noise(logits: Tensor) -> Tensor:
    uniform = _uniform(logits)
    return torch.logit(uniform, eps=torch.finfo(uniform.dtype).tiny)


def _with_gradient_of(value: Tensor, surrogate: Tensor) -> Tensor:
    # The bracket is exactly zero, so the forward value stays exact; value + surrogate - surrogate would round.
    return value + (surrogate - surrogate.detach())


@dataclasses.dataclass(frozen=True)
class StraightThrough(Gate):
    """Exact spikes forward, the derivative of the inclusion probability backward (Bengio et al., 2013)."""

    def draw(self, logits: Tensor) -> SpikeDraw:
        hard = (logits.detach() + _logistic_noise(logits) > 0).to(logits.dtype)
        return SpikeDraw(hard, _with_gradient_of(hard, torch.sigmoid(logits)))


@dataclasses.dataclass(frozen=True)
class BinaryConcrete(Gate):
    r"""Binary concrete spikes (Maddison et al., 2017).

    .. math:: \mathrm{sigmoid}((\mathrm{logit}\,\gamma + \mathrm{logit}\,u) / t)

    Thresholding the relaxed spike at 1/2 gives an exact one, so `hard` draws have the exact distribution.

    Args:
        temperature: t, above 0; lower is closer to a step and has noisier gradients.
        hard: exact spikes in the forward pass (default) or relaxed ones.
    """

    temperature: float = 0.5
    hard: bool = True

    def __post_init__(self) -> None:
        positive_float("temperature", self.temperature)

    def draw(self, logits: Tensor) -> SpikeDraw:
        perturbed = logits + _logistic_noise(logits)
        hard = (perturbed.detach() > 0).to(logits.dtype)
        soft = torch.sigmoid(perturbed / self.temperature).to(logits.dtype)
        return SpikeDraw(hard, _with_gradient_of(hard, soft) if self.hard else soft)

    def hardened(self) -> Gate:
        return dataclasses.replace(self, hard=True)


@dataclasses.dataclass(frozen=True)
class ShiftedSigmoid(Gate):
    r"""The relaxation of the VSC paper, :math:`T = \mathrm{sigmoid}(c (u - 1 + \gamma))` (Tonolini et al., 2020).

    Soft as published: T is never exactly zero, so the decoder sees every slab, also those that the KL charges next to
    nothing for. A bound trained that way *leaks*; `vsc_pyro.evaluate` prints by how much as the relaxation gap.

    Args:
        c: steepness, above 0 (the paper: 50 rising to 200).
        hard: exact spikes in the forward pass (not what was published) or soft ones (default).
    """

    c: float = 50.0
    hard: bool = False

    def __post_init__(self) -> None:
        positive_float("c", self.c)

    def draw(self, logits: Tensor) -> SpikeDraw:
        shifted = _uniform(logits) - 1 + torch.sigmoid(logits)
        hard = (shifted.detach() > 0).to(logits.dtype)
        soft = torch.sigmoid(self.c * shifted).to(logits.dtype)
        return SpikeDraw(hard, _with_gradient_of(hard, soft) if self.hard else soft)

    def hardened(self) -> Gate:
        return dataclasses.replace(self, hard=True)


@dataclasses.dataclass(frozen=True)
class ScoreFunction(Gate):
    """Exact spikes and no relaxation: unbiased, by the ELBO's score-function (REINFORCE) term (Williams, 1992)."""

    reparametrized: ClassVar[bool] = False

    def draw(self, logits: Tensor) -> SpikeDraw:
        hard = (logits.detach() + _logistic_noise(logits) > 0).to(logits.dtype)
        return SpikeDraw(hard, hard)


GATES: dict[str, type[Gate]] = {
    "straight-through": StraightThrough,
    "concrete": BinaryConcrete,
    "shifted-sigmoid": ShiftedSigmoid,
    "score": ScoreFunction,
}


def get_gate(gate: str | Gate) -> Gate:
    """The gate of that name with its default settings, or the `Gate` object itself.

    Raises:
        ValueError: an unknown name; the message lists the known ones.
    """
    return gate if isinstance(gate, Gate) else choice("gate", gate, GATES)()
