r"""Gates: how a spike is drawn, and how a gradient passes it.

A spike :math:`s \in \{0, 1\}` is on with probability :math:`\gamma`, given by its log-odds. Every gate draws it from
one uniform number :math:`u`,

.. math:: s = [u > 1 - \gamma] = [\mathrm{logit}(u) + \mathrm{logit}(\gamma) > 0],

and multiplies the slab by a *factor*. The factor's value is :math:`s` (for a soft gate: a number in (0, 1)), and its
derivative is the gate's. Gates are small `torch.nn.Module`s. Wherever a gate is an argument, its name will do:

====================  ===================  ========================================  ===================
name                  factor, forward      derivative                                bias
====================  ===================  ========================================  ===================
``straight-through``  :math:`s`            that of :math:`\gamma`                    likelihood part
``concrete``          :math:`s` (or soft)  that of the relaxed spike                 likelihood part
``shifted-sigmoid``   soft (or :math:`s`)  that of the relaxed spike                 likelihood; *leaks*
``score``             :math:`s`            none: an ELBO adds a score-function term  none
``disarm``            :math:`s`, in pairs  none: likewise, of the pair               none
====================  ===================  ========================================  ===================

The last two leave the spikes' gradient to the ELBO. With one draw of each code, ``score`` is noisy. With several, the
ELBOs of `vsc_pyro.objectives` compare each draw with the mean of the others (a leave-one-out baseline). ``disarm``
draws codes in antithetic pairs. It works with these ELBOs, and with Pyro's `Trace_ELBO` and `TraceEnum_ELBO` if their
particles are vectorised. At a site that only the guide has, Pyro's `Trace_ELBO` biases both gates, as it biases any
discrete site; a warning says so.

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

import copy
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from vsc_pyro._arguments import choice, positive_float
from vsc_pyro._scalars import ScalarModule


class SpikeDraw(NamedTuple):
    """One draw of spikes.

    Attributes:
        hard: exact spikes, 0 or 1, without gradient, shape of the logits.
        factor: the number that multiplies the slab, of the same shape: the gate's forward value, with its gradient.
        score: the term that an ELBO multiplies by the draw's learning signal and differentiates, of the same shape;
            None where the factor carries the gradient.
    """

    hard: Tensor
    factor: Tensor
    score: Tensor | None = None


class Gate(ScalarModule):
    """A spike's gradient estimator. A gate of your own subclasses this class and defines `draw`.

    A number that a schedule is to move is registered by ``self.register_scalar("temperature", 0.5)``.

    Attributes:
        reparametrized: True if the factor carries a gradient with respect to the logits. If not, the distribution
            reports itself as not reparametrised and the ELBO adds a score-function term.
        draws_at_once: number of draws of one code that a gradient needs, drawn together.
    """

    reparametrized: ClassVar[bool] = True
    draws_at_once: ClassVar[int] = 1

    def draw(self, logits: Tensor) -> SpikeDraw:
        """Draw one spike for each element of `logits` (the log-odds of being on, any shape)."""
        raise NotImplementedError(f"{type(self).__name__} must define draw(logits)")

    def draw_together(self, logits: Tensor) -> SpikeDraw:
        """Draw spikes that share one gradient. The first dimension of `logits` indexes draws of one code.

        Called for gates with `draws_at_once` above 1 only; it divides the size of that dimension.
        """
        raise NotImplementedError(f"{type(self).__name__} must define draw_together(logits)")

    def hardened(self) -> Gate:
        """Return this gate with exact spikes in the forward pass: itself if they are exact already."""
        return self


class _RelaxedGate(Gate):
    """A gate with one positive number, which shapes the relaxed spike, and a choice of hard or soft forward values."""

    def __init__(self, name: str, value: float, hard: bool) -> None:
        super().__init__()
        self.register_scalar(name, value)
        self.hard = hard
        self._name = name

    def check_scalar(self, name: str, value: float) -> None:
        positive_float(name, value)

    def hardened(self) -> Gate:
        if self.hard:
            return self
        gate = copy.copy(self)  # shares the buffer, which a schedule may move
        gate.hard = True
        return gate

    def extra_repr(self) -> str:
        return f"{self._name}={round(float(getattr(self, self._name)), 6)}, hard={self.hard}"


def _uniform(logits: Tensor) -> Tensor:
    # At least float32: a uniform number of 8 bits cannot tell a rare spike from one twice as rare.
    return torch.rand_like(logits, dtype=torch.promote_types(logits.dtype, torch.float32))


def _logistic_noise(logits: Tensor) -> Tensor:
    uniform = _uniform(logits)
    return torch.logit(uniform, eps=torch.finfo(uniform.dtype).tiny)


def _with_gradient_of(value: Tensor, surrogate: Tensor) -> Tensor:
    # The bracket is exactly zero, so the forward value stays exact; value + surrogate - surrogate would round.
    return value + (surrogate - surrogate.detach())


class StraightThrough(Gate):
    """Exact spikes forward, the derivative of the inclusion probability backward (Bengio et al., 2013)."""

    def draw(self, logits: Tensor) -> SpikeDraw:
        hard = (logits.detach() + _logistic_noise(logits) > 0).to(logits.dtype)
        return SpikeDraw(hard, _with_gradient_of(hard, torch.sigmoid(logits)))


class BinaryConcrete(_RelaxedGate):
    r"""Binary concrete spikes (Maddison et al., 2017).

    .. math:: \mathrm{sigmoid}((\mathrm{logit}\,\gamma + \mathrm{logit}\,u) / t)

    Thresholding the relaxed spike at 1/2 gives an exact one, so `hard` draws have the exact distribution.

    Args:
        temperature: t, above 0; lower is closer to a step and has noisier gradients.
        hard: exact spikes in the forward pass (default) or relaxed ones.
    """

    temperature: Tensor

    def __init__(self, temperature: float = 0.5, hard: bool = True) -> None:
        super().__init__("temperature", temperature, hard)

    def draw(self, logits: Tensor) -> SpikeDraw:
        perturbed = logits + _logistic_noise(logits)
        hard = (perturbed.detach() > 0).to(logits.dtype)
        soft = torch.sigmoid(perturbed / self.temperature).to(logits.dtype)
        return SpikeDraw(hard, _with_gradient_of(hard, soft) if self.hard else soft)


class ShiftedSigmoid(_RelaxedGate):
    r"""The relaxation of the VSC paper, :math:`T = \mathrm{sigmoid}(c (u - 1 + \gamma))` (Tonolini et al., 2020).

    Soft as published: T is never exactly zero. So the decoder sees every slab, even if the KL charges next to nothing
    for it, and the bound that is trained *leaks*. `vsc_pyro.evaluate` reports by how much, as the relaxation gap.

    Args:
        c: steepness, above 0 (the paper: 50 rising to 200).
        hard: exact spikes in the forward pass (which differs from the paper) or soft ones (default).
    """

    c: Tensor

    def __init__(self, c: float = 50.0, hard: bool = False) -> None:
        super().__init__("c", c, hard)

    def draw(self, logits: Tensor) -> SpikeDraw:
        shifted = _uniform(logits) - 1 + torch.sigmoid(logits)
        hard = (shifted.detach() > 0).to(logits.dtype)
        soft = torch.sigmoid(self.c * shifted).to(logits.dtype)
        return SpikeDraw(hard, _with_gradient_of(hard, soft) if self.hard else soft)


class ScoreFunction(Gate):
    """Exact spikes without a relaxation: unbiased, by the ELBO's score-function (REINFORCE) term (Williams, 1992)."""

    reparametrized: ClassVar[bool] = False

    def draw(self, logits: Tensor) -> SpikeDraw:
        hard = (logits.detach() + _logistic_noise(logits) > 0).to(logits.dtype)
        return SpikeDraw(hard, hard, torch.where(hard > 0, logsigmoid(logits), logsigmoid(-logits)))


