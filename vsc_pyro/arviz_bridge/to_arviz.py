r"""What a trained model believes, as one ArviZ object: `to_arviz`.

=======================  ====================================================  ==========================
group                    variables                                             dims before those of a datum
=======================  ====================================================  ==========================
``posterior``            ``z``; ``active``, 1 where :math:`z \neq 0`; latent    chain, draw, datum
                         variables common to all data, such as ``inclusion``
``posterior_predictive`` ``x``, drawn from the decoder                         chain, draw, datum
``log_likelihood``       ``x``, :math:`\log p(x|z)`                            chain, draw, datum
``sample_stats``         ``log_prior`` :math:`\log p(z)`, ``log_posterior``    chain, draw, datum
                         :math:`\log q(z|x)`
``prior``                ``z``, ``active``, and those in common                chain, draw, datum
``prior_predictive``     ``x``, as many data in each draw as there are         chain, draw, datum
``observed_data``        ``x`` as the model saw it                             datum
``constant_data``        ``inclusion_prob``, ``slab_loc``, ``slab_scale``,     datum; with several models
                         exact; ``prior_inclusion_prob``; ``label``            chain, datum
=======================  ====================================================  ==========================

A latent has the dimension ``latent``, an image ``channel``, ``height``, ``width``. A dense posterior has no spikes, all
its latents are active, and it is a slab itself.

ArviZ 0.x gives an `arviz.InferenceData`, ArviZ 1.x an `xarray.DataTree`, with the same groups.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyro
import torch
from torch import Tensor
from torch.distributions import Distribution
from tqdm.auto import tqdm

from vsc_pyro._arguments import natural_int, positive_float, positive_int
from vsc_pyro._seeding import seeded
from vsc_pyro.arviz_bridge.versions import from_datasets
from vsc_pyro.datasets import Dataset
from vsc_pyro.distributions import inclusion_logits, inclusion_of, is_point, is_proper, slab_of
from vsc_pyro.models.data_checks import in_memory
from vsc_pyro.models.vae import VAE

if TYPE_CHECKING:
    import arviz
    import xarray

_NUMBERS_AT_ONCE = 10_000_000  # of decoded pixels held besides the result
_PIXEL_DIMS = {1: ("pixel",), 2: ("height", "width"), 3: ("channel", "height", "width")}


def to_arviz(
    model: VAE | Sequence[VAE],
    data: Dataset | Tensor | np.ndarray,
    num_samples: int = 500,
    *,
    labels: Sequence[Any] | np.ndarray | Tensor | None = None,
    coords: Mapping[str, Sequence[Any]] | None = None,
    predictive: bool = True,
    prior: bool = True,
    log_likelihood: bool = True,
    seed: int = 0,
    max_gigabytes: float = 2.0,
    progress: bool = False,
) -> arviz.InferenceData | xarray.DataTree:
    r"""Posterior, predictions and prior of a trained model for some data, as ArviZ keeps them; see the module's notes.

    Draws have hard spikes. The models' modes and the caller's random state are left as they were. Save the result by
    its ``to_netcdf(path)``, read it by ``arviz.from_netcdf(path)``.

    What to ask ArviZ for, and what not (draws are independent and from the guide, not from a Markov chain):

    * ``summary(var_names=["active"], kind="stats")``: yes. Means estimate ``inclusion_prob``, which is there, exact.
    * ``plot_forest(var_names=["active"])``: with ArviZ 1.x, whose points are means; 0.x marks medians, which of zeros
      and ones are 0 or 1. Both show well how many latents are on in each datum, ``active.sum("latent")``, and how much
      each is used, ``active.mean("datum")``.
    * ``r_hat``, effective sample sizes, ``plot_trace``, ``plot_rank``: nothing to learn. Draws are independent by
      construction, and the chains of several models have latents in an order of their own each.
    * ``plot_density``, ``plot_posterior``, ``hdi`` of ``z``: no. They smooth over the atom at zero, or hide it. Show
      ``active``, and the slab given that it is on, ``z.where(active == 1)``.
    * ``loo``, ``waic``: no. Each datum has latents of its own, inferred from that very datum; to leave it out is to
      lose them, and importance weights cannot stand in for that. Compare models by `vsc_pyro.elpd` of test data.

    Args:
        model: a trained `VAE`; or several of the same data, which become the chains of one object (their latents are
            not the same ones: average what does not depend on their order).
        data: the data to explain, shape ``(N, ...)``: a slice of a test set. A `Dataset` is binarised as it says, once;
            of ``test[:16]`` the labels come along.
        num_samples: draws S of each code, and of the prior.
        labels: one for each datum, kept as ``constant_data.label``; those of the data if None.
        coords: names for the entries of a dimension, such as ``{"datum": [...], "latent": [...]}``; numbers otherwise.
        predictive: draw data, too: ``posterior_predictive``, and with `prior` ``prior_predictive``.
        prior: draw from the prior. One that is flat has nothing to draw, which a warning says.
        log_likelihood: also the log-densities that weights are made of.
        seed: of binarisation; chain c draws from ``seed + 1 + c``, so that codes owe nothing to the pixels' noise.
        max_gigabytes: how large the result may be; found out before anything is drawn.
        progress: show a bar.

    Raises:
        ValueError: no model; models of different numbers of latents; data that do not fit; labels or coords of another
            length or dimension; a result larger than `max_gigabytes` (the message says what would make it smaller).
    """
    models = _models(model)
    num_samples, seed = positive_int("num_samples", num_samples), natural_int("seed", seed)
    max_gigabytes = positive_float("max_gigabytes", max_gigabytes)
    data = in_memory(data)
    for one in models:
        one.check_data(data.images)
    draws = _Draws(
        _pixel_dims(data), predictive, prior and all(_has_prior(one, data) for one in models), log_likelihood
    )
    sizes = {"chain": len(models), "draw": num_samples, "datum": len(data)}
    store = _Store(sizes, coords or {}, several=not isinstance(model, VAE))
    for one in models:  # a rehearsal with one datum and one draw tells what there will be, and how much
        with one.evaluating(), seeded(seed, one.reference.device):
            store.components = max(store.components, _components(one.marginal_prior(data.images[:1].to(one.reference))))
            store.expect([*draws.of_data(one, data.images[:1], 1), *draws.in_common(one, data.images[:1], 1, 1)])
    store.allocate(max_gigabytes)
    if (labels := data.labels if labels is None else labels) is not None:
        store.add("constant_data", "label", np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels))

    with seeded(seed, data.images.device):
        x = data.draw(slice(None))
    num_rows = store.rows_at_once()
    steps = [(slice(at, at + num_rows), part) for at in range(0, len(data), num_rows) for part in store.draws_at_once()]
    with tqdm(total=len(models) * len(steps), desc="to_arviz", unit="chunk", disable=not progress) as bar:
        for chain, one in enumerate(models):
            # The data have been checked; Pyro would check every draw again and wait for the device each time.
            with (
                one.evaluating(),
                seeded(seed + 1 + chain, one.reference.device),
                pyro.validation_enabled(False),
            ):
                for part in store.draws_at_once(len(data)):
                    store.put(draws.in_common(one, x[:1], _length(part), len(data)), chain, part)
                for rows, part in steps:
                    store.put(draws.of_data(one, x[rows], _length(part)), chain, part, rows)
                    bar.update()
    return store.as_arviz({"data": data.name, "binarize": str(data.binarize), "seed": seed})


class _Variable(NamedTuple):
    """Values of a variable for one chain, whose dimensions but the chain are named."""

    group: str
    name: str
    dims: tuple[str, ...]
    value: Tensor


@dataclasses.dataclass(frozen=True)
class _Draws:
    """What is drawn and computed of a model, in evaluation mode."""

    pixels: tuple[str, ...]
    predictive: bool
    prior: bool
    log_likelihood: bool

    def of_data(self, model: VAE, x: Tensor, num: int) -> Iterator[_Variable]:
        of_draw, x = ("draw", "datum"), x.to(model.reference)
        yield _Variable("observed_data", "x", ("datum", *self.pixels), x)
        posterior = model.encoder(x)
        yield from (_Variable("constant_data", *parameter) for parameter in _parameters(posterior))
        z = posterior.sample((num,))
        yield from _code("posterior", of_draw, z)
        if self.predictive or self.log_likelihood:
            likelihood = model.decoder(z)
        if self.predictive:
            drawn = likelihood.sample().reshape(num, *x.shape)
            yield _Variable("posterior_predictive", "x", (*of_draw, *self.pixels), drawn)
        if self.log_likelihood:
            value = likelihood.log_prob(x.reshape(x.shape[:1] + likelihood.event_shape))
            yield _Variable("log_likelihood", "x", of_draw, value)
            before = model.marginal_prior(x).expand(posterior.batch_shape).log_prob(z)
            after = before * math.nan if is_point(posterior) else posterior.log_prob(z)
            yield _Variable("sample_stats", "log_prior", of_draw, before)
            yield _Variable("sample_stats", "log_posterior", of_draw, after)

    def in_common(self, model: VAE, x: Tensor, num: int, num_data: int) -> Iterator[_Variable]:
        x = x.to(model.reference)
        marginal = model.marginal_prior(x)
        if (logits := inclusion_logits(marginal)) is not None:
            yield _Variable("constant_data", "prior_inclusion_prob", ("latent",), logits.sigmoid().reshape(-1))
        sites = model.prior.hyperparameters() if hasattr(model.prior, "hyperparameters") else {}
        values = {}
        for name, (before, after) in sites.items():
            dims = ("draw", *("latent" for _ in before.event_shape))
            yield _Variable("posterior", name, dims, after.sample((num,)))
            values[name] = before.sample((num,))
            if self.prior:
                yield _Variable("prior", name, dims, values[name])
        if not self.prior:
            return
        if sites:  # a draw of them for all data
            z = model.prior(x, **values).expand((num_data, num)).sample().transpose(0, 1)
        else:
            z = marginal.expand((num_data,)).sample((num,))
        yield from _code("prior", ("draw", "datum"), z)
        if self.predictive:
            drawn = model.decoder(z).sample().reshape(num, num_data, *x.shape[1:])
            yield _Variable("prior_predictive", "x", ("draw", "datum", *self.pixels), drawn)


def _code(group: str, dims: tuple[str, ...], z: Tensor) -> Iterator[_Variable]:
    yield _Variable(group, "z", (*dims, "latent"), z)
    # ArviZ's quantiles subtract, which bools do not.
    yield _Variable(group, "active", (*dims, "latent"), (z != 0).to(torch.int8))


def _parameters(posterior: Distribution) -> Iterator[tuple[str, tuple[str, ...], Tensor]]:
    """The exact posterior: inclusion probabilities, and whichever parameters the slab's family has."""
    of_latent, slab = ("datum", "latent"), slab_of(posterior)
    shape = posterior.batch_shape + posterior.event_shape
    yield "inclusion_prob", of_latent, inclusion_of(posterior)
    if is_point(posterior):
        parameters = {"loc": slab.v, "scale": torch.zeros(shape)}
    else:
        parameters = {name: getattr(slab, name) for name in slab.arg_constraints}
    for name, value in parameters.items():
        yield f"slab_{name}", of_latent, value.expand(shape)


