r"""The pseudo-input prior of Variational Sparse Coding: the mixture of the posteriors of a few learned inputs.

.. math:: p(z) = \sum_u \pi_u\, q_\phi(z | x_u), \qquad u = 1 \dots U,

with equal weights :math:`\pi_u = 1/U`, learned pseudo-inputs :math:`x_u` and the encoder :math:`q_\phi` itself. A datum
is assigned to them with probabilities r. With u a latent, enumerated exactly, the objective

.. math:: E_q[\log p(x|z)] - \sum_u r_u\, KL(q(z|x) \| q(z|x_u)) - KL(r \| \pi)

bounds the evidence. A classifier :math:`r = C_\omega(x)` is one assignment. The best one has a closed form,

.. math:: r_u \propto \pi_u\, e^{-KL(q(z|x) \| q(z|x_u))},

under which the two divergences are :math:`-\log \sum_u \pi_u e^{-KL(q(z|x) \| q(z|x_u))}` (J. R. Hershey,
P. A. Olsen, 2007). Tonolini et al. (2020) have the classifier and omit the last term, which is at most log U. Their
prior is then chosen by looking at the datum, at no charge, and their objective is not a bound.

A second term keeps codes sparse although the prior is learned, :math:`- J\, KL(\mathrm{Bern}(\bar\gamma) \|
\mathrm{Bern}(\alpha))`, where :math:`\bar\gamma` is the mean inclusion probability over latents and pseudo-inputs.

References
    J. R. Hershey, P. A. Olsen (2007), Approximating the Kullback Leibler divergence between Gaussian mixture models.
    F. Tonolini, B. S. Jensen, R. Murray-Smith (2020), Variational sparse coding.
    J. M. Tomczak, M. Welling (2018), VAE with a VampPrior.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
from pyro.distributions import MixtureSameFamily  # pyright: ignore[reportAttributeAccessIssue]  defined at import
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.functional import logsigmoid

from vsc_pyro._arguments import positive_int
from vsc_pyro.distributions import AssignedMixture, centre, inclusion_logits, is_point
from vsc_pyro.distributions.pairwise import insert_batch_dims, pairwise_kl
from vsc_pyro.models.modes import in_mode
from vsc_pyro.models.networks import MLP
from vsc_pyro.models.precision import run_network
from vsc_pyro.models.priors.prior import Prior

if TYPE_CHECKING:
    from jaxtyping import Float

# Pseudo-inputs start at least this share of the range away from its ends, where a sigmoid has a gradient.
_MARGIN = 0.01
# Later data may exceed the first data's range by this share without a warning.
_BEYOND = 0.5
# Relative tolerance for rounding differences of a code between batches.
_ROUNDING = 1e-3
_ASSIGNMENTS = ("bound", "optimal", "paper")


class PseudoInputPrior(Prior):
    r"""Mixture of the posteriors of learned pseudo-inputs (Tonolini et al., 2020).

    .. math:: p(z) = \sum_u \pi_u\, q_\phi(z | x_u)

    The module's docstring has the objective. `vsc_pyro.fit` starts the pseudo-inputs at random training data and
    confines them to the range of the training data. For bare Pyro, or to start elsewhere, pass `pseudo_inputs` or call
    ``prepare(images)``.

    The encoder sees pseudo-inputs in evaluation mode, in training as well: batch normalisation uses its running
    statistics, which stay those of the data, and dropout is off.

    Args:
        encoder: the encoder of the same model; it has `input_shape` and a posterior with a density.
        num_pseudo_inputs: number of pseudo-inputs U.
        inclusion: :math:`\alpha` of the sparsity term; required with a `sparsity_weight`, and refused without.
        sparsity_weight: weight of the sparsity term in the objective, per datum; 0 omits it. (The paper adds the term
            once to the sum over all N data, a weight of 1/N.)
        assignment: ``"bound"`` treats u as a latent, assigned by the classifier, and charges for its assignment.
            ``"optimal"`` has the best assignment in place of the classifier, at the price of a second pass through the
            encoder, in evaluation mode; its posteriors need a divergence in closed form. ``"paper"`` is the published
            objective, which is not a bound (`is_bound` is False, and `vsc_pyro.evaluate` evaluates the mixture
            instead).
        pseudo_inputs: data to start at, shape ``(U, ...)``, instead of random training data; they also set the range.
        hidden: widths of the classifier's hidden layers, by default one of 200; refused where there is no classifier.
        activation: name of the classifier's activation, by default ``"relu"``; refused where there is no classifier.

    Shapes:
        x ``(B, *input_shape)``; the distribution has `batch_shape` ``(B,)`` and `event_shape` ``(J,)``.

    Raises:
        ValueError: an encoder without `input_shape`, or whose posterior is a point, or depends in evaluation mode on
            other data in the batch (batch normalisation without running statistics); pseudo-inputs that do not fit it;
            `inclusion` outside (0, 1); only one of `inclusion` and `sparsity_weight`; a negative `sparsity_weight`; an
            unknown `assignment`, or an optimal one without divergences in closed form; `hidden` or `activation`
            under an optimal one; a sparsity term without spikes; a posterior whose latents are not independent.

    >>> import torch
    >>> import vsc_pyro as vsc
    >>> encoder = vsc.SpikeSlabEncoder(64, latent_dim=5)
    >>> prior = vsc.PseudoInputPrior(encoder, num_pseudo_inputs=3, pseudo_inputs=torch.rand(3, 64))
    >>> prior(torch.rand(2, 64)).batch_shape, prior.marginal(torch.rand(2, 64)).event_shape
    (torch.Size([2]), torch.Size([5]))
    """

    low: Tensor
    high: Tensor
    prepared: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        num_pseudo_inputs: int = 20,
        inclusion: float | None = None,
        sparsity_weight: float = 0.0,
        assignment: str = "bound",
        pseudo_inputs: Tensor | None = None,
        hidden: int | Sequence[int] | None = None,
        activation: str | None = None,
    ) -> None:
        super().__init__()
        if not hasattr(encoder, "input_shape"):
            raise ValueError(
                f"encoder must have an attribute input_shape, the shape of one datum; {type(encoder).__name__} has none"
            )
        if assignment not in _ASSIGNMENTS:
            raise ValueError(f"unknown assignment {assignment!r}; known are {', '.join(map(repr, _ASSIGNMENTS))}")
        _check_sparsity(inclusion, sparsity_weight)
        input_shape = cast(tuple[int, ...], encoder.input_shape)
        self.encoder = encoder
        self.latent_dim = cast(int, encoder.latent_dim)
        self.num_pseudo_inputs = positive_int("num_pseudo_inputs", num_pseudo_inputs)
        self.inclusion = inclusion
        self.sparsity_weight = float(sparsity_weight)
        self.assignment = assignment
        self.network_precision = "float32"
        self.classifier = None
        if assignment != "optimal":
            widths, activation = (200,) if hidden is None else hidden, "relu" if activation is None else activation
            layers = MLP(math.prod(input_shape), self.num_pseudo_inputs, widths, activation)
            self.classifier = nn.Sequential(nn.Flatten(), *layers)
        elif hidden is not None or activation is not None:
            raise ValueError(
                f"hidden={hidden!r} and activation={activation!r} are of the classifier, which assignment='optimal' "
                "does without; omit them, or use assignment='bound'"
            )
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.ones(()))
        self.register_buffer("prepared", torch.zeros((), dtype=torch.bool))
        self._unconstrained = nn.Parameter(torch.randn(self.num_pseudo_inputs, *input_shape))
        if pseudo_inputs is not None:
            self._start_at_given(torch.as_tensor(pseudo_inputs))
        self._check_encoder()

    def _start_at_given(self, pseudo_inputs: Tensor) -> None:
        if not torch.isfinite(pseudo_inputs).all():
            raise ValueError("pseudo_inputs must be finite, got NaN or infinite values; remove these data")
        if len(pseudo_inputs) != self.num_pseudo_inputs:
            raise ValueError(
                f"pseudo_inputs must be num_pseudo_inputs={self.num_pseudo_inputs} data, got {len(pseudo_inputs)}"
            )
        self._start_at(pseudo_inputs, pseudo_inputs)

    def _check_encoder(self) -> None:
        with torch.no_grad():
            posterior = self._components()
        if is_point(posterior):
            raise ValueError(
                f"the posterior of pseudo-inputs must have a density to be a prior, and {type(self.encoder).__name__} "
                "returns points; use SpikeSlabEncoder, NormalEncoder or another"
            )
        with torch.no_grad(), in_mode(self.encoder, False):
            twice = self.pseudo_inputs[[0, 0]]
            first, other = centre(posterior)[0], centre(self.encoder(twice))[0]
        if not torch.allclose(first, other, _ROUNDING, _ROUNDING * float(other.abs().max())):
            raise ValueError(
                "the posterior of a pseudo-input must not depend on the other data of its batch, and this encoder's "
                "does in evaluation mode; let its batch normalisation keep running statistics "
                "(track_running_stats=True), or use LayerNorm"
            )
        try:
            insert_batch_dims(posterior, 1)
        except NotImplementedError as error:
            raise ValueError(
                f"the encoder's posterior cannot be broadcast against data, as a prior of pseudo-inputs must be "
                f"({error}); use an encoder whose posterior is a spike-and-slab, or of independent scalars"
            ) from error
        if self.assignment == "optimal":
            try:
                pairwise_kl(posterior, posterior)
            except NotImplementedError as error:
                raise ValueError(
                    "assignment='optimal' needs the divergence of two posteriors of this encoder, which has no closed "
                    f"form ({error}); use assignment='bound', or an encoder with normal slabs"
                ) from error
        if self.sparsity_weight and inclusion_logits(posterior) is None:
            raise ValueError(
                f"sparsity_weight={self.sparsity_weight} needs spikes, and {type(self.encoder).__name__} has none; "
                "use SpikeSlabEncoder, or sparsity_weight=0"
            )

    @property
    def is_bound(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]  follows `assignment`
        return self.assignment != "paper"

    @property
    def takes_missing(self) -> bool:
        """True if forward is to see missing values, which the encoder replaces or, with a `MaskTrunk`, reads."""
        return self.classifier is None

    @property
    def pseudo_inputs(self) -> Tensor:
        """The pseudo-inputs, shape ``(U, *input_shape)``, within the range of the data."""
        return self.low + (self.high - self.low) * torch.sigmoid(self._unconstrained)

    def prepare(self, images: Tensor) -> None:
        """Start at random training data, shape ``(N, ...)``, drawn by torch's random state; only the first call does.

        Later calls warn of data outside the range of the first.

        Raises:
            ValueError: fewer data than pseudo-inputs, or data of another shape.
        """
        if self.prepared:
            self._warn_of_range(images.min(), images.max(), 0.0)
            return
        if len(images) < self.num_pseudo_inputs:
            raise ValueError(
                f"num_pseudo_inputs={self.num_pseudo_inputs} pseudo-inputs start at as many different data, "
                f"got {len(images)}; pass fewer"
            )
        chosen = torch.randperm(len(images))[: self.num_pseudo_inputs].to(images.device)
        self._start_at(images[chosen], images)

    def check_range(self, low: Tensor, high: Tensor) -> None:
        """Warn if the training data's range, `low` to `high`, lies far outside the range of the first data."""
        self._warn_of_range(low, high, _BEYOND)

    def _warn_of_range(self, low: Tensor, high: Tensor, share: float) -> None:
        slack = share * (self.high - self.low)
        if low < self.low - slack or high > self.high + slack:
            warnings.warn(
                f"pseudo-inputs stay within {float(self.low):.4g} to {float(self.high):.4g}, the range of the data "
                f"they started at, and these data range from {float(low):.4g} to {float(high):.4g}; build a new "
                "PseudoInputPrior for them, or rescale them (and shuffle a DataLoader)",
                stacklevel=3,
            )

    def _start_at(self, start: Tensor, images: Tensor) -> None:
        shape = self._unconstrained.shape
        if start.numel() != shape.numel():
            raise ValueError(
                f"pseudo-inputs must have the shape of the encoder's data, {tuple(shape[1:])}, "
                f"got data of shape {tuple(start.shape[1:])}"
            )
        low, high = images.min(), images.max()
        if not high > low:
            raise ValueError(
                f"pseudo-inputs stay in the range of the data, and all values are {float(low):g}; pass data that differ"
            )
        with torch.no_grad():
            self.low.copy_(low)
            self.high.copy_(high)
            self.prepared.fill_(True)
            share = ((start - low) / (high - low)).clamp(_MARGIN, 1 - _MARGIN)
            self._unconstrained.copy_(torch.logit(share).reshape(shape))

    def forward(self, x: Float[Tensor, "batch ..."]) -> AssignedMixture:
        components = self._components()
        log_assignment = torch.log_softmax(self._scores(x, components), -1)
        return AssignedMixture(components, self._log_weights(), log_assignment, charge_assignment=self.is_bound)

    def _scores(self, x: Tensor, components: Distribution) -> Tensor:
        """Return unnormalised log-probabilities of the assignment, shape ``(B, U)``."""
        if self.classifier is not None:
            return run_network(self.classifier, x, self.network_precision)
        # The ELBO is stationary in an optimal assignment, so it loses no gradient. Dropout and batch normalisation
        # change the posterior in training, and other objectives have another optimum; there it is nearly optimal.
        return self._log_weights() - pairwise_kl(self._encoded(x), components).detach()

    def marginal(self, x: Tensor) -> MixtureSameFamily:
        """Return the mixture itself, without a classifier (as in a VampPrior)."""
        return AssignedMixture(self._components(), self._log_weights(), self._log_weights()).mixture

    def penalty(self) -> Tensor | None:
        r"""Return :math:`J\, KL(\mathrm{Bern}(\bar\gamma) \| \mathrm{Bern}(\alpha))` times its weight."""
        if self.inclusion is None or not self.sparsity_weight:
            return None
        logits = inclusion_logits(self._components()).flatten()
        # torch's divergence of two Bernoullis reads the values of 0-d tensors, which breaks the capture of a step.
        log_on = torch.logsumexp(logsigmoid(logits), 0) - math.log(len(logits))
        log_off = torch.logsumexp(logsigmoid(-logits), 0) - math.log(len(logits))
        on = log_on.exp() * (log_on - math.log(self.inclusion))
        off = log_off.exp() * (log_off - math.log1p(-self.inclusion))
        return self.sparsity_weight * self.latent_dim * (on + off)

    def _components(self) -> Distribution:
        """Return the pseudo-inputs' posteriors, computed in evaluation mode.

        In training mode, batch normalisation by the pseudo-inputs' own statistics, or dropout, would train another
        prior than the one that is evaluated, and would mix pseudo-inputs into the running statistics of the data.
        """
        return self._encoded(self.pseudo_inputs)

    def _encoded(self, x: Tensor) -> Distribution:
        with in_mode(self.encoder, False):
            return self.encoder(x)

    def _log_weights(self) -> Tensor:
        return self._unconstrained.new_full((self.num_pseudo_inputs,), -math.log(self.num_pseudo_inputs))

    def extra_repr(self) -> str:
        return (
            f"num_pseudo_inputs={self.num_pseudo_inputs}, inclusion={self.inclusion}, "
            f"sparsity_weight={self.sparsity_weight}, assignment={self.assignment!r}"
        )


def _check_sparsity(inclusion: float | None, sparsity_weight: float) -> None:
    if not (sparsity_weight >= 0 and math.isfinite(sparsity_weight)):
        raise ValueError(f"sparsity_weight must be a finite number of at least 0, got {sparsity_weight!r}")
    if (inclusion is None) == bool(sparsity_weight):
        raise ValueError(
            f"inclusion={inclusion!r} and sparsity_weight={sparsity_weight!r} are target and weight of the sparsity "
            "term; pass both or neither"
        )
    if inclusion is not None and not 0 < inclusion < 1:
        raise ValueError(f"inclusion must lie strictly between 0 and 1, got {inclusion!r}")
