r"""The spike-and-slab distribution: density, moments, draws and score.

.. math:: q(z) = \gamma\, F(z) + (1 - \gamma)\, \delta_0(z)

The slab :math:`F` is any reparametrised distribution of a scalar without atoms, and :math:`\gamma = P(z \neq 0)` is the
*inclusion* probability. Densities are with respect to Lebesgue measure plus a unit point mass at zero:

.. math:: \log q(z) = \log(1 - \gamma) \;\text{if}\; z = 0, \qquad \log \gamma + \log F(z) \;\text{otherwise,}

so the mass at zero and the integral of the density add up to one.

**Gradients.** A draw carries its slab and its spike, so that the gradient of `log_prob` is unbiased; see
`vsc_pyro.distributions.draws`. A value computed from a draw counts as a copy of it, counts as an unrelated number, or
is refused; see `vsc_pyro.distributions.draw_memory`. The gate determines the gradient of the likelihood; see
`vsc_pyro.gates`.

**Objectives.** `RenyiELBO`, `TraceTailAdaptive_ELBO`, `TraceTMC_ELBO` and a mixture prior whose component is
enumerated are not linear in log-densities. Under them the gate biases the KL part as well, and a warning says so.
``gate="score"`` is unbiased under `Trace_ELBO`, `TraceGraph_ELBO` and `TraceEnum_ELBO`, with one exception: Pyro's
`Trace_ELBO` biases any discrete site that only the guide has, and a warning says so. For `score`, ELBOs without score
functions are refused. ``gate="disarm"`` is refused under `TraceGraph_ELBO`.

HMC, NUTS and automatic guides are refused: they move an unconstrained number, which never reaches the atom. A
`TransformedDistribution` is refused too: it would multiply the mass of the atom by a Jacobian.

References
    T. J. Mitchell, J. J. Beauchamp (1988), Bayesian variable selection in linear regression (spike and slab).
    M. K. Titsias, M. Lázaro-Gredilla (2011), Spike and slab variational inference for multi-task learning.
    F. Tonolini, B. S. Jensen, R. Murray-Smith (2020), Variational sparse coding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, cast

import torch
from pyro.distributions import Independent, TorchDistribution
from pyro.distributions.score_parts import ScoreParts
from pyro.distributions.util import sum_rightmost
from torch import Tensor
from torch.distributions import Distribution, biject_to, constraints
from torch.distributions.utils import lazy_property, logits_to_probs, probs_to_logits
from torch.nn.functional import logsigmoid
from torch.types import _size

from vsc_pyro._pyro_internals import current_request, transformation_around
from vsc_pyro.distributions import families
from vsc_pyro.distributions.atoms import is_atom_free
from vsc_pyro.distributions.draw_memory import LostDrawError, copy_of
from vsc_pyro.distributions.draws import NO_TERM, CentredScoreParts, Draw, draw_of, remember
from vsc_pyro.distributions.estimators import (
    averages_particles,
    check_drawn_by_guide,
    check_estimator,
    warn_of_several_scores,
)
from vsc_pyro.distributions.spikes import bounded, spike_entropy, to_float32
from vsc_pyro.distributions.support import WithZero
from vsc_pyro.gates import Gate, get_gate

if TYPE_CHECKING:
    from jaxtyping import Float


class SpikeSlab(TorchDistribution):
    r"""Spike-and-slab distribution :math:`\gamma F + (1 - \gamma)\delta_0` of a scalar.

    Args:
        slab: the slab F: a reparametrised Pyro or torch distribution of scalars without atoms, any batch shape.
        logits: log-odds of the inclusion probability :math:`\gamma = P(z \neq 0)`, broadcast against the slab.
        probs: the inclusion probability, in [0, 1]; pass either `logits` or `probs`.
        gate: the gradient estimator of the spike: a name or a `Gate`, see `vsc_pyro.gates`.
        validate_args: as in `torch.distributions`.

    Shapes:
        `batch_shape` is the broadcast shape of slab and log-odds; `event_shape` is ``()``. Use ``.to_event(1)`` for a
        code of several latents.

    Raises:
        ValueError: neither or both of `logits` and `probs`; a slab with an atom, without `rsample`, or of vectors.

    Example:
        >>> import pyro.distributions as dist
        >>> import torch
        >>> import vsc_pyro as vsc
        >>> q = vsc.SpikeSlab(dist.Normal(torch.tensor([0.0, 2.0]), 1.0), probs=torch.tensor([0.0, 0.5])).to_event(1)
        >>> q.mean
        tensor([0., 1.])
        >>> q.log_prob(torch.zeros(2)).exp()  # the mass at the origin
        tensor(0.5000)
    """

    arg_constraints: ClassVar[Any] = {"logits": constraints.real, "probs": constraints.unit_interval}

    def __init__(
        self,
        slab: Distribution,
        logits: Tensor | float | None = None,
        probs: Tensor | float | None = None,
        gate: str | Gate = "concrete",
        validate_args: bool | None = None,
    ) -> None:
        if (logits is None) == (probs is None):
            raise ValueError("give exactly one of logits and probs, the log-odds or the probability of inclusion")
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
        setattr(self, "logits" if probs is None else "probs", parameter.expand(batch_shape))
        super().__init__(batch_shape, validate_args=validate_args)

    @lazy_property
    def logits(self) -> Tensor:
        """Log-odds of inclusion, shape `batch_shape`."""
        # torch clamps probabilities by the precision of their dtype, which in bfloat16 would raise 0.002 to 0.008.
        return probs_to_logits(to_float32(self.probs), is_binary=True).to(self.probs.dtype)

    @lazy_property
    def probs(self) -> Tensor:
        """Inclusion probability P(z != 0), shape `batch_shape`."""
        return logits_to_probs(self.logits, is_binary=True)

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> constraints.Constraint:  # pyright: ignore[reportIncompatibleMethodOverride] as torch declares it
        return WithZero(self._slab_support)

    @property
    def _slab_support(self) -> constraints.Constraint:
        return cast("constraints.Constraint", self.slab.support)

    @property
    def has_rsample(self) -> bool:
        return self.gate.reparametrized

    def has_rsample_(self, value: bool) -> NoReturn:
        raise NotImplementedError(
            "the gate determines if a SpikeSlab is reparametrised; build it with gate='score' for the score function"
        )

    def expand(self, batch_shape: _size, _instance: SpikeSlab | None = None) -> SpikeSlab:
        new = cast("SpikeSlab", self._get_checked_instance(SpikeSlab, _instance))
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

    # Moments ---------------------------------------------------------------------------------------------------------

    @lazy_property
    def mean(self) -> Tensor:
        r""":math:`\gamma m`, m the slab's mean; shape `batch_shape`."""
        return self.probs * self.slab.mean

    @property
    def variance(self) -> Tensor:
        r""":math:`\gamma (v + m^2) - \gamma^2 m^2`, m and v the slab's mean and variance; shape `batch_shape`."""
        # This form is never negative after rounding.
        slab_mean = self.slab.mean
        return self.probs * torch.addcmul(families.variance_of(self.slab), slab_mean, slab_mean - self.mean)

    def entropy(self) -> Tensor:
        r"""Return the entropy with respect to the base measure, :math:`H(\gamma) + \gamma h(F)`, in nats."""
        return spike_entropy(self.logits) + self.probs * self.slab.entropy()

    def cdf(self, value: Tensor) -> Tensor:
        r"""Return :math:`P(z \le \text{value}) = \gamma F(\text{value}) + (1 - \gamma) [\text{value} \ge 0]`."""
        support = self._slab_support
        inside = support.check(value)
        point = biject_to(support)(torch.zeros_like(value))
        # Outside its support the slab's cdf is 0 or 1, and torch refuses to evaluate it there.
        within = self.slab.cdf(torch.where(inside, value, point))
        slab_cdf = torch.where(inside, within, (value > point).to(within.dtype))
        return self.probs * slab_cdf + (1 - self.probs) * (value >= 0)

    # Drawing ---------------------------------------------------------------------------------------------------------

    def sample(self, sample_shape: _size = torch.Size()) -> Tensor:
        """Draw exactly, with zeros, for any gate and without gradient; shape `sample_shape + batch_shape`."""
        shape = self._extended_shape(sample_shape)
        with torch.no_grad():
            spike = self.gate.draw(self.logits.expand(shape)).hard
            slab = self.slab.sample(sample_shape)
            return torch.where(spike > 0, slab, torch.zeros_like(slab))

    def rsample(self, sample_shape: _size = torch.Size()) -> Tensor:
        """Draw with the gate's forward value and gradient; shape `sample_shape + batch_shape`.

        Under `torch.no_grad`, spikes are exact for any gate.

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
        """Draw as `pyro.sample` does: the slab pathwise, the spike by the gate."""
        return self._draw(sample_shape)

    def _draw(self, sample_shape: _size) -> Tensor:
        logits = self.logits.expand(self._extended_shape(sample_shape))
        if not self.has_rsample and logits.requires_grad and torch.is_grad_enabled():
            check_drawn_by_guide(self.gate)
        at_once = self.gate.draws_at_once
        if at_once == 1:
            (hard, factor, score), slab = self.gate.draw(logits), self.slab.rsample(sample_shape)
        elif (one_slab := self._slab_of_particles(sample_shape)) is not None and len(logits) % at_once == 0:
            slab = one_slab.expand(logits.shape[1:]).rsample((len(logits) // at_once,))
            (hard, factor, score), slab = self.gate.draw_together(logits), torch.cat(at_once * [slab])
        else:  # independent draws; without their score an ELBO that needs it raises an error
            (hard, factor, _), score, slab = self.gate.draw(logits), None, self.slab.rsample(sample_shape)
        if not torch.is_grad_enabled():  # a hard draw determines its density, so it carries nothing
            return self._gated(hard, slab)
        spike = hard
        if self.has_rsample:
            probs = torch.sigmoid(logits)
            spike = hard + (probs - probs.detach())
        return remember(Draw(slab, spike, self._gated(factor, slab), self, score))

    def _slab_of_particles(self, sample_shape: _size) -> Distribution | None:
        """Return the slab of each particle if the first dimension is an ELBO's particles, else None."""
        # Draws along any other dimension, such as latents or data, have to be independent.
        return self._one_slab if not sample_shape and self._one_slab is not None and averages_particles() else None

    def _gated(self, factor: Tensor, slab: Tensor) -> Tensor:
        return factor * slab

    # Densities -------------------------------------------------------------------------------------------------------

    def log_prob(self, value: Float[Tensor, "*value"]) -> Float[Tensor, "*broadcast"]:
        """Return the log-density with respect to Lebesgue measure plus a unit point mass at zero, in nats.

        The value of a draw (by `rsample` or `pyro.sample`) is scored with the slab and spike that it carries, which
        makes the gradient unbiased; any other value is scored by whether it equals zero.

        Args:
            value: z, a shape that broadcasts against `batch_shape`.

        Raises:
            ValueError: a value computed from a draw that is neither a copy of it nor an unrelated number; a copy scored
                by a component of a mixture; this distribution is the base of a `TransformedDistribution`.
        """
        self._refuse_transformation()
        draw = draw_of(value)
        if draw is not None:
            log_on, log_off = self._log_probs_of_spikes()
            log_prob = draw.spike * (log_on + self.slab.log_prob(draw.slab)) + (1 - draw.spike) * log_off
            if draw.spike.requires_grad and log_prob.shape != draw.spike.shape:
                warn_of_several_scores(draw.by.gate)
            return log_prob
        copy = copy_of(value)
        if copy is None:
            if self._validate_args:
                self._validate_sample(value)
            return self._log_prob_of(value, logsigmoid(self.logits), logsigmoid(-self.logits))
        on, off = (self._log_prob_of(number, *self._log_probs_of_spikes()) for number in (copy.on, copy.off))
        log_prob = copy.spike * on + (1 - copy.spike) * off
        if log_prob.shape != value.shape:  # a mixture's components, whose log-sum-exp is not linear in the spike
            raise LostDrawError(copy.gate)
        if copy.is_repeated:
            warn_of_several_scores(copy.gate)
        return log_prob

    def score_parts(self, value: Tensor) -> ScoreParts:
        """Return the terms that Pyro's ELBOs differentiate, see `pyro.distributions.Distribution.score_parts`.

        Raises:
            ValueError: a value that has lost the draw it came from, as in `log_prob`; a gate that draws several codes
                together, under an ELBO that draws one.
            NotImplementedError: an ELBO without an estimator for ``gate="score"`` or ``"disarm"``, see
                `vsc_pyro.distributions.estimators`.
        """
        draw = draw_of(value)
        log_prob = self.log_prob(value)
        if value.requires_grad or not self.has_rsample:
            check_estimator(self.gate if draw is None else draw.by.gate)
        if self.has_rsample:
            return ScoreParts(log_prob, NO_TERM, log_prob)
        at_once = self.gate.draws_at_once
        if draw is not None and draw.by is self:
            if draw.score is not None:
                return (CentredScoreParts if at_once > 1 else ScoreParts)(log_prob, draw.score, log_prob)
            if current_request() is not None:
                raise ValueError(
                    f"{self.gate!r} takes its gradient from {at_once} draws of a code, so the number of vectorised "
                    f"particles must be a multiple of {at_once}; pass num_draws={at_once} to fit, or "
                    f"num_particles={at_once}, vectorize_particles=True to the ELBO"
                )
        lost = value.requires_grad if draw is None else draw.by is not self and draw.score is not None
        if at_once > 1 and lost and torch.is_grad_enabled():
            raise LostDrawError(self.gate, " (only the distribution that drew a pair can score it)")
        if not value.requires_grad:
            return ScoreParts(log_prob, log_prob, NO_TERM)
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
        logits = bounded(self.logits)  # the term of a spike that is never drawn is then 0, not 0 times inf
        return logsigmoid(logits), logsigmoid(-logits)

    def _log_prob_of(self, number: Tensor, log_on: Tensor, log_off: Tensor) -> Tensor:
        zero = number == 0
        return torch.where(zero, log_off, log_on + self.slab.log_prob(self._inside_slab_support(number, zero)))

    def _inside_slab_support(self, value: Tensor, zero: Tensor) -> Tensor:
        # At zero the slab's density is not used, but its gradient must not be NaN and its check must not fail.
        support = self._slab_support
        if support is constraints.real:
            return value
        return torch.where(zero, biject_to(support)(torch.zeros_like(value)), value)


