r"""`to_arviz`: posterior, prior and predictions of a trained model as one ArviZ object.

Any other Pyro program and its guide: see `vsc_pyro.arviz_bridge.programs`. The groups of a `VAE` are:

=======================  ====================================================  ==========================
group                    variables                                             dims before those of a datum
=======================  ====================================================  ==========================
``posterior``            ``z``; ``active``, 1 where :math:`z \neq 0`; latent    chain, draw, datum
                         variables common to all data, such as ``inclusion``
``posterior_predictive`` ``x``, drawn from the decoder                         chain, draw, datum
``log_likelihood``       ``x``, :math:`\log p(x|z)`                            chain, draw, datum
``sample_stats``         ``log_prior`` :math:`\log p(z)`, ``log_posterior``    chain, draw, datum
                         :math:`\log q(z|x)`
``prior``                ``z``, ``active``, and the common variables           chain, draw, datum
``prior_predictive``     ``x``, as many data in each draw as in `data`         chain, draw, datum
``observed_data``        ``x`` as the model sees it                            datum
``constant_data``        ``inclusion_prob``, ``slab_loc``, ``slab_scale``,     datum; with several models
                         exact; ``prior_inclusion_prob``; ``label``            chain, datum
=======================  ====================================================  ==========================

A latent has the dimension ``latent``, an image ``channel``, ``height``, ``width``. In a dense posterior every latent is
active, and the slab is the posterior itself.

The object is an `arviz.InferenceData` under ArviZ 0.x and an `xarray.DataTree` under ArviZ 1.x, with the same groups.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyro
import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from vsc_pyro._arguments import natural_int, positive_float, positive_int, yes_or_no
from vsc_pyro._seeding import seeded
from vsc_pyro.arviz_bridge.programs import Program
from vsc_pyro.arviz_bridge.variables import as_arviz, check_size, checked_coords, concatenated
from vsc_pyro.datasets import Dataset
from vsc_pyro.datasets.labels import label_array
from vsc_pyro.distributions import given, inclusion_logits, inclusion_of, is_point, is_proper, slab_of
from vsc_pyro.models.vae import VAE
from vsc_pyro.training.loaded import Loaded, as_readable

if TYPE_CHECKING:
    import arviz
    import xarray

    from vsc_pyro.arviz_bridge.variables import Variables

_NUMBERS_AT_ONCE = 10_000_000  # elements of a chunk's largest tensor
_PIXEL_DIMS = {1: ("pixel",), 2: ("height", "width"), 3: ("channel", "height", "width")}
_Named = tuple[str, str, tuple[str, ...], Tensor]  # group, name, dims without the chain, value


def to_arviz(
    model: VAE | Sequence[VAE] | Callable,
    data: Dataset | Tensor | np.ndarray | DataLoader | Sequence[Any] | Mapping[str, Any] = (),
    num_samples: int = 500,
    *,
    guide: Callable | None = None,
    labels: Sequence[Any] | np.ndarray | Tensor | None = None,
    coords: Mapping[str, Sequence[Any]] | None = None,
    predictive: bool = True,
    prior: bool = True,
    log_likelihood: bool = True,
    seed: int = 0,
    max_gigabytes: float = 2.0,
    progress: bool = False,
) -> arviz.InferenceData | xarray.DataTree:
    r"""Return posterior, predictions and prior of a trained model for some data as an ArviZ object.

    The module's docstring lists the groups of a `VAE`. With a `guide`, the model is any Pyro program:

        inference = vsc.to_arviz(model, (x, y), guide=guide)

    Each latent site has a variable in ``posterior`` and ``prior``, and a site with spikes also ``<site>_active``; each
    observed site has one in ``observed_data``, ``posterior_predictive``, ``prior_predictive`` and ``log_likelihood``. A
    guide such as `vsc_pyro.AutoSpikeSlab` adds ``constant_data.<site>_inclusion_prob``, exact. Dimensions are plates
    by name, and ``<site>_dim_0`` and so on.

    Draws have hard spikes. The models' modes and the caller's random state are
    restored. Save the result by its ``to_netcdf(path)`` and read it by ``arviz.from_netcdf(path)``.

    Draws are independent draws from the guide, not a Markov chain, so some functions of ArviZ do not apply:

    * ``summary(var_names=["active"], kind="stats")``: yes. Means estimate ``inclusion_prob``, which is stored exactly.
    * ``plot_forest(var_names=["active"])``: with ArviZ 1.x, which marks means; 0.x marks medians, which are 0 or 1 for
      zeros and ones. Both are useful for ``active.sum("latent")``, the number of latents on in each datum, and for
      ``active.mean("datum")``, the usage of each latent.
    * ``r_hat``, effective sample sizes, ``plot_trace``, ``plot_rank``: no. Draws are independent by construction, and
      several models have their latents in different orders.
    * ``plot_density``, ``plot_posterior``, ``hdi`` of ``z``: no. They smooth over the spike at zero or hide it. Show
      ``active``, and the slab of latents that are on, ``z.where(active == 1)``.
    * ``loo``, ``waic``: no. The latents of a datum are inferred from that datum alone. Leaving it out leaves no latents
      to weight. Compare models by `vsc_pyro.elpd` of test data.

    Args:
        model: a trained `VAE`, or several models of the same data, which become the chains of one object. Latents of
            different models do not correspond, so average only quantities that do not depend on their order. With
            `guide`, a Pyro program.
        data: the data to explain, shape ``(N, ...)``, such as a slice of a test set. A `Dataset` is binarised once, and
            its labels are kept, or their names. The data of a `DataLoader` become part of the result, which
            `max_gigabytes` limits.
            With `guide`, the arguments of the programs: one, a tuple of several, or a mapping of names to them.
        num_samples: draws S of each code, and of the prior.
        guide: the guide of a program, which draws all its latents; None for a `VAE`, which has its own.
        labels: numbers or strings, one for each datum, as a list or an array of any kind, stored as
            ``constant_data.label``; None for those of the data.
        coords: names for the entries of a dimension, such as ``{"datum": [...], "latent": [...]}``; numbers otherwise.
        predictive: draw data: ``posterior_predictive``, and with `prior` also ``prior_predictive``.
        prior: draw from the prior. A flat prior cannot be sampled and is left out, after a warning.
        log_likelihood: store the log-densities that importance weights are made of.
        seed: of binarisation; chain c draws from ``seed + 1 + c``, so that codes are independent of the pixels' noise.
        max_gigabytes: largest result allowed; checked before anything is drawn.
        progress: show a bar.

    Raises:
        ValueError: no model; models with different numbers of latents; data that do not fit; labels or coords of
            another length or dimension; a result larger than `max_gigabytes` (the message names remedies); a program
            whose guide leaves out a latent, or with a plate that draws a subsample.

    Example:
        >>> import torch, vsc_pyro as vsc
        >>> model = vsc.VAE(vsc.SpikeSlabEncoder(4, 2), vsc.NormalDecoder(2, 4), vsc.SpikeSlabPrior(2))
        >>> inference = vsc.to_arviz(model, torch.randn(3, 4), 10)
        >>> inference["posterior"]["active"].shape
        (1, 10, 3, 2)
    """
    num_samples, seed = positive_int("num_samples", num_samples), natural_int("seed", seed)
    max_gigabytes = positive_float("max_gigabytes", max_gigabytes)
    predictive, prior = yes_or_no("predictive", predictive), yes_or_no("prior", prior)
    log_likelihood = yes_or_no("log_likelihood", log_likelihood)
    coords = {} if coords is None else coords
    if guide is not None:
        if isinstance(model, VAE) or labels is not None:
            raise ValueError("guide and labels exclude each other, and a VAE has its own guide; leave guide out")
        program = Program(cast("Callable", model), guide, data, predictive, prior, log_likelihood)
        return program.to_arviz(num_samples, coords, seed, max_gigabytes, progress)
    models = _models(model)
    read = as_readable(data, seed, *models)
    prior = prior and all(_has_prior(one, read) for one in models)
    draws = _Draws(_pixel_dims(read), predictive, prior, log_likelihood, several=not isinstance(model, VAE))
    examples, numbers = zip(*(draws.example(one, read.images[:1], seed) for one in models), strict=True)
    sizes = _sizes(examples, {"chain": len(models), "draw": num_samples, "datum": len(read)})
    names = {dim: np.arange(size) for dim, size in sizes.items()} | checked_coords(coords, sizes)
    asked = f"{num_samples} draws of {len(read)} data"
    check_size(examples[0], sizes, max_gigabytes, asked, "a slice of the data such as data[:16], ")
    if labels is None and isinstance(read, Dataset) and read.labels is not None:
        labels = [read.class_name(label) for label in read.labels.tolist()]
    label = _checked_labels(labels, len(read))
    with seeded(seed, read.images.device):
        x = read.draw(slice(None))
    chains = []
    with tqdm(total=len(models) * len(read), desc="to_arviz", unit="datum", disable=not progress) as bar:
        for chain, one in enumerate(models):
            # Data are checked once. Pyro would check every draw, and wait for the device each time.
            with one.evaluating(), seeded(seed + 1 + chain, one.reference.device), pyro.validation_enabled(False):
                chains.append(_chain(one, draws, x, num_samples, _NUMBERS_AT_ONCE // max(numbers), bar))
    variables = concatenated(chains, "chain") | label
    return as_arviz(variables, names, {"data": read.name, "binarize": str(read.binarize), "seed": seed})


@dataclasses.dataclass(frozen=True)
class _Draws:
    """Draws and densities of a model in evaluation mode."""

    pixels: tuple[str, ...]
    predictive: bool
    prior: bool
    log_likelihood: bool
    several: bool

    def example(self, model: VAE, x: Tensor, seed: int) -> tuple[Variables, int]:
        """Return the variables of one datum and one draw, and the elements of the largest tensor behind them.

        The largest tensor holds the pixels, or the code for every component of a mixture prior.
        """
        with model.evaluating(), seeded(seed, model.reference.device):
            prior = model.marginal_prior(x.to(model.reference))
            mixture = getattr(prior, "mixture_distribution", None)
            components = 1 if mixture is None else mixture.logits.shape[-1]
            variables = self.variables([*self.of_data(model, x, 1), *self.of_model(model, x, 1, 1)])
        return variables, max(x[0].numel(), math.prod(prior.event_shape) * components)

    def variables(self, named: Iterable[_Named]) -> Variables:
        from xarray import Variable

        variables = {}
        for group, name, dims, value in named:
            has_chain = group != "observed_data" and (self.several or group != "constant_data")
            array = value.cpu().numpy()
            variables[group, name] = Variable(("chain", *dims), array[None]) if has_chain else Variable(dims, array)
        return variables

    def of_data(self, model: VAE, x: Tensor, num: int) -> Iterator[_Named]:
        """Yield the variables that belong to single data: codes, predictions and densities."""
        of_draw, x = ("draw", "datum"), x.to(model.reference)
        yield "observed_data", "x", ("datum", *self.pixels), x
        posterior = model.encoder(x)
        for name, value in _parameters(posterior):
            yield "constant_data", name, ("datum", "latent"), value
        z = posterior.sample((num,))
        yield from _code("posterior", z)
        if not (self.predictive or self.log_likelihood):
            return
        likelihood = model.decoder(z)
        if self.predictive:
            drawn = given(likelihood, x).sample().reshape(num, *x.shape)
            yield "posterior_predictive", "x", (*of_draw, *self.pixels), drawn
        if self.log_likelihood:
            yield "log_likelihood", "x", of_draw, likelihood.log_prob(x.reshape(x.shape[:1] + likelihood.event_shape))
            before = model.marginal_prior(x).expand(posterior.batch_shape).log_prob(z)
            after = before * math.nan if is_point(posterior) else posterior.log_prob(z)
            yield "sample_stats", "log_prior", of_draw, before
            yield "sample_stats", "log_posterior", of_draw, after

    def of_model(self, model: VAE, x: Tensor, num: int, num_data: int) -> Iterator[_Named]:
        """Yield the variables that do not depend on the data: the prior and latent variables common to all data."""
        prior: Any = model.prior
        x = x.to(model.reference)
        marginal = model.marginal_prior(x)
        if (logits := inclusion_logits(marginal)) is not None:
            yield "constant_data", "prior_inclusion_prob", ("latent",), logits.sigmoid().reshape(-1)
        sites = prior.hyperparameters() if hasattr(prior, "hyperparameters") else {}
        values = {}
        for name, (before, after) in sites.items():
            dims = ("draw", *("latent" for _ in before.event_shape))
            yield "posterior", name, dims, after.sample((num,))
            values[name] = before.sample((num,))
            if self.prior:
                yield "prior", name, dims, values[name]
        if not self.prior:
            return
        if sites:  # all data of a draw share the value
            z = prior(x, **values).expand((num_data, num)).sample().transpose(0, 1)
        else:
            z = marginal.expand((num_data,)).sample((num,))
        yield from _code("prior", z)
        if self.predictive:
            drawn = model.decoder(z).sample().reshape(num, num_data, *x.shape[1:])
            yield "prior_predictive", "x", ("draw", "datum", *self.pixels), drawn


def _code(group: str, z: Tensor) -> Iterator[_Named]:
    dims = ("draw", "datum", "latent")
    yield group, "z", dims, z
    # ArviZ's quantiles subtract, and bools cannot be subtracted.
    yield group, "active", dims, (z != 0).to(torch.int8)


def _parameters(posterior: Distribution) -> Iterator[tuple[str, Tensor]]:
    """Yield the inclusion probabilities and all parameters of the slab's family."""
    slab: Any = slab_of(posterior)
    shape = posterior.batch_shape + posterior.event_shape
    yield "inclusion_prob", inclusion_of(posterior)
    if is_point(posterior):
        parameters = {"loc": slab.v, "scale": torch.zeros(shape)}
    else:
        parameters = {name: getattr(slab, name) for name in slab.arg_constraints}
    for name, value in parameters.items():
        yield f"slab_{name}", value.expand(shape)


