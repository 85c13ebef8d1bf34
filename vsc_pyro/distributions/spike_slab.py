r"""The spike-and-slab distribution, with a density that is one.

.. math:: q(z) = \gamma\, F(z) + (1 - \gamma)\, \delta_0(z)

The slab :math:`F` is any atom-free reparametrised distribution of a scalar and :math:`\gamma = P(z \neq 0)` the
*inclusion* probability. Densities are with respect to Lebesgue measure plus a unit atom at zero:

.. math:: \log q(z) = \log(1 - \gamma) \;\text{where}\; z = 0, \qquad \log \gamma + \log F(z) \;\text{elsewhere,}

so the mass at zero and the integral of the density add up to one, and a density is never added to a mass.

**Why a draw remembers how it was made.** A hard spike has no derivative, so :math:`\log q(z)` read off :math:`z = 0`
has none through the spike either, and `pyro.infer.Trace_ELBO` would never learn the sparsity (or, with a
straight-through spike, learn it with the wrong sign) without saying so. Given the slab draw :math:`w`, however, every
log-density is linear in the spike,

.. math:: \log q = s\,(\log\gamma + \log F(w)) + (1 - s) \log(1 - \gamma),

so with :math:`s = \text{hard} + \gamma - \text{stop}(\gamma)`, of derivative exactly one, the value is the same number
and its gradient is unbiased. A draw therefore carries :math:`(w, s)`, and `log_prob` of *any* `SpikeSlab`, guide's or
prior's, uses them where they are there. (`pyro.distributions.RelaxedBernoulliStraightThrough` carries its unrounded
value the same way.) What is left to the gate is the likelihood's part of the gradient; see `vsc_pyro.gates`.

A value that was computed from a draw is scored as a copy of it, taken as a number of its own, or refused, see
`vsc_pyro.distributions.draw_memory`. Objectives that are not linear in log-densities (`RenyiELBO`,
`TraceTailAdaptive_ELBO`, `TraceTMC_ELBO`, an enumerated mixture of priors) inherit the gate's bias in the KL part as
well, and a warning says so. ``gate="score"`` is unbiased under `Trace_ELBO`, `TraceGraph_ELBO` and `TraceEnum_ELBO`,
except that Pyro's `Trace_ELBO` biases it (as any discrete site) where the guide alone has the site, with a warning;
ELBOs without score functions are refused. ``gate="disarm"`` is refused under `TraceGraph_ELBO`.

Nothing but an ELBO reaches the atom. HMC, NUTS and automatic guides move an unconstrained number, and are refused; so
is a `TransformedDistribution`, which would multiply the atom's mass by a Jacobian.

References
    T. J. Mitchell, J. J. Beauchamp (1988), Bayesian variable selection in linear regression (spike and slab).
    M. K. Titsias, M. Lázaro-Gredilla (2011), Spike and slab variational inference for multi-task learning.
    F. Tonolini, B. S. Jensen, R. Murray-Smith (2020), Variational sparse coding.

Example:
    >>> q = SpikeSlab(Normal(torch.zeros(5), 1.0), probs=torch.tensor(0.1)).to_event(1)
    >>> q.sample((1000,)).ne(0).float().mean()  # close to 0.1
"""

from __future__ import annotations

import warnings
from typing import ClassVar, NoReturn

import torch
from pyro.distributions import Independent, TorchDistribution
from pyro.distributions.score_parts import ScoreParts
from pyro.distributions.util import sum_rightmost
from torch import Tensor
from torch.distributions import Distribution, biject_to, constraints
from torch.distributions.utils import lazy_property, logits_to_probs, probs_to_logits
from torch.nn.functional import logsigmoid

from vsc_pyro._pyro_internals import current_request, transformation_around
from vsc_pyro.distributions import families
from vsc_pyro.distributions.atoms import is_atom_free
from vsc_pyro.distributions.draw_memory import LostDrawError, copy_of
from vsc_pyro.distributions.draws import CentredScoreParts, Draw, draw_of, remember
from vsc_pyro.distributions.estimators import averages_particles, check_drawn_by_guide, check_estimator
from vsc_pyro.distributions.low_precision import in_float32
from vsc_pyro.distributions.spikes import bounded, spike_entropy, to_float32
from vsc_pyro.distributions.support import WithZero
from vsc_pyro.gates import Gate, get_gate