class IndependentSpikeSlab(Independent):
    """A `SpikeSlab` whose rightmost batch dimensions are event dimensions; ``.to_event(n)`` returns it.

    With `score`, Pyro's `Independent` would apply the score function to the slab as well. Here the slab stays pathwise.
    """

    base_dist: SpikeSlab

    def to_event(self, reinterpreted_batch_ndims: int | None = None) -> SpikeSlab | IndependentSpikeSlab:
        ndims = len(self.batch_shape) if reinterpreted_batch_ndims is None else reinterpreted_batch_ndims
        return self.base_dist.to_event(ndims + self.reinterpreted_batch_ndims)

    def has_rsample_(self, value: bool) -> TorchDistribution:
        return self.base_dist.has_rsample_(value)

    def __call__(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        return self.base_dist(sample_shape)

    def score_parts(self, value: Tensor) -> ScoreParts:
        parts = self.base_dist.score_parts(value)
        return type(parts)(*(sum_rightmost(part, self.reinterpreted_batch_ndims) for part in parts))


is_atom_free.register(SpikeSlab, lambda q: False)
families.inclusion_logits.register(SpikeSlab, lambda q: q.logits)
families.slab_of.register(SpikeSlab, lambda q: q.slab)
families.has_mean.register(SpikeSlab, lambda q: families.has_mean(q.slab))
families.centre.register(SpikeSlab, lambda q: q.probs * families.centre(q.slab))


@families.changed.register
def _changed(distribution: SpikeSlab, change: families.Change) -> SpikeSlab:
    slab = families.changed(distribution.slab, families.of_part("slab", change))
    logits = change("logits", distribution.logits, constraints.real)
    return SpikeSlab(slab, logits=logits, gate=distribution.gate, validate_args=False)
