r"""`refine`: what an encoder's posteriors lose by coming from one network, and the better ones.

An encoder gives the posterior of every datum by the same function. With decoder and prior held, the parameters of each
datum's own posterior may be moved on to a higher bound, with no network between; the gain

.. math:: \max_q \{E_q[\log p(x|z)] - KL(q \| p)\} - \{E_{q(z|x)}[\log p(x|z)] - KL(q(z|x) \| p)\}

is the *amortisation gap* (C. Cremer, X. Li, D. Duvenaud, 2018), or as much of it as the optimiser found. What is then
left to the evidence is the family's own: latents that depend on one another given x, which no posterior of independent
latents can say. (D. Hjelm et al., 2016, and Y. Kim et al., 2018, refine in training.)
"""

from __future__ import annotations

import copy
import dataclasses
import warnings

import numpy as np
import pyro
import torch
from pyro.distributions import TorchDistribution
from pyro.infer import ELBO
from pyro.infer.util import is_validation_enabled
from torch import Tensor, nn
from torch.distributions import Distribution, constraints, kl_divergence, transform_to
from torch.distributions.constraints import Constraint
from tqdm.auto import tqdm

from vsc_pyro._arguments import choice, natural_int, positive_float, positive_int
from vsc_pyro._seeding import seeded, trains
from vsc_pyro.distributions import IndependentSpikeSlab
from vsc_pyro.distributions.families import changed
from vsc_pyro.gates import BinaryConcrete, Gate, get_gate
from vsc_pyro.models.data_checks import check_figure, in_memory
from vsc_pyro.models.vae import VAE
from vsc_pyro.objectives import OBJECTIVES, TraceELBO, get_objective
from vsc_pyro.training.svi import SVI

_ROWS_AT_ONCE = 10_000  # decoded codes held in memory
_BOUND_DRAWS = 100
# Of the relaxations' biases in the spikes' gradient the least that a few draws can bear: with the encoders' temperature
# of 0.5 inclusion probabilities of linear models end .01 to .03 from the optimum's.
_GATE = BinaryConcrete(temperature=0.1)


class FreePosterior(nn.Module):
    """An encoder without a network: parameters of its own for every datum, starting from a given posterior.

    Every parameter of the family is moved from where it starts: a real one in units of the scale beside it, where there
    is one, for a step that suits a sharp posterior then suits a wide one; a positive one by a factor; any other in the
    unconstrained space of `torch.distributions.transform_to`.

    Args:
        distribution: where to start, of `batch_shape` ``(B,)``: independent scalars of any family whose arguments are
            its `arg_constraints`, a spike-and-slab of these, thresholded or not, or a point (`Delta`).
        gate: of the spikes, a name or a `vsc_pyro.gates.Gate`; None for that of `distribution`.

    Shapes:
        x ``(B, ...)``, whose values do not matter; the distribution has `batch_shape` ``(B,)``.

    Raises:
        ValueError: a distribution of another family.
    """

    def __init__(self, distribution: Distribution, gate: str | Gate | None = None) -> None:
        super().__init__()
        if gate is not None and isinstance(distribution, IndependentSpikeSlab):
            spikes = copy.copy(distribution.base_dist)
            spikes.gate = get_gate(gate)
            distribution = spikes.to_event(distribution.reinterpreted_batch_ndims)
        self._start = distribution  # its family and gate; of its parameters the buffers

        def keep(name: str, value: Tensor, _: Constraint) -> Tensor:
            self.register_buffer(_first(name), value.detach().clone())
            self.register_parameter(_moved(name), nn.Parameter(torch.zeros_like(value)))
            return value

        try:
            changed(distribution, keep)
        except NotImplementedError as error:
            raise ValueError(
                f"posteriors to refine are independent scalars, spike-and-slab or not, or points: {error}; refine a "
                "model with one of the library's encoders"
            ) from error

    def forward(self, x: Tensor) -> TorchDistribution:
        return changed(self._start, self._parameter)

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
        """Put data where `rows`, a bool tensor of shape ``(B,)``, is True back where they started."""
        with torch.no_grad():
            for parameter in self.parameters():
                parameter[rows] = 0.0


def _first(name: str) -> str:
    return f"first_{name.replace('.', '_')}"


def _moved(name: str) -> str:
    return f"moved_{name.replace('.', '_')}"


class _Held(nn.Module):
    """A prior that is the same at every step: what it makes of x depends on no parameter that is moved here."""

    def __init__(self, distribution: Distribution) -> None:
        super().__init__()
        self._distribution = distribution

    def forward(self, x: Tensor) -> Distribution:
        return self._distribution


@dataclasses.dataclass(frozen=True, eq=False)
class Refinement:
    """What `refine` returns.

    Attributes:
        posterior: the refined q(z|x) of all data, `batch_shape` ``(N,)``.
        elbo_before, elbo_after: bound of every datum, nats, shape ``(N,)``, at beta = 1 and with hard spikes, by the
            same noise for both. (For models without a bound, points for instance, it is what training maximises, as
            `Evaluation.objective`.)
    """

    posterior: TorchDistribution
    elbo_before: Tensor
    elbo_after: Tensor

    @property
    def gain(self) -> Tensor:
        """Bound gained, shape ``(N,)``: an estimate of the amortisation gap from below."""
        return self.elbo_after - self.elbo_before