def _chain(model: VAE, draws: _Draws, x: Tensor, num_samples: int, draws_at_once: int, bar: tqdm) -> Variables:
    """Return the variables of one model, drawn in chunks of `draws_at_once` draws of one datum, or all of several."""

    def parts(at_once: int) -> list[int]:
        at_once = max(1, at_once)
        return [min(at_once, num_samples - start) for start in range(0, num_samples, at_once)]

    of_model = [draws.variables(draws.of_model(model, x[:1], num, len(x))) for num in parts(draws_at_once // len(x))]
    of_data = []
    for rows in x.split(max(1, draws_at_once // num_samples)):
        chunks = [draws.variables(draws.of_data(model, rows, num)) for num in parts(draws_at_once)]
        of_data.append(concatenated(chunks, "draw"))
        bar.update(len(rows))
    return concatenated(of_model, "draw") | concatenated(of_data, "datum")


def _sizes(examples: Sequence[Variables], sizes: dict[Hashable, int]) -> dict[Hashable, int]:
    """Return `sizes` with those of all other dimensions; raise `ValueError` if the models' variables differ."""
    first = {key: value.dims for key, value in examples[0].items()}
    for example in examples:
        for (group, name), value in example.items():
            for dim, size in value.sizes.items():
                if sizes.setdefault(dim, size) != size and dim not in ("chain", "draw", "datum"):
                    raise ValueError(
                        f"{group}.{name} has {size} entries of dimension {dim!r} where others have {sizes[dim]}; "
                        "models that become chains of one object must have the same number of latents"
                    )
        different = first.items() ^ {key: value.dims for key, value in example.items()}.items()
        if different:
            names = sorted({f"{group}.{name}" for (group, name), _ in different})
            raise ValueError(
                f"models that become chains of one object must be of one kind, and only some have "
                f"{', '.join(names)}; call to_arviz for each kind"
            )
    return sizes


def _checked_labels(labels: Any, num_data: int) -> Variables:
    """Return the variable of the labels, if there are any."""
    if labels is None:
        return {}
    from xarray import Variable

    return {("constant_data", "label"): Variable(("datum",), label_array(labels, num_data))}


def _pixel_dims(data: Dataset | Loaded) -> tuple[str, ...]:
    num = data.images.ndim - 1
    return _PIXEL_DIMS.get(num, tuple(f"pixel_dim_{i}" for i in range(num)))


def _models(model: Any) -> list[VAE]:
    models = list(model) if isinstance(model, Sequence) else [model]
    if not models:
        raise ValueError("model holds no model; pass a trained VAE, or several")
    if strange := [one for one in models if not isinstance(one, VAE)]:
        raise ValueError(f"model must be a VAE or a sequence of them, got {strange[0]!r}; a Pyro program needs guide=")
    return models


def has_proper_prior(model: VAE, data: Dataset | Loaded) -> bool:
    """Return True if the marginal prior, before any datum is seen, can be sampled.

    Raises:
        ValueError: a prior that depends on the datum.
    """
    with model.evaluating():
        return is_proper(model.marginal_prior(data.images[:1].to(model.reference)))


def _has_prior(model: VAE, data: Dataset | Loaded) -> bool:
    """Return `has_proper_prior`, and warn if it is False."""
    proper = has_proper_prior(model, data)
    if not proper:
        warnings.warn(
            "the prior is flat and cannot be sampled: the groups prior and prior_predictive are left out; pass "
            "prior=False to silence this",
            stacklevel=4,
        )
    return proper
