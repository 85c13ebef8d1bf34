r"""A mixture of priors whose component is a latent variable with a posterior of its own.

With components :math:`p_u(z)` of weights :math:`\pi_u` and assignment :math:`r_u = q(u|x)`, Jensen's inequality says

.. math:: \log \sum_u \pi_u p_u(z) \;\ge\; \sum_u r_u \left[\log p_u(z) + \log \pi_u - \log r_u\right],

the right side being what an ELBO with the latent u, enumerated exactly, has in place of :math:`\log p(z)`. It is linear
in the components' log-densities, so a draw of a relaxed spike keeps its unbiased gradient, which the logarithm of the
sum on the left would not leave it; and the divergence is a sum of those of the components,

.. math:: KL(q \| p) = \sum_u r_u\, KL(q \| p_u) + KL(r \| \pi),

closed wherever theirs is. (The same inequality bounds the divergence between mixtures: J. R. Hershey, P. A. Olsen,
2007.) Leaving :math:`KL(r \| \pi)` out, as Tonolini et al. (2020) do, leaves no bound.
"""

from __future__ import annotations

from typing import ClassVar, NoReturn

import torch
from pyro.distributions import Categorical, Independent, MixtureSameFamily, TorchDistribution
from pyro.distributions.score_parts import ScoreParts
from torch import Tensor
from torch.distributions import Distribution, constraints, register_kl

from vsc_pyro.distributions.draws import expand_draw
from vsc_pyro.distributions.pairwise import insert_batch_dims, pairwise_kl
from vsc_pyro.distributions.spike_slab import IndependentSpikeSlab, SpikeSlab


class AssignedMixture(TorchDistribution):
    """Mixture with an assignment of each datum to its components; see the module's docstring.

    `log_prob` is Jensen's lower bound on the mixture's log-density; `sample` draws from the mixture itself.

    Args:
        components: `batch_shape` ``(U,)``: a spike-and-slab, or a family of real parameters such as Normal.
        log_weights: :math:`\\log \\pi_u`, shape ``(U,)``.
        log_assignment: :math:`\\log r_u`, shape ``(*, U)``; ``(*)`` becomes the `batch_shape`.
        charge_assignment: take :math:`KL(r \\| \\pi)` off. Without it nothing here bounds anything.
    """

    arg_constraints: ClassVar = {}
    # Pyro's TraceGraph_ELBO would wrap a guide's draw that meets a prior without it, and the draw would be lost.
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
    def support(self) -> constraints.Constraint:
        return self.component_distribution.support

    @property
    def mixture(self) -> MixtureSameFamily:
        r"""The mixture itself, :math:`\sum_u \pi_u p_u`, of `batch_shape` ``()``."""
        return MixtureSameFamily(Categorical(logits=self.log_weights), self.component_distribution)

    def expand(self, batch_shape: torch.Size, _instance: AssignedMixture | None = None) -> AssignedMixture:
        new = self._get_checked_instance(AssignedMixture, _instance)
        batch_shape = torch.Size(batch_shape)
        assignment = self.log_assignment.expand(batch_shape + self.log_weights.shape)
        AssignedMixture.__init__(new, self.component_distribution, self.log_weights, assignment, self.charge_assignment)
        return new

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        return self.mixture.expand(self.batch_shape).sample(sample_shape)

    def __call__(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        return self.sample(sample_shape)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> NoReturn:
        raise NotImplementedError("draws of a mixture have no pathwise gradient; call sample()")

    def _components_against(self, value: Tensor) -> tuple[Distribution, Tensor]:
        """Components and value with U as the leftmost dimension, to be scored in one go."""
        components = insert_batch_dims(self.component_distribution, value.dim() - len(self.event_shape))
        return components, expand_draw(value, self.log_weights.shape + value.shape)

    def log_prob(self, value: Tensor) -> Tensor:
        components, values = self._components_against(value)
        each = components.log_prob(values)
        return (self.log_assignment.exp() * each.movedim(0, -1)).sum(-1) - self.assignment_kl()

    def score_parts(self, value: Tensor) -> ScoreParts:
        components, values = self._components_against(value)
        components.score_parts(values)  # refused where the ELBO has no estimator for the draw's gate
        return super().score_parts(value)

    def assignment_kl(self) -> Tensor:
        r""":math:`KL(r \| \pi)`, zero if it is not charged; shape `batch_shape`."""
        if not self.charge_assignment:
            return self.log_assignment.new_zeros(self.batch_shape)
        return (self.log_assignment.exp() * (self.log_assignment - self.log_weights)).sum(-1)


@register_kl(Distribution, AssignedMixture)
def _kl_assigned(p: Distribution, q: AssignedMixture) -> Tensor:
    r""":math:`\sum_u r_u\, KL(p \| q_u) + KL(r \| \pi)`."""
    each = pairwise_kl(p, q.component_distribution)
    return (q.log_assignment.exp() * each).sum(-1) + q.assignment_kl()


# Registered for each, since torch calls it ambiguous between these and the rules for any prior.
register_kl(Independent, AssignedMixture)(_kl_assigned)
register_kl(SpikeSlab, AssignedMixture)(_kl_assigned)
register_kl(IndependentSpikeSlab, AssignedMixture)(_kl_assigned)
