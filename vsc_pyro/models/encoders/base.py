"""The network of the encoders: data in, several outputs for each latent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import elu

from vsc_pyro._arguments import positive_int, shape, sizes
from vsc_pyro.models.gated import GatedTrunk
from vsc_pyro.models.networks import DEFAULT_HIDDEN, MLP, ConvTrunk, CountTrunk, MaskTrunk, beside
from vsc_pyro.models.precision import run_network
from vsc_pyro.models.starting import INPUT_DEVIATION, Prepared, mean_and_scale

# Keeps the log-density finite.
_MIN_SCALE = 1e-4


class Encoder(Prepared):
    """A network with `num_heads` outputs for each latent: an MLP on the flattened datum, or a trunk and a linear layer.

    Its input is ``(x - input_mean) / input_scale``, see `vsc_pyro.models.starting`.
    """

    input_mean: Tensor
    input_scale: Tensor
    network: nn.Sequential

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
        self.input_shape = shape("input_shape", input_shape)
        self.latent_dim = positive_int("latent_dim", latent_dim)
        self.num_heads = num_heads
        self.activation = activation
        self.network_precision = "float32"
        self.register_buffer("input_mean", torch.zeros(self.input_shape))
        self.register_buffer("input_scale", torch.ones(()))
        outputs = num_heads * self.latent_dim
        if trunk is None:
            self.hidden = sizes("hidden", DEFAULT_HIDDEN if hidden is None else hidden)
            self.network = nn.Sequential(
                nn.Flatten(), *MLP(math.prod(self.input_shape), outputs, self.hidden, activation)
            )
            return
        if hidden is not None:
            raise ValueError(f"hidden={hidden!r} are widths of the MLP that a trunk replaces; pass one of the two")
        features = positive_int("trunk.out_features", cast("int", getattr(trunk, "out_features", None)))
        self.network = nn.Sequential(trunk, beside(trunk, activation), nn.Linear(features, outputs))

    @property
    def own_layer(self) -> nn.Linear:
        """The last layer, which returns all heads."""
        return cast("nn.Linear", self.network[-1])

    def prepare(self, images: Tensor) -> None:
        """Standardise the input by training data, shape ``(N, *input_shape)``; only the first call has an effect.

        A frozen or trained network keeps its input. So does a trunk of a class that this library does not define. A
        `CountTrunk` standardises its own input.
        """
        if not self.begins():
            return
        first = self.network[0]
        if isinstance(first, CountTrunk):
            first.prepare(images)
        # A user's trunk may expect raw data, such as counts, or may be pretrained on them.
        elif isinstance(first, (nn.Flatten, ConvTrunk, GatedTrunk, MaskTrunk)):
            mean, scale = mean_and_scale(images)
            self.input_mean.copy_(mean.reshape(self.input_shape))
            self.input_scale.copy_(scale / INPUT_DEVIATION)

    @property
    def takes_missing(self) -> bool:
        """True if the network reads missing values, NaN, itself."""
        return getattr(self.network[0], "takes_missing", False)

    def heads(self, x: Tensor) -> tuple[Tensor, ...]:
        x = (x - self.input_mean.reshape(x.shape[1:])) / self.input_scale
        return run_network(self.network, x, self.network_precision).chunk(self.num_heads, -1)


def positive_scale(log_squared_scale: Tensor) -> Tensor:
    # Exponential below a scale of one, linear above. No data constrain the slab of a latent that is off, so its scale
    # drifts, and an exponential would overflow to NaN.
    return elu(0.5 * log_squared_scale) + (1 + _MIN_SCALE)
