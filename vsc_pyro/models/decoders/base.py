r"""A network from codes to one real number for each pixel, and where it starts.

A latent whose first effect on the data is large is switched off before its atom has learnt anything, for a wrong
picture costs more than any code earns; one of next to no effect learns nothing. Weights are therefore scaled when a
decoder is built, so that switching one latent on changes the outputs by a vector of length 1:

.. math:: \Big( \tfrac1J \sum_j \| f(e_j) - f(0) \|^2 \Big)^{1/2} = 1,

a logit, or the noise scale of a `vsc_pyro.NormalDecoder`. `prepare` starts the last layer's bias at the mean of the
training data, so that no latent is spent on that.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vsc_pyro._arguments import choice, positive_int, sizes
from vsc_pyro.models.networks import ACTIVATIONS, DEFAULT_HIDDEN, MLP, last_layer
from vsc_pyro.models.precision import run_network
from vsc_pyro.models.starting import Prepared, mean_and_scale

_LATENTS_TRIED = 64  # whose effects stand for those of all
_MOST_GROWTH = 10.0
_ROUNDS = 4  # through a trunk, effects are only roughly in proportion to weights


class PixelDecoder(Prepared):
    """A network of one output for each pixel: an MLP, or a linear layer, an activation and a trunk.

    Args:
        latent_dim: number of latents J.
        output_shape: shape of one datum, or its number of pixels.
        hidden: widths of the MLP's hidden layers; None for one of 400.
        activation: name of the activation, see `vsc_pyro.models.networks.ACTIVATIONS`.
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
            self._start_effects(1.0)
            return
        if hidden is not None:
            raise ValueError(f"hidden={hidden!r} are widths of the MLP that a trunk replaces; pass one of the two")
        activation_class = choice("activation", activation, ACTIVATIONS)
        features = positive_int("trunk.in_features", getattr(trunk, "in_features", None))
        _check_trunk(trunk, features, self.output_shape)
        self.network = nn.Sequential(nn.Linear(self.latent_dim, features), activation_class(), trunk)
        self._start_effects(1.0)

    @property
    def own_layer(self) -> nn.Linear:
        """The MLP's last layer, or the one that feeds a trunk."""
        return self.network[-1 if isinstance(self.network, MLP) else 0]

    def _start_effects(self, size: float) -> None:
        """Scale weights so that one latent that is on changes the outputs by a vector of length `size`.

        The last layer's, or, before a trunk, those of the layer that feeds it: a trunk may have been trained elsewhere.
        """
        scaled = self.own_layer
        codes = torch.cat([torch.zeros(1, self.latent_dim), torch.eye(self.latent_dim)[:_LATENTS_TRIED]]).to(
            scaled.weight
        )
        # A trunk that is bounded, or answers weakly, has no weights for such an effect.
        rounds, growth = (1, math.inf) if isinstance(self.network, MLP) else (_ROUNDS, _MOST_GROWTH)
        for _ in range(rounds):
            with torch.no_grad():
                # On a copy, for the statistics of batch norms are not ours, and a trunk may be elsewhere.
                outputs = copy.deepcopy(self.network).eval().to(scaled.weight)(codes).flatten(1)
                effect = (outputs[1:] - outputs[0]).square().sum(1).mean().sqrt()
                if effect > 0:
                    factor = min(size / float(effect), growth)
                    scaled.weight.mul_(factor)
                    growth /= factor

    def prepare(self, images: Tensor) -> None:
        """Start at the mean of training data, shape ``(N, *output_shape)``: the first time, if it is to be trained.

        The last layer's bias is set, pixel by pixel; a trunk's only if it is zero, channel by channel.
        """
        if not self.begins():
            return
        mean, scale = mean_and_scale(images.reshape(len(images), *self.output_shape))
        outputs = self._outputs_of(mean, scale, len(images))
        bias = getattr(last_layer(self.network), "bias", None)
        if bias is None or not bias.requires_grad or (bias is not getattr(self.own_layer, "bias", None) and bias.any()):
            return
        outputs = outputs.reshape(getattr(self.network[-1], "output_shape", outputs.shape))
        with torch.no_grad():
            if bias.numel() == outputs.numel():
                bias.copy_(outputs.flatten())
            elif bias.numel() == len(outputs):
                bias.copy_(outputs.flatten(1).mean(1))

    def _outputs_of(self, mean: Tensor, scale: Tensor, num_data: int) -> Tensor:
        """The network's outputs, shape `output_shape`, under which the likelihood has the mean of so many data.

        Args:
            mean: shape `output_shape`, float64.
            scale: standard deviation of the data around it, one number.
            num_data: how many data these are from; a probability is kept away from 0 and 1 by half a datum.
        """
        raise NotImplementedError

    @property
    def is_linear(self) -> bool:
        """Whether the pixels are a linear map of the code (``hidden=()``)."""
        return isinstance(self.network, MLP) and len(self.network) == 1

    @property
    def dictionary(self) -> Tensor:
        """The atoms of a linear decoder (``hidden=()``), what each latent adds to the pixels: ``(J, *output_shape)``.

        A view of ``network[0].weight``, of shape ``(D, J)``, so that it can be normalised in place. Of a
        `NormalDecoder` whose scale is the data's it is a copy, that weight times the data's unit.

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
