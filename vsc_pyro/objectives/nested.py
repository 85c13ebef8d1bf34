r"""`NestedELBO`: the mean bound of several prefixes of a code, so that the first features explain as much as they can.

.. math:: \frac1{|M|} \sum_{m \in M} \Big( E_q[\log p(x|z_{1:m})] - \sum_{j \le m} KL(q(z_j|x) \| p(z_j)) \Big)

Each term is the evidence lower bound of the model that has the first m latents only. So the mean bounds the mean
log-evidence of these models. Features of a hierarchy do not have to absorb their parents. The squared error is nested
in the same manner by Matryoshka sparse autoencoders (Bussmann et al., 2025).

References
    B. Bussmann, N. Nabeshima, A. Karvonen, N. Nanda (2025), Learning multi-level features with Matryoshka sparse
    autoencoders.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, cast

import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.distributions import Independent, kl_divergence

from vsc_pyro._arguments import sizes
from vsc_pyro.distributions import LinearNormal
from vsc_pyro.objectives.elbo import Site, Term, site_of
from vsc_pyro.objectives.linear import ExactELBO


class NestedELBO(ExactELBO):
    """The mean `ExactELBO` of prefixes of the code, and of the whole code, see the module's docstring.

    Reconstructions of the prefixes share their parts, so a prefix costs one more array of the size of the data.

    Args:
        prefixes: numbers of latents, in ascending order; the whole code of J is always added. None for J / 16 and
            J / 4.
        args, kwargs: as for `ExactELBO`.

    Raises:
        ValueError: prefixes that do not ascend from 1; in the first step: as `ExactELBO`, a prefix that is not shorter
            than the code, or a prior or posterior of dependent latents.

    Example:
        >>> import torch
        >>> import vsc_pyro as vsc
        >>> sae = vsc.SparseDictionary(6, num_features=12, expected_active=2)
        >>> objective = vsc.NestedELBO(prefixes=(3, 6), max_plate_nesting=1)
        >>> history = vsc.fit(sae, torch.randn(50, 6), objective=objective, epochs=1, progress=False, device="cpu")
    """

    name: ClassVar[str] = "nested"

    def __init__(self, *args: Any, prefixes: Sequence[int] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.prefixes = None if prefixes is None else sizes("prefixes", prefixes)
        if self.prefixes is None:
            return
        if not self.prefixes or list(self.prefixes) != sorted(set(self.prefixes)):
            raise ValueError(f"prefixes must be numbers of latents in ascending order, got {prefixes!r}")

    def describe(self) -> str:
        """Return the settings that a resumed run must have in common with the saved one."""
        return f"prefixes={self.prefixes}"

    def _all_prefixes(self, num_latents: int) -> tuple[int, ...]:
        if self.prefixes is None:
            return *(m for m in (num_latents // 16, num_latents // 4) if m), num_latents
        if self.prefixes[-1] >= num_latents:
            raise ValueError(
                f"prefixes must be shorter than the code of {num_latents} latents, which is added, got {self.prefixes}"
            )
        return (*self.prefixes, num_latents)

    def _expected(self, likelihood: LinearNormal, value: Tensor, variance: Tensor) -> Tensor:
        prefixes = self._all_prefixes(likelihood.code.shape[-1])
        return likelihood.expected_log_probs(value, variance, prefixes).mean(0)

    def _latent_term(self, model_trace: Trace, name: str, guide_sites: dict[str, Site]) -> Term:
        if name != self.latent:
            return super()._latent_term(model_trace, name, guide_sites)
        self._refuse_infinite(name, model_trace, guide_sites)
        guide_site = guide_sites[name]
        parts = [guide_site["fn"], site_of(model_trace, name)["fn"]]
        if not all(isinstance(part, Independent) and not part.base_dist.event_shape for part in parts):
            raise ValueError(
                f"NestedELBO needs independent latents at site {name!r}, to leave some out, got a "
                f"{type(parts[0]).__name__} and a {type(parts[1]).__name__}; take ExactELBO"
            )
        posterior, prior = (cast("Independent", part).base_dist for part in parts)
        try:
            kl = kl_divergence(posterior, prior)
        except NotImplementedError:
            return self._open_term(model_trace, name, guide_sites)
        latents = torch.arange(kl.shape[-1], device=kl.device)
        share = torch.stack([latents < num for num in self._all_prefixes(len(latents))]).to(kl).mean(0)
        term = -scale_and_mask((kl * share).sum(-1), guide_site["scale"], guide_site["mask"])
        return Term(term, term, exact_kl=True)
