"""Candidates for defaults, compared on the rows of `defaults.py`, with a seventh of the training data held out.

    python benchmarks/recipes.py --data-root data

Each recipe changes one thing of the plain run, which is Adam at a constant rate with the full weight of the KL from the
first step. Measurements are on a held-out part of the *training* data, so that the test data of `defaults.py` play no
part in the choice of defaults. Rows whose training and test data are the same (faces) are measured on those.

- cooldown: the learning rate falls over the last quarter, or half, of the run.
- warm-up: the weight of the KL rises over the first fifth.
- free bits: a latent's KL, averaged over the minibatch, counts at least .05 nats (D. P. Kingma et al., 2016).
- aggregate: in the first half of the run, the KL of the spikes is that of the mean inclusion over the minibatch, with a
  weight that falls from 1 to 0. (As in A. Makhzani et al., 2015, the aggregate posterior, not that of each datum, is
  held close to the prior.)
- learned slabs: the slabs of the prior are learned, `SpikeSlabPrior(learn_slab=True)`.
- learned inclusion: the prior learns how often each latent is on, `SpikeSlabPrior(learn_inclusion="per-latent")`, with
  the cooldown of a quarter; from an inclusion of .1, from .3 and from .5, and from .1 with a warm-up over half of the
  run.
- late DisARM: the last two fifths of the run with the unbiased gate "disarm" and two draws, in half as many epochs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import defaults
import measure
import torch
from default_rows import ROWS, Data, Row
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import Bernoulli, Distribution, Independent, kl_divergence

import vsc_pyro as vsc
from vsc_pyro.distributions import inclusion_of
from vsc_pyro.objectives.elbo import Term

_FREE = 0.05
_LEARNED = {"learn_inclusion": "per-latent"}
_EVERY = 7


class _Charging:
    """Mixin of an ELBO that trains with another charge for codes than their KL, and still reports the ELBO."""

    def charge(self, posterior: Distribution, prior: Distribution, divergence: Tensor) -> Tensor:
        raise NotImplementedError

    def _latent_term(self, model_trace: Any, name: str, guide_sites: dict[str, dict]) -> Term:
        term = super()._latent_term(model_trace, name, guide_sites)
        site, posterior, prior = guide_sites[name], guide_sites[name]["fn"], model_trace.nodes[name]["fn"]
        if not (isinstance(posterior, Independent) and isinstance(prior, Independent)):
            return term
        charged = self.charge(posterior, prior, kl_divergence(posterior, prior))
        return Term(term.value, -scale_and_mask(charged, site["scale"], site["mask"]), exact_kl=True)


class FreeBits(_Charging):
    def charge(self, posterior: Distribution, prior: Distribution, divergence: Tensor) -> Tensor:
        each = kl_divergence(posterior.base_dist, prior.base_dist).flatten(0, -2).mean(0)
        return each.clamp(min=_FREE).sum().expand_as(divergence)


class Aggregate(_Charging):
    steps, taken = 1, 0

    def charge(self, posterior: Distribution, prior: Distribution, divergence: Tensor) -> Tensor:
        weight = max(0.0, 1 - self.taken / self.steps)
        self.taken += 1
        own = inclusion_of(posterior).clamp(1e-6, 1 - 1e-6)
        prior_own = inclusion_of(prior).expand_as(own)
        single = kl_divergence(Bernoulli(own), Bernoulli(prior_own)).sum(-1)
        together = kl_divergence(Bernoulli(own.mean(0)), Bernoulli(prior_own.mean(0))).sum()
        return divergence + weight * (together - single)


def _elbo(row: Row, kind: type[_Charging]) -> vsc.TraceELBO:
    base = vsc.ExactELBO if row.fit_kwargs.get("objective") == "exact" else vsc.AnalyticELBO
    return type(kind.__name__, (kind, base), {})(max_plate_nesting=1)


def aggregate(row: Row, num_steps: int) -> vsc.TraceELBO:
    elbo = _elbo(row, Aggregate)
    elbo.steps = num_steps // 2
    return elbo


def late_disarm(model: vsc.VAE, data: vsc.Dataset, epochs: int, **settings: Any) -> None:
    """Train with "disarm" in the last two fifths of the run; each of its epochs counts as two."""
    first = round(0.6 * epochs)
    vsc.fit(model, data, epochs=first, **settings)
    vsc.fit(model, data, epochs=max(1, (epochs - first) // 2), gate="disarm", num_draws=2, **settings)


# By name: functions of the row and its number of steps that return the overrides of `defaults.run_row`.
RECIPES: dict[str, Callable[[Row, int], dict[str, Any]]] = {
    "plain": lambda row, steps: {},
    "cooldown 1/4": lambda row, steps: {"fit_kwargs": {"cooldown": 0.25}},
    "cooldown 1/2": lambda row, steps: {"fit_kwargs": {"cooldown": 0.5}},
    "warm-up": lambda row, steps: {"fit_kwargs": {"warmup": 0.2}},
    "free bits": lambda row, steps: {"fit_kwargs": {"objective": _elbo(row, FreeBits)}},
    "aggregate": lambda row, steps: {"fit_kwargs": {"objective": aggregate(row, steps)}},
    "learned slabs": lambda row, steps: {"prior_kwargs": {"learn_slab": True}},
    "learned slabs, cooldown 1/4": lambda row, steps: {
        "prior_kwargs": {"learn_slab": True},
        "fit_kwargs": {"cooldown": 0.25},
    },
    "late DisARM": lambda row, steps: {"fit": late_disarm},
    "learned inclusion": lambda row, steps: {"prior_kwargs": _LEARNED, "fit_kwargs": {"cooldown": 0.25}},
    "learned inclusion, from .3": lambda row, steps: {
        "prior_kwargs": {**_LEARNED, "inclusion": 0.3},
        "fit_kwargs": {"cooldown": 0.25},
    },
    "learned inclusion, from .5": lambda row, steps: {
        "prior_kwargs": {**_LEARNED, "inclusion": 0.5},
        "fit_kwargs": {"cooldown": 0.25},
    },
    "learned inclusion, warm-up 1/2": lambda row, steps: {
        "prior_kwargs": _LEARNED,
        "fit_kwargs": {"cooldown": 0.25, "warmup": 0.5},
    },
}


def admits(row: Row, recipe: str) -> bool:
    """Return True if the recipe applies to the model of the row."""
    if recipe == "late DisARM":
        return row.fit_kwargs.get("objective") != "exact"  # an exact objective draws no codes
    # The prior of a VSC is a mixture over whole codes: single latents have neither a KL nor slabs of their own.
    return row.kind != "vsc" or not recipe.startswith(("learned", "free bits", "aggregate"))


def validation(data: Data) -> Data:
    """Return the training data, with every seventh datum as test data."""
    if not data.held_out:
        return data
    held = torch.arange(len(data.train)) % _EVERY == _EVERY - 1
    return data._replace(train=data.train[~held], test=data.train[held], source=f"{data.source}; of the training data")


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    options = measure.parser(__doc__, rounds=None)
    options.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW")
    options.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES), metavar="RECIPE")
    options.add_argument("--seeds", type=int, nargs="+", default=[0])
    args = options.parse_args(argv)
    session = measure.Session("recipes", args)
    session.record["environment"]["commit"] = defaults.commit()
    session.record["data"] = {}
    for name in args.rows:
        row = ROWS[name]
        for data in session.available({name: lambda row=row: validation(row.load(args.data_root))}).values():
            if args.quick:
                row, data = defaults.tiny(row, data)
            session.record["data"][name] = data.source
            for recipe in (recipe for recipe in args.recipes if admits(row, recipe)):
                for seed in args.seeds:
                    session.record["results"].append(_tried(row, data, recipe, seed, str(session.device)))
                    session.write()
    return session.finish()


def _tried(row: Row, data: Data, recipe: str, seed: int, device: str) -> dict[str, Any]:
    steps = row.epochs * -(-len(data.train) // 200)
    overrides = RECIPES[recipe](row, steps)
    overrides["fit_kwargs"] = {"device": device, "cooldown": 0, **overrides.get("fit_kwargs", {})}
    (found,) = defaults.run_row(row, data, seed=seed, contestants=("ours",), **overrides).values()
    cells = defaults.cells(recipe, found, row.latent_dim)
    measure.table(f"{row.name}, seed {seed}", ["", *defaults.HEAD], [cells])
    return {"row": row.name, "recipe": recipe, "seed": seed, **found}


if __name__ == "__main__":
    main()
