"""`Program`: a Pyro program and its guide, whose draws become an ArviZ object.

===========================  ==========================================================
group                        variables
===========================  ==========================================================
``posterior``, ``prior``     each latent and deterministic site; ``<site>_active``, 1
                             where a site with spikes is not zero
``posterior_predictive``,    each observed site, drawn
``prior_predictive``
``log_likelihood``           each observed site, not scaled
``observed_data``            each observed site, without chain and draw
``constant_data``            ``<site>_inclusion_prob``, without chain and draw, if the
                             guide has a method ``inclusion()``
===========================  ==========================================================

A dimension is a plate by name, or ``<site>_dim_0``, ``<site>_dim_1`` and so on, counted over the others.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pyro import poutine
from pyro.distributions import Unit
from pyro.distributions.util import scale_and_mask
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor, nn
from tqdm.auto import tqdm

from vsc_pyro._seeding import seeded
from vsc_pyro.arviz_bridge.variables import as_arviz, check_size, checked_coords, concatenated
from vsc_pyro.distributions import inclusion_logits, is_proper
from vsc_pyro.models.vae import VAE
from vsc_pyro.objectives.elbo import Site, sample_sites

if TYPE_CHECKING:
    import arviz
    import xarray

    from vsc_pyro.arviz_bridge.variables import Variables

_EQUAL_IN_ALL_DRAWS = ("observed_data", "constant_data")
_Named = tuple[str, str, Site, Tensor]  # group, name, the site that has the dims, value


class Program:
    """A model and a guide with their arguments.

    Args:
        model, guide: Pyro programs.
        data: their arguments: one, a sequence of several, or a mapping of names to them.
        predictive, prior, log_likelihood: True for the groups to draw.
    """

    def __init__(
        self, model: Callable, guide: Callable, data: Any, predictive: bool, prior: bool, log_likelihood: bool
    ) -> None:
        for name, program in {"model": model, "guide": guide}.items():
            if not callable(program) or isinstance(program, (type, VAE)):
                raise ValueError(
                    f"{name} must be a Pyro program, a function of the data or a guide that is built, such as "
                    f"vsc_pyro.AutoSpikeSlab(model), got {program!r}"
                )
        self.model, self.guide = model, guide
        self.keywords = dict(data) if isinstance(data, Mapping) else {}
        several = tuple(data) if isinstance(data, (tuple, list)) else (data,)
        self.arguments = () if isinstance(data, Mapping) else several
        self.predictive, self.prior, self.log_likelihood = predictive, prior, log_likelihood

    def to_arviz(
        self, num_samples: int, coords: Mapping[str, Sequence[Any]], seed: int, max_gigabytes: float, progress: bool
    ) -> arviz.InferenceData | xarray.DataTree:
        """Return independent draws as one chain; arguments and errors are those of `vsc_pyro.to_arviz`."""
        with torch.no_grad(), seeded(seed, self._device()):
            first = _variables(self._draw())
            sizes: dict[Hashable, int] = {dim: n for value in first.values() for dim, n in value.sizes.items()}
            sizes["draw"] = num_samples
            names = {dim: np.arange(size) for dim, size in sizes.items()} | checked_coords(coords, sizes)
            check_size(first, sizes, max_gigabytes, f"{num_samples} draws of the program", "")
            others = tqdm(range(1, num_samples), desc="to_arviz", unit="draw", disable=not progress)
            variables = concatenated([first, *(_variables(self._draw()) for _ in others)], "draw")
        return as_arviz(variables, names, {"seed": seed})

    def _draw(self) -> Iterator[_Named]:
        """Yield one draw of all variables."""
        guide_trace = poutine.trace(self.guide).get_trace(*self.arguments, **self.keywords)
        replayed = poutine.replay(self.model, trace=guide_trace)
        sites = self._sites(replayed)
        _check(sites, sample_sites(prune_subsample_sites(guide_trace)))
        observed = {name: site for name, site in sites.items() if _is_data(site)}
        yield from _latents("posterior", sites, sites)
        for name, probability in getattr(self.guide, "inclusion", dict)().items():
            yield "constant_data", f"{name}_inclusion_prob", sites[name], probability
        for name, site in observed.items():
            yield "observed_data", name, site, site["value"]
            if self.log_likelihood:
                yield (
                    "log_likelihood",
                    name,
                    site,
                    scale_and_mask(site["fn"].log_prob(site["value"]), mask=site["mask"]),
                )
        if self.predictive:
            drawn = self._sites(poutine.uncondition(replayed))
            yield from (("posterior_predictive", name, drawn[name], drawn[name]["value"]) for name in observed)
        if self.prior and self._has_prior(sites):
            drawn = self._sites(poutine.uncondition(self.model))
            yield from _latents("prior", drawn, sites)
            if self.predictive:
                yield from (("prior_predictive", name, drawn[name], drawn[name]["value"]) for name in observed)

    def _sites(self, model: Callable) -> dict[str, Site]:
        trace = poutine.trace(model).get_trace(*self.arguments, **self.keywords)
        return sample_sites(prune_subsample_sites(trace))

    def _has_prior(self, sites: dict[str, Site]) -> bool:
        """Return True if all latents can be drawn from the prior; if not, warn once."""
        improper = [name for name, site in sites.items() if not is_proper(site["fn"])]
        if improper:
            self.prior = False
            warnings.warn(
                f"the prior of {improper[0]!r} is flat and cannot be sampled: the groups prior and prior_predictive "
                "are left out; pass prior=False to silence this",
                stacklevel=5,
            )
        return self.prior

    def _device(self) -> torch.device:
        parameters = self.guide.parameters() if isinstance(self.guide, nn.Module) else ()
        values = (*self.arguments, *self.keywords.values(), *parameters)
        return next((value.device for value in values if isinstance(value, Tensor)), torch.device("cpu"))


def _latents(group: str, drawn: dict[str, Site], sites: dict[str, Site]) -> Iterator[_Named]:
    """Yield latent and deterministic sites, `sites` being those of the conditioned model."""
    for name, site in drawn.items():
        if _is_data(sites[name]) or isinstance(site["fn"], Unit):
            continue
        yield group, name, site, site["value"]
        if inclusion_logits(site["fn"]) is not None:
            # ArviZ's quantiles subtract, and bools cannot be subtracted.
            yield group, f"{name}_active", site, (site["value"] != 0).to(torch.int8)


def _is_data(site: Site) -> bool:
    """Return True for an observed site that is neither a factor nor deterministic."""
    return site["is_observed"] and not isinstance(site["fn"], Unit) and not site["infer"].get("_deterministic")


def _check(sites: dict[str, Site], guided: dict[str, Site]) -> None:
    for name, site in (guided | sites).items():
        for frame in site["cond_indep_stack"]:
            if frame.full_size not in (None, frame.size):
                raise ValueError(
                    f"plate {frame.name!r} draws {frame.size} of {frame.full_size} data, others in every draw; pass a "
                    "model and a guide without subsampling"
                )
        if not site["is_observed"] and name not in guided:
            raise ValueError(
                f"the guide does not draw the site {name!r}, which would be drawn from its prior; pass the guide of "
                "this model, and the data that it observes"
            )


def _variables(named: Iterable[_Named]) -> Variables:
    from xarray import Variable

    variables = {}
    for group, name, site, value in named:
        # The distribution of a deterministic site in a plate counts the plate twice.
        is_as_drawn = group == "log_likelihood" or site["infer"].get("_deterministic")
        event_dim = 0 if is_as_drawn else site["fn"].event_dim
        if not is_as_drawn:
            value = value.expand(torch.broadcast_shapes(value.shape, site["fn"].shape()))
        dims, array = _dims(site, value.shape, event_dim), value.cpu().numpy()
        if group not in _EQUAL_IN_ALL_DRAWS:
            dims, array = ("chain", "draw", *dims), array[None, None]
        variables[group, name] = Variable(dims, array)
    return variables


def _dims(site: Site, shape: torch.Size, event_dim: int) -> list[str]:
    """Return the names of the dimensions of a site: plates, and others numbered."""
    plates = {frame.dim: frame for frame in site["cond_indep_stack"]}
    dims: list[str] = []
    numbered = 0
    for position, size in enumerate(shape):
        plate = plates.get(position - len(shape) + event_dim)
        if plate is not None and plate.size == size and plate.name not in (site["name"], "chain", "draw"):
            dims.append(plate.name)
        else:
            dims.append(f"{site['name']}_dim_{numbered}")
            numbered += 1
    return dims
