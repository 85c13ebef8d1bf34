"""Encoders: modules whose forward takes data x and returns the posterior q(z | x), a distribution.

An encoder of your own is any `torch.nn.Module` that does the same, with an attribute `input_shape` (the shape of one
datum) if `vsc_pyro.VAE` is to check at construction that encoder, decoder and prior fit.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from pyro.distributions import Cauchy, Delta, Independent, Laplace, Normal, TorchDistribution
from torch import Tensor, nn
from torch.nn.functional import elu, softplus

from vsc_pyro._arguments import choice, positive_int, sizes
from vsc_pyro.distributions import IndependentSpikeSlab, SpikeSlab, ThresholdedSpikeSlab, get_slab, get_threshold_gate
from vsc_pyro.gates import Gate, get_gate
from vsc_pyro.models.networks import ACTIVATIONS, DEFAULT_HIDDEN, MLP, ConvTrunk
from vsc_pyro.models.precision import run_network
from vsc_pyro.models.starting import Prepared, mean_and_scale

# Keeps the log-density finite however sure the network is.
_MIN_SCALE = 1e-4
# Of what networks read: the larger it is, the sooner a network learns few data by heart.
_INPUT_DEVIATION = 0.3
# Keeps an inclusion probability below one.
_MIN_THRESHOLD = 1e-6


class _Encoder(Prepared):
    """A network with `num_heads` outputs for each latent: an MLP on the flattened datum, or a linear map of a trunk.

    It reads data less `input_mean` and divided by `input_scale`, see `vsc_pyro.models.starting`.
    """

    added_buffers: ClassVar[dict[str, float]] = {**Prepared.added_buffers, "input_mean": 0.0, "input_scale": 1.0}

    def __init__(
        self,
        input_shape: int | Sequence[int],
        latent_dim: int,
        num_heads: int,
        hidden: int | Sequence[int] | None,
        activation: str,
        trunk: nn.Module | None,
    ) -> None:
        super().__init__()
        self.input_shape = sizes("input_shape", input_shape)
        self.latent_dim = positive_int("latent_dim", latent_dim)
        self.num_heads = num_heads
        self.network_precision = "float32"
        self.register_buffer("input_mean", torch.zeros(self.input_shape))
        self.register_buffer("input_scale", torch.ones(()))
        outputs = num_heads * self.latent_dim
        if trunk is None:
            hidden = DEFAULT_HIDDEN if hidden is None else hidden
            self.network = nn.Sequential(nn.Flatten(), *MLP(math.prod(self.input_shape), outputs, hidden, activation))
            return
        if hidden is not None:
            raise ValueError(f"hidden={hidden!r} are widths of the MLP that a trunk replaces; pass one of the two")
        activation_class = choice("activation", activation, ACTIVATIONS)
        features = positive_int("trunk.out_features", getattr(trunk, "out_features", None))
        self.network = nn.Sequential(trunk, activation_class(), nn.Linear(features, outputs))

    @property
    def own_layer(self) -> nn.Linear:
        """The last layer, which gives all heads."""
        return self.network[-1]

    def prepare(self, images: Tensor) -> None:
        """Read data standardised by training data, shape ``(N, *input_shape)``: the first time, if it is to be trained.

        In front of a trunk of your own nothing is standardised.
        """
        # A trunk of a user's own may know the data as they are: counts, or what it has been trained on.
        if self.begins() and isinstance(self.network[0], (nn.Flatten, ConvTrunk)):
            mean, scale = mean_and_scale(images)
            self.input_mean.copy_(mean.reshape(self.input_shape))
            self.input_scale.copy_(scale / _INPUT_DEVIATION)

    def heads(self, x: Tensor) -> tuple[Tensor, ...]:
        x = (x - self.input_mean.reshape(x.shape[1:])) / self.input_scale
        return run_network(self.network, x, self.network_precision).chunk(self.num_heads, -1)


class _LocationScaleEncoder(_Encoder):
    family: ClassVar[type[TorchDistribution]]

    def __init__(
        self,
        input_shape: int | Sequence[int],
        latent_dim: int,
        hidden: int | Sequence[int] | None = None,
        activation: str = "silu",
        trunk: nn.Module | None = None,
    ) -> None:
        super().__init__(input_shape, latent_dim, 2, hidden, activation, trunk)

    def forward(self, x: Tensor) -> Independent:
        loc, log_squared_scale = self.heads(x)
        return self.family(loc, _scale(log_squared_scale)).to_event(1)


def gate_of(encoder: nn.Module) -> Gate | None:
    """The gate of its spikes; None where it has no attribute `gate` that is one (a layer of that name is not)."""
    gate = getattr(encoder, "gate", None)
    return gate if isinstance(gate, Gate) else None


# Of latents whose prior has no inclusion of its own.
_DEFAULT_INCLUSION = 0.1


def _inclusion(name: str, value: float) -> float:
    if not 0 < value < 1:
        raise ValueError(f"{name} must lie strictly between 0 and 1, got {value!r}")
    return value


def _scale(log_squared_scale: Tensor) -> Tensor:
    # exp below a scale of one, linear above: where a latent is off nothing holds its slab's scale, and an exponential
    # that wanders off overflows to NaN.
    return 1 + elu(0.5 * log_squared_scale) + _MIN_SCALE


class NormalEncoder(_LocationScaleEncoder):
    r"""Gaussian posterior, :math:`q(z|x) = \prod_j N(z_j; \mu_j(x), \sigma_j(x)^2)` (Kingma & Welling, 2014).

    Args:
        input_shape: shape of one datum, or its number of pixels; data are flattened.
        latent_dim: number of latents J.
        hidden: widths of the MLP's hidden layers; None for ``(400,)``.
        activation: name of the activation, see `vsc_pyro.models.networks.ACTIVATIONS`.
        trunk: a network of your own instead of the MLP, x ``(B, *input_shape)`` -> features ``(B, out_features)``,
            with an attribute `out_features`, such as `vsc_pyro.ConvTrunk`.

    Shapes:
        x ``(B, *input_shape)``; the distribution has `batch_shape` ``(B,)`` and `event_shape` ``(J,)``.

    Raises:
        ValueError: a size below 1, an unknown activation (the message lists the known ones), `hidden` beside a trunk.
    """

    family = Normal


class LaplaceEncoder(_LocationScaleEncoder):
    r"""Laplace posterior, :math:`q(z|x) = \prod_j \mathrm{Laplace}(z_j; \mu_j(x), b_j(x))` (Barello et al., 2018).

    Its divergence from a Laplace or Normal prior is closed. Arguments, shapes and errors as of `NormalEncoder`.
    """

    family = Laplace


class CauchyEncoder(_LocationScaleEncoder):
    r"""Cauchy posterior, :math:`q(z|x) = \prod_j \mathrm{Cauchy}(z_j; \mu_j(x), g_j(x))`, for a `CauchyPrior`.

    Only heavy-tailed priors are at a finite divergence from it. Since :math:`E|z|` is infinite, so is the expected
    loss of a decoder that grows without bound, as a ReLU network does: take a decoder whose first layer saturates
    (``activation="tanh"``); with another `vsc_pyro.VAE` refuses it. Arguments, shapes and errors
    as of `NormalEncoder`.
    """

    family = Cauchy


class DeltaEncoder(_Encoder):
    r"""A point, :math:`q(z|x) = \delta_{f(x)}`: an autoencoder, trained to the most of :math:`\log p(x|z) + \log p(z)`.

    With a `FlatPrior` it is the plain autoencoder, with `corruption` the denoising one (Vincent et al., 2010), with a
    `LaplacePrior`, whose log-density is :math:`-|z|/b`, the L1 sparse autoencoder. A point has no density, so there is
    no evidence lower bound, and `vsc_pyro.evaluate` reports none. The penalty of a prior is only felt as far as the
    decoder cannot make up for smaller codes with larger weights; weight decay limits that.

    Args:
        input_shape, latent_dim, hidden, activation, trunk: as of `NormalEncoder`.
        rectify: codes are :math:`\max(0, f(x))`, with exact zeros, as customary for sparse autoencoders.
        corruption: probability that a pixel is set to zero before encoding, in training mode, in [0, 1).

    Shapes:
        x ``(B, *input_shape)``; the distribution has `batch_shape` ``(B,)`` and `event_shape` ``(J,)``.

    Raises:
        ValueError: a size below 1, an unknown activation, or a corruption outside [0, 1).
    """

    def __init__(
        self,
        input_shape: int | Sequence[int],
        latent_dim: int,
        hidden: int | Sequence[int] | None = None,
        activation: str = "silu",
        trunk: nn.Module | None = None,
        rectify: bool = False,
        corruption: float = 0.0,
    ) -> None:
        super().__init__(input_shape, latent_dim, 1, hidden, activation, trunk)
        self.rectify = rectify
        if not 0 <= corruption < 1:
            raise ValueError(f"corruption must be a probability of at least 0 and below 1, got {corruption!r}")
        self.corruption = corruption

    def forward(self, x: Tensor) -> Delta:
        if self.training and self.corruption:
            x = x * torch.bernoulli(torch.full_like(x, 1 - self.corruption))
        (code,) = self.heads(x)
        return Delta(torch.relu(code) if self.rectify else code, event_dim=1)

    def extra_repr(self) -> str:
        return f"rectify={self.rectify}, corruption={self.corruption}"


class _SparseEncoder(_Encoder):
    """An encoder of spikes: of every latent, the inclusion probability it starts from."""

    def _start_inclusion(self, inclusion: float | None) -> None:
        self.follows_prior = inclusion is None
        inclusion = _DEFAULT_INCLUSION if inclusion is None else _inclusion("initial_inclusion", inclusion)
        self._set_inclusion(torch.full((self.latent_dim,), inclusion))

    def follow(self, inclusion: Tensor) -> None:
        """Start from a prior's inclusion probabilities, shape ``(J,)``, unless others were asked for or learned."""
        if self.follows_prior and self.is_fresh:
            self._set_inclusion(inclusion)

    @torch.no_grad()
    def _set_inclusion(self, inclusion: Tensor) -> None:
        offset = self._offset(inclusion).to(self._inclusion_bias)
        self._inclusion_bias.add_(offset - self.offset if hasattr(self, "offset") else offset)
        self.register_buffer("offset", offset, persistent=False)

    @property
    def _inclusion_bias(self) -> Tensor:
        return self.own_layer.bias[2 * self.latent_dim :]

    def _offset(self, inclusion: Tensor) -> Tensor:
        """What the bias of the inclusion's head is raised by for it."""
        raise NotImplementedError


