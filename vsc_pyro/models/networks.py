"""Plain torch networks that encoders and decoders are built from."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from vsc_pyro._arguments import choice, natural_int, positive_int, sizes
from vsc_pyro._recorded import Recorded
from vsc_pyro.models.starting import INPUT_DEVIATION, mean_and_scale

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky-relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d)

# The width in the VSC paper and in its reproduction.
DEFAULT_HIDDEN = (400,)


class MLP(nn.Sequential):
    """Fully connected network: linear layers with an activation between them and none after the last.

    Args:
        in_features: size of the last dimension of the input.
        out_features: size of the last dimension of the output.
        hidden: widths of the hidden layers, first to last; ``()`` for a linear map.
        activation: one of the names in `ACTIVATIONS`.

    Shapes:
        ``(*, in_features) -> (*, out_features)``

    Raises:
        ValueError: a width below 1 or an unknown activation.

    >>> MLP(784, 10, hidden=(400, 200))(torch.zeros(2, 784)).shape
    torch.Size([2, 10])
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


def last_layer(network: nn.Module) -> nn.Module | None:
    """Return the last linear or convolutional layer of `network`, or None if it has none."""
    layers = [layer for layer in network.modules() if isinstance(layer, (*_LAYERS, _Doubling))]
    return layers[-1] if layers else None


def beside(trunk: nn.Module, activation: str) -> nn.Module:
    """Return the activation between a trunk and a linear layer, none for a trunk that `has_activations` at its ends."""
    activation_class = choice("activation", activation, ACTIVATIONS)
    return nn.Identity() if getattr(trunk, "has_activations", False) else activation_class()


