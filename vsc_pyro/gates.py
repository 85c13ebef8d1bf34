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
``score``             :math:`s`            none: an ELBO adds a score-function term  none
``disarm``            :math:`s`, in pairs  none: likewise, of the pair               none
====================  ===================  ========================================  ===================

The last two leave the spikes' gradient to the ELBO. With one draw of each code ``score`` is noisy; of several, the
ELBOs of `vsc_pyro.objectives` hold each against the mean of the others (a leave-one-out baseline). ``disarm`` draws
codes in antithetic pairs, for these and for Pyro's `Trace_ELBO` and `TraceEnum_ELBO` with vectorised particles.
At a site that only the guide has, Pyro's `Trace_ELBO` biases both, as it does any discrete site, and a warning says so.

References
    Y. Bengio, N. Léonard, A. Courville (2013), Estimating or propagating gradients through stochastic neurons.
    C. J. Maddison, A. Mnih, Y. W. Teh (2017), The concrete distribution.
    F. Tonolini, B. S. Jensen, R. Murray-Smith (2020), Variational sparse coding (the shifted sigmoid).
    R. J. Williams (1992), Simple statistical gradient-following algorithms (the score function).
    Z. Dong, A. Mnih, G. Tucker (2020), DisARM: an antithetic gradient estimator for binary latent variables.
    M. Yin, N. Ho, B. Yan, X. Qian, M. Zhou (2020), Probabilistic best subset selection via gradient-based optimization
    (the same estimator, found independently).
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from vsc_pyro._arguments import choice, positive_float


class SpikeDraw(NamedTuple):
    """One draw of spikes.

    Attributes:
        hard: exact spikes, 0 or 1, without gradient, shape of the logits.
        factor: what multiplies the slab, of the same shape: the gate's forward value, with the gate's gradient.
        score: what an ELBO multiplies by the draw's learning signal and differentiates, of the same shape; None where
            the factor has the gradient.
    """

    hard: Tensor
    factor: Tensor
    score: Tensor | None = None


@dataclasses.dataclass(frozen=True)
class Gate:
    """A spike's gradient estimator. A gate of your own subclasses this and defines `draw`.

    Attributes:
        reparametrized: whether the factor carries a gradient with respect to the logits. Where it does not, the
            distribution reports itself as not reparametrised and the ELBO adds a score-function term.
        draws_at_once: how many draws of one code a gradient takes: 1, or that many which are drawn together.
    """

    reparametrized: ClassVar[bool] = True
    draws_at_once: ClassVar[int] = 1

    def draw(self, logits: Tensor) -> SpikeDraw:
        """Draw one spike for each element of `logits` (the log-odds of being on, any shape)."""
        raise NotImplementedError(f"{type(self).__name__} must define draw(logits)")

    def draw_together(self, logits: Tensor) -> SpikeDraw:
        """Draw as a gradient takes it; the first dimension of `logits` is of draws of one code, with the same logits.

        Only asked of a gate whose `draws_at_once` is above 1, which divides the size of that dimension.
        """
        raise NotImplementedError(f"{type(self).__name__} must define draw_together(logits)")

    def hardened(self) -> Gate:
        """The same gate with exact spikes in the forward pass; itself where they are exact already."""
        return self


def _check_positive(name: str, value: float | Tensor) -> None:
    # A captured step reads a schedule's number from a tensor, and to look at that would end the capture.
    if not isinstance(value, Tensor):
        positive_float(name, value)


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
        _check_positive("temperature", self.temperature)

    def draw(self, logits: Tensor) -> SpikeDraw:
        perturbed = logits + _logistic_noise(logits)
        hard = (perturbed.detach() > 0).to(logits.dtype)
        soft = torch.sigmoid(perturbed / self.temperature).to(logits.dtype)
        return SpikeDraw(hard, _with_gradient_of(hard, soft) if self.hard else soft)

    def hardened(self) -> Gate:
        return self if self.hard else dataclasses.replace(self, hard=True)


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
        _check_positive("c", self.c)

    def draw(self, logits: Tensor) -> SpikeDraw:
        shifted = _uniform(logits) - 1 + torch.sigmoid(logits)
        hard = (shifted.detach() > 0).to(logits.dtype)
        soft = torch.sigmoid(self.c * shifted).to(logits.dtype)
        return SpikeDraw(hard, _with_gradient_of(hard, soft) if self.hard else soft)

    def hardened(self) -> Gate:
        return self if self.hard else dataclasses.replace(self, hard=True)


@dataclasses.dataclass(frozen=True)
class ScoreFunction(Gate):
    """Exact spikes and no relaxation: unbiased, by the ELBO's score-function (REINFORCE) term (Williams, 1992)."""

    reparametrized: ClassVar[bool] = False

    def draw(self, logits: Tensor) -> SpikeDraw:
        hard = (logits.detach() + _logistic_noise(logits) > 0).to(logits.dtype)
        return SpikeDraw(hard, hard, torch.where(hard > 0, logsigmoid(logits), logsigmoid(-logits)))


@dataclasses.dataclass(frozen=True)
class DisARM(ScoreFunction):
    r"""Antithetic pairs of exact spikes: unbiased, and far less noisy (Dong et al., 2020; Yin et al., 2020).

    Two draws of a code share their slabs and, with opposite signs, the noise of their spikes s and s'. With f and f'
    the learning signals of the two, a latent's gradient with respect to the log-odds l of its inclusion is

    .. math:: \tfrac12 (f - f')\,(s - s')\,\mathrm{sigmoid}(|l|),

    nothing where the two agree. Each pair is a pair of particles: ``fit(..., gate="disarm")`` draws two of each code
    (`num_draws` may be any even number), and so do these ELBOs with ``num_particles=2, vectorize_particles=True``.
    Draws for anything but the particles of an ELBO are independent.
    """

    draws_at_once: ClassVar[int] = 2

    def draw_together(self, logits: Tensor) -> SpikeDraw:
        noise = _logistic_noise(logits[: len(logits) // 2])
        hard = (logits.detach() + torch.cat([noise, -noise]) > 0).to(logits.dtype)
        first, second = hard.chunk(2)
        weight = (first - second) * torch.sigmoid(logits.detach().abs()[: len(noise)])
        # Of either sign, so that an ELBO that multiplies each by its own signal has multiplied by the difference.
        return SpikeDraw(hard, hard, torch.cat([weight, -weight]) * logits)


GATES: dict[str, type[Gate]] = {
    "straight-through": StraightThrough,
    "concrete": BinaryConcrete,
    "shifted-sigmoid": ShiftedSigmoid,
    "score": ScoreFunction,
    "disarm": DisARM,
}


def get_gate(gate: str | Gate) -> Gate:
    """The gate of that name with its default settings, or the `Gate` object itself.

    Raises:
        ValueError: an unknown name; the message lists the known ones.
    """
    return gate if isinstance(gate, Gate) else choice("gate", gate, GATES)()
