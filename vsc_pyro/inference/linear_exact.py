r"""The exact posterior of a linear decoder with Gaussian noise under a spike-and-slab prior, by enumeration.

.. math:: z_j \sim \alpha_j N(m_j, 1 / \lambda_j) + (1 - \alpha_j)\, \delta_0, \qquad x = D z + b + \epsilon, \quad
    \epsilon \sim N(0, \Sigma), \ \Sigma \text{ diagonal}

The sufficient statistics are :math:`h = D^\top \Sigma^{-1} (x - b) + \lambda m` of a datum and
:math:`G = D^\top \Sigma^{-1} D` of the dictionary. Given a pattern :math:`s \in \{0, 1\}^J` of the latents that are on,
everything is Gaussian:

.. math::
    z_s \mid x, s \sim N(C_s h_s, C_s), \qquad C_s = (\Lambda_s + G_{ss})^{-1}, \qquad \Lambda = \mathrm{diag}(\lambda),

    \log p(x | s) = \log N(x; b, \Sigma) + \tfrac12 \log |\Lambda_s C_s| + \tfrac12 h_s^\top C_s h_s
    - \tfrac12 m_s^\top \Lambda_s m_s.

Evidence and posterior are therefore sums over :math:`2^J` patterns. A pattern costs :math:`J^2` operations for a datum,
whatever the number of pixels.

References
    T. J. Mitchell, J. J. Beauchamp (1988), Bayesian variable selection in linear regression.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal
from torch.nn.functional import logsigmoid

from vsc_pyro.distributions import SpikeSlab
from vsc_pyro.distributions.linear_normal import as_linear
from vsc_pyro.models.data_checks import as_events, in_memory
from vsc_pyro.models.vae import VAE, check_is_vae

MAX_LATENTS = 12
NUMBERS_AT_ONCE = 2**22  # 32 MB in float64
_ROWS_AT_ONCE = 4096


class LinearGaussian(NamedTuple):
    """Sufficient statistics of data under a linear-Gaussian model, float64; symbols as in the module's docstring.

    Attributes:
        gram: G, shape ``(J, J)``.
        projection: h, shape ``(B, J)``.
        log_noise: log N(x; b, Sigma), the log-evidence of a datum given that no latent is on, shape ``(B,)``.
        logits: log-odds of the prior inclusion probabilities, shape ``(J,)``.
        slab_loc: m, shape ``(J,)``.
        slab_scale: the standard deviation of the prior's slabs, shape ``(J,)``.
    """

    gram: Tensor
    projection: Tensor
    log_noise: Tensor
    logits: Tensor
    slab_loc: Tensor
    slab_scale: Tensor

    def patterns(self, block: Tensor | None = None) -> Patterns:
        """Return the patterns of the latents with the indices `block`, or of all."""
        if block is None:
            return Patterns(self.gram, self.logits, self.slab_loc, self.slab_scale)
        return Patterns(self.gram[block][:, block], self.logits[block], self.slab_loc[block], self.slab_scale[block])


def linear_gaussian(model: VAE, x: Tensor | np.ndarray) -> LinearGaussian:
    """Return the sufficient statistics of data x, shape ``(B, ...)``, under a linear-Gaussian model.

    Raises:
        ValueError: data that do not fit the model, a decoder that is not a linear `NormalDecoder`, or a prior other
            than a spike-and-slab with normal slabs that is the same for all data.
    """
    check_is_vae(model)
    images = in_memory(x).images
    model.check_data(images)
    with model.evaluating():
        prior = model.marginal_prior(images[:1].to(model.reference))
        likelihood = model.decoder(model.reference.new_zeros(1, *prior.event_shape))
        if model.missing is not None:
            raise ValueError(
                "the exact posterior is that of whole data, got a model with missing=True; build it without, and pass "
                "data without missing values"
            )
        found = as_linear(likelihood)
        if found is None:
            raise ValueError(
                "only a linear decoder with Gaussian noise has an exact posterior, got "
                f"{type(model.decoder).__name__}; build the model with NormalDecoder(..., hidden=())"
            )
        logits, loc, slab_scale = _normal_slabs(prior)
        linear, values = found
        dictionary, bias = linear.dictionary.flatten(1).double(), linear.mean.flatten().double()
        scale = linear.scale.expand(linear.event_shape).flatten().double()
        weighted = dictionary / scale
        constant = scale.log().sum() + 0.5 * len(scale) * math.log(2 * math.pi)
        projections, log_noises = [], []
        for rows in images.split(_ROWS_AT_ONCE):
            residual = (values(as_events(rows.to(model.reference), likelihood)).flatten(1).double() - bias) / scale
            projections.append(residual @ weighted.T + loc / slab_scale**2)
            log_noises.append(-0.5 * residual.square().sum(1) - constant)
    gram = weighted @ weighted.T
    return LinearGaussian(gram, torch.cat(projections), torch.cat(log_noises), logits, loc, slab_scale)


def _normal_slabs(prior: Distribution) -> tuple[Tensor, Tensor, Tensor]:
    """Return log-odds, and locations and scales of the slabs, of a prior of spikes and normal slabs, float64."""
    base = prior.base_dist if isinstance(prior, Independent) else prior
    kind = type(base).__name__
    if isinstance(base, SpikeSlab):
        slab = base.slab
        if isinstance(slab, Normal) and not prior.batch_shape:
            return base.logits.double(), slab.loc.double(), slab.scale.double()
        kind = f"SpikeSlab of {type(slab).__name__}"
    raise ValueError(
        "the exact posterior needs one spike-and-slab prior for all data with normal slabs, got a prior of "
        f"{kind}; build the model with SpikeSlabPrior(..., slab='normal')"
    )


class Patterns:
    """All on-off patterns of J latents, with the Gaussian posterior of the latents under each pattern.

    Args:
        gram: G, shape ``(J, J)``.
        logits: log-odds of being on, shape ``(J,)``.
        loc, scale: mean and standard deviation of a latent that is on, shape ``(J,)``.

    Attributes:
        on: the patterns, ones and zeros, shape ``(2^J, J)``.
        covariance: C, with zeros in the rows and columns of latents that are off, shape ``(2^J, J, J)``.
    """

    def __init__(self, gram: Tensor, logits: Tensor, loc: Tensor, scale: Tensor) -> None:
        num = len(logits)
        latents = torch.arange(num, device=gram.device)
        self.on = (torch.arange(2**num, device=gram.device).unsqueeze(1) >> latents & 1).to(gram)
        identity = torch.eye(num).to(gram)
        # In units of the slabs' scales. A latent that is off has a row and column of the identity, which leaves the
        # determinant and the other latents as they are.
        gram = gram * scale.unsqueeze(1) * scale
        precision = identity + gram * self.on.unsqueeze(2) * self.on.unsqueeze(1)
        factor = torch.linalg.cholesky(precision)
        inverse = torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=False)
        self._root = inverse.mT * self.on.unsqueeze(2) * scale.unsqueeze(1)
        self.covariance = self._root @ self._root.mT
        prior = self.on @ (logsigmoid(logits) - 0.5 * (loc / scale) ** 2) + (1 - self.on) @ logsigmoid(-logits)
        self._log_weight = prior - factor.diagonal(dim1=1, dim2=2).log().sum(1)

    def log_joint(self, projection: Tensor) -> Tensor:
        """Return log p(s, x) - log N(x; b, Sigma) for all patterns s: ``(*, J) -> (*, 2^J)``."""
        products = (projection.unsqueeze(-1) * projection.unsqueeze(-2)).flatten(-2)
        return self._log_weight + 0.5 * products @ self.covariance.flatten(1).T

    def mean(self, weights: Tensor, projection: Tensor) -> Tensor:
        """Return E[z | x], shape ``(*, J)``, if patterns have the probabilities `weights`, shape ``(*, 2^J)``."""
        mixed = (weights @ self.covariance.flatten(1)).unflatten(-1, self.covariance.shape[1:])
        return (mixed @ projection.unsqueeze(-1)).squeeze(-1)

    def sample(self, weights: Tensor, projection: Tensor, num_draws: int) -> Tensor:
        """Draw z with exact zeros from torch's random state, shape ``(*, num_draws, J)``."""
        cumulative = weights.cumsum(-1)
        uniform = torch.rand(*weights.shape[:-1], num_draws).to(weights) * cumulative[..., -1:]
        chosen = torch.searchsorted(cumulative, uniform, right=True).clamp(max=weights.shape[-1] - 1)
        noise = torch.randn(*chosen.shape, projection.shape[-1], 1).to(weights)
        around = self.covariance[chosen] @ projection[..., None, :, None]
        return (around + self._root[chosen] @ noise).squeeze(-1)


