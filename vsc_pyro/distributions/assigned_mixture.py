r"""A mixture prior whose component is a latent variable with a posterior of its own.

For components :math:`p_u(z)` with weights :math:`\pi_u` and an assignment :math:`r_u = q(u|x)`, Jensen's inequality
gives a lower bound on the mixture's log-density,

.. math:: \log \sum_u \pi_u p_u(z) \;\ge\; \sum_u r_u \left[\log p_u(z) + \log \pi_u - \log r_u\right].

An ELBO with the latent u, enumerated exactly, has the right side in place of :math:`\log p(z)`. It is linear in the
components' log-densities, so the gradient of a relaxed spike stays unbiased; the logarithm of the sum on the left would
bias it. The divergence is a sum over components,

.. math:: KL(q \| p) = \sum_u r_u\, KL(q \| p_u) + KL(r \| \pi),

with a closed form wherever each :math:`KL(q \| p_u)` has one. Tonolini et al. (2020) leave :math:`KL(r \| \pi)` out;
the result is not a bound.

References
    J. R. Hershey, P. A. Olsen (2007), Approximating the Kullback Leibler divergence between Gaussian mixture models
    (the same inequality for the divergence between mixtures).
    F. Tonolini, B. S. Jensen, R. Murray-Smith (2020), Variational sparse coding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, cast

import torch
from pyro.distributions import (
    Categorical,
    Independent,
    MixtureSameFamily,  # pyright: ignore[reportAttributeAccessIssue] created when Pyro is imported
    TorchDistribution,
)
from pyro.distributions.score_parts import ScoreParts
from torch import Tensor
from torch.distributions import Distribution, constraints, register_kl
from torch.types import _size

from vsc_pyro.distributions.draws import expand_draw
from vsc_pyro.distributions.pairwise import insert_batch_dims, pairwise_kl
from vsc_pyro.distributions.spike_slab import IndependentSpikeSlab, SpikeSlab

if TYPE_CHECKING:
    from jaxtyping import Float


class AssignedMixture(TorchDistribution):
    r"""A mixture with an assignment of each datum to its components.

    .. math:: \sum_u r_u \left[\log p_u(z) + \log \pi_u - \log r_u\right] \le \log \sum_u \pi_u p_u(z)

    `log_prob` returns the left side, a lower bound on the mixture's log-density; `sample` draws from the mixture.

    Args:
        components: spike-and-slabs, or a family with real parameters such as Normal; `batch_shape` ``(U,)``.
        log_weights: :math:`\log \pi_u`, shape ``(U,)``.
        log_assignment: :math:`\log r_u`, shape ``(*, U)``; ``(*)`` becomes the `batch_shape`.
        charge_assignment: subtract :math:`KL(r \| \pi)` from `log_prob`. Otherwise it is not a bound.

    Example:
        >>> import pyro.distributions as dist
        >>> import torch
        >>> from vsc_pyro.distributions import AssignedMixture
        >>> components = dist.Normal(torch.tensor([[-1.0], [1.0]]), 1.0).to_event(1)
        >>> mixture = AssignedMixture(components, torch.tensor([0.5, 0.5]).log(), torch.tensor([[0.1, 0.9]]).log())
        >>> z = torch.tensor([[0.8]])
        >>> (mixture.log_prob(z) < mixture.mixture.log_prob(z)).item()
        True
    """

    arg_constraints: ClassVar[Any] = {}
    # For a prior with has_rsample = False, Pyro's TraceGraph_ELBO wraps the guide's draw, which would then be lost.
    has_rsample = True

    def __init__(
        self, components: Distribution, log_weights: Tensor, log_assignment: Tensor, charge_assignment: bool = True
    ) -> None:
        self.component_distribution = components
        self.log_weights = log_weights
        self.log_assignment = log_assignment
        self.charge_assignment = charge_assignment
        super().__init__(log_assignment.shape[:-1], components.event_shape, validate_args=False)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint | None:
        return self.component_distribution.support

    @property
    def mixture(self) -> MixtureSameFamily:
        r"""The mixture :math:`\sum_u \pi_u p_u`, `batch_shape` ``()``."""
        return MixtureSameFamily(Categorical(logits=self.log_weights), self.component_distribution)

    def expand(self, batch_shape: _size, _instance: AssignedMixture | None = None) -> AssignedMixture:
        new = cast("AssignedMixture", self._get_checked_instance(AssignedMixture, _instance))
        batch_shape = torch.Size(batch_shape)
        assignment = self.log_assignment.expand(batch_shape + self.log_weights.shape)
        AssignedMixture.__init__(new, self.component_distribution, self.log_weights, assignment, self.charge_assignment)
        return new

    def sample(self, sample_shape: _size = torch.Size()) -> Tensor:
        return self.mixture.expand(self.batch_shape).sample(sample_shape)

    def __call__(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        return self.sample(sample_shape)

    def rsample(self, sample_shape: _size = torch.Size()) -> NoReturn:
        raise NotImplementedError("draws of a mixture have no pathwise gradient; call sample()")

    def _components_against(self, value: Tensor) -> tuple[TorchDistribution, Tensor]:
        """Return the components and `value`, both with U as the leftmost dimension, so that one call scores all."""
        components = insert_batch_dims(self.component_distribution, value.dim() - len(self.event_shape))
        return cast("TorchDistribution", components), expand_draw(value, self.log_weights.shape + value.shape)

    def log_prob(self, value: Float[Tensor, "*value latents"]) -> Float[Tensor, "*broadcast"]:
        components, values = self._components_against(value)
        each = components.log_prob(values)
        return self.expectation(each.movedim(0, -1)) - self.assignment_kl()

    def expectation(self, each: Tensor) -> Tensor:
        r"""Return :math:`\sum_u r_u f_u` of values `each`, shape ``(*, U)``; where r is 0, they may be infinite."""
        assignment = self.log_assignment.exp()
        return (assignment * each.masked_fill(assignment == 0, 0.0)).sum(-1)

    def score_parts(self, value: Tensor) -> ScoreParts:
        components, values = self._components_against(value)
        components.score_parts(values)  # raises if the ELBO has no estimator for the draw's gate
        return super().score_parts(value)

    def assignment_kl(self) -> Tensor:
        r"""Return :math:`KL(r \| \pi)` in nats, or zeros if it is not charged; shape `batch_shape`."""
        if not self.charge_assignment:
            return self.log_assignment.new_zeros(self.batch_shape)
        return self.expectation(self.log_assignment - self.log_weights)


@register_kl(Distribution, AssignedMixture)
def _kl_assigned(p: Distribution, q: AssignedMixture) -> Tensor:
    r"""Return :math:`\sum_u r_u\, KL(p \| q_u) + KL(r \| \pi)`."""
    each = pairwise_kl(p, q.component_distribution)
    return q.expectation(each) + q.assignment_kl()


# Each of these classes has a rule for any prior, so torch would find (Distribution, AssignedMixture) ambiguous.
register_kl(Independent, AssignedMixture)(_kl_assigned)
register_kl(SpikeSlab, AssignedMixture)(_kl_assigned)
register_kl(IndependentSpikeSlab, AssignedMixture)(_kl_assigned)