class ConvTrunk(Recorded):
    """Convolutional network from images to features: each 4x4 convolution of stride 2 halves height and width.

    An activation follows each convolution, but not the final linear layer. Weights are initialised as in He et al.
    (2015).

    Args:
        input_shape: ``(channels, height, width)`` of one image; any size that can be halved once for each layer.
        channels: output channels of the convolutions, first to last.
        features: size of the output.
        activation: one of the names in `ACTIVATIONS`.

    Shapes:
        ``(B, C, H, W)`` or, flattened, ``(B, C * H * W)`` ``-> (B, features)``

    Raises:
        ValueError: an `input_shape` that is not an image or too small, no channels, a size below 1, an unknown
            activation, or (when called) data of another shape.

    >>> import vsc_pyro as vsc
    >>> trunk = vsc.ConvTrunk((1, 28, 28))
    >>> vsc.NormalEncoder((1, 28, 28), latent_dim=5, trunk=trunk)(torch.zeros(2, 1, 28, 28)).event_shape
    torch.Size([5])
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        channels: int | Sequence[int] = (32, 64),
        features: int = 256,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        activation_class = choice("activation", activation, ACTIVATIONS)
        channels = sizes("channels", channels)
        self.input_shape = _image_shape("input_shape", input_shape, channels)
        self.out_features = positive_int("features", features)
        color, height, width = self.input_shape
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise((color, *channels)):
            layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), activation_class()]
        shrink = 2 ** len(channels)
        inner = channels[-1] * (height // shrink) * (width // shrink)
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(inner, self.out_features))
        self.layers.apply(initialize)

    def forward(self, x: Tensor) -> Tensor:
        # An image with its channels last has as many values, but in another order.
        if tuple(x.shape[1:]) not in (self.input_shape, (math.prod(self.input_shape),)):
            raise ValueError(f"x must be images of shape {self.input_shape}, flattened or not, got {tuple(x.shape)}")
        return self.layers(x.reshape(len(x), *self.input_shape))


class CountTrunk(Recorded):
    r"""Network from raw counts to features: an MLP of the standardised logarithms of normalised counts.

    .. math:: y_d = \log\Big(1 + m \frac{n_d}{\sum_e n_e}\Big),

    where m is the median sum of counts in the training data. A datum and the same at ten times the depth so have about
    the same features. Covariates, the last columns of a row, enter the MLP beside y. Other columns, such as a given
    size, are ignored. `vsc_pyro.fit` sets m, mean and scale, through the encoder's `prepare`.

    Args:
        num_counts: number of counts D, the first values of a row.
        features: size of the output.
        hidden: widths of the hidden layers before it.
        activation: one of the names in `ACTIVATIONS`.
        num_covariates: number K of covariates, the last values of a row.

    Shapes:
        ``(B, ...)``, rows of at least D + K values, ``-> (B, features)``

    Raises:
        ValueError: a size below 1 or an unknown activation.

    >>> import vsc_pyro as vsc
    >>> encoder = vsc.SpikeSlabEncoder(30, latent_dim=5, trunk=vsc.CountTrunk(30))
    >>> encoder(torch.poisson(torch.full((2, 30), 3.0))).event_shape
    torch.Size([5])
    """

    typical_sum: Tensor
    input_mean: Tensor
    input_scale: Tensor

    def __init__(
        self,
        num_counts: int,
        features: int = 256,
        hidden: int | Sequence[int] = (),
        activation: str = "relu",
        *,
        num_covariates: int = 0,
    ) -> None:
        super().__init__()
        self.num_counts = positive_int("num_counts", num_counts)
        self.out_features = positive_int("features", features)
        self.num_covariates = natural_int("num_covariates", num_covariates)
        self.layers = MLP(self.num_counts + self.num_covariates, self.out_features, hidden, activation)
        self.register_buffer("typical_sum", torch.ones(()))
        self.register_buffer("input_mean", torch.zeros(self.num_counts))
        self.register_buffer("input_scale", torch.ones(()))

    @torch.no_grad()
    def prepare(self, rows: Tensor) -> None:
        """Take the median sum of counts, and mean and scale of the logarithms, from training data ``(N, ...)``."""
        self.typical_sum.copy_(rows.flatten(1)[:, : self.num_counts].sum(1).median())
        mean, scale = mean_and_scale(self._logarithms(rows.flatten(1)))
        self.input_mean.copy_(mean)
        self.input_scale.copy_(scale / INPUT_DEVIATION)

    def _logarithms(self, rows: Tensor) -> Tensor:
        counts = rows[:, : self.num_counts].clamp(min=0)  # the likelihood refuses negative ones in words
        return (self.typical_sum * counts / counts.sum(1, keepdim=True).clamp(min=1)).log1p()

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(1)
        inputs = (self._logarithms(rows) - self.input_mean) / self.input_scale
        covariates = rows[:, rows.shape[1] - self.num_covariates :]
        return self.layers(torch.cat([inputs, covariates], 1))


class MaskTrunk(Recorded):
    """Network from data with missing values, NaN, and the mask of the observed ones to features: an MLP of both.

    As the trunk of an encoder in a `vsc_pyro.VAE` with ``missing=True``, it sees which values are missing, where other
    encoders only see the training mean in their place. Take it where the pattern itself says something of a datum.

    Args:
        num_values: number D of values of a datum.
        features: size of the output.
        hidden: widths of the hidden layers before it.
        activation: one of the names in `ACTIVATIONS`.

    Shapes:
        ``(B, ...)`` of D values, standardised by the encoder, ``-> (B, features)``

    Raises:
        ValueError: a size below 1 or an unknown activation.

    >>> import torch, vsc_pyro as vsc
    >>> encoder = vsc.SpikeSlabEncoder(6, latent_dim=2, trunk=vsc.MaskTrunk(6, features=16))
    >>> model = vsc.VAE(encoder, vsc.NormalDecoder(2, 6), vsc.SpikeSlabPrior(2), missing=True)
    >>> x = torch.tensor([[1.0, float("nan"), 0.0, 0.0, 2.0, 0.0]])
    >>> model.encoder(x).mean.isfinite().all().item()
    True
    """

    takes_missing = True

    def __init__(
        self, num_values: int, features: int = 256, hidden: int | Sequence[int] = (), activation: str = "relu"
    ) -> None:
        super().__init__()
        self.out_features = positive_int("features", features)
        self.layers = MLP(2 * positive_int("num_values", num_values), self.out_features, hidden, activation)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return self.layers(torch.cat([x.nan_to_num(0.0), (~x.isnan()).to(x)], 1))


class DeconvTrunk(Recorded):
    """Convolutional network from features to images: each transposed convolution of stride 2 doubles height and width.

    The mirror image of `ConvTrunk`, with an activation after each layer but the last. A stride that divides the
    kernel's size does not prevent checkerboard patterns (Odena et al., 2016): the four output pixels of each input
    pixel are products with four different kernels. Here the four kernels are constrained to have the same sum, so that
    a constant map stays constant away from the border, before and after training. The initial weights are smooth: those
    of a 3x3 convolution of the enlarged map, with the variance of He et al. (2015).

    The maps have the image's sizes, halved and rounded down; output padding adds a row or column where a size is odd.

    Args:
        output_shape: ``(channels, height, width)`` of one image; any size that can be halved once for each layer.
        channels: input channels of the transposed convolutions, first to last.
        features: size of the input.
        activation: one of the names in `ACTIVATIONS`.

    Shapes:
        ``(*, features) -> (*, C, H, W)``, any number of leading dimensions.

    Raises:
        ValueError: an `output_shape` that is not an image or too small, no channels, a size below 1, or an unknown
            activation.

    >>> import vsc_pyro as vsc
    >>> trunk = vsc.DeconvTrunk((1, 28, 28))
    >>> vsc.BernoulliDecoder(5, (1, 28, 28), trunk=trunk)(torch.zeros(2, 5)).event_shape
    torch.Size([1, 28, 28])
    """

    def __init__(
        self,
        output_shape: Sequence[int],
        channels: int | Sequence[int] = (64, 32),
        features: int = 256,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        activation_class = choice("activation", activation, ACTIVATIONS)
        channels = sizes("channels", channels)
        self.output_shape = _image_shape("output_shape", output_shape, channels)
        self.in_features = positive_int("features", features)
        color, height, width = self.output_shape
        scales = [2**halvings for halvings in range(len(channels), -1, -1)]
        grids = [(height // scale, width // scale) for scale in scales]
        layers: list[nn.Module] = [
            nn.Linear(self.in_features, channels[0] * math.prod(grids[0])),
            nn.Unflatten(1, (channels[0], *grids[0])),
        ]
        for (before, after), (small, large) in zip(
            itertools.pairwise((*channels, color)), itertools.pairwise(grids), strict=True
        ):
            odd = tuple(new - 2 * old for old, new in zip(small, large, strict=True))
            layers += [activation_class(), _Doubling(before, after, odd)]
        self.layers = nn.Sequential(*layers)
        self.layers.apply(initialize)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.reshape(-1, self.in_features)).reshape(*x.shape[:-1], *self.output_shape)


class _Doubling(nn.Module):
    r"""Transposed 4x4 convolution of stride 2 that maps constant maps to constant maps.

    The parity of an output pixel's row and column selects one of four groups of 2x2 entries of the kernel,
    :math:`v_{pq}`. Each group is shifted to the mean of all, :math:`w_{pq} = v_{pq} - \bar v_{pq} + \bar v`.

    Args:
        before, after: channels of the input and of the output.
        odd: rows and columns to add to twice those of the input, 0 or 1 of each.

    Shapes:
        ``(B, before, H, W) -> (B, after, 2 * H + odd[0], 2 * W + odd[1])``
    """

    def __init__(self, before: int, after: int, odd: tuple[int, int]) -> None:
        super().__init__()
        self._odd = odd
        small = torch.randn(before * after, 1, 3, 3) * math.sqrt(2 / (9 * before))
        # Repeating each pixel twice and then applying a 3x3 convolution is one transposed convolution with this kernel.
        kernel = functional.conv2d(small, torch.ones(1, 1, 2, 2), padding=1)
        self.kernel = nn.Parameter(kernel.reshape(before, after, 4, 4))
        self.bias = nn.Parameter(torch.zeros(after))

    def forward(self, x: Tensor) -> Tensor:
        groups = self.kernel.unflatten(3, (2, 2)).unflatten(2, (2, 2))  # (before, after, 2, p, 2, q)
        means = groups.mean((2, 4), keepdim=True)
        weight = (groups - means + means.mean((3, 5), keepdim=True)).reshape(self.kernel.shape)
        return functional.conv_transpose2d(x, weight, self.bias, stride=2, padding=1, output_padding=self._odd)


def initialize(layer: nn.Module) -> None:
    """Draw weights of variance 2 / fan-in and set the bias to zero (He et al., 2015).

    Torch's default variance is 1 / (3 fan-in), under which signal and gradient nearly vanish within five layers.
    """
    if isinstance(layer, (nn.Linear, nn.Conv2d)) and layer.bias is not None:
        nn.init.normal_(layer.weight, std=math.sqrt(2 / layer.weight[0].numel()))
        nn.init.zeros_(layer.bias)


def _image_shape(name: str, value: Sequence[int], channels: tuple[int, ...]) -> tuple[int, int, int]:
    """Return `value` as the (channels, height, width) of an image that every layer can halve."""
    shape = sizes(name, value)
    if len(shape) != 3:
        raise ValueError(f"{name} must be (channels, height, width), got {value!r}")
    if not channels:
        raise ValueError("channels must have one entry for each convolution, got none")
    if min(shape[1:]) < 2 ** len(channels):
        raise ValueError(
            f"{name} must be at least {2 ** len(channels)} pixels high and wide to be halved {len(channels)} times, "
            f"got {value!r}; take fewer channels"
        )
    return shape