@dataclasses.dataclass(frozen=True, eq=False)
class ExactPosterior:
    """The result of `exact_posterior`: moments in float64, on the model's device.

    Attributes:
        log_evidence: log p(x), shape ``(B,)``.
        inclusion: P(z != 0 | x), shape ``(B, J)``.
        mean, variance: of z given x, shape ``(B, J)``.
    """

    log_evidence: Tensor
    inclusion: Tensor
    mean: Tensor
    variance: Tensor
    _patterns: Patterns = dataclasses.field(repr=False)
    _projection: Tensor = dataclasses.field(repr=False)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw z given x from torch's random state, shape `sample_shape + (B, J)`, float64."""
        num = torch.Size(sample_shape).numel()
        patterns, latents = self._patterns.on.shape
        at_once = max(1, NUMBERS_AT_ONCE // latents**2)
        draws = []
        for projection in self._projection.split(max(1, NUMBERS_AT_ONCE // patterns)):
            weights = self._patterns.log_joint(projection).softmax(-1)
            pieces = zip(weights.split(at_once), projection.split(at_once), strict=True)
            for weight, rows in pieces:
                each = max(1, at_once // len(rows))
                parts = [self._patterns.sample(weight, rows, min(each, num - i)) for i in range(0, num, each)]
                draws.append(torch.cat(parts, 1) if parts else rows.new_empty(len(rows), 0, latents))
        return torch.cat(draws).movedim(0, 1).reshape(*sample_shape, *self.mean.shape)


def exact_posterior(model: VAE, x: Tensor | np.ndarray) -> ExactPosterior:
    r"""Return evidence and posterior of data under a linear `NormalDecoder` and a `SpikeSlabPrior` of up to 12 latents.

    Sums over all :math:`2^J` patterns of latents, see the module's docstring, in float64 with bounded memory. A learned
    inclusion or slab has its current value; an inclusion with a posterior is held at its mean.

    Args:
        model: a `VAE` with a ``NormalDecoder(..., hidden=())``, of any variance, and a `SpikeSlabPrior` of normal
            slabs of any location and scale. Its encoder is not used.
        x: data, shape ``(B, ...)``.

    Raises:
        ValueError: another decoder, prior or slab; more than 12 latents; or data that do not fit the model.

    Example:
        >>> import torch, vsc_pyro as vsc
        >>> model = vsc.VAE(
        ...     vsc.SpikeSlabEncoder(4, 2), vsc.NormalDecoder(2, 4, hidden=()), vsc.SpikeSlabPrior(2, 0.3)
        ... )
        >>> posterior = vsc.exact_posterior(model, torch.randn(5, 4))
        >>> posterior.log_evidence.shape, posterior.inclusion.shape, posterior.sample((7,)).shape
        (torch.Size([5]), torch.Size([5, 2]), torch.Size([7, 5, 2]))
    """
    statistics = linear_gaussian(model, x)
    latents = len(statistics.logits)
    if latents > MAX_LATENTS:
        raise ValueError(
            f"enumeration takes at most {MAX_LATENTS} latents, got {latents} with 2^{latents} patterns; "
            "use gibbs_posterior"
        )
    patterns = statistics.patterns()
    spread = patterns.covariance.diagonal(dim1=1, dim2=2)
    fields = []
    for projection in statistics.projection.split(max(1, NUMBERS_AT_ONCE // patterns.on.numel())):
        log_joint = patterns.log_joint(projection)
        weights = log_joint.softmax(-1)
        means = torch.einsum("sij,bj->bsi", patterns.covariance, projection)
        mean = patterns.mean(weights, projection)
        # Around the mean, because a difference of second moments cancels the small variance of a sharp posterior.
        between = torch.einsum("bs,bsi->bi", weights, (means - mean.unsqueeze(1)).square())
        fields.append((torch.logsumexp(log_joint, -1), weights @ patterns.on, mean, weights @ spread + between))
    evidence, inclusion, mean, variance = (torch.cat(field) for field in zip(*fields, strict=True))
    return ExactPosterior(statistics.log_noise + evidence, inclusion, mean, variance, patterns, statistics.projection)
