r"""The networks of decoders, from codes to one real number for each pixel, and their starting values.

If a latent changes the data a lot before it has learnt anything, the objective switches it off, because a wrong picture
costs more than a code can earn. If it changes next to nothing, it does not learn. The constructor therefore scales the
weights so that switching one latent on changes the outputs by a vector of length 1:

.. math:: \Big( \tfrac1J \sum_j \| f(e_j) - f(0) \|^2 \Big)^{1/2} = 1,

in units of logits, or of the noise scale of a `vsc_pyro.NormalDecoder`. `prepare` sets the last layer's bias to the
mean of the training data, so that no latent is needed to model the mean.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from pyro.distributions import Independent
from torch import Tensor, nn

from vsc_pyro._arguments import natural_int, positive_int, shape
from vsc_pyro.distributions import ContextRows
from vsc_pyro.models.networks import DEFAULT_HIDDEN, MLP, beside, last_layer
from vsc_pyro.models.precision import run_network
from vsc_pyro.models.starting import Prepared, mean_and_scale

if TYPE_CHECKING:
    from jaxtyping import Float

_LATENTS_TRIED = 64  # the mean effect is estimated from that many latents
_MOST_GROWTH = 10.0
_ROUNDS = 4  # through a trunk, effects are only roughly proportional to weights


class PixelDecoder(Prepared):
    """A network with one output for each pixel: an MLP, or a linear layer, an activation and a trunk.

    Covariates of a datum, columns behind its values, may be added to the outputs, see `vsc_pyro.NormalDecoder`.

    A subclass defines the likelihood of the outputs, `_likelihood`, and the outputs to start from, `_outputs_of`.
    Arguments and errors are those of `vsc_pyro.BernoulliDecoder`.
    """

    network: nn.Sequential
    effect_weight: nn.Parameter | None
    typical: Tensor | None

    def __init__(
        self,
        latent_dim: int,
        output_shape: int | Sequence[int],
        hidden: int | Sequence[int] | None = None,
        activation: str = "relu",
        trunk: nn.Module | None = None,
        *,
        num_covariates: int = 0,
    ) -> None:
        super().__init__()
        self.latent_dim = positive_int("latent_dim", latent_dim)
        self.output_shape = shape("output_shape", output_shape)
        self._start_context(natural_int("num_covariates", num_covariates))
        self.network_precision = "float32"
        if trunk is None:
            hidden = DEFAULT_HIDDEN if hidden is None else hidden
            self.network = MLP(self.latent_dim, math.prod(self.output_shape), hidden, activation)
            self._start_effects(1.0)
            return
        if hidden is not None:
            raise ValueError(f"hidden={hidden!r} are widths of the MLP that a trunk replaces; pass one of the two")
        between = beside(trunk, activation)
        features = positive_int("trunk.in_features", cast(int, getattr(trunk, "in_features", None)))
        _check_trunk(trunk, features, self.output_shape)
        self.network = nn.Sequential(nn.Linear(self.latent_dim, features), between, trunk)
        self._start_effects(1.0)

    def _start_context(self, num_covariates: int) -> None:
        if num_covariates and len(self.output_shape) > 1:
            raise ValueError(
                f"num_covariates={num_covariates} are columns behind the values of a row, so output_shape must be a "
                f"number, got {self.output_shape}; flatten the data"
            )
        effects = nn.Parameter(torch.zeros(*self.output_shape, num_covariates)) if num_covariates else None
        self.register_parameter("effect_weight", effects)
        self.register_buffer("typical", torch.zeros(num_covariates) if num_covariates else None)

    @property
    def effects(self) -> Tensor | None:
        """The effects a of covariates on the outputs, shape ``(D, K)``; None without covariates."""
        return self.effect_weight

    @property
    def own_layer(self) -> nn.Linear:
        """The MLP's last layer, or the layer in front of a trunk."""
        return cast(nn.Linear, self.network[-1 if isinstance(self.network, MLP) else 0])

    def _start_effects(self, size: float) -> None:
        """Scale `own_layer` so that switching one latent on changes the outputs by a vector of length `size`.

        A trunk keeps its weights, which may have been trained elsewhere.
        """
        scaled = self.own_layer
        tried = torch.eye(min(self.latent_dim, _LATENTS_TRIED), self.latent_dim)
        codes = torch.cat([torch.zeros(1, self.latent_dim), tried]).to(scaled.weight)
        # A bounded or insensitive trunk may not reach that effect with any weights, so growth is limited.
        rounds, growth = (1, math.inf) if isinstance(self.network, MLP) else (_ROUNDS, _MOST_GROWTH)
        for _ in range(rounds):
            with torch.no_grad():
                # A copy: the trunk's mode and its batch norms' statistics must not change, nor its device.
                outputs = copy.deepcopy(self.network).eval().to(scaled.weight)(codes).flatten(1)
                effect = (outputs[1:] - outputs[0]).square().sum(1).mean().sqrt()
                if effect > 0:
                    factor = min(size / float(effect), growth)
                    scaled.weight.mul_(factor)
                    growth /= factor

    def prepare(self, images: Tensor) -> None:
        """Start from the mean of training data, shape ``(N, *output_shape)``, in the first call, if trainable.

        This sets the last layer's bias, pixel by pixel, and the typical context. A trunk's bias is set only if it is
        zero, per channel if it has one entry for each channel.
        """
        if not self.begins():
            return
        values, context = self._parted(images)
        if self.typical is not None:
            self.typical.copy_(self._typical_of(context))
        mean, scale = mean_and_scale(values)
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

    def _parted(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the values ``(N, *output_shape)`` and the context ``(N, K)`` of data."""
        if self.typical is None:
            return images.reshape(len(images), *self.output_shape), images.new_zeros(len(images), 0)
        rows = images.flatten(1)
        return rows[:, : self.output_shape[0]], rows[:, self.output_shape[0] :]

    def _typical_of(self, context: Tensor) -> Tensor:
        """Return the context that draws of the prior have, given that of the training data."""
        return context.double().mean(0)

    def _outputs_of(self, mean: Tensor, scale: Tensor, num_data: int) -> Tensor:
        """Return the outputs, shape `output_shape`, at which the likelihood's mean is that of the data.

        Args:
            mean: mean of the data, shape `output_shape`, float64.
            scale: standard deviation of the data around it, one number.
            num_data: number of data; keeps a probability half a datum away from 0 and 1.
        """
        raise NotImplementedError

    def _likelihood(self, outputs: Tensor) -> Any:
        """Return the distribution of independent pixels whose parameters are the network's outputs."""
        raise NotImplementedError

    @property
    def is_linear(self) -> bool:
        """True if the pixels are a linear map of the code (``hidden=()``)."""
        return isinstance(self.network, MLP) and len(self.network) == 1

    @property
    def dictionary(self) -> Tensor:
        """The atoms of a linear decoder, what each latent adds to the pixels: shape ``(J, *output_shape)``.

        It is a view of ``network[0].weight``, of shape ``(D, J)``, and can be normalised in place. A `NormalDecoder`
        with ``scale="data"`` returns a copy, that weight times the data's unit.

        Raises:
            ValueError: a decoder that is not linear (``hidden=()``).
        """
        if not self.is_linear:
            raise ValueError("only a linear decoder has a dictionary; build the decoder with hidden=()")
        return self.own_layer.weight.T.unflatten(1, self.output_shape)

    def pixels(self, z: Tensor) -> Tensor:
        """Return the network's outputs, ``(*, J) -> (*, *output_shape)``."""
        return run_network(self.network, z, self.network_precision).flatten(z.ndim - 1).unflatten(-1, self.output_shape)

    def comparable(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the values of data ``(B, ...)``, and rows that hold them in the context in which they are decoded.

        Measures of what codes explain, such as R2, compare values with the means of codes in the context of the rows.
        It is the typical one if values can be moved there, so that the effect of the context is left out.
        """
        return (x, x) if self.typical is None else (self._parted(x)[0], x)

    def forward(self, z: Float[Tensor, "*draws latents"]) -> Independent | ContextRows:
        outputs = self.pixels(z)
        if self.typical is None:
            return self._likelihood(outputs).to_event(len(self.output_shape))
        return ContextRows(outputs, self.typical, self._likelihood, self.effects)

    def extra_repr(self) -> str:
        return "" if self.effect_weight is None else f"num_covariates={self.effect_weight.shape[1]}"


def _check_trunk(trunk: nn.Module, features: int, output_shape: tuple[int, ...]) -> None:
    # A copy, because a trunk's mode and statistics must not change; two leading dimensions, because evaluation passes
    # several draws of each code.
    reference = next(trunk.parameters(), torch.empty(0))
    x = reference.new_zeros(2, 1, features)
    try:
        with torch.no_grad():
            got = tuple(copy.deepcopy(trunk).eval()(x).shape)
    except RuntimeError as error:
        raise ValueError(f"the trunk does not take features of shape {tuple(x.shape)}: {error}") from error
    # Flattening an image keeps the order of its pixels; two images of different shapes differ in it.
    flat = 1 in (len(output_shape), len(got) - 2) and math.prod(got[2:]) == math.prod(output_shape)
    if got[:2] != (2, 1) or not (got[2:] == output_shape or flat):
        raise ValueError(
            f"the trunk maps features of shape (2, 1, {features}) to {got}, which does not fit output_shape="
            f"{output_shape}; build it with that shape, and let it keep all leading dimensions"
        )
