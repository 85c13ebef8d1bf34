"""Trunks: plain torch networks that encoders and decoders put their distributions on."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import nn

from vsc_pyro.arguments import choice, positive_int, sizes

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky-relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}


class MLP(nn.Sequential):
    """Fully connected network: linear layers with an activation between them, none after the last.

    Args:
        in_features: size of the last dimension of the input.
        out_features: size of the last dimension of the output.
        hidden: widths of the hidden layers, first to last; ``()`` for a linear map.
        activation: one of the names in `ACTIVATIONS`.

    Shapes:
        ``(*, in_features) -> (*, out_features)``

    Raises:
        ValueError: a width below 1 or an unknown activation.
    """

    def __init__(
        self, in_features: int, out_features: int, hidden: int | Sequence[int] = (400,), activation: str = "relu"
    ) -> None:
        activation_class = choice("activation", activation, ACTIVATIONS)
        widths = [positive_int("in_features", in_features), *sizes("hidden", hidden)]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Linear(before, after), activation_class()]
        layers.append(nn.Linear(widths[-1], positive_int("out_features", out_features)))
        super().__init__(*layers)
