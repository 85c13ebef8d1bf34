r"""An encoder whose posterior is improved by closed-form updates under the model's own linear decoder.

For :math:`p(x|z) = N(x; b + \sum_j z_j d_j, \sigma^2)` and the prior
:math:`\alpha_j N(z_j; m_j, s_j^2) + (1 - \alpha_j)\, \delta_0`, the evidence lower bound of independent
:math:`q(z_j) = \gamma_j N(z_j; \mu_j, \sigma_j^2) + (1 - \gamma_j)\, \delta_0` is maximal in one latent, given the others, at

.. math::
    \sigma_j^{-2} = \|d_j / \sigma\|^2 + s_j^{-2}, \qquad
    \mu_j = \sigma_j^2 \Big( \frac{a_j}{\sigma^2} + \frac{m_j}{s_j^2} \Big), \qquad
    a_j = d_j^\top \Big( x - b - \sum_{i \ne j} \gamma_i \mu_i d_i \Big),

.. math::
    \mathrm{logit}\, \gamma_j = \mathrm{logit}\, \alpha_j + \log \frac{\sigma_j}{s_j}
    + \frac{\mu_j^2}{2 \sigma_j^2} - \frac{m_j^2}{2 s_j^2}.

All latents move at once, a share of the way, because several that explain the same part of a datum would all take it.

References
    M. K. Titsias, M. Lázaro-Gredilla (2011), Spike and slab variational inference for multi-task learning.
    R. D. Hjelm et al. (2016), Iterative refinement of the approximate posterior for directed belief networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from pyro.distributions import Normal
from torch import Tensor, nn
from torch.distributions import Distribution

from vsc_pyro._arguments import positive_int
from vsc_pyro.distributions import IndependentSpikeSlab, LinearNormal, SpikeSlab, inclusion_logits, slab_of
from vsc_pyro.models.encoders.spike_slab import SpikeSlabEncoder

if TYPE_CHECKING:
    from jaxtyping import Float


class RefinedEncoder(SpikeSlabEncoder):
    r"""A `SpikeSlabEncoder` with normal slabs, followed by closed-form updates of :math:`(\gamma, \mu, \sigma)`.

    The network's posterior is the start of `steps` updates, which the module's docstring has. Each moves log-odds,
    locations and scales of all latents by the share `damping` of the way to their optima given the others. Gradients
    are those at the last update, through all of them. The updates maximise the evidence lower bound, ``beta = 1``,
    whatever the `beta` or the warm-up of the objective.

    Args:
        input_shape, latent_dim: see `SpikeSlabEncoder`.
        decoder: the linear decoder of the same model, of any noise scale: its likelihood is a
            `vsc_pyro.distributions.LinearNormal`. It is not a submodule; the model holds it.
        prior: the prior of the same model, a spike-and-slab with normal slabs. It is not a submodule, either.
        steps: number of updates.
        damping: share of the way, above 0 and at most 1; one learned parameter for each update starts there.
        options: further arguments of `SpikeSlabEncoder`; the slab is normal.

    Shapes:
        x ``(B, *input_shape)``; the distribution has `batch_shape` ``(B,)`` and `event_shape` ``(J,)``.

    Raises:
        ValueError: as `SpikeSlabEncoder`; `steps` below 1; a `damping` outside (0, 1]. When called: a likelihood that
            is not a linear map of the code with normal noise; a prior without spikes or normal slabs.

    Example:
        >>> import torch
        >>> import vsc_pyro as vsc
        >>> decoder, prior = vsc.NormalDecoder(2, 6, hidden=()), vsc.SpikeSlabPrior(2)
        >>> encoder = vsc.RefinedEncoder(6, 2, decoder=decoder, prior=prior, steps=3)
        >>> vsc.VAE(encoder, decoder, prior).encoder(torch.randn(5, 6)).event_shape
        torch.Size([2])
    """

    def __init__(
        self,
        input_shape: int | Sequence[int],
        latent_dim: int,
        *,
        decoder: nn.Module,
        prior: nn.Module,
        steps: int = 1,
        damping: float = 0.5,
        **options: Any,
    ) -> None:
        super().__init__(input_shape, latent_dim, **options)
        if self.slab != "normal":
            raise ValueError(f"the updates are those of slab='normal', got {self.slab!r}; leave the argument out")
        if not 0 < damping <= 1:
            raise ValueError(f"damping must lie above 0 and be at most 1, got {damping!r}")
        self._generative = (decoder, prior)  # a tuple, which registers no parameters a second time
        self.steps = positive_int("steps", steps)
        self.damping = nn.Parameter(torch.full((self.steps,), float(damping)))

    def forward(self, x: Float[Tensor, "batch ..."]) -> IndependentSpikeSlab:
        posterior = super().forward(x).base_dist
        slab = cast("Normal", posterior.slab)
        q = Parameters(posterior.logits, slab.loc, slab.scale)
        decoder, prior = self._generative
        optimum = Optimum(x, decoder(q.loc.new_zeros(1, self.latent_dim)), prior(x))
        # The gradient passes where the share is clipped, so a share beyond the end can return.
        shares = self.damping + (self.damping.clamp(0, 1) - self.damping).detach()
        for share in shares:
            q = Parameters(*(old + share * (new - old) for old, new in zip(q, optimum.given(q), strict=True)))
        return SpikeSlab(Normal(q.loc, q.scale), logits=q.logits, gate=posterior.gate).to_event(1)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, steps={self.steps}"


class Parameters(NamedTuple):
    """Parameters of a spike-and-slab posterior with normal slabs, of shapes that broadcast to ``(B, J)``."""

    logits: Tensor
    loc: Tensor
    scale: Tensor


class Optimum:
    """The coordinate-wise optimum of the evidence lower bound of data, see the module's docstring.

    Args:
        x: data, shape ``(B, ...)``.
        likelihood: p(x|z = 0) with `batch_shape` ``(1,)``.
        prior: p(z).

    Raises:
        ValueError: another likelihood or prior than `RefinedEncoder` takes.
    """

    def __init__(self, x: Tensor, likelihood: Distribution, prior: Distribution) -> None:
        slab, logits = slab_of(prior), inclusion_logits(prior)
        if not isinstance(likelihood, LinearNormal):
            raise ValueError(
                f"the updates of a RefinedEncoder need a linear decoder with normal noise, got a likelihood of "
                f"{type(likelihood).__name__}; take DictionaryDecoder or NormalDecoder(hidden=())"
            )
        if logits is None or not isinstance(slab, Normal):
            raise ValueError(
                f"the updates of a RefinedEncoder need a spike-and-slab prior with normal slabs, got slabs of "
                f"{type(slab).__name__}; take SpikeSlabPrior(slab='normal')"
            )
        self._dictionary = likelihood.dictionary.flatten(1)
        noise = likelihood.scale.expand(likelihood.event_shape).flatten()
        weighted = self._dictionary / noise.square()
        self._weighted = weighted.T
        self._sharpness = (weighted * self._dictionary).sum(1)
        self._product = likelihood.product
        self._centred = x.flatten(1) - likelihood.mean.flatten()
        self._precision = self._sharpness + slab.scale.square().reciprocal()
        self._pull = slab.loc / slab.scale.square()
        self._scale = self._precision.rsqrt()
        self._bias = logits + (self._scale / slab.scale).log() - 0.5 * slab.loc * self._pull

    def given(self, q: Parameters) -> Parameters:
        """Return the optimum of each latent, given that all others have the parameters q."""
        mean = q.logits.sigmoid() * q.loc
        residual = self._centred - self._product(mean, self._dictionary)
        explained = self._product(residual, self._weighted) + self._sharpness * mean
        loc = (explained + self._pull) / self._precision
        return Parameters(self._bias + 0.5 * self._precision * loc.square(), loc, self._scale)