class SpikeSlabEncoder(_SparseEncoder):
    r"""Spike-and-slab posterior, :math:`q(z|x) = \prod_j \gamma_j F(z_j; \mu_j, \sigma_j) + (1-\gamma_j) \delta_0`.

    One network gives location, scale and the log-odds of the inclusion probability of every latent (Tonolini et al.,
    2020, use the logarithm of a probability clipped at one, which has no gradient once a gate is fully on).

    In training mode spikes are drawn by the gate as it is; in evaluation mode (`.eval()`) always exactly.

    **Slab warm-up** (Tonolini et al., 2020): the buffer `slab_weight`, :math:`\lambda`, replaces the slab by
    :math:`F(\lambda\mu, \sqrt{\lambda\sigma^2 + 1 - \lambda})`, from the standard one at 0 to the network's at 1
    (where it starts). Drive it with ``fit(..., schedules=vsc_pyro.training.schedules.slab_warmup(num_steps))``.
    The divergence is that of the same slab, so every step trains a bound.

    Args:
        input_shape: shape of one datum, or its number of pixels; data are flattened.
        latent_dim: number of latents J.
        hidden: widths of the MLP's hidden layers; None for ``(400,)``.
        activation: name of the activation, see `vsc_pyro.models.networks.ACTIVATIONS`.
        gate: gradient estimator of the spikes: a name, or a `vsc_pyro.gates.Gate`, which is copied.
        initial_inclusion: inclusion probability that every latent starts from, strictly between 0 and 1; None for the
            prior's, which `vsc_pyro.VAE` hands on, and .1 until then or where it has none of its own.
        slab: family F, ``"normal"``, ``"laplace"`` or ``"cauchy"`` (which needs a slab as heavy-tailed in the prior,
            and a decoder that saturates, see `CauchyEncoder`).
        trunk: a network instead of the MLP, see `NormalEncoder`.

    Shapes:
        x ``(B, *input_shape)``; the distribution has `batch_shape` ``(B,)`` and `event_shape` ``(J,)``.

    Raises:
        ValueError: a size below 1, or an unknown activation, gate or slab (the message lists the known ones).
    """

    get_gate = staticmethod(get_gate)

    def __init__(
        self,
        input_shape: int | Sequence[int],
        latent_dim: int,
        hidden: int | Sequence[int] | None = None,
        activation: str = "silu",
        gate: str | Gate = "concrete",
        initial_inclusion: float | None = None,
        slab: str = "normal",
        trunk: nn.Module | None = None,
    ) -> None:
        super().__init__(input_shape, latent_dim, 3, hidden, activation, trunk)
        self.gate = copy.deepcopy(self.get_gate(gate))  # another model may schedule its own
        self.slab = slab
        self._family = get_slab(slab)
        self.register_buffer("slab_weight", torch.ones(()))
        self._start_inclusion(initial_inclusion)

    def _offset(self, inclusion: Tensor) -> Tensor:
        return torch.logit(inclusion)

    def forward(self, x: Tensor) -> IndependentSpikeSlab:
        loc, log_squared_scale, logits = self.heads(x)
        gate = self.gate if self.training else self.gate.hardened()
        weight = self.slab_weight
        scale = (weight * _scale(log_squared_scale) ** 2 + (1 - weight)).sqrt()
        return SpikeSlab(self._family(weight * loc, scale), logits=logits, gate=gate).to_event(1)

    def extra_repr(self) -> str:
        return f"slab={self.slab!r}"


