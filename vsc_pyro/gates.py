r"""Gates draw a spike and define how a gradient passes it.

A spike :math:`s \in \{0, 1\}` is on with probability :math:`\gamma`, given by its log-odds. Every gate draws it from
one uniform number :math:`u`,

.. math:: s = [u > 1 - \gamma] = [\mathrm{logit}(u) + \mathrm{logit}(\gamma) > 0],

and multiplies the slab by a *factor*. The factor's value is :math:`s`, or a number in (0, 1) for a soft gate. Gates
differ in the derivative of the factor. They are small `torch.nn.Module`s, and every argument `gate` also takes a name:

====================  ===================  ========================================  ============================
name                  factor, forward      derivative                                bias
====================  ===================  ========================================  ============================
``straight-through``  :math:`s`            derivative of :math:`\gamma`              likelihood
``reinmax``           :math:`s`            derivative of :math:`\gamma`, weighted    likelihood, unless quadratic
``concrete``          :math:`s` (or soft)  derivative of the relaxed spike           likelihood
``shifted-sigmoid``   soft (or :math:`s`)  derivative of the relaxed spike           likelihood; the bound leaks
``score``             :math:`s`            none: an ELBO adds a score-function term  none
``disarm``            :math:`s`, in pairs  none: an ELBO adds a term for each pair   none
====================  ===================  ========================================  ============================

The last two leave the spikes' gradient to the ELBO. ``score`` is noisy with one draw of each code. With several draws,
the ELBOs of `vsc_pyro.objectives` subtract the mean of the other draws (a leave-one-out baseline). ``disarm`` draws
codes in antithetic pairs. It works with these ELBOs, and with Pyro's `Trace_ELBO` and `TraceEnum_ELBO` if their
particles are vectorised. If a guide site is absent from the model, `Trace_ELBO` biases both gates at that site, as any
discrete site; the library warns of it.

References
    Y. Bengio, N. Léonard, A. Courville (2013), Estimating or propagating gradients through stochastic neurons.
    C. J. Maddison, A. Mnih, Y. W. Teh (2017), The concrete distribution.
    F. Tonolini, B. S. Jensen, R. Murray-Smith (2020), Variational sparse coding (the shifted sigmoid).
    R. J. Williams (1992), Simple statistical gradient-following algorithms (the score function).
    Z. Dong, A. Mnih, G. Tucker (2020), DisARM: an antithetic gradient estimator for binary latent variables.
    M. Yin, N. Ho, B. Yan, X. Qian, M. Zhou (2020), Probabilistic best subset selection via gradient-based optimization
    (the same estimator, found independently).
    L. Liu, C. Dong, X. Liu, B. Yu, J. Gao (2023), Bridging discrete and backpropagation: straight-through and beyond.
"""

from __future__ import annotations

import copy
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from vsc_pyro._arguments import choice, positive_float
from vsc_pyro._scalars import ScalarModule, seven_digits


class SpikeDraw(NamedTuple):
    """One draw of spikes.

    Attributes:
        hard: exact spikes, 0 or 1, without gradient; same shape as the logits.
        factor: the number that multiplies the slab, same shape: the gate's forward value, with its gradient.
        score: the term that an ELBO multiplies by the draw's learning signal and differentiates, same shape; None if
            the factor carries the gradient.
    """

    hard: Tensor
    factor: Tensor
    score: Tensor | None = None


class Gate(ScalarModule):
    """Base class of gates, the gradient estimators of a spike. A subclass defines `draw`.

    Call ``self.register_scalar("temperature", 0.5)`` in the constructor for a number that a schedule may move.

    Attributes:
        reparametrized: True if the factor carries a gradient with respect to the logits. If False, the distribution
            reports itself as not reparametrised, and the ELBO adds a score-function term.
        draws_at_once: number of draws of one code that one gradient needs; `draw_together` draws them.

    Example:
        >>> import torch
        >>> import vsc_pyro as vsc
        >>> class Mean(vsc.gates.Gate):
        ...     def draw(self, logits):
        ...         probability = torch.sigmoid(logits)
        ...         return vsc.gates.SpikeDraw(torch.bernoulli(probability), probability)
        >>> Mean().draw(torch.zeros(3)).factor
        tensor([0.5000, 0.5000, 0.5000])
    """

    reparametrized: ClassVar[bool] = True
    draws_at_once: ClassVar[int] = 1

    def draw(self, logits: Tensor) -> SpikeDraw:
        """Draw one spike for each element of `logits` (the log-odds of being on, any shape)."""
        raise NotImplementedError(f"{type(self).__name__} must define draw(logits)")

    def draw_together(self, logits: Tensor) -> SpikeDraw:
        """Draw spikes that share one gradient. The first dimension of `logits` indexes draws of one code.

        Only gates with `draws_at_once` above 1 need this method. The size of that dimension is a
        multiple of `draws_at_once`.
        """
        raise NotImplementedError(f"{type(self).__name__} must define draw_together(logits)")

    def hardened(self) -> Gate:
        """Return a gate with exact spikes in the forward pass; this gate itself if its spikes are exact."""
        return self