def _components(prior: Distribution) -> int:
    return prior.mixture_distribution.logits.shape[-1] if hasattr(prior, "mixture_distribution") else 1


def _pixel_dims(data: Dataset) -> tuple[str, ...]:
    num = data.images.ndim - 1
    return _PIXEL_DIMS.get(num, tuple(f"pixel_dim_{i}" for i in range(num)))


def _models(model: VAE | Sequence[VAE]) -> list[VAE]:
    models = [model] if not isinstance(model, Sequence) else list(model)
    if not models:
        raise ValueError("model holds no model; pass a trained VAE, or several")
    if strange := [one for one in models if not isinstance(one, VAE)]:
        raise ValueError(f"model must be a VAE or a sequence of them, got {strange[0]!r}")
    return models


def has_proper_prior(model: VAE, data: Dataset) -> bool:
    """Whether there is a prior to draw from before any datum is seen.

    Raises:
        ValueError: a prior that depends on the datum.
    """
    with model.evaluating():
        return is_proper(model.marginal_prior(data.images[:1].to(model.reference)))


def _has_prior(model: VAE, data: Dataset) -> bool:
    """As `has_proper_prior`; says so if there is none."""
    proper = has_proper_prior(model, data)
    if not proper:
        warnings.warn(
            "the prior is flat, and there is nothing to draw from: the groups prior and prior_predictive are left "
            "out; pass prior=False to be asked no more",
            stacklevel=3,
        )
    return proper


