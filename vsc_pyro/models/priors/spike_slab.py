"""The spike-and-slab prior. Its inclusion is fixed, learned, or a latent variable with a posterior."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from pyro.distributions import Beta, TorchDistribution
from torch import Tensor, nn
from torch.distributions import Distribution

from vsc_pyro._arguments import one_of, positive_float, positive_int
from vsc_pyro.distributions import SMALLEST_SCALE, IndependentSpikeSlab, SpikeSlab, get_slab, held
from vsc_pyro.models.priors.prior import Prior

if TYPE_CHECKING:
    from jaxtyping import Float

_LEARN = (False, True, "per-latent", "global")
# Concentration of the initial posterior over inclusion, as a number of data: low ones draw inclusions near 0 and 1.
_INITIAL_CONCENTRATION = 20.0
_DEFAULT_INCLUSION = 0.1
# Share by which a scale may fall short of its range, for rounding to float32.
_ROUNDING = 1e-6


class SpikeSlabPrior(Prior):
    r"""Spike-and-slab prior, :math:`p(z) = \prod_j \alpha_j F(z_j; m_j, s_j) + (1 - \alpha_j) \delta_0`.

    Args:
        latent_dim: number of latents J.
        inclusion: :math:`\alpha = P(z_j \neq 0)`, strictly between 0 and 1: one number, or a tensor of shape ``(J,)``.
            None for .1, or for what `expected_active` says.
        learn_inclusion: False keeps `inclusion`; otherwise training starts from it. ``"per-latent"`` (or True) learns
            one :math:`\alpha_j` for each latent, so latents that explain too little switch off. ``"global"`` learns one
            number for all latents.
        hyperprior: (a, b) of :math:`\alpha \sim \mathrm{Beta}(a, b)` (Ishwaran & Rao, 2005). The model then has a
            latent variable ``"inclusion"`` outside the plate over data, training learns its Beta posterior, and
            evaluation uses the mean of that posterior.
        slab: family F, see the tables below. Positive slabs are for features that are only added to the data, never
            subtracted; the encoder then needs a positive slab too.
        learn_slab: True (or ``"per-latent"``) learns the location m and scale s of every slab, ``"global"`` one of each
            for all latents, from `slab_loc` and `slab_scale` on; False keeps them. A learned slab can have one sign, so
            a latent can be a feature that is only added to the data, never subtracted. A learned scale stays within the
            range in the table. At its ends the gradient still passes, so the scale can return.
        slab_loc: location m of the slabs, one number or a tensor of shape ``(J,)``; 0 for a family without location.
        slab_scale: scale s of the slabs, within the range in the table, one number or a tensor of shape ``(J,)``.
        expected_active: the expected number of latents that are on, above 0 and below J, in place of `inclusion`: every
            latent has the inclusion ``expected_active / J``.

    =====================  =============================  ====================================  ================
    `slab`                 location m                     scale s                               range of s
    =====================  =============================  ====================================  ================
    normal                 mean                           standard deviation                    from 1e-4
    laplace                mean                           mean of :math:`|z - m|`               from 1e-4
    cauchy                 median                         half width at half maximum            from 1e-4
    truncated-normal       mean before truncation to      standard deviation before truncation  from 1e-4
                           z > 0
    log-normal             mean of :math:`\log z`         standard deviation of :math:`\log z`  from 1e-4 to 3
    gamma                  logarithm of the mean          standard deviation over mean          from .02 to 3
    half-normal            none                           root mean square                      from 1e-4
    exponential            none                           mean                                  from 1e-4
    =====================  =============================  ====================================  ================

    The KL divergence of an encoder's slab (rows) from the prior's slab (columns) is closed (c), sampled (s), or
    infinite (an error):

    =====================  ======  =======  ======  ================  ==========  =====  ===========  ===========
    encoder's slab         normal  laplace  cauchy  truncated-normal  log-normal  gamma  half-normal  exponential
    =====================  ======  =======  ======  ================  ==========  =====  ===========  ===========
    normal                 c       c        s       error             error       error  error        error
    laplace                c       c        s       error             error       error  error        error
    cauchy                 error   error    c       error             error       error  error        error
    truncated-normal       c       s        s       c                 s           s      c            c
    log-normal             c       s        s       c                 c           c      c            c
    gamma                  c       s        s       c                 c           c      c            c
    =====================  ======  =======  ======  ================  ==========  =====  ===========  ===========

    Shapes:
        The distribution has `batch_shape` ``()`` and `event_shape` ``(J,)``.

    Raises:
        ValueError: an inclusion outside (0, 1) or of another shape, or both `inclusion` and `expected_active`; an
            unknown `slab`, `learn_inclusion` or `learn_slab`; a location or scale out of its range or of another shape;
            a hyperprior that is not two positive numbers.

    References:
        H. Ishwaran, J. S. Rao (2005), Spike and slab variable selection: frequentist and Bayesian strategies.

    Example:
        >>> import torch
        >>> import vsc_pyro as vsc
        >>> prior = vsc.SpikeSlabPrior(3, inclusion=0.1)
        >>> prior(torch.zeros(5, 784)).event_shape
        torch.Size([3])
        >>> prior.inclusion_probs
        tensor([0.1000, 0.1000, 0.1000])
        >>> sparse = vsc.SpikeSlabPrior(512, expected_active=5, learn_slab="global", slab_loc=1.0, slab_scale=0.5)
        >>> sparse.inclusion, sparse.slab_scale.item()
        (0.009765625, 0.5)
    """

    inclusion_logits: Tensor
    slab_loc: Tensor
    slab_log_scale: Tensor
    fixed_slab_scale: Tensor
    log_concentration: Tensor

    def __init__(
        self,
        latent_dim: int,
        inclusion: float | Tensor | None = None,
        learn_inclusion: bool | str = False,
        hyperprior: tuple[float, float] | None = None,
        slab: str = "normal",
        learn_slab: bool | str = False,
        slab_loc: float | Tensor = 0.0,
        slab_scale: float | Tensor = 1.0,
        expected_active: float | None = None,
    ) -> None:
        super().__init__()
        self.latent_dim = positive_int("latent_dim", latent_dim)
        learn_inclusion = one_of("learn_inclusion", learn_inclusion, _LEARN)
        if hyperprior is not None and not learn_inclusion:
            raise ValueError(
                f"hyperprior={hyperprior!r} is a prior of inclusions that are learned; "
                "pass learn_inclusion='per-latent' or 'global' with it"
            )
        self.learn_inclusion = "per-latent" if learn_inclusion is True else learn_inclusion
        self.slab = slab
        self._family: Any = get_slab(slab)
        learn_slab = one_of("learn_slab", learn_slab, _LEARN)
        self.learn_slab = True if learn_slab == "per-latent" else learn_slab
        logits = self._checked_logits(self._expected_inclusion(inclusion, expected_active))
        self.hyperprior = None if hyperprior is None else _beta_parameters(hyperprior)
        if self.learn_inclusion:
            self.inclusion_logits = nn.Parameter(logits)
        else:
            self.register_buffer("inclusion_logits", logits)
        self._start_slab(slab_loc, slab_scale)
        if self.hyperprior is not None:
            # Parametrised by mean and concentration: with Beta's (a, b), gradient noise of the mean hides the width.
            self.log_concentration = nn.Parameter(torch.full_like(logits, math.log(_INITIAL_CONCENTRATION)))

    def _expected_inclusion(self, inclusion: float | Tensor | None, expected_active: float | None) -> float | Tensor:
        if expected_active is None:
            return _DEFAULT_INCLUSION if inclusion is None else inclusion
        if inclusion is not None:
            raise ValueError(
                f"inclusion={inclusion!r} and expected_active={expected_active!r} both set how many latents are on; "
                "pass one of the two"
            )
        share = positive_float("expected_active", expected_active) / self.latent_dim
        if not 0 < torch.tensor(share) < 1:  # in the model's precision
            raise ValueError(
                f"expected_active must be below the number of latents, {self.latent_dim}, and above 0 by more than "
                f"rounding, got {expected_active!r}"
            )
        return share

    def _checked_logits(self, inclusion: float | Tensor) -> Tensor:
        alpha = self._one_or_each("inclusion", inclusion, "learn_inclusion", self.learn_inclusion)
        if not ((alpha > 0) & (alpha < 1)).all():
            raise ValueError(f"inclusion must lie strictly between 0 and 1, got {inclusion!r}")
        self.inclusion = inclusion if alpha.ndim == 0 else alpha.tolist()
        logits = torch.logit(alpha)
        return logits if self.learn_inclusion == "global" else logits.expand(self.latent_dim).clone()

    def _one_or_each(self, name: str, value: float | Tensor, option: str, learned: bool | str) -> Tensor:
        """Return an argument that is one number or one for each latent; one number if `option` is ``"global"``."""
        try:
            numbers = torch.as_tensor(value, dtype=torch.get_default_dtype())
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"{name} must be one number or one for each of the {self.latent_dim} latents, got {value!r}"
            ) from error
        if numbers.shape not in ((), (self.latent_dim,)):
            raise ValueError(
                f"{name} must be one number or one for each of the {self.latent_dim} latents, "
                f"got a tensor of shape {tuple(numbers.shape)}"
            )
        if learned == "global" and numbers.ndim:
            raise ValueError(f"{option}='global' learns one {name}, and {name} holds {len(numbers)}; pass one number")
        return numbers

    def _start_slab(self, slab_loc: float | Tensor, slab_scale: float | Tensor) -> None:
        loc = self._one_or_each("slab_loc", slab_loc, "learn_slab", self.learn_slab)
        scale = self._one_or_each("slab_scale", slab_scale, "learn_slab", self.learn_slab)
        if not loc.isfinite().all():
            raise ValueError(f"slab_loc must be finite, got {slab_loc!r}")
        has_loc = getattr(self._family, "has_loc", True)
        if not has_loc and loc.any():
            raise ValueError(f"slab_loc must be 0 for slab={self.slab!r}, which has no location, got {slab_loc!r}")
        smallest, largest = self._scale_range
        if not ((scale >= smallest * (1 - _ROUNDING)) & (scale <= largest) & scale.isfinite()).all():
            upper = "and finite" if largest == math.inf else f"and at most {largest:g}"
            raise ValueError(
                f"slab_scale must be at least {smallest:g} {upper} for slab={self.slab!r}, got {slab_scale!r}"
            )
        self._start = tuple(
            number.tolist() if number.ndim else float(given) for number, given in ((loc, slab_loc), (scale, slab_scale))
        )
        shape = () if self.learn_slab == "global" else (self.latent_dim,)
        if self.learn_slab and has_loc:
            self.slab_loc = nn.Parameter(loc.expand(shape).clone())
        else:
            self.register_buffer("slab_loc", loc.clone(), persistent=False)
        if self.learn_slab:
            self.slab_log_scale = nn.Parameter(scale.log().expand(shape).clone())
        else:
            self.register_buffer("fixed_slab_scale", scale.clone(), persistent=False)

    @property
    def _scale_range(self) -> tuple[float, float]:
        return getattr(self._family, "smallest", SMALLEST_SCALE), getattr(self._family, "largest", math.inf)

    @property
    def inclusion_probs(self) -> Tensor:
        r"""Current inclusion :math:`\alpha`, shape ``(J,)``, detached; with a hyperprior its posterior mean."""
        return self._logits(None).sigmoid().detach().expand(self.latent_dim)

    def hyperparameters(self) -> dict[str, tuple[Distribution, Distribution]]:
        if self.hyperprior is None:
            return {}
        concentration = self.log_concentration.exp()
        on, off = concentration * self.inclusion_logits.sigmoid(), concentration * (-self.inclusion_logits).sigmoid()
        a, b = self.hyperprior
        prior = Beta(torch.full_like(on, a), torch.full_like(on, b))
        return {"inclusion": (prior.to_event(on.dim()), Beta(on, off).to_event(on.dim()))}

    def _logits(self, inclusion: Tensor | None) -> Tensor:
        if inclusion is None:
            return self.inclusion_logits  # with a hyperprior, the log-odds of the posterior mean
        # A Beta draw may round to 0 or 1, whose log-odds are infinite.
        epsilon = torch.finfo(inclusion.dtype).eps
        logits = torch.logit(inclusion.clamp(epsilon, 1 - epsilon))
        return logits.unsqueeze(-1) if self.learn_inclusion == "global" else logits

    def forward(self, x: Float[Tensor, "batch ..."], inclusion: Tensor | None = None) -> IndependentSpikeSlab:  # pyright: ignore[reportIncompatibleMethodOverride] hyperparameters have names
        """Return p(z), given a draw of the latent variable `inclusion` if the prior has a hyperprior."""
        logits = self._logits(inclusion)
        logits = logits.expand(torch.broadcast_shapes(logits.shape, (self.latent_dim,)))
        return SpikeSlab(self._slab(logits), logits=logits).to_event(1)

    @property
    def slab_scale(self) -> Tensor:
        """Current scale of the slabs, shape ``()`` or ``(J,)``."""
        if not self.learn_slab:
            return self.fixed_slab_scale
        return held(self.slab_log_scale.exp(), *self._scale_range)

    def _slab(self, logits: Tensor) -> TorchDistribution:
        return self._family(self.slab_loc.expand_as(logits), self.slab_scale.expand_as(logits))

    def extra_repr(self) -> str:
        slab = f", learn_slab={self.learn_slab!r}" if self.learn_slab else ""
        if self._start != (0, 1):
            slab += ", slab_loc={}, slab_scale={}".format(*self._start)
        return (
            f"{self.latent_dim}, inclusion={self.inclusion}, learn_inclusion={self.learn_inclusion!r}, "
            f"hyperprior={self.hyperprior}, slab={self.slab!r}" + slab
        )


def _beta_parameters(hyperprior: tuple[float, float]) -> tuple[float, float]:
    try:
        a, b = hyperprior
    except (TypeError, ValueError) as error:
        raise ValueError(f"hyperprior must be the two parameters (a, b) of a Beta, got {hyperprior!r}") from error
    return positive_float("hyperprior", a), positive_float("hyperprior", b)
