"""Methods of `dictionaries.py`: sparse dictionaries of this library, their variants, and yardsticks.

A new method is a row of `METHODS`. Peers are trained by `dictionary_peers`, in an environment of their own.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from dictionary_worlds import LABELLED, Cell, Machine, Size, Timed, World, evaluated, source, speed
from torch import Tensor, nn

import vsc_pyro as vsc

try:
    from measure import UnavailableError
except ModuleNotFoundError:  # imported as benchmarks.dictionary_methods
    from benchmarks.measure import UnavailableError

Settings = Mapping[str, float]

_PROBE_ROWS, _PROBE_STEPS, _PROBE_RIDGE = 50_000, 200, 1e-5
_GIBBS_ROWS, _GIBBS_SWEEPS, _GIBBS_CHAINS = 256, 300, 2
_NOISES, _NOISE_SWEEPS = (16.0, 8.0, 4.0, 2.0), 40  # in units of the world's
_SKLEARN_SECONDS = 300.0


class Method(NamedTuple):
    """A row of the table.

    Attributes:
        run: function from a cell and its data to the cell's figures; None for a peer, run by `dictionary_peers`.
        grid: settings to choose from at the first size, or the only settings.
        sweep: settings on real vectors, all of them reported; none leaves the method out.
        budgets: ``"all"``, ``"least"`` for the smallest only, or ``"none"`` for methods that train on no batches.
        sizes: sizes that the method is for; None for all.
    """

    run: Callable[[Cell, Any], dict[str, Any]] | None
    grid: tuple[Settings, ...] = ({},)
    sweep: tuple[Settings, ...] = ()
    budgets: str = "all"
    sizes: tuple[str, ...] | None = None


# Ours -----------------------------------------------------------------------------------------------------------------


class Variant(NamedTuple):
    """Arguments of `vsc_pyro.SparseDictionary` and of `vsc_pyro.fit`, and a change of the built model."""

    model: Mapping[str, Any] = {}
    fit: Mapping[str, Any] = {}
    change: Callable[[vsc.VAE], object] | None = None


def _zero_mean(model: Any) -> None:
    atoms, inclusion = model.prior.latent_dim, float(model.prior.inclusion_probs[0])
    model.prior = vsc.SpikeSlabPrior(atoms, inclusion=inclusion, learn_inclusion=True)


# By name: functions of the size; everything that they do not state is a default.
VARIANTS: dict[str, Callable[[Size], Variant]] = {
    "ours": lambda size: Variant(),
    "ours, plain bound": lambda size: Variant(fit={"objective": "exact"}),
    "ours, plain bound, beta 1.5": lambda size: Variant({"beta": 1.5}, {"objective": "exact"}),
    "ours, plain bound, beta 1.5, lr 3e-3": lambda size: Variant({"beta": 1.5}, {"objective": "exact", "lr": 3e-3}),
    "ours, lr 1e-3": lambda size: Variant(fit={"lr": 1e-3}),
    "ours, not refined": lambda size: Variant({"refine_steps": 0}),
    "ours, refined twice": lambda size: Variant({"refine_steps": 2}),
    "ours, one slab": lambda size: Variant({"learn_slab": "global"}),
    "ours, positive slab": lambda size: Variant({"slab": "truncated-normal"}),
    "ours, zero-mean slab": lambda size: Variant(change=_zero_mean),
    "ours, three heads": lambda size: Variant({"scale": "amortised"}),
    "ours, hidden layer": lambda size: Variant({"hidden": 2 * size.atoms}),
}


def ours(cell: Cell, data: Any) -> dict[str, Any]:
    """Train a `SparseDictionary`."""
    variant, settings = VARIANTS[cell.method.removesuffix(", grid")](cell.sizes), dict(cell.settings)
    model_kwargs, fit_kwargs = dict(variant.model), dict(variant.fit)
    if "beta" in settings:
        model_kwargs["beta"] = settings["beta"]
    if "lr" in settings:
        fit_kwargs["lr"] = settings["lr"]
    if "nested" in settings:
        fit_kwargs["objective"] = "nested" if settings["nested"] else "exact"
    if "noise" in settings:
        model_kwargs |= {"noise": settings["noise"], "expected_active": cell.scaled("active")}
    if data.device != "cpu":
        fit_kwargs["compile"] = True
    torch.manual_seed(cell.seed)
    model = vsc.SparseDictionary(cell.sizes.dim, cell.sizes.atoms, **model_kwargs)
    if variant.change is not None:
        variant.change(model)
    batches = Timed(data.batches())
    start = time.process_time()
    vsc.fit(model, batches, steps=cell.steps, seed=cell.seed, device=data.device, progress=False, **fit_kwargs)
    seconds = time.process_time() - start
    return {**evaluated(model, data), **speed(cell, data.device, seconds, batches)}


# Yardsticks -----------------------------------------------------------------------------------------------------------


class _Learned:
    """A dictionary of scikit-learn, as `vsc_pyro.evaluate_dictionary` takes it."""

    def __init__(self, learner: Any, mean: Tensor) -> None:
        self._learner, self._mean = learner, mean
        self.W_dec = torch.from_numpy(learner.components_).float()

    def encode(self, x: Tensor) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a code that has not converged
            return torch.from_numpy(self._learner.transform((x - self._mean).numpy())).float()

    def decode(self, codes: Tensor) -> Tensor:
        return codes @ self.W_dec + self._mean


def scikit_learn(cell: Cell, data: Any) -> dict[str, Any]:
    """Train a `MiniBatchDictionaryLearning` of positive codes, for at most `_SKLEARN_SECONDS`."""
    try:
        from sklearn.decomposition import MiniBatchDictionaryLearning
    except ModuleNotFoundError as error:
        raise UnavailableError("needs scikit-learn") from error
    alpha, batches = dict(cell.settings)["alpha"], Timed(data.batches())
    learner = MiniBatchDictionaryLearning(
        cell.sizes.atoms,
        alpha=alpha,
        batch_size=cell.sizes.batch_size,
        fit_algorithm="cd",
        transform_algorithm="lasso_cd",
        transform_alpha=alpha,
        positive_code=True,
        random_state=cell.seed,
    )
    mean = None
    start = time.process_time()
    for step, x in enumerate(batches):
        mean = x.mean(0) if mean is None else mean
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a code that has not converged
            learner.partial_fit((x - mean).cpu().numpy())
        if step + 1 == cell.steps or time.process_time() - start > _SKLEARN_SECONDS:
            break
    seconds = time.process_time() - start
    figures = evaluated(_Learned(learner, mean), data)
    return {**figures, **speed(cell, data.device, seconds, batches, step + 1), "steps_taken": step + 1}


def _true_model(data: World, features: int, noise: float = 1.0) -> vsc.VAE:
    """Return the generating model of the most frequent features, independent, with `noise` times the noise."""
    world = data.features
    top = _most_frequent(world, features)
    decoder = vsc.NormalDecoder(features, data.size.dim, hidden=(), scale=noise * world.noise)
    prior = vsc.SpikeSlabPrior(
        features,
        inclusion=world.rates[top].float(),
        slab_loc=world.magnitudes.mean[top],
        slab_scale=world.magnitudes.deviation[top],
    )
    with torch.no_grad():
        decoder.network[0].weight.copy_(world.dictionary[top].T)
        decoder.network[0].bias.copy_(world.bias)
    return vsc.VAE(vsc.SpikeSlabEncoder(data.size.dim, features, hidden=()), decoder, prior)


def _most_frequent(world: Any, features: int) -> Tensor:
    return world.rates.argsort(descending=True)[:features]


def probe(cell: Cell, data: Any) -> dict[str, Any]:
    """Fit logistic regressions of the most frequent features, as many as atoms, to labelled data: supervised."""
    atoms, world = cell.sizes.atoms, data.features
    rows = min(_PROBE_ROWS, 100 * cell.sizes.num_test)
    labelled = world.sample(rows, seed=LABELLED)
    top = _most_frequent(world, atoms)
    present = labelled.factors.presence[:, top].float()
    layer = nn.Linear(cell.sizes.dim, atoms)
    nn.init.zeros_(layer.weight)
    with torch.no_grad():
        layer.bias.copy_(present.mean(0).clamp(1 / rows, 1 - 1 / rows).logit())
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=_PROBE_STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        fit = nn.functional.binary_cross_entropy_with_logits(layer(labelled.images), present, reduction="none")
        total = fit.mean(0).sum() + _PROBE_RIDGE * layer.weight.square().sum()
        total.backward()
        return total

    optimizer.step(loss)

    def posterior(x: Tensor) -> SimpleNamespace:
        inclusion = layer(x).sigmoid()
        return SimpleNamespace(inclusion=inclusion, mean=inclusion * world.magnitudes.mean[top])

    return {**evaluated(_true_model(data, atoms), data, posterior), "labelled": rows}


def true_posterior(cell: Cell, data: World) -> dict[str, Any]:
    """Sample the posterior of all features under the true dictionary; report the most frequent ones, as many as atoms.

    The prior has the true rates and magnitudes, but independent features, whatever the structure of the world. Chains
    start from the posteriors of larger noises, because chains from the prior stay in the modes that they meet first.
    """
    atoms, features = cell.sizes.atoms, cell.sizes.features
    r_hat: list[Tensor] = []

    def posterior(x: Tensor) -> SimpleNamespace:
        start = None
        for noise in (*_NOISES, 1.0):
            sweeps = _GIBBS_SWEEPS if noise == 1 else _NOISE_SWEEPS
            found = vsc.gibbs_posterior(
                _true_model(data, features, noise),
                x,
                num_samples=sweeps,
                burn_in=_NOISE_SWEEPS,
                chains=_GIBBS_CHAINS,
                start=start,
                seed=cell.seed,
            )
            start = found.draws[:, -1]
        r_hat.append(found.r_hat[:, :atoms])
        return SimpleNamespace(inclusion=found.inclusion[:, :atoms], mean=found.mean[:, :atoms])

    data.size = data.size._replace(num_test=min(_GIBBS_ROWS, data.size.num_test))
    figures = evaluated(_true_model(data, atoms), data, posterior)
    return {**figures, "share_of_r_hat_above_1.1": float((torch.cat(r_hat) > 1.1).float().mean())}


# The table ------------------------------------------------------------------------------------------------------------


def _grid(**axes: tuple[float, ...]) -> tuple[Settings, ...]:
    """Return all combinations."""
    found: list[dict[str, float]] = [{}]
    for name, values in axes.items():
        found = [{**one, name: value} for one in found for value in values]
    return tuple(found)


_K = (*_grid(k=(0.5, 0.75, 1.0), lr=(1e-3, 3e-3)), {"k": 0.35, "lr": 3e-3})
_K_SWEEP = _grid(k=(0.5, 1.0, 2.0, 4.0), lr=(3e-3,))
_COEFFICIENT = (*_grid(coefficient=(0.1, 0.3, 1.0, 3.0), lr=(1e-3,)), *_grid(coefficient=(0.3, 1.0), lr=(3e-3,)))
_COEFFICIENT_SWEEP = _grid(coefficient=(0.1, 0.3, 1.0, 3.0), lr=(3e-3,))
_OURS_GRID = (
    *_grid(lr=(1e-3, 3e-3), beta=(1.0, 1.5), nested=(0.0,)),
    *_grid(lr=(1e-3, 3e-3), beta=(1.0,), nested=(1.0,)),
)
# Embeddings have no noise of their own.
_OURS_SWEEP = (
    *_grid(nested=(0.0, 1.0), noise=(0.75, 0.6, 0.45, 0.3), active=(2.0,)),
    *_grid(nested=(0.0, 1.0), noise=(0.3,), active=(4.0,)),
)

METHODS: dict[str, Method] = {
    "ours": Method(ours, sweep=({}, *_OURS_SWEEP)),
    "BatchTopK": Method(None, _K, _K_SWEEP),
    "Matryoshka BatchTopK": Method(None, _K, _K_SWEEP),
    "TopK": Method(None, _K, _K_SWEEP),
    "JumpReLU": Method(None, _COEFFICIENT, _COEFFICIENT_SWEEP),
    "L1": Method(None, _COEFFICIENT, _COEFFICIENT_SWEEP),
    "gated": Method(None, _COEFFICIENT, _COEFFICIENT_SWEEP),
    **{name: Method(ours, budgets="least") for name in VARIANTS if name != "ours"},
    "ours, plain bound, beta 1.5, lr 3e-3": Method(ours),
    "ours, grid": Method(ours, _OURS_GRID),
    "MiniBatchDictionaryLearning": Method(scikit_learn, _grid(alpha=(0.3, 1.0, 2.0)), budgets="least"),
    "probe": Method(probe, budgets="none"),
    "true posterior": Method(true_posterior, budgets="none", sizes=("small", "tiny")),
}


def run(cell: Cell, machine: Machine) -> dict[str, Any]:
    """Return the figures of a cell of a method that is not a peer."""
    return METHODS[cell.method].run(cell, source(cell, machine))