def _length(part: slice) -> int:
    return part.stop - part.start


class _Store:
    """Arrays of known size, filled a chunk at a time."""

    def __init__(self, sizes: dict[str, int], coords: Mapping[str, Sequence[Any]], several: bool) -> None:
        self.sizes = sizes
        self.coords = {dim: np.asarray(names) for dim, names in coords.items()}
        self.components = 1
        self.several = several
        self.dims: dict[tuple[str, str], tuple[str, ...]] = {}
        self.dtypes: dict[tuple[str, str], np.dtype] = {}
        self.arrays: dict[tuple[str, str], np.ndarray] = {}

    def _has_chain(self, group: str) -> bool:
        return group != "observed_data" and (self.several or group != "constant_data")

    def expect(self, variables: list[_Variable]) -> None:
        """Learn names, dimensions and types of what is to come from an example of one datum and one draw."""
        seen = {}
        for group, name, dims, value in variables:
            for dim, size in zip(dims, value.shape, strict=True):
                if self.sizes.setdefault(dim, size) != size and dim not in ("draw", "datum"):
                    raise ValueError(
                        f"{group}.{name} has {size} entries of dimension {dim!r} where others have {self.sizes[dim]}; "
                        "models that become chains of one object must have the same number of latents"
                    )
            seen[group, name] = ("chain",) * self._has_chain(group) + dims
            self.dtypes[group, name] = value.cpu().numpy().dtype
        if self.dims and seen != self.dims:
            different = sorted(f"{group}.{name}" for group, name in seen.keys() ^ self.dims.keys())
            raise ValueError(
                f"models that become chains of one object must be of one kind, and only some have "
                f"{', '.join(different)}; call to_arviz for each kind"
            )
        self.dims = seen

    def allocate(self, max_gigabytes: float) -> None:
        for dim, names in self.coords.items():
            if names.shape != (self.sizes.get(dim),):
                known = ", ".join(f"{name} ({size})" for name, size in self.sizes.items())
                raise ValueError(
                    f"coords[{dim!r}] must be a name for each entry, got shape {names.shape}; the dimensions and their "
                    f"sizes are {known}"
                )
            if len(set(names.tolist())) < len(names):
                raise ValueError(f"coords[{dim!r}] must be different names, got {names.tolist()}")
        shapes = {key: tuple(self.sizes[dim] for dim in dims) for key, dims in self.dims.items()}
        gigabytes = {key: math.prod(shape) * self.dtypes[key].itemsize / 2**30 for key, shape in shapes.items()}
        if sum(gigabytes.values()) > max_gigabytes:
            (group, name), most = max(gigabytes.items(), key=lambda item: item[1])
            raise ValueError(
                f"{self.sizes['draw']} draws of {self.sizes['datum']} data would take "
                f"{sum(gigabytes.values()):.3g} GiB ({group}.{name} alone {most:.3g}), and max_gigabytes is "
                f"{max_gigabytes:g}; pass a slice of the data such as data[:16], fewer num_samples, predictive=False, "
                "or raise max_gigabytes"
            )
        self.arrays = {key: np.empty(shape, self.dtypes[key]) for key, shape in shapes.items()}

    def rows_at_once(self) -> int:
        """Data whose draws fit into a chunk; one of them may need several."""
        return max(1, _NUMBERS_AT_ONCE // (self.sizes["draw"] * self._numbers()))

    def draws_at_once(self, num_data: int = 1) -> list[slice]:
        num = self.sizes["draw"]
        step = max(1, _NUMBERS_AT_ONCE // (num_data * self._numbers()))
        return [slice(start, min(start + step, num)) for start in range(0, num, step)]

    def _numbers(self) -> int:
        """The most that a draw of a datum takes on the way: its pixels, or its code for all components of a mixture."""
        pixels = math.prod(size for dim, size in self.sizes.items() if dim not in ("chain", "draw", "datum", "latent"))
        return max(pixels, self.sizes["latent"] * self.components)

    def put(self, variables: Iterable[_Variable], chain: int, draws: slice, rows: slice = slice(None)) -> None:
        """Write a chunk to its place."""
        where = {"chain": chain, "draw": draws, "datum": rows}
        for group, name, _, value in variables:
            index = tuple(where.get(dim, slice(None)) for dim in self.dims[group, name])
            self.arrays[group, name][index] = value.cpu().numpy()

    def add(self, group: str, name: str, values: np.ndarray) -> None:
        """Add something that there is of each datum."""
        if values.shape != (self.sizes["datum"],):
            raise ValueError(f"labels must have shape ({self.sizes['datum']},), one for each datum, got {values.shape}")
        if values.dtype == object:
            raise ValueError(f"labels must be all numbers or all strings, to be kept in a file, got {values.tolist()}")
        self.dims[group, name], self.arrays[group, name] = ("datum",), values

    def as_arviz(self, attributes: dict[str, Any]) -> arviz.InferenceData | xarray.DataTree:
        import xarray

        names = {dim: np.arange(size) for dim, size in self.sizes.items()} | self.coords
        groups: dict[str, dict[str, Any]] = {}
        for (group, name), array in self.arrays.items():
            groups.setdefault(group, {})[name] = (self.dims[group, name], array)
        datasets = {}
        for group, variables in groups.items():
            used = {dim: names[dim] for dims, _ in variables.values() for dim in dims}
            datasets[group] = xarray.Dataset(variables, used, attributes)
        return from_datasets(datasets)
