r"""`refine`: a better posterior for each datum than the encoder's, and the amortisation gap.

An encoder computes the posterior of every datum by one function. With decoder and prior held fixed, the parameters of
each datum's own posterior can be optimised further, without a network. The gain

.. math:: \max_q \{E_q[\log p(x|z)] - KL(q \| p)\} - \{E_{q(z|x)}[\log p(x|z)] - KL(q(z|x) \| p)\}

is the *amortisation gap* (C. Cremer, X. Li, D. Duvenaud, 2018), or the part of it that the optimiser finds. The
remaining distance to the evidence is due to the family: its latents are independent given x, but those of the
true posterior are not. (R. D. Hjelm et al., 2016, and Y. Kim et al., 2018, refine posteriors during training.)

References
    C. Cremer, X. Li, D. Duvenaud (2018), Inference suboptimality in variational autoencoders.
    R. D. Hjelm et al. (2016), Iterative refinement of the approximate posterior for directed belief networks.
    Y. Kim, S. Wiseman, A. C. Miller, D. Sontag, A. M. Rush (2018), Semi-amortized variational autoencoders.
"""

from __future__ import annotations

import copy
import dataclasses
import warnings
from typing import cast

import numpy as np
import pyro
import torch
from pyro.distributions import TorchDistribution
from pyro.infer import ELBO
from pyro.infer.util import is_validation_enabled
from torch import Tensor, nn
from torch.distributions import Distribution, constraints, kl_divergence, transform_to
from torch.distributions.constraints import Constraint
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from vsc_pyro._arguments import choice, natural_int, positive_float, positive_int
from vsc_pyro._seeding import seeded, trains
from vsc_pyro.datasets import Dataset
from vsc_pyro.distributions import IndependentSpikeSlab
from vsc_pyro.distributions.families import changed
from vsc_pyro.gates import BinaryConcrete, Gate, get_gate
from vsc_pyro.models.data_checks import check_figure
from vsc_pyro.models.modes import without_autocast
from vsc_pyro.models.vae import VAE
from vsc_pyro.objectives import OBJECTIVES, TraceELBO, get_objective
from vsc_pyro.training.fit import check_can_train
from vsc_pyro.training.loaded import Loaded, as_readable
from vsc_pyro.training.svi import SVI

_ROWS_AT_ONCE = 10_000  # decoded codes
_BOUND_DRAWS = 100
# Below the encoders' temperature, for less bias in the gradient of spikes. The number of draws makes up for its noise.
_GATE = BinaryConcrete(temperature=0.1)


class FreePosterior(nn.Module):
    """An encoder without a network: parameters for every datum, starting from a given posterior.

    Parameters are optimised as offsets from their start. The offset of a real parameter is in units of the scale beside
    it, if any, so that one step size suits sharp and wide posteriors. The offset of a positive parameter is a factor.
    The offset of any other parameter is in the unconstrained space of `torch.distributions.transform_to`.

    Args:
        distribution: the start, `batch_shape` ``(B,)``: independent scalars of any family whose constructor takes its
            `arg_constraints`, a spike-and-slab of these, thresholded or not, or a point (`Delta`).
        gate: gate of the spikes, a name or a `vsc_pyro.gates.Gate`; None for that of `distribution`.

    Shapes:
        x ``(B, ...)``, whose values are ignored; the distribution has `batch_shape` ``(B,)``.

    Raises:
        ValueError: a distribution of another family.

    Example:
        >>> import torch
        >>> from pyro.distributions import Normal
        >>> from vsc_pyro.inference.refine import FreePosterior
        >>> free = FreePosterior(Normal(torch.zeros(5, 2), 1.0).to_event(1))
        >>> free(torch.zeros(5, 9)).event_shape, len(list(free.parameters()))
        (torch.Size([2]), 2)
    """

    def __init__(self, distribution: Distribution, gate: str | Gate | None = None) -> None:
        super().__init__()
        if gate is not None and isinstance(distribution, IndependentSpikeSlab):
            spikes = copy.copy(distribution.base_dist)
            spikes.gate = get_gate(gate)
            distribution = spikes.to_event(distribution.reinterpreted_batch_ndims)
        self._start = distribution  # for its family and gate; its parameters are buffers

        def keep(name: str, value: Tensor, _: Constraint) -> Tensor:
            self.register_buffer(_first(name), value.detach().clone())
            self.register_parameter(_moved(name), nn.Parameter(torch.zeros_like(value)))
            return value

        try:
            changed(distribution, keep)
        except NotImplementedError as error:
            raise ValueError(
                f"refine takes posteriors of independent scalars, spike-and-slab or not, or points: {error}; use one "
                "of the library's encoders"
            ) from error

    def forward(self, x: Tensor) -> TorchDistribution:
        return cast(TorchDistribution, changed(self._start, self._parameter))

    def _parameter(self, name: str, _: Tensor, constraint: Constraint) -> Tensor:
        first, moved = getattr(self, _first(name)), getattr(self, _moved(name))
        if constraint is constraints.positive:
            return first * moved.exp()
        if constraint is constraints.real:
            part = name.rpartition(".")[0]
            return first + getattr(self, _first(f"{part}.scale".removeprefix(".")), 1.0) * moved
        transform = transform_to(constraint)
        return transform(transform.inv(first) + moved)

    def restart(self, rows: Tensor) -> None:
        """Reset the posteriors of some data to their start; `rows` is a bool tensor of shape ``(B,)``."""
        with torch.no_grad():
            for parameter in self.parameters():
                parameter[rows] = 0.0