class SpikeSlab(TorchDistribution):
    r"""Spike-and-slab distribution :math:`\gamma F + (1 - \gamma)\delta_0` of a scalar.

    Args:
        slab: the slab F: a reparametrised, atom-free Pyro or torch distribution of scalars, any batch shape.
        logits: log-odds of the inclusion probability :math:`\gamma = P(z \neq 0)`, broadcast against the slab.
        probs: the inclusion probability itself, in [0, 1]; give exactly one of the two.
        gate: how a gradient passes the spike: a name or a `Gate`, see `vsc_pyro.gates`.
        validate_args: as everywhere in `torch.distributions`.

    Shapes:
        `batch_shape` is the broadcast of the slab's and the logits'; `event_shape` is ``()``. Use ``.to_event(1)`` for
        a code of several latents.

    Raises:
        ValueError: neither or both of `logits` and `probs`; a slab with an atom, without `rsample`, or of vectors.
    """

    arg_constraints: ClassVar = {"logits": constraints.real, "probs": constraints.unit_interval}

    def __init__(
        self,
        slab: Distribution,
        logits: Tensor | float | None = None,
        probs: Tensor | float | None = None,
        gate: str | Gate = "concrete",
        validate_args: bool | None = None,
    ) -> None:
        if (logits is None) == (probs is None):
            raise ValueError("give exactly one of logits and probs, the log-odds of being on or the probability itself")
        if not slab.has_rsample or not is_atom_free(slab):
            raise ValueError(
                f"slab must be reparametrised and free of atoms, got {type(slab).__name__}; "
                "take Normal, Laplace, Cauchy or another continuous distribution with rsample"
            )
        if slab.event_shape:
            raise ValueError(
                f"slab must be a distribution of scalars, got event_shape {tuple(slab.event_shape)}; "
                "build SpikeSlab on the scalar slab and call .to_event() on the result"
            )
        self.gate = get_gate(gate)
        self._one_slab: Distribution | None = None
        parameter = logits if probs is None else probs
        if not isinstance(parameter, Tensor):
            like = next(
                (p for p in map(slab.__dict__.get, slab.arg_constraints) if isinstance(p, Tensor)), torch.empty(0)
            )
            parameter = torch.as_tensor(parameter, dtype=like.dtype, device=like.device)
        batch_shape = slab.batch_shape
        if batch_shape != parameter.shape:  # broadcast_shapes is slow
            batch_shape = torch.broadcast_shapes(batch_shape, parameter.shape)
        self.slab = slab.expand(batch_shape) if slab.batch_shape != batch_shape else slab
        if probs is None:
            self.logits = parameter.expand(batch_shape)
        else:
            self.probs = parameter.expand(batch_shape)
        super().__init__(batch_shape, validate_args=validate_args)

    @lazy_property
    def logits(self) -> Tensor:
        """Log-odds of being on."""
        # torch clamps probabilities by the type's precision, which in bfloat16 would lift 0.002 to 0.008.
        return probs_to_logits(to_float32(self.probs), is_binary=True).to(self.probs.dtype)

    @lazy_property
    def probs(self) -> Tensor:
        """Inclusion probability, P(z != 0)."""
        return logits_to_probs(self.logits, is_binary=True)

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> constraints.Constraint:
        return WithZero(self.slab.support)

    @property
    def has_rsample(self) -> bool:
        return self.gate.reparametrized

    def has_rsample_(self, value: bool) -> NoReturn:
        raise NotImplementedError(
            "a SpikeSlab is reparametrised or not by its gate; build it with gate='score' for the score function"
        )

    def expand(self, batch_shape: torch.Size, _instance: SpikeSlab | None = None) -> SpikeSlab:
        new = self._get_checked_instance(SpikeSlab, _instance)
        batch_shape = torch.Size(batch_shape)
        new.gate = self.gate
        new._one_slab = self.slab if len(batch_shape) > len(self.batch_shape) else self._one_slab
        new.slab = self.slab.expand(batch_shape)
        for name in ("logits", "probs"):
            if name in self.__dict__:
                setattr(new, name, getattr(self, name).expand(batch_shape))
        super(SpikeSlab, new).__init__(batch_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def to_event(self, reinterpreted_batch_ndims: int | None = None) -> SpikeSlab | IndependentSpikeSlab:
        ndims = len(self.batch_shape) if reinterpreted_batch_ndims is None else reinterpreted_batch_ndims
        return IndependentSpikeSlab(self, ndims) if ndims else self

    # Moments and such ------------------------------------------------------------------------------------------------

    @property
    def mean(self) -> Tensor:
        r""":math:`\gamma m`, m the slab's mean; shape `batch_shape`."""
        return self.probs * self.slab.mean

    @property
    def variance(self) -> Tensor:
        r""":math:`\gamma (v + m^2) - \gamma^2 m^2`, m and v the slab's mean and variance; shape `batch_shape`."""
        # Equal to that, and never below zero by rounding.
        return self.probs * (self.slab.variance + (1 - self.probs) * self.slab.mean**2)

    def entropy(self) -> Tensor:
        r"""Entropy in nats with respect to the base measure, :math:`H(\gamma) + \gamma h(F)`; shape `batch_shape`."""
        return spike_entropy(self.logits) + self.probs * self.slab.entropy()

    def cdf(self, value: Tensor) -> Tensor:
        r""":math:`P(z \le \text{value}) = \gamma F(\text{value}) + (1 - \gamma) [\text{value} \ge 0]`."""
        support = self.slab.support
        inside = support.check(value)
        point = biject_to(support)(torch.zeros_like(value))
        # Outside an interval the slab's cdf is 0 below and 1 above; torch would refuse to evaluate it there.
        within = self.slab.cdf(torch.where(inside, value, point))
        slab_cdf = torch.where(inside, within, (value > point).to(within.dtype))
        return self.probs * slab_cdf + (1 - self.probs) * (value >= 0)

    # Drawing ---------------------------------------------------------------------------------------------------------

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        """Exact draws, zeros included, whatever the gate; no gradient. Shape `sample_shape + batch_shape`."""
        shape = self._extended_shape(sample_shape)
        with torch.no_grad():
            spike = self.gate.draw(self.logits.expand(shape)).hard
            slab = self.slab.sample(sample_shape)
            return torch.where(spike > 0, slab, torch.zeros_like(slab))

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        """Draws with the gate's forward value and gradient. Shape `sample_shape + batch_shape`.

        Where no gradient is taken (`torch.no_grad`), spikes are exact whatever the gate.

        Raises:
            NotImplementedError: the gate has no pathwise gradient (``"score"``); use `sample`, or an ELBO.
        """
        if not self.has_rsample:
            raise NotImplementedError(
                f"gate {self.gate!r} has no pathwise gradient through the spike; call sample(), or train with an ELBO "
                "that takes score functions, or choose gate='concrete'"
            )
        self._refuse_transformation()
        return self._draw(sample_shape)

    def __call__(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        """What `pyro.sample` draws: the slab always pathwise, the spike by the gate."""
        return self._draw(sample_shape)

    def _draw(self, sample_shape: torch.Size) -> Tensor:
        logits = self.logits.expand(self._extended_shape(sample_shape))
        if not self.has_rsample and logits.requires_grad and torch.is_grad_enabled():
            check_drawn_by_guide(self.gate)
        at_once = self.gate.draws_at_once
        if at_once == 1:
            (hard, factor, score), slab = self.gate.draw(logits), self.slab.rsample(sample_shape)
        elif self._has_particles(sample_shape) and len(logits) % at_once == 0:
            slab = self._one_slab.expand(logits.shape[1:]).rsample((len(logits) // at_once,))
            (hard, factor, score), slab = self.gate.draw_together(logits), torch.cat(at_once * [slab])
        else:  # a draw like any other, but for an ELBO that asks for its score
            (hard, factor, _), score, slab = self.gate.draw(logits), None, self.slab.rsample(sample_shape)
        if not torch.is_grad_enabled():  # a number that says all there is to say, and can be stored as it is
            return self._gated(hard, slab)
        spike = hard
        if self.has_rsample:
            probs = torch.sigmoid(logits)
            spike = hard + (probs - probs.detach())
        return remember(Draw(slab, spike, self._gated(factor, slab), self, score))

    def _has_particles(self, sample_shape: torch.Size) -> bool:
        """Whether a gradient is to be taken and the first dimension is of an ELBO's particles, alike for each."""
        # Any other dimension may be of latents or of data, whose draws have to be independent.
        return not sample_shape and self._one_slab is not None and averages_particles()

    def _gated(self, factor: Tensor, slab: Tensor) -> Tensor:
        return factor * slab

    # Densities -------------------------------------------------------------------------------------------------------

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density with respect to Lebesgue measure plus an atom at zero, shape of `value` and batch broadcast.

        A value that a `SpikeSlab` just drew (by `rsample` or `pyro.sample`) is scored by the draw it carries, with the
        unbiased gradient of the module's docstring; any other by whether it is zero.

        Raises:
            ValueError: a value computed from a draw that is neither a copy of it nor a number of its own, or a copy
                scored by a component of a mixture; a base of a `TransformedDistribution`.
        """
        self._refuse_transformation()
        draw = draw_of(value)
        if draw is not None:
            log_on, log_off = self._log_probs_of_spikes()
            log_prob = draw.spike * (log_on + self.slab.log_prob(draw.slab)) + (1 - draw.spike) * log_off
            if draw.spike.requires_grad and log_prob.shape != draw.spike.shape:
                _warn_of_several_scores(draw.by.gate)
            return log_prob
        copy = copy_of(value)
        if copy is None:
            if self._validate_args:
                self._validate_sample(value)
            return self._log_prob_of(value, logsigmoid(self.logits), logsigmoid(-self.logits))
        on, off = (self._log_prob_of(number, *self._log_probs_of_spikes()) for number in (copy.on, copy.off))
        log_prob = copy.spike * on + (1 - copy.spike) * off
        if log_prob.shape != value.shape:  # as by a mixture, in whose log-sum-exp it is not linear
            raise LostDrawError(copy.gate)
        if copy.is_repeated:
            _warn_of_several_scores(copy.gate)
        return log_prob

    def score_parts(self, value: Tensor) -> ScoreParts:
        """What Pyro's ELBOs differentiate (see `pyro.distributions.Distribution.score_parts`).

        Raises:
            ValueError: a value that has lost the draw it came from, as `log_prob`; a gate that draws several codes
                together under an ELBO that draws one.
            NotImplementedError: an ELBO that has no estimator for ``gate="score"`` or ``"disarm"``, see
                `vsc_pyro.distributions.estimators`.
        """
        draw = draw_of(value)
        log_prob = self.log_prob(value)
        if value.requires_grad or not self.has_rsample:
            check_estimator(self.gate if draw is None else draw.by.gate)
        if self.has_rsample:
            return ScoreParts(log_prob, 0, log_prob)
        at_once = self.gate.draws_at_once
        if draw is not None and draw.by is self:
            if draw.score is not None:
                return (CentredScoreParts if at_once > 1 else ScoreParts)(log_prob, draw.score, log_prob)
            if current_request() is not None:
                raise ValueError(
                    f"{self.gate!r} takes its gradient from {at_once} draws of a code, along a plate over particles, "
                    f"and there is none of a size that {at_once} divides; pass num_draws={at_once} to fit, or "
                    f"num_particles={at_once}, vectorize_particles=True to the ELBO"
                )
        lost = value.requires_grad if draw is None else draw.by is not self and draw.score is not None
        if at_once > 1 and lost and torch.is_grad_enabled():
            raise LostDrawError(self.gate, " (pairs are scored by the distribution that drew them alone)")
        if not value.requires_grad:
            return ScoreParts(log_prob, log_prob, 0)
        spike_log_prob = torch.where(value == 0, logsigmoid(-self.logits), logsigmoid(self.logits))
        return ScoreParts(log_prob, spike_log_prob, log_prob)

    def _refuse_transformation(self) -> None:
        around = transformation_around(self)
        if around is not None:
            names = ", ".join(type(transform).__name__ for transform in around.transforms)
            raise ValueError(
                f"a TransformedDistribution of a SpikeSlab ({names}) would multiply the mass of its atom by a "
                "Jacobian, as if it were a density, and score a value without the draw it came from; sample the "
                "SpikeSlab and transform the value after pyro.sample, or let pyro.infer.reparam.TransformReparam do so"
            )

    def _log_probs_of_spikes(self) -> tuple[Tensor, Tensor]:
        logits = bounded(self.logits)  # a spike that is never drawn has to count for nothing, and not for 0 times inf
        return logsigmoid(logits), logsigmoid(-logits)

    def _log_prob_of(self, number: Tensor, log_on: Tensor, log_off: Tensor) -> Tensor:
        zero = number == 0
        return torch.where(zero, log_off, log_on + self.slab.log_prob(self._inside_slab_support(number, zero)))

    def _inside_slab_support(self, value: Tensor, zero: Tensor) -> Tensor:
        # Where the value is zero the slab's density is not used, but its gradient must not be NaN nor its check fail.
        support = self.slab.support
        if support is constraints.real:
            return value
        return torch.where(zero, biject_to(support)(torch.zeros_like(value)), value)


class IndependentSpikeSlab(Independent):
    """`SpikeSlab` with its rightmost batch dimensions declared event dimensions: what ``.to_event(n)`` returns.

    Pyro's own `Independent` would hand ``gate="score"`` to the score function altogether; this one keeps the slab
    pathwise.
    """

    def to_event(self, reinterpreted_batch_ndims: int | None = None) -> SpikeSlab | IndependentSpikeSlab:
        ndims = len(self.batch_shape) if reinterpreted_batch_ndims is None else reinterpreted_batch_ndims
        return self.base_dist.to_event(ndims + self.reinterpreted_batch_ndims)

    def has_rsample_(self, value: bool) -> NoReturn:
        self.base_dist.has_rsample_(value)

    def __call__(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        return self.base_dist(sample_shape)

    def score_parts(self, value: Tensor) -> ScoreParts:
        parts = self.base_dist.score_parts(value)
        return type(parts)(*(sum_rightmost(part, self.reinterpreted_batch_ndims) for part in parts))


def _warn_of_several_scores(gate: Gate) -> None:
    warnings.warn(
        f"a draw of {gate!r} is scored under a batch of priors at once; where their log-densities meet in a "
        "log-sum-exp, as those of an enumerated mixture do, the spikes' gradient is biased in the KL part too; "
        "gate='score' is not",
        stacklevel=3,
    )


@is_atom_free.register
def _has_an_atom(distribution: SpikeSlab) -> bool:
    return False


@families.inclusion_logits.register
def _inclusion_logits(distribution: SpikeSlab) -> Tensor:
    return distribution.logits


@families.slab_of.register
def _slab(distribution: SpikeSlab) -> Distribution:
    return distribution.slab


@families.has_mean.register
def _has_mean(distribution: SpikeSlab) -> bool:
    return families.has_mean(distribution.slab)


@families.changed.register
def _changed(distribution: SpikeSlab, change: families.Change) -> SpikeSlab:
    slab = families.changed(distribution.slab, families.of_part("slab", change))
    logits = change("logits", distribution.logits, constraints.real)
    return SpikeSlab(slab, logits=logits, gate=distribution.gate, validate_args=False)


@families.centre.register
def _centre(distribution: SpikeSlab) -> Tensor:
    return distribution.probs * families.centre(distribution.slab)


@in_float32.register
def _in_float32(distribution: SpikeSlab) -> SpikeSlab:
    name = "probs" if "probs" in distribution.__dict__ else "logits"
    spikes = {name: to_float32(getattr(distribution, name))}
    return SpikeSlab(in_float32(distribution.slab), **spikes, gate=distribution.gate, validate_args=False)