class _RelaxedGate(Gate):
    """A gate with one positive parameter of the relaxed spike, and hard or soft forward values."""

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
        return f"{self._name}={seven_digits(getattr(self, self._name))}, hard={self.hard}"


def _uniform(logits: Tensor) -> Tensor:
    # At least float32: 8 random bits are too few to resolve the probability of a rare spike.
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


class ReinMax(Gate):
    r"""Exact spikes with a second-order accurate gradient: no bias for quadratic likelihoods (Liu et al., 2023).

    The derivative with respect to the log-odds of :math:`E f(s)` is :math:`\gamma (1 - \gamma) (f(1) - f(0))`. The
    trapezoidal rule replaces the difference by :math:`\tfrac12 (f'(0) + f'(1))`, of which a draw knows one term, so

    .. math:: \frac{\gamma (1 - \gamma)}{2\, P(s)}\, f'(s)

    is the estimate. The rule is exact if :math:`f` is at most quadratic in each spike, as the log-density of a linear
    decoder or a linear regression with Gaussian noise is. Otherwise the bias is of third order.
    """

    def draw(self, logits: Tensor) -> SpikeDraw:
        hard = (logits.detach() + _logistic_noise(logits) > 0).to(logits.dtype)
        other = torch.sigmoid(torch.where(hard > 0, -logits, logits).detach())  # the probability of the other value
        # Clamped, because 0 times an infinite log-odds is no number; beyond 100 the derivative is negligible.
        return SpikeDraw(hard, _with_gradient_of(hard, other / 2 * logits.clamp(-100, 100)))


class BinaryConcrete(_RelaxedGate):
    r"""Binary concrete spikes (Maddison et al., 2017).

    .. math:: \mathrm{sigmoid}((\mathrm{logit}\,\gamma + \mathrm{logit}\,u) / t)

    Thresholding the relaxed spike at 1/2 gives an exact spike, so `hard` draws have the exact distribution.

    Args:
        temperature: t, above 0; a lower one is closer to a step and has noisier gradients.
        hard: True (default) for exact spikes in the forward pass, False for relaxed ones.

    Raises:
        ValueError: a temperature that is not a finite number above 0.
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

    The published gate is soft: T is never exactly zero. The decoder then sees every slab, even one that costs next to
    nothing in the KL divergence, so the training bound *leaks*. `vsc_pyro.evaluate` reports the difference from the
    bound with exact spikes as the relaxation gap.

    Args:
        c: steepness, above 0 (in the paper 50, rising to 200).
        hard: False (default) for soft spikes in the forward pass, True for exact ones, unlike the paper.

    Raises:
        ValueError: a steepness that is not a finite number above 0.
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
    """Exact spikes with the unbiased score-function (REINFORCE) gradient, a term of the ELBO (Williams, 1992)."""

    reparametrized: ClassVar[bool] = False

    def draw(self, logits: Tensor) -> SpikeDraw:
        hard = (logits.detach() + _logistic_noise(logits) > 0).to(logits.dtype)
        return SpikeDraw(hard, hard, torch.where(hard > 0, logsigmoid(logits), logsigmoid(-logits)))


class DisARM(ScoreFunction):
    r"""Exact spikes in antithetic pairs: unbiased, less noisy than `ScoreFunction` (Dong et al., Yin et al., 2020).

    Two draws of a code share their slabs. The noise of their spikes s and s' has opposite signs. Let f and f' be their
    learning signals. The gradient with respect to the log-odds l of a latent's inclusion is

    .. math:: \tfrac12 (f - f')\,(s - s')\,\mathrm{sigmoid}(|l|),

    which is zero if the two spikes agree. A pair of draws is a pair of particles. ``fit(..., gate="disarm")`` draws two
    particles of each code, or `num_draws` of them, an even number; so does an ELBO with ``num_particles=2,
    vectorize_particles=True``. Draws outside an ELBO are independent.
    """

    draws_at_once: ClassVar[int] = 2

    def draw_together(self, logits: Tensor) -> SpikeDraw:
        noise = _logistic_noise(logits[: len(logits) // 2])
        hard = (logits.detach() + torch.cat([noise, -noise]) > 0).to(logits.dtype)
        first, second = hard.chunk(2)
        weight = (first - second) * torch.sigmoid(logits.detach().abs()[: len(noise)])
        # An ELBO multiplies each half by its own signal; the opposite signs make that the difference of signals.
        return SpikeDraw(hard, hard, torch.cat([weight, -weight]) * logits)


GATES: dict[str, type[Gate]] = {
    "straight-through": StraightThrough,
    "reinmax": ReinMax,
    "concrete": BinaryConcrete,
    "shifted-sigmoid": ShiftedSigmoid,
    "score": ScoreFunction,
    "disarm": DisARM,
}


def get_gate(gate: str | Gate) -> Gate:
    """Return the gate of that name with its default settings; a `Gate` object is returned unchanged.

    Raises:
        ValueError: an unknown name; the message lists the known ones.

    Example:
        >>> import vsc_pyro as vsc
        >>> vsc.gates.get_gate("concrete")
        BinaryConcrete(temperature=0.5, hard=True)
    """
    return gate if isinstance(gate, Gate) else choice("gate", gate, GATES)()