def _first(name: str) -> str:
    return f"first_{name.replace('.', '_')}"


def _moved(name: str) -> str:
    return f"moved_{name.replace('.', '_')}"


class _FixedPrior(nn.Module):
    """A prior computed once: it depends on no parameter that is optimised here."""

    def __init__(self, distribution: Distribution) -> None:
        super().__init__()
        self._distribution = distribution

    def forward(self, x: Tensor) -> Distribution:
        return self._distribution


@dataclasses.dataclass(frozen=True, eq=False)
class Refinement:
    """The result of `refine`.

    Attributes:
        posterior: the refined q(z|x) of all data, `batch_shape` ``(N,)``.
        elbo_before, elbo_after: bound of each datum in nats, shape ``(N,)``, at beta = 1, with hard spikes and equal
            noise for both. (For models without a bound, such as points, the objective of training, as in
            `Evaluation.objective`.)
    """

    posterior: TorchDistribution
    elbo_before: Tensor
    elbo_after: Tensor

    @property
    def gain(self) -> Tensor:
        """Gain of the bound, shape ``(N,)``: an estimate from below of the amortisation gap."""
        return self.elbo_after - self.elbo_before


@trains
def refine(
    model: VAE,
    x: Dataset | Tensor | np.ndarray | DataLoader,
    *,
    steps: int = 200,
    lr: float = 0.1,
    objective: str | ELBO = "analytic",
    num_draws: int | None = None,
    gate: str | Gate | None = _GATE,
    seed: int = 0,
    progress: bool = False,
) -> Refinement:
    """Improve the encoder's posteriors of data x, datum by datum, with decoder and prior held fixed.

    Parameters start at the encoder's output. Adam optimises them, with a learning rate that falls to zero along half a
    cosine. A datum whose bound, estimated with separate draws, has not risen is reset to its start. A latent that
    the prior shares among all data (such as a learned inclusion) is fixed at its mean, as in `evaluate`. The model,
    the caller's random state and Pyro's parameter store are restored.

    Args:
        model: a `VAE` whose encoder returns a family that `FreePosterior` takes.
        x: data as the model sees them (after binarisation, if any), shape ``(N, ...)``; or a `DataLoader` of them, in
            its order, for data larger than memory.
        steps: optimiser steps for every datum.
        lr: initial learning rate; locations move in units of the posterior's scale.
        objective: ``"analytic"``, ``"trace"``, ``"exact"`` (linear decoders: no noise), or any `pyro.infer.ELBO`.
        num_draws: draws of each code per step, for a named objective; None for 20 if the objective draws codes.
        gate: gradient estimator of the spikes; None for the encoder's, with hard spikes. The default has a low
            temperature: it is nearly unbiased, and the draws average out its noise.
        seed: seed of all draws.
        progress: show a bar.

    Raises:
        ValueError: data that do not fit the model, a posterior of another family, bad numbers, or a bound of a datum
            that is not finite.
        NotImplementedError: an ELBO of Pyro without an estimator for the gate, if Pyro's validation is on.

    Example:
        >>> import torch, vsc_pyro as vsc
        >>> _ = torch.manual_seed(0)
        >>> model = vsc.VAE(
        ...     vsc.SpikeSlabEncoder(4, 2), vsc.NormalDecoder(2, 4, hidden=()), vsc.SpikeSlabPrior(2, 0.3)
        ... )
        >>> refined = vsc.refine(model, torch.randn(5, 4), steps=10)
        >>> refined.gain.shape, float(refined.gain.mean()) > 0
        (torch.Size([5]), True)
    """
    steps, lr, seed = positive_int("steps", steps), positive_float("lr", lr), natural_int("seed", seed)
    if num_draws is None and not isinstance(objective, ELBO):
        num_draws = 20 if choice("objective", objective, OBJECTIVES).draws_codes else 1
    loss = get_objective(objective, num_draws, (Gate() if gate is None else get_gate(gate)).draws_at_once)
    data = as_readable(x, seed, model)
    check_can_train(model)
    decoder = copy.deepcopy(model.decoder).eval().requires_grad_(False)
    size = max(1, _ROWS_AT_ONCE // max(loss.num_particles, _BOUND_DRAWS))
    chunks = data.batches(size) if isinstance(data, Loaded) else data.images.split(size)
    parts, bounds = [], []
    bar = tqdm(total=-(-len(data) // size) * steps, desc="refine", unit="step", disable=not progress)
    with bar, without_autocast(model.reference.device):
        for rows in chunks:
            rows = rows.to(model.reference, copy=True)  # tensors of inference mode take no part in a gradient
            with model.evaluating():
                encoded, prior = model.encoder(rows), model.prior(rows).expand(rows.shape[:1])
                start = _bounds(decoder, rows, encoded, prior, seed)
            check_figure("bound", start, first=sum(map(len, bounds)))
            free = FreePosterior(encoded, gate)
            with seeded(seed, rows.device), pyro.get_param_store().scope(), torch.enable_grad():
                _climb(VAE(free, decoder, _FixedPrior(prior)), rows, loss, steps, lr, bar)
            with torch.no_grad():
                # The draws that decide resets are not those reported: selection by the same draws would bias them.
                before, after = (_bounds(decoder, rows, q, prior, seed + 1) for q in (encoded, free(rows)))
                free.restart(~(after > before))
                bounds.append(torch.stack([start, _bounds(decoder, rows, free(rows), prior, seed)], 1))
            parts.append(free)
    return Refinement(_joined(parts)(data.images), *torch.cat(bounds).T)


def _joined(parts: list[FreePosterior]) -> FreePosterior:
    """Return the free posteriors of all data as one, in place of the first."""
    whole = parts[0]
    for name in whole.state_dict():
        getattr(whole, name).data = torch.cat([getattr(part, name).detach() for part in parts])
    return whole.requires_grad_(False)


def _climb(vae: VAE, x: Tensor, loss: ELBO, steps: int, lr: float, bar: tqdm) -> None:
    optimizer = torch.optim.Adam(vae.encoder.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    svi = SVI(vae.model, vae.guide, optimizer, loss)
    # Some of Pyro's objectives refuse a gate without an estimator only under validation.
    validate = is_validation_enabled() and not isinstance(loss, TraceELBO)
    for _ in range(steps):
        with pyro.validation_enabled(validate), warnings.catch_warnings():
            # Training the model has shown this warning.
            warnings.filterwarnings("ignore", message="the KL divergence at site 'z' has no closed form")
            svi.step(x)
        schedule.step()
        bar.update()


def _bounds(decoder: nn.Module, x: Tensor, posterior: Distribution, prior: Distribution, seed: int) -> Tensor:
    """Return the ELBO of each datum, with noise that depends on the shapes and the seed alone."""
    with seeded(seed, x.device):
        z = posterior.sample((_BOUND_DRAWS,))
    likelihood = decoder(z)
    reconstruction = likelihood.log_prob(x.reshape(x.shape[:1] + likelihood.event_shape)).mean(0)
    try:
        return reconstruction - kl_divergence(posterior, prior)
    except NotImplementedError:
        return reconstruction - (posterior.log_prob(z) - prior.log_prob(z)).mean(0)
