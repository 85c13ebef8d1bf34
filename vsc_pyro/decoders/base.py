"""What all decoders share: a network from codes to one real number for each pixel."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vsc_pyro.arguments import choice, positive_int, sizes
from vsc_pyro.networks import ACTIVATIONS, DEFAULT_HIDDEN, MLP
from vsc_pyro.precision import run_network


class PixelDecoder(nn.Module):
    """A network of one output for each pixel: an MLP, or a linear layer, an activation and a trunk.

    Args:
        latent_dim: number of latents J.
        output_shape: shape of one datum, or its number of pixels.
        hidden: widths of the MLP's hidden layers; None for one of 400.
        activation: name of the activation, see `vsc_pyro.networks.ACTIVATIONS`.
        trunk: takes features ``(*, trunk.in_features)`` to ``(*, *output_shape)``, instead of the MLP.

    Raises:
        ValueError: a size below 1, an unknown activation, `hidden` beside a trunk, or a trunk that does not fit.
    """

    def __init__(
        self,
        latent_dim: int,
        output_shape: int | Sequence[int],
        hidden: int | Sequence[int] | None = None,
        activation: str = "relu",
        trunk: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.latent_dim = positive_int("latent_dim", latent_dim)
        self.output_shape = sizes("output_shape", output_shape)
        self.network_precision = "float32"
        if trunk is None:
            hidden = DEFAULT_HIDDEN if hidden is None else hidden
            self.network = MLP(self.latent_dim, math.prod(self.output_shape), hidden, activation)
            return
        if hidden is not None:
            raise ValueError(f"hidden={hidden!r} are widths of the MLP that a trunk replaces; pass one of the two")
        activation_class = choice("activation", activation, ACTIVATIONS)
        features = positive_int("trunk.in_features", getattr(trunk, "in_features", None))
        _check_trunk(trunk, features, self.output_shape)
        self.network = nn.Sequential(nn.Linear(self.latent_dim, features), activation_class(), trunk)

    @property
    def is_linear(self) -> bool:
        """Whether the pixels are a linear map of the code (``hidden=()``)."""
        return isinstance(self.network, MLP) and len(self.network) == 1

    @property
    def dictionary(self) -> Tensor:
        """The atoms of a linear decoder (``hidden=()``), what each latent adds to the pixels: ``(J, *output_shape)``.

        A view of ``network[0].weight``, of shape ``(D, J)``, so that it can be normalised in place.

        Raises:
            ValueError: a decoder that is not linear.
        """
        if not self.is_linear:
            raise ValueError("only a linear decoder has a dictionary; build the decoder with hidden=()")
        return self.network[0].weight.T.unflatten(1, self.output_shape)

    def pixels(self, z: Tensor) -> Tensor:
        """The network's outputs, ``(*, J) -> (*, *output_shape)``."""
        return run_network(self.network, z, self.network_precision).flatten(z.ndim - 1).unflatten(-1, self.output_shape)


def _check_trunk(trunk: nn.Module, features: int, output_shape: tuple[int, ...]) -> None:
    # On a copy, for its mode and the statistics of its batch norms are not ours; of two leading dimensions, as in
    # evaluations by several draws of each code.
    reference = next(trunk.parameters(), torch.empty(0))
    x = reference.new_zeros(2, 1, features)
    try:
        with torch.no_grad():
            got = tuple(copy.deepcopy(trunk).eval()(x).shape)
    except RuntimeError as error:
        raise ValueError(f"the trunk does not take features of shape {tuple(x.shape)}: {error}") from error
    # A flat datum has its pixels in the same order as an image; two different images have not.
    flat = 1 in (len(output_shape), len(got) - 2) and math.prod(got[2:]) == math.prod(output_shape)
    if got[:2] != (2, 1) or not (got[2:] == output_shape or flat):
        raise ValueError(
            f"the trunk takes features of shape (2, 1, {features}) to {got}, which does not fit output_shape="
            f"{output_shape}; build it with that shape, and let it keep all leading dimensions"
        )