class DisARM(ScoreFunction):
    r"""Antithetic pairs of exact spikes: unbiased, and far less noisy (Dong et al., 2020; Yin et al., 2020).

    Two draws of a code share their slabs and, with opposite signs, the noise of their spikes s and s'. Let f and f' be
    their learning signals. The gradient with respect to the log-odds l of a latent's inclusion is

    .. math:: \tfrac12 (f - f')\,(s - s')\,\mathrm{sigmoid}(|l|),

    which is zero where the two spikes agree. Each pair is a pair of particles: ``fit(..., gate="disarm")`` draws two of
    each code (`num_draws` may be any even number), and so do ELBOs with ``num_particles=2, vectorize_particles=True``.
    Draws that are not particles of an ELBO are independent.
    """

    draws_at_once: ClassVar[int] = 2

    def draw_together(self, logits: Tensor) -> SpikeDraw:
        noise = _logistic_noise(logits[: len(logits) // 2])
        hard = (logits.detach() + torch.cat([noise, -noise]) > 0).to(logits.dtype)
        first, second = hard.chunk(2)
        weight = (first - second) * torch.sigmoid(logits.detach().abs()[: len(noise)])
        # Opposite signs: an ELBO multiplies each half by its own signal, and so both by the difference.
        return SpikeDraw(hard, hard, torch.cat([weight, -weight]) * logits)


GATES: dict[str, type[Gate]] = {
    "straight-through": StraightThrough,
    "concrete": BinaryConcrete,
    "shifted-sigmoid": ShiftedSigmoid,
    "score": ScoreFunction,
    "disarm": DisARM,
}


def get_gate(gate: str | Gate) -> Gate:
    """Return the gate of that name with its default settings, or the `Gate` object itself.

    Raises:
        ValueError: an unknown name; the message lists the known ones.

    Example:
        >>> get_gate("concrete")
        BinaryConcrete(temperature=0.5, hard=True)
    """
    return gate if isinstance(gate, Gate) else choice("gate", gate, GATES)()