_BASES: dict[str, type[TorchDistribution]] = {"laplace": Laplace, "normal": Normal}
_THRESHOLDS = {"amortised": 3, "per-latent": 2}  # and the heads that the network then has for each latent


class ThresholdEncoder(_SparseEncoder):
    r"""Spike-and-slab posterior by a learned shifted soft threshold of a draw (Fallah & Rozell, 2022).

    .. math:: \zeta \sim \mathrm{base}(\mu, \sigma), \qquad
        z = \mu + \mathrm{sign}(\zeta - \mu)(|\zeta - \mu| - \lambda) \;\text{where}\; |\zeta - \mu| > \lambda,
        \;\text{else}\; 0.

    A latent's inclusion probability is not a number of its own but follows from scale and threshold,
    :math:`e^{-\lambda / \sigma}` of a Laplace base and :math:`2\,\Phi(-\lambda / \sigma)` of a Normal one. The
    divergence is that of the code, and exact, see `vsc_pyro.distributions.thresholded`; the published objective has
    that of the un-thresholded draw in its place, and is no bound. There is no slab warm-up.

    Args:
        input_shape, latent_dim, hidden, activation, trunk: as of `NormalEncoder`.
        gate: gradient estimator of the spikes, a name or a `vsc_pyro.gates.Gate`, or ``"threshold"``, the published
            one: the derivative of what is thresholded, also where that is within the threshold. It says nothing of what
            the step from 0 to :math:`\mu` is worth, so that under a divergence that charges for spikes codes empty.
        initial_inclusion: inclusion probability that every latent starts from, strictly between 0 and 1; None for the
            prior's, which `vsc_pyro.VAE` hands on, and .1 until then or where it has none of its own.
        base: ``"laplace"`` or ``"normal"``.
        threshold: :math:`\lambda`, ``"amortised"``, from the network, or ``"per-latent"``, a parameter common to all
            data, the inclusion of which then differ by their scales.

    Shapes:
        x ``(B, *input_shape)``; the distribution has `batch_shape` ``(B,)`` and `event_shape` ``(J,)``.

    Raises:
        ValueError: a size below 1, an initial inclusion outside (0, 1), or an unknown activation, gate, base or
            threshold (the message lists the known ones).
    """

    get_gate = staticmethod(get_threshold_gate)

    def __init__(
        self,
        input_shape: int | Sequence[int],
        latent_dim: int,
        hidden: int | Sequence[int] | None = None,
        activation: str = "silu",
        gate: str | Gate = "concrete",
        initial_inclusion: float | None = None,
        base: str = "laplace",
        threshold: str = "amortised",
        trunk: nn.Module | None = None,
    ) -> None:
        num_heads = choice("threshold", threshold, _THRESHOLDS)
        super().__init__(input_shape, latent_dim, num_heads, hidden, activation, trunk)
        self.gate = copy.deepcopy(self.get_gate(gate))  # another model may schedule its own
        self.base = base
        self.threshold = threshold
        self._family = choice("base", base, _BASES)
        if threshold == "per-latent":
            self.unconstrained_threshold = nn.Parameter(torch.zeros(self.latent_dim))
        self._start_inclusion(initial_inclusion)

    @property
    def _inclusion_bias(self) -> Tensor:
        return self.unconstrained_threshold if self.threshold == "per-latent" else super()._inclusion_bias

    def _offset(self, inclusion: Tensor) -> Tensor:
        # Scales start near 1: the base's own quantile leaves as much beyond it, in two tails, as asked.
        start = -self._family(0.0, 1.0).icdf(inclusion / 2)
        return start + torch.log(-torch.expm1(-start))  # softplus of which is the start

    def forward(self, x: Tensor) -> IndependentSpikeSlab:
        loc, log_squared_scale, *amortised = self.heads(x)
        (unconstrained,) = amortised or (self.unconstrained_threshold,)
        gate = self.gate if self.training else self.gate.hardened()
        base = self._family(loc, _scale(log_squared_scale))
        return ThresholdedSpikeSlab(base, softplus(unconstrained) + _MIN_THRESHOLD, gate).to_event(1)

    def extra_repr(self) -> str:
        return f"base={self.base!r}, threshold={self.threshold!r}"