@trains
def refine(
    model: VAE,
    x: Tensor | np.ndarray,
    *,
    steps: int = 200,
    lr: float = 0.1,
    objective: str | ELBO = "analytic",
    num_draws: int | None = None,
    gate: str | Gate | None = _GATE,
    seed: int = 0,
    progress: bool = False,
) -> Refinement:
    """Improve the posteriors that the encoder gives data x, datum by datum, with decoder and prior as they are.

    Parameters start at the encoder's output and are moved by Adam, whose rate falls to zero along half a cosine; data
    whose bound is then no higher than before, by draws of their own, are put back where they started. The model, the
    caller's random state and Pyro's parameter store are left as they were. A latent variable of the prior
    common to all data (a learned inclusion's posterior) is held at its mean, as in `evaluate`.

    Args:
        model: a `VAE` whose encoder gives a family that `FreePosterior` takes.
        x: data as the model sees them (binarised, if they are to be), shape ``(N, ...)``.
        steps: of the optimiser, for every datum.
        lr: its rate at the start; locations move in units of the posterior's scale.
        objective: ``"analytic"``, ``"trace"``, ``"exact"`` (linear decoders: no noise), or any `pyro.infer.ELBO`.
        num_draws: draws of each code per step, for a named objective; None for 20, where it draws any.
        gate: gradient estimator of the spikes; None for the encoder's, with hard spikes. A low
            temperature is nearly unbiased, and noise is taken care of by the draws.
        seed: of all draws.
        progress: show a bar.

    Raises:
        ValueError: data that do not fit the model, a posterior of another family, bad numbers, or a bound of a datum
            that is not finite.
        NotImplementedError: an ELBO of Pyro's without an estimator for the gate (as Pyro's validation has it).
    """
    steps, lr, seed = positive_int("steps", steps), positive_float("lr", lr), natural_int("seed", seed)
    if num_draws is None and not isinstance(objective, ELBO):
        num_draws = 20 if choice("objective", objective, OBJECTIVES).draws_codes else 1
    loss = get_objective(objective, num_draws, (Gate() if gate is None else get_gate(gate)).draws_at_once)
    x = in_memory(x).images
    model.check_data(x)
    decoder = copy.deepcopy(model.decoder).eval().requires_grad_(False)  # so that the model's own is not touched
    chunks = x.split(max(1, _ROWS_AT_ONCE // max(loss.num_particles, _BOUND_DRAWS)))
    parts, bounds = [], []
    with tqdm(total=len(chunks) * steps, desc="refine", unit="step", disable=not progress) as bar:
        for rows in chunks:
            rows = rows.to(model.reference, copy=True)  # those made in inference mode take no part in a gradient
            with model.evaluating():
                encoded, prior = model.encoder(rows), model.prior(rows).expand(rows.shape[:1])
                start = _bounds(decoder, rows, encoded, prior, seed)
            check_figure("bound", start, first=sum(map(len, bounds)))
            free = FreePosterior(encoded, gate)
            with seeded(seed, rows.device), pyro.get_param_store().scope(), torch.enable_grad():
                _climb(VAE(free, decoder, _Held(prior)), rows, loss, steps, lr, bar)
            with torch.no_grad():
                # Chosen by other draws than are reported, which would flatter.
                before, after = (_bounds(decoder, rows, q, prior, seed + 1) for q in (encoded, free(rows)))
                free.restart(~(after > before))
                bounds.append(torch.stack([start, _bounds(decoder, rows, free(rows), prior, seed)], 1))
            parts.append(free)
    whole = parts[0]
    for name in whole.state_dict():
        getattr(whole, name).data = torch.cat([getattr(part, name).detach() for part in parts])
    whole.requires_grad_(False)
    return Refinement(whole(x), *torch.cat(bounds).T)


def _climb(vae: VAE, x: Tensor, loss: ELBO, steps: int, lr: float, bar: tqdm) -> None:
    optimizer = torch.optim.Adam(vae.encoder.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    svi = SVI(vae.model, vae.guide, optimizer, loss)
    # Some of Pyro's own objectives refuse what they have no estimator for only where they validate.
    validate = is_validation_enabled() and not isinstance(loss, TraceELBO)
    for _ in range(steps):
        with pyro.validation_enabled(validate), warnings.catch_warnings():
            # What is sampled for want of a closed form was said when the model was trained.
            warnings.filterwarnings("ignore", message="the KL divergence at site 'z' has no closed form")
            svi.step(x)
        schedule.step()
        bar.update()


def _bounds(decoder: nn.Module, x: Tensor, posterior: Distribution, prior: Distribution, seed: int) -> Tensor:
    """ELBO of every datum, with noise that depends on the shapes and the seed alone."""
    with seeded(seed, x.device):
        z = posterior.sample((_BOUND_DRAWS,))
    likelihood = decoder(z)
    reconstruction = likelihood.log_prob(x.reshape(x.shape[:1] + likelihood.event_shape)).mean(0)
    try:
        return reconstruction - kl_divergence(posterior, prior)
    except NotImplementedError:
        return reconstruction - (posterior.log_prob(z) - prior.log_prob(z)).mean(0)
